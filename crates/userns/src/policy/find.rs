//! Looks for what does not go with a user namespace: a function for each subject, each a plain look at the Pod.

use std::path::Path;

use super::pod::{Container, Volume};
use super::{Finding, PodFacts, Question, Reason, VolumeFact};

/// Capabilities that the kernel asks for in the initial user namespace alone, so that they have no effect in another.
const NODE_CAPABILITIES: [&str; 10] = [
    "SYS_MODULE",
    "SYS_TIME",
    "SYS_BOOT",
    "SYS_RAWIO",
    "SYSLOG",
    "BPF",
    "PERFMON",
    "SYS_RESOURCE",
    "SYS_NICE",
    "ALL",
];

/// Sysctls of a network or IPC namespace that its own root may set. Source: `ipc_namespaces(7)`, `userns.md` §4.5.
const POD_SYSCTLS: [&str; 5] = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue.", "net."];

/// Directories that are the kernel's own filesystems.
const KERNEL_PATHS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Directories in which the node's programs keep their sockets.
const SOCKET_DIRECTORIES: [&str; 2] = ["/run", "/var/run"];

/// Resources of containers that are no devices, though their names have a domain.
const NATIVE_DOMAINS: [&str; 2] = ["kubernetes.io", "requests.kubernetes.io"];

/// Everything, in the order of the Pod's spec.
pub(super) fn all(question: Question<'_>) -> Vec<Finding> {
    let pod = question.pod;
    let mut found = Vec::new();
    found.extend(question.node.handler.as_ref().map(|why| Finding::new(Reason::Handler, why)));
    node_namespaces(pod, &mut found);
    pod_ids(question, &mut found);
    sysctls(pod, &mut found);
    for container in pod.spec.all_containers() {
        rights(container, &mut found);
        container_ids(question, container, &mut found);
        devices(container, &mut found);
        propagation(container, &mut found);
    }
    claims(pod, &mut found);
    for volume in &pod.spec.volumes {
        if let Some(finding) = volume_trouble(question, volume) {
            found.push(finding);
        }
    }
    found
}

fn node_namespaces(pod: &PodFacts, found: &mut Vec<Finding>) {
    let spec = &pod.spec;
    let asked = [
        (spec.host_network, Reason::HostNetwork, "`hostNetwork: true`"),
        (spec.host_pid, Reason::HostPid, "`hostPID: true`"),
        (spec.host_ipc, Reason::HostIpc, "`hostIPC: true`"),
    ];
    found.extend(
        asked.into_iter().filter(|(is_set, ..)| *is_set).map(|(_, reason, what)| Finding::new(reason, what)),
    );
}

/// Whether the Pod's range lacks an ID.
fn is_outside(question: Question<'_>, id: i64) -> bool {
    id >= i64::from(question.ids_per_pod)
}

fn pod_ids(question: Question<'_>, found: &mut Vec<Finding>) {
    let context = &question.pod.spec.security_context;
    let single = [
        ("runAsUser", context.run_as_user),
        ("runAsGroup", context.run_as_group),
        ("fsGroup", context.fs_group),
    ];
    let groups = context.supplemental_groups.iter().map(|id| ("supplementalGroups", Some(*id)));
    let outside = single.into_iter().chain(groups).filter_map(|(field, id)| Some((field, id?)));
    let outside = outside.filter(|(_, id)| is_outside(question, *id));
    found.extend(
        outside.map(|(field, id)| Finding::new(Reason::IdOutOfRange, format!("the Pod's `{field}` is {id}"))),
    );
}

fn container_ids(question: Question<'_>, container: &Container, found: &mut Vec<Finding>) {
    let (name, context) = (&container.name, &container.security_context);
    for (field, id) in [("runAsUser", context.run_as_user), ("runAsGroup", context.run_as_group)] {
        if let Some(id) = id.filter(|id| is_outside(question, *id)) {
            found.push(Finding::new(
                Reason::IdOutOfRange,
                format!("the `{field}` of the container `{name}` is {id}"),
            ));
        }
    }
    let is_set = context.run_as_user.or(question.pod.spec.security_context.run_as_user).is_some();
    let of_image = question.node.image_users.iter().find(|(of, _)| of == name).map(|(_, id)| *id);
    if let Some(id) = of_image.filter(|id| !is_set && is_outside(question, *id)) {
        let what = format!("the image {} of the container `{name}` runs as user {id}", container.image);
        found.push(Finding::new(Reason::ImageUser, what));
    }
}

fn sysctls(pod: &PodFacts, found: &mut Vec<Finding>) {
    let names = pod.spec.security_context.sysctls.iter().map(|sysctl| sysctl.name.replace('/', "."));
    let of_node = names.filter(|name| !POD_SYSCTLS.iter().any(|own| name.starts_with(own)));
    found.extend(
        of_node.map(|name| Finding::new(Reason::Sysctl, format!("the Pod sets the sysctl `{name}`"))),
    );
}

