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

/// An open directory of one group, in whichever hierarchy.
#[derive(Debug)]
pub enum Directory {
    /// v2.
    Unified(OwnedFd),
    /// v1, with the hierarchy's mount options.
    Legacy(String, OwnedFd),
}

impl Directory {
    fn fd(&self) -> &OwnedFd {
        match self {
            Directory::Unified(fd) | Directory::Legacy(_, fd) => fd,
        }
    }

    fn has_controller(&self, name: &str) -> bool {
        matches!(self, Directory::Legacy(controllers, _) if controllers.split(',').any(|one| one == name))
    }
}

/// Sends a signal to every process of the group, also to those that are born meanwhile.
///
/// With v2 SIGKILL is one write (Linux 5.14). With v1 the group is frozen, so that nothing can fork away; without a
/// freezer it is repeated until no new process shows.
///
/// # Errors
/// The last error, after everything has been tried.
pub fn signal_all(directories: &[Directory], signal: i32) -> io::Result<()> {
    let unified = directories.iter().find(|directory| matches!(directory, Directory::Unified(_)));
    if signal == libc::SIGKILL
        && let Some(unified) = unified
        && write_at(unified.fd(), "cgroup.kill", "1").is_ok()
    {
        return Ok(());
    }
    let freezer = directories.iter().find(|directory| directory.has_controller("freezer"));
    if let Some(freezer) = freezer {
        let _ = write_at(freezer.fd(), "freezer.state", "FROZEN");
    }
    let listed = directories.iter().find(|one| one.has_controller("pids")).or(freezer).or(unified);
    let result = listed.or(directories.first()).map_or(Ok(()), |group| signal_listed(group.fd(), signal));
    if let Some(freezer) = freezer {
        write_at(freezer.fd(), "freezer.state", "THAWED")?;
    }
    result
}

fn signal_listed(directory: &OwnedFd, signal: i32) -> io::Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    let mut result = Ok(());
    for _ in 0..100 {
        let text = read_at(directory, "cgroup.procs")?;
        let fresh: Vec<i32> = text
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid| *pid > 0 && seen.insert(*pid))
            .collect();
        if fresh.is_empty() {
            break;
        }
        for pid in fresh {
            match crate::process::open_pidfd(pid)
                .and_then(|pidfd| crate::process::send_signal(&pidfd, signal))
            {
                Err(error) if error.raw_os_error() != Some(libc::ESRCH) => result = Err(error),
                _ => {}
            }
        }
    }
    result
}

/// How many processes of the group the OOM killer has ended; `None` without a memory controller.
pub fn oom_kills(directories: &[Directory]) -> Option<u64> {
    directories.iter().find_map(|directory| {
        let (file, key) = match directory {
            Directory::Unified(_) => ("memory.events", "oom_kill "),
            Directory::Legacy(..) if directory.has_controller("memory") => {
                ("memory.oom_control", "oom_kill ")
            }
            Directory::Legacy(..) => return None,
        };
        let text = read_at(directory.fd(), file).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)).and_then(|count| count.trim().parse().ok())
    })
}

fn read_at(directory: &OwnedFd, name: &str) -> io::Result<String> {
    use rustix::fs::{Mode, OFlags, openat};
    let file = openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    io::read_to_string(std::fs::File::from(file))
}

fn write_at(directory: &OwnedFd, name: &str, text: &str) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, openat};
    let file = openat(directory, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, text.as_bytes())?;
    Ok(())
}
