//! Whether a Pod may be evicted: what its `PodDisruptionBudget` says, and what is written into the budget when it may.
//! Pure; the texts are upstream's.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::access::{Access, metadata, object_at, spec, status};
use crate::selector::selects;

/// More Pods that are about to go than this are a sign that nobody counts.
const MOST_DISRUPTED: usize = 2000;
/// How soon a client should try again whose budget is not yet computed, in seconds.
const COME_BACK: u32 = 10;

/// What a budget says.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The Pod may go, and the budget is not asked: it disrupts nothing.
    Free,
    /// The Pod may go; this is the budget after it.
    Granted(Box<Value>),
    /// Not now: the cause, and after how many seconds to ask again (0: none said).
    Later {
        /// The cause.
        why: String,
        /// Seconds.
        after: u32,
    },
    /// Never, as the budget stands.
    Never(String),
}

/// The budgets of a namespace that are about a Pod. A budget without a selector is about none.
pub fn budgets_of<'a>(budgets: &'a [Value], pod: &Value) -> Vec<&'a Value> {
    let is_about = |budget: &&Value| {
        spec(budget).field("selector").is_some_and(|selector| selects(selector, metadata(pod)))
    };
    budgets.iter().filter(is_about).collect()
}

/// Whether a Pod's eviction disrupts nothing, whatever its budget: it does not run, or goes already.
pub fn is_free(pod: &Value) -> bool {
    metadata(pod).field("deletionTimestamp").is_some()
        || matches!(status(pod).text("phase"), "Succeeded" | "Failed" | "Pending")
}

fn is_ready(pod: &Value) -> bool {
    let conditions = status(pod).list("conditions").iter();
    conditions.into_iter().any(|one| one.text("type") == "Ready" && one.text("status") == "True")
}

/// Asks a budget about a Pod that runs.
pub fn ask(budget: &Value, pod: &Value, now: Timestamp) -> Verdict {
    let (name, numbers) = (metadata(budget).text("name"), status(budget));
    let number = |field: &str| numbers.int(field).unwrap_or_default();
    let (healthy, desired) = (number("currentHealthy"), number("desiredHealthy"));
    if !is_ready(pod) {
        let policy = spec(budget).text("unhealthyPodEvictionPolicy");
        if policy == "AlwaysAllow" || (healthy >= desired && desired > 0) {
            return Verdict::Free;
        }
    }
    if number("observedGeneration") < metadata(budget).int("generation").unwrap_or_default() {
        let why = format!("The disruption budget {name} is still being processed by the server.");
        return Verdict::Later { why, after: COME_BACK };
    }
    let allowed = number("disruptionsAllowed");
    if allowed < 0 {
        return Verdict::Never("pdb disruptions allowed is negative".to_owned());
    }
    if numbers.map("disruptedPods").is_some_and(|pods| pods.len() > MOST_DISRUPTED) {
        return Verdict::Never(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller".to_owned(),
        );
    }
    if allowed == 0 {
        let why =
            format!("The disruption budget {name} needs {desired} healthy pods and has {healthy} currently");
        return Verdict::Later { why, after: 0 };
    }
    Verdict::Granted(Box::new(taken(budget, pod, allowed - 1, now)))
}

/// The budget with one disruption less, and the Pod named as about to go.
fn taken(budget: &Value, pod: &Value, left: i64, now: Timestamp) -> Value {
    let mut taken = budget.clone();
    let numbers = object_at(&mut taken, "status");
    numbers.insert("disruptionsAllowed".to_owned(), left.into());
    if let Some(status) = taken.get_mut("status") {
        let at = crate::time::format_seconds(now);
        object_at(status, "disruptedPods").insert(metadata(pod).text("name").to_owned(), at.into());
    }
    taken
}

/// The Pod with the condition that says why it goes.
#[must_use]
pub fn targeted(pod: &Value, now: Timestamp) -> Value {
    let mut marked = pod.clone();
    let mut condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": crate::time::format_seconds(now)});
    if let Some(generation) = metadata(pod).int("generation") {
        crate::access::set(&mut condition, "observedGeneration", generation);
    }
    let status = object_at(&mut marked, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|one| one.text("type") != "DisruptionTarget");
        list.push(condition);
    }
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(allowed: i64) -> Value {
        json!({"metadata": {"name": "b", "generation": 1}, "spec": {"selector": {"matchLabels": {"app": "web"}}},
            "status": {"observedGeneration": 1, "disruptionsAllowed": allowed, "currentHealthy": 2, "desiredHealthy": 2}})
    }

    fn pod(ready: &str) -> Value {
        json!({"metadata": {"name": "p", "labels": {"app": "web"}},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}})
    }

    #[test]
    fn a_budget_is_spent_pod_by_pod() {
        let Verdict::Granted(after) = ask(&budget(1), &pod("True"), Timestamp::UNIX_EPOCH) else { panic!() };
        assert_eq!(after["status"]["disruptionsAllowed"], 0);
        assert_eq!(after["status"]["disruptedPods"], json!({"p": "1970-01-01T00:00:00Z"}));
        assert_eq!(
            ask(&after, &pod("True"), Timestamp::UNIX_EPOCH),
            Verdict::Later {
                why: "The disruption budget b needs 2 healthy pods and has 2 currently".to_owned(),
                after: 0
            }
        );
    }

    #[test]
    fn an_unhealthy_pod_disrupts_nothing_while_enough_are_healthy() {
        assert_eq!(ask(&budget(0), &pod("False"), Timestamp::UNIX_EPOCH), Verdict::Free);
        let mut poor = budget(0);
        poor["status"]["currentHealthy"] = 1.into();
        assert!(matches!(ask(&poor, &pod("False"), Timestamp::UNIX_EPOCH), Verdict::Later { .. }));
        poor["spec"]["unhealthyPodEvictionPolicy"] = "AlwaysAllow".into();
        assert_eq!(ask(&poor, &pod("False"), Timestamp::UNIX_EPOCH), Verdict::Free);
    }

    #[test]
    fn a_budget_that_is_not_computed_yet_says_so() {
        let mut new = budget(1);
        new["metadata"]["generation"] = 2.into();
        assert!(matches!(ask(&new, &pod("True"), Timestamp::UNIX_EPOCH), Verdict::Later { after: 10, .. }));
    }

    #[test]
    fn selectors_choose_the_budget() {
        let all = [budget(1), json!({"spec": {}}), json!({"spec": {"selector": {}}})];
        assert_eq!(
            budgets_of(&all, &pod("True")).len(),
            2,
            "an empty selector selects all, none selects none"
        );
    }
}
