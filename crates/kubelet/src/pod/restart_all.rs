//! The restart of all containers of a Pod in its place, when one of them ended as a rule with the action
//! `RestartAllContainers` says (KEP-5532). Pure.
//!
//! All containers are killed at once: no hook runs and no grace is given. Then their records go, that of the one that
//! ended last: from it a node agent that dies in between knows what it was about. What is left is a Pod with a sandbox
//! and no container, which starts as it did first. Ephemeral containers are left alone.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};

use super::backoff::Verdict;
use super::observed::{ContainerRecord, Observed, Stage};
use super::plan::{Delayed, Kill, PlanInput, crash_key};
use super::restart::{RESTART_ALL, matching_action};

/// The condition that is true until every container is gone.
pub(crate) const CONDITION: &str = "AllContainersRestarting";

/// The next step towards the restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RestartAll {
    /// Kill what still runs, without hooks and without grace.
    Kill(Vec<Kill>),
    /// Nothing runs; the container that ended is in its back-off.
    Wait(Delayed),
    /// Remove the records with these IDs, in this order. The next back-off of those that ended is longer.
    Clear { records: Vec<String>, ended: Vec<(String, Timestamp)> },
}

impl RestartAll {
    /// The container that is waited for.
    pub(crate) fn delayed(&self) -> Option<Delayed> {
        if let Self::Wait(delayed) = self { Some(delayed.clone()) } else { None }
    }
}

/// The containers that are restarted.
fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

/// Whether a rule of the Pod can restart all its containers.
pub(crate) fn could_restart_all(spec: &PodSpec) -> bool {
    containers(spec).any(|container| {
        container.restart_policy_rules.iter().flatten().any(|rule| rule.action == RESTART_ALL)
    })
}

/// Whether the status says that the restart has begun.
pub(crate) fn is_marked(status: &PodStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == CONDITION && condition.status == "True")
}

/// Whether the restart has begun and is not done: a container ended as a rule says or the status tells of it, and
/// records are left.
pub(crate) fn is_restarting(pod: &Pod, observed: &Observed, status: &PodStatus) -> bool {
    let Some(spec) = pod.spec.as_ref().filter(|spec| could_restart_all(spec)) else { return false };
    let begins = is_marked(status) || triggers(spec, observed).next().is_some();
    begins && records(spec, observed).next().is_some() && pod.metadata.deletion_timestamp.is_none()
}

/// Containers whose newest run ended as a rule with this action says.
fn triggers<'a>(
    spec: &'a PodSpec,
    observed: &'a Observed,
) -> impl Iterator<Item = (&'a Container, &'a ContainerRecord)> {
    containers(spec).filter_map(|container| {
        let record = observed.latest(&container.name).filter(|record| record.stage == Stage::Exited)?;
        let action = matching_action(container, record.exit_code)?;
        (action == RESTART_ALL).then_some((container, record))
    })
}

/// All records of the containers that are restarted.
fn records<'a>(spec: &'a PodSpec, observed: &'a Observed) -> impl Iterator<Item = &'a ContainerRecord> {
    observed
        .containers
        .iter()
        .filter(|record| containers(spec).any(|container| container.name == record.name))
}

/// Plans the next step; `None` when there is none to take.
pub(crate) fn plan_restart_all(input: PlanInput<'_>, spec: &PodSpec) -> Option<RestartAll> {
    if !is_restarting(input.pod, input.observed, input.status) {
        return None;
    }
    let alive = records(spec, input.observed)
        .filter(|record| matches!(record.stage, Stage::Running | Stage::Unknown));
    let kill = alive.map(|record| Kill {
        id: record.id.clone(),
        name: record.name.clone(),
        message: format!("Stopping container {}: all containers of the Pod are restarted", record.name),
    });
    let kill: Vec<Kill> = kill.collect();
    if !kill.is_empty() {
        return Some(RestartAll::Kill(kill));
    }
    let triggers: Vec<_> = triggers(spec, input.observed).collect();
    let wait = triggers.iter().find_map(|(container, record)| wait_for(input, container, record));
    wait.or_else(|| Some(clear(spec, input.observed, &triggers)))
}

/// The back-off of the container whose end restarts the others.
fn wait_for(input: PlanInput<'_>, container: &Container, record: &ContainerRecord) -> Option<RestartAll> {
    match input.crashes.check(&crash_key(container), record.finished_at?, input.now) {
        Verdict::Go => None,
        Verdict::Wait { until, wait } => {
            let (name, restart_count) = (container.name.clone(), record.restart_count);
            Some(RestartAll::Wait(Delayed { name, until, wait, restart_count }))
        }
    }
}

