//! Writes what was decided about a node, if the node is still as it was then.

use jiff::Timestamp;
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};

use super::model::{Condition, Node};
use super::plan::Step;
use super::subject;
use crate::event::{Subject, Tone, post, seconds};
use crate::metadata::Metadata;
use crate::rest::{Collection, Forgive, RestError};

/// One node and what is to be done about it.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) node: Node,
    pub(super) is_silent: bool,
    pub(super) step: Step,
}

pub(super) async fn apply(client: &Client, work: Work) -> Result<(), RestError> {
    let nodes = Collection::new(client, "/api/v1/nodes");
    let metadata = &work.node.metadata;
    // 409: the node changed, and the watch will tell how. 404: it is gone.
    match &work.step {
        Step::Nothing => {}
        Step::Forget(conditions) => {
            let patch = json!({"metadata": {"resourceVersion": metadata.resource_version},
                "status": {"conditions": conditions}});
            let written = nodes.merge_part("status", &metadata.name, &patch).await;
            if written.is_ok() && work.node.readiness() == "True" {
                tell_not_ready(client, &work.node).await;
            }
            return written.forgive(&[404, 409]);
        }
        Step::Taint(taints) => {
            let patch = json!({"metadata": {"resourceVersion": metadata.resource_version},
                "spec": {"taints": taints}});
            nodes.merge(&metadata.name, &patch).await.forgive(&[404, 409])?;
        }
    }
    if work.is_silent && work.node.readiness() == "Unknown" {
        mark_pods(client, &metadata.name).await?;
    }
    Ok(())
}

async fn tell_not_ready(client: &Client, node: &Node) {
    let name = &node.metadata.name;
    tracing::warn!(node = name, "the kubelet is silent; its node is not ready");
    let message = format!("Node {name} status is now: NodeNotReady");
    post(client, subject(node), Tone::Normal, "NodeNotReady", &message).await;
}

#[derive(Deserialize)]
struct Pods {
    items: Vec<Pod>,
}

#[derive(Deserialize)]
struct Pod {
    metadata: Metadata,
    #[serde(default)]
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    conditions: Vec<Condition>,
}

impl Pod {
    fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|condition| condition.name == "Ready" && condition.status == "True")
    }
}

/// Nobody knows whether the Pods of a silent kubelet still work: they are not ready.
async fn mark_pods(client: &Client, node: &str) -> Result<(), RestError> {
    let all = Collection::new(client, "/api/v1/pods");
    let pods: Pods = all.select(&format!("spec.nodeName={node}")).await?;
    for pod in pods.items.iter().filter(|pod| pod.is_ready()) {
        mark_pod(client, &pod.metadata).await?;
    }
    Ok(())
}

async fn mark_pod(client: &Client, pod: &Metadata) -> Result<(), RestError> {
    let condition: Value =
        json!({"type": "Ready", "status": "False", "lastTransitionTime": seconds(Timestamp::now())});
    let patch = json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}});
    let pods = Collection::core(client, &pod.namespace, "pods");
    pods.merge_part("status", &pod.name, &patch).await.forgive(&[404, 409])?;
    let subject = Subject {
        component: "node-controller",
        kind: "Pod",
        namespace: &pod.namespace,
        name: &pod.name,
        uid: &pod.uid,
    };
    post(client, subject, Tone::Warning, "NodeNotReady", "Node is not ready").await;
    Ok(())
}
