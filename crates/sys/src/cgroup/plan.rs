//! What is written where to make a group with limits: pure, and held by golden files for v2 and v1.

use super::device::{self, DeviceRule};
use super::{Layout, below};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// A group's limits; `None` leaves what is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes; -1 is unlimited.
    pub memory: Option<i64>,
    /// Memory and swap together, bytes; -1 is unlimited.
    pub memory_and_swap: Option<i64>,
    /// Relative CPU time, 2-262144; 1024 is one CPU's worth in Kubernetes.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each period; -1 is unlimited.
    pub cpu_quota: Option<i64>,
    /// The period in microseconds, 1000-1000000.
    pub cpu_period: Option<u64>,
    /// CPUs, e.g. `0-2,7`.
    pub cpus: Option<String>,
    /// Memory nodes.
    pub memory_nodes: Option<String>,
    /// Number of processes and threads; -1 is unlimited.
    pub pids: Option<i64>,
    /// Huge pages.
    pub huge_pages: Vec<HugePages>,
    /// The OOM killer ends all processes of the group together (v2 only).
    pub oom_group: Option<bool>,
    /// What may be done with devices; `None` is no rule at all (privileged).
    pub devices: Option<Vec<DeviceRule>>,
    /// Files of a v2 group to write as they are (CRI's `unified`).
    pub unified: BTreeMap<String, String>,
}

/// A limit on huge pages of one size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// As in the file names: `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes a directory; that it exists is fine.
    Make(PathBuf),
    /// Gives a v1 cpuset what its parent has, where it is empty: nothing can enter it before.
    InheritCpuset(PathBuf),
    /// Makes controllers available to a v2 directory's children, those of the list that exist.
    Delegate(PathBuf, &'static [&'static str]),
    /// Writes a file.
    Write {
        /// File.
        file: PathBuf,
        /// Text.
        value: String,
        /// A kernel without the file is fine.
        is_optional: bool,
    },
    /// Attaches a device program to a v2 directory.
    Devices(PathBuf, Vec<DeviceRule>),
}

/// Steps in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan(pub Vec<Step>);

/// Controllers that Pods need.
const CONTROLLERS: &[&str] = &["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// Makes a group, with everything above it, and sets its limits.
pub fn plan_create(layout: &Layout, group: &str, limits: &Limits) -> Plan {
    let mut steps = Vec::new();
    let ancestors = ancestors(group);
    if let Some(mount) = &layout.unified {
        for ancestor in &ancestors {
            let directory = below(mount, ancestor);
            if layout.is_unified()
                && let Some(parent) = directory.parent()
            {
                steps.push(Step::Delegate(parent.to_owned(), CONTROLLERS));
            }
            steps.push(Step::Make(directory));
        }
    }
    for hierarchy in &layout.legacy {
        for ancestor in &ancestors {
            let directory = below(&hierarchy.mount, ancestor);
            steps.push(Step::Make(directory.clone()));
            if hierarchy.has("cpuset") {
                steps.push(Step::InheritCpuset(directory));
            }
        }
    }
    steps.extend(plan_update(layout, group, limits).0);
    Plan(steps)
}

/// `/a`, `/a/b`, `/a/b/c`.
fn ancestors(group: &str) -> Vec<String> {
    let mut path = String::new();
    let parts = group.split('/').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            path.push('/');
            path.push_str(part);
            path.clone()
        })
        .collect()
}

/// Sets the limits of a group that exists.
pub fn plan_update(layout: &Layout, group: &str, limits: &Limits) -> Plan {
    let mut steps = match (&layout.unified, layout.is_unified()) {
        (Some(mount), true) => unified_limits(&below(mount, group), limits),
        _ => legacy_limits(layout, group, limits),
    };
    if let (Some(mount), Some(rules)) = (&layout.unified, &limits.devices)
        && layout.is_unified()
    {
        steps.push(Step::Devices(below(mount, group), rules.clone()));
    }
    Plan(steps)
}

fn write(directory: &Path, file: &str, value: impl Into<String>) -> Step {
    Step::Write { file: directory.join(file), value: value.into(), is_optional: false }
}

