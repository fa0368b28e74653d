//! The status of a budget, from its Pods and from how many there should be. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::model::{Amount, Budget, Condition, Pod, Spec, Status};
use crate::event::seconds;

/// How long an evicted Pod counts as gone although nobody sees it end.
const DISRUPTION: SignedDuration = SignedDuration::from_mins(2);
/// The condition that says whether an eviction is allowed now.
const CONDITION: &str = "DisruptionAllowed";

/// A new status, and when to look again though nothing changes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) status: Status,
    pub(crate) again: Option<Duration>,
}

/// Whether the number of Pods that there should be must be asked of their controllers.
pub(crate) fn needs_scale(spec: &Spec) -> bool {
    spec.max_unavailable.is_some() || spec.min_available.as_ref().is_some_and(Amount::is_share)
}

/// The status of a budget. `scale` is how many Pods the controllers of `pods` should have, where that was asked.
pub(crate) fn plan(budget: &Budget, pods: &[&Pod], scale: i64, now: Timestamp) -> Verdict {
    let (disrupted, again) = still_disrupted(budget, pods, now);
    let count = i64::try_from(pods.len()).unwrap_or(i64::MAX);
    let (expected, desired) = wanted(&budget.spec, scale, count);
    let is_healthy = |pod: &&&Pod| pod.is_ready && !pod.is_deleted && !disrupted.contains_key(&pod.key.name);
    let healthy = i64::try_from(pods.iter().filter(is_healthy).count()).unwrap_or(i64::MAX);
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let mut status = Status {
        observed_generation: budget.generation,
        disrupted_pods: disrupted,
        disruptions_allowed: allowed,
        current_healthy: healthy,
        desired_healthy: desired,
        expected_pods: expected,
        conditions: budget.status.conditions.clone(),
    };
    let (value, reason) =
        if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    set_condition(&mut status, (value, reason, ""), now);
    Verdict { status, again }
}

/// The status when the number of Pods can't be found out: nothing may be evicted.
pub(crate) fn failed(budget: &Budget, message: &str, now: Timestamp) -> Status {
    let mut status =
        Status { observed_generation: budget.generation, disruptions_allowed: 0, ..budget.status.clone() };
    set_condition(&mut status, ("False", "SyncFailed", message), now);
    status
}

/// How many Pods there should be, and how many of them healthy.
fn wanted(spec: &Spec, scale: i64, count: i64) -> (i64, i64) {
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => (scale, (scale - most.of(scale)).max(0)),
        (None, Some(least)) if least.is_share() => (scale, least.of(scale)),
        (None, Some(least)) => (count, least.of(count)),
        (None, None) => (count, 0),
    }
}

/// The evicted Pods that are not seen to end yet, and when the first of them counts as there again.
fn still_disrupted(
    budget: &Budget,
    pods: &[&Pod],
    now: Timestamp,
) -> (BTreeMap<String, String>, Option<Duration>) {
    let mut left = BTreeMap::new();
    let mut again: Option<Duration> = None;
    for (name, at) in &budget.status.disrupted_pods {
        let is_there = pods.iter().any(|pod| pod.key.name == *name && !pod.is_deleted);
        let until = at.parse::<Timestamp>().ok().map(|at| at + DISRUPTION).filter(|until| *until > now);
        let Some(until) = until.filter(|_| is_there) else { continue };
        let wait = until.duration_since(now).unsigned_abs();
        again = Some(again.map_or(wait, |again| again.min(wait)));
        left.insert(name.clone(), at.clone());
    }
    (left, again)
}

