//! From a container's plan to the `config.json` of an OCI runtime. Pure, and no second planner: everything in the plan is
//! said in the specification's words, and what was opened for it is named by its place on the stage.
//!
//! What is left out was done already: the Pod's host name and kernel parameters are in the namespaces that are joined,
//! limits are on the cgroup, `oom_score_adj` and resource limits are inherited from the launcher. Mounts have their
//! attributes already too, but every one of them is said again: crun takes away what is not (where the kernel lets it),
//! and runc 1.1 fails where one is missing that the kernel has locked.

use std::path::Path;

use rustix::fs::StatVfsMountFlags;
use shim::protocol::{
    ContainerPlan, DevicePlan, IdMapping, MountPlan, MountSource, Namespace, PidNamespace, ProcessPlan,
    SandboxPlan,
};
use shim::stage;

use super::spec;
use crate::container::device::Devices;
use crate::container::plan::{Propagation, Source};

/// `nosuid,nodev,noexec`, as shared memory has them.
const INERT: StatVfsMountFlags =
    StatVfsMountFlags::NOSUID.union(StatVfsMountFlags::NODEV).union(StatVfsMountFlags::NOEXEC);

/// The options of attributes.
const ATTRIBUTES: [(StatVfsMountFlags, &str); 4] = [
    (StatVfsMountFlags::RDONLY, "ro"),
    (StatVfsMountFlags::NOSUID, "nosuid"),
    (StatVfsMountFlags::NODEV, "nodev"),
    (StatVfsMountFlags::NOEXEC, "noexec"),
];

/// What a configuration is made of.
#[derive(Debug)]
pub(super) struct Input<'a> {
    pub(super) plan: &'a ContainerPlan,
    pub(super) sources: &'a [Source],
    /// Of the mount of each source; nothing for what is none.
    pub(super) attributes: &'a [StatVfsMountFlags],
    pub(super) sandbox: &'a SandboxPlan,
    pub(super) devices: &'a Devices,
    /// From the root of the hierarchies.
    pub(super) cgroup: &'a str,
    pub(super) seccomp: Option<sys::seccomp::Document>,
    pub(super) stage: &'a Path,
}

/// The whole `config.json`.
pub(super) fn container(input: &Input<'_>) -> spec::Spec {
    let Input { plan, sandbox, .. } = input;
    let is_fenced = sandbox.user_namespace.is_some();
    let mut mounts: Vec<spec::Mount> = plan.mounts.iter().map(|mount| one_mount(input, mount)).collect();
    let mut nodes = Vec::new();
    for (number, device) in plan.devices.iter().enumerate() {
        if is_fenced {
            let source = place(input, &stage::device(number));
            mounts.push(bind(&device.path, source, "rprivate", StatVfsMountFlags::NOSUID));
        } else {
            nodes.push(node(device));
        }
    }
    let user = sandbox.user_namespace.as_ref();
    spec::Spec {
        oci_version: "1.0.2",
        root: spec::Root { path: place(input, stage::ROOTFS), readonly: plan.read_only_rootfs },
        mounts,
        process: process(&plan.process, is_fenced),
        linux: spec::Linux {
            namespaces: namespaces(input),
            uid_mappings: user.map(|user| mappings(&user.uids)).unwrap_or_default(),
            gid_mappings: user.map(|user| mappings(&user.gids)).unwrap_or_default(),
            devices: nodes,
            cgroups_path: input.cgroup.to_owned(),
            resources: spec::Resources { devices: rules(input.devices) },
            seccomp: input.seccomp.clone(),
            masked_paths: plan.masked_paths.clone(),
            readonly_paths: plan.read_only_paths.clone(),
            rootfs_propagation: if is_shared(input.sources) { "rshared" } else { "rslave" },
        },
    }
}

/// A container's process, or that of an exec. In a user namespace of its own a process can have every capability;
/// outside of one the machine's root may lack some, which its runtime could not give.
pub(super) fn process(plan: &ProcessPlan, is_fenced: bool) -> spec::Process {
    let have = if is_fenced { u64::MAX } else { sys::capability::permitted().unwrap_or(u64::MAX) };
    process_with(plan, have)
}

fn process_with(plan: &ProcessPlan, have: u64) -> spec::Process {
    let names = |mask: u64| {
        let names = sys::capability::names(mask & have).into_iter();
        names.map(|name| format!("CAP_{name}")).collect::<Vec<_>>()
    };
    let sets = plan.capabilities;
    spec::Process {
        terminal: plan.terminal,
        user: spec::User {
            uid: plan.uid,
            gid: plan.gid,
            umask: plan.umask,
            additional_gids: plan.groups.clone(),
        },
        args: plan.args.clone(),
        env: plan.env.clone(),
        cwd: plan.cwd.clone(),
        capabilities: spec::Capabilities {
            bounding: names(sets.bounding),
            effective: names(sets.permitted),
            permitted: names(sets.permitted),
            inheritable: names(sets.inheritable),
            ambient: names(sets.ambient),
        },
        no_new_privileges: plan.no_new_privileges,
        apparmor_profile: plan.apparmor_profile.clone(),
        selinux_label: plan.selinux_label.clone(),
    }
}

fn place(input: &Input<'_>, name: &str) -> String {
    input.stage.join(name).to_string_lossy().into_owned()
}

