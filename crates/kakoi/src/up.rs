//! `kakoi up`: puts the roles of one node together. They meet only at the two seams: each has a client of the API
//! with its own identity, and the kubelet has the runtime's CRI.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;

use apiserver::{ApiServer, ApiServerConfig};
use image::ImageStore;
use kubelet::KubeletConfig;
use kubelet::idspace::OpenError;
use network::{Family, PodCidrs, PodNetwork};
use runtime::Runtime;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cli;
use crate::config::{Config, ConfigError};
use crate::instance::{self, LockError};
use crate::node::{self, NodeError, SERVICE};
use crate::notify::notify;
use crate::places::Places;
use crate::roles::{self, ControllersError, KubeletError};
use crate::{ids, machine, output, signal};

/// Why a node can't run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Api(#[from] apiserver::StartError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Cri(#[from] cri::BindError),
    #[error(transparent)]
    Controllers(#[from] ControllersError),
    #[error(transparent)]
    Kubelet(#[from] KubeletError),
    #[error(
        "can't give Pods the addresses {0} alone: they find the API server by IPv4 ({SERVICE}); add an IPv4 range, as in --pod-cidr {0},10.210.0.0/24"
    )]
    NoIpv4(PodCidrs),
    #[error("can't give Pods host IDs: {0}")]
    Ids(#[from] OpenError),
    #[error("can't wait for signals: {0}")]
    Signals(#[from] std::io::Error),
}

/// Runs the node until SIGTERM or SIGINT. The Pods run on.
pub(crate) async fn up(places: &Places, command: &cli::Up) -> Result<(), UpError> {
    instance::require_root()?;
    let config = Config::load(places, &command.flags())?;
    let _lock = instance::take(places.root(), &places.run())?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let ended = signal::ended()?;
    let shutdown = CancellationToken::new();
    let listener = refuse_early(places, &config).await?;
    let (parts, kubelet) = Parts::start(places, &config, listener, &shutdown).await?;
    output::note(format!("export KUBECONFIG={}", places.admin_kubeconfig().display()));
    notify("READY=1");
    let mut kubelet = pin!(kubelet::run(kubelet, None, shutdown.clone()));
    let early = tokio::select! {
        () = ended => None,
        result = &mut kubelet => Some(result),
    };
    notify("STOPPING=1");
    tracing::info!("ending; the Pods run on");
    shutdown.cancel();
    let result = match early {
        Some(result) => result,
        None => kubelet.await,
    };
    parts.join().await;
    Ok(result.map_err(KubeletError::from)?)
}

/// Finds what would stop the kubelet's start before anything is made on the machine: nothing needs to be undone then.
async fn refuse_early(places: &Places, config: &Config) -> Result<TcpListener, UpError> {
    kubelet::idspace::inspect(&ids::space(places, config.ids_per_pod, config.max_pods))?;
    Ok(kubelet::listen(config.kubelet_listen).await.map_err(KubeletError::from)?)
}

/// What runs.
#[derive(Debug)]
struct Parts {
    api: ApiServer,
    images: Arc<ImageStore>,
    runtime: Runtime,
    tasks: TaskTracker,
}

impl Parts {
    async fn start(
        places: &Places,
        config: &Config,
        listener: TcpListener,
        shutdown: &CancellationToken,
    ) -> Result<(Self, KubeletConfig), UpError> {
        let gateway = api_gateway(config.pod_cidrs)?;
        let addresses = node_addresses(config.pod_cidrs);
        let advertise = addresses.iter().copied().chain([gateway]).collect();
        let api = start_api(places, config, advertise, shutdown).await?;
        let images = node::open_images(places).map_err(NodeError::from)?;
        let network = open_network(places, config, &api).await?;
        let handlers = node::handlers(config).map_err(ConfigError::from)?;
        let parts = (images.clone(), network, handlers);
        let runtime = node::start_runtime(places, parts, config.cgroup_driver, shutdown.clone())
            .await
            .map_err(NodeError::from)?;
        runtime.listen(&places.cri_socket()).await?;
        let tasks = TaskTracker::new();
        roles::start_controllers(&api, config, &tasks, shutdown)?;
        let kubelet = roles::kubelet_config(places, config, (&addresses, listener), (&api, &runtime))?;
        Ok((Self { api, images, runtime, tasks }, kubelet))
    }

    async fn join(self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.runtime.shutdown().await;
        self.images.close().await;
        self.api.join().await;
    }
}

/// The bridge's IPv4 address, by which Pods reach the API server.
fn api_gateway(cidrs: PodCidrs) -> Result<IpAddr, UpError> {
    cidrs.of(Family::V4).map(|cidr| cidr.gateway()).ok_or(UpError::NoIpv4(cidrs))
}

/// The node's addresses, one for each family of the Pods' and in their order.
fn node_addresses(cidrs: PodCidrs) -> Vec<IpAddr> {
    let found = cidrs.iter().map(|cidr| machine::address(cidr.family()).unwrap_or_else(|| cidr.gateway()));
    found.collect()
}

async fn start_api(
    places: &Places,
    config: &Config,
    advertise: Vec<IpAddr>,
    shutdown: &CancellationToken,
) -> Result<ApiServer, apiserver::StartError> {
    let api = ApiServerConfig {
        state_dir: places.state(),
        secure_listen: config.secure_listen,
        advertise,
        names: vec![config.node_name.clone()],
        service_ip: IpAddr::V4(*SERVICE.ip()),
        feature_gates: config.gates,
        userns_policy: config.userns_policy,
        ids_per_pod: u32::try_from(config.ids_per_pod).unwrap_or(u32::MAX),
        admin_kubeconfig: places.admin_kubeconfig(),
        access: config.access.clone(),
    };
    apiserver::start(api, shutdown.clone()).await
}

async fn open_network(places: &Places, config: &Config, api: &ApiServer) -> Result<PodNetwork, NodeError> {
    node::note_range(places, config.pod_cidrs)?;
    node::note_plugins(places, None)?;
    Ok(node::open_network(places, config.pod_cidrs, Some(api.address().port())).await?)
}
