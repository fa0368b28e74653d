//! One round of scheduling: from what is known of Pods and nodes to decisions. Pure.

use std::collections::HashMap;

use informer::{Store, Update};

use crate::filter::{Place, Refusal, check, is_tolerated, message};
use crate::model::{Namespace, Node, Pod, RuntimeClass};

/// What a round decides about a Pod.
#[derive(Clone, Debug)]
pub(crate) enum Decision {
    /// It goes to a node.
    Bind {
        /// The Pod.
        pod: Pod,
        /// The node's name.
        node: String,
    },
    /// It fits nowhere.
    Refuse {
        /// The Pod.
        pod: Pod,
        /// Why, for people.
        message: String,
    },
}

/// Which Pods the nodes fence, unless a namespace's label says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fencing {
    /// Those that ask, and those that can be: none must be.
    #[default]
    Some,
    /// All (the policy `always`).
    All,
}

/// What the scheduler knows.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pods: Store<Pod>,
    nodes: Store<Node>,
    namespaces: Store<Namespace>,
    runtime_classes: Store<RuntimeClass>,
    /// The nodes' policy demands a user namespace for each Pod.
    fences_all: bool,
    /// Pods that are being bound, by key: UID and node. They take room although the API does not say so yet.
    assumed: HashMap<String, (String, String)>,
    /// What was said last about Pods that fit nowhere, by UID.
    told: HashMap<String, String>,
}

impl Cluster {
    /// Nothing is known yet but the nodes' policy.
    pub(crate) fn new(fencing: Fencing) -> Self {
        Self { fences_all: fencing == Fencing::All, ..Self::default() }
    }

    pub(crate) fn apply_pods(&mut self, update: Update<Pod>) {
        for key in self.pods.apply(update) {
            let known = self.pods.get(&key);
            let is_settled =
                |uid: &str| known.is_none_or(|p| p.meta.uid != uid || !p.node.is_empty() || p.is_deleting);
            if self.assumed.get(&key).is_some_and(|(uid, _)| is_settled(uid)) {
                self.assumed.remove(&key);
            }
        }
        if self.told.len() > self.pods.len() {
            let living: Vec<&str> = self.pods.iter().map(|p| p.meta.uid.as_str()).collect();
            self.told.retain(|uid, _| living.contains(&uid.as_str()));
        }
    }

    pub(crate) fn apply_nodes(&mut self, update: Update<Node>) {
        self.nodes.apply(update);
    }

    pub(crate) fn apply_namespaces(&mut self, update: Update<Namespace>) {
        self.namespaces.apply(update);
    }

    pub(crate) fn apply_runtime_classes(&mut self, update: Update<RuntimeClass>) {
        self.runtime_classes.apply(update);
    }

    /// A Pod with the handler of its runtime class, and as its namespace's policy makes it: under `always` one that
    /// says nothing asks for a user namespace.
    fn as_decided(&self, mut pod: Pod) -> Pod {
        if let Some(class) = self.runtime_classes.get(&pod.runtime_class) {
            pod.handler = Some(class.handler.clone());
        }
        let label = self.namespaces.get(&pod.meta.namespace).and_then(|namespace| namespace.fences_all);
        if label.unwrap_or(self.fences_all) {
            pod.host_users = pod.host_users.or(Some(false));
        }
        pod
    }

    /// A binding that failed no longer takes room; the Pod is decided about again.
    pub(crate) fn forget(&mut self, key: &str) {
        self.assumed.remove(key);
    }

    /// Whether a Pod waits and all is known that decides about it.
    fn is_next(&self, pod: &Pod) -> bool {
        let is_known = pod.runtime_class.is_empty() || self.runtime_classes.is_synced();
        pod.is_waiting && is_known && !self.assumed.contains_key(&pod.meta.key())
    }

