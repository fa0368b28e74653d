//! What the scheduler keeps of Pods and nodes: far less than the objects.

use std::collections::{BTreeMap, BTreeSet};

use api::access::{Access, metadata, spec, status};
use api::selector::{LabelSelector, Requirement};
use informer::{Meta, Object};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::resource::{Resources, pod_requests};

/// The name in `spec.schedulerName` for which this scheduler works.
pub(crate) const SCHEDULER_NAME: &str = "default-scheduler";
/// The namespace label that says which Pods get user namespaces.
const POLICY_LABEL: &str = "kakoi.dev/user-namespaces";
/// The node's condition that says why it can't make them.
const USERNS_CONDITION: &str = "kakoi.dev/UserNamespaces";

/// A Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Pod {
    pub(crate) meta: Meta,
    pub(crate) labels: Map<String, Value>,
    /// Empty while it has none.
    pub(crate) node: String,
    /// Whether it waits for this scheduler.
    pub(crate) is_waiting: bool,
    /// Whether it takes room on its node: it has not ended.
    pub(crate) is_active: bool,
    pub(crate) is_deleting: bool,
    pub(crate) priority: i64,
    pub(crate) created: String,
    pub(crate) requests: Resources,
    pub(crate) host_ports: Vec<HostPort>,
    pub(crate) node_selector: Vec<(String, String)>,
    /// Terms of the required node affinity, one of which must hold.
    pub(crate) node_terms: Option<Vec<NodeTerm>>,
    pub(crate) tolerations: Vec<Toleration>,
    pub(crate) affinity: Vec<PodTerm>,
    pub(crate) anti_affinity: Vec<PodTerm>,
    pub(crate) spread: Vec<Spread>,
    /// Features that its node must declare.
    pub(crate) features: Vec<&'static str>,
    /// What it says of `hostUsers`.
    pub(crate) host_users: Option<bool>,
    /// Its runtime class, or nothing.
    pub(crate) runtime_class: String,
    /// The runtime handler that its class means, empty for the default one. `None`: its class is not known (any more),
    /// and the node's kubelet tells.
    pub(crate) handler: Option<String>,
    /// The message of its condition `PodScheduled`, when that is `False`.
    pub(crate) told: Option<String>,
}

/// A port of the node that a Pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub(crate) ip: String,
    pub(crate) protocol: String,
    pub(crate) port: i64,
}

/// Conditions on a node, all of which must hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeTerm {
    pub(crate) labels: Vec<Requirement>,
    pub(crate) fields: Vec<Requirement>,
}

/// A taint that a Pod does not mind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Toleration {
    pub(crate) key: String,
    pub(crate) is_exists: bool,
    pub(crate) value: String,
    pub(crate) effect: String,
}

/// Near which Pods a Pod must or must not be.
#[derive(Clone, Debug)]
pub(crate) struct PodTerm {
    pub(crate) topology_key: String,
    pub(crate) selector: Option<LabelSelector>,
    /// `None`: in all namespaces.
    pub(crate) namespaces: Option<BTreeSet<String>>,
}

/// How evenly Pods must be spread.
#[derive(Clone, Debug)]
pub(crate) struct Spread {
    pub(crate) topology_key: String,
    pub(crate) max_skew: i64,
    pub(crate) selector: Option<LabelSelector>,
}

/// A node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) labels: Map<String, Value>,
    pub(crate) taints: Vec<Taint>,
    pub(crate) is_unschedulable: bool,
    pub(crate) allocatable: Resources,
    /// Its runtime handlers by name, each with whether it makes user namespaces.
    pub(crate) handlers: BTreeMap<String, bool>,
    /// Features that its kubelet declares.
    pub(crate) features: BTreeSet<String>,
    /// Why it makes no user namespaces, in its kubelet's words; empty where that says nothing.
    pub(crate) userns_problem: String,
}

/// A runtime class.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct RuntimeClass {
    pub(crate) meta: Meta,
    /// The handler that it means.
    pub(crate) handler: String,
}

/// A namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Namespace {
    pub(crate) meta: Meta,
    /// Whether its label demands a user namespace for each Pod; `None` where it says nothing that is known.
    pub(crate) fences_all: Option<bool>,
}

/// A mark on a node that keeps Pods away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taint {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) effect: String,
}

