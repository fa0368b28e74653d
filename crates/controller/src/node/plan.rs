//! What is written about a node: pure decisions. Keys, reasons and messages are those of upstream's node lifecycle
//! controller, which schedulers, tolerations and users rely on.

use serde_json::{Value, json};

use super::model::{Node, Taint};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";

/// Which condition in which status is which taint.
const TAINTS: &[(&str, &str, &str)] = &[
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// The conditions that nobody knows when the kubelet is silent.
const REPORTED: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Nothing,
    /// The kubelet is silent: these conditions of the status.
    Forget(Vec<Value>),
    /// All taints of the node.
    Taint(Vec<Taint>),
}

/// Decides about a node; what is left to do follows when the watch has told this step.
pub(super) fn plan(node: &Node, is_silent: bool, now: &str) -> Step {
    if is_silent {
        let forgotten = forgotten(node, now);
        if !forgotten.is_empty() {
            return Step::Forget(forgotten);
        }
    }
    let taints = taints(node, now);
    if taints == node.spec.taints { Step::Nothing } else { Step::Taint(taints) }
}

/// The conditions that are not `Unknown` yet, as they will be.
fn forgotten(node: &Node, now: &str) -> Vec<Value> {
    let of = |name: &str| match node.condition(name) {
        Some(condition) if condition.status == "Unknown" => None,
        Some(_) => Some(json!({"type": name, "status": "Unknown", "reason": "NodeStatusUnknown",
            "message": "Kubelet stopped posting node status.", "lastTransitionTime": now})),
        None => Some(json!({"type": name, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
            "message": "Kubelet never posted node status.", "lastTransitionTime": now,
            "lastHeartbeatTime": node.metadata.creation_timestamp})),
    };
    REPORTED.iter().filter_map(|name| of(name)).collect()
}

/// The taints that the node's state asks for, beside those of others, which stay.
fn taints(node: &Node, now: &str) -> Vec<Taint> {
    let wanted = wanted(node);
    let is_wanted =
        |taint: &Taint| wanted.iter().any(|(key, effect)| taint.key == *key && taint.effect == *effect);
    let mut taints: Vec<Taint> =
        node.spec.taints.iter().filter(|taint| !is_ours(node, taint) || is_wanted(taint)).cloned().collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added: Some(now.to_owned()),
                value: String::new(),
            });
        }
    }
    taints
}

fn wanted(node: &Node) -> Vec<(&'static str, &'static str)> {
    let is_in =
        |name: &str, status: &str| node.condition(name).is_some_and(|condition| condition.status == status);
    let told: Vec<&str> =
        TAINTS.iter().filter(|(name, status, _)| is_in(name, status)).map(|(.., key)| *key).collect();
    let unschedulable = node.spec.unschedulable.then_some((UNSCHEDULABLE, NO_SCHEDULE));
    let leaving =
        told.iter().filter(|key| matches!(**key, NOT_READY | UNREACHABLE)).map(|key| (*key, NO_EXECUTE));
    told.iter().map(|key| (*key, NO_SCHEDULE)).chain(unschedulable).chain(leaving).collect()
}

