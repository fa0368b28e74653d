//! Owners and what they own: `kubectl delete` with each kind of cascade.

#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod cluster;

use cluster::Cluster;

/// A `ConfigMap` and one that it owns.
fn make_family(cluster: &Cluster, blocks: bool) {
    cluster.kubectl(&["create", "configmap", "owner"], "");
    let uid = cluster.kubectl(&["get", "configmap", "owner", "-o", "jsonpath={.metadata.uid}"], "");
    let owned = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"owned","ownerReferences":[
        {{"apiVersion":"v1","kind":"ConfigMap","name":"owner","uid":"{uid}","blockOwnerDeletion":{blocks}}}]}}}}"#
    );
    cluster.kubectl(&["create", "-f", "-"], &owned);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_owned_goes_with_its_owner() {
    let cluster = Cluster::start().await;
    make_family(&cluster, false);
    cluster.kubectl(&["delete", "configmap", "owner"], "");
    cluster.kubectl(&["wait", "--for=delete", "configmap/owned", "--timeout=20s"], "");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_owned_goes_first_in_the_foreground() {
    let cluster = Cluster::start().await;
    make_family(&cluster, true);
    cluster.kubectl(
        &["patch", "configmap", "owned", "-p", r#"{"metadata":{"finalizers":["example.com/hold"]}}"#],
        "",
    );
    cluster.kubectl(&["delete", "configmap", "owner", "--cascade=foreground", "--wait=false"], "");
    cluster.kubectl(
        &["wait", "--for=jsonpath={.metadata.deletionTimestamp}", "configmap/owned", "--timeout=20s"],
        "",
    );
    let finalizers =
        cluster.kubectl(&["get", "configmap", "owner", "-o", "jsonpath={.metadata.finalizers}"], "");
    assert_eq!(finalizers, r#"["foregroundDeletion"]"#);
    cluster.kubectl(&["patch", "configmap", "owned", "-p", r#"{"metadata":{"finalizers":null}}"#], "");
    cluster.kubectl(&["wait", "--for=delete", "configmap/owner", "--timeout=20s"], "");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_stays_and_names_no_owner() {
    let cluster = Cluster::start().await;
    make_family(&cluster, true);
    cluster.kubectl(&["delete", "configmap", "owner", "--cascade=orphan"], "");
    let left =
        cluster.kubectl(&["get", "configmap", "owned", "-o", "jsonpath={.metadata.ownerReferences}"], "");
    assert_eq!(left, "");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_never_was_does_not_keep_an_object() {
    let cluster = Cluster::start().await;
    let owned = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"lost","ownerReferences":[
        {"apiVersion":"v1","kind":"ConfigMap","name":"nobody","uid":"00000000-0000-0000-0000-000000000000"}]}}"#;
    cluster.kubectl(&["create", "-f", "-"], owned);
    cluster.kubectl(&["wait", "--for=delete", "configmap/lost", "--timeout=20s"], "");
    let unknown = owned.replace(
        "\"v1\",\"kind\":\"ConfigMap\",\"name\":\"nobody\"",
        "\"example.com/v1\",\"kind\":\"Foo\",\"name\":\"nobody\"",
    );
    cluster.kubectl(&["create", "-f", "-"], &unknown);
    cluster.kubectl(&["create", "configmap", "other"], "");
    cluster.kubectl(&["get", "configmap", "lost"], "");
    cluster.stop().await;
}
