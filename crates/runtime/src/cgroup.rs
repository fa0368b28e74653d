//! Control groups of shims and containers, and CRI's resources as their limits.
//!
//! Pods' own groups, above those of their containers, belong to the kubelet; they are made here only where they are
//! missing.

use std::sync::Arc;
use std::time::Duration;

use cri::v1::LinuxContainerResources;
use shim::client::Launcher;
use sys::cgroup::{DeviceRule, Directories, HugePages, Layout, Limits, Stats};
use systemd::Slice;

use crate::container::device::Devices;
use crate::error::{Error, Result};
use crate::record::SandboxRecord;
use crate::scope::Scopes;

/// Below the instance's group: where shims are. A leaf, since v2 allows no processes beside groups with limits.
const SHIMS: &str = "shims";

/// How long killed processes may take to leave their group.
const PATIENCE: Duration = Duration::from_secs(5);

/// The machine's hierarchies and the instance's group in them.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    layout: Arc<Layout>,
    parent: String,
    shims: Arc<Directories>,
    scopes: Scopes,
}

impl Cgroups {
    /// Finds the hierarchies and makes the shims' group.
    pub(crate) fn open(parent: &str, scopes: Scopes) -> Result<Self> {
        let layout = Layout::detect().map_err(|error| Error::failed("find the cgroup hierarchies", error))?;
        let parent = parent.trim_end_matches('/').to_owned();
        let shims = make(&layout, &format!("{parent}/{SHIMS}"), &Limits::default())?;
        if scopes.is_default() && !layout.is_unified() {
            return Err(Error::Unsupported(
                "the cgroup driver systemd needs cgroup v2 alone, and this node has v1; boot it with \
                 systemd.unified_cgroup_hierarchy=1 or choose cgroupfs"
                    .to_owned(),
            ));
        }
        Ok(Self { layout: Arc::new(layout), parent, shims: Arc::new(shims), scopes })
    }

    /// The mount of the v2 hierarchy of a node that has v1 hierarchies too.
    pub(crate) fn beside_legacy(&self) -> Option<&std::path::Path> {
        self.layout.beside_legacy()
    }

    /// The group that shims are born in.
    pub(crate) fn of_shims(&self) -> &Directories {
        &self.shims
    }

    /// The group above a sandbox's containers: the kubelet's for the Pod, else one of the sandbox's own.
    pub(crate) fn parent_of(&self, sandbox: &SandboxRecord) -> String {
        if let Some(slice) = self.slice_of(sandbox) {
            return format!("{}/{}", slice.group(), self.scopes.name(&sandbox.id));
        }
        match crate::sandbox::plan::cgroup_parent(&sandbox.config).trim_end_matches('/') {
            "" => format!("{}/sandboxes/{}", self.parent, sandbox.id),
            asked if asked.starts_with('/') => asked.to_owned(),
            asked => format!("/{asked}"),
        }
    }

    /// The slice that a sandbox's parent is, where groups are the service manager's.
    fn slice_of(&self, sandbox: &SandboxRecord) -> Option<Slice> {
        let asked = Slice::parse(crate::sandbox::plan::cgroup_parent(&sandbox.config));
        asked.filter(|_| self.layout.is_unified())
    }

    /// Where the service manager makes groups, a sandbox that names no parent is in the instance's slice: noted in what it
    /// asks for, so that it stays there.
    pub(crate) fn settle_parent(&self, config: &mut cri::v1::PodSandboxConfig) {
        if self.scopes.is_default() && crate::sandbox::plan::cgroup_parent(config).is_empty() {
            let linux = config.linux.get_or_insert_default();
            self.scopes.own_slice().clone_into(&mut linux.cgroup_parent);
        }
    }

    /// Whether the group above a sandbox's containers is nobody's but the runtime's.
    pub(crate) fn is_own(&self, sandbox: &SandboxRecord) -> bool {
        let parent = crate::sandbox::plan::cgroup_parent(&sandbox.config);
        parent.is_empty() || parent == self.scopes.own_slice()
    }

    /// Has the service manager hand over a group below the sandbox's slice, unless it has. Nothing is to do where the
    /// parent is a path.
    pub(crate) fn prepare(&self, sandbox: &SandboxRecord, launcher: &Launcher) -> Result<()> {
        let Some(slice) = self.slice_of(sandbox) else { return Ok(()) };
        let Some(mount) = &self.layout.unified else { return Ok(()) };
        let group = mount.join(self.parent_of(sandbox).trim_start_matches('/'));
        self.scopes.ensure(&sandbox.id, &slice, &group, || launcher.hold(&self.shims))
    }

