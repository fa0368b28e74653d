//! The reasons for which a Pod has no user namespace: one row each, from which come sentences, remedies and the page of
//! documentation.

use std::fmt;

use serde::Serialize;

/// A reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub enum Reason {
    /// The user's word.
    HostUsersTrue,
    /// Nothing was asked, and the policy is `opt-in`.
    NotAsked,
    /// `hostNetwork`.
    HostNetwork,
    /// `hostPID`.
    HostPid,
    /// `hostIPC`.
    HostIpc,
    /// `volumeDevices`.
    VolumeDevices,
    /// `privileged`.
    Privileged,
    /// A capability that counts for the node alone.
    Capability,
    /// An ID that the Pod's range does not have.
    IdOutOfRange,
    /// The user that the image declares.
    ImageUser,
    /// A path of the kernel's: /proc, /sys, /dev.
    KernelPath,
    /// A socket of the node.
    NodeSocket,
    /// Mounts that are to appear on the node.
    Propagation,
    /// A device of the node.
    Device,
    /// A sysctl of the whole node.
    Sysctl,
    /// A filesystem that can't be ID-mapped.
    Filesystem,
    /// The runtime handler.
    Handler,
}

/// One row of the table of reasons.
#[derive(Clone, Copy, Debug)]
pub struct ReasonInfo {
    /// The reason.
    pub reason: Reason,
    /// Its name for machines: the reason of the Pod's condition, a label of the metric.
    pub name: &'static str,
    /// What is looked at.
    pub looks_at: &'static str,
    /// Why it does not go with a user namespace; follows a colon.
    pub why: &'static str,
    /// What to change.
    pub remedy: &'static str,
    /// Whether it stands against `hostUsers: false`, too: the Pod could not run.
    pub is_hard: bool,
}

