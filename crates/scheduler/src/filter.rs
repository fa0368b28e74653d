//! Which nodes a Pod can go to, and the reasons why not to the others, in upstream's words.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::model::{HostPort, Node, NodeTerm, Pod, PodTerm, Taint, Toleration};
use crate::resource::Resources;

const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// A node with what runs on it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    pub(crate) node: Node,
    pub(crate) used: Resources,
    /// CPU and memory as the score counts them.
    pub(crate) scored: [i64; 2],
    pub(crate) pods: Vec<Pod>,
}

impl Place {
    pub(crate) fn new(node: Node) -> Self {
        Self { node, ..Self::default() }
    }

    pub(crate) fn add(&mut self, pod: Pod) {
        self.used.add(&pod.requests);
        for (sum, amount) in self.scored.iter_mut().zip(pod.requests.scored()) {
            *sum = sum.saturating_add(amount);
        }
        self.pods.push(pod);
    }

    fn domain(&self, key: &str) -> Option<&str> {
        self.node.labels.get(key).and_then(Value::as_str)
    }
}

/// Why a node is out of the question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reasons: Vec<String>,
    /// Whether room could be made by removing Pods.
    pub(crate) is_resolvable: bool,
}

fn never(reason: &str) -> Result<(), Refusal> {
    Err(Refusal { reasons: vec![reason.to_owned()], is_resolvable: false })
}

fn not_now(reasons: Vec<String>) -> Result<(), Refusal> {
    if reasons.is_empty() { Ok(()) } else { Err(Refusal { reasons, is_resolvable: true }) }
}

/// Whether a Pod can go to a node; `places` are all nodes.
pub(crate) fn check(pod: &Pod, place: &Place, places: &[Place]) -> Result<(), Refusal> {
    unschedulable(pod, &place.node)?;
    taints(pod, &place.node)?;
    node_affinity(pod, &place.node)?;
    declared_features(pod, &place.node)?;
    user_namespaces(pod, &place.node)?;
    ports(pod, place)?;
    fit(pod, place)?;
    spread(pod, place, places)?;
    pod_affinity(pod, place, places)
}

fn unschedulable(pod: &Pod, node: &Node) -> Result<(), Refusal> {
    let taint = Taint { key: UNSCHEDULABLE_TAINT.into(), value: String::new(), effect: "NoSchedule".into() };
    if node.is_unschedulable && !pod.tolerations.iter().any(|t| t.tolerates(&taint)) {
        return never("node(s) were unschedulable");
    }
    Ok(())
}

fn taints(pod: &Pod, node: &Node) -> Result<(), Refusal> {
    let mut hard = node.taints.iter().filter(|t| matches!(t.effect.as_str(), "NoSchedule" | "NoExecute"));
    if hard.any(|taint| !is_tolerated(&pod.tolerations, taint)) {
        return never("node(s) had untolerated taint(s)");
    }
    Ok(())
}

/// Whether one of the tolerations covers a taint.
pub(crate) fn is_tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|t| t.tolerates(taint))
}

fn node_affinity(pod: &Pod, node: &Node) -> Result<(), Refusal> {
    let label = |key: &str| node.labels.get(key).and_then(Value::as_str);
    let is_selected = pod.node_selector.iter().all(|(key, value)| label(key) == Some(value));
    let is_wanted = pod.node_terms.as_ref().is_none_or(|terms| terms.iter().any(|t| term_matches(t, node)));
    if is_selected && is_wanted { Ok(()) } else { never("node(s) didn't match Pod's node affinity/selector") }
}

/// A Pod goes only where its node's kubelet declares the features that it needs (KEP-5328).
fn declared_features(pod: &Pod, node: &Node) -> Result<(), Refusal> {
    let unmet: Vec<&str> =
        pod.features.iter().copied().filter(|feature| !node.features.contains(*feature)).collect();
    if unmet.is_empty() {
        return Ok(());
    }
    let unmet = unmet.join(", ");
    never(&format!("node declared features check failed - unsatisfied requirements: {unmet}"))
}