/// Whether this controller answers for a taint. What a new node brings itself stays until its kubelet reports.
fn is_ours(node: &Node, taint: &Taint) -> bool {
    let is_readiness = matches!(taint.key.as_str(), NOT_READY | UNREACHABLE);
    match taint.effect.as_str() {
        _ if is_readiness && node.condition("Ready").is_none() => false,
        NO_SCHEDULE => taint.key == UNSCHEDULABLE || TAINTS.iter().any(|(.., key)| *key == taint.key),
        NO_EXECUTE => is_readiness,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-11-23T12:00:00Z";

    fn node(conditions: &[(&str, &str)], taints: &[&str], unschedulable: bool) -> Node {
        let conditions: Vec<_> =
            conditions.iter().map(|(name, status)| json!({"type": name, "status": status})).collect();
        let taints: Vec<_> = taints
            .iter()
            .map(|taint| {
                let (key, effect) = taint.split_once(':').unwrap();
                json!({"key": key, "effect": effect})
            })
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "n", "creationTimestamp": "2026-11-23T11:00:00Z"},
            "spec": {"taints": taints, "unschedulable": unschedulable}, "status": {"conditions": conditions}}))
        .unwrap()
    }

    fn names(step: &Step) -> Vec<String> {
        match step {
            Step::Taint(taints) => {
                taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_silent_kubelets_conditions_are_forgotten() {
        let node =
            node(&[("Ready", "True"), ("MemoryPressure", "False"), ("DiskPressure", "Unknown")], &[], false);
        let stopped = "Kubelet stopped posting node status.";
        let expected = Step::Forget(vec![
            json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": stopped,
                "lastTransitionTime": NOW}),
            json!({"type": "MemoryPressure", "status": "Unknown", "reason": "NodeStatusUnknown",
                "message": stopped, "lastTransitionTime": NOW}),
            json!({"type": "PIDPressure", "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                "message": "Kubelet never posted node status.", "lastTransitionTime": NOW,
                "lastHeartbeatTime": "2026-11-23T11:00:00Z"}),
        ]);
        assert_eq!(plan(&node, true, NOW), expected);
        assert_eq!(plan(&node, false, NOW), Step::Nothing);
    }

    #[test]
    fn taints_follow_the_conditions_and_those_of_others_stay() {
        let unreachable =
            ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"];
        let not_ready = ["node.kubernetes.io/not-ready:NoSchedule", "node.kubernetes.io/not-ready:NoExecute"];
        let mine = "example.com/mine:NoExecute";
        let all = |mine: &'static str, ours: [&'static str; 2]| [mine, ours[0], ours[1]];
        for (what, before, after) in [
            ("silent", node(&[("Ready", "Unknown")], &[mine], false), all(mine, unreachable).to_vec()),
            ("not ready", node(&[("Ready", "False")], &[mine], false), all(mine, not_ready).to_vec()),
            ("back", node(&[("Ready", "True")], &all(mine, unreachable), false), vec![mine]),
            (
                "from silent to not ready",
                node(&[("Ready", "False")], &unreachable, false),
                not_ready.to_vec(),
            ),
            (
                "pressure",
                node(&[("Ready", "True"), ("DiskPressure", "True")], &[], false),
                vec!["node.kubernetes.io/disk-pressure:NoSchedule"],
            ),
            (
                "cordoned",
                node(&[("Ready", "True")], &[], true),
                vec!["node.kubernetes.io/unschedulable:NoSchedule"],
            ),
            (
                "uncordoned",
                node(&[("Ready", "True")], &["node.kubernetes.io/unschedulable:NoSchedule"], false),
                vec![],
            ),
        ] {
            assert_eq!(names(&plan(&before, false, NOW)), after, "{what}");
        }
    }

    #[test]
    fn what_is_right_is_left_alone() {
        for node in [
            node(&[("Ready", "True"), ("DiskPressure", "False")], &["a:NoSchedule"], false),
            node(
                &[("Ready", "Unknown")],
                &[&format!("{UNREACHABLE}:NoSchedule"), &format!("{UNREACHABLE}:NoExecute")],
                false,
            ),
            // A new node that brings its own taint.
            node(&[], &["node.kubernetes.io/not-ready:NoSchedule"], false),
        ] {
            assert_eq!(plan(&node, false, NOW), Step::Nothing);
        }
    }

    #[test]
    fn a_taint_keeps_its_time() {
        let mut node = node(&[("Ready", "False")], &["node.kubernetes.io/not-ready:NoExecute"], false);
        node.spec.taints[0].time_added = Some("before".into());
        let Step::Taint(taints) = plan(&node, false, NOW) else { panic!("no taints") };
        let times: Vec<_> = taints.iter().map(|taint| taint.time_added.as_deref()).collect();
        assert_eq!(times, [Some("before"), Some(NOW)]);
    }
}
