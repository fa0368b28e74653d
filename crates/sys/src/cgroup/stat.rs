//! What a group has used.

use super::Layout;
use std::fs;
use std::path::Path;

/// Usage; `None` where the machine does not count it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time in nanoseconds.
    pub cpu_nanoseconds: Option<u64>,
    /// Bytes charged, page cache included.
    pub memory_usage: Option<u64>,
    /// Usage without inactive file pages: what the kubelet calls the working set.
    pub memory_working_set: Option<u64>,
    /// Anonymous memory in bytes.
    pub memory_rss: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Page faults that needed I/O.
    pub major_page_faults: Option<u64>,
    /// The limit in bytes; `None` is unlimited.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Processes that the OOM killer ended.
    pub oom_kills: Option<u64>,
}

/// Reads a group's counters.
pub fn stats(layout: &Layout, group: &str) -> Stats {
    let directory = |controller| layout.controller(controller, group);
    let memory = directory("memory");
    let is_unified = layout.is_unified();
    let memory_file =
        |v2: &str, v1: &str| memory.as_ref().and_then(|dir| number(dir, if is_unified { v2 } else { v1 }));
    let details = memory.as_ref().map(|dir| read(dir, "memory.stat")).unwrap_or_default();
    let detail = |v2: &str, v1: &str| field(&details, if is_unified { v2 } else { v1 });
    let usage = memory_file("memory.current", "memory.usage_in_bytes");
    let inactive = detail("inactive_file", "total_inactive_file").unwrap_or(0);
    let cpu = if is_unified {
        directory("cpu").and_then(|dir| field(&read(&dir, "cpu.stat"), "usage_usec")).map(|usec| usec * 1_000)
    } else {
        directory("cpuacct").and_then(|dir| number(&dir, "cpuacct.usage"))
    };
    let events = if is_unified { "memory.events" } else { "memory.oom_control" };
    Stats {
        cpu_nanoseconds: cpu,
        memory_usage: usage,
        memory_working_set: usage.map(|usage| usage.saturating_sub(inactive)),
        memory_rss: detail("anon", "total_rss"),
        page_faults: detail("pgfault", "total_pgfault"),
        major_page_faults: detail("pgmajfault", "total_pgmajfault"),
        // v1 says "unlimited" with a number of pages near 2^63.
        memory_limit: memory_file("memory.max", "memory.limit_in_bytes").filter(|limit| *limit < 1 << 60),
        pids: directory("pids").and_then(|dir| number(&dir, "pids.current")),
        oom_kills: memory.as_ref().and_then(|dir| field(&read(dir, events), "oom_kill")),
    }
}

pub(super) fn read(directory: &Path, file: &str) -> String {
    fs::read_to_string(directory.join(file)).unwrap_or_default()
}

pub(super) fn number(directory: &Path, file: &str) -> Option<u64> {
    read(directory, file).trim().parse().ok()
}

/// The number after a key at the start of a line.
pub(super) fn field(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read_from_their_files() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("pod");
        fs::create_dir(&group).unwrap();
        for (file, text) in [
            ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
            ("memory.current", "1000\n"),
            ("memory.stat", "anon 400\ninactive_file 300\npgfault 7\npgmajfault 1\n"),
            ("memory.max", "max\n"),
            ("memory.events", "oom 1\noom_kill 2\n"),
            ("pids.current", "3\n"),
        ] {
            fs::write(group.join(file), text).unwrap();
        }
        let layout = Layout { unified: Some(dir.path().to_owned()), legacy: Vec::new() };
        let stats = stats(&layout, "/pod");
        assert_eq!(stats.cpu_nanoseconds, Some(1_500_000));
        assert_eq!((stats.memory_usage, stats.memory_working_set), (Some(1_000), Some(700)));
        assert_eq!((stats.memory_rss, stats.memory_limit, stats.pids), (Some(400), None, Some(3)));
        assert_eq!(stats.oom_kills, Some(2));
    }
}
