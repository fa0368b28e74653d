//! What all parts of the node agent share.

use std::path::PathBuf;
use std::sync::Arc;

use cri::v1;
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cgroup::PodCgroups;
use crate::clock::Clock;
use crate::csi::Csi;
use crate::env::ApiService;
use crate::env::link::Links;
use crate::event::Recorder;
use crate::fault::{CrashPoint, Faults};
use crate::huge::Pools;
use crate::logs::rotate::Rotator;
use crate::manifest::mirror::Mirrors;
use crate::metrics::Metrics;
use crate::object::cache::ObjectCache;
use crate::places::Places;
use crate::pod::dns::ClusterDns;
use crate::pod::image::Puller;
use crate::pod::security::NodeSecurity;
use crate::pod::worker::adopt::Turns;
use crate::quantity::Amounts;
use crate::registry::Registry;
use crate::runtime::Cri;
use crate::runtime::observe::EndedContainers;
use crate::uid::PodUid;
use crate::userns::IdAllocator;
use crate::volume::setup::VolumeProbe;

/// What the runtime says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct RuntimeInfo {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) is_ready: bool,
    /// Why it is not ready.
    pub(crate) problem: String,
    pub(crate) handlers: Vec<v1::RuntimeHandler>,
    pub(crate) features: v1::RuntimeFeatures,
    /// Why the default handler makes no user namespaces, where the runtime says so.
    pub(crate) userns_problem: String,
}

/// Everything a Pod worker works with.
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) cri: Cri,
    pub(crate) runtime: watch::Receiver<RuntimeInfo>,
    pub(crate) clock: Clock,
    pub(crate) places: Places,
    pub(crate) events: Recorder,
    pub(crate) objects: ObjectCache,
    /// What was found wrong with records of host IDs at start, by Pod.
    pub(crate) findings: Vec<(PodUid, String)>,
    /// Drivers of volumes.
    pub(crate) csi: Csi,
    pub(crate) ids: Arc<dyn IdAllocator>,
    /// Faults to be injected by tests.
    pub(crate) faults: Arc<dyn Faults>,
    pub(crate) is_userns_on: bool,
    pub(crate) userns_policy: userns::policy::Policy,
    pub(crate) ids_per_pod: u32,
    pub(crate) probe: Arc<dyn VolumeProbe>,
    pub(crate) puller: Puller,
    pub(crate) ended: EndedContainers,
    pub(crate) metrics: Metrics,
    pub(crate) cgroups: PodCgroups,
    pub(crate) node_name: String,
    pub(crate) host_ips: Vec<String>,
    pub(crate) api_service: ApiService,
    /// The cluster's Services.
    pub(crate) links: watch::Receiver<Links>,
    pub(crate) cluster_dns: ClusterDns,
    pub(crate) resolv_conf: PathBuf,
    pub(crate) security: NodeSecurity,
    pub(crate) allocatable: Amounts,
    pub(crate) huge_pages: Pools,
    /// The node's memory in bytes.
    pub(crate) memory: i64,
    /// The configuration as `/configz` shows it.
    pub(crate) configz: serde_json::Value,
    pub(crate) registry: Registry,
    /// In which order Pods that were found running are looked after.
    pub(crate) turns: Turns,
    /// The machine is about to be turned off.
    pub(crate) shutting_down: watch::Receiver<bool>,
    /// What the API has bound here has been seen.
    pub(crate) pods_seen: watch::Sender<bool>,
    /// Told when a Pod has left the node.
    pub(crate) room: tokio::sync::Notify,
    /// Static Pods and what the API shows of them.
    pub(crate) mirrors: watch::Sender<Mirrors>,
    pub(crate) rotator: Arc<Rotator>,
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("node_name", &self.node_name).finish_non_exhaustive()
    }
}

impl Shared {
    /// A step is done after which a crash would leave something behind.
    pub(crate) fn reached(&self, point: CrashPoint) {
        self.faults.reached(point);
    }

    /// The resolver of the node, read anew: it may have changed.
    pub(crate) fn node_resolver(&self) -> crate::pod::dns::Resolver {
        let text = std::fs::read_to_string(&self.resolv_conf).unwrap_or_default();
        let file = crate::pod::dns::node_resolver_file(&self.resolv_conf, &text);
        let text =
            if file == self.resolv_conf { text } else { std::fs::read_to_string(&file).unwrap_or(text) };
        crate::pod::dns::parse_resolver(&text)
    }
}
