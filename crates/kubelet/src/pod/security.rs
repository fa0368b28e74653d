//! The security context of a sandbox or container, as the runtime is told it, and the checks the node makes itself.

use std::path::PathBuf;

use cri::v1;
use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, SELinuxOptions, SeccompProfile};

use crate::userns::PodUserns;

/// The user that an image declares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImageUser {
    pub(crate) uid: Option<i64>,
    pub(crate) name: String,
}

/// What of the node matters for security contexts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeSecurity {
    /// Use the runtime's profile where a container names none (`seccompDefault`).
    pub(crate) is_seccomp_default: bool,
    /// Sysctls that Pods may set beside the safe ones (`allowedUnsafeSysctls`); a trailing `*` stands for any ending.
    pub(crate) allowed_sysctls: Vec<String>,
    /// Where `Localhost` seccomp profiles lie: `seccomp` in the kubelet's directory.
    pub(crate) seccomp_root: PathBuf,
    /// Existing paths of the kind `/sys/devices/system/cpu/cpu0/thermal_throttle`.
    pub(crate) thermal_paths: Vec<String>,
}

const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Sysctls that every Pod may set, by exact name. Source: "Using sysctls in a Kubernetes Cluster".
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// Why a container may not run as it would.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum NonRootError {
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RunAsUser { pod: String, container: String },
    #[error("container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})")]
    ImageIsRoot { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: {pod:?}, container: {container})"
    )]
    NotNumeric { user: String, pod: String, container: String },
}

/// `name_namespace(uid)`, as upstream names Pods in messages.
pub(crate) fn describe_pod(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}_{}({})", part(&meta.name), part(&meta.namespace), part(&meta.uid))
}

/// Checks `runAsNonRoot` against the user the container would run as.
pub(crate) fn check_non_root(
    pod: &Pod,
    container: &Container,
    image: &ImageUser,
) -> Result<(), NonRootError> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let required =
        own.and_then(|own| own.run_as_non_root).or_else(|| of_pod.and_then(|pod| pod.run_as_non_root));
    if required != Some(true) {
        return Ok(());
    }
    let (pod_name, container_name) = (describe_pod(pod), container.name.clone());
    match own.and_then(|own| own.run_as_user).or_else(|| of_pod.and_then(|pod| pod.run_as_user)) {
        Some(0) => Err(NonRootError::RunAsUser { pod: pod_name, container: container_name }),
        None if image.uid == Some(0) => {
            Err(NonRootError::ImageIsRoot { pod: pod_name, container: container_name })
        }
        None if image.uid.is_none() && !image.name.is_empty() => Err(NonRootError::NotNumeric {
            user: image.name.clone(),
            pod: pod_name,
            container: container_name,
        }),
        _ => Ok(()),
    }
}

/// The name of a sysctl that the Pod may not set, with the reason.
pub(crate) fn forbidden_sysctl(pod: &Pod, node: &NodeSecurity) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let host_network = spec.host_network == Some(true);
    let host_ipc = spec.host_ipc == Some(true);
    let sysctls = spec.security_context.iter().flat_map(|context| context.sysctls.iter().flatten());
    for sysctl in sysctls {
        let name = sysctl.name.replace('/', ".");
        if !SAFE_SYSCTLS.contains(&name.as_str()) && !is_listed(&node.allowed_sysctls, &name) {
            return Some(format!("forbidden sysctl: {name:?} not allowlisted"));
        }
        if name.starts_with("net.") && host_network {
            return Some(format!("forbidden sysctl: {name:?} not allowed with host net enabled"));
        }
        if name.starts_with("kernel.shm") && host_ipc {
            return Some(format!("forbidden sysctl: {name:?} not allowed with host ipc enabled"));
        }
    }
    None
}

/// Whether a list of names and of beginnings with `*` has the name.
fn is_listed(list: &[String], name: &str) -> bool {
    list.iter().any(|allowed| {
        let allowed = allowed.replace('/', ".");
        allowed.strip_suffix('*').map_or(allowed == name, |beginning| name.starts_with(beginning))
    })
}

