//! The configuration of an OCI runtime, held in golden form.

use serde_json::json;
use shim::protocol::{CapabilityPlan, CgroupFds, FdIndex, Stdin, UserNamespacePlan, default_mounts};

use super::*;
use crate::container::plan::{Access, Bind};

fn mount(propagation: Propagation) -> Source {
    Source::Bind(Bind {
        source: "/srv".into(),
        destination: "/data".into(),
        is_id_mapped: true,
        access: Access::ReadOnly,
        propagation,
    })
}

fn plan() -> ContainerPlan {
    let mut mounts = default_mounts();
    let data = MountSource::Fd(FdIndex(1));
    mounts.push(MountPlan { destination: "/data".into(), source: data, read_only: true });
    let bits = CapabilityPlan { bounding: 0x21, permitted: 0x21, inheritable: 0, ambient: 0 };
    ContainerPlan {
        id: "id".into(),
        rootfs: FdIndex(0),
        read_only_rootfs: true,
        mounts,
        devices: vec![DevicePlan {
            path: "/dev/fuse".into(),
            is_block: false,
            major: 10,
            minor: 229,
            mode: 0o666,
            uid: 0,
            gid: 0,
        }],
        masked_paths: vec!["/proc/kcore".into()],
        read_only_paths: vec!["/proc/sys".into()],
        cgroup: CgroupFds::default(),
        process: ProcessPlan {
            args: vec!["sleep".into(), "1".into()],
            env: vec!["A=b".into()],
            cwd: "/".into(),
            uid: 1000,
            gid: 2000,
            groups: vec![3000],
            umask: None,
            capabilities: bits,
            no_new_privileges: true,
            seccomp: None,
            seccomp_flags: 0,
            rlimits: Vec::new(),
            oom_score_adj: Some(1000),
            terminal: false,
            terminal_size: None,
            apparmor_profile: None,
            selinux_label: None,
        },
        stdin: Stdin::Null,
        log: None,
        target_container: None,
        oci: None,
    }
}

fn sandbox(is_fenced: bool) -> SandboxPlan {
    let block = vec![IdMapping { container_id: 0, host_id: 131_072, size: 65_536 }];
    let user = UserNamespacePlan { uids: block.clone(), gids: block, creator_uid: 131_072 };
    SandboxPlan {
        id: "sandbox".into(),
        user_namespace: is_fenced.then_some(user),
        network: Namespace::Pod,
        ipc: Namespace::Pod,
        uts: Namespace::Pod,
        pid: PidNamespace::Container,
        hostname: "pod".into(),
        sysctls: Vec::new(),
        shm_size: 0,
        faults: Vec::new(),
    }
}

fn written(plan: &ContainerPlan, sandbox: &SandboxPlan, propagation: Propagation) -> serde_json::Value {
    let devices = Devices {
        nodes: plan.devices.clone(),
        permissions: vec!["rw".into(); plan.devices.len()],
        allows_all: false,
    };
    let attributes = [StatVfsMountFlags::empty(), StatVfsMountFlags::RDONLY | StatVfsMountFlags::NODEV];
    let input = Input {
        plan,
        sources: &[Source::Rootfs, mount(propagation)],
        attributes: &attributes,
        sandbox,
        devices: &devices,
        cgroup: "/kubepods/pod1/id",
        seccomp: None,
        stage: Path::new("/run/kakoi/stage"),
    };
    serde_json::to_value(container(&input)).unwrap()
}

#[test]
fn the_configuration_of_a_fenced_container_is_the_golden_one() {
    let expected = json!({
        "ociVersion": "1.0.2",
        "root": {"path": "/run/kakoi/stage/rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/run/kakoi/stage/shm",
             "options": ["rbind", "rprivate", "nosuid", "nodev", "noexec"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            {"destination": "/data", "type": "bind", "source": "/run/kakoi/stage/mounts/1",
             "options": ["rbind", "rslave", "ro", "nodev"]},
            {"destination": "/dev/fuse", "type": "bind", "source": "/run/kakoi/stage/devices/0",
             "options": ["rbind", "rprivate", "nosuid"]},
        ],
        "process": {
            "terminal": false,
            "user": {"uid": 1000, "gid": 2000, "additionalGids": [3000]},
            "args": ["sleep", "1"], "env": ["A=b"], "cwd": "/",
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN", "CAP_KILL"],
                "permitted": ["CAP_CHOWN", "CAP_KILL"], "inheritable": [], "ambient": [],
            },
            "noNewPrivileges": true,
        },
        "linux": {
            "namespaces": [
                {"type": "user", "path": "/run/kakoi/stage/namespaces/user"},
                {"type": "network", "path": "/run/kakoi/stage/namespaces/network"},
                {"type": "ipc", "path": "/run/kakoi/stage/namespaces/ipc"},
                {"type": "uts", "path": "/run/kakoi/stage/namespaces/uts"},
                {"type": "pid"}, {"type": "mount"}, {"type": "cgroup"},
            ],
            "uidMappings": [{"containerID": 0, "hostID": 131_072, "size": 65_536}],
            "gidMappings": [{"containerID": 0, "hostID": 131_072, "size": 65_536}],
            "cgroupsPath": "/kubepods/pod1/id",
            "resources": {"devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            ]},
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "rootfsPropagation": "rslave",
        },
    });
    assert_eq!(written(&plan(), &sandbox(true), Propagation::FromHost), expected);
}

#[test]
fn without_a_user_namespace_the_runtime_makes_the_devices_and_maps_nothing() {
    let written = written(&plan(), &sandbox(false), Propagation::Bidirectional);
    let linux = &written["linux"];
    assert!(linux.get("uidMappings").is_none() && linux["namespaces"][0]["type"] == "network");
    assert_eq!(linux["devices"][0]["path"], "/dev/fuse");
    assert_eq!(linux["rootfsPropagation"], "rshared", "a mount both ways stays one");
    assert_eq!(written["mounts"][7]["options"], json!(["rbind", "rshared", "ro", "nodev"]));
    assert_eq!(written["mounts"].as_array().unwrap().len(), 8);
}

#[test]
fn namespaces_of_the_node_are_not_named_and_shared_ones_are_joined() {
    let mut shared = sandbox(false);
    (shared.network, shared.uts, shared.pid) = (Namespace::Node, Namespace::Node, PidNamespace::Pod);
    let joined = json!([
        {"type": "ipc", "path": "/run/kakoi/stage/namespaces/ipc"},
        {"type": "pid", "path": "/run/kakoi/stage/namespaces/pid"},
        {"type": "mount"}, {"type": "cgroup"},
    ]);
    assert_eq!(written(&plan(), &shared, Propagation::Private)["linux"]["namespaces"], joined);
    shared.pid = PidNamespace::Node;
    let debugged = ContainerPlan { target_container: Some("other".into()), ..plan() };
    assert_eq!(written(&debugged, &shared, Propagation::Private)["linux"]["namespaces"], joined);
    let node = written(&plan(), &shared, Propagation::Private);
    assert_eq!(node["linux"]["namespaces"].as_array().unwrap().len(), 3, "no PID namespace of its own");
}

#[test]
fn what_the_machines_root_lacks_is_not_asked_for() {
    let process = process_with(&plan().process, 0x1);
    assert_eq!(process.capabilities.bounding, ["CAP_CHOWN"]);
    assert_eq!(process.capabilities.effective, ["CAP_CHOWN"]);
}
