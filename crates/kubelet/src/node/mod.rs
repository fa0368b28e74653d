//! The node in the API: registered at start, its status when something changes, its lease as a heartbeat.

mod collect;
pub(crate) mod eviction;
pub(crate) mod lease;
pub(crate) mod machine;
pub(crate) mod pressure;
pub(crate) mod runtime_info;
pub(crate) mod shutdown;
mod stall;
pub(crate) mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeCondition};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Error};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::event::Kind;
use crate::shared::Shared;
use machine::{Machine, Pressure};
use status::{NodeInput, plan_labels, plan_node, plan_status};

/// How often the status is sent although nothing seems to have changed, as upstream's report frequency.
const REPORT: Duration = Duration::from_mins(5);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What the configuration says of the node.
#[derive(Clone, Debug)]
pub(crate) struct NodeSettings {
    pub(crate) addresses: Vec<NodeAddress>,
    pub(crate) port: u16,
    pub(crate) kubelet_version: String,
    pub(crate) max_pods: u32,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) pod_cidrs: Vec<String>,
    pub(crate) machine: Machine,
    /// What the node runs short of.
    pub(crate) pressure: watch::Receiver<Pressure>,
}

/// Registers the node and keeps its status and lease until `shutdown`.
pub(crate) async fn run_node(shared: Arc<Shared>, settings: NodeSettings, shutdown: CancellationToken) {
    let reporter = Reporter { api: Api::all(shared.client.clone()), shared: Arc::clone(&shared), settings };
    let registered = Box::pin(retry(&shutdown, "register the node", || reporter.register())).await;
    let Some(node) = registered else { return };
    shared.events.node(Kind::Normal, "Starting", "Starting kubelet.");
    let leases =
        lease::renew_leases(shared.client.clone(), node.clone(), shared.clock.clone(), shutdown.clone());
    tokio::join!(leases, reporter.report(node, &shutdown));
}

/// Tries until it works; `None` at shutdown.
async fn retry<T, F: Future<Output = Result<T, Error>>>(
    shutdown: &CancellationToken,
    what: &str,
    action: impl Fn() -> F,
) -> Option<T> {
    let mut wait = FIRST_WAIT;
    loop {
        match shutdown.run_until_cancelled(action()).await? {
            Ok(done) => return Some(done),
            Err(error) => tracing::warn!(%error, ?wait, "cannot {what}; it is tried again"),
        }
        shutdown.run_until_cancelled(tokio::time::sleep(wait)).await?;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

struct Reporter {
    api: Api<Node>,
    shared: Arc<Shared>,
    settings: NodeSettings,
}

impl Reporter {
    /// Creates the node's object, or brings the labels of the one that is there up to date.
    async fn register(&self) -> Result<Node, Error> {
        let images = self.images().await;
        let runtime = self.shared.runtime.borrow().clone();
        let input = self.input(&runtime, &images, &[]);
        match self.api.create(&PostParams::default(), &plan_node(input)).await {
            Err(Error::Api(status)) if status.code == 409 => {
                let patch = json!({"metadata": {"labels": plan_labels(input)}});
                let node = self
                    .api
                    .patch(&self.shared.node_name, &PatchParams::default(), &Patch::Merge(patch))
                    .await?;
                self.send(&node).await
            }
            other => other,
        }
    }

    /// Sends the status at each change of the runtime's, and now and then.
    async fn report(&self, mut node: Node, shutdown: &CancellationToken) {
        let mut runtime = self.shared.runtime.clone();
        let mut pulls = self.shared.puller.pulls();
        let mut pressure = self.settings.pressure.clone();
        let mut shutting_down = self.shared.shutting_down.clone();
        let mut before = Vec::new();
        // What was sent at registration may be older than what the runtime has said since.
        let mut is_due = true;
        loop {
            if is_due {
                let Some(sent) = retry(shutdown, "send the node's status", || self.send(&node)).await else {
                    return;
                };
                node = sent;
                self.tell_changes(&before, &node);
                before = conditions(&node);
            }
            let changed = tokio::select! {
                () = shutdown.cancelled() => return,
                changed = runtime.changed() => changed,
                changed = pulls.changed() => changed,
                changed = pressure.changed() => changed,
                changed = shutting_down.changed() => changed,
                () = tokio::time::sleep(REPORT) => Ok(()),
            };
            if changed.is_err() {
                shutdown.cancelled().await;
            }
            is_due = true;
        }
    }

    /// An event for each condition that has changed, or is new.
    fn tell_changes(&self, before: &[NodeCondition], node: &Node) {
        let name = &self.shared.node_name;
        for condition in conditions(node) {
            let known = before.iter().find(|known| known.type_ == condition.type_);
            let Some(reason) = change_reason(&condition.type_, &condition.status) else { continue };
            if known.is_none_or(|known| known.status != condition.status) {
                let text = format!("Node {name} status is now: {reason}");
                self.shared.events.node(Kind::Normal, reason, text);
            }
        }
    }

    async fn send(&self, node: &Node) -> Result<Node, Error> {
        let images = self.images().await;
        let runtime = self.shared.runtime.borrow().clone();
        let before = conditions(node);
        let status = plan_status(self.input(&runtime, &images, &before));
        let patch = json!({"status": status});
        self.api.patch_status(&self.shared.node_name, &PatchParams::default(), &Patch::Strategic(patch)).await
    }

    async fn images(&self) -> Vec<cri::v1::Image> {
        let listed = self.shared.cri.list_images(cri::v1::ListImagesRequest::default()).await;
        listed.map(|listed| listed.images).unwrap_or_default()
    }

    fn input<'a>(
        &'a self,
        runtime: &'a crate::shared::RuntimeInfo,
        images: &'a [cri::v1::Image],
        before: &'a [NodeCondition],
    ) -> NodeInput<'a> {
        let settings = &self.settings;
        NodeInput {
            name: &self.shared.node_name,
            addresses: &settings.addresses,
            port: settings.port,
            kubelet_version: &settings.kubelet_version,
            max_pods: settings.max_pods,
            labels: &settings.labels,
            pod_cidrs: &settings.pod_cidrs,
            machine: &settings.machine,
            pressure: *settings.pressure.borrow(),
            is_shutting_down: *self.shared.shutting_down.borrow(),
            runtime,
            images,
            before,
            now: self.shared.clock.now(),
        }
    }
}

fn conditions(node: &Node) -> Vec<NodeCondition> {
    node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default()
}

/// Upstream's word for a condition's new status.
fn change_reason(type_: &str, status: &str) -> Option<&'static str> {
    match (type_, status) {
        ("Ready", "True") => Some("NodeReady"),
        ("Ready", _) => Some("NodeNotReady"),
        ("MemoryPressure", "True") => Some("NodeHasInsufficientMemory"),
        ("MemoryPressure", _) => Some("NodeHasSufficientMemory"),
        ("DiskPressure", "True") => Some("NodeHasDiskPressure"),
        ("DiskPressure", _) => Some("NodeHasNoDiskPressure"),
        ("PIDPressure", "True") => Some("NodeHasInsufficientPID"),
        ("PIDPressure", _) => Some("NodeHasSufficientPID"),
        _ => None,
    }
}
