//! Control groups, v2 and v1 (one directory per hierarchy): laid out and limited as plans, then applied.
//!
//! A group is named by its path below the mount point (`/kubepods/pod1/container`), the same in every hierarchy.
//! Nothing here moves a process: they are born in their group ([`crate::process`]) or enter it themselves.

mod apply;
mod detail;
mod device;
mod plan;
mod stat;

pub use apply::{CgroupError, apply, kill, open, processes, remove};
pub use detail::{Details, DeviceIo, HugeUsage, Pressure, Stall, details, pressure};
pub use device::DeviceRule;
pub use plan::{HugePages, Limits, Plan, Step, plan_create, plan_update, weight_of};
pub use stat::{Stats, stats};

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Where the machine's hierarchies are mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// The v2 hierarchy.
    pub unified: Option<PathBuf>,
    /// The v1 hierarchies.
    pub legacy: Vec<Hierarchy>,
}

/// A v1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers or its name: `memory`, `cpu,cpuacct`, `name=systemd`.
    pub controllers: String,
    /// Where it is mounted.
    pub mount: PathBuf,
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.split(',').any(|one| one == controller)
    }
}

impl Layout {
    /// Reads the mount table.
    ///
    /// # Errors
    /// What `/proc` said; [`io::ErrorKind::NotFound`] if no hierarchy is mounted.
    pub fn detect() -> io::Result<Self> {
        let layout = Self::parse(&std::fs::read_to_string("/proc/self/mountinfo")?);
        if layout == Self::default() {
            let text = "no cgroup hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup";
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        Ok(layout)
    }

    /// From the text of a `/proc/PID/mountinfo`. A hierarchy that is mounted twice counts once.
    pub fn parse(mountinfo: &str) -> Self {
        let mut layout = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let mount = left.split(' ').nth(4).map(PathBuf::from);
            let mut right = right.split(' ');
            let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
            match (kind, mount) {
                (Some("cgroup2"), Some(mount)) => drop(layout.unified.get_or_insert(mount)),
                (Some("cgroup"), Some(mount)) => layout.add_legacy(options, mount),
                _ => {}
            }
        }
        layout
    }

    fn add_legacy(&mut self, options: &str, mount: PathBuf) {
        const CONTROLLERS: [&str; 13] = [
            "cpu",
            "cpuacct",
            "cpuset",
            "memory",
            "devices",
            "freezer",
            "blkio",
            "pids",
            "hugetlb",
            "net_cls",
            "net_prio",
            "perf_event",
            "rdma",
        ];
        let is_ours = |option: &&str| CONTROLLERS.contains(option) || option.starts_with("name=");
        let controllers = options.split(',').filter(is_ours).collect::<Vec<_>>().join(",");
        if !controllers.is_empty() && self.legacy.iter().all(|known| known.controllers != controllers) {
            self.legacy.push(Hierarchy { controllers, mount });
        }
    }

    /// Whether every controller is in the v2 hierarchy.
    pub fn is_unified(&self) -> bool {
        self.legacy.is_empty()
    }

    /// Where the v2 hierarchy of a hybrid machine is mounted: beside v1 hierarchies, which have the controllers.
    pub fn beside_legacy(&self) -> Option<&Path> {
        self.unified.as_deref().filter(|_| !self.is_unified())
    }

    /// The directories of a group in all hierarchies, the v2 one first.
    pub fn directories(&self, group: &str) -> Vec<PathBuf> {
        let mounts = self.unified.iter().chain(self.legacy.iter().map(|hierarchy| &hierarchy.mount));
        mounts.map(|mount| below(mount, group)).collect()
    }

    /// Where a controller's files of a group are.
    pub fn controller(&self, name: &str, group: &str) -> Option<PathBuf> {
        let legacy =
            self.legacy.iter().find(|hierarchy| hierarchy.has(name)).map(|hierarchy| &hierarchy.mount);
        let mount = if self.is_unified() { self.unified.as_ref() } else { legacy };
        mount.map(|mount| below(mount, group))
    }
}

/// A group's path has no say above its mount point.
fn below(mount: &Path, group: &str) -> PathBuf {
    let parts = group.split('/').filter(|part| !part.is_empty() && *part != "." && *part != "..");
    mount.join(parts.collect::<PathBuf>())
}

/// One group's open directories in every hierarchy of the machine.
#[derive(Debug, Default)]
pub struct Directories {
    /// In the v2 hierarchy.
    pub unified: Option<OwnedFd>,
    /// In v1 hierarchies: mount options (`memory`, `name=systemd` …) and directory.
    pub legacy: Vec<(String, OwnedFd)>,
}

impl Directories {
    /// Opens the door of every v1 directory: see [`open_legacy_door`].
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn open_legacy_doors(&self) -> io::Result<Vec<OwnedFd>> {
        self.legacy.iter().map(|(_, directory)| open_legacy_door(directory)).collect()
    }
}

/// Opens the file of a v1 group through which a process with one thread enters it: it writes `0`.
///
/// This is `tasks` and not `cgroup.procs`: a write to the latter waits until no thread of the machine is being forked,
/// which costs an RCU grace period, some 10 ms. The one thread of a process that moves itself need not wait.
///
/// # Errors
/// The kernel's answer.
pub fn open_legacy_door(directory: impl AsFd) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, openat};
    Ok(openat(directory, "tasks", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
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
    let pids = directories.iter().find(|one| one.has_controller("pids"));
    let listed = [pids, freezer, unified].into_iter().flatten().chain(directories).next();
    let result = listed.map_or(Ok(()), |group| signal_listed(group.fd(), signal));
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
        let listed = text.lines().filter_map(|line| line.parse::<i32>().ok());
        let fresh: Vec<i32> = listed.filter(|pid| *pid > 0 && seen.insert(*pid)).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machine_is_recognised() {
        let text = "\
            40 1 0:30 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            41 40 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            42 40 0:32 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            43 40 0:33 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
            44 40 0:31 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n";
        let layout = Layout::parse(text);
        assert_eq!(layout.unified.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        let names: Vec<&str> = layout.legacy.iter().map(|one| one.controllers.as_str()).collect();
        assert_eq!(names, ["cpu,cpuacct", "name=systemd"]);
        assert!(!layout.is_unified());
        assert_eq!(
            layout.controller("cpuacct", "/a/b").unwrap(),
            Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b")
        );
        assert_eq!(layout.controller("memory", "/a"), None);
    }

    #[test]
    fn a_group_stays_below_its_mount_point() {
        assert_eq!(below(Path::new("/sys/fs/cgroup"), "/../../etc//x"), Path::new("/sys/fs/cgroup/etc/x"));
    }
}
