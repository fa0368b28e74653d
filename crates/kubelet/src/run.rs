//! Starts the node agent's parts in their order, and ends them together.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use cri::v1;
use k8s_openapi::api::core::v1::NodeAddress;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use userns::{Finding, LiveSandbox};

use crate::cgroup::{CgroupDriver, PodCgroups};
use crate::config::KubeletConfig;
use crate::csi::Csi;
use crate::env::link::{Links, follow_links};
use crate::event::Recorder;
use crate::idspace::{IdSpace, OpenError, host_ranges};
use crate::logs::rotate::Rotator;
use crate::manifest::ManifestSource;
use crate::metrics::Metrics;
use crate::node::eviction::EvictionSettings;
use crate::node::machine::{Machine, Pressure};
use crate::node::pressure::watch_pressure;
use crate::node::runtime_info::{ask, follow_runtime};
use crate::node::shutdown::{ShutdownConfig, follow_shutdown};
use crate::node::{NodeSettings, run_node};
use crate::object::cache::ObjectCache;
use crate::places::Places;
use crate::pod::image::Puller;
use crate::pod::security::NodeSecurity;
use crate::pod::worker::adopt::Turns;
use crate::pods::run_pods;
use crate::registry::Registry;
use crate::runtime::event::{Wake, follow_events};
use crate::runtime::observe::EndedContainers;
use crate::runtime::{Cri, CriError, pid_of};
use crate::server::Server;
use crate::server::auth::{TlsError, server_config};
use crate::shared::{RuntimeInfo, Shared};
use crate::uid::PodUid;

/// Why the node agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The ID space cannot be opened.
    #[error("open the ID space: {0}")]
    Ids(#[from] OpenError),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The HTTPS server cannot listen.
    #[error(
        "the kubelet cannot listen on {address}: port {} is in use by another program; stop that program or choose \
         another port with --kubelet-port", .address.port()
    )]
    PortInUse {
        /// Where.
        address: SocketAddr,
    },
    /// The HTTPS server cannot listen for another reason.
    #[error(
        "the kubelet cannot listen on {address}: {source}; choose another address with --bind-address or another \
         port with --kubelet-port"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The kernel gives no inotify instance, or the mount table cannot be read.
    #[error("prepare the kubelet: {0}")]
    System(#[from] std::io::Error),
    /// A part of the node agent broke off.
    #[error("the kubelet's start broke off: {0}")]
    Task(#[from] tokio::task::JoinError),
}

const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Runs the node agent until `shutdown`; running Pods go on. `ready` gets the HTTPS server's address once the parts run.
///
/// # Errors
/// When the configuration or the machine does not let it start. Later failures are retried and logged.
pub async fn run(
    config: KubeletConfig,
    ready: Option<oneshot::Sender<SocketAddr>>,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let tls = server_config(&config.tls)?;
    let cri = Cri::new(config.cri.clone());
    let Some((info, driver, live)) = first_look(&cri, &shutdown).await else { return Ok(()) };
    let config = with_driver(config, driver);
    let ids_config = config.ids.clone();
    let (ids, findings) = tokio::task::spawn_blocking(move || IdSpace::open(ids_config, &live)).await??;
    let ids = Arc::new(ids);
    let (parts, listener) = Parts::new(config, cri, info, Arc::clone(&ids), &findings)?;
    let port = Port { address: listener.local_addr()?, listener, tls };
    parts.run(port, ids, ready, shutdown).await;
    Ok(())
}

/// Takes the address of the kubelet's HTTPS server; port 0 picks one. Apart from [`run`], so that a port in use is said
/// before anything is made.
///
/// # Errors
/// [`RunError::PortInUse`] or [`RunError::Listen`].
pub async fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => RunError::PortInUse { address },
        _ => RunError::Listen { address, source },
    })
}

/// The runtime's description, its cgroup driver if it says which, and its sandboxes.
type FirstLook = (RuntimeInfo, Option<CgroupDriver>, Vec<LiveSandbox>);

/// The runtime's cgroup driver wins over the configuration's (KEP-4033): two that differ would not find each other's
/// groups.
fn with_driver(mut config: KubeletConfig, runtimes: Option<CgroupDriver>) -> KubeletConfig {
    if let Some(driver) = runtimes {
        if driver != config.cgroups.driver {
            tracing::info!(configured = ?config.cgroups.driver, ?driver, "the runtime's cgroup driver is taken");
        }
        config.cgroups.driver = driver;
    }
    config
}

