//! Pods that no kubelet will end.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod cluster;

use std::time::Duration;

use cluster::{Cluster, pod};
use serde_json::json;

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_go_with_their_node() {
    let cluster = Cluster::start_with(|config| config.pod_quarantine = Duration::from_millis(200)).await;
    for name in ["one", "two"] {
        cluster.create(NODES, json!({"metadata": {"name": name}})).await;
        cluster.create(PODS, pod(&format!("on-{name}"), name)).await;
    }
    cluster.create(PODS, pod("on-ghost", "ghost")).await;
    cluster.delete(NODES, "one", json!({})).await;
    for name in ["on-ghost", "on-one"] {
        cluster.wait(&format!("{name} is gone"), PODS, name, |found| found.is_none()).await;
    }
    assert_eq!(cluster.names(PODS).await, ["on-two"]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_its_node_ends_as_failed_and_says_why() {
    let cluster = Cluster::start_with(|config| config.pod_quarantine = Duration::from_millis(200)).await;
    let mut held = pod("held", "ghost");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.create(PODS, held).await;
    let is_deleted = |found: Option<&serde_json::Value>| {
        found.is_some_and(|found| found["metadata"].get("deletionTimestamp").is_some())
    };
    let held = cluster.wait("it is deleted", PODS, "held", is_deleted).await.unwrap();
    assert_eq!(held["status"]["phase"], "Failed");
    assert_eq!(held["metadata"]["deletionGracePeriodSeconds"], 0);
    let conditions = held["status"]["conditions"].as_array().unwrap();
    let told = conditions.iter().find(|condition| condition["type"] == "DisruptionTarget").unwrap();
    assert_eq!(told["reason"], "DeletionByPodGC");
    assert_eq!(told["message"], "PodGC: node no longer exists");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_pods_that_ended_are_kept() {
    let cluster = Cluster::start_with(|config| config.terminated_pod_threshold = 2).await;
    cluster.create(NODES, json!({"metadata": {"name": "one"}})).await;
    for name in ["a", "b", "c"] {
        cluster.create(PODS, pod(name, "one")).await;
        cluster.patch(PODS, &format!("{name}/status"), json!({"status": {"phase": "Succeeded"}})).await;
    }
    cluster.wait("the first is gone", PODS, "a", |found| found.is_none()).await;
    assert_eq!(cluster.names(PODS).await, ["b", "c"]);
    cluster.stop().await;
}
