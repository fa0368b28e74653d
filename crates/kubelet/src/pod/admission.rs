//! Whether the node takes a Pod that the API has bound to it: room, labels, ports, operating system. Pure.
//!
//! The scheduler has asked most of this before; a Pod may also name its node itself, or come from a manifest. A refused
//! Pod fails for good, with upstream's reasons (`OutOfcpu`, `NodeAffinity`, `NodePorts` …).

use std::collections::BTreeMap;

use api::selector::{Operator, Requirement};
use k8s_openapi::api::core::v1::{Container, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec};

use super::resource::total;
use super::restart::is_sidecar;
use super::status::Failure;
use crate::quantity::{self, Amounts};

/// What of the node decides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeFacts<'a> {
    pub(crate) name: &'a str,
    /// What Pods can have together.
    pub(crate) allocatable: &'a Amounts,
    /// The node's labels; `None` while they are not known.
    pub(crate) labels: Option<&'a BTreeMap<String, String>>,
    /// Features that the node declares.
    pub(crate) features: &'a [&'static str],
}

/// A port of the node that a Pod wants for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    /// Empty for all addresses.
    ip: String,
    protocol: String,
    port: i32,
}

impl HostPort {
    fn conflicts(&self, other: &Self) -> bool {
        let meets = self.ip.is_empty() || other.ip.is_empty() || self.ip == other.ip;
        meets && self.port == other.port && self.protocol == other.protocol
    }
}

/// Checks a Pod against the node and the Pods that it runs already.
pub(crate) fn check_admission(pod: &Pod, node: NodeFacts<'_>, others: &[&Pod]) -> Result<(), Failure> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    check_os(spec)?;
    check_claims(spec)?;
    check_features(spec, node)?;
    check_room(pod, node, others)?;
    check_labels(spec, node)?;
    check_ports(spec, others)
}

fn refuse(reason: impl Into<String>, message: impl Into<String>) -> Result<(), Failure> {
    Err(Failure { reason: reason.into(), message: message.into() })
}

fn check_os(spec: &PodSpec) -> Result<(), Failure> {
    match spec.os.as_ref().map(|os| os.name.as_str()) {
        None | Some("linux") => Ok(()),
        Some(_) => refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"),
    }
}

/// Devices by claim (DRA) would silently be missing in the Pod.
fn check_claims(spec: &PodSpec) -> Result<(), Failure> {
    if spec.resource_claims.iter().flatten().next().is_none() {
        return Ok(());
    }
    refuse(
        "ResourceClaims",
        "the Pod has resourceClaims, and this node has no dynamic resource allocation; take them from the Pod",
    )
}

/// The node has every feature that the Pod needs (KEP-5328).
fn check_features(spec: &PodSpec, node: NodeFacts<'_>) -> Result<(), Failure> {
    let spec = serde_json::to_value(spec).unwrap_or_default();
    let needed = api::declared::required(&spec);
    let unmet: Vec<&str> = needed.into_iter().filter(|feature| !node.features.contains(feature)).collect();
    if unmet.is_empty() {
        return Ok(());
    }
    let unmet = unmet.join(", ");
    refuse("PodFeatureUnsupported", format!("Pod requires node features that are not available: {unmet}"))
}