fn clear(spec: &PodSpec, observed: &Observed, triggers: &[(&Container, &ContainerRecord)]) -> RestartAll {
    let last: Vec<&str> = triggers.iter().map(|(_, record)| record.id.as_str()).collect();
    let others = records(spec, observed).map(|record| record.id.as_str()).filter(|id| !last.contains(id));
    let records = others.chain(last.iter().copied()).map(str::to_owned).collect();
    let ended =
        triggers.iter().filter_map(|(container, record)| Some((container.name.clone(), record.finished_at?)));
    RestartAll::Clear { records, ended: ended.collect() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::super::backoff::Backoff;
    use super::super::observed::fixture::{at, container as record, sandbox};
    use super::super::plan::{Plan, SandboxPlan, plan_pod};
    use super::*;
    use crate::probe::Results;

    fn pod() -> Pod {
        let rules =
            json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}}]);
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {"restartPolicy": "Never",
            "initContainers": [{"name": "setup"}, {"name": "side", "restartPolicy": "Always"}],
            "containers": [{"name": "main"}, {"name": "watch", "restartPolicy": "Never", "restartPolicyRules": rules}],
            "ephemeralContainers": [{"name": "debug", "image": "i"}]}}))
        .unwrap()
    }

    fn status(marked: &str) -> PodStatus {
        serde_json::from_value(json!({"conditions": [{"type": CONDITION, "status": marked}]})).unwrap()
    }

    struct Case {
        status: PodStatus,
        crashes: Backoff<super::super::plan::CrashKey>,
        sandbox_is_ready: bool,
    }

    impl Case {
        fn new() -> Self {
            Self { status: status("False"), crashes: Backoff::default(), sandbox_is_ready: true }
        }

        fn plan(&self, records: Vec<ContainerRecord>) -> Plan {
            let observed = Observed::new(vec![sandbox(0, self.sandbox_is_ready)], records);
            plan_pod(PlanInput {
                pod: &pod(),
                status: &self.status,
                observed: &observed,
                crashes: &self.crashes,
                held: &BTreeMap::new(),
                probes: &Results::default(),
                now: at(100),
            })
        }
    }

    fn ended(setup: Stage, watch_exit: i32) -> Vec<ContainerRecord> {
        vec![
            record("setup", 0, setup, 0),
            record("side", 0, Stage::Exited, 137),
            record("main", 0, Stage::Exited, 0),
            record("watch", 1, Stage::Exited, watch_exit),
            record("watch", 0, Stage::Exited, 42),
            record("debug", 0, Stage::Running, 0),
        ]
    }

    #[test]
    fn everything_is_killed_first_then_all_records_go_the_trigger_last_and_the_pod_starts_anew() {
        let mut running = ended(Stage::Exited, 42);
        running[1] = record("side", 0, Stage::Running, 0);
        running[2] = record("main", 0, Stage::Running, 0);
        let Some(RestartAll::Kill(kill)) = Case::new().plan(running).restart_all else { panic!() };
        assert_eq!(kill.iter().map(|kill| kill.name.as_str()).collect::<Vec<_>>(), ["side", "main"]);
        let plan = Case::new().plan(ended(Stage::Exited, 42));
        let Some(RestartAll::Clear { records, ended }) = plan.restart_all else { panic!("{plan:?}") };
        assert_eq!(records.last().unwrap(), "watch-1");
        assert_eq!(records.len(), 5, "all but the ephemeral container's: {records:?}");
        assert_eq!(ended, [("watch".to_owned(), at(11))]);
        let fresh =
            Case { status: status("True"), ..Case::new() }.plan(vec![record("debug", 0, Stage::Running, 0)]);
        assert_eq!((fresh.restart_all, fresh.start[0].name.as_str()), (None, "setup"));
    }

    #[test]
    fn only_the_newest_run_and_the_rules_code_count() {
        assert_eq!(Case::new().plan(ended(Stage::Exited, 1)).restart_all, None);
        let mut again = ended(Stage::Exited, 1);
        again[3] = record("watch", 1, Stage::Running, 0);
        assert_eq!(Case::new().plan(again).restart_all, None);
    }

    #[test]
    fn what_was_begun_is_ended_from_the_condition_alone() {
        let case = Case { status: status("True"), ..Case::new() };
        let left = vec![record("main", 0, Stage::Exited, 137)];
        let expected = RestartAll::Clear { records: vec!["main-0".into()], ended: vec![] };
        assert_eq!(case.plan(left).restart_all, Some(expected));
    }

    #[test]
    fn a_trigger_that_comes_back_at_once_waits() {
        let mut case = Case::new();
        let spec = pod().spec.unwrap();
        case.crashes.lengthen(&crash_key(&spec.containers[1]), at(5), at(10));
        let mut late = ended(Stage::Exited, 42);
        late[3].finished_at = Some(at(95));
        let plan = case.plan(late);
        let delayed = plan.restart_all.unwrap().delayed().unwrap();
        assert_eq!((delayed.name.as_str(), delayed.until, delayed.restart_count), ("watch", at(105), 1));
    }

    #[test]
    fn a_sandbox_that_died_with_them_is_made_again_after_the_records_are_gone() {
        let case = Case { sandbox_is_ready: false, ..Case::new() };
        assert!(matches!(case.plan(ended(Stage::Exited, 42)).restart_all, Some(RestartAll::Clear { .. })));
        assert!(matches!(case.plan(vec![]).sandbox, SandboxPlan::Create { attempt: 1, .. }));
    }
}
