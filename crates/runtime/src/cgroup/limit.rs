//! A container's limits as files and values: for v2 and, with their other names and units, for v1. Pure.
//! (Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1.)

use cri::v1::LinuxContainerResources;

use crate::container::device::Devices;

/// One file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    pub(super) controller: &'static str,
    pub(super) file: String,
    pub(super) value: String,
    /// A limit that the user set: without it the container must not start.
    pub(super) is_needed: bool,
}

impl Limit {
    fn needed(controller: &'static str, file: impl Into<String>, value: impl ToString) -> Self {
        Self { controller, file: file.into(), value: value.to_string(), is_needed: true }
    }

    /// One whose absence takes nothing from the user: a share, or what the kernel may be built without.
    fn wanted(controller: &'static str, file: impl Into<String>, value: impl ToString) -> Self {
        Self { is_needed: false, ..Self::needed(controller, file, value) }
    }
}

/// `cpu.shares` 2-262144 as `cpu.weight` 1-10000 (KEP-2254).
fn weight(shares: i64) -> i64 {
    let shares = shares.clamp(2, 262_144);
    1 + ((shares - 2) * 9999) / 262_142
}

fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

const DEFAULT_PERIOD: i64 = 100_000;

/// The limits for the v2 hierarchy.
pub(super) fn plan_unified(resources: &LinuxContainerResources) -> Vec<Limit> {
    let mut limits = Vec::new();
    if resources.cpu_shares > 0 {
        limits.push(Limit::wanted("cpu", "cpu.weight", weight(resources.cpu_shares)));
    }
    if resources.cpu_quota != 0 || resources.cpu_period != 0 {
        let period = if resources.cpu_period > 0 { resources.cpu_period } else { DEFAULT_PERIOD };
        let quota = if resources.cpu_quota > 0 { resources.cpu_quota.to_string() } else { "max".to_owned() };
        let value = format!("{quota} {period}");
        limits.push(Limit { is_needed: resources.cpu_quota > 0, ..Limit::needed("cpu", "cpu.max", value) });
    }
    if resources.memory_limit_in_bytes != 0 {
        limits.push(Limit::needed("memory", "memory.max", or_max(resources.memory_limit_in_bytes)));
    }
    if let Some(swap) = swap_alone(resources) {
        limits.push(Limit::wanted("memory", "memory.swap.max", or_max(swap)));
    }
    limits.extend(cpusets(resources));
    for huge in &resources.hugepage_limits {
        let file = format!("hugetlb.{}.max", huge.page_size);
        limits.push(Limit { is_needed: huge.limit > 0, ..Limit::needed("hugetlb", file, huge.limit) });
    }
    for (file, value) in &resources.unified {
        let controller =
            CONTROLLERS_BY_PREFIX.iter().find(|name| file.starts_with(**name)).unwrap_or(&"cgroup");
        limits.push(Limit::wanted(controller, file, value));
    }
    limits
}

const CONTROLLERS_BY_PREFIX: [&str; 8] = ["cpuset", "cpu", "memory", "pids", "io", "hugetlb", "rdma", "misc"];

/// CRI counts swap with memory, v2 alone.
fn swap_alone(resources: &LinuxContainerResources) -> Option<i64> {
    match (resources.memory_swap_limit_in_bytes, resources.memory_limit_in_bytes) {
        (0, _) => None,
        (both, _) if both < 0 => Some(-1),
        (both, memory) if memory > 0 => Some((both - memory).max(0)),
        _ => None,
    }
}

/// The limits for v1 hierarchies. `devices` are those that the container may use besides the usual ones; `None`
/// leaves the devices controller as it is.
pub(super) fn plan_legacy(resources: &LinuxContainerResources, devices: Option<&Devices>) -> Vec<Limit> {
    let mut limits = Vec::new();
    if resources.cpu_shares > 0 {
        limits.push(Limit::wanted("cpu", "cpu.shares", resources.cpu_shares.max(2)));
    }
    if resources.cpu_period > 0 {
        limits.push(Limit::wanted("cpu", "cpu.cfs_period_us", resources.cpu_period));
    }
    if resources.cpu_quota != 0 {
        limits.push(Limit::needed("cpu", "cpu.cfs_quota_us", resources.cpu_quota.max(-1)));
    }
    limits.extend(legacy_memory(resources));
    limits.extend(cpusets(resources));
    for huge in &resources.hugepage_limits {
        let file = format!("hugetlb.{}.limit_in_bytes", huge.page_size);
        limits.push(Limit { is_needed: huge.limit > 0, ..Limit::needed("hugetlb", file, huge.limit) });
    }
    if let Some(pids) = resources.unified.get("pids.max") {
        limits.push(Limit::needed("pids", "pids.max", pids));
    }
    limits.extend(devices.into_iter().flat_map(device_rules));
    limits
}