/// The table.
pub const REASONS: &[ReasonInfo] = &[
    ReasonInfo {
        reason: Reason::HostUsersTrue,
        name: "HostUsersTrue",
        looks_at: "`spec.hostUsers: true`",
        why: "it is to run with the node's IDs",
        remedy: "remove `hostUsers: true`",
        is_hard: false,
    },
    ReasonInfo {
        reason: Reason::NotAsked,
        name: "NotAsked",
        looks_at: "`spec.hostUsers` absent, under the policy `opt-in`",
        why: "the policy `opt-in` fences only what asks for it",
        remedy: "set `hostUsers: false`, or the namespace's label `kakoi.dev/user-namespaces` to `default`",
        is_hard: false,
    },
    ReasonInfo {
        reason: Reason::HostNetwork,
        name: "HostNetwork",
        looks_at: "`spec.hostNetwork: true`",
        why: "the node's network belongs to the node's root, and root of a user namespace has no rights over it",
        remedy: "use the Pod network, with `hostPort` or a Service where others must reach it",
        is_hard: true,
    },
    ReasonInfo {
        reason: Reason::HostPid,
        name: "HostPID",
        looks_at: "`spec.hostPID: true`",
        why: "the node's processes are closed to a user namespace",
        remedy: "remove `hostPID`; containers of one Pod see each other with `shareProcessNamespace`",
        is_hard: true,
    },
    ReasonInfo {
        reason: Reason::HostIpc,
        name: "HostIPC",
        looks_at: "`spec.hostIPC: true`",
        why: "the node's shared memory and semaphores are closed to a user namespace",
        remedy: "remove `hostIPC`; containers of one Pod share theirs",
        is_hard: true,
    },
    ReasonInfo {
        reason: Reason::VolumeDevices,
        name: "VolumeDevices",
        looks_at: "`volumeDevices` of a container",
        why: "a raw block device has no owner that could be mapped",
        remedy: "mount the volume as a filesystem (`volumeMode: Filesystem`)",
        is_hard: true,
    },
    ReasonInfo {
        reason: Reason::Privileged,
        name: "Privileged",
        looks_at: "`securityContext.privileged: true` of a container",
        why: "it works on the node's devices and kernel settings, which a user namespace keeps closed",
        remedy: "remove `privileged` and add the capabilities that are needed; with `hostUsers: false` it is privileged in its own namespace alone",
        is_hard: false,
    },
    ReasonInfo {
        reason: Reason::Capability,
        name: "Capability",
        looks_at: "`capabilities.add`: SYS_MODULE, SYS_TIME, SYS_BOOT, SYS_RAWIO, SYSLOG, BPF, PERFMON, SYS_RESOURCE, SYS_NICE, ALL",
        why: "the kernel asks for it in the node's user namespace, so it would have no effect in another one",
        remedy: "drop the capability; with `hostUsers: false` the Pod runs without its effect",
        is_hard: false,
    },
    ReasonInfo {
        reason: Reason::IdOutOfRange,
        name: "IDOutOfRange",
        looks_at: "`runAsUser`, `runAsGroup`, `fsGroup`, `supplementalGroups` of `idsPerPod` (65536) or more",
        why: "the Pod's range does not have that ID",
        remedy: "choose an ID below 65536, or raise `userNamespaces.idsPerPod`",
        is_hard: true,
    },
    ReasonInfo {
        reason: Reason::ImageUser,
        name: "ImageUserOutOfRange",
        looks_at: "the numeric user of the image, where the Pod sets no `runAsUser`",
        why: "the Pod's range does not have that ID",
        remedy: "set `runAsUser` below 65536, or raise `userNamespaces.idsPerPod`",
        is_hard: true,
    },
    ReasonInfo {
        reason: Reason::KernelPath,
        name: "KernelPath",
        looks_at: "hostPath volumes on /proc, /sys, /dev or /, cgroups among them",
        why: "the kernel does not map the owners of its own filesystems",
        remedy: "remove the volume; the container has a /proc, /sys and /dev of its own",
        is_hard: false,
    },
    ReasonInfo {
        reason: Reason::NodeSocket,
        name: "NodeSocket",
        looks_at: "hostPath volumes that are a socket, or /run and /var/run, which hold the node's",
        why: "the program behind it sees an unknown user, and it usually gives root on the node away",
        remedy: "speak to the program over the network; `hostUsers: false` fences the Pod all the same",
        is_hard: false,
    },
    ReasonInfo {
        reason: Reason::Propagation,
        name: "MountPropagation",
        looks_at: "`mountPropagation: Bidirectional` of a container",
        why: "mounts of a user namespace never appear on the node",
        remedy: "use `HostToContainer`, or `None`",
        is_hard: true,
    },
    ReasonInfo {
        reason: Reason::Device,
        name: "Device",
        looks_at: "extended resources, resource claims and CDI annotations, which bring devices of the node; hostPath volumes that are a device",
        why: "a device of the node belongs to the node's root or to a group that the Pod does not have",
        remedy: "set `hostUsers: false` where the device is open to everybody (mode 0666)",
        is_hard: false,
    },
    ReasonInfo {
        reason: Reason::Sysctl,
        name: "Sysctl",
        looks_at: "`securityContext.sysctls` that are not of the Pod's own network or IPC namespace",
        why: "it is a setting of the whole node, which a user namespace can't change",
        remedy: "set it on the node",
        is_hard: true,
    },
    ReasonInfo {
        reason: Reason::Filesystem,
        name: "Filesystem",
        looks_at: "volumes whose filesystem the kernel can't ID-map (NFS, many FUSE filesystems)",
        why: "its files would belong to nobody in the Pod",
        remedy: "move the data to ext4, xfs, btrfs or tmpfs; a hostPath can be bound without a mapping by the annotation `kakoi.dev/volume-mapping.<volume>: none`",
        is_hard: true,
    },
    ReasonInfo {
        reason: Reason::Handler,
        name: "NoSupport",
        looks_at: "the runtime handler of the Pod",
        why: "it makes no user namespaces",
        remedy: "`kakoi check` says what the node lacks",
        is_hard: true,
    },
];

impl Reason {
    /// Its row.
    pub fn info(self) -> &'static ReasonInfo {
        const FIRST: &ReasonInfo = match REASONS.first() {
            Some(info) => info,
            None => unreachable!(),
        };
        REASONS.iter().find(|info| info.reason == self).unwrap_or(FIRST)
    }

    /// Its name for machines.
    pub fn name(self) -> &'static str {
        self.info().name
    }
}

/// A reason, found at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The reason.
    pub reason: Reason,
    /// What was found, as the beginning of a sentence.
    pub what: String,
}

impl Finding {
    pub(super) fn new(reason: Reason, what: impl Into<String>) -> Self {
        Self { reason, what: what.into() }
    }

    /// What to change.
    pub fn remedy(&self) -> &'static str {
        self.reason.info().remedy
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason.info().why)
    }
}
