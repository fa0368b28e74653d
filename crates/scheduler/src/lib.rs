//! The scheduler: finds a node for each Pod that has none, by what Pods ask and nodes declare, and binds it through
//! the API. It acts when a Pod or a node changes and never polls. It removes no Pods to make room.

mod filter;
mod model;
mod plan;
mod report;
mod resource;

use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use informer::{Target, Update};
use kube::Client;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use model::{Namespace, Node, Pod, RuntimeClass};
use plan::{Cluster, Decision};

pub use plan::Fencing;

const CHANNEL: usize = 256;
/// How long a Pod rests after a binding that failed.
const REST: Duration = Duration::from_secs(1);

/// What became of a decision.
enum Outcome {
    /// The API will tell the rest.
    Done,
    /// The Pod, by key, is to be decided about again.
    Again(String),
}

type Work = FuturesUnordered<BoxFuture<'static, Outcome>>;

/// Schedules Pods until `shutdown`. `client` speaks as `system:kube-scheduler`.
pub async fn run(client: Client, fencing: Fencing, shutdown: CancellationToken) {
    let (pods_out, pods) = mpsc::channel(CHANNEL);
    let (nodes_out, nodes) = mpsc::channel(CHANNEL);
    let (namespaces_out, namespaces) = mpsc::channel(CHANNEL);
    let (classes_out, runtime_classes) = mpsc::channel(CHANNEL);
    let watch_namespaces = informer::watch::<Namespace>(
        client.clone(),
        Target::all("/api/v1/namespaces"),
        namespaces_out,
        shutdown.child_token(),
    );
    let watch_classes = informer::watch::<RuntimeClass>(
        client.clone(),
        Target::all("/apis/node.k8s.io/v1/runtimeclasses"),
        classes_out,
        shutdown.child_token(),
    );
    let watch_pods =
        informer::watch::<Pod>(client.clone(), Target::all("/api/v1/pods"), pods_out, shutdown.child_token());
    let watch_nodes = informer::watch::<Node>(
        client.clone(),
        Target::all("/api/v1/nodes"),
        nodes_out,
        shutdown.child_token(),
    );
    let schedule =
        Scheduler { client, cluster: Cluster::new(fencing), work: Work::new(), shutdown: shutdown.clone() };
    let changes = Changes { pods, nodes, namespaces, runtime_classes };
    tokio::join!(watch_pods, watch_nodes, watch_namespaces, watch_classes, schedule.run(changes));
}

/// What the watches tell.
struct Changes {
    pods: mpsc::Receiver<Update<Pod>>,
    nodes: mpsc::Receiver<Update<Node>>,
    namespaces: mpsc::Receiver<Update<Namespace>>,
    runtime_classes: mpsc::Receiver<Update<RuntimeClass>>,
}

struct Scheduler {
    client: Client,
    cluster: Cluster,
    work: Work,
    shutdown: CancellationToken,
}

impl Scheduler {
    async fn run(mut self, changes: Changes) {
        let Changes { mut pods, mut nodes, mut namespaces, mut runtime_classes } = changes;
        loop {
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                Some(update) = pods.recv() => self.cluster.apply_pods(update),
                Some(update) = nodes.recv() => self.cluster.apply_nodes(update),
                Some(update) = namespaces.recv() => self.cluster.apply_namespaces(update),
                Some(update) = runtime_classes.recv() => self.cluster.apply_runtime_classes(update),
                Some(outcome) = self.work.next(), if !self.work.is_empty() => self.settle(outcome),
            }
            // What has arrived meanwhile belongs to the same round.
            while let Ok(update) = pods.try_recv() {
                self.cluster.apply_pods(update);
            }
            while let Ok(update) = nodes.try_recv() {
                self.cluster.apply_nodes(update);
            }
            while let Ok(update) = namespaces.try_recv() {
                self.cluster.apply_namespaces(update);
            }
            while let Ok(update) = runtime_classes.try_recv() {
                self.cluster.apply_runtime_classes(update);
            }
            let decisions =
                tracing::debug_span!(target: "path", "scheduler: plan").in_scope(|| self.cluster.plan());
            for decision in decisions {
                self.carry_out(decision);
            }
        }
    }

    fn settle(&mut self, outcome: Outcome) {
        if let Outcome::Again(key) = outcome {
            self.cluster.forget(&key);
        }
    }

    fn carry_out(&self, decision: Decision) {
        let client = self.client.clone();
        self.work.push(match decision {
            Decision::Bind { pod, node } => Box::pin(bind(client, pod, node)),
            Decision::Refuse { pod, message } => Box::pin(refuse(client, pod, message)),
        });
    }
}

async fn bind(client: Client, pod: Pod, node: String) -> Outcome {
    let key = pod.meta.key();
    let step = tracing::debug_span!(target: "path", "scheduler: bind", pod = key);
    match report::bind(&client, &pod, &node).instrument(step).await {
        Ok(()) => {
            tracing::info!(pod = key, node, "bound");
            let event = report::scheduled(&pod, &format!("Successfully assigned {key} to {node}"));
            tell(&client, &pod, &event).await;
            Outcome::Done
        }
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
            tracing::debug!(
                pod = key,
                node,
                message = status.message,
                "the Pod changed before it could be bound"
            );
            // The watch tells of the change; if it does not, asking at once again would not help.
            tokio::time::sleep(REST).await;
            Outcome::Again(key)
        }
        Err(error) => {
            tracing::warn!(pod = key, node, %error, "could not bind the Pod; it is tried again");
            tell(&client, &pod, &report::failed(&pod, &error.to_string())).await;
            tokio::time::sleep(REST).await;
            Outcome::Again(key)
        }
    }
}

async fn refuse(client: Client, pod: Pod, message: String) -> Outcome {
    tracing::info!(pod = pod.meta.key(), message, "no node for the Pod");
    tell(&client, &pod, &report::failed(&pod, &message)).await;
    if let Err(error) = report::condition(&client, &pod, &message).await {
        tracing::debug!(pod = pod.meta.key(), %error, "could not write the condition PodScheduled");
    }
    Outcome::Done
}

async fn tell(client: &Client, pod: &Pod, event: &serde_json::Value) {
    if let Err(error) = report::event(client, pod, event).await {
        tracing::debug!(pod = pod.meta.key(), %error, "could not write an event");
    }
}
