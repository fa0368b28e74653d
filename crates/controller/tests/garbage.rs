//! What becomes of objects when their owners go.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod cluster;

use cluster::{Cluster, pod};
use serde_json::{Value, json};

const CONFIGS: &str = "/api/v1/namespaces/default/configmaps";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn named(name: &str, owners: &[&Value]) -> Value {
    json!({"metadata": {"name": name, "ownerReferences": references(owners)}})
}

/// References that let the owners' deletion wait.
fn references(owners: &[&Value]) -> Value {
    owners
        .iter()
        .map(|owner| {
            json!({"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"], "blockOwnerDeletion": true})
        })
        .collect()
}

async fn is_gone(cluster: &Cluster, collection: &str, name: &str) {
    cluster.wait(&format!("{name} is gone"), collection, name, |found| found.is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_go_after_their_owner_and_keep_another_one() {
    let cluster = Cluster::start().await;
    let owner = cluster.create(CONFIGS, named("owner", &[])).await;
    let other = cluster.create(CONFIGS, named("other", &[])).await;
    let child = cluster.create(SECRETS, named("child", &[&owner])).await;
    let mut grandchild = pod("grandchild", "");
    grandchild["metadata"]["ownerReferences"] = references(&[&child]);
    cluster.create(PODS, grandchild).await;
    cluster.create(SECRETS, named("shared", &[&owner, &other])).await;

    cluster.delete(CONFIGS, "owner", json!({"propagationPolicy": "Background"})).await;
    is_gone(&cluster, SECRETS, "child").await;
    is_gone(&cluster, PODS, "grandchild").await;
    cluster
        .wait("one owner is left", SECRETS, "shared", |found| {
            found.is_some_and(|found| found["metadata"]["ownerReferences"] == references(&[&other]))
        })
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_whose_owner_never_was_goes_and_one_of_an_unwatched_owner_stays() {
    let cluster = Cluster::start().await;
    let mut never = cluster.create(CONFIGS, named("never", &[])).await;
    never["metadata"]["uid"] = "5f5a2f7e-0000-4000-8000-000000000000".into();
    let unknown =
        json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t", "uid": "u"}});
    cluster.create(SECRETS, named("kept", &[&unknown])).await;
    cluster.create(SECRETS, named("lost", &[&never])).await;
    is_gone(&cluster, SECRETS, "lost").await;
    assert!(cluster.get(SECRETS, "kept").await.is_some());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_stay_without_the_reference() {
    let cluster = Cluster::start().await;
    let owner = cluster.create(CONFIGS, named("owner", &[])).await;
    cluster.create(SECRETS, named("child", &[&owner])).await;
    cluster.delete(CONFIGS, "owner", json!({"propagationPolicy": "Orphan"})).await;
    is_gone(&cluster, CONFIGS, "owner").await;
    let child = cluster.get(SECRETS, "child").await.unwrap();
    assert_eq!(child["metadata"].get("ownerReferences"), None);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_is_deleted_in_the_foreground_goes_last() {
    let mut cluster = Cluster::start().await;
    let owner = cluster.create(CONFIGS, named("owner", &[])).await;
    let mut held = named("held", &[&owner]);
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.create(SECRETS, held).await;
    let child = cluster.create(SECRETS, named("child", &[&owner])).await;
    cluster.create(CONFIGS, named("grandchild", &[&child])).await;

    cluster.delete(CONFIGS, "owner", json!({"propagationPolicy": "Foreground"})).await;
    is_gone(&cluster, CONFIGS, "grandchild").await;
    is_gone(&cluster, SECRETS, "child").await;
    let held = cluster
        .wait("held is being deleted", SECRETS, "held", |found| {
            found.is_some_and(|found| found["metadata"].get("deletionTimestamp").is_some())
        })
        .await;
    assert!(held.is_some());
    assert!(cluster.get(CONFIGS, "owner").await.is_some());

    // What was begun before a restart is ended after it.
    cluster.stop_controllers().await;
    cluster.patch(SECRETS, "held", json!({"metadata": {"finalizers": null}})).await;
    cluster.start_controllers(|_| {});
    is_gone(&cluster, CONFIGS, "owner").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_lease_goes_with_the_node() {
    const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let cluster = Cluster::start().await;
    let node = cluster.create("/api/v1/nodes", json!({"metadata": {"name": "one"}})).await;
    let mut lease = named("one", &[&node]);
    lease["spec"] = json!({"holderIdentity": "one", "leaseDurationSeconds": 40});
    cluster.create(LEASES, lease).await;
    cluster.delete("/api/v1/nodes", "one", json!({})).await;
    is_gone(&cluster, LEASES, "one").await;
    cluster.stop().await;
}