    /// Settings by file name are those of v2; on v1 only the two that have a meaning there are taken.
    fn check(&self, resources: &LinuxContainerResources) -> Result<()> {
        let is_known = |name: &&String| matches!(name.as_str(), "pids.max" | "memory.oom.group");
        let unknown = resources.unified.keys().find(|name| !is_known(name));
        match unknown.filter(|_| !self.layout.is_unified()) {
            None => Ok(()),
            Some(name) => Err(Error::Unsupported(format!(
                "the resource {name} is one of cgroup v2, and this node has v1; boot it with \
                 systemd.unified_cgroup_hierarchy=1 or remove the resource"
            ))),
        }
    }

    /// Makes the group above a sandbox's containers, before it has any.
    fn make_parent(&self, sandbox: &SandboxRecord) -> Result<()> {
        make(&self.layout, &self.parent_of(sandbox), &Limits::default()).map(drop)
    }

    /// Makes a container's group with its limits.
    pub(crate) fn make(
        &self,
        group: &str,
        resources: &LinuxContainerResources,
        devices: &Devices,
    ) -> Result<Directories> {
        self.check(resources)?;
        make(&self.layout, group, &plan_limits(resources, Some(devices)))
    }

    /// Changes a container's limits.
    pub(crate) fn update(&self, group: &str, resources: &LinuxContainerResources) -> Result<()> {
        self.check(resources)?;
        let plan = sys::cgroup::plan_update(&self.layout, group, &plan_limits(resources, None));
        sys::cgroup::apply(&plan).map_err(|error| Error::failed("change the container's limits", error))
    }

    /// Changes the limits of the group above a sandbox's containers, where that is the runtime's own.
    pub(crate) fn limit_parent(
        &self,
        sandbox: &SandboxRecord,
        resources: &LinuxContainerResources,
    ) -> Result<()> {
        if self.slice_of(sandbox).is_none() {
            self.make_parent(sandbox)?;
            return self.update(&self.parent_of(sandbox), resources);
        }
        self.check(resources)?;
        let rest = self.scopes.limit(&sandbox.id, &plan_limits(resources, None))?;
        let plan = sys::cgroup::plan_update(&self.layout, &self.parent_of(sandbox), &rest);
        sys::cgroup::apply(&plan).map_err(|error| Error::failed("change the Pod's limits", error))
    }

    /// Opens a group that exists.
    pub(crate) fn open_group(&self, group: &str) -> Result<Directories> {
        open(&self.layout, group)
    }

    /// Ends every process of a group with SIGKILL. A group that is absent has none.
    pub(crate) fn kill(&self, group: &str) -> Result<()> {
        sys::cgroup::kill(&self.layout, group)
            .map_err(|error| Error::failed(format!("end the processes of {group}"), error))
    }

    /// Removes a group and those below it, in every hierarchy.
    pub(crate) fn remove(&self, group: &str) -> Result<()> {
        sys::cgroup::remove(&self.layout, group, PATIENCE)
            .map_err(|error| Error::failed("remove the container's cgroup", error))
    }

    /// Removes the group above a sandbox's containers where it is empty: the sandbox's own, or a Pod's that nobody
    /// else removes.
    pub(crate) fn remove_own_parent(&self, sandbox: &SandboxRecord) {
        if self.slice_of(sandbox).is_some() {
            if let Err(error) = self.kill(&self.parent_of(sandbox)) {
                tracing::warn!(sandbox = sandbox.id, %error, "cannot empty the sandbox's scope");
            }
            self.scopes.remove(&sandbox.id);
            return;
        }
        for directory in self.layout.directories(&self.parent_of(sandbox)) {
            // Not empty, or the kubelet was first: both are right.
            let _ = std::fs::remove_dir(directory);
        }
    }

    /// Stops the slices of sandboxes that are gone, and those above them, where nothing else is in them.
    pub(crate) fn stop_empty_slices(&self, gone: &[Arc<SandboxRecord>]) {
        let Some(mount) = &self.layout.unified else { return };
        for slice in gone.iter().filter_map(|sandbox| self.slice_of(sandbox)) {
            self.scopes.stop_empty(&slice, mount);
        }
    }

    /// Removes the instance's group with all below it, when no Pod is left.
    pub(crate) fn remove_instance(&self) -> Result<()> {
        sys::cgroup::remove(&self.layout, &self.parent, PATIENCE)
            .map_err(|error| Error::failed("remove the instance's cgroup", error))
    }

    /// What a group has used.
    pub(crate) fn stats(&self, group: &str) -> Stats {
        sys::cgroup::stats(&self.layout, group)
    }

    /// All that the kernel counts for a group.
    pub(crate) fn details(&self, group: &str) -> sys::cgroup::Details {
        sys::cgroup::details(&self.layout, group)
    }