    /// Decides about every Pod that waits, the most important and oldest first.
    pub(crate) fn plan(&mut self) -> Vec<Decision> {
        if !self.pods.is_synced() || !self.nodes.is_synced() || !self.namespaces.is_synced() {
            return Vec::new();
        }
        let mut waiting: Vec<Pod> = self
            .pods
            .iter()
            .filter(|pod| self.is_next(pod))
            .cloned()
            .map(|pod| self.as_decided(pod))
            .collect();
        if waiting.is_empty() {
            return Vec::new();
        }
        waiting.sort_by(|a, b| {
            (b.priority, &a.created, a.meta.key()).cmp(&(a.priority, &b.created, b.meta.key()))
        });
        let mut places = self.places();
        waiting.into_iter().filter_map(|pod| self.decide(pod, &mut places)).collect()
    }

    fn places(&self) -> Vec<Place> {
        let mut places: Vec<Place> = self.nodes.iter().cloned().map(Place::new).collect();
        let index: HashMap<String, usize> =
            places.iter().enumerate().map(|(i, p)| (p.node.meta.name.clone(), i)).collect();
        for pod in self.pods.iter().filter(|p| p.is_active) {
            let assumed = self.assumed.get(&pod.meta.key()).map(|(_, node)| node);
            let node = if pod.node.is_empty() { assumed } else { Some(&pod.node) };
            if let Some(place) = node.and_then(|n| index.get(n)).and_then(|i| places.get_mut(*i)) {
                place.add(pod.clone());
            }
        }
        places
    }

    fn decide(&mut self, pod: Pod, places: &mut [Place]) -> Option<Decision> {
        let mut refusals: Vec<Refusal> = Vec::new();
        let mut best: Option<(Score, usize)> = None;
        for (i, place) in places.iter().enumerate() {
            match check(&pod, place, places) {
                Ok(()) => {
                    let score = score(&pod, place);
                    if best.is_none_or(|(best, _)| score > best) {
                        best = Some((score, i));
                    }
                }
                Err(refusal) => refusals.push(refusal),
            }
        }
        if let Some(place) = best.and_then(|(_, i)| places.get_mut(i)) {
            let node = place.node.meta.name.clone();
            place.add(pod.clone());
            self.assumed.insert(pod.meta.key(), (pod.meta.uid.clone(), node.clone()));
            self.told.remove(&pod.meta.uid);
            return Some(Decision::Bind { pod, node });
        }
        let message = message(&refusals);
        let is_told = self.told.get(&pod.meta.uid).or(pod.told.as_ref()) == Some(&message);
        self.told.insert(pod.meta.uid.clone(), message.clone());
        (!is_told).then_some(Decision::Refuse { pod, message })
    }
}

/// Larger is better: fewer soft taints first, then more room left, in ten-thousandths.
type Score = (i64, i64);

