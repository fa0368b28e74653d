//! What the node agent is started with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::NodeAddress;
use kube::Client;
use tokio::net::TcpListener;

use crate::cgroup::CgroupRoots;
use crate::clock::Clock;
use crate::env::ApiService;
use crate::idspace::IdSpaceConfig;
use crate::logs::rotate::LogLimits;
use crate::node::eviction::EvictionSettings;
use crate::node::shutdown::ShutdownConfig;
use crate::pod::dns::ClusterDns;
use crate::server::auth::ServerTls;
use crate::volume::setup::VolumeProbe;

/// Everything that [`run`](crate::run) needs.
pub struct KubeletConfig {
    /// The API, as this node's identity.
    pub client: Client,
    /// The container runtime, both CRI services.
    pub cri: cri::Connection,
    /// The node's name in the API.
    pub node_name: String,
    /// Addresses for the node's status; each `InternalIP` is a host IP of Pods.
    pub addresses: Vec<NodeAddress>,
    /// Further labels of the node, e.g. `node-role.kubernetes.io/control-plane`.
    pub labels: BTreeMap<String, String>,
    /// The Pod network's ranges for the node's spec, at most one of each family.
    pub pod_cidrs: Vec<String>,
    /// Pods that this node runs at most.
    pub max_pods: u32,
    /// The version that the node reports, `v1.36.…`.
    pub kubelet_version: String,
    /// Usually `/var/lib/kubelet`.
    pub kubelet_dir: PathBuf,
    /// Where manifests of static Pods lie, usually `/etc/kubernetes/manifests`; made if it is missing. `None` for none.
    pub static_pod_path: Option<PathBuf>,
    /// Usually `/var/log/pods`.
    pub pod_logs_dir: PathBuf,
    /// Where Pods' cgroups lie.
    pub cgroups: CgroupRoots,
    /// The HTTPS server's listener, from [`listen`](crate::listen).
    pub listener: TcpListener,
    /// The HTTPS server's certificates.
    pub tls: ServerTls,
    /// Where Pods reach the API.
    pub api_service: ApiService,
    /// The cluster's DNS; without servers Pods get the node's.
    pub cluster_dns: ClusterDns,
    /// The node's resolver file, usually `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The gate `UserNamespacesSupport`.
    pub is_userns_on: bool,
    /// What absent `hostUsers` means, unless a namespace's label says otherwise.
    pub userns_policy: userns::policy::Policy,
    /// Use the runtime's seccomp profile where a container names none.
    pub is_seccomp_default: bool,
    /// Unsafe sysctls that Pods may set, by name or by beginning with a trailing `*`.
    pub allowed_sysctls: Vec<String>,
    /// The ID space.
    pub ids: IdSpaceConfig,
    /// Asks the kernel for ID-mapped mounts.
    pub probe: Arc<dyn VolumeProbe>,
    /// The settings in force as `/configz` shows them: the fields of a `KubeletConfiguration`.
    pub configz: serde_json::Value,
    /// When Pods are ended for want of memory, disk or processes.
    pub eviction: EvictionSettings,
    /// What Pods get before the machine is turned off.
    pub shutdown: ShutdownConfig,
    /// When logs are rotated.
    pub log_limits: LogLimits,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for KubeletConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeletConfig").field("node_name", &self.node_name).finish_non_exhaustive()
    }
}
