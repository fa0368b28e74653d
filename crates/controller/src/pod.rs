//! Deletes Pods that no kubelet will end: those of nodes that are gone, those that were deleted before they had a
//! node, those that are stuck on a node that is out of service, and the oldest of too many that have ended.

use std::collections::BTreeSet;
use std::time::Duration;

use informer::{Meta, Store, Target};
use kube::Client;
use kube::api::PropagationPolicy;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ControllerConfig;
use crate::event::seconds;
use crate::metadata::{Metadata, Object};
use crate::node::model::Node;
use crate::queue::{Queue, apply_all};
use crate::rest::{Collection, Forgive, RestError, only};
use crate::source::Source;

const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A Pod, as far as its end is concerned.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Whole")]
struct Pod {
    key: Meta,
    node: String,
    is_deleted: bool,
    has_ended: bool,
    /// Evicted ones go first, then the oldest: what orders those that have ended.
    age: (bool, String),
}

#[derive(Deserialize)]
struct Whole {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: String,
    reason: String,
}

impl From<Whole> for Pod {
    fn from(whole: Whole) -> Self {
        let is_evicted = whole.status.phase == "Failed" && whole.status.reason == "Evicted";
        Self {
            key: whole.metadata.key(),
            node: whole.spec.node_name,
            is_deleted: whole.metadata.is_deleted(),
            has_ended: matches!(whole.status.phase.as_str(), "Succeeded" | "Failed"),
            age: (!is_evicted, whole.metadata.creation_timestamp.unwrap_or_default()),
        }
    }
}

impl informer::Object for Pod {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

/// What becomes of a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is left alone.
    Stay,
    /// Its node is not known: if that lasts, it goes.
    Suspect,
    /// It goes.
    Go,
}

fn fate(pod: &Pod, node: Option<&Node>) -> Fate {
    match node {
        None if !pod.node.is_empty() => Fate::Suspect,
        None if pod.is_deleted => Fate::Go,
        Some(node) if pod.is_deleted && is_out_of_service(node) => Fate::Go,
        _ => Fate::Stay,
    }
}

fn is_out_of_service(node: &Node) -> bool {
    node.readiness() != "True" && node.spec.taints.iter().any(|taint| taint.key == OUT_OF_SERVICE)
}

/// The Pods that are too many among those that have ended.
fn surplus(pods: &Store<Pod>, most: usize) -> Vec<String> {
    let mut ended: Vec<&Pod> = pods.iter().filter(|pod| pod.has_ended).collect();
    let Some(count) = ended.len().checked_sub(most).filter(|count| *count > 0) else { return Vec::new() };
    ended.sort_by(|one, other| one.age.cmp(&other.age).then_with(|| one.key.name.cmp(&other.key.name)));
    ended.into_iter().take(count).map(|pod| pod.key.key()).collect()
}

/// Runs the controller until `shutdown`.
pub(crate) async fn run(client: Client, config: ControllerConfig, shutdown: CancellationToken) {
    let mut collector = Collector {
        pods: Source::new(&client, Target::all("/api/v1/pods")),
        nodes: Source::new(&client, Target::all("/api/v1/nodes")),
        queue: Queue::default(),
        surplus: BTreeSet::new(),
        quarantine: config.pod_quarantine,
        most_ended: config.terminated_pod_threshold,
    };
    shutdown.run_until_cancelled(collector.work(&client)).await;
}

struct Collector {
    pods: Source<Pod>,
    nodes: Source<Node>,
    queue: Queue<String>,
    /// Those that are too many.
    surplus: BTreeSet<String>,
    quarantine: Duration,
    most_ended: usize,
}

/// A Pod that goes.
#[derive(Debug)]
struct End {
    pod: Pod,
    /// Whether the node is to be asked for first.
    is_suspect: bool,
}

impl Collector {
    async fn work(&mut self, client: &Client) {
        let mut was_synced = false;
        loop {
            let is_synced = self.pods.is_synced() && self.nodes.is_synced();
            if is_synced && !was_synced {
                was_synced = true;
                let all: Vec<String> = self.pods.store().iter().map(|pod| pod.key.key()).collect();
                self.look(&all);
            }
            tokio::select! {
                keys = self.pods.changed() => if is_synced { self.look(&keys) },
                names = self.nodes.changed() => if is_synced { self.look_at_nodes(&names) },
                () = self.queue.ready(), if is_synced => self.work_off(client).await,
            }
        }
    }

    /// Looks at the Pods of nodes that changed.
    fn look_at_nodes(&mut self, names: &[String]) {
        let (pods, nodes) = (self.pods.store(), self.nodes.store());
        let is_meant = |name: &String| nodes.get(name).is_none_or(is_out_of_service);
        let meant: BTreeSet<&String> = names.iter().filter(|name| is_meant(name)).collect();
        if meant.is_empty() {
            return;
        }
        let keys: Vec<_> =
            pods.iter().filter(|pod| meant.contains(&pod.node)).map(|pod| pod.key.key()).collect();
        self.look(&keys);
    }