impl Object for Pod {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Object for Node {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Object for Namespace {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl Object for RuntimeClass {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl From<Value> for RuntimeClass {
    fn from(object: Value) -> Self {
        Self { meta: Meta::of(&object), handler: object.text("handler").to_owned() }
    }
}

impl From<Value> for Namespace {
    fn from(object: Value) -> Self {
        let labels = metadata(&object).map("labels");
        let fences_all = match labels.and_then(|labels| labels.get(POLICY_LABEL)?.as_str()) {
            Some("always") => Some(true),
            Some("default" | "opt-in") => Some(false),
            _ => None,
        };
        Self { meta: Meta::of(&object), fences_all }
    }
}

impl From<Value> for Pod {
    fn from(object: Value) -> Self {
        let (meta, spec, status) = (metadata(&object), spec(&object), status(&object));
        let namespace = meta.text("namespace");
        let affinity = spec.field("affinity");
        let node = spec.text("nodeName");
        let is_active = !matches!(status.text("phase"), "Succeeded" | "Failed");
        let is_deleting = meta.field("deletionTimestamp").is_some();
        Self {
            meta: Meta::of(&object),
            labels: meta.map("labels").cloned().unwrap_or_default(),
            node: node.to_owned(),
            is_waiting: node.is_empty()
                && is_active
                && !is_deleting
                && spec.list("schedulingGates").is_empty()
                && spec.text("schedulerName") == SCHEDULER_NAME,
            is_active,
            is_deleting,
            priority: spec.int("priority").unwrap_or_default(),
            created: meta.text("creationTimestamp").to_owned(),
            requests: pod_requests(spec),
            host_ports: host_ports(spec),
            node_selector: owned(&spec.entries("nodeSelector")),
            node_terms: node_terms(affinity),
            tolerations: spec.list("tolerations").iter().map(toleration).collect(),
            affinity: pod_terms(affinity, "podAffinity", namespace),
            anti_affinity: pod_terms(affinity, "podAntiAffinity", namespace),
            spread: spread(spec),
            features: api::declared::required(spec),
            host_users: spec.flag("hostUsers"),
            runtime_class: spec.text("runtimeClassName").to_owned(),
            handler: spec.text("runtimeClassName").is_empty().then(String::new),
            told: told(status),
        }
    }
}

fn owned(entries: &[(&str, &str)]) -> Vec<(String, String)> {
    entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn host_ports(spec: &Value) -> Vec<HostPort> {
    let containers = spec
        .list("containers")
        .iter()
        .chain(spec.list("initContainers").iter().filter(|c| c.text("restartPolicy") == "Always"));
    containers
        .flat_map(|c| c.list("ports"))
        .filter_map(|p| {
            let port = p.int("hostPort").filter(|port| *port > 0)?;
            let or = |text: &str, default: &str| {
                if text.is_empty() { default.to_owned() } else { text.to_owned() }
            };
            Some(HostPort {
                ip: or(p.text("hostIP"), "0.0.0.0"),
                protocol: or(p.text("protocol"), "TCP"),
                port,
            })
        })
        .collect()
}

fn node_terms(affinity: Option<&Value>) -> Option<Vec<NodeTerm>> {
    let required =
        affinity?.field("nodeAffinity")?.field("requiredDuringSchedulingIgnoredDuringExecution")?;
    let terms = required.list("nodeSelectorTerms").iter();
    Some(
        terms
            .map(|t| NodeTerm {
                labels: requirements(t, "matchExpressions"),
                fields: requirements(t, "matchFields"),
            })
            .collect(),
    )
}

fn requirements(term: &Value, field: &str) -> Vec<Requirement> {
    term.list(field).iter().filter_map(Requirement::of_node_selector).collect()
}

fn toleration(value: &Value) -> Toleration {
    Toleration {
        key: value.text("key").to_owned(),
        is_exists: value.text("operator") == "Exists",
        value: value.text("value").to_owned(),
        effect: value.text("effect").to_owned(),
    }
}

fn pod_terms(affinity: Option<&Value>, field: &str, namespace: &str) -> Vec<PodTerm> {
    let Some(pods) = affinity.and_then(|a| a.field(field)) else { return Vec::new() };
    let terms = pods.list("requiredDuringSchedulingIgnoredDuringExecution").iter();
    terms
        .map(|term| {
            let listed: BTreeSet<String> =
                term.list("namespaces").iter().filter_map(Value::as_str).map(str::to_owned).collect();
            // Labels of namespaces are not watched: a selector over them stands for all namespaces.
            let namespaces = match (term.field("namespaceSelector"), listed.is_empty()) {
                (Some(_), _) => None,
                (None, true) => Some(BTreeSet::from([namespace.to_owned()])),
                (None, false) => Some(listed),
            };
            PodTerm {
                topology_key: term.text("topologyKey").to_owned(),
                selector: LabelSelector::from_object(term.field("labelSelector")),
                namespaces,
            }
        })
        .collect()
}

fn spread(spec: &Value) -> Vec<Spread> {
    let constraints = spec.list("topologySpreadConstraints").iter();
    constraints
        .filter(|c| c.text("whenUnsatisfiable") == "DoNotSchedule")
        .map(|c| Spread {
            topology_key: c.text("topologyKey").to_owned(),
            max_skew: c.int("maxSkew").unwrap_or(1),
            selector: LabelSelector::from_object(c.field("labelSelector")),
        })
        .collect()
}

fn told(status: &Value) -> Option<String> {
    let mut conditions = status.list("conditions").iter();
    let condition = conditions.find(|c| c.text("type") == "PodScheduled" && c.text("status") == "False")?;
    Some(condition.text("message").to_owned())
}

impl From<Value> for Node {
    fn from(object: Value) -> Self {
        let (meta, spec, status) = (metadata(&object), spec(&object), status(&object));
        let mut taints: Vec<Taint> = spec.list("taints").iter().map(taint).collect();
        let is_ready =
            status.list("conditions").iter().any(|c| c.text("type") == "Ready" && c.text("status") == "True");
        let not_ready = Taint {
            key: "node.kubernetes.io/not-ready".into(),
            value: String::new(),
            effect: "NoSchedule".into(),
        };
        if !is_ready && !taints.contains(&not_ready) {
            taints.push(not_ready);
        }
        Self {
            meta: Meta::of(&object),
            labels: meta.map("labels").cloned().unwrap_or_default(),
            taints,
            is_unschedulable: spec.is_true("unschedulable"),
            allocatable: Resources::read(status, "allocatable"),
            handlers: handlers(status),
            features: status
                .list("declaredFeatures")
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
            userns_problem: userns_problem(status),
        }
    }
}

impl Node {
    /// Why a runtime handler of this node makes no user namespaces; `None` when it reports that it does.
    pub(crate) fn lacks_user_namespaces(&self, handler: &str) -> Option<String> {
        match (self.handlers.get(handler), handler, self.userns_problem.as_str()) {
            (Some(true), ..) => None,
            (None, name, _) if !name.is_empty() => Some(format!("it has no runtime handler `{name}`")),
            (Some(false), name, _) if !name.is_empty() => {
                Some(format!("its runtime handler `{name}` reports none"))
            }
            (_, _, told) if !told.is_empty() => Some(told.to_owned()),
            (None, ..) => Some("it reports no runtime handlers".to_owned()),
            (Some(false), ..) => Some("its runtime handler reports none".to_owned()),
        }
    }
}

fn handlers(status: &Value) -> BTreeMap<String, bool> {
    let has = |handler: &Value| handler.field("features").is_some_and(|f| f.is_true("userNamespaces"));
    let listed = status.list("runtimeHandlers").iter();
    listed.map(|handler| (handler.text("name").to_owned(), has(handler))).collect()
}

/// What the kubelet's condition says that the node lacks.
fn userns_problem(status: &Value) -> String {
    let mut conditions = status.list("conditions").iter();
    let told = conditions.find(|c| c.text("type") == USERNS_CONDITION && c.text("status") == "False");
    told.map_or("", |condition| condition.text("message")).to_owned()
}

fn taint(value: &Value) -> Taint {
    Taint {
        key: value.text("key").to_owned(),
        value: value.text("value").to_owned(),
        effect: value.text("effect").to_owned(),
    }
}

impl Toleration {
    pub(crate) fn tolerates(&self, taint: &Taint) -> bool {
        (self.effect.is_empty() || self.effect == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && (self.is_exists || self.value == taint.value)
    }
}

impl HostPort {
    pub(crate) fn conflicts(&self, other: &Self) -> bool {
        let any = |p: &Self| p.ip == "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(self) || any(other))
    }
}

impl PodTerm {
    pub(crate) fn selects(&self, pod: &Pod) -> bool {
        self.namespaces.as_ref().is_none_or(|n| n.contains(&pod.meta.namespace))
            && self.selector.as_ref().is_some_and(|s| s.matches(Some(&pod.labels)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_waits_until_it_has_a_node_and_no_gate() {
        let pod = |spec: Value| {
            Pod::from(json!({"metadata": {"name": "p"}, "spec": spec, "status": {"phase": "Pending"}}))
        };
        assert!(pod(json!({"schedulerName": "default-scheduler"})).is_waiting);
        assert!(!pod(json!({"schedulerName": "other"})).is_waiting);
        assert!(!pod(json!({"schedulerName": "default-scheduler", "nodeName": "n"})).is_waiting);
        assert!(
            !pod(json!({"schedulerName": "default-scheduler", "schedulingGates": [{"name": "g"}]}))
                .is_waiting
        );
    }

    #[test]
    fn a_node_that_is_not_ready_has_the_taint_that_says_so() {
        let node = Node::from(
            json!({"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
        );
        assert_eq!(node.taints[0].key, "node.kubernetes.io/not-ready");
        let node = Node::from(
            json!({"metadata": {"name": "n"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
        );
        assert!(node.taints.is_empty());
    }

    #[test]
    fn tolerations_and_ports() {
        let taint = Taint { key: "k".into(), value: "v".into(), effect: "NoSchedule".into() };
        let tolerates = |t: Value| toleration(&t).tolerates(&taint);
        assert!(tolerates(json!({"operator": "Exists"})));
        assert!(tolerates(json!({"key": "k", "operator": "Equal", "value": "v", "effect": "NoSchedule"})));
        assert!(!tolerates(json!({"key": "k", "value": "w"})));
        assert!(!tolerates(json!({"key": "k", "operator": "Exists", "effect": "NoExecute"})));
        let port = |ip: &str| HostPort { ip: ip.into(), protocol: "TCP".into(), port: 80 };
        assert!(port("0.0.0.0").conflicts(&port("10.0.0.1")));
        assert!(!port("10.0.0.2").conflicts(&port("10.0.0.1")));
    }
}
