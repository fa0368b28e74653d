//! The row of a Node.

use jiff::Timestamp;
use serde_json::Value;

use super::{Column, age_cell, name_cell};
use crate::access::{Access, metadata, spec, status};

/// The columns of a Node.
pub(crate) const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Status", "Whether the node is ready and takes Pods."),
    Column::text("Roles", "The node's roles, from its labels."),
    Column::AGE,
    Column::text("Version", "The version that the kubelet says it has."),
    Column::wide("Internal-IP", "The address inside the cluster."),
    Column::wide("External-IP", "The address outside the cluster."),
    Column::wide("OS-Image", "The operating system."),
    Column::wide("Kernel-Version", "The kernel."),
    Column::wide("Container-Runtime", "The container runtime and its version."),
];

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";

/// The cells of [`COLUMNS`].
pub(crate) fn row(node: &Value, now: Timestamp) -> Vec<Value> {
    let absent = Value::Null;
    let info = status(node).field("nodeInfo").unwrap_or(&absent);
    let or_unknown = |text: &str| if text.is_empty() { "<unknown>".to_owned() } else { text.to_owned() };
    let mut kernel = or_unknown(info.text("kernelVersion"));
    if !info.text("architecture").is_empty() {
        kernel = format!("{kernel} ({})", info.text("architecture"));
    }
    vec![
        name_cell(node),
        state(node).into(),
        roles(node).into(),
        age_cell(node, now),
        info.text("kubeletVersion").into(),
        address(node, "InternalIP").into(),
        address(node, "ExternalIP").into(),
        or_unknown(info.text("osImage")).into(),
        kernel.into(),
        or_unknown(info.text("containerRuntimeVersion")).into(),
    ]
}

fn state(node: &Value) -> String {
    let ready = status(node).list("conditions").iter().find(|c| c.text("type") == "Ready");
    let state = match ready.map(|c| c.text("status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let cordoned = if spec(node).is_true("unschedulable") { ",SchedulingDisabled" } else { "" };
    format!("{state}{cordoned}")
}

fn roles(node: &Value) -> String {
    let labels = metadata(node).entries("labels");
    let mut roles: Vec<&str> = labels
        .iter()
        .filter_map(
            |(key, value)| if *key == ROLE_LABEL { Some(*value) } else { key.strip_prefix(ROLE_PREFIX) },
        )
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    status(node)
        .list("addresses")
        .iter()
        .find(|a| a.text("type") == kind)
        .map_or("<none>", |a| a.text("address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_ready_control_plane_node() {
        let node = json!({"metadata": {"name": "n", "creationTimestamp": "2026-11-23T11:00:00Z",
                "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "worker"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.36.2", "osImage": "Debian", "kernelVersion": "6.18",
                    "architecture": "amd64", "containerRuntimeVersion": "kakoi://0.1.0"}}});
        assert_eq!(
            row(&node, "2026-11-23T12:00:00Z".parse().unwrap()),
            [
                "n",
                "Ready,SchedulingDisabled",
                "control-plane,worker",
                "60m",
                "v1.36.2",
                "10.0.0.1",
                "<none>",
                "Debian",
                "6.18 (amd64)",
                "kakoi://0.1.0"
            ]
        );
    }

    #[test]
    fn a_node_that_said_nothing_is_unknown() {
        let row = row(&json!({"metadata": {"name": "n"}}), Timestamp::UNIX_EPOCH);
        assert_eq!(row[1..4], [json!("Unknown"), json!("<none>"), json!("<unknown>")]);
    }
}