/// What the runtime says of itself and which sandboxes it has; asked until it answers.
async fn first_look(cri: &Cri, shutdown: &CancellationToken) -> Option<FirstLook> {
    let mut wait = FIRST_WAIT;
    loop {
        let look = async {
            Ok::<_, CriError>((ask(cri).await?, cri.cgroup_driver().await?, live_sandboxes(cri).await?))
        };
        match shutdown.run_until_cancelled(look).await? {
            Ok(seen) => return Some(seen),
            Err(error) => tracing::warn!(%error, ?wait, "the runtime does not answer; it is asked again"),
        }
        shutdown.run_until_cancelled(tokio::time::sleep(wait)).await?;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Every sandbox with the host IDs that its processes really have.
async fn live_sandboxes(cri: &Cri) -> Result<Vec<LiveSandbox>, CriError> {
    let listed = cri.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await?;
    let mut live = Vec::new();
    for item in listed.items {
        let uid = item.metadata.as_ref().and_then(|metadata| PodUid::parse(&metadata.uid).ok());
        let Some(pod) = uid else { continue };
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: item.id.clone(), verbose: true };
        let status = match cri.pod_sandbox_status(request).await {
            Err(error) if error.is_not_found() => continue,
            other => other?,
        };
        live.push(LiveSandbox { pod, id: item.id, maps: maps(&status) });
    }
    Ok(live)
}

/// The ranges of the process that verbose status names, and those that the sandbox was asked to have.
fn maps(status: &v1::PodSandboxStatusResponse) -> Vec<userns::IdRange> {
    let pid = pid_of(&status.info);
    let real = pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/uid_map")).ok());
    let real = real.map(|text| host_ranges(&text)).unwrap_or_default();
    if !real.is_empty() {
        return real;
    }
    let options = status.status.as_ref().and_then(|status| status.linux.as_ref());
    let options = options.and_then(|linux| linux.namespaces.as_ref()?.options.as_ref());
    let asked = options.and_then(|options| options.userns_options.as_ref());
    let lines = asked.iter().flat_map(|asked| &asked.uids);
    lines
        .filter_map(|line| userns::IdRange::new(u64::from(line.host_id), u64::from(line.length)).ok())
        .collect()
}

/// Where the HTTPS server listens.
struct Port {
    listener: TcpListener,
    address: SocketAddr,
    tls: rustls::ServerConfig,
}

/// All parts, made but not running.
struct Parts {
    shared: Arc<Shared>,
    runtime: watch::Sender<RuntimeInfo>,
    links: watch::Sender<Links>,
    rotator: Arc<Rotator>,
    settings: NodeSettings,
    manifests: Option<ManifestSource>,
    pressure: (watch::Sender<Pressure>, EvictionSettings),
    shutdown: (watch::Sender<bool>, ShutdownConfig),
    events: futures::future::BoxFuture<'static, ()>,
}

impl Parts {
    fn new(
        config: KubeletConfig,
        cri: Cri,
        info: RuntimeInfo,
        ids: Arc<IdSpace>,
        findings: &[Finding],
    ) -> Result<(Self, TcpListener), RunError> {
        let security = node_security(&config);
        let tasks = TaskTracker::new();
        let stop = CancellationToken::new();
        let (pressure, pressure_seen) = watch::channel(Pressure::default());
        let (runtime, runtime_info) = watch::channel(info);
        let (shutting_down, shutdown_seen) = watch::channel(false);
        let (links, links_seen) = watch::channel(None);
        let clock = config.clock.clone();
        let (recorder, events) = Recorder::new(config.client.clone(), &config.node_name, clock.clone());
        let machine = Machine::read(&config.kubelet_dir);
        let gates = api::feature::Gates::default()
            .with(api::feature::Feature::UserNamespacesSupport, config.is_userns_on);
        let node = config.node_name.clone();
        let manifests = config.static_pod_path.map(|directory| ManifestSource { directory, node, gates });
        let rotator = Rotator::new(cri.clone(), clock.clone(), config.log_limits)?;
        let places = Places::new(config.kubelet_dir.clone(), config.pod_logs_dir);
        let shared = Arc::new(Shared {
            objects: ObjectCache::new(config.client.clone(), tasks.clone(), stop.clone()),
            puller: Puller::new(cri.clone(), clock.clone()),
            csi: Csi::new(
                config.client.clone(),
                config.node_name.clone(),
                config.kubelet_dir.clone(),
                places.clone(),
            ),
            client: config.client,
            cri,
            runtime: runtime_info,
            clock,
            places,
            events: recorder,
            findings: findings.iter().map(|finding| (finding.pod.clone(), finding.message.clone())).collect(),
            ids,
            faults: Arc::clone(&config.ids.faults),
            is_userns_on: config.is_userns_on,
            userns_policy: config.userns_policy,
            ids_per_pod: u32::try_from(config.ids.ids_per_pod).unwrap_or(u32::MAX),
            probe: config.probe,
            ended: EndedContainers::default(),
            metrics: Metrics::new(),
            cgroups: PodCgroups::open(config.cgroups, config.shutdown.bus.clone())?,
            node_name: config.node_name,
            host_ips: host_ips(&config.addresses),
            api_service: config.api_service,
            links: links_seen,
            cluster_dns: config.cluster_dns,
            resolv_conf: config.resolv_conf,
            security,
            allocatable: machine.allocatable(config.max_pods),
            huge_pages: machine.huge_pages.clone(),
            memory: i64::try_from(machine.memory).unwrap_or(i64::MAX),
            configz: config.configz,
            registry: Registry::default(),
            turns: Turns::default(),
            shutting_down: shutdown_seen,
            pods_seen: watch::Sender::default(),
            room: tokio::sync::Notify::new(),
            mirrors: watch::Sender::default(),
            rotator: Arc::clone(&rotator),
            tasks,
            shutdown: stop,
        });
        let settings = NodeSettings {
            addresses: config.addresses,
            port: 0,
            kubelet_version: config.kubelet_version,
            max_pods: config.max_pods,
            labels: config.labels,
            pod_cidrs: config.pod_cidrs,
            machine,
            pressure: pressure_seen,
        };
        let events = Box::pin(events);
        let pressure = (pressure, config.eviction);
        let shutdown = (shutting_down, config.shutdown);
        Ok((
            Self { shared, runtime, links, rotator, settings, manifests, pressure, shutdown, events },
            config.listener,
        ))
    }

    async fn run(
        mut self,
        port: Port,
        ids: Arc<IdSpace>,
        ready: Option<oneshot::Sender<SocketAddr>>,
        shutdown: CancellationToken,
    ) {
        let Port { listener, address, tls } = port;
        let shared = self.shared;
        let stop = shared.shutdown.clone();
        self.settings.port = address.port();
        let events = {
            let (events, stop) = (self.events, stop.clone());
            async move {
                stop.run_until_cancelled(events).await;
            }
        };
        let wakes = Arc::clone(&shared);
        shared.tasks.spawn(events);
        shared.tasks.spawn(follow_events(
            shared.cri.clone(),
            move |wake| wakes.registry.wake(&wake),
            stop.clone(),
        ));
        shared.tasks.spawn(follow_runtime(shared.cri.clone(), self.runtime, stop.clone()));
        shared.tasks.spawn(follow_links(shared.client.clone(), self.links, stop.clone()));
        shared.tasks.spawn(self.rotator.run(stop.clone()));
        let sets = Arc::clone(&shared);
        shared.tasks.spawn(async move {
            let told = sets.clock.follow_sets(|| sets.registry.wake(&Wake::All));
            sets.shutdown.run_until_cancelled(told).await;
        });
        let plugins = Arc::clone(&shared);
        let stops = stop.clone();
        shared.tasks.spawn(async move {
            plugins.csi.follow(|| plugins.registry.wake(&Wake::All), stops).await;
        });
        let (told, thresholds) = self.pressure;
        shared.tasks.spawn(watch_pressure(Arc::clone(&shared), thresholds, told, stop.clone()));
        let (told, config) = self.shutdown;
        shared.tasks.spawn(follow_shutdown(Arc::clone(&shared), config, told, stop.clone()));
        shared.tasks.spawn(run_node(Arc::clone(&shared), self.settings, stop.clone()));
        let server = Arc::new(Server::new(Arc::clone(&shared), move || Some(ids.gauges())));
        shared.tasks.spawn(server.run(listener, tls, stop.clone()));
        let pods = tokio::spawn(run_pods(Arc::clone(&shared), self.manifests, stop.clone()));
        if let Some(ready) = ready {
            // Nobody may be waiting for it.
            let _ = ready.send(address);
        }
        shutdown.cancelled().await;
        stop.cancel();
        if let Err(error) = pods.await {
            tracing::error!(%error, "the Pods' owner broke off");
        }
        shared.tasks.close();
        shared.tasks.wait().await;
    }
}

fn node_security(config: &KubeletConfig) -> NodeSecurity {
    NodeSecurity {
        is_seccomp_default: config.is_seccomp_default,
        allowed_sysctls: config.allowed_sysctls.clone(),
        seccomp_root: config.kubelet_dir.join("seccomp"),
        thermal_paths: thermal_paths(),
    }
}

fn host_ips(addresses: &[NodeAddress]) -> Vec<String> {
    let internal = addresses.iter().filter(|address| address.type_ == "InternalIP");
    internal.map(|address| address.address.clone()).collect()
}

/// Existing per-processor files that tell about throttling; they are masked in containers.
fn thermal_paths() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path().join("thermal_throttle")).filter(|path| path.exists());
    let mut paths: Vec<String> = paths.map(|path| path.display().to_string()).collect();
    paths.sort();
    paths
}
