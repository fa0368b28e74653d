//! All that the kernel counts for a group, for metrics: more files than [`super::stats`] reads.

use super::Layout;
use super::stat::{field, number, read};
use std::path::Path;

/// Ticks of `cpuacct.stat` are hundredths of a second on every machine (`USER_HZ`).
const NANOSECONDS_OF_TICK: u64 = 10_000_000;

/// Counters; `None` where the machine does not count it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// CPU time in user mode, in nanoseconds.
    pub cpu_user: Option<u64>,
    /// CPU time in the kernel, in nanoseconds.
    pub cpu_system: Option<u64>,
    /// Periods of the CPU quota that have passed.
    pub cpu_periods: Option<u64>,
    /// Those of them in which the group was throttled.
    pub cpu_throttled_periods: Option<u64>,
    /// For how long, in nanoseconds.
    pub cpu_throttled: Option<u64>,
    /// Page cache, in bytes.
    pub memory_cache: Option<u64>,
    /// Mapped files, in bytes.
    pub memory_mapped: Option<u64>,
    /// Memory of the kernel, in bytes.
    pub memory_kernel: Option<u64>,
    /// Swap in use, in bytes.
    pub memory_swap: Option<u64>,
    /// The most that was ever in use, in bytes.
    pub memory_peak: Option<u64>,
    /// How often the limit was met.
    pub memory_limit_hits: Option<u64>,
    /// Processes and threads that may be; `None` is unlimited.
    pub pids_limit: Option<u64>,
    /// Huge pages in use by size.
    pub huge_pages: Vec<HugeUsage>,
    /// Input and output by device.
    pub devices: Vec<DeviceIo>,
}

/// Huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugeUsage {
    /// `2MB`
    pub page_size: String,
    /// Bytes in use.
    pub usage: u64,
    /// The most that was ever in use; 0 where the machine does not count it.
    pub peak: u64,
}

/// What was read from and written to a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

/// How long tasks waited for a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// At least one of them.
    pub some: Stall,
    /// All of them.
    pub full: Stall,
}

/// Waiting time: shares of the last 10, 60 and 300 seconds in percent, and the sum in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10 seconds.
    pub average_10: f64,
    /// Percent of the last minute.
    pub average_60: f64,
    /// Percent of the last 5 minutes.
    pub average_300: f64,
    /// Microseconds in all.
    pub total: u64,
}

/// Reads a group's counters.
pub fn details(layout: &Layout, group: &str) -> Details {
    let mut details = if layout.is_unified() { unified(layout, group) } else { legacy(layout, group) };
    details.huge_pages = huge_pages(layout, group);
    let pids = layout.controller("pids", group);
    details.pids_limit = pids.and_then(|dir| number(&dir, "pids.max"));
    details
}

/// Waiting for `cpu`, `memory` or `io`; `None` where the machine has no pressure for groups (v1).
pub fn pressure(layout: &Layout, group: &str, resource: &str) -> Option<Pressure> {
    let directory = layout.controller(resource, group).filter(|_| layout.is_unified())?;
    parse_pressure(&read(&directory, &format!("{resource}.pressure")))
}

fn parse_pressure(text: &str) -> Option<Pressure> {
    let line = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
        let word = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let share = |key| word(key).and_then(|text| text.parse().ok()).unwrap_or_default();
        Some(Stall {
            average_10: share("avg10"),
            average_60: share("avg60"),
            average_300: share("avg300"),
            total: word("total").and_then(|text| text.parse().ok()).unwrap_or_default(),
        })
    };
    // Old kernels have no `full` line for the CPU.
    Some(Pressure { some: line("some")?, full: line("full").unwrap_or_default() })
}

fn unified(layout: &Layout, group: &str) -> Details {
    let Some(directory) = layout.controller("memory", group) else { return Details::default() };
    let (cpu, memory) = (read(&directory, "cpu.stat"), read(&directory, "memory.stat"));
    let time = |key: &str| field(&cpu, key).map(|microseconds| microseconds * 1_000);
    Details {
        cpu_user: time("user_usec"),
        cpu_system: time("system_usec"),
        cpu_periods: field(&cpu, "nr_periods"),
        cpu_throttled_periods: field(&cpu, "nr_throttled"),
        cpu_throttled: time("throttled_usec"),
        memory_cache: field(&memory, "file"),
        memory_mapped: field(&memory, "file_mapped"),
        memory_kernel: field(&memory, "kernel"),
        memory_swap: number(&directory, "memory.swap.current"),
        memory_peak: number(&directory, "memory.peak"),
        memory_limit_hits: field(&read(&directory, "memory.events"), "max"),
        devices: unified_io(&read(&directory, "io.stat")),
        ..Details::default()
    }
}

