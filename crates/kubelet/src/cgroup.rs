//! Pod cgroups: one per Pod below its quality-of-service parent, with the Pod's limits; containers go below, and are
//! the runtime's. Works on cgroup v2 and on v1 (one directory in each controller's hierarchy).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::pod::resource::CgroupValues;

/// Where the machine's cgroup hierarchies are mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hierarchies {
    /// One tree with all controllers.
    Unified(PathBuf),
    /// A tree for each controller that matters here.
    Legacy { cpu: Option<PathBuf>, memory: Option<PathBuf> },
}

/// One file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) path: PathBuf,
    pub(crate) value: String,
}

/// Reads the mount table: v2 counts only where it has the controllers, not as v1's companion.
pub(crate) fn find_hierarchies(mountinfo: &str) -> Hierarchies {
    let (mut unified, mut cpu, mut memory) = (None, None, None);
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let Some(point) = before.split(' ').nth(4).map(PathBuf::from) else { continue };
        let mut fields = after.split(' ');
        let kind = fields.next().unwrap_or_default();
        let options = fields.nth(1).unwrap_or_default();
        let has = |controller: &str| options.split(',').any(|option| option == controller);
        match kind {
            "cgroup2" => unified = unified.or(Some(point)),
            "cgroup" if has("cpu") => cpu = cpu.or(Some(point)),
            "cgroup" if has("memory") => memory = memory.or(Some(point)),
            _ => {}
        }
    }
    match unified {
        Some(root) if cpu.is_none() && memory.is_none() => Hierarchies::Unified(root),
        _ => Hierarchies::Legacy { cpu, memory },
    }
}

impl Hierarchies {
    fn roots(&self) -> Vec<&Path> {
        match self {
            Self::Unified(root) => vec![root],
            Self::Legacy { cpu, memory } => cpu.iter().chain(memory).map(PathBuf::as_path).collect(),
        }
    }

    /// What to write for `group` (absolute, e.g. `/kakoi/pod1`) with these values.
    pub(crate) fn plan(&self, group: &str, values: CgroupValues) -> Vec<Setting> {
        let at = |root: &Path, file: &str, value: String| Setting {
            path: directory(root, group).join(file),
            value,
        };
        match self {
            Self::Unified(root) => {
                let max = |limit: i64| if limit > 0 { limit.to_string() } else { "max".to_owned() };
                vec![
                    at(root, "cpu.weight", weight_of_shares(values.cpu_shares).to_string()),
                    at(root, "cpu.max", format!("{} {}", max(values.cpu_quota), values.cpu_period)),
                    at(root, "memory.max", max(values.memory_limit)),
                ]
            }
            Self::Legacy { cpu, memory } => {
                let none = |limit: i64| if limit > 0 { limit } else { -1 };
                let cpu = cpu.iter().flat_map(|root| {
                    [
                        at(root, "cpu.shares", values.cpu_shares.to_string()),
                        at(root, "cpu.cfs_period_us", values.cpu_period.to_string()),
                        at(root, "cpu.cfs_quota_us", none(values.cpu_quota).to_string()),
                    ]
                });
                let memory = memory
                    .iter()
                    .map(|root| at(root, "memory.limit_in_bytes", none(values.memory_limit).to_string()));
                cpu.chain(memory).collect()
            }
        }
    }

    /// Makes the group with its parents and applies `values`.
    pub(crate) fn apply(&self, group: &str, values: CgroupValues) -> io::Result<()> {
        for root in self.roots() {
            self.make(root, group)?;
        }
        for setting in self.plan(group, values) {
            match fs::write(&setting.path, &setting.value) {
                // A kernel without the controller or the bandwidth option has no such file: nothing to limit with.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::debug!(file = %setting.path.display(), "the kernel has no such limit");
                }
                Err(error) => {
                    let file = setting.path.display();
                    return Err(io::Error::other(format!("write {} to {file}: {error}", setting.value)));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Makes each level; on v2 the controllers are handed down from the instance's own group on.
    fn make(&self, root: &Path, group: &str) -> io::Result<()> {
        let mut at = root.to_owned();
        for part in group.split('/').filter(|part| !part.is_empty()) {
            if matches!(self, Self::Unified(_)) {
                hand_down(&at);
            }
            at.push(part);
            match fs::create_dir(&at) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io::Error::other(format!("make cgroup {}: {error}", at.display())));
                }
                _ => {}
            }
        }
        if matches!(self, Self::Unified(_)) {
            hand_down(&at);
        }
        Ok(())
    }