    /// How long a group's tasks waited for `cpu`, `memory` or `io`, where the machine counts it.
    pub(crate) fn pressure(&self, group: &str, resource: &str) -> Option<sys::cgroup::Pressure> {
        sys::cgroup::pressure(&self.layout, group, resource)
    }

    /// The PIDs in a group.
    pub(crate) fn processes(&self, group: &str) -> Vec<i32> {
        sys::cgroup::processes(&self.layout, group)
    }
}

fn make(layout: &Layout, group: &str, limits: &Limits) -> Result<Directories> {
    let plan = sys::cgroup::plan_create(layout, group, limits);
    sys::cgroup::apply(&plan).map_err(|error| Error::failed(format!("make the cgroup {group}"), error))?;
    open(layout, group)
}

fn open(layout: &Layout, group: &str) -> Result<Directories> {
    sys::cgroup::open(layout, group).map_err(|error| Error::failed(format!("open the cgroup {group}"), error))
}

/// CRI's resources as limits; 0 and empty leave what is. `devices: None` leaves the device rules too.
fn plan_limits(resources: &LinuxContainerResources, devices: Option<&Devices>) -> Limits {
    let set = |value: i64| Some(value).filter(|value| *value != 0);
    let text = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
    let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
    let mut unified = resources.unified.clone();
    let pids =
        unified.remove("pids.max").and_then(|max| if max == "max" { Some(-1) } else { max.parse().ok() });
    let oom_group = unified.remove("memory.oom.group").map(|together| together == "1");
    Limits {
        memory: set(resources.memory_limit_in_bytes),
        memory_and_swap: set(resources.memory_swap_limit_in_bytes),
        cpu_shares: positive(resources.cpu_shares),
        cpu_quota: set(resources.cpu_quota),
        cpu_period: positive(resources.cpu_period),
        cpus: text(&resources.cpuset_cpus),
        memory_nodes: text(&resources.cpuset_mems),
        pids,
        huge_pages: resources
            .hugepage_limits
            .iter()
            .map(|huge| HugePages { page_size: huge.page_size.clone(), limit: huge.limit })
            .collect(),
        oom_group,
        devices: devices.map(rules),
        unified,
    }
}

fn rules(devices: &Devices) -> Vec<DeviceRule> {
    if devices.allows_all {
        return vec![DeviceRule::ALL];
    }
    let rule = |(node, permissions): (&shim::protocol::DevicePlan, &String)| {
        let make = if node.is_block { DeviceRule::block } else { DeviceRule::character };
        make(node.major, node.minor, access(permissions))
    };
    devices.nodes.iter().zip(&devices.permissions).map(rule).collect()
}

/// The letters in the order and of the lifetime that rules want.
fn access(permissions: &str) -> &'static str {
    let has = |letter| permissions.contains(letter);
    match (has('r'), has('w'), has('m')) {
        (true, true, true) => "rwm",
        (true, true, false) => "rw",
        (true, false, true) => "rm",
        (true, false, false) => "r",
        (false, true, true) => "wm",
        (false, true, false) => "w",
        (false, false, true) => "m",
        (false, false, false) => "",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_is_not_set_is_no_limit() {
        assert_eq!(plan_limits(&LinuxContainerResources::default(), None), Limits::default());
    }

    #[test]
    fn what_is_set_becomes_a_limit() {
        let unified = [("memory.oom.group", "1"), ("pids.max", "9"), ("memory.high", "5")];
        let resources = LinuxContainerResources {
            cpu_quota: -1,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            cpuset_cpus: "0".into(),
            unified: unified.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            ..LinuxContainerResources::default()
        };
        let expected = Limits {
            memory: Some(64 << 20),
            cpu_shares: Some(512),
            cpu_quota: Some(-1),
            cpus: Some("0".into()),
            pids: Some(9),
            oom_group: Some(true),
            unified: BTreeMap::from([("memory.high".into(), "5".into())]),
            ..Limits::default()
        };
        assert_eq!(plan_limits(&resources, None), expected);
    }

    #[test]
    fn given_devices_are_allowed_as_they_are_given() {
        let node = shim::protocol::DevicePlan {
            path: "/dev/fuse".into(),
            is_block: false,
            major: 10,
            minor: 229,
            mode: 0o666,
            uid: 0,
            gid: 0,
        };
        let devices = Devices { nodes: vec![node], permissions: vec!["wr".into()], allows_all: false };
        assert_eq!(rules(&devices), [DeviceRule::character(10, 229, "rw")]);
        assert_eq!(rules(&Devices { allows_all: true, ..Devices::default() }), [DeviceRule::ALL]);
    }
}
