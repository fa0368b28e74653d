//! Whether a container that is not running is started (again).
//!
//! Source: upstream's `ShouldContainerBeRestarted` with container-level policies and rules (KEP-5307).

use k8s_openapi::api::core::v1::{Container, Pod};

use super::observed::{ContainerRecord, Stage};

/// The action of a rule that restarts the container that ended.
const RESTART: &str = "Restart";
/// The action of a rule that restarts all containers of the Pod (KEP-5532).
pub(crate) const RESTART_ALL: &str = "RestartAllContainers";

/// A restart policy, of a Pod or of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text? {
            "Always" => Some(Self::Always),
            "OnFailure" => Some(Self::OnFailure),
            "Never" => Some(Self::Never),
            _ => None,
        }
    }

    /// The Pod's policy; the API's default is `Always`.
    pub(crate) fn of_pod(pod: &Pod) -> Self {
        let text = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
        Self::parse(text).unwrap_or(Self::Always)
    }

    /// The policy of a container: its own, or the Pod's.
    pub(crate) fn of(pod: &Pod, container: &Container) -> Self {
        Self::parse(container.restart_policy.as_deref()).unwrap_or_else(|| Self::of_pod(pod))
    }

    /// The policy of an init container: under `Always` of the Pod a failed one is retried until it succeeds.
    pub(crate) fn of_init(pod: &Pod, container: &Container) -> Self {
        match Self::of(pod, container) {
            Self::Always if !is_sidecar(container) => Self::OnFailure,
            policy => policy,
        }
    }

    /// Would this policy start a container again that ended with `exit_code`?
    pub(crate) fn restarts_after(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// An init container that keeps running beside the others (KEP-753).
pub(crate) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Is the container started, given its newest record?
pub(crate) fn must_start(pod: &Pod, container: &Container, record: Option<&ContainerRecord>) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let Some(record) = record else { return true };
    match record.stage {
        Stage::Running => false,
        Stage::Created | Stage::Unknown => true,
        Stage::Exited => restarts_after(RestartPolicy::of(pod, container), container, record.exit_code),
    }
}

/// Is a container that ended with `exit_code` started again, by its rules or else by `policy`?
pub(crate) fn restarts_after(policy: RestartPolicy, container: &Container, exit_code: i32) -> bool {
    let action = matching_action(container, exit_code);
    action.is_some_and(|action| matches!(action, RESTART | RESTART_ALL)) || policy.restarts_after(exit_code)
}

/// The action of the first rule in `restartPolicyRules` that matches the exit code.
pub(crate) fn matching_action(container: &Container, exit_code: i32) -> Option<&str> {
    let mut rules = container.restart_policy_rules.iter().flatten();
    let matching = rules.find(|rule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    });
    matching.map(|rule| rule.action.as_str())
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use serde_json::json;

    use super::super::observed::fixture::container as record;
    use super::*;

    fn pod(policy: &str, container: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"restartPolicy": policy, "containers": [container]}})).unwrap()
    }

    #[test]
    fn the_policy_decides_by_the_exit_code() {
        for (policy, own, exit_code, expected) in [
            ("Always", None, 0, true),
            ("Always", None, 1, true),
            ("OnFailure", None, 0, false),
            ("OnFailure", None, 1, true),
            ("Never", None, 1, false),
            ("Never", Some("OnFailure"), 1, true),
            ("Always", Some("Never"), 1, false),
        ] {
            let pod = pod(policy, json!({"name": "c", "restartPolicy": own}));
            let container = &pod.spec.as_ref().unwrap().containers[0];
            let dead = record("c", 0, Stage::Exited, exit_code);
            assert_eq!(must_start(&pod, container, Some(&dead)), expected, "{policy} {own:?} {exit_code}");
            assert!(must_start(&pod, container, None));
            assert!(!must_start(&pod, container, Some(&record("c", 0, Stage::Running, 0))));
            assert!(must_start(&pod, container, Some(&record("c", 0, Stage::Unknown, 0))));
        }
    }

    #[test]
    fn a_rule_restarts_what_the_policy_would_leave() {
        let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
        let pod = pod("Never", json!({"name": "c", "restartPolicy": "Never", "restartPolicyRules": rules}));
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert!(must_start(&pod, container, Some(&record("c", 0, Stage::Exited, 42))));
        assert!(!must_start(&pod, container, Some(&record("c", 0, Stage::Exited, 1))));
    }

    #[test]
    fn nothing_starts_in_a_pod_that_is_being_deleted() {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"containers": [{"name": "c"}]}}))
            .unwrap();
        assert!(!must_start(&pod, &pod.spec.as_ref().unwrap().containers[0], None));
    }
}