/// The namespaces of the Pod's sandbox and containers.
pub(crate) fn plan_namespaces(pod: &Pod, userns: &PodUserns) -> v1::NamespaceOption {
    let spec = pod.spec.as_ref();
    let is = |claim: Option<bool>| claim == Some(true);
    let node_or = |host: bool, other: v1::NamespaceMode| if host { v1::NamespaceMode::Node } else { other };
    let shares_pid = is(spec.and_then(|spec| spec.share_process_namespace));
    let pid = if shares_pid { v1::NamespaceMode::Pod } else { v1::NamespaceMode::Container };
    v1::NamespaceOption {
        network: node_or(is(spec.and_then(|spec| spec.host_network)), v1::NamespaceMode::Pod).into(),
        pid: node_or(is(spec.and_then(|spec| spec.host_pid)), pid).into(),
        ipc: node_or(is(spec.and_then(|spec| spec.host_ipc)), v1::NamespaceMode::Pod).into(),
        target_id: String::new(),
        userns_options: userns.options(),
    }
}

fn seccomp(
    profile: Option<&SeccompProfile>,
    is_privileged: bool,
    node: &NodeSecurity,
) -> v1::SecurityProfile {
    use v1::security_profile::ProfileType;
    let of = |kind: ProfileType, localhost_ref: String| v1::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref,
    };
    match profile.map(|profile| profile.type_.as_str()) {
        Some("RuntimeDefault") => of(ProfileType::RuntimeDefault, String::new()),
        Some("Localhost") => {
            let path = profile.and_then(|profile| profile.localhost_profile.as_deref()).unwrap_or_default();
            // Below that directory also when it is written as if it began at the root.
            let path = node.seccomp_root.join(path.trim_start_matches('/'));
            of(ProfileType::Localhost, path.to_string_lossy().into_owned())
        }
        None if node.is_seccomp_default && !is_privileged => of(ProfileType::RuntimeDefault, String::new()),
        _ => of(ProfileType::Unconfined, String::new()),
    }
}

/// The `AppArmor` profile; without one the runtime's own choice.
fn apparmor(profile: Option<&AppArmorProfile>) -> Option<v1::SecurityProfile> {
    use v1::security_profile::ProfileType;
    let profile = profile?;
    let kind = match profile.type_.as_str() {
        "RuntimeDefault" => ProfileType::RuntimeDefault,
        "Localhost" => ProfileType::Localhost,
        _ => ProfileType::Unconfined,
    };
    let localhost_ref = profile.localhost_profile.clone().unwrap_or_default();
    Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref })
}

fn selinux(options: Option<&SELinuxOptions>) -> Option<v1::SeLinuxOption> {
    let options = options?;
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    Some(v1::SeLinuxOption {
        user: part(&options.user),
        role: part(&options.role),
        r#type: part(&options.type_),
        level: part(&options.level),
    })
}

fn supplemental_groups(pod: &Pod) -> (Vec<i64>, v1::SupplementalGroupsPolicy) {
    let Some(context) = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()) else {
        return (Vec::new(), v1::SupplementalGroupsPolicy::Merge);
    };
    let groups =
        context.fs_group.iter().chain(context.supplemental_groups.iter().flatten()).copied().collect();
    let policy = match context.supplemental_groups_policy.as_deref() {
        Some("Strict") => v1::SupplementalGroupsPolicy::Strict,
        _ => v1::SupplementalGroupsPolicy::Merge,
    };
    (groups, policy)
}

