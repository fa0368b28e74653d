//! The container plan, held in golden form.

use cri::v1::{
    ContainerConfig, IdMapping, LinuxContainerConfig, LinuxContainerResources, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceOption, PodSandboxConfig, SecurityProfile, UserNamespace,
};
use image::ImageConfig;

use super::*;
use crate::mapping::{IdMap, PodIds};
use crate::process::user::User;
use crate::record::{ContainerPhase, ImageUse, ImageVolume, SandboxPhase};

const MAP: IdMap = IdMap { host: 131_072, length: 65_536 };

fn options() -> NamespaceOption {
    let line = vec![IdMapping { host_id: 131_072, container_id: 0, length: 65_536 }];
    let user = UserNamespace { mode: NamespaceMode::Pod.into(), uids: line.clone(), gids: line };
    NamespaceOption {
        pid: NamespaceMode::Container.into(),
        userns_options: Some(user),
        ..NamespaceOption::default()
    }
}

fn sandbox() -> SandboxRecord {
    let context = LinuxSandboxSecurityContext { namespace_options: Some(options()), ..Default::default() };
    SandboxRecord {
        id: "sandbox".into(),
        config: PodSandboxConfig {
            hostname: "pod".into(),
            log_directory: "/var/log/pods/ns_pod_uid".into(),
            linux: Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
            ..PodSandboxConfig::default()
        },
        handler: String::new(),
        ids: Some(PodIds { uids: MAP, gids: MAP }),
        created_at: 1,
        phase: SandboxPhase::Ready,
        addresses: vec![std::net::IpAddr::from([10, 0, 0, 2])],
        warnings: Vec::new(),
        is_stopped: false,
    }
}

fn record() -> ContainerRecord {
    let security = LinuxContainerSecurityContext {
        namespace_options: Some(options()),
        masked_paths: vec!["/proc/kcore".into()],
        readonly_paths: vec!["/proc/sys".into()],
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            ..Default::default()
        }),
        no_new_privs: true,
        ..LinuxContainerSecurityContext::default()
    };
    let resources = LinuxContainerResources { oom_score_adj: 1000, ..LinuxContainerResources::default() };
    ContainerRecord {
        node_owners: Vec::new(),
        image_mounts: Vec::new(),
        seccomp_flags: 0,
        id: "container".into(),
        sandbox: "sandbox".into(),
        config: ContainerConfig {
            command: vec!["sleep".into(), "infinity".into()],
            mounts: vec![mount("/data/deep", "/srv/deep"), mount("/data", "/srv")],
            log_path: "c/0.log".into(),
            linux: Some(LinuxContainerConfig {
                resources: Some(resources),
                security_context: Some(security),
            }),
            ..ContainerConfig::default()
        },
        image: ImageUse {
            id: "sha256:1".into(),
            name: "img".into(),
            reference: "img@sha256:2".into(),
            config: ImageConfig {
                env: vec!["A=1".into()],
                working_dir: "/work".into(),
                ..ImageConfig::default()
            },
            layers: Vec::new(),
        },
        user: User { uid: 33, gid: 34, groups: vec![34, 50], home: "/home".into() },
        volumes: vec![
            ImageVolume { path: "/data".into(), directory: "0".into() },
            ImageVolume { path: "/run".into(), directory: "1".into() },
        ],
        created_at: 1,
        phase: ContainerPhase::Created,
    }
}

fn mount(container: &str, host: &str) -> Mount {
    let line = vec![IdMapping { host_id: 131_072, container_id: 0, length: 65_536 }];
    Mount {
        container_path: container.into(),
        host_path: host.into(),
        uid_mappings: line.clone(),
        gid_mappings: line,
        ..Mount::default()
    }
}

fn surroundings() -> Surroundings {
    Surroundings { sandbox_files: "/files".into(), volumes: "/volumes".into(), devices: Vec::new() }
}

fn planned(record: &ContainerRecord) -> Planned {
    plan_container(record, &sandbox(), &surroundings()).unwrap()
}

fn destinations(planned: &Planned) -> Vec<String> {
    let line = |mount: &MountPlan| {
        let source = match &mount.source {
            MountSource::Fd(index) => match &planned.sources[usize::from(index.0)] {
                Source::Bind(bind) => {
                    let mapped = if bind.is_id_mapped { " mapped" } else { "" };
                    format!("{}{mapped}", bind.source.display())
                }
                other => format!("{other:?}"),
            },
            other => format!("{other:?}"),
        };
        format!("{} {source}{}", mount.destination, if mount.read_only { " ro" } else { "" })
    };
    planned.plan.mounts.iter().map(line).collect()
}

#[test]
fn the_mounts_of_a_fenced_container_are_the_golden_ones() {
    let expected = [
        "/proc Proc",
        "/dev Dev",
        "/sys Sysfs ro",
        "/run /volumes/1 mapped",
        "/data /srv mapped",
        "/dev/pts Devpts",
        "/dev/mqueue Mqueue",
        "/dev/shm Shm",
        "/etc/hostname /files/hostname",
        "/etc/resolv.conf /files/resolv.conf",
        "/etc/hosts /files/hosts",
        "/data/deep /srv/deep mapped",
        "/sys/fs/cgroup Cgroup ro",
    ];
    assert_eq!(destinations(&planned(&record())), expected);
}

