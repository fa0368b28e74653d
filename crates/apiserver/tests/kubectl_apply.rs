//! Sessions with `kubectl apply --server-side`: what its users type and see, and who owns what afterwards.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;

use common::Cluster;
use serde_json::{Value, json};

const APPLY: &[&str] = &["apply", "--server-side", "-f", "-"];

fn map(data: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {data}\n")
}

fn apply_as<'a>(manager: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [APPLY, &["--field-manager", manager], more].concat()
}

fn entries(cluster: &Cluster, what: &[&str]) -> Vec<Value> {
    let arguments = [&["get"], what, &["-o", "json", "--show-managed-fields"]].concat();
    let object: Value = serde_json::from_str(&cluster.ok(&arguments)).unwrap();
    object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default()
}

fn entry(entries: &[Value], manager: &str) -> Value {
    entries.iter().find(|entry| entry["manager"] == manager).cloned().unwrap_or_default()
}

#[test]
fn two_managers_share_an_object_and_conflict_over_a_field() {
    let cluster = Cluster::start();
    let data = || cluster.ok(&["get", "configmap", "c", "-o", "jsonpath={.data}"]);
    let applied = cluster.ok_with(&apply_as("m1", &[]), &map("{a: '1', b: '2'}"));
    assert_eq!(applied, "configmap/c serverside-applied\n");
    cluster.ok_with(&apply_as("m2", &[]), &map("{c: '3'}"));
    assert_eq!(data(), r#"{"a":"1","b":"2","c":"3"}"#);
    let refused = cluster.kubectl_with(&apply_as("m2", &[]), &map("{a: '2'}"));
    assert!(
        refused.err.starts_with(
            "error: Apply failed with 1 conflict: conflict with \"m1\": .data.a\nPlease review the fields above"
        ),
        "{refused:?}"
    );
    cluster.ok_with(&apply_as("m2", &["--force-conflicts"]), &map("{a: '2'}"));
    assert_eq!(data(), r#"{"a":"2","b":"2"}"#, "`c` was applied before and is not any more");
    cluster.ok_with(&apply_as("m1", &[]), &map("{}"));
    assert_eq!(data(), r#"{"a":"2"}"#, "`a` belongs to the other now");
}

#[test]
fn a_diff_shows_what_an_apply_would_do_and_changes_nothing() {
    let cluster = Cluster::start();
    cluster.ok_with(APPLY, &map("{a: '1'}"));
    let version = || cluster.ok(&["get", "configmap", "c", "-o", "jsonpath={.metadata.resourceVersion}"]);
    let before = version();
    let said = cluster.kubectl_with(&["diff", "--server-side", "-f", "-"], &map("{a: '2'}"));
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.out.contains("-  a: \"1\"\n+  a: \"2\"\n"), "{said:?}");
    assert_eq!(version(), before);
    let same = cluster.kubectl_with(&["diff", "--server-side", "-f", "-"], &map("{a: '1'}"));
    assert_eq!((same.code, same.out.as_str()), (0, ""), "{same:?}");
    cluster.ok_with(APPLY, &map("{a: '1'}"));
    assert_eq!(version(), before, "an apply that changes nothing writes nothing");
}

#[test]
fn an_object_applied_on_the_client_side_moves_to_the_server_side() {
    let cluster = Cluster::start();
    cluster.ok_with(&["apply", "-f", "-"], &map("{a: '1', b: '1'}"));
    cluster.ok_with(APPLY, &map("{a: '2'}"));
    let data = cluster.ok(&["get", "configmap", "c", "-o", "jsonpath={.data}"]);
    assert_eq!(data, r#"{"a":"2"}"#, "what was applied before and is not any more goes");
    let found = entries(&cluster, &["configmap", "c"]);
    assert_eq!(entry(&found, "kubectl")["operation"], "Apply");
    assert_eq!(entry(&found, "kubectl")["fieldsV1"]["f:data"], json!({"f:a": {}}));
}

#[test]
fn each_writer_is_recorded_with_what_it_wrote() {
    let cluster = Cluster::start();
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, labels: {x: one}}\nspec:\n  nodeName: node1\n  containers:\n  - {name: c, image: img, ports: [{containerPort: 80}]}\n";
    cluster.ok_with(&["create", "-f", "-"], pod);
    cluster.ok(&["label", "pod", "p", "z=1"]);
    let status = r#"{"status":{"phase":"Running"}}"#;
    cluster.ok(&["patch", "pod", "p", "--subresource=status", "--type=merge", "-p", status]);
    let found = entries(&cluster, &["pod", "p"]);
    let created = entry(&found, "kubectl-create");
    assert_eq!((&created["operation"], &created["apiVersion"]), (&json!("Update"), &json!("v1")));
    assert_eq!(created["fieldsV1"]["f:metadata"], json!({"f:labels": {".": {}, "f:x": {}}}));
    let container = &created["fieldsV1"]["f:spec"]["f:containers"][r#"k:{"name":"c"}"#];
    assert_eq!(container["f:image"], json!({}));
    assert_eq!(
        container["f:ports"],
        json!({".": {}, r#"k:{"containerPort":80,"protocol":"TCP"}"#:
            {".": {}, "f:containerPort": {}, "f:protocol": {}}})
    );
    assert_eq!(created["fieldsV1"]["f:spec"]["f:volumes"], Value::Null, "the token's volume is the server's");
    let labelled = entry(&found, "kubectl-label");
    assert_eq!(labelled["fieldsV1"], json!({"f:metadata": {"f:labels": {"f:z": {}}}}));
    let patched = entry(&found, "kubectl-patch");
    assert_eq!(patched["subresource"], "status");
    assert_eq!(patched["fieldsV1"], json!({"f:status": {"f:phase": {}}}));
    cluster.ok(&["create", "configmap", "empty"]);
    assert_eq!(entries(&cluster, &["configmap", "empty"]), Vec::<Value>::new());
}

#[test]
fn what_cannot_be_applied_is_refused_in_upstreams_words() {
    let cluster = Cluster::start();
    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndatax: {}\n";
    let refused = cluster.fails(APPLY, unknown);
    assert_eq!(
        refused,
        "Error from server: failed to create typed patch object (default/c; /v1, Kind=ConfigMap): .datax: field not declared in schema\n"
    );
    let twice = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - {name: c, image: i}\n  - {name: c, image: i}\n";
    let refused = cluster.fails(APPLY, twice);
    assert!(refused.ends_with(".spec.containers: duplicate entries for key [name=\"c\"]\n"), "{refused}");
    let url = "/api/v1/namespaces/default/configmaps/c";
    cluster.ok_with(APPLY, &map("{a: '1'}"));
    let said = cluster.kubectl_with(&["replace", "--raw", url, "-f", "-"], "{}");
    assert_ne!(said.code, 0);
}
