//! The roles that are clients of the API: kubelet, scheduler and controllers, each with its own identity.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use api::feature::Feature;
use apiserver::{ApiServer, Identity, PkiError};
use controller::{Authority, AuthorityError, ControllerConfig};
use k8s_openapi::api::core::v1::NodeAddress;
use kube::Client;
use kubelet::{
    ApiService, Clock, ClusterDns, EvictionSettings, KubeletConfig, LogLimits, RunError, ServerTls,
    ServingCertificate, VolumeProbe,
};
use runtime::Runtime;
use scheduler::Fencing;
use sys::mount::BindError;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use userns::policy::Policy;

use crate::config::Config;
use crate::node::SERVICE;
use crate::places::Places;
use crate::{ids, machine, shutdown};

/// The namespace of requests that name none.
const NAMESPACE: &str = "default";

/// A client of the API in this process.
pub(crate) fn client(api: &ApiServer, identity: Identity) -> Client {
    Client::new(api.service_for(identity), NAMESPACE)
}

/// Starts the scheduler and the controllers.
pub(crate) fn start_controllers(
    api: &ApiServer,
    settings: &Config,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) -> Result<(), ControllersError> {
    let is_on = settings.gates.is_enabled(Feature::UserNamespacesSupport);
    let fencing = if is_on { fencing(settings.userns_policy) } else { Fencing::Some };
    tasks.spawn(scheduler::run(client(api, Identity::scheduler()), fencing, shutdown.clone()));
    let pair = api.signing_pair()?;
    let mut authority = Authority::new(&pair.certificate_pem, &pair.key_pem)?;
    if let Some(duration) = settings.signing_duration {
        authority = authority.with_duration(duration);
    }
    let config =
        ControllerConfig { authority: Some(Arc::new(authority)), ..ControllerConfig::new(api.ca_pem()) };
    tasks.spawn(controller::run(client(api, Identity::controller_manager()), config, shutdown.clone()));
    Ok(())
}

/// Why the controllers can't run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControllersError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Which Pods must be fenced, under a policy for all nodes.
pub(crate) const fn fencing(policy: Policy) -> Fencing {
    match policy {
        Policy::Always => Fencing::All,
        Policy::Default | Policy::OptIn => Fencing::Some,
    }
}

/// Why the kubelet can't run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KubeletError {
    #[error("make the kubelet's certificate: {0}")]
    Certificate(#[from] PkiError),
    #[error("make a user namespace to probe volumes with: {0}")]
    Probe(#[source] io::Error),
    #[error(transparent)]
    Run(#[from] RunError),
}

/// The kubelet's settings.
pub(crate) fn kubelet_config(
    places: &Places,
    config: &Config,
    (addresses, listener): (&[IpAddr], TcpListener),
    (api, runtime): (&ApiServer, &Runtime),
) -> Result<KubeletConfig, KubeletError> {
    let name = &config.node_name;
    let common_name = format!("system:node:{name}");
    let serving = api.issue_serving_certificate(&common_name, std::slice::from_ref(name), addresses)?;
    Ok(KubeletConfig {
        client: client(api, Identity::node(name)),
        cri: runtime.connect(),
        node_name: name.clone(),
        addresses: node_addresses(addresses, name),
        labels: BTreeMap::from([("node-role.kubernetes.io/control-plane".to_owned(), String::new())]),
        pod_cidrs: config.pod_cidrs.iter().map(|cidr| cidr.to_string()).collect(),
        max_pods: config.max_pods,
        kubelet_version: apiserver::KUBERNETES_VERSION.to_owned(),
        kubelet_dir: places.kubelet(),
        pod_logs_dir: places.pod_logs(),
        static_pod_path: Some(places.manifests()),
        cgroups: config.cgroup_driver.roots(places),
        listener,
        tls: ServerTls {
            serving: ServingCertificate::Fixed {
                certificate: serving.certificate_pem.clone().into_bytes(),
                key: serving.key_pem.clone().into_bytes(),
            },
            client_ca: api.ca_pem().as_bytes().to_vec(),
        },
        api_service: ApiService { host: SERVICE.ip().to_string(), port: SERVICE.port() },
        cluster_dns: ClusterDns { servers: Vec::new(), domain: "cluster.local".to_owned() },
        resolv_conf: machine::resolver(),
        is_userns_on: config.gates.is_enabled(Feature::UserNamespacesSupport),
        userns_policy: config.userns_policy,
        is_seccomp_default: true,
        allowed_sysctls: Vec::new(),
        ids: ids::space(places, config.ids_per_pod, config.max_pods),
        configz: serde_json::json!({"maxPods": config.max_pods, "userNamespaces": {"idsPerPod": config.ids_per_pod}}),
        probe: Arc::new(KernelProbe::new().map_err(KubeletError::Probe)?),
        eviction: EvictionSettings::default(),
        shutdown: shutdown::on_this_machine(config.shutdown.clone(), systemd::Bus::system()),
        log_limits: LogLimits::default(),
        clock: Clock::system(),
    })
}

/// The addresses of a node's status.
pub(crate) fn node_addresses(internal: &[IpAddr], name: &str) -> Vec<NodeAddress> {
    let internal = internal.iter().map(|address| ("InternalIP", address.to_string()));
    let all = internal.chain([("Hostname", name.to_owned())]);
    all.map(|(kind, address)| NodeAddress { type_: kind.to_owned(), address }).collect()
}

/// Asks the kernel, with a user namespace that nobody lives in, whether a filesystem can be ID-mapped.
#[derive(Debug)]
pub(crate) struct KernelProbe(OwnedFd);

impl KernelProbe {
    /// A probe with a namespace of its own.
    pub(crate) fn new() -> io::Result<Self> {
        let map = [sys::idmap::IdMapping { container_id: 0, host_id: 65_536, size: 65_536 }];
        sys::idmap::namespace_with(&map, &map).map(Self)
    }
}

impl VolumeProbe for KernelProbe {
    fn can_map(&self, path: &Path) -> io::Result<bool> {
        match sys::mount::is_id_mappable(path, self.0.as_fd()) {
            Ok(()) => Ok(true),
            Err(BindError::NotIdMappable { .. }) => Ok(false),
            Err(other) => Err(io::Error::other(other)),
        }
    }
}
