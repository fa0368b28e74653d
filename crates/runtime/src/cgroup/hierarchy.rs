//! The cgroup hierarchies of the machine, from `/proc/self/mountinfo` (proc(5), cgroups(7)).

use std::io;
use std::path::{Path, PathBuf};

/// Controllers of v1 and v2.
const CONTROLLERS: [&str; 15] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "net_cls",
    "net_prio",
    "blkio",
    "perf_event",
    "hugetlb",
    "pids",
    "rdma",
    "misc",
    "io",
];

/// Which version, and what it controls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// v2; its controllers are asked for when they are needed.
    Unified,
    /// v1, with the names in its mount options.
    Legacy(Vec<String>),
}

/// One hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) mount: PathBuf,
    pub(super) kind: Kind,
}

impl Hierarchy {
    pub(super) fn is_unified(&self) -> bool {
        self.kind == Kind::Unified
    }

    /// Whether it has a controller.
    pub(super) fn has(&self, controller: &str) -> bool {
        match &self.kind {
            Kind::Legacy(controllers) => controllers.iter().any(|one| one == controller),
            Kind::Unified => {
                words(&self.mount.join("cgroup.controllers")).iter().any(|one| one == controller)
            }
        }
    }

    /// A group's directory.
    pub(super) fn directory(&self, group: &str) -> PathBuf {
        self.mount.join(group.trim_start_matches('/'))
    }

    /// Makes a group with those above it, ready for processes and limits.
    pub(super) fn make(&self, group: &str) -> io::Result<()> {
        let mut directory = self.mount.clone();
        for name in group.split('/').filter(|name| !name.is_empty()) {
            if self.is_unified() {
                delegate(&directory);
            }
            let above = directory.clone();
            directory.push(name);
            match std::fs::create_dir(&directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            if self.has_cpuset() {
                inherit_cpuset(&above, &directory)?;
            }
        }
        Ok(())
    }

    fn has_cpuset(&self) -> bool {
        matches!(&self.kind, Kind::Legacy(controllers) if controllers.iter().any(|one| one == "cpuset"))
    }
}

/// Gives the groups below `directory` every controller there is, each by itself: one that can't be given must not
/// keep the others back.
fn delegate(directory: &Path) {
    let given = words(&directory.join("cgroup.subtree_control"));
    for controller in words(&directory.join("cgroup.controllers")).iter().filter(|one| !given.contains(one)) {
        if let Err(error) = std::fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"))
        {
            tracing::debug!(directory = %directory.display(), controller, %error, "a cgroup controller is not passed on");
        }
    }
}

/// A new group of v1's cpuset has no CPUs and no memory nodes, and takes no process until it has.
fn inherit_cpuset(above: &Path, directory: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if std::fs::read_to_string(directory.join(file))?.trim().is_empty() {
            std::fs::write(directory.join(file), std::fs::read_to_string(above.join(file))?.trim())?;
        }
    }
    Ok(())
}

fn words(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Reads the hierarchies from a mount table. One that is mounted twice counts once.
pub(super) fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for hierarchy in mountinfo.lines().filter_map(parse_line) {
        if !found.iter().any(|known| known.kind == hierarchy.kind) {
            found.push(hierarchy);
        }
    }
    found
}

/// `36 35 98:0 / /mnt rw,noatime shared:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &str) -> Option<Hierarchy> {
    let (place, filesystem) = line.split_once(" - ")?;
    let mount = PathBuf::from(place.split(' ').nth(4)?);
    let mut fields = filesystem.split(' ');
    let kind = match fields.next()? {
        "cgroup2" => Kind::Unified,
        "cgroup" => Kind::Legacy(controllers(fields.nth(1)?)),
        _ => return None,
    };
    Some(Hierarchy { mount, kind })
}

fn controllers(options: &str) -> Vec<String> {
    let is_name = |option: &&str| CONTROLLERS.contains(option) || option.starts_with("name=");
    options.split(',').filter(is_name).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_machines_hierarchies_are_found_once_each() {
        let table = "30 23 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,name=systemd\n\
            34 30 0:28 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n";
        let found = parse(table);
        let names: Vec<_> = found.iter().map(|one| one.kind.clone()).collect();
        let legacy = |names: &[&str]| Kind::Legacy(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(names, [Kind::Unified, legacy(&["cpu", "cpuacct"]), legacy(&["name=systemd"])]);
        assert_eq!(found[1].directory("/kakoi/x"), Path::new("/sys/fs/cgroup/cpu,cpuacct/kakoi/x"));
    }
}