/// A Pod that must have a user namespace goes only where its runtime handler reports them. Whether it must, and which
/// handler that is, is in the Pod by now.
fn user_namespaces(pod: &Pod, node: &Node) -> Result<(), Refusal> {
    let handler = pod.handler.as_deref().filter(|_| pod.host_users == Some(false));
    match handler.and_then(|handler| node.lacks_user_namespaces(handler)) {
        Some(problem) => never(&format!("node(s) can't make user namespaces ({problem})")),
        None => Ok(()),
    }
}

fn term_matches(term: &NodeTerm, node: &Node) -> bool {
    if term.labels.is_empty() && term.fields.is_empty() {
        return false;
    }
    let label = |key: &str| node.labels.get(key).and_then(Value::as_str);
    let field = |key: &str| (key == "metadata.name").then_some(node.meta.name.as_str());
    term.labels.iter().all(|r| r.matches_value(label(&r.key)))
        && term.fields.iter().all(|r| r.matches_value(field(&r.key)))
}

fn ports(pod: &Pod, place: &Place) -> Result<(), Refusal> {
    let taken: Vec<&HostPort> = place.pods.iter().flat_map(|p| &p.host_ports).collect();
    let is_taken = pod.host_ports.iter().any(|port| taken.iter().any(|other| port.conflicts(other)));
    let reason = "node(s) didn't have free ports for the requested pod ports";
    not_now(if is_taken { vec![reason.to_owned()] } else { Vec::new() })
}

fn fit(pod: &Pod, place: &Place) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    let room = &place.node.allocatable;
    let running = i64::try_from(place.pods.len()).unwrap_or(i64::MAX);
    if running >= room.get("pods") {
        reasons.push("Too many pods".to_owned());
    }
    let lacking = pod.requests.iter().filter(|(_, wanted)| *wanted > 0);
    let lacking =
        lacking.filter(|(name, wanted)| place.used.get(name).saturating_add(*wanted) > room.get(name));
    reasons.extend(lacking.map(|(name, _)| format!("Insufficient {name}")));
    not_now(reasons)
}

fn spread(pod: &Pod, place: &Place, places: &[Place]) -> Result<(), Refusal> {
    const REASON: &str = "node(s) didn't match pod topology spread constraints";
    for constraint in &pod.spread {
        let Some(own) = place.domain(&constraint.topology_key) else {
            return never(&format!("{REASON} (missing required label)"));
        };
        let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
        for other in places.iter().filter(|p| node_affinity(pod, &p.node).is_ok()) {
            let Some(domain) = other.domain(&constraint.topology_key) else { continue };
            let is_counted = |p: &&Pod| {
                p.meta.namespace == pod.meta.namespace
                    && !p.is_deleting
                    && constraint.selector.as_ref().is_some_and(|s| s.matches(Some(&p.labels)))
            };
            let count = other.pods.iter().filter(is_counted).count();
            *counts.entry(domain).or_default() += i64::try_from(count).unwrap_or(i64::MAX);
        }
        let least = counts.values().min().copied().unwrap_or_default();
        let itself = i64::from(constraint.selector.as_ref().is_some_and(|s| s.matches(Some(&pod.labels))));
        if counts.get(own).copied().unwrap_or_default() + itself - least > constraint.max_skew {
            not_now(vec![REASON.to_owned()])?;
        }
    }
    Ok(())
}

fn pod_affinity(pod: &Pod, place: &Place, places: &[Place]) -> Result<(), Refusal> {
    for term in &pod.affinity {
        let near = neighbours(term, place, places);
        let is_first = !places.iter().any(|p| p.pods.iter().any(|other| term.selects(other)));
        // The first of a group that wants to be together finds nobody yet.
        let is_met = near.is_some_and(|mut pods| pods.any(|other| term.selects(other)));
        let may_begin = is_first && term.selects(pod) && place.domain(&term.topology_key).is_some();
        if !is_met && !may_begin {
            return never("node(s) didn't match pod affinity rules");
        }
    }
    let meets = |term: &PodTerm, who: &dyn Fn(&Pod) -> bool| {
        neighbours(term, place, places).is_some_and(|mut pods| pods.any(who))
    };
    if pod.anti_affinity.iter().any(|term| meets(term, &|other| term.selects(other))) {
        return not_now(vec!["node(s) didn't match pod anti-affinity rules".to_owned()]);
    }
    let objects = |other: &Pod, at: &Place| {
        let mut terms = other.anti_affinity.iter();
        terms.any(|t| t.selects(pod) && same_domain(at, place, &t.topology_key))
    };
    if places.iter().any(|at| at.pods.iter().any(|other| objects(other, at))) {
        return not_now(vec!["node(s) didn't satisfy existing pods anti-affinity rules".to_owned()]);
    }
    Ok(())
}

