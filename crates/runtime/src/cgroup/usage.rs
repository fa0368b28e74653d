//! What a group has used, from v2's files or v1's.

use std::path::Path;

use super::hierarchy::{Hierarchy, Kind};

/// v1 says "no limit" with the largest multiple of the page size; anything near it is none.
const NO_LIMIT: u64 = 1 << 62;

/// Measurements of one group; 0 where the machine doesn't measure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) cpu_nanoseconds: u64,
    /// Bytes, with caches.
    pub(crate) memory: u64,
    /// Bytes that can't be given back at once: all but the inactive file cache.
    pub(crate) memory_working_set: u64,
    /// Bytes of anonymous memory.
    pub(crate) memory_anonymous: u64,
    /// Bytes; `None` without a limit.
    pub(crate) memory_limit: Option<u64>,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
    pub(crate) processes: u64,
}

/// Reads a group; `None` when it doesn't exist.
pub(super) fn read(hierarchies: &[Hierarchy], group: &str) -> Option<Usage> {
    let mut usage = Usage::default();
    let mut exists = false;
    for hierarchy in hierarchies {
        let directory = hierarchy.directory(group);
        if !directory.exists() {
            continue;
        }
        exists = true;
        match &hierarchy.kind {
            Kind::Unified => read_unified(&directory, &mut usage),
            Kind::Legacy(controllers) => {
                for controller in controllers {
                    read_legacy(&directory, controller, &mut usage);
                }
            }
        }
    }
    exists.then_some(usage)
}

fn read_unified(directory: &Path, usage: &mut Usage) {
    if let Some(microseconds) = key(directory, "cpu.stat", "usage_usec") {
        usage.cpu_nanoseconds = microseconds.saturating_mul(1000);
    }
    if let Some(memory) = number(directory, "memory.current") {
        let inactive = key(directory, "memory.stat", "inactive_file").unwrap_or_default();
        usage.memory = memory;
        usage.memory_working_set = memory.saturating_sub(inactive);
        usage.memory_anonymous = key(directory, "memory.stat", "anon").unwrap_or_default();
        usage.memory_limit = number(directory, "memory.max");
        usage.page_faults = key(directory, "memory.stat", "pgfault").unwrap_or_default();
        usage.major_page_faults = key(directory, "memory.stat", "pgmajfault").unwrap_or_default();
    }
    if let Some(processes) = number(directory, "pids.current") {
        usage.processes = processes;
    }
}

fn read_legacy(directory: &Path, controller: &str, usage: &mut Usage) {
    match controller {
        "cpuacct" => usage.cpu_nanoseconds = number(directory, "cpuacct.usage").unwrap_or_default(),
        "pids" => usage.processes = number(directory, "pids.current").unwrap_or_default(),
        "memory" => {
            let stat = |name| key(directory, "memory.stat", name).unwrap_or_default();
            let memory = number(directory, "memory.usage_in_bytes").unwrap_or_default();
            usage.memory = memory;
            usage.memory_working_set = memory.saturating_sub(stat("total_inactive_file"));
            usage.memory_anonymous = stat("total_rss");
            usage.memory_limit = number(directory, "memory.limit_in_bytes").filter(|limit| *limit < NO_LIMIT);
            usage.page_faults = stat("total_pgfault");
            usage.major_page_faults = stat("total_pgmajfault");
        }
        _ => {}
    }
}

fn number(directory: &Path, file: &str) -> Option<u64> {
    std::fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
}

fn key(directory: &Path, file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(directory.join(file)).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_files_give_the_same_measurements() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
        write("cpu.stat", "usage_usec 5\nuser_usec 3\n");
        write("memory.current", "100\n");
        write("memory.max", "max\n");
        write("memory.stat", "anon 40\ninactive_file 30\npgfault 7\npgmajfault 1\n");
        write("pids.current", "2\n");
        let mut unified = Usage::default();
        read_unified(directory.path(), &mut unified);
        write("cpuacct.usage", "5000\n");
        write("memory.usage_in_bytes", "100\n");
        write("memory.limit_in_bytes", "9223372036854771712\n");
        write("memory.stat", "total_rss 40\ntotal_inactive_file 30\ntotal_pgfault 7\ntotal_pgmajfault 1\n");
        let mut legacy = Usage::default();
        for controller in ["cpuacct", "memory", "pids"] {
            read_legacy(directory.path(), controller, &mut legacy);
        }
        assert_eq!(unified, legacy);
        assert_eq!((unified.memory_working_set, unified.memory_limit), (70, None));
    }
}