/// What a Pod requests of a resource, in thousandths for CPU and in whole units for all else.
fn request(pod: &Pod, resource: &str) -> i64 {
    let Some(spec) = &pod.spec else { return 0 };
    let amount = |amounts: Option<&Amounts>| {
        let found = amounts.and_then(|amounts| amounts.get(resource));
        found.map(|amount| if resource == "cpu" { quantity::milli(amount) } else { quantity::value(amount) })
    };
    let of = |container: &Container| {
        let resources = container.resources.as_ref();
        let asked = amount(resources.and_then(|resources| resources.requests.as_ref()));
        asked.or_else(|| amount(resources.and_then(|resources| resources.limits.as_ref()))).unwrap_or(0)
    };
    let own = amount(spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
    let over = amount(spec.overhead.as_ref()).unwrap_or(0);
    own.unwrap_or_else(|| total(spec, of)).saturating_add(over)
}

/// The node could take the Pod if it ran no other. The error is a sentence.
pub(crate) fn check_capacity(pod: &Pod, node: NodeFacts<'_>) -> Result<(), String> {
    for (resource, room) in node.allocatable {
        let room = if resource == "cpu" { quantity::milli(room) } else { quantity::value(room) };
        let asked = if resource == "pods" { 1 } else { request(pod, resource) };
        if asked > room {
            return Err(format!(
                "Node didn't have enough capacity: {resource}, requested: {asked}, capacity: {room}"
            ));
        }
    }
    Ok(())
}

/// The node has room for what the Pod requests, beside the others.
pub(crate) fn check_room(pod: &Pod, node: NodeFacts<'_>, others: &[&Pod]) -> Result<(), Failure> {
    // The order in which upstream looks: the number of Pods first, then what they request.
    let first = ["pods", "cpu", "memory", "ephemeral-storage"];
    let rest = node.allocatable.keys().map(String::as_str).filter(|name| !first.contains(name));
    for resource in first.into_iter().chain(rest) {
        let Some(room) = node.allocatable.get(resource) else { continue };
        let (asked, used, room) = match resource {
            "pods" => (1, i64::try_from(others.len()).unwrap_or(i64::MAX), quantity::value(room)),
            "cpu" => (request(pod, "cpu"), sum(others, "cpu"), quantity::milli(room)),
            other => (request(pod, other), sum(others, other), quantity::value(room)),
        };
        if asked > 0 && asked.saturating_add(used) > room {
            return refuse(
                format!("OutOf{resource}"),
                format!(
                    "Node didn't have enough resource: {resource}, requested: {asked}, used: {used}, capacity: {room}"
                ),
            );
        }
    }
    Ok(())
}

fn sum(pods: &[&Pod], resource: &str) -> i64 {
    pods.iter().map(|pod| request(pod, resource)).fold(0, i64::saturating_add)
}

fn check_labels(spec: &PodSpec, node: NodeFacts<'_>) -> Result<(), Failure> {
    let Some(labels) = node.labels else { return Ok(()) };
    let is_selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required =
        affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let is_wanted = required.is_none_or(|required| {
        required.node_selector_terms.iter().any(|term| term_matches(term, node.name, labels))
    });
    if is_selected && is_wanted {
        return Ok(());
    }
    refuse("NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector")
}

/// All conditions of a term hold; a term without conditions selects nothing.
fn term_matches(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let by_label = || term.match_expressions.iter().flatten();
    let by_field = || term.match_fields.iter().flatten();
    if by_label().chain(by_field()).next().is_none() {
        return false;
    }
    by_label().all(|wanted| holds(wanted, labels.get(&wanted.key).map(String::as_str)))
        && by_field().all(|wanted| holds(wanted, Some(name).filter(|_| wanted.key == "metadata.name")))
}

fn holds(wanted: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let Some(operator) = Operator::of_node_selector(&wanted.operator) else { return false };
    let values = wanted.values.clone().unwrap_or_default();
    Requirement { key: wanted.key.clone(), operator, values }.matches_value(value)
}

fn check_ports(spec: &PodSpec, others: &[&Pod]) -> Result<(), Failure> {
    let taken: Vec<HostPort> =
        others.iter().filter_map(|pod| pod.spec.as_ref()).flat_map(host_ports).collect();
    if host_ports(spec).all(|port| !taken.iter().any(|other| port.conflicts(other))) {
        return Ok(());
    }
    refuse(
        "NodePorts",
        "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
    )
}

fn host_ports(spec: &PodSpec) -> impl Iterator<Item = HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|init| is_sidecar(init));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(|port| {
        let number = port.host_port.filter(|number| *number > 0)?;
        let ip = port.host_ip.clone().filter(|ip| ip != "0.0.0.0" && ip != "::").unwrap_or_default();
        Some(HostPort {
            ip,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: number,
        })
    })
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn check(spec: serde_json::Value, others: &[Pod]) -> Result<(), (String, String)> {
        let amounts = json!({"cpu": "2", "memory": "1Gi", "pods": "2", "example.com/gpu": "1"});
        let allocatable: Amounts = serde_json::from_value(amounts).unwrap();
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        let node = NodeFacts { name: "n", allocatable: &allocatable, labels: Some(&labels), features: &[] };
        let others: Vec<&Pod> = others.iter().collect();
        check_admission(&pod(spec), node, &others).map_err(|failure| (failure.reason, failure.message))
    }

    fn sized(cpu: &str) -> serde_json::Value {
        json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
    }

    #[test]
    fn a_pod_that_does_not_fit_is_told_what_is_short() {
        assert_eq!(check(sized("1500m"), &[pod(sized("500m"))]), Ok(()));
        let (reason, message) = check(sized("1500m"), &[pod(sized("501m"))]).unwrap_err();
        assert_eq!(reason, "OutOfcpu");
        assert_eq!(
            message,
            "Node didn't have enough resource: cpu, requested: 1500, used: 501, capacity: 2000"
        );
        let full = [pod(sized("0")), pod(sized("0"))];
        assert_eq!(check(sized("0"), &full).unwrap_err().0, "OutOfpods");
        let gpu = |count: &str| json!({"containers": [{"name": "c", "resources": {"limits": {"example.com/gpu": count}}}]});
        assert_eq!(check(gpu("1"), &[]), Ok(()));
        assert_eq!(check(gpu("2"), &[]).unwrap_err().0, "OutOfexample.com/gpu");
    }

    #[test]
    fn labels_and_affinity_decide() {
        let selected = |zone: &str| json!({"containers": [], "nodeSelector": {"zone": zone}});
        assert_eq!(check(selected("a"), &[]), Ok(()));
        assert_eq!(check(selected("b"), &[]).unwrap_err().0, "NodeAffinity");
        let affine = |field: &str, key: &str, value: &str| {
            let term = json!({field: [{"key": key, "operator": "In", "values": [value]}]});
            json!({"containers": [], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}, term]}}}})
        };
        assert_eq!(check(affine("matchFields", "metadata.name", "n"), &[]), Ok(()));
        assert_eq!(check(affine("matchExpressions", "zone", "a"), &[]), Ok(()));
        assert!(check(affine("matchExpressions", "zone", "b"), &[]).is_err());
    }

    #[test]
    fn a_host_port_is_one_pods() {
        let port = |ip: &str, protocol: &str| {
            json!({"containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 80, "hostIP": ip, "protocol": protocol}]}]})
        };
        let other = [pod(port("0.0.0.0", "TCP"))];
        assert_eq!(check(port("127.0.0.1", "TCP"), &other).unwrap_err().0, "NodePorts");
        assert_eq!(check(port("127.0.0.1", "UDP"), &other), Ok(()));
        let bound = [pod(port("10.0.0.1", "TCP"))];
        assert_eq!(check(port("127.0.0.1", "TCP"), &bound), Ok(()));
    }

    #[test]
    fn resource_claims_are_refused() {
        let claims = json!({"containers": [], "resourceClaims": [{"name": "gpu", "resourceClaimName": "g"}]});
        assert_eq!(check(claims, &[]).unwrap_err().0, "ResourceClaims");
    }

    #[test]
    fn a_pod_that_needs_a_feature_of_another_node_is_refused() {
        let rules =
            json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]);
        let spec = json!({"containers": [{"name": "c", "restartPolicyRules": rules}]});
        let text = "Pod requires node features that are not available: RestartAllContainersOnContainerExits";
        assert_eq!(check(spec, &[]), Err(("PodFeatureUnsupported".to_owned(), text.to_owned())));
    }

    #[test]
    fn windows_pods_are_refused() {
        let windows = json!({"containers": [], "os": {"name": "windows"}});
        assert_eq!(check(windows, &[]).unwrap_err().0, "PodOSNotSupported");
    }
}