    /// Removes the group and those below it. One that is absent is fine; one with processes is an error.
    pub(crate) fn remove(&self, group: &str) -> io::Result<()> {
        let mut result = Ok(());
        for root in self.roots() {
            let removed = remove_group(&directory(root, group));
            result = result.and(removed);
        }
        result
    }
}

fn directory(root: &Path, group: &str) -> PathBuf {
    root.join(group.trim_start_matches('/'))
}

fn hand_down(directory: &Path) {
    for controller in ["+cpu", "+memory", "+pids", "+io", "+cpuset"] {
        if let Err(error) = fs::write(directory.join("cgroup.subtree_control"), controller) {
            tracing::debug!(directory = %directory.display(), controller, %error, "controller not handed down");
        }
    }
}

fn remove_group(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io::Error::other(format!("remove cgroup {}: {error}", directory.display())))
        }
        _ => Ok(()),
    }
}

/// v1 shares (2 to 262144) as v2 weight (1 to 10000). Source: KEP-2254.
fn weight_of_shares(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory
";

    fn values() -> CgroupValues {
        CgroupValues { cpu_shares: 256, cpu_quota: 50_000, cpu_period: 100_000, memory_limit: 64 << 20 }
    }

    fn golden(hierarchies: &Hierarchies, values: CgroupValues) -> Vec<String> {
        let plan = hierarchies.plan("/kakoi/burstable/podu", values);
        plan.iter().map(|setting| format!("{} {}", setting.path.display(), setting.value)).collect()
    }

    #[test]
    fn the_hybrid_machine_uses_its_v1_controllers() {
        let hierarchies = find_hierarchies(HYBRID);
        assert_eq!(
            golden(&hierarchies, values()),
            [
                "/sys/fs/cgroup/cpu,cpuacct/kakoi/burstable/podu/cpu.shares 256",
                "/sys/fs/cgroup/cpu,cpuacct/kakoi/burstable/podu/cpu.cfs_period_us 100000",
                "/sys/fs/cgroup/cpu,cpuacct/kakoi/burstable/podu/cpu.cfs_quota_us 50000",
                "/sys/fs/cgroup/memory/kakoi/burstable/podu/memory.limit_in_bytes 67108864"
            ]
        );
    }

    #[test]
    fn the_unified_machine_uses_v2() {
        let hierarchies = find_hierarchies("31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
        assert_eq!(
            golden(&hierarchies, values()),
            [
                "/sys/fs/cgroup/kakoi/burstable/podu/cpu.weight 10",
                "/sys/fs/cgroup/kakoi/burstable/podu/cpu.max 50000 100000",
                "/sys/fs/cgroup/kakoi/burstable/podu/memory.max 67108864"
            ]
        );
        let free = CgroupValues { cpu_shares: 2, cpu_quota: 0, cpu_period: 100_000, memory_limit: 0 };
        assert_eq!(
            golden(&hierarchies, free)[1..],
            [
                "/sys/fs/cgroup/kakoi/burstable/podu/cpu.max max 100000",
                "/sys/fs/cgroup/kakoi/burstable/podu/memory.max max"
            ]
        );
    }

    #[test]
    fn a_group_is_made_with_its_parents_and_removed_with_what_is_below() {
        let root = tempfile::tempdir().unwrap();
        let hierarchies = Hierarchies::Legacy { cpu: Some(root.path().into()), memory: None };
        hierarchies.make(root.path(), "/kakoi/pod1").unwrap();
        fs::create_dir(root.path().join("kakoi/pod1/container")).unwrap();
        hierarchies.remove("/kakoi/pod1").unwrap();
        hierarchies.remove("/kakoi/pod1").unwrap();
        assert!(root.path().join("kakoi").is_dir());
    }
}