    fn look(&mut self, keys: &[String]) {
        let now = Instant::now();
        let mut has_ended = false;
        for key in keys {
            let Some(pod) = self.pods.store().get(key) else { continue };
            has_ended |= pod.has_ended;
            match fate(pod, self.nodes.store().get(&pod.node)) {
                Fate::Stay => {}
                // The node's own watch may be behind.
                Fate::Suspect => self.queue.add(key.clone(), now + self.quarantine),
                Fate::Go => self.queue.add(key.clone(), now),
            }
        }
        if has_ended && self.most_ended > 0 {
            for key in surplus(self.pods.store(), self.most_ended) {
                self.surplus.insert(key.clone());
                self.queue.add(key, now);
            }
        }
    }

    async fn work_off(&mut self, client: &Client) {
        let mut ends = Vec::new();
        for key in self.queue.take(Instant::now()) {
            let is_surplus = self.surplus.remove(&key);
            let Some(pod) = self.pods.store().get(&key) else { continue };
            let fate = fate(pod, self.nodes.store().get(&pod.node));
            if fate != Fate::Stay || is_surplus {
                ends.push((key, End { pod: pod.clone(), is_suspect: fate == Fate::Suspect && !is_surplus }));
            }
        }
        apply_all(&mut self.queue, ends, |end| apply(client, end)).await;
    }
}

async fn apply(client: &Client, end: End) -> Result<(), RestError> {
    let pod = &end.pod;
    if end.is_suspect {
        let node: Option<Object> = Collection::new(client, "/api/v1/nodes").get_metadata(&pod.node).await?;
        if node.is_some() {
            return Ok(());
        }
    }
    let pods = Collection::core(client, &pod.key.namespace, "pods");
    if !pod.has_ended {
        pods.merge_part("status", &pod.key.name, &failed(pod, end.is_suspect)).await.forgive(&[404, 409])?;
    }
    let options = kube::api::DeleteParams {
        grace_period_seconds: Some(0),
        ..only(&pod.key.uid, PropagationPolicy::Background)
    };
    pods.delete(&pod.key.name, &options).await.forgive(&[404, 409])?;
    tracing::info!(
        namespace = pod.key.namespace,
        pod = pod.key.name,
        "deleted a Pod that no kubelet will end"
    );
    Ok(())
}

/// The last status of a Pod whose kubelet can't tell it.
fn failed(pod: &Pod, is_orphan: bool) -> Value {
    let mut status = json!({"phase": "Failed"});
    if is_orphan && let Some(fields) = status.as_object_mut() {
        let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
            "message": "PodGC: node no longer exists", "lastTransitionTime": seconds(jiff::Timestamp::now())});
        fields.insert("conditions".to_owned(), json!([condition]));
    }
    json!({"metadata": {"uid": pod.key.uid}, "status": status})
}

#[cfg(test)]
mod tests {
    use super::*;
    use informer::Update;

    fn pod(name: &str, node: &str, phase: &str, is_deleted: bool) -> Pod {
        let at = is_deleted.then_some("2026-11-23T12:00:00Z");
        serde_json::from_value(
            json!({"metadata": {"name": name, "namespace": "team", "deletionTimestamp": at},
            "spec": {"nodeName": node}, "status": {"phase": phase}}),
        )
        .unwrap()
    }

    fn node(ready: &str, taint: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n"},
            "spec": {"taints": [{"key": taint, "effect": "NoExecute"}]},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
        .unwrap()
    }

    #[test]
    fn a_pod_goes_when_no_kubelet_will_end_it() {
        let (good, away) = (node("True", OUT_OF_SERVICE), node("Unknown", OUT_OF_SERVICE));
        let silent = node("Unknown", "node.kubernetes.io/unreachable");
        for (what, pod, node, expected) in [
            ("waits for a node", pod("p", "", "Pending", false), None, Fate::Stay),
            ("deleted before it had a node", pod("p", "", "Pending", true), None, Fate::Go),
            ("its node is gone", pod("p", "n", "Running", false), None, Fate::Suspect),
            ("it ended, and its node is gone", pod("p", "n", "Succeeded", false), None, Fate::Suspect),
            ("runs", pod("p", "n", "Running", false), Some(&good), Fate::Stay),
            ("ends on a good node", pod("p", "n", "Running", true), Some(&good), Fate::Stay),
            ("ends on a silent node", pod("p", "n", "Running", true), Some(&silent), Fate::Stay),
            ("ends on one out of service", pod("p", "n", "Running", true), Some(&away), Fate::Go),
            ("runs on one out of service", pod("p", "n", "Running", false), Some(&away), Fate::Stay),
        ] {
            assert_eq!(fate(&pod, node), expected, "{what}");
        }
    }

    #[test]
    fn of_too_many_ended_pods_the_evicted_and_the_oldest_go() {
        let ended = |name: &str, created: &str, reason: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": name, "creationTimestamp": created},
                "status": {"phase": "Failed", "reason": reason}}))
            .unwrap()
        };
        let mut pods = Store::default();
        pods.apply(Update::Snapshot(vec![
            ended("old", "2026-01-01T00:00:00Z", ""),
            ended("older", "2025-01-01T00:00:00Z", ""),
            ended("evicted", "2026-06-01T00:00:00Z", "Evicted"),
            ended("young", "2026-07-01T00:00:00Z", ""),
            pod("running", "n", "Running", false),
        ]));
        assert_eq!(surplus(&pods, 2), ["evicted", "older"]);
        assert_eq!(surplus(&pods, 4), [""; 0]);
    }
}