fn bind(destination: &str, source: String, propagation: &str, attributes: StatVfsMountFlags) -> spec::Mount {
    let mut options = vec!["rbind".to_owned(), propagation.to_owned()];
    let names = ATTRIBUTES.iter().filter(|(flag, _)| attributes.contains(*flag));
    options.extend(names.map(|(_, name)| (*name).to_owned()));
    spec::Mount { destination: destination.to_owned(), kind: "bind", source, options }
}

fn one_mount(input: &Input<'_>, mount: &MountPlan) -> spec::Mount {
    let make = |kind: &'static str, options: &[&str]| {
        let mut options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        options.extend(mount.read_only.then(|| "ro".to_owned()));
        let source = kind.to_owned();
        spec::Mount { destination: mount.destination.clone(), kind, source, options }
    };
    match &mount.source {
        MountSource::Fd(index) => {
            let propagation = match input.sources.get(usize::from(index.0)) {
                Some(Source::Bind(bind)) => bind.propagation,
                _ => Propagation::Private,
            };
            let attributes = input.attributes.get(usize::from(index.0)).copied();
            let attributes = attributes.unwrap_or_else(StatVfsMountFlags::empty);
            let source = place(input, &stage::mount(*index));
            bind(&mount.destination, source, propagation_option(propagation), attributes)
        }
        MountSource::Shm => bind(&mount.destination, place(input, stage::SHM), "rprivate", INERT),
        MountSource::Proc => make("proc", &["nosuid", "noexec", "nodev"]),
        MountSource::Sysfs => make("sysfs", &["nosuid", "noexec", "nodev"]),
        MountSource::Mqueue => make("mqueue", &["nosuid", "noexec", "nodev"]),
        MountSource::Cgroup => make("cgroup", &["nosuid", "noexec", "nodev", "relatime"]),
        MountSource::Dev => make("tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        MountSource::Devpts => {
            let mut options = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
            options.extend(is_group_mapped(input.sandbox, 5).then_some("gid=5")); // `tty`
            make("devpts", &options)
        }
        MountSource::Tmpfs { size, mode } => {
            let (mode, limit) = (format!("mode={mode:o}"), format!("size={size}"));
            let mut options = vec!["nosuid", "noexec", "nodev", &mode];
            options.extend((*size > 0).then_some(limit.as_str()));
            make("tmpfs", &options)
        }
    }
}

fn is_group_mapped(sandbox: &SandboxPlan, group: u32) -> bool {
    let user = sandbox.user_namespace.as_ref();
    user.is_none_or(|user| sys::idmap::to_host(&user.gids, group).is_some())
}

fn propagation_option(propagation: Propagation) -> &'static str {
    match propagation {
        Propagation::Private => "rprivate",
        Propagation::FromHost => "rslave",
        Propagation::Bidirectional => "rshared",
    }
}

/// A mount that is shared both ways must not be made a slave on the way.
fn is_shared(sources: &[Source]) -> bool {
    let is_bidirectional = |source: &Source| matches!(source, Source::Bind(bind) if bind.propagation == Propagation::Bidirectional);
    sources.iter().any(is_bidirectional)
}

/// The container's own mount and cgroup namespace; the Pod's by their places. What is not listed is the node's.
fn namespaces(input: &Input<'_>) -> Vec<spec::Namespace> {
    let SandboxPlan { user_namespace, network, ipc, uts, pid, .. } = input.sandbox;
    let of_pod =
        |kind| spec::Namespace { kind, path: Some(place(input, &format!("{}/{kind}", stage::NAMESPACES))) };
    let own = |kind| spec::Namespace { kind, path: None };
    let mut all = Vec::new();
    all.extend(user_namespace.is_some().then(|| of_pod("user")));
    for (kind, namespace) in [("network", network), ("ipc", ipc), ("uts", uts)] {
        all.extend((*namespace == Namespace::Pod).then(|| of_pod(kind)));
    }
    match (pid, &input.plan.target_container) {
        (_, Some(_)) | (PidNamespace::Pod, None) => all.push(of_pod("pid")),
        (PidNamespace::Container, None) => all.push(own("pid")),
        (PidNamespace::Node, None) => {}
    }
    all.extend([own("mount"), own("cgroup")]);
    all
}

fn mappings(extents: &[IdMapping]) -> Vec<spec::IdMapping> {
    let one = |extent: &IdMapping| spec::IdMapping {
        container_id: extent.container_id,
        host_id: extent.host_id,
        size: extent.size,
    };
    extents.iter().map(one).collect()
}

fn kind(device: &DevicePlan) -> &'static str {
    if device.is_block { "b" } else { "c" }
}

fn node(device: &DevicePlan) -> spec::Node {
    spec::Node {
        path: device.path.clone(),
        kind: kind(device),
        major: device.major,
        minor: device.minor,
        file_mode: device.mode,
        uid: device.uid,
        gid: device.gid,
    }
}

/// None, then those given; the runtime adds the usual ones.
fn rules(devices: &Devices) -> Vec<spec::Device> {
    let every =
        |allow| spec::Device { allow, kind: None, major: None, minor: None, access: "rwm".to_owned() };
    if devices.allows_all {
        return vec![every(true)];
    }
    let given = devices.nodes.iter().zip(&devices.permissions).map(|(device, access)| spec::Device {
        allow: true,
        kind: Some(kind(device)),
        major: Some(device.major),
        minor: Some(device.minor),
        access: access.clone(),
    });
    std::iter::once(every(false)).chain(given).collect()
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