/// Memory, and memory with swap. The second may not be below the first at any moment, so it is written before and
/// after: before for a raise, after for a cut.
fn legacy_memory(resources: &LinuxContainerResources) -> Vec<Limit> {
    let both = "memory.memsw.limit_in_bytes";
    let swap = resources.memory_swap_limit_in_bytes;
    let mut limits = Vec::new();
    if swap != 0 {
        limits.push(Limit::wanted("memory", both, swap));
    }
    if resources.memory_limit_in_bytes != 0 {
        limits.push(Limit::needed("memory", "memory.limit_in_bytes", resources.memory_limit_in_bytes));
        if swap != 0 {
            limits.push(Limit::wanted("memory", both, swap));
        }
    }
    limits
}

fn cpusets(resources: &LinuxContainerResources) -> Vec<Limit> {
    let sets = [("cpuset.cpus", &resources.cpuset_cpus), ("cpuset.mems", &resources.cpuset_mems)];
    let set =
        |(file, value): (&str, &String)| (!value.is_empty()).then(|| Limit::needed("cpuset", file, value));
    sets.into_iter().filter_map(set).collect()
}

/// What every container may use: making nodes, and null, zero, full, random, urandom, tty, console, terminals.
const USUAL: [&str; 11] = [
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:1 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

/// A second line of defence: a container without the right to make nodes reaches only those it is given anyway.
fn device_rules(devices: &Devices) -> Vec<Limit> {
    let allow = |rule: String| Limit::wanted("devices", "devices.allow", rule);
    if devices.allows_all {
        return vec![allow("a".to_owned())];
    }
    let mut rules = vec![Limit::wanted("devices", "devices.deny", "a")];
    rules.extend(USUAL.iter().map(|rule| allow((*rule).to_owned())));
    for (node, permissions) in devices.nodes.iter().zip(&devices.permissions) {
        let kind = if node.is_block { 'b' } else { 'c' };
        rules.push(allow(format!("{kind} {}:{} {permissions}", node.major, node.minor)));
    }
    rules
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cri::v1::HugepageLimit;

    use super::*;

    fn resources() -> LinuxContainerResources {
        LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            memory_swap_limit_in_bytes: 64 << 20,
            oom_score_adj: 0,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: String::new(),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            unified: BTreeMap::from([
                ("memory.oom.group".into(), "1".into()),
                ("pids.max".into(), "9".into()),
            ]),
        }
    }

    fn lines(limits: &[Limit]) -> Vec<String> {
        let line = |limit: &Limit| {
            let mark = if limit.is_needed { "!" } else { "" };
            format!("{} {}={}{mark}", limit.controller, limit.file, limit.value)
        };
        limits.iter().map(line).collect()
    }

    #[test]
    fn the_limits_for_v2_are_the_golden_ones() {
        let expected = [
            "cpu cpu.weight=20",
            "cpu cpu.max=50000 100000!",
            "memory memory.max=67108864!",
            "memory memory.swap.max=0",
            "cpuset cpuset.cpus=0-1!",
            "hugetlb hugetlb.2MB.max=0",
            "memory memory.oom.group=1",
            "pids pids.max=9",
        ];
        assert_eq!(lines(&plan_unified(&resources())), expected);
    }

    #[test]
    fn the_limits_for_v1_are_the_golden_ones() {
        let expected = [
            "cpu cpu.shares=512",
            "cpu cpu.cfs_period_us=100000",
            "cpu cpu.cfs_quota_us=50000!",
            "memory memory.memsw.limit_in_bytes=67108864",
            "memory memory.limit_in_bytes=67108864!",
            "memory memory.memsw.limit_in_bytes=67108864",
            "cpuset cpuset.cpus=0-1!",
            "hugetlb hugetlb.2MB.limit_in_bytes=0",
            "pids pids.max=9!",
        ];
        assert_eq!(lines(&plan_legacy(&resources(), None)), expected);
    }

    #[test]
    fn what_is_not_asked_for_is_not_written() {
        assert_eq!(plan_unified(&LinuxContainerResources::default()), []);
        assert_eq!(plan_legacy(&LinuxContainerResources::default(), None), []);
        let unlimited =
            LinuxContainerResources { cpu_quota: -1, memory_limit_in_bytes: -1, ..Default::default() };
        assert_eq!(lines(&plan_unified(&unlimited)), ["cpu cpu.max=max 100000", "memory memory.max=max!"]);
    }

    #[test]
    fn weights_span_the_whole_range() {
        assert_eq!((weight(2), weight(1024), weight(262_144)), (1, 39, 10_000));
    }

    #[test]
    fn devices_are_denied_but_for_the_usual_and_the_given_ones() {
        let node = shim::protocol::DevicePlan {
            path: "/dev/fuse".into(),
            is_block: false,
            major: 10,
            minor: 229,
            mode: 0o666,
            uid: 0,
            gid: 0,
        };
        let devices = Devices { nodes: vec![node], permissions: vec!["rw".into()], allows_all: false };
        let rules = lines(&device_rules(&devices));
        assert_eq!(rules.first().map(String::as_str), Some("devices devices.deny=a"));
        assert_eq!(rules.last().map(String::as_str), Some("devices devices.allow=c 10:229 rw"));
        let all = Devices { allows_all: true, ..Devices::default() };
        assert_eq!(lines(&device_rules(&all)), ["devices devices.allow=a"]);
    }
}