/// The sandbox's security context.
pub(crate) fn plan_sandbox_security(
    pod: &Pod,
    userns: &PodUserns,
    node: &NodeSecurity,
) -> v1::LinuxSandboxSecurityContext {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let (groups, policy) = supplemental_groups(pod);
    let number = |value: Option<i64>| value.map(|value| v1::Int64Value { value });
    let inits = pod.spec.iter().filter_map(|spec| spec.init_containers.as_ref()).flatten();
    let is_privileged = pod.spec.iter().flat_map(|spec| &spec.containers).chain(inits).any(is_privileged);
    v1::LinuxSandboxSecurityContext {
        namespace_options: Some(plan_namespaces(pod, userns)),
        run_as_user: number(context.and_then(|context| context.run_as_user)),
        run_as_group: number(context.and_then(|context| context.run_as_group)),
        supplemental_groups: groups,
        supplemental_groups_policy: policy.into(),
        privileged: is_privileged,
        seccomp: Some(seccomp(
            context.and_then(|context| context.seccomp_profile.as_ref()),
            is_privileged,
            node,
        )),
        ..Default::default()
    }
}

fn is_privileged(container: &Container) -> bool {
    container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true))
}

/// One container's security context.
pub(crate) fn plan_container_security(
    pod: &Pod,
    container: &Container,
    userns: &PodUserns,
    image: &ImageUser,
    node: &NodeSecurity,
) -> v1::LinuxContainerSecurityContext {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let user =
        own.and_then(|own| own.run_as_user).or_else(|| of_pod.and_then(|pod| pod.run_as_user)).or(image.uid);
    let group = own.and_then(|own| own.run_as_group).or_else(|| of_pod.and_then(|pod| pod.run_as_group));
    let number = |value: Option<i64>| value.map(|value| v1::Int64Value { value });
    let (groups, policy) = supplemental_groups(pod);
    let profile = own
        .and_then(|own| own.seccomp_profile.as_ref())
        .or_else(|| of_pod.and_then(|pod| pod.seccomp_profile.as_ref()));
    let is_unmasked = own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked");
    let (masked_paths, readonly_paths) = if is_unmasked { Default::default() } else { masks(node) };
    v1::LinuxContainerSecurityContext {
        capabilities: own.and_then(|own| own.capabilities.as_ref()).map(|capabilities| v1::Capability {
            add_capabilities: capabilities.add.clone().unwrap_or_default(),
            drop_capabilities: capabilities.drop.clone().unwrap_or_default(),
            add_ambient_capabilities: Vec::new(),
        }),
        privileged: is_privileged(container),
        namespace_options: Some(plan_namespaces(pod, userns)),
        run_as_user: number(user),
        run_as_username: if user.is_none() { image.name.clone() } else { String::new() },
        run_as_group: number(group),
        readonly_rootfs: own.is_some_and(|own| own.read_only_root_filesystem == Some(true)),
        supplemental_groups: groups,
        supplemental_groups_policy: policy.into(),
        no_new_privs: own.is_some_and(|own| own.allow_privilege_escalation == Some(false)),
        masked_paths,
        readonly_paths,
        seccomp: Some(seccomp(profile, is_privileged(container), node)),
        apparmor: apparmor(
            own.and_then(|own| own.app_armor_profile.as_ref())
                .or_else(|| of_pod.and_then(|pod| pod.app_armor_profile.as_ref())),
        ),
        selinux_options: selinux(
            own.and_then(|own| own.se_linux_options.as_ref())
                .or_else(|| of_pod.and_then(|pod| pod.se_linux_options.as_ref())),
        ),
        ..Default::default()
    }
}

