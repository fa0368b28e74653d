//! When each kubelet was last heard. The time is this program's own: a kubelet lives when its lease or its status
//! *changes*, whatever its clock says, and nobody is silent just because the controllers were away.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::model::{Lease, Node};

/// How long a kubelet may be silent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// One that has reported before.
    pub(super) running: Duration,
    /// One that has not reported yet.
    pub(super) starting: Duration,
}

#[derive(Clone, Debug)]
struct Pulse {
    heard: Instant,
    renewed: Option<String>,
    reported: Option<String>,
}

/// All kubelets, by the name of their nodes.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulses {
    by_node: BTreeMap<String, Pulse>,
}

impl Pulses {
    /// Takes over what is known of a node now; gives whether the node is new.
    pub(super) fn observe(
        &mut self,
        name: &str,
        node: Option<&Node>,
        lease: Option<&Lease>,
        now: Instant,
    ) -> bool {
        let Some(node) = node else {
            self.by_node.remove(name);
            return false;
        };
        let renewed = lease.and_then(|lease| lease.renewed.clone());
        let reported = node.condition("Ready").and_then(|ready| ready.last_heartbeat_time.clone());
        let Some(pulse) = self.by_node.get_mut(name) else {
            self.by_node.insert(name.to_owned(), Pulse { heard: now, renewed, reported });
            return true;
        };
        let has_renewed = renewed.is_some() && renewed != pulse.renewed;
        let has_reported = reported.is_some() && reported != pulse.reported;
        if has_renewed || has_reported {
            *pulse = Pulse { heard: now, renewed, reported };
        }
        false
    }

    /// When a node's patience ends.
    pub(super) fn deadline(&self, node: &Node, patience: Patience) -> Option<Instant> {
        let pulse = self.by_node.get(&node.metadata.name)?;
        let is_starting = node.condition("Ready").is_none();
        Some(pulse.heard + if is_starting { patience.starting } else { patience.running })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(heartbeat: Option<&str>) -> Node {
        let ready = heartbeat.map(|at| json!({"type": "Ready", "status": "True", "lastHeartbeatTime": at}));
        let conditions: Vec<_> = ready.into_iter().collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "status": {"conditions": conditions}}))
            .unwrap()
    }

    fn lease(renewed: &str) -> Lease {
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"renewTime": renewed}})).unwrap()
    }

    #[test]
    fn only_what_changes_is_a_sign_of_life() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let patience = Patience { running: Duration::from_secs(40), starting: Duration::from_mins(1) };
        let mut pulses = Pulses::default();
        let silent = node(None);
        assert!(pulses.observe("n", Some(&silent), None, at(0)));
        assert_eq!(pulses.deadline(&silent, patience), Some(at(60)));
        let told = node(Some("t1"));
        let old = lease("long ago");
        for (second, node, lease, deadline) in [
            (5, &told, None, 45),
            (10, &told, Some(&old), 50),
            (15, &told, Some(&old), 50),
            (20, &told, Some(&lease("t2")), 60),
            (25, &node(Some("t3")), Some(&lease("t2")), 65),
            // The lease is gone: that is no sign of life.
            (30, &node(Some("t3")), None, 65),
        ] {
            assert!(!pulses.observe("n", Some(node), lease, at(second)));
            assert_eq!(pulses.deadline(node, patience), Some(at(deadline)), "after {second} s");
        }
        pulses.observe("n", None, None, at(31));
        assert_eq!(pulses.deadline(&told, patience), None);
    }
}