/// Sets the condition; its time changes with its status alone.
fn set_condition(status: &mut Status, (value, reason, message): (&str, &str, &str), now: Timestamp) {
    let former = status.conditions.iter().find(|condition| condition.kind == CONDITION);
    let since =
        former.filter(|former| former.status == value).map(|former| former.last_transition_time.clone());
    let condition = Condition {
        kind: CONDITION.to_owned(),
        status: value.to_owned(),
        observed_generation: status.observed_generation,
        last_transition_time: since.unwrap_or_else(|| seconds(now)),
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    status.conditions.retain(|condition| condition.kind != CONDITION);
    status.conditions.push(condition);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    #[expect(clippy::needless_pass_by_value, reason = "a value is made where it is used")]
    fn budget(spec: Value, status: Value) -> Budget {
        let object = json!({"metadata": {"namespace": "team", "name": "b", "generation": 3}, "spec": spec, "status": status});
        serde_json::from_value(object).unwrap()
    }

    fn pod(name: &str, is_ready: bool, is_deleted: bool) -> Pod {
        let ready = if is_ready { "True" } else { "False" };
        let at = is_deleted.then_some("2026-11-23T11:00:00Z");
        serde_json::from_value(
            json!({"metadata": {"namespace": "team", "name": name, "deletionTimestamp": at},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}}),
        )
        .unwrap()
    }

    fn allowed(spec: Value, scale: i64, pods: &[Pod]) -> (i64, i64, i64, i64) {
        let pods: Vec<&Pod> = pods.iter().collect();
        let status = plan(&budget(spec, json!({})), &pods, scale, now()).status;
        (status.expected_pods, status.desired_healthy, status.current_healthy, status.disruptions_allowed)
    }

    #[test]
    fn a_budget_counts_by_number_and_by_share() {
        let pods =
            [pod("a", true, false), pod("b", true, false), pod("c", true, false), pod("d", false, false)];
        for (what, spec, expected) in [
            ("at least 2", json!({"minAvailable": 2}), (4, 2, 3, 1)),
            ("at least 3", json!({"minAvailable": 3}), (4, 3, 3, 0)),
            ("at least 4", json!({"minAvailable": 4}), (4, 4, 3, 0)),
            ("at least half of 5", json!({"minAvailable": "50%"}), (5, 3, 3, 0)),
            ("at most 1 of 5", json!({"maxUnavailable": 1}), (5, 4, 3, 0)),
            ("at most 40% of 5", json!({"maxUnavailable": "40%"}), (5, 3, 3, 0)),
            ("at most 41% of 5", json!({"maxUnavailable": "41%"}), (5, 2, 3, 1)),
            ("at most 9 of 5", json!({"maxUnavailable": 9}), (5, 0, 3, 3)),
        ] {
            assert_eq!(allowed(spec, 5, &pods), expected, "{what}");
        }
        assert_eq!(
            allowed(json!({"minAvailable": 0}), 0, &[]),
            (0, 0, 0, 0),
            "without Pods nothing is allowed"
        );
    }

    #[test]
    fn what_ends_or_was_evicted_is_not_healthy() {
        let pods = [pod("a", true, false), pod("b", true, true), pod("c", true, false)];
        let status = json!({"disruptedPods": {"c": "2026-11-23T11:59:00Z", "b": "2026-11-23T11:59:30Z",
            "gone": "2026-11-23T11:59:59Z"}});
        let budget = budget(json!({"minAvailable": 1}), status);
        let pods: Vec<&Pod> = pods.iter().collect();
        let verdict = plan(&budget, &pods, 0, now());
        assert_eq!(verdict.status.disrupted_pods.keys().collect::<Vec<_>>(), ["c"]);
        assert_eq!((verdict.status.current_healthy, verdict.status.disruptions_allowed), (1, 0));
        assert_eq!(verdict.again, Some(Duration::from_mins(1)));
        let later = now() + SignedDuration::from_secs(61);
        let verdict = plan(&budget, &pods, 0, later);
        assert_eq!((verdict.status.current_healthy, verdict.again), (2, None));
    }

    #[test]
    fn the_conditions_time_is_that_of_its_last_change() {
        let pods = [pod("a", true, false)];
        let pods: Vec<&Pod> = pods.iter().collect();
        let first = plan(&budget(json!({"minAvailable": 0}), json!({})), &pods, 0, now()).status;
        assert_eq!(
            (first.conditions[0].status.as_str(), first.conditions[0].reason.as_str()),
            ("True", "SufficientPods")
        );
        let later = now() + SignedDuration::from_secs(60);
        let again = budget(json!({"minAvailable": 0}), serde_json::to_value(&first).unwrap());
        assert_eq!(plan(&again, &pods, 0, later).status, first);
        let broken = failed(&again, "no scale", later);
        let condition = &broken.conditions[0];
        assert_eq!(
            (condition.reason.as_str(), condition.last_transition_time.as_str()),
            ("SyncFailed", "2026-11-23T12:01:00Z")
        );
        assert_eq!(broken.disruptions_allowed, 0);
    }
}