fn rights(container: &Container, found: &mut Vec<Finding>) {
    let (name, context) = (&container.name, &container.security_context);
    if context.privileged {
        found.push(Finding::new(Reason::Privileged, format!("the container `{name}` is `privileged`")));
    }
    for capability in &context.capabilities.add {
        let bare = capability.strip_prefix("CAP_").unwrap_or(capability).to_ascii_uppercase();
        if NODE_CAPABILITIES.contains(&bare.as_str()) {
            let what = format!("the container `{name}` adds the capability {bare}");
            found.push(Finding::new(Reason::Capability, what));
        }
    }
    if !container.volume_devices.is_empty() {
        let what = format!("the container `{name}` has `volumeDevices`");
        found.push(Finding::new(Reason::VolumeDevices, what));
    }
}

fn devices(container: &Container, found: &mut Vec<Finding>) {
    let name = &container.name;
    for resource in container.resources.limits.keys().filter(|resource| is_extended(resource)) {
        let what = format!("the container `{name}` asks for `{resource}`");
        found.push(Finding::new(Reason::Device, what));
    }
    for claim in &container.resources.claims {
        let what = format!("the container `{name}` uses the resource claim `{}`", claim.name);
        found.push(Finding::new(Reason::Device, what));
    }
}

/// A resource that a device plugin offers: its name has a domain that is not Kubernetes' own.
fn is_extended(resource: &str) -> bool {
    let Some((domain, _)) = resource.split_once('/') else { return false };
    !NATIVE_DOMAINS.iter().any(|own| domain == *own || domain.ends_with(&format!(".{own}")))
}

/// Resource claims that no container names, and CDI devices by annotation.
fn claims(pod: &PodFacts, found: &mut Vec<Finding>) {
    let named = |claim: &str| {
        pod.spec
            .all_containers()
            .any(|container| container.resources.claims.iter().any(|used| used.name == claim))
    };
    for claim in pod.spec.resource_claims.iter().filter(|claim| !named(&claim.name)) {
        found.push(Finding::new(Reason::Device, format!("the Pod has the resource claim `{}`", claim.name)));
    }
    let cdi = pod.metadata.annotations().keys().filter(|key| key.starts_with("cdi.k8s.io/"));
    found.extend(
        cdi.map(|key| Finding::new(Reason::Device, format!("the annotation `{key}` asks for devices"))),
    );
}

fn propagation(container: &Container, found: &mut Vec<Finding>) {
    for mount in container.volume_mounts.iter().filter(|mount| mount.mount_propagation == "Bidirectional") {
        let what = format!("the container `{}` mounts `{}` with `Bidirectional`", container.name, mount.name);
        found.push(Finding::new(Reason::Propagation, what));
    }
}

/// The first thing about a volume that stands in the way: what the spec says, then what the node has found.
fn volume_trouble(question: Question<'_>, volume: &Volume) -> Option<Finding> {
    let name = &volume.name;
    if let Some(nfs) = &volume.nfs {
        let what = format!("the volume `{name}` is NFS ({}:{})", nfs.server, nfs.path);
        return Some(Finding::new(Reason::Filesystem, what));
    }
    let of_path = volume.host_path.as_ref().and_then(|host| path_trouble(name, &host.path, &host.kind));
    of_path.or_else(|| {
        let facts = question.node.volumes.iter().filter(|(of, _)| of == name);
        facts.into_iter().find_map(|(_, fact)| fact_trouble(question.pod, volume, fact))
    })
}

fn path_trouble(volume: &str, path: &str, kind: &str) -> Option<Finding> {
    let clean = normal(path);
    let is_below = |parent: &&str| {
        clean.strip_prefix(*parent).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let is_socket = kind == "Socket" || Path::new(&clean).extension().is_some_and(|end| end == "sock");
    let (reason, what) = if kind == "CharDevice" || kind == "BlockDevice" {
        (Reason::Device, format!("the volume `{volume}` is the device {path}"))
    } else if clean == "/" {
        (
            Reason::KernelPath,
            format!("the volume `{volume}` is the node's whole tree, /proc, /sys and /dev among it"),
        )
    } else if KERNEL_PATHS.iter().any(is_below) {
        (Reason::KernelPath, format!("the volume `{volume}` is {path}"))
    } else if is_socket {
        (Reason::NodeSocket, format!("the volume `{volume}` is the socket {path}"))
    } else if SOCKET_DIRECTORIES.contains(&clean.as_str()) {
        (Reason::NodeSocket, format!("the volume `{volume}` is {path}, with the node's sockets"))
    } else {
        return None;
    };
    Some(Finding::new(reason, what))
}

fn fact_trouble(pod: &PodFacts, of: &Volume, fact: &VolumeFact) -> Option<Finding> {
    let volume = &of.name;
    match fact {
        VolumeFact::Socket(path) => path_trouble(volume, path, "Socket"),
        VolumeFact::Device(path) => path_trouble(volume, path, "CharDevice"),
        VolumeFact::LeadsTo(path) => path_trouble(volume, path, ""),
        VolumeFact::NotMappable { .. } if pod.is_unmapped(of) => None,
        VolumeFact::NotMappable { path, filesystem } => {
            let what =
                format!("the volume `{volume}` is {path} on {filesystem}, which this kernel can't ID-map");
            Some(Finding::new(Reason::Filesystem, what))
        }
    }
}

/// The path without doubled, single-dot and trailing parts. `..` is refused by the API.
fn normal(path: &str) -> String {
    let parts = path.split('/').filter(|part| !part.is_empty() && *part != ".");
    let joined: String = parts.flat_map(|part| ["/", part]).collect();
    if joined.is_empty() { "/".to_owned() } else { joined }
}
