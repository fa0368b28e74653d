//! Fenced by default: what the policy makes of Pods that say nothing, who is told, and what `kakoi policy explain`,
//! `kakoi check` and `kakoi who-owns` say of it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]
#![allow(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]

mod check;
mod corpus;
mod decide;
#[path = "../golden/mod.rs"]
#[allow(dead_code, reason = "shared with another test, which normalises texts")]
mod golden;
mod owner;
mod standard;

use serde_json::{Value, json};
use tests::Node;

/// A Pod that sleeps, with these fields added to its spec.
fn pod(namespace: &str, name: &str, fields: Value) -> String {
    let container = json!({"name": "c", "image": "busybox", "command": ["sleep", "infinity"]});
    let mut spec = json!({"terminationGracePeriodSeconds": 0, "containers": [container]});
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    spec.as_object_mut().unwrap().extend(fields);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec}).to_string()
}

/// A namespace with labels.
fn namespace(name: &str, labels: Value) -> String {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}).to_string()
}

/// The Pod's condition: its status, its reason and its message.
fn condition(pod: &Value) -> Option<(String, String, String)> {
    let conditions = pod.pointer("/status/conditions")?.as_array()?;
    let found = conditions.iter().find(|c| c["type"] == "kakoi.dev/UserNamespace")?;
    let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message")))
}

/// Three numbers of a map.
fn uid_map(node: &Node, pod: &str) -> Vec<u64> {
    let text = node.exec(pod, &["cat", "/proc/self/uid_map"]).ok();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

const NODES: [u64; 3] = [0, 0, 4_294_967_295];
