//! Owners and what they own: `kubectl delete` with each kind of cascade.

#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod common;

use common::Cluster;

/// A `ConfigMap` and one that it owns.
fn make_family(cluster: &Cluster, blocks: bool) {
    cluster.ok(&["create", "configmap", "owner"]);
    let uid = cluster.ok(&["get", "configmap", "owner", "-o", "jsonpath={.metadata.uid}"]);
    let owned = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"owned","ownerReferences":[
        {{"apiVersion":"v1","kind":"ConfigMap","name":"owner","uid":"{uid}","blockOwnerDeletion":{blocks}}}]}}}}"#
    );
    cluster.ok_with(&["create", "-f", "-"], &owned);
}

#[test]
fn what_is_owned_goes_with_its_owner() {
    let cluster = Cluster::start();
    make_family(&cluster, false);
    cluster.ok(&["delete", "configmap", "owner"]);
    cluster.ok(&["wait", "--for=delete", "configmap/owned", "--timeout=20s"]);
}

#[test]
fn what_is_owned_goes_first_in_the_foreground() {
    let cluster = Cluster::start();
    make_family(&cluster, true);
    cluster.ok(&["patch", "configmap", "owned", "-p", r#"{"metadata":{"finalizers":["example.com/hold"]}}"#]);
    cluster.ok(&["delete", "configmap", "owner", "--cascade=foreground", "--wait=false"]);
    cluster.ok(&["wait", "--for=jsonpath={.metadata.deletionTimestamp}", "configmap/owned", "--timeout=20s"]);
    let finalizers = cluster.ok(&["get", "configmap", "owner", "-o", "jsonpath={.metadata.finalizers}"]);
    assert_eq!(finalizers, r#"["foregroundDeletion"]"#);
    cluster.ok(&["patch", "configmap", "owned", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    cluster.ok(&["wait", "--for=delete", "configmap/owner", "--timeout=20s"]);
}

#[test]
fn an_orphan_stays_and_names_no_owner() {
    let cluster = Cluster::start();
    make_family(&cluster, true);
    cluster.ok(&["delete", "configmap", "owner", "--cascade=orphan"]);
    let left = cluster.ok(&["get", "configmap", "owned", "-o", "jsonpath={.metadata.ownerReferences}"]);
    assert_eq!(left, "");
}

#[test]
fn an_owner_that_never_was_does_not_keep_an_object() {
    let cluster = Cluster::start();
    let owned = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"lost","ownerReferences":[
        {"apiVersion":"v1","kind":"ConfigMap","name":"nobody","uid":"00000000-0000-0000-0000-000000000000"}]}}"#;
    cluster.ok_with(&["create", "-f", "-"], owned);
    cluster.ok(&["wait", "--for=delete", "configmap/lost", "--timeout=20s"]);
    let unknown = owned.replace(
        "\"v1\",\"kind\":\"ConfigMap\",\"name\":\"nobody\"",
        "\"example.com/v1\",\"kind\":\"Foo\",\"name\":\"nobody\"",
    );
    cluster.ok_with(&["create", "-f", "-"], &unknown);
    cluster.ok(&["create", "configmap", "other"]);
    cluster.ok(&["get", "configmap", "lost"]);
}