fn write_optional(directory: &Path, file: &str, value: impl Into<String>) -> Step {
    Step::Write { file: directory.join(file), value: value.into(), is_optional: true }
}

/// v2 spells "no limit" `max`.
fn or_max(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

fn unified_limits(directory: &Path, limits: &Limits) -> Vec<Step> {
    let mut steps = Vec::new();
    steps.extend(limits.memory.map(|bytes| write(directory, "memory.max", or_max(bytes))));
    if let Some(total) = limits.memory_and_swap {
        // v2 limits swap by itself.
        let swap = if total < 0 { -1 } else { total.saturating_sub(limits.memory.unwrap_or(0)).max(0) };
        steps.push(write_optional(directory, "memory.swap.max", or_max(swap)));
    }
    if let Some(together) = limits.oom_group {
        steps.push(write_optional(directory, "memory.oom.group", u8::from(together).to_string()));
    }
    steps.extend(
        limits.cpu_shares.map(|shares| write(directory, "cpu.weight", weight_of(shares).to_string())),
    );
    if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
        let quota = or_max(limits.cpu_quota.unwrap_or(-1));
        steps.push(write(directory, "cpu.max", format!("{quota} {}", limits.cpu_period.unwrap_or(100_000))));
    }
    steps.extend(limits.cpus.as_ref().map(|cpus| write(directory, "cpuset.cpus", cpus)));
    steps.extend(limits.memory_nodes.as_ref().map(|nodes| write(directory, "cpuset.mems", nodes)));
    steps.extend(limits.pids.map(|pids| write(directory, "pids.max", or_max(pids))));
    for HugePages { page_size, limit } in &limits.huge_pages {
        steps.push(write_optional(directory, &format!("hugetlb.{page_size}.max"), limit.to_string()));
    }
    steps.extend(limits.unified.iter().map(|(file, value)| write(directory, file, value)));
    steps
}

/// From shares (2-262144, 1024 is usual) to v2's weight (1-10000, 100 is usual), linear as in the field's runtimes.
pub fn weight_of(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

fn legacy_limits(layout: &Layout, group: &str, limits: &Limits) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut with = |controller: &str, make: &dyn Fn(&Path) -> Vec<Step>| {
        if let Some(directory) = layout.controller(controller, group) {
            steps.extend(make(&directory));
        }
    };
    with("memory", &|directory| legacy_memory(directory, limits));
    with("cpu", &|directory| {
        let period =
            limits.cpu_period.map(|period| write(directory, "cpu.cfs_period_us", period.to_string()));
        let quota = limits.cpu_quota.map(|quota| write(directory, "cpu.cfs_quota_us", quota.to_string()));
        let shares = limits.cpu_shares.map(|shares| write(directory, "cpu.shares", shares.to_string()));
        shares.into_iter().chain(period).chain(quota).collect()
    });
    with("cpuset", &|directory| {
        let cpus = limits.cpus.as_ref().map(|cpus| write(directory, "cpuset.cpus", cpus));
        let nodes = limits.memory_nodes.as_ref().map(|nodes| write(directory, "cpuset.mems", nodes));
        cpus.into_iter().chain(nodes).collect()
    });
    with("pids", &|directory| {
        limits.pids.iter().map(|pids| write(directory, "pids.max", or_max(*pids))).collect()
    });
    with("hugetlb", &|directory| {
        let file = |page_size: &str| format!("hugetlb.{page_size}.limit_in_bytes");
        let pages = limits.huge_pages.iter();
        pages.map(|one| write_optional(directory, &file(&one.page_size), one.limit.to_string())).collect()
    });
    with("devices", &|directory| {
        limits.devices.as_ref().map_or_else(Vec::new, |rules| legacy_devices(directory, rules))
    });
    steps
}

/// The limit with swap may never be below the one without, at no moment: so both are raised or lowered in the order
/// in which that holds, whichever way; the kernel refuses the wrong order and the third write repairs it.
fn legacy_memory(directory: &Path, limits: &Limits) -> Vec<Step> {
    let Some(memory) = limits.memory else { return Vec::new() };
    let file = "memory.limit_in_bytes";
    let mut steps = Vec::new();
    if let Some(total) = limits.memory_and_swap {
        steps.push(write_optional(directory, "memory.memsw.limit_in_bytes", total.to_string()));
    }
    steps.push(write(directory, file, memory.to_string()));
    steps
}

