//! From a sandbox request to the plan that its shim carries out. Pure: everything that can be refused is
//! refused here, before a directory or a namespace exists.

use cri::v1::{NamespaceMode, NamespaceOption, PodSandboxConfig};
use shim::protocol::{IdMapping, Namespace, PidNamespace, SandboxPlan, Sysctl, UserNamespacePlan};

use crate::error::{Error, Result};
use crate::mapping::{self, IdMap, PodIds};

/// Size of a Pod's `/dev/shm`, in bytes: 64 MiB, as every runtime has it.
const SHM_BYTES: u64 = 64 << 20;

/// Kernel parameters that belong to the Pod's network namespace.
const NETWORK_SYSCTLS: &str = "net.";

/// Kernel parameters that belong to the Pod's IPC namespace.
const IPC_SYSCTLS: [&str; 9] = [
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "fs.mqueue.",
];

const PING_GROUPS: &str = "net.ipv4.ping_group_range";

/// What a sandbox request asks for, parsed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) ids: Option<PodIds>,
    pub(crate) network: Namespace,
    pub(crate) plan: SandboxPlan,
}

/// Works out the shim's plan. `is_account` says whether a host UID belongs to an account or a sub-ID owner of
/// the node: such a UID must not be charged for the Pod's namespaces, so root creates them then.
pub(crate) fn plan_sandbox(
    id: &str,
    config: &PodSandboxConfig,
    is_account: impl Fn(u32) -> bool,
) -> Result<Wanted> {
    let options = options(config);
    let ids = mapping::parse(options)?;
    let default = NamespaceOption::default();
    let options = options.unwrap_or(&default);
    let network = namespace("network", options.network)?;
    let ipc = namespace("ipc", options.ipc)?;
    let pid = pid_namespace(options.pid)?;
    check_combination(ids, ipc, pid)?;
    let user_namespace = ids.map(|ids| UserNamespacePlan {
        uids: extent(ids.uids),
        gids: extent(ids.gids),
        creator_uid: if is_account(ids.uids.host) { 0 } else { ids.uids.host },
    });
    let plan = SandboxPlan {
        id: id.to_owned(),
        user_namespace,
        network,
        ipc,
        uts: network,
        pid,
        hostname: config.hostname.clone(),
        sysctls: sysctls(config, network, ipc, ids)?,
        shm_size: SHM_BYTES,
        faults: Vec::new(),
    };
    Ok(Wanted { ids, network, plan })
}

/// The sandbox's namespace options, where it has any.
pub(crate) fn options(config: &PodSandboxConfig) -> Option<&NamespaceOption> {
    config.linux.as_ref()?.security_context.as_ref()?.namespace_options.as_ref()
}

/// The cgroup below which the kubelet wants the Pod's containers.
pub(crate) fn cgroup_parent(config: &PodSandboxConfig) -> &str {
    config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str())
}

/// Whether the sandbox was asked for as privileged.
pub(crate) fn is_privileged(config: &PodSandboxConfig) -> bool {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .is_some_and(|context| context.privileged)
}

fn namespace(what: &str, mode: i32) -> Result<Namespace> {
    match NamespaceMode::try_from(mode) {
        Ok(NamespaceMode::Pod) => Ok(Namespace::Pod),
        Ok(NamespaceMode::Node) => Ok(Namespace::Node),
        _ => Err(Error::Invalid(format!("the {what} namespace mode {mode} is unsupported; use POD or NODE"))),
    }
}

fn pid_namespace(mode: i32) -> Result<PidNamespace> {
    match NamespaceMode::try_from(mode) {
        Ok(NamespaceMode::Pod) => Ok(PidNamespace::Pod),
        // A container that targets another one says so itself; its sandbox is like any other.
        Ok(NamespaceMode::Container | NamespaceMode::Target) => Ok(PidNamespace::Container),
        Ok(NamespaceMode::Node) => Ok(PidNamespace::Node),
        Err(_) => Err(Error::Invalid(format!("the pid namespace mode {mode} is unknown"))),
    }
}

fn check_combination(ids: Option<PodIds>, ipc: Namespace, pid: PidNamespace) -> Result<()> {
    let refuse = |what: &str| {
        Err(Error::Invalid(format!(
            "a Pod with its own user namespace can't use the node's {what} namespace: the kernel lets it mount \
             neither proc nor mqueue there; leave {what} to the Pod or set `hostUsers: true`"
        )))
    };
    match (ids, ipc, pid) {
        (Some(_), Namespace::Node, _) => refuse("IPC"),
        (Some(_), _, PidNamespace::Node) => refuse("PID"),
        _ => Ok(()),
    }
}

fn extent(map: IdMap) -> Vec<IdMapping> {
    vec![IdMapping { container_id: 0, host_id: map.host, size: map.length }]
}

fn sysctls(
    config: &PodSandboxConfig,
    network: Namespace,
    ipc: Namespace,
    ids: Option<PodIds>,
) -> Result<Vec<Sysctl>> {
    let Some(linux) = &config.linux else { return Ok(Vec::new()) };
    let mut planned = Vec::new();
    for (name, value) in &linux.sysctls {
        let name = name.replace('/', ".");
        check_sysctl(&name, network, ipc)?;
        let value = if name == PING_GROUPS { ping_groups(value, ids) } else { value.clone() };
        planned.push(Sysctl { name, value });
    }
    Ok(planned)
}