fn legacy(layout: &Layout, group: &str) -> Details {
    let text = |controller: &str, file: &str| {
        layout.controller(controller, group).map(|dir| read(&dir, file)).unwrap_or_default()
    };
    let count = |file: &str| layout.controller("memory", group).and_then(|dir| number(&dir, file));
    let (times, quota, memory) =
        (text("cpuacct", "cpuacct.stat"), text("cpu", "cpu.stat"), text("memory", "memory.stat"));
    let ticks = |key: &str| field(&times, key).map(|ticks| ticks * NANOSECONDS_OF_TICK);
    Details {
        cpu_user: ticks("user"),
        cpu_system: ticks("system"),
        cpu_periods: field(&quota, "nr_periods"),
        cpu_throttled_periods: field(&quota, "nr_throttled"),
        cpu_throttled: field(&quota, "throttled_time"),
        memory_cache: field(&memory, "total_cache"),
        memory_mapped: field(&memory, "total_mapped_file"),
        memory_kernel: count("memory.kmem.usage_in_bytes"),
        memory_swap: field(&memory, "total_swap").or(Some(0)), // Not listed where swap is not counted.
        memory_peak: count("memory.max_usage_in_bytes"),
        memory_limit_hits: count("memory.failcnt"),
        devices: legacy_io(
            &text("blkio", "blkio.throttle.io_service_bytes_recursive"),
            &text("blkio", "blkio.throttle.io_serviced_recursive"),
        ),
        ..Details::default()
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`
fn unified_io(text: &str) -> Vec<DeviceIo> {
    let line = |line: &str| {
        let (device, words) = line.split_once(' ')?;
        let (major, minor) = numbers(device)?;
        let count = |key: &str| {
            let word = words.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            word.and_then(|text| text.parse().ok()).unwrap_or(0)
        };
        let (read_bytes, written_bytes) = (count("rbytes"), count("wbytes"));
        Some(DeviceIo {
            major,
            minor,
            read_bytes,
            written_bytes,
            reads: count("rios"),
            writes: count("wios"),
        })
    };
    text.lines().filter_map(line).collect()
}

/// `8:0 Read 1` and `8:0 Write 2`, once in bytes and once in operations.
fn legacy_io(bytes: &str, operations: &str) -> Vec<DeviceIo> {
    let mut devices: Vec<DeviceIo> = Vec::new();
    let mut add = |text: &str, put: fn(&mut DeviceIo, &str, u64)| {
        for line in text.lines() {
            let mut words = line.split(' ');
            let (Some(device), Some(kind), Some(count)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let (Some((major, minor)), Ok(count)) = (numbers(device), count.parse()) else { continue };
            let at = devices.iter().position(|one| (one.major, one.minor) == (major, minor));
            let at = at.unwrap_or_else(|| {
                devices.push(DeviceIo { major, minor, ..DeviceIo::default() });
                devices.len() - 1
            });
            if let Some(device) = devices.get_mut(at) {
                put(device, kind, count);
            }
        }
    };
    add(bytes, |device, kind, count| match kind {
        "Read" => device.read_bytes = count,
        "Write" => device.written_bytes = count,
        _ => {}
    });
    add(operations, |device, kind, count| match kind {
        "Read" => device.reads = count,
        "Write" => device.writes = count,
        _ => {}
    });
    devices
}

fn numbers(device: &str) -> Option<(u32, u32)> {
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn huge_pages(layout: &Layout, group: &str) -> Vec<HugeUsage> {
    let Some(directory) = layout.controller("hugetlb", group) else { return Vec::new() };
    let (usage, peak) = if layout.is_unified() {
        (".current", ".max_usage")
    } else {
        (".usage_in_bytes", ".max_usage_in_bytes")
    };
    let of_size = |page_size: String| HugeUsage {
        usage: number(&directory, &format!("hugetlb.{page_size}{usage}")).unwrap_or(0),
        peak: number(&directory, &format!("hugetlb.{page_size}{peak}")).unwrap_or(0),
        page_size,
    };
    let mut sizes = sizes(&directory, usage);
    sizes.sort();
    sizes.into_iter().map(of_size).collect()
}

/// Counters of reserved pages, which are kept apart.
const RESERVED: &str = ".rsvd";

/// The sizes of `hugetlb.<size><usage>`; reserved pages are left out.
fn sizes(directory: &Path, usage: &str) -> Vec<String> {
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let size = |name: String| Some(name.strip_prefix("hugetlb.")?.strip_suffix(usage)?.to_owned());
    names
        .filter_map(|entry| size(entry.file_name().into_string().ok()?))
        .filter(|size| !size.contains(RESERVED))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;

    fn write(directory: &Path, files: &[(&str, &str)]) {
        std::fs::create_dir_all(directory).unwrap();
        for (file, text) in files {
            std::fs::write(directory.join(file), text).unwrap();
        }
    }

    #[test]
    fn v2_is_read_from_its_files() {
        let dir = tempfile::tempdir().unwrap();
        write(
            &dir.path().join("pod"),
            &[
                (
                    "cpu.stat",
                    "usage_usec 3\nuser_usec 1\nsystem_usec 2\nnr_periods 4\nnr_throttled 1\nthrottled_usec 9\n",
                ),
                ("memory.stat", "anon 1\nfile 2\nkernel 3\nfile_mapped 4\n"),
                ("memory.swap.current", "5\n"),
                ("memory.peak", "6\n"),
                ("memory.events", "low 0\nmax 7\n"),
                ("pids.max", "max\n"),
                ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n"),
                ("hugetlb.2MB.current", "0\n"),
                ("hugetlb.2MB.rsvd.current", "0\n"),
                (
                    "memory.pressure",
                    "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
                ),
            ],
        );
        let layout = Layout { unified: Some(dir.path().to_owned()), legacy: Vec::new() };
        let found = details(&layout, "/pod");
        let io = DeviceIo { major: 8, minor: 0, read_bytes: 10, written_bytes: 20, reads: 1, writes: 2 };
        let expected = Details {
            cpu_user: Some(1_000),
            cpu_system: Some(2_000),
            cpu_periods: Some(4),
            cpu_throttled_periods: Some(1),
            cpu_throttled: Some(9_000),
            memory_cache: Some(2),
            memory_mapped: Some(4),
            memory_kernel: Some(3),
            memory_swap: Some(5),
            memory_peak: Some(6),
            memory_limit_hits: Some(7),
            pids_limit: None,
            huge_pages: vec![HugeUsage { page_size: "2MB".into(), usage: 0, peak: 0 }],
            devices: vec![io],
        };
        assert_eq!(found, expected);
        let waited = pressure(&layout, "/pod", "memory").unwrap();
        assert_eq!((waited.some.total, waited.full.total), (12, 3));
        assert_eq!(pressure(&layout, "/pod", "io"), None);
    }

    #[test]
    fn v1_is_read_from_its_hierarchies() {
        let dir = tempfile::tempdir().unwrap();
        let legacy = ["cpu", "cpuacct", "memory", "blkio", "pids"].map(|controller| Hierarchy {
            controllers: controller.into(),
            mount: dir.path().join(controller),
        });
        write(&dir.path().join("cpuacct/pod"), &[("cpuacct.stat", "user 2\nsystem 1\n")]);
        write(
            &dir.path().join("cpu/pod"),
            &[("cpu.stat", "nr_periods 4\nnr_throttled 1\nthrottled_time 9\n")],
        );
        write(&dir.path().join("pids/pod"), &[("pids.max", "100\n")]);
        write(
            &dir.path().join("memory/pod"),
            &[("memory.stat", "total_cache 2\n"), ("memory.failcnt", "7\n")],
        );
        write(
            &dir.path().join("blkio/pod"),
            &[
                ("blkio.throttle.io_service_bytes_recursive", "254:0 Read 10\n254:0 Write 20\nTotal 30\n"),
                ("blkio.throttle.io_serviced_recursive", "254:0 Read 1\n254:0 Write 2\nTotal 3\n"),
            ],
        );
        let layout = Layout { unified: None, legacy: legacy.into() };
        let found = details(&layout, "/pod");
        assert_eq!((found.cpu_user, found.cpu_system), (Some(20_000_000), Some(10_000_000)));
        assert_eq!(
            (found.cpu_throttled, found.memory_cache, found.memory_limit_hits),
            (Some(9), Some(2), Some(7))
        );
        assert_eq!((found.memory_swap, found.pids_limit), (Some(0), Some(100)));
        let io = DeviceIo { major: 254, minor: 0, read_bytes: 10, written_bytes: 20, reads: 1, writes: 2 };
        assert_eq!(found.devices, [io]);
        assert_eq!(pressure(&layout, "/pod", "cpu"), None, "v1 has none");
    }
}
