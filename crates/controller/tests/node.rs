//! Nodes whose kubelet falls silent, says that it is not ready, and comes back.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod cluster;

use std::time::Duration;

use cluster::{Cluster, pod};
use serde_json::{Value, json};

const NODES: &str = "/api/v1/nodes";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn conditions(ready: &str, heartbeat: &str) -> Value {
    let condition = |name: &str, status: &str| {
        json!({"type": name, "status": status, "reason": "Kubelet", "message": "told by the kubelet",
            "lastHeartbeatTime": heartbeat, "lastTransitionTime": heartbeat})
    };
    json!({"status": {"conditions": [condition("MemoryPressure", "False"), condition("DiskPressure", "False"),
        condition("PIDPressure", "False"), condition("Ready", ready)]}})
}

fn taints(node: Option<&Value>) -> Vec<String> {
    let text = |taint: &Value, field: &str| taint[field].as_str().unwrap().to_owned();
    let taints = node.and_then(|node| node.pointer("/spec/taints")).and_then(Value::as_array);
    taints.into_iter().flatten().map(|t| format!("{}:{}", text(t, "key"), text(t, "effect"))).collect()
}

fn readiness(object: Option<&Value>) -> Option<&Value> {
    let conditions = object?.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|condition| condition["type"] == "Ready")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_unreachable_until_it_is_back() {
    let mut cluster = Cluster::start_with(|config| {
        config.node_monitor_grace_period = Duration::from_millis(300);
    })
    .await;
    cluster.create(NODES, json!({"metadata": {"name": "one"}})).await;
    cluster.patch(NODES, "one/status", conditions("True", "2026-11-23T12:00:00Z")).await;
    cluster.create(PODS, pod("web", "one")).await;
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    cluster.patch(PODS, "web/status", ready).await;

    let unreachable =
        ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"];
    let node = cluster
        .wait("the node is tainted", NODES, "one", |found| taints(found) == unreachable)
        .await
        .unwrap();
    let told = readiness(Some(&node)).unwrap();
    assert_eq!(told["status"], "Unknown");
    assert_eq!(told["reason"], "NodeStatusUnknown");
    assert_eq!(told["message"], "Kubelet stopped posting node status.");
    assert_eq!(told["lastHeartbeatTime"], "2026-11-23T12:00:00Z");
    assert_eq!(node["status"]["conditions"].as_array().unwrap().len(), 4);
    cluster
        .wait("its Pod is not ready", PODS, "web", |found| {
            readiness(found).is_some_and(|ready| ready["status"] == "False")
        })
        .await;

    cluster.stop_controllers().await;
    cluster.start_controllers(|_| {});
    cluster.patch(NODES, "one/status", conditions("True", "2026-11-23T12:05:00Z")).await;
    cluster.wait("the taints are gone", NODES, "one", |found| taints(found).is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taints_follow_what_the_kubelet_and_the_administrator_say() {
    let cluster = Cluster::start().await;
    let mine = json!([{"key": "example.com/mine", "effect": "NoSchedule"}]);
    cluster.create(NODES, json!({"metadata": {"name": "one"}, "spec": {"taints": mine}})).await;
    cluster.patch(NODES, "one/status", conditions("False", "2026-11-23T12:00:00Z")).await;
    let not_ready = [
        "example.com/mine:NoSchedule",
        "node.kubernetes.io/not-ready:NoSchedule",
        "node.kubernetes.io/not-ready:NoExecute",
    ];
    cluster.wait("not ready", NODES, "one", |found| taints(found) == not_ready).await;
    cluster.patch(NODES, "one/status", conditions("True", "2026-11-23T12:00:10Z")).await;
    cluster.wait("ready", NODES, "one", |found| taints(found) == ["example.com/mine:NoSchedule"]).await;
    cluster.patch(NODES, "one", json!({"spec": {"unschedulable": true}})).await;
    let cordoned = ["example.com/mine:NoSchedule", "node.kubernetes.io/unschedulable:NoSchedule"];
    cluster.wait("cordoned", NODES, "one", |found| taints(found) == cordoned).await;
    cluster.patch(NODES, "one", json!({"spec": {"unschedulable": null}})).await;
    cluster.wait("uncordoned", NODES, "one", |found| taints(found) == ["example.com/mine:NoSchedule"]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_that_never_reported_is_told_too() {
    let cluster = Cluster::start_with(|config| {
        config.node_startup_grace_period = Duration::from_millis(200);
    })
    .await;
    cluster.create(NODES, json!({"metadata": {"name": "one"}})).await;
    let node = cluster.wait("it is unknown", NODES, "one", |found| readiness(found).is_some()).await.unwrap();
    let told = readiness(Some(&node)).unwrap();
    assert_eq!(told["reason"], "NodeStatusNeverUpdated");
    assert_eq!(told["message"], "Kubelet never posted node status.");
    assert_eq!(told["lastHeartbeatTime"], node["metadata"]["creationTimestamp"]);
    cluster.stop().await;
}