fn same_domain(a: &Place, b: &Place, key: &str) -> bool {
    a.domain(key).is_some() && a.domain(key) == b.domain(key)
}

/// The Pods in the same domain; `None` when the node is in none.
fn neighbours<'a>(
    term: &PodTerm,
    place: &Place,
    places: &'a [Place],
) -> Option<impl Iterator<Item = &'a Pod>> {
    let domain = place.domain(&term.topology_key)?.to_owned();
    let key = term.topology_key.clone();
    Some(places.iter().filter(move |p| p.domain(&key) == Some(&domain)).flat_map(|p| &p.pods))
}

/// The message of a Pod that fits nowhere: how many nodes refuse it for which reason.
pub(crate) fn message(refusals: &[Refusal]) -> String {
    let nodes = refusals.len();
    if nodes == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in refusals.iter().flat_map(|r| &r.reasons) {
        *counts.entry(reason).or_default() += 1;
    }
    let mut texts: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    texts.sort_unstable();
    let resolvable = refusals.iter().filter(|r| r.is_resolvable).count();
    let mut preemption = Vec::new();
    if resolvable > 0 {
        preemption.push(format!("{resolvable} No preemption victims found for incoming pod"));
    }
    if nodes > resolvable {
        preemption.push(format!("{} Preemption is not helpful for scheduling", nodes - resolvable));
    }
    format!(
        "0/{nodes} nodes are available: {}. preemption: 0/{nodes} nodes are available: {}.",
        texts.join(", "),
        preemption.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, extra: &Value) -> Place {
        let mut object = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"cpu": "1", "memory": "1Gi", "pods": "2"}}});
        for (field, value) in extra.as_object().unwrap() {
            object["spec"][field] = value.clone();
        }
        Place::new(object.into())
    }

    fn pod(name: &str, spec: Value) -> Pod {
        let mut spec = spec;
        spec["schedulerName"] = json!("default-scheduler");
        Pod::from(json!({"metadata": {"name": name, "namespace": "d", "labels": {"app": "x"}}, "spec": spec}))
    }

    fn asking(cpu: &str) -> Value {
        json!({"containers": [{"resources": {"requests": {"cpu": cpu}}}]})
    }

    fn refusal(pod: &Pod, place: &Place) -> Vec<String> {
        match check(pod, place, std::slice::from_ref(place)) {
            Ok(()) => Vec::new(),
            Err(refusal) => refusal.reasons,
        }
    }

    #[test]
    fn each_filter_has_its_reason() {
        let plain = node("n", &json!({}));
        assert!(refusal(&pod("p", asking("1")), &plain).is_empty());
        assert_eq!(refusal(&pod("p", asking("2")), &plain), ["Insufficient cpu"]);
        let both = json!({"containers": [{"resources": {"requests": {"cpu": "2", "memory": "2Gi", "example.com/x": "1"}}}]});
        assert_eq!(
            refusal(&pod("p", both), &plain),
            ["Insufficient cpu", "Insufficient example.com/x", "Insufficient memory"]
        );
        assert_eq!(
            refusal(&pod("p", json!({})), &node("n", &json!({"unschedulable": true}))),
            ["node(s) were unschedulable"]
        );
        let tainted = node("n", &json!({"taints": [{"key": "a", "effect": "NoSchedule"}]}));
        assert_eq!(refusal(&pod("p", json!({})), &tainted), ["node(s) had untolerated taint(s)"]);
        assert!(refusal(&pod("p", json!({"tolerations": [{"operator": "Exists"}]})), &tainted).is_empty());
        assert_eq!(
            refusal(&pod("p", json!({"nodeSelector": {"disk": "ssd"}})), &plain),
            ["node(s) didn't match Pod's node affinity/selector"]
        );
    }

    #[test]
    fn a_full_node_takes_no_more_pods() {
        let mut place = node("n", &json!({}));
        place.add(pod("a", asking("400m")));
        assert!(refusal(&pod("p", asking("600m")), &place).is_empty());
        assert_eq!(refusal(&pod("p", asking("601m")), &place), ["Insufficient cpu"]);
        place.add(pod("b", json!({})));
        assert_eq!(refusal(&pod("p", json!({})), &place), ["Too many pods"]);
    }

    #[test]
    fn a_pod_goes_only_where_the_features_that_it_needs_are_declared() {
        let rules =
            json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]);
        let needs = pod("p", json!({"containers": [{"name": "c", "restartPolicyRules": rules}]}));
        let declares = |features: &[&str]| {
            let mut place = node("n", &json!({}));
            place.node.features = features.iter().map(ToString::to_string).collect();
            place
        };
        let able = declares(&["GuaranteedQoSPodCPUResize", "RestartAllContainersOnContainerExits"]);
        assert!(refusal(&needs, &able).is_empty());
        let expected = "node declared features check failed - unsatisfied requirements: RestartAllContainersOnContainerExits";
        assert_eq!(refusal(&needs, &declares(&["GuaranteedQoSPodCPUResize"])), [expected]);
        assert!(refusal(&pod("q", json!({})), &declares(&[])).is_empty());
    }

    #[test]
    fn a_host_port_is_taken_once() {
        let web = json!({"containers": [{"ports": [{"containerPort": 80, "hostPort": 80}]}]});
        let mut place = node("n", &json!({}));
        place.add(pod("a", web.clone()));
        assert_eq!(
            refusal(&pod("p", web), &place),
            ["node(s) didn't have free ports for the requested pod ports"]
        );
    }

    #[test]
    fn node_affinity_terms_are_alternatives() {
        let affinity = |terms: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}});
        let place = node("n", &json!({}));
        let by_name = json!([{"matchExpressions": [{"key": "x", "operator": "Exists"}]},
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]);
        assert!(refusal(&pod("p", affinity(by_name)), &place).is_empty());
        assert!(!refusal(&pod("p", affinity(json!([{}]))), &place).is_empty());
        let not_here = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n"]}]}]);
        assert!(!refusal(&pod("p", affinity(not_here)), &place).is_empty());
    }

    #[test]
    fn pods_that_avoid_each_other_do_not_meet() {
        let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "x"}}}]}}});
        let mut place = node("n", &json!({}));
        place.add(pod("a", json!({})));
        assert_eq!(
            refusal(&pod("p", apart.clone()), &place),
            ["node(s) didn't match pod anti-affinity rules"]
        );
        let mut place = node("n", &json!({}));
        place.add(pod("a", apart));
        assert_eq!(
            refusal(&pod("p", json!({})), &place),
            ["node(s) didn't satisfy existing pods anti-affinity rules"]
        );
    }

    #[test]
    fn pods_that_want_company_find_it_or_begin_it() {
        let together = |app: &str| {
            json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}}]}}})
        };
        let place = node("n", &json!({}));
        assert!(refusal(&pod("p", together("x")), &place).is_empty());
        assert_eq!(refusal(&pod("p", together("y")), &place), ["node(s) didn't match pod affinity rules"]);
    }

    #[test]
    fn spread_pods_fill_the_emptiest_domain() {
        let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "x"}}}]});
        let mut full = node("a", &json!({}));
        full.add(pod("1", json!({})));
        let places = [full, node("b", &json!({}))];
        let pod = pod("p", spread);
        assert_ne!(check(&pod, &places[0], &places), Ok(()));
        assert_eq!(check(&pod, &places[1], &places), Ok(()));
    }

    #[test]
    fn the_message_counts_nodes_by_reason() {
        let refusal = |reason: &str, is_resolvable| Refusal { reasons: vec![reason.into()], is_resolvable };
        assert_eq!(message(&[]), "no nodes available to schedule pods");
        assert_eq!(
            message(&[refusal("Insufficient cpu", true)]),
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
        );
        assert_eq!(
            message(&[
                refusal("Insufficient cpu", true),
                refusal("node(s) were unschedulable", false),
                refusal("Insufficient cpu", true)
            ]),
            "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu. preemption: 0/3 nodes are available: 2 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."
        );
    }
}