fn score(pod: &Pod, place: &Place) -> Score {
    let soft = place.node.taints.iter().filter(|t| t.effect == "PreferNoSchedule");
    let soft = soft.filter(|t| !is_tolerated(&pod.tolerations, t)).count();
    let room = [place.node.allocatable.get("cpu"), place.node.allocatable.get("memory")];
    let wanted = pod.requests.scored();
    let shares = room.iter().zip(place.scored).zip(wanted).map(|((room, used), wanted)| {
        let left = room.saturating_sub(used).saturating_sub(wanted).max(0);
        i128::from(left) * 10_000 / i128::from((*room).max(1))
    });
    let left: i128 = shares.sum();
    (-i64::try_from(soft).unwrap_or(i64::MAX), i64::try_from(left).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn node(name: &str, cpu: &str) -> Node {
        json!({"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}})
        .into()
    }

    fn pod(name: &str, cpu: &str, node: &str) -> Pod {
        json!({"metadata": {"name": name, "namespace": "d", "uid": format!("u-{name}")},
            "spec": {"schedulerName": "default-scheduler", "nodeName": node,
                "containers": [{"resources": {"requests": {"cpu": cpu}}}]}, "status": {"phase": "Pending"}})
        .into()
    }

    fn cluster(nodes: Vec<Node>, pods: Vec<Pod>) -> Cluster {
        let mut cluster = Cluster::default();
        cluster.apply_nodes(Update::Snapshot(nodes));
        cluster.apply_pods(Update::Snapshot(pods));
        cluster.apply_namespaces(Update::Snapshot(Vec::new()));
        cluster.apply_runtime_classes(Update::Snapshot(Vec::new()));
        cluster
    }

    #[test]
    fn a_pod_that_must_be_fenced_goes_where_it_can_be() {
        let able = |name: &str| {
            Node::from(json!({"metadata": {"name": name}, "status": {
                "conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"cpu": "1", "memory": "8Gi", "pods": "9"},
                "runtimeHandlers": [{"name": "", "features": {"userNamespaces": true}}]}}))
        };
        let mut unable = node("old", "64");
        unable.userns_problem = "overlay can't be ID-mapped".into();
        let asking = |name: &str| Pod { host_users: Some(false), ..pod(name, "1", "") };
        assert_eq!(told(&cluster(vec![unable.clone(), able("new")], vec![asking("a")]).plan()), ["a -> new"]);
        assert_eq!(
            told(&cluster(vec![unable.clone(), able("new")], vec![pod("a", "1", "")]).plan()),
            ["a -> old"]
        );
        let refused = told(&cluster(vec![unable.clone(), node("bare", "1")], vec![asking("a")]).plan());
        assert_eq!(
            refused,
            [
                "a: 0/2 nodes are available: 1 node(s) can't make user namespaces (it reports no runtime handlers), \
              1 node(s) can't make user namespaces (overlay can't be ID-mapped). \
              preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling."
            ]
        );
        let mut strict = cluster(vec![unable.clone()], vec![pod("a", "1", "")]);
        let label = json!({"metadata": {"name": "d", "labels": {"kakoi.dev/user-namespaces": "always"}}});
        strict.apply_namespaces(Update::Snapshot(vec![label.into()]));
        assert!(told(&strict.plan())[0].contains("can't make user namespaces"));
        let mut strict = cluster(vec![unable], vec![pod("a", "1", "")]);
        strict.fences_all = true;
        assert!(told(&strict.plan())[0].contains("can't make user namespaces"));
    }

    #[test]
    fn a_fenced_pod_of_a_runtime_class_goes_where_that_handler_makes_user_namespaces() {
        let with = |name: &str, handlers: serde_json::Value| {
            Node::from(json!({"metadata": {"name": name}, "status": {
                "conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"cpu": "1", "memory": "8Gi", "pods": "9"},
                "runtimeHandlers": handlers}}))
        };
        let yes = json!({"userNamespaces": true});
        let nodes = vec![
            with("default-only", json!([{"name": "", "features": yes}])),
            with("old-kata", json!([{"name": "", "features": yes}, {"name": "kata", "features": {}}])),
        ];
        let of_class = |class: &str| {
            let handler = class.is_empty().then(String::new);
            Pod { host_users: Some(false), runtime_class: class.into(), handler, ..pod("a", "1", "") }
        };
        let class = json!({"metadata": {"name": "strong"}, "handler": "kata"});
        let told_of = |mut nodes: Vec<Node>, more: Option<Node>, pod: Pod| {
            nodes.extend(more);
            let mut cluster = cluster(nodes, vec![pod]);
            cluster.apply_runtime_classes(Update::Snapshot(vec![class.clone().into()]));
            told(&cluster.plan()).remove(0)
        };
        let refused = told_of(nodes.clone(), None, of_class("strong"));
        assert!(
            refused.contains("1 node(s) can't make user namespaces (it has no runtime handler `kata`)"),
            "{refused}"
        );
        assert!(refused.contains("(its runtime handler `kata` reports none)"), "{refused}");
        let new = with("new-kata", json!([{"name": "kata", "features": yes}]));
        assert_eq!(told_of(nodes.clone(), Some(new), of_class("strong")), "a -> new-kata");
        let unfenced = Pod { host_users: None, ..of_class("strong") };
        assert!(told_of(nodes.clone(), None, unfenced).contains("->"));
        assert!(
            told_of(nodes, None, of_class("gone")).contains("->"),
            "the kubelet tells of a class that is gone"
        );
    }

    fn told(decisions: &[Decision]) -> Vec<String> {
        decisions
            .iter()
            .map(|d| match d {
                Decision::Bind { pod, node } => format!("{} -> {node}", pod.meta.name),
                Decision::Refuse { pod, message } => format!("{}: {message}", pod.meta.name),
            })
            .collect()
    }

    #[test]
    fn nothing_is_decided_before_all_is_known() {
        let mut cluster = Cluster::default();
        cluster.apply_pods(Update::Snapshot(vec![pod("p", "1", "")]));
        assert!(cluster.plan().is_empty());
        cluster.apply_nodes(Update::Snapshot(Vec::new()));
        let of_class = Pod { runtime_class: "c".into(), handler: None, ..pod("q", "1", "") };
        cluster.apply_pods(Update::Applied(of_class));
        cluster.apply_namespaces(Update::Snapshot(Vec::new()));
        assert_eq!(told(&cluster.plan()), ["p: no nodes available to schedule pods"]);
        cluster.apply_runtime_classes(Update::Snapshot(Vec::new()));
        assert_eq!(told(&cluster.plan()), ["q: no nodes available to schedule pods"]);
    }

    #[test]
    fn a_pod_is_bound_once_and_takes_room_at_once() {
        let mut cluster = cluster(vec![node("n", "1")], vec![pod("a", "600m", ""), pod("b", "600m", "")]);
        let first = told(&cluster.plan());
        assert_eq!(first[0], "a -> n");
        assert!(first[1].starts_with("b: 0/1 nodes are available: 1 Insufficient cpu."));
        assert!(cluster.plan().is_empty(), "the same is not said twice");
        cluster.apply_pods(Update::Applied(pod("a", "600m", "n")));
        assert!(cluster.plan().is_empty());
        cluster.apply_pods(Update::Deleted(pod("a", "600m", "n")));
        assert_eq!(told(&cluster.plan()), ["b -> n"]);
    }

    #[test]
    fn a_failed_binding_is_tried_again() {
        let mut cluster = cluster(vec![node("n", "1")], vec![pod("a", "1", "")]);
        assert_eq!(told(&cluster.plan()), ["a -> n"]);
        cluster.forget("d/a");
        assert_eq!(told(&cluster.plan()), ["a -> n"]);
    }

    #[test]
    fn what_was_told_before_a_restart_is_not_told_again() {
        let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
        let mut waiting = pod("a", "2", "");
        waiting.told = Some(message.into());
        let mut cluster = cluster(vec![node("n", "1")], vec![waiting]);
        assert!(cluster.plan().is_empty());
    }

    #[test]
    fn the_emptiest_node_wins_and_the_most_important_pod_goes_first() {
        let mut important = pod("z", "1", "");
        important.priority = 1000;
        let mut cluster = cluster(
            vec![node("a", "4"), node("b", "4")],
            vec![pod("old", "1", "a"), pod("p", "1", ""), important],
        );
        assert_eq!(told(&cluster.plan()), ["z -> b", "p -> a"]);
    }

    #[test]
    fn a_new_pod_of_the_same_name_is_another_pod() {
        let mut cluster = cluster(vec![node("n", "4")], vec![pod("a", "1", "")]);
        assert_eq!(cluster.plan().len(), 1);
        let mut other = pod("a", "1", "");
        other.meta.uid = "u-2".into();
        cluster.apply_pods(Update::Applied(other));
        assert_eq!(told(&cluster.plan()), ["a -> n"]);
    }

    proptest! {
        #[test]
        fn no_node_is_given_more_than_it_has(asked in prop::collection::vec(1_i64..900, 1..40)) {
            let pods: Vec<Pod> = asked.iter().enumerate().map(|(i, cpu)| pod(&format!("p{i}"), &format!("{cpu}m"), "")).collect();
            let mut cluster = cluster(vec![node("a", "2"), node("b", "3")], pods);
            let mut used: HashMap<String, i64> = HashMap::new();
            for decision in cluster.plan() {
                if let Decision::Bind { pod, node } = decision {
                    *used.entry(node).or_default() += pod.requests.get("cpu");
                }
            }
            prop_assert!(used.get("a").copied().unwrap_or_default() <= 2000);
            prop_assert!(used.get("b").copied().unwrap_or_default() <= 3000);
        }
    }

    #[test]
    fn ended_pods_take_no_room() {
        let mut ended = pod("old", "1", "n");
        ended.is_active = false;
        let mut cluster = cluster(vec![node("n", "1")], vec![ended, pod("p", "1", "")]);
        assert_eq!(told(&cluster.plan()), ["p -> n"]);
    }
}