#[test]
fn the_process_of_a_fenced_container_is_the_golden_one() {
    let plan = planned(&record()).plan;
    let expected = serde_json::json!({
        "args": ["sleep", "infinity"],
        "env": [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTNAME=pod", "HOME=/home", "A=1",
        ],
        "cwd": "/work",
        "uid": 33, "gid": 34, "groups": [34, 50],
        "umask": null,
        "capabilities": {
            "bounding": 0xa804_25fb_u32, "permitted": 0xa804_25fb_u32, "inheritable": 0, "ambient": 0,
        },
        "no_new_privileges": true,
        "seccomp": 8,
        "seccomp_flags": 0,
        "rlimits": [],
        "oom_score_adj": 1000,
        "terminal": false,
        "terminal_size": null,
        "apparmor_profile": null,
        "selinux_label": null,
    });
    assert_eq!(serde_json::to_value(&plan.process).unwrap(), expected);
    assert_eq!(plan.masked_paths, ["/proc/kcore"]);
    assert_eq!(plan.read_only_paths, ["/proc/sys"]);
    assert_eq!(plan.stdin, Stdin::Null);
}

#[test]
fn a_mount_of_the_request_takes_the_place_of_the_runtimes_own() {
    let mut record = record();
    record.config.mounts = vec![mount("/etc/hosts/", "/kubelet/hosts"), mount("/dev/shm", "/kubelet/shm")];
    let lines = destinations(&planned(&record));
    assert!(lines.contains(&"/dev/shm /kubelet/shm mapped".to_owned()));
    assert!(!lines.iter().any(|line| line.contains("/files/hosts") || line.contains(" Shm")), "{lines:?}");
}

#[test]
fn a_mount_without_mappings_is_bound_as_it_is() {
    let mut record = record();
    let plain =
        Mount { uid_mappings: vec![], gid_mappings: vec![], readonly: true, ..mount("/host", "/srv/host") };
    record.config.mounts = vec![plain];
    assert!(destinations(&planned(&record)).contains(&"/host /srv/host ro".to_owned()));
}

#[test]
fn bidirectional_propagation_with_a_user_namespace_is_refused_by_name() {
    let mut record = record();
    record.config.mounts[0].propagation = MountPropagation::PropagationBidirectional.into();
    let message = check(&record, &sandbox()).unwrap_err().to_string();
    assert!(message.contains("/data/deep") && message.contains("Bidirectional"), "{message}");
}

#[test]
fn a_privileged_container_has_every_capability_and_no_masks_in_its_own_namespaces() {
    let mut record = record();
    let security = record.config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.privileged = true;
    let error = check(&record, &sandbox()).unwrap_err();
    assert!(error.to_string().contains("privileged sandbox"), "{error}");
    let plan = planned(&record).plan;
    assert_eq!(plan.process.capabilities.bounding, (1 << 41) - 1);
    assert!(
        plan.masked_paths.is_empty() && plan.read_only_paths.is_empty() && plan.process.seccomp.is_none()
    );
    assert!(plan.mounts.iter().all(|mount| !mount.read_only));
}

#[test]
fn the_nodes_sysfs_is_bound_when_the_network_is_the_nodes() {
    let mut sandbox = sandbox();
    let linux = sandbox.config.linux.as_mut().unwrap();
    let context = linux.security_context.as_mut().unwrap();
    context.namespace_options.as_mut().unwrap().network = NamespaceMode::Node.into();
    let planned = plan_container(&record(), &sandbox, &surroundings()).unwrap();
    assert!(destinations(&planned).contains(&"/sys /sys ro".to_owned()));
}

#[test]
fn f10_a_container_with_another_user_namespace_is_refused_before_anything_exists() {
    let mut record = record();
    let security = record.config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    security.namespace_options = None;
    assert!(check(&record, &sandbox()).unwrap_err().to_string().contains("differ"));
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let refused = |change: &dyn Fn(&mut ContainerRecord)| {
        let mut record = record();
        change(&mut record);
        check(&record, &sandbox()).unwrap_err().to_string()
    };
    assert!(refused(&|record| record.config.command.clear()).contains("img"));
    assert!(refused(&|record| record.config.mounts[0].container_path = "x".into()).contains("\"x\""));
    assert!(
        refused(&|record| record.config.mounts[0].image = Some(cri::v1::ImageSpec::default()))
            .contains("image")
    );
    assert!(refused(&|record| record.config.mounts[0].recursive_read_only = true).contains("readonly"));
}

#[test]
fn a_tty_has_a_terminal_type_and_the_log_is_below_the_sandboxes_directory() {
    let mut record = record();
    record.config.tty = true;
    let (process, _) = plan_exec(&record, &sandbox(), &["id".to_owned()], true).unwrap();
    assert!(process.env.contains(&"TERM=xterm".to_owned()) && process.terminal);
    assert_eq!(log_path(&record, &sandbox()).to_str(), Some("/var/log/pods/ns_pod_uid/c/0.log"));
}
