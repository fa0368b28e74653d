//! The deletion of namespaces: Pods first and gracefully, everything else after them, and what is left is told.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod cluster;

use cluster::{Cluster, pod};
use serde_json::{Value, json};

const NAMESPACES: &str = "/api/v1/namespaces";
const PODS: &str = "/api/v1/namespaces/team/pods";
const CONFIGS: &str = "/api/v1/namespaces/team/configmaps";

fn condition<'a>(namespace: Option<&'a Value>, name: &str) -> Option<&'a Value> {
    let conditions = namespace?["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == name)
}

fn says(namespace: Option<&Value>, name: &str, message: &str) -> bool {
    condition(namespace, name).is_some_and(|condition| condition["message"] == message)
}

async fn make_team(cluster: &Cluster) {
    cluster.create(NAMESPACES, json!({"metadata": {"name": "team"}})).await;
    cluster.create(CONFIGS, json!({"metadata": {"name": "settings"}})).await;
    cluster.create("/api/v1/namespaces/team/secrets", json!({"metadata": {"name": "key"}})).await;
    cluster
        .create(
            "/apis/coordination.k8s.io/v1/namespaces/team/leases",
            json!({"metadata": {"name": "lock"}, "spec": {"leaseDurationSeconds": 10}}),
        )
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let cluster = Cluster::start().await;
    make_team(&cluster).await;
    cluster.create(PODS, pod("waiting", "")).await;
    cluster.delete(NAMESPACES, "team", json!({})).await;
    cluster.wait("the namespace is gone", NAMESPACES, "team", |found| found.is_none()).await;
    for kind in ["pods", "configmaps", "secrets", "serviceaccounts", "events"] {
        assert_eq!(cluster.names(&format!("{NAMESPACES}/team/{kind}")).await, [""; 0], "{kind}");
    }
    // Another one of the same name begins anew.
    make_team(&cluster).await;
    let accounts = "/api/v1/namespaces/team/serviceaccounts";
    cluster.wait("an account", accounts, "default", |found| found.is_some()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_end_gracefully_before_anything_else_goes() {
    let mut cluster = Cluster::start().await;
    make_team(&cluster).await;
    cluster.create("/api/v1/nodes", json!({"metadata": {"name": "one"}})).await;
    cluster.create(PODS, pod("running", "one")).await;
    cluster.delete(NAMESPACES, "team", json!({})).await;
    let told = "Some resources are remaining: pods. has 1 resource instances";
    let namespace = cluster
        .wait("the Pod is told", NAMESPACES, "team", |found| says(found, "NamespaceContentRemaining", told))
        .await;
    assert_eq!(namespace.unwrap()["status"]["phase"], "Terminating");
    let running = cluster.get(PODS, "running").await.unwrap();
    assert_eq!(running["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(cluster.get(CONFIGS, "settings").await.is_some());

    // A restart in between changes nothing.
    cluster.stop_controllers().await;
    cluster.start_controllers(|_| {});
    cluster.delete(PODS, "running", json!({"gracePeriodSeconds": 0})).await;
    cluster.wait("the namespace is gone", NAMESPACES, "team", |found| found.is_none()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finalizer_holds_the_namespace_and_is_named() {
    let cluster = Cluster::start().await;
    make_team(&cluster).await;
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    cluster.create(CONFIGS, held).await;
    cluster.delete(NAMESPACES, "team", json!({})).await;
    let told =
        "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances";
    cluster
        .wait("it is told", NAMESPACES, "team", |found| says(found, "NamespaceFinalizersRemaining", told))
        .await;
    assert_eq!(cluster.names(CONFIGS).await, ["held"]);
    cluster.patch(CONFIGS, "held", json!({"metadata": {"finalizers": null}})).await;
    cluster.wait("the namespace is gone", NAMESPACES, "team", |found| found.is_none()).await;
    cluster.stop().await;
}