fn check_sysctl(name: &str, network: Namespace, ipc: Namespace) -> Result<()> {
    let owner = if name.starts_with(NETWORK_SYSCTLS) {
        Some(("network", network))
    } else if IPC_SYSCTLS
        .iter()
        .any(|known| name == *known || (known.ends_with('.') && name.starts_with(known)))
    {
        Some(("IPC", ipc))
    } else {
        None
    };
    match owner {
        Some((_, Namespace::Pod)) => Ok(()),
        Some((what, Namespace::Node)) => Err(Error::Invalid(format!(
            "the sysctl {name} would change the node: the Pod uses the node's {what} namespace; remove the sysctl \
             or give the Pod its own {what} namespace"
        ))),
        None => Err(Error::Invalid(format!(
            "the sysctl {name} belongs to no namespace of a Pod and would change the node; remove it"
        ))),
    }
}

/// The kernel refuses a range that is not mapped, so "everyone" becomes "every group of the Pod" (as in CRI-O).
fn ping_groups(value: &str, ids: Option<PodIds>) -> String {
    let words: Vec<&str> = value.split_whitespace().collect();
    match (ids, words.as_slice()) {
        (Some(ids), ["0", "2147483647"]) => format!("0 {}", ids.gids.length - 1),
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use cri::v1::{
        IdMapping as CriMapping, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, UserNamespace,
    };

    use super::*;

    fn config(options: NamespaceOption, sysctls: &[(&str, &str)]) -> PodSandboxConfig {
        let context = LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..LinuxSandboxSecurityContext::default()
        };
        let sysctls = sysctls.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let linux = LinuxPodSandboxConfig {
            security_context: Some(context),
            sysctls,
            ..LinuxPodSandboxConfig::default()
        };
        PodSandboxConfig { hostname: "pod".into(), linux: Some(linux), ..PodSandboxConfig::default() }
    }

    fn fenced() -> NamespaceOption {
        let line = vec![CriMapping { host_id: 131_072, container_id: 0, length: 65_536 }];
        let user = UserNamespace { mode: NamespaceMode::Pod.into(), uids: line.clone(), gids: line };
        NamespaceOption {
            pid: NamespaceMode::Container.into(),
            userns_options: Some(user),
            ..NamespaceOption::default()
        }
    }

    fn planned(options: NamespaceOption, sysctls: &[(&str, &str)]) -> Result<SandboxPlan> {
        plan_sandbox("id", &config(options, sysctls), |_| false).map(|wanted| wanted.plan)
    }

    #[test]
    fn the_plan_of_a_fenced_pod_is_the_golden_one() {
        let plan = planned(fenced(), &[("net.ipv4.ping_group_range", "0 2147483647")]).unwrap();
        let expected = serde_json::json!({
            "id": "id",
            "user_namespace": {
                "uids": [{"container_id": 0, "host_id": 131_072, "size": 65_536}],
                "gids": [{"container_id": 0, "host_id": 131_072, "size": 65_536}],
                "creator_uid": 131_072,
            },
            "network": "Pod", "ipc": "Pod", "uts": "Pod", "pid": "Container",
            "hostname": "pod",
            "sysctls": [{"name": "net.ipv4.ping_group_range", "value": "0 65535"}],
            "shm_size": 67_108_864,
            "faults": [],
        });
        assert_eq!(serde_json::to_value(plan).unwrap(), expected);
    }

    #[test]
    fn an_account_of_the_node_is_not_charged_for_a_pod() {
        let wanted = plan_sandbox("id", &config(fenced(), &[]), |uid| uid == 131_072).unwrap();
        assert_eq!(wanted.plan.user_namespace.unwrap().creator_uid, 0);
    }

    #[test]
    fn g05_a_namespaced_sysctl_is_taken() {
        let plan = planned(fenced(), &[("net/ipv4/ip_unprivileged_port_start", "0")]).unwrap();
        assert_eq!(plan.sysctls[0].name, "net.ipv4.ip_unprivileged_port_start");
        planned(fenced(), &[("fs.mqueue.msg_max", "100"), ("kernel.sem", "1 2 3 4")]).unwrap();
    }

    #[test]
    fn g06_a_sysctl_of_the_node_is_refused_by_name() {
        for name in ["kernel.core_pattern", "vm.swappiness", "kernel.shmallx", "fs.mqueuex"] {
            let message = planned(fenced(), &[(name, "1")]).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
        let host_network =
            NamespaceOption { network: NamespaceMode::Node.into(), ..NamespaceOption::default() };
        planned(host_network, &[("net.core.somaxconn", "1")]).unwrap_err();
    }

    #[test]
    fn a_fenced_pod_with_the_nodes_ipc_or_pid_namespace_is_refused() {
        let node = NamespaceMode::Node.into();
        assert!(
            planned(NamespaceOption { ipc: node, ..fenced() }, &[]).unwrap_err().to_string().contains("IPC")
        );
        assert!(
            planned(NamespaceOption { pid: node, ..fenced() }, &[]).unwrap_err().to_string().contains("PID")
        );
    }

    #[test]
    fn the_host_name_is_the_nodes_when_the_network_is() {
        let plan = planned(NamespaceOption { network: NamespaceMode::Node.into(), ..fenced() }, &[]).unwrap();
        assert_eq!((plan.network, plan.uts), (Namespace::Node, Namespace::Node));
        planned(NamespaceOption { network: 7, ..fenced() }, &[]).unwrap_err();
    }
}