fn masks(node: &NodeSecurity) -> (Vec<String>, Vec<String>) {
    let own = |path: &&str| (*path).to_owned();
    let masked = MASKED.iter().map(own).chain(node.thermal_paths.iter().cloned());
    (masked.collect(), READ_ONLY.iter().map(own).collect())
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(security: serde_json::Value, container: serde_json::Value) -> Pod {
        let mut container = container;
        container["name"] = json!("c");
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": security, "containers": [container]}}))
        .unwrap()
    }

    fn check(security: serde_json::Value, container: serde_json::Value, image: ImageUser) -> Option<String> {
        let pod = pod(security, json!({"securityContext": container}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        check_non_root(&pod, container, &image).err().map(|error| error.to_string())
    }

    #[test]
    fn run_as_non_root_is_checked_in_upstreams_words() {
        let image = |uid, name: &str| ImageUser { uid, name: name.into() };
        let strict = || json!({"runAsNonRoot": true});
        assert_eq!(check(json!({}), json!({}), image(Some(0), "")), None);
        assert_eq!(check(strict(), json!({"runAsUser": 1}), image(Some(0), "")), None);
        assert_eq!(check(strict(), json!({"runAsNonRoot": false}), image(Some(0), "")), None);
        assert_eq!(check(strict(), json!({}), image(Some(7), "")), None);
        assert_eq!(
            check(strict(), json!({}), image(Some(0), "")).unwrap(),
            "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"
        );
        assert_eq!(
            check(strict(), json!({"runAsUser": 0}), image(None, "")).unwrap(),
            "container's runAsUser breaks non-root policy (pod: \"p_n(u)\", container: c)"
        );
        assert_eq!(
            check(strict(), json!({}), image(None, "www")).unwrap(),
            "container has runAsNonRoot and image has non-numeric user (www), cannot verify user is non-root (pod: \"p_n(u)\", container: c)"
        );
    }

    #[test]
    fn the_container_overrides_the_pod_and_the_image_comes_last() {
        let pod = pod(
            json!({"runAsUser": 1000, "fsGroup": 2000, "supplementalGroups": [3000], "seccompProfile": {"type": "RuntimeDefault"}}),
            json!({"securityContext": {"runAsGroup": 5, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}),
        );
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let image = ImageUser { uid: Some(33), name: String::new() };
        let plan =
            plan_container_security(&pod, container, &PodUserns::Node, &image, &NodeSecurity::default());
        assert_eq!(plan.run_as_user, Some(v1::Int64Value { value: 1000 }));
        assert_eq!(plan.run_as_group, Some(v1::Int64Value { value: 5 }));
        assert_eq!(plan.supplemental_groups, [2000, 3000]);
        assert!(plan.no_new_privs && plan.readonly_rootfs && !plan.privileged);
        assert_eq!(plan.capabilities.unwrap().drop_capabilities, ["ALL"]);
        assert_eq!(plan.seccomp.unwrap().profile_type, 0);
        assert_eq!(plan.masked_paths.len(), 12);
        let namespaces = plan.namespace_options.unwrap();
        assert_eq!(namespaces.pid(), v1::NamespaceMode::Container);
        assert_eq!(namespaces.userns_options.unwrap().mode(), v1::NamespaceMode::Node);
    }

    #[test]
    fn unmasked_proc_has_no_masks() {
        let pod = pod(json!({}), json!({"securityContext": {"procMount": "Unmasked"}}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let plan = plan_container_security(
            &pod,
            container,
            &PodUserns::Unspoken,
            &ImageUser::default(),
            &NodeSecurity::default(),
        );
        assert!(plan.masked_paths.is_empty() && plan.readonly_paths.is_empty());
    }

    #[test]
    fn a_privileged_container_of_either_list_makes_the_sandbox_privileged() {
        let sandbox = |spec: serde_json::Value| {
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            plan_sandbox_security(&pod, &PodUserns::Node, &NodeSecurity::default()).privileged
        };
        let (plain, privileged) =
            (json!({"name": "a"}), json!({"name": "b", "securityContext": {"privileged": true}}));
        assert!(!sandbox(json!({"initContainers": [plain], "containers": [plain]})));
        assert!(sandbox(json!({"initContainers": [plain], "containers": [privileged]})));
        assert!(sandbox(json!({"initContainers": [privileged], "containers": [plain]})));
    }

    #[test]
    fn profiles_and_labels_reach_the_runtime() {
        let of_pod =
            json!({"appArmorProfile": {"type": "RuntimeDefault"}, "seLinuxOptions": {"level": "s0:c1"}});
        let plan = |own: serde_json::Value| {
            let pod = pod(of_pod.clone(), own);
            let container = pod.spec.as_ref().unwrap().containers[0].clone();
            let (user, node) = (ImageUser::default(), NodeSecurity::default());
            plan_container_security(&pod, &container, &PodUserns::Unspoken, &user, &node)
        };
        let inherited = plan(json!({}));
        let runtime_default = v1::security_profile::ProfileType::RuntimeDefault;
        assert_eq!(inherited.apparmor.unwrap().profile_type(), runtime_default);
        assert_eq!(inherited.selinux_options.unwrap().level, "s0:c1");
        let own = plan(
            json!({"securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "mine"}}}),
        );
        assert_eq!(own.apparmor.unwrap().localhost_ref, "mine");
    }

    #[test]
    fn a_seccomp_profile_is_the_containers_the_pods_or_the_nodes_default() {
        use v1::security_profile::ProfileType;
        let plan = |of_pod: serde_json::Value, own: serde_json::Value, is_seccomp_default: bool| {
            let pod = pod(of_pod, json!({"securityContext": own}));
            let container = pod.spec.as_ref().unwrap().containers[0].clone();
            let (user, node) = (
                ImageUser::default(),
                NodeSecurity {
                    is_seccomp_default,
                    seccomp_root: "/kubelet/seccomp".into(),
                    ..NodeSecurity::default()
                },
            );
            let plan = plan_container_security(&pod, &container, &PodUserns::Unspoken, &user, &node);
            let profile = plan.seccomp.unwrap();
            (profile.profile_type(), profile.localhost_ref)
        };
        let none = || json!({});
        let named = |kind: &str| json!({"seccompProfile": {"type": kind}});
        let local =
            json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "profiles/mine.json"}});
        let (default, unconfined) =
            ((ProfileType::RuntimeDefault, String::new()), (ProfileType::Unconfined, String::new()));
        assert_eq!(plan(none(), none(), true), default);
        assert_eq!(plan(none(), none(), false), unconfined);
        assert_eq!(plan(named("Unconfined"), none(), true), unconfined);
        assert_eq!(plan(named("Unconfined"), named("RuntimeDefault"), false), default);
        assert_eq!(plan(none(), json!({"privileged": true}), true), unconfined);
        let rooted = json!({"seccompProfile": {"type": "Localhost", "localhostProfile": "/etc/shadow"}});
        assert_eq!(plan(none(), rooted, true).1, "/kubelet/seccomp/etc/shadow");
        let (kind, path) = plan(named("RuntimeDefault"), local, true);
        assert_eq!((kind, path.as_str()), (ProfileType::Localhost, "/kubelet/seccomp/profiles/mine.json"));
    }

    #[test]
    fn an_unsafe_sysctl_is_refused_by_name() {
        let with = |name: &str| pod(json!({"sysctls": [{"name": name, "value": "1"}]}), json!({}));
        assert_eq!(
            forbidden_sysctl(&with("net.ipv4.ip_unprivileged_port_start"), &NodeSecurity::default()),
            None
        );
        assert_eq!(
            forbidden_sysctl(&with("kernel.core_pattern"), &NodeSecurity::default()).unwrap(),
            "forbidden sysctl: \"kernel.core_pattern\" not allowlisted"
        );
        let mut host = with("net.ipv4.tcp_syncookies");
        host.spec.as_mut().unwrap().host_network = Some(true);
        let listed = NodeSecurity { allowed_sysctls: vec!["net.core.*".into()], ..NodeSecurity::default() };
        assert_eq!(forbidden_sysctl(&with("net/core/somaxconn"), &listed), None);
        assert!(forbidden_sysctl(&with("net.cor"), &listed).is_some());
        assert!(forbidden_sysctl(&host, &listed).unwrap().ends_with("not allowed with host net enabled"));
    }
}
