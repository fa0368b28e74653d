//! What the node's status says of the machine: sizes, names, versions, and how much of it is free.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::eviction::{Reading, Readings};
use crate::huge::{Pools, read_pools, resource};
use crate::quantity::{Amounts, binary};

/// Memory that Pods cannot have: as upstream's default hard eviction threshold.
const MEMORY_RESERVE: u64 = 100 << 20;

/// Facts that do not change while the machine runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_field_names, reason = "`machine_id` is what systemd calls it")]
pub(crate) struct Machine {
    pub(crate) cpus: usize,
    /// Bytes.
    pub(crate) memory: u64,
    /// Bytes of the filesystem that holds the kubelet's directory.
    pub(crate) disk: u64,
    pub(crate) huge_pages: Pools,
    pub(crate) machine_id: String,
    pub(crate) system_uuid: String,
    pub(crate) boot_id: String,
    pub(crate) kernel: String,
    pub(crate) os_image: String,
}

/// What may run short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    pub(crate) memory: bool,
    pub(crate) disk: bool,
    pub(crate) pids: bool,
}

fn first_line(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().lines().next().unwrap_or_default().trim().to_owned()
}

impl Machine {
    /// Reads the machine's files; `kubelet_dir` tells which filesystem counts.
    pub(crate) fn read(kubelet_dir: &Path) -> Self {
        let machine_id = first_line("/etc/machine-id");
        let uuid = first_line("/sys/class/dmi/id/product_uuid");
        let uname = rustix::system::uname();
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: meminfo("MemTotal").unwrap_or_default(),
            disk: disk(kubelet_dir).map_or(0, |(total, _)| total),
            huge_pages: read_pools(),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid.to_lowercase() },
            machine_id,
            boot_id: first_line("/proc/sys/kernel/random/boot_id"),
            kernel: uname.release().to_string_lossy().into_owned(),
            os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        }
    }

    /// What the node has.
    pub(crate) fn capacity(&self, max_pods: u32) -> Amounts {
        let kibibytes = |bytes: u64| format!("{}Ki", bytes / 1024);
        let own = amounts([
            ("cpu", self.cpus.to_string()),
            ("memory", kibibytes(self.memory)),
            ("ephemeral-storage", kibibytes(self.disk)),
            ("pods", max_pods.to_string()),
        ]);
        own.into_iter().chain(self.huge_amounts()).collect()
    }

    /// Pages that are set aside as huge ones, by size.
    fn huge_amounts(&self) -> impl Iterator<Item = (String, Quantity)> {
        self.huge_pages.iter().map(|(page, count)| (resource(*page), Quantity(binary(page * count))))
    }

    /// What Pods can have of it.
    pub(crate) fn allocatable(&self, max_pods: u32) -> Amounts {
        let huge: u64 = self.huge_pages.iter().map(|(page, count)| page * count).sum();
        let memory = self.memory.saturating_sub(MEMORY_RESERVE).saturating_sub(huge);
        let own = amounts([
            ("cpu", self.cpus.to_string()),
            ("memory", format!("{}Ki", memory / 1024)),
            ("ephemeral-storage", (self.disk / 10 * 9).to_string()),
            ("pods", max_pods.to_string()),
        ]);
        own.into_iter().chain(self.huge_amounts()).collect()
    }
}

fn amounts<const N: usize>(pairs: [(&str, String); N]) -> Amounts {
    pairs.into_iter().map(|(name, text)| (name.to_owned(), Quantity(text))).collect::<BTreeMap<_, _>>()
}

/// CPU time that the machine has spent on anything but waiting, in nanoseconds.
pub(crate) fn cpu_nanoseconds() -> u64 {
    /// `/proc/stat` counts in hundredths of a second on every architecture that this runs on.
    const TICK: u64 = 10_000_000;
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let fields: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let busy = fields.iter().take(8).enumerate().filter(|(index, _)| !matches!(index, 3 | 4));
    busy.map(|(_, ticks)| ticks * TICK).sum()
}

/// What the machine has left; `kubelet_dir` tells which filesystem counts.
pub(crate) fn read(kubelet_dir: &Path) -> Readings {
    let reading = |(available, capacity)| Reading { available, capacity };
    let memory = meminfo("MemAvailable").zip(meminfo("MemTotal")).map(reading);
    let existing = kubelet_dir.ancestors().find(|path| path.exists());
    let found = existing.and_then(|path| rustix::fs::statvfs(path).ok());
    let disk = found
        .as_ref()
        .map(|found| reading((found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)));
    // btrfs and others count no inodes.
    let inodes = found
        .as_ref()
        .filter(|found| found.f_files > 0)
        .map(|found| reading((found.f_favail, found.f_files)));
    let number = |path| first_line(path).parse::<u64>().ok();
    let limit = number("/proc/sys/kernel/pid_max").zip(number("/proc/sys/kernel/threads-max"));
    let limit = limit.map(|(pids, threads)| pids.min(threads));
    let tasks: Option<u64> =
        first_line("/proc/loadavg").split(' ').nth(3).and_then(|pair| pair.split('/').nth(1)?.parse().ok());
    let pids = limit.zip(tasks).map(|(limit, tasks)| reading((limit.saturating_sub(tasks), limit)));
    Readings { memory, disk, inodes, pids }
}

/// A line of `/proc/meminfo` in bytes.
fn meminfo(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

/// `(total, free for everybody)` bytes of the filesystem at or above `path`.
fn disk(path: &Path) -> Option<(u64, u64)> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let found = rustix::fs::statvfs(existing).ok()?;
    Some((found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
}

fn os_image(os_release: &str) -> String {
    let value = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// Go's name of this processor architecture, as images and labels use it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_can_be_read() {
        let machine = Machine::read(Path::new("/nonexistent/below"));
        assert!(machine.cpus > 0 && machine.memory > 0 && machine.disk > 0);
        assert!(!machine.kernel.is_empty() && !machine.boot_id.is_empty());
        assert_eq!(
            os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
    }

    #[test]
    fn huge_pages_are_a_resource_and_no_memory_any_more() {
        let huge_pages = Pools::from([(2 << 20, 64), (1 << 30, 0)]);
        let machine = Machine { memory: 1 << 30, huge_pages, ..Machine::default() };
        for amounts in [machine.capacity(110), machine.allocatable(110)] {
            assert_eq!(
                (amounts["hugepages-2Mi"].0.as_str(), amounts["hugepages-1Gi"].0.as_str()),
                ("128Mi", "0")
            );
        }
        assert_eq!(machine.capacity(110)["memory"].0, "1048576Ki");
        assert_eq!(machine.allocatable(110)["memory"].0, format!("{}Ki", (1024 - 100 - 128) << 10));
    }

    #[test]
    fn pods_get_less_than_there_is() {
        let machine = Machine { cpus: 2, memory: 1 << 30, disk: 10 << 30, ..Machine::default() };
        assert_eq!(machine.capacity(110)["memory"].0, "1048576Ki");
        assert_eq!(machine.allocatable(110)["memory"].0, "946176Ki");
        assert_eq!(machine.allocatable(110)["pods"].0, "110");
    }
}
