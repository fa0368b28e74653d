//! Nodes and their leases, as far as their health is concerned.

use informer::Meta;
use serde::{Deserialize, Serialize};

use crate::metadata::Metadata;

/// A node.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WholeNode")]
pub(crate) struct Node {
    key: Meta,
    pub(crate) metadata: Metadata,
    pub(crate) spec: NodeSpec,
    pub(crate) conditions: Vec<Condition>,
}

#[derive(Deserialize)]
struct WholeNode {
    metadata: Metadata,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

/// What the administrator and the controllers say of a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct NodeSpec {
    pub(crate) unschedulable: bool,
    pub(crate) taints: Vec<Taint>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    conditions: Vec<Condition>,
}

/// A taint; whole, because all are written back together.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Taint {
    pub(crate) key: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) value: String,
    pub(crate) effect: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) time_added: Option<String>,
}

/// A condition that the kubelet reports.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) name: String,
    pub(crate) status: String,
    pub(crate) last_heartbeat_time: Option<String>,
}

impl From<WholeNode> for Node {
    fn from(whole: WholeNode) -> Self {
        let WholeNode { metadata, spec, status } = whole;
        Self { key: metadata.key(), metadata, spec, conditions: status.conditions }
    }
}

impl informer::Object for Node {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

impl Node {
    pub(crate) fn condition(&self, name: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.name == name)
    }

    /// The status of the condition `Ready`; empty when the kubelet never reported.
    pub(crate) fn readiness(&self) -> &str {
        self.condition("Ready").map_or("", |ready| ready.status.as_str())
    }
}

/// The lease that a kubelet renews to show that it lives.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WholeLease")]
pub(super) struct Lease {
    key: Meta,
    pub(super) renewed: Option<String>,
}

#[derive(Deserialize)]
struct WholeLease {
    metadata: Metadata,
    #[serde(default)]
    spec: LeaseSpec,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LeaseSpec {
    renew_time: Option<String>,
}

impl From<WholeLease> for Lease {
    fn from(whole: WholeLease) -> Self {
        Self { key: whole.metadata.key(), renewed: whole.spec.renew_time }
    }
}

impl informer::Object for Lease {
    fn meta(&self) -> &Meta {
        &self.key
    }
}
