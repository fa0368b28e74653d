//! Control groups, v2 and v1 (one directory per hierarchy): laid out and limited as plans, then applied.

use std::io;
use std::os::fd::OwnedFd;

/// One group's open directories in every hierarchy of the machine.
#[derive(Debug, Default)]
pub struct Directories {
    /// In the v2 hierarchy.
    pub unified: Option<OwnedFd>,
    /// In v1 hierarchies: mount options (`memory`, `name=systemd` …) and directory.
    pub legacy: Vec<(String, OwnedFd)>,
}

impl Directories {
    /// Opens the `cgroup.procs` of every v1 directory for writing.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn open_legacy_procs(&self) -> io::Result<Vec<OwnedFd>> {
        use rustix::fs::{Mode, OFlags, openat};
        let open = |(_, dir): &(String, OwnedFd)| {
            openat(dir, "cgroup.procs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .map_err(io::Error::from)
        };
        self.legacy.iter().map(open).collect()
    }
}