fn legacy_devices(directory: &Path, rules: &[DeviceRule]) -> Vec<Step> {
    let mut steps = vec![write(directory, "devices.deny", "a")];
    for rule in device::DEFAULT.iter().chain(rules) {
        let file = if rule.is_allowed { "devices.allow" } else { "devices.deny" };
        steps.push(write(directory, file, rule.to_string()));
    }
    steps
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|step| match step {
            Step::Make(directory) => writeln!(f, "mkdir {}", directory.display()),
            Step::InheritCpuset(directory) => writeln!(f, "inherit-cpuset {}", directory.display()),
            Step::Delegate(directory, controllers) => {
                writeln!(f, "delegate {} in {}", controllers.join(" "), directory.display())
            }
            Step::Write { file, value, is_optional } => {
                writeln!(f, "{} {} = {value}", if *is_optional { "write?" } else { "write" }, file.display())
            }
            Step::Devices(directory, rules) => {
                let mut list = String::new();
                for rule in rules {
                    let sign = if rule.is_allowed { '+' } else { '-' };
                    let _ = write!(list, " {sign}[{rule}]");
                }
                writeln!(f, "device-program {} = default{list}", directory.display())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits {
            memory: Some(134_217_728),
            memory_and_swap: Some(134_217_728),
            cpu_shares: Some(512),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            cpus: Some("0-1".into()),
            pids: Some(100),
            huge_pages: vec![HugePages { page_size: "2MB".into(), limit: 4_194_304 }],
            oom_group: Some(true),
            devices: Some(vec![DeviceRule::character(10, 229, "rw")]),
            ..Limits::default()
        }
    }

    fn legacy(controllers: &str) -> super::super::Hierarchy {
        let mount = Path::new("/sys/fs/cgroup").join(controllers.trim_start_matches("name="));
        super::super::Hierarchy { controllers: controllers.into(), mount }
    }

    fn hybrid() -> Layout {
        let names = ["cpu", "cpuset", "memory", "devices", "pids", "hugetlb", "name=systemd"];
        Layout { unified: Some("/sys/fs/cgroup/unified".into()), legacy: names.map(legacy).into() }
    }

    /// Set `KAKOI_BLESS=1` to write the golden files.
    fn assert_golden(name: &str, plan: &Plan) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        if std::env::var_os("KAKOI_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, plan.to_string()).unwrap();
        }
        assert_eq!(plan.to_string(), std::fs::read_to_string(&path).unwrap(), "{}", path.display());
    }

    #[test]
    fn the_plan_for_v2_is_the_golden_one() {
        let layout = Layout { unified: Some("/sys/fs/cgroup".into()), legacy: Vec::new() };
        assert_golden("cgroup-v2.txt", &plan_create(&layout, "/kakoi/pod1/app", &limits()));
    }

    #[test]
    fn the_plan_for_v1_is_the_golden_one() {
        assert_golden("cgroup-v1.txt", &plan_create(&hybrid(), "/kakoi/pod1/app", &limits()));
    }

    #[test]
    fn no_limits_are_no_writes() {
        assert_eq!(plan_update(&hybrid(), "/x", &Limits::default()), Plan::default());
    }

    #[test]
    fn unlimited_is_spelt_as_the_hierarchy_spells_it() {
        let limits =
            Limits { memory: Some(-1), memory_and_swap: Some(-1), pids: Some(-1), ..Limits::default() };
        let layout = Layout { unified: Some("/c".into()), legacy: Vec::new() };
        let text = plan_update(&layout, "/x", &limits).to_string();
        assert_eq!(
            text,
            "write /c/x/memory.max = max\nwrite? /c/x/memory.swap.max = max\nwrite /c/x/pids.max = max\n"
        );
    }

    #[test]
    fn shares_become_weights_in_range() {
        assert_eq!([2, 1_024, 262_144, 0].map(weight_of), [1, 39, 10_000, 1]);
    }
}
