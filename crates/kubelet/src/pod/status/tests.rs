//! Statuses as `kubectl` shows them, from the states that lead to them.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};
use serde_json::json;

use super::super::observed::fixture::{at, container, sandbox};
use super::super::observed::{ContainerRecord, Stage};
use super::super::resize::Sizes;
use super::*;

struct Case {
    pod: Pod,
    previous: PodStatus,
    observed: Observed,
    waiting: BTreeMap<String, Waiting>,
    probes: Results,
    failure: Option<Failure>,
    fence: Option<Fence>,
    has_ended: bool,
}

impl Case {
    fn new(policy: &str, init: &[&str], main: &[&str]) -> Self {
        let list =
            |names: &[&str]| names.iter().map(|name| json!({"name": name, "image": "i"})).collect::<Vec<_>>();
        let pod = serde_json::from_value(json!({"metadata": {"name": "p", "generation": 2},
            "spec": {"restartPolicy": policy, "initContainers": list(init), "containers": list(main)}}));
        let (previous, observed, waiting, probes, failure) = Default::default();
        Self {
            pod: pod.unwrap(),
            previous,
            observed,
            waiting,
            probes,
            failure,
            fence: None,
            has_ended: false,
        }
    }

    fn with(mut self, containers: Vec<ContainerRecord>) -> Self {
        self.observed = Observed::new(vec![sandbox(0, true)], containers);
        self
    }

    fn waits(mut self, name: &str, reason: &str) -> Self {
        self.waiting.insert(name.into(), Waiting { reason: reason.into(), message: "m".into() });
        self
    }

    fn status(&self) -> PodStatus {
        plan_status(StatusInput {
            pod: &self.pod,
            previous: &self.previous,
            observed: &self.observed,
            waiting: &self.waiting,
            probes: &self.probes,
            runtime: "kakoi",
            host_ips: &["192.0.2.1".into()],
            failure: self.failure.as_ref(),
            fence: self.fence.as_ref(),
            sizes: &Sizes::default(),
            has_ended: self.has_ended,
            now: at(100),
        })
    }

    fn phase(&self) -> String {
        self.status().phase.unwrap()
    }
}

fn condition<'a>(status: &'a PodStatus, type_: &str) -> &'a PodCondition {
    status.conditions.as_ref().unwrap().iter().find(|condition| condition.type_ == type_).unwrap()
}

fn first(status: &PodStatus) -> &ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[0]
}

fn waiting_reason(status: &ContainerStatus) -> Option<&str> {
    status.state.as_ref()?.waiting.as_ref()?.reason.as_deref()
}

#[test]
fn a_new_pod_is_pending_and_its_container_is_being_created() {
    let status = Case::new("Always", &[], &["a"]).status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(waiting_reason(first(&status)), Some("ContainerCreating"));
    assert_eq!(condition(&status, "PodReadyToStartContainers").status, "False");
    let ready = condition(&status, "Ready");
    assert_eq!((ready.status.as_str(), ready.reason.as_deref()), ("False", Some("ContainersNotReady")));
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [a]"));
    assert_eq!(condition(&status, "PodScheduled").status, "True");
    assert_eq!(status.observed_generation, Some(2));
    assert_eq!(status.start_time, Some(api_time(at(100))));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
}

#[test]
fn a_running_pod_is_ready_and_has_its_addresses() {
    let status = Case::new("Always", &[], &["a"]).with(vec![container("a", 0, Stage::Running, 0)]).status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let order: Vec<_> =
        status.conditions.as_ref().unwrap().iter().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
    assert_eq!(
        order,
        [
            ("PodReadyToStartContainers", "True"),
            ("Initialized", "True"),
            ("Ready", "True"),
            ("ContainersReady", "True"),
            ("PodScheduled", "True")
        ]
    );
    assert_eq!(status.pod_ip.as_deref(), Some("10.85.0.2"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    let a = first(&status);
    assert_eq!((a.ready, a.started, a.restart_count), (true, Some(true), 0));
    assert_eq!(a.container_id.as_deref(), Some("kakoi://a-0"));
}

#[test]
fn a_crash_loop_shows_the_wait_and_the_last_end() {
    let records = vec![container("a", 1, Stage::Exited, 1), container("a", 0, Stage::Exited, 2)];
    let status = Case::new("Always", &[], &["a"]).with(records).waits("a", "CrashLoopBackOff").status();
    let a = first(&status);
    assert_eq!(waiting_reason(a), Some("CrashLoopBackOff"));
    let last = a.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (1, Some("Error")));
    assert_eq!(a.restart_count, 1);
    assert_eq!(status.phase.as_deref(), Some("Running"));
}

#[test]
fn phases_follow_the_restart_policy() {
    let exited = |code| vec![container("a", 0, Stage::Exited, code)];
    for (policy, code, expected) in [
        ("Always", 0, "Running"),
        ("Always", 1, "Running"),
        ("OnFailure", 0, "Succeeded"),
        ("OnFailure", 1, "Running"),
        ("Never", 0, "Succeeded"),
        ("Never", 1, "Failed"),
    ] {
        assert_eq!(Case::new(policy, &[], &["a"]).with(exited(code)).phase(), expected, "{policy} {code}");
        let mut ended = Case::new(policy, &[], &["a"]).with(exited(code));
        ended.has_ended = true;
        assert_eq!(ended.phase(), if code == 0 { "Succeeded" } else { "Failed" });
    }
    let one_waits = Case::new("Always", &[], &["a", "b"]).with(vec![container("a", 0, Stage::Running, 0)]);
    assert_eq!(one_waits.phase(), "Pending");
}

#[test]
fn a_terminal_phase_is_final() {
    let mut case = Case::new("Always", &[], &["a"]).with(vec![container("a", 0, Stage::Running, 0)]);
    case.previous.phase = Some("Failed".into());
    assert_eq!(case.phase(), "Failed");
}

#[test]
fn init_containers_hold_the_pod_back_until_they_succeed() {
    let case = Case::new("Always", &["i"], &["a"]).with(vec![container("i", 0, Stage::Running, 0)]);
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(waiting_reason(first(&status)), Some("PodInitializing"));
    let initialized = condition(&status, "Initialized");
    assert_eq!(initialized.message.as_deref(), Some("containers with incomplete status: [i]"));
    let failed = Case::new("Never", &["i"], &["a"]).with(vec![container("i", 0, Stage::Exited, 1)]);
    assert_eq!(failed.phase(), "Failed");
    let done = Case::new("Always", &["i"], &["a"])
        .with(vec![container("i", 0, Stage::Exited, 0), container("a", 0, Stage::Running, 0)])
        .status();
    assert_eq!(condition(&done, "Initialized").status, "True");
    assert!(done.init_container_statuses.unwrap()[0].ready);
}

#[test]
fn a_succeeded_pod_says_completed_and_keeps_its_address() {
    let mut case = Case::new("Never", &[], &["a"]).with(vec![container("a", 0, Stage::Exited, 0)]);
    case.previous = case.status();
    case.observed.sandboxes[0].is_ready = false;
    let status = case.status();
    assert_eq!(condition(&status, "Ready").reason.as_deref(), Some("PodCompleted"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.85.0.2"));
    assert!(!first(&status).ready);
}

#[test]
fn transition_times_stay_until_the_status_changes() {
    let mut case = Case::new("Always", &[], &["a"]);
    case.previous = case.status();
    for condition in case.previous.conditions.as_mut().unwrap() {
        condition.last_transition_time = Some(api_time(at(1)));
    }
    case.previous.conditions.as_mut().unwrap().push(PodCondition {
        type_: "example.com/gate".into(),
        status: "True".into(),
        ..PodCondition::default()
    });
    let status = Case { observed: Observed::new(vec![sandbox(0, true)], vec![]), ..case }.status();
    assert_eq!(condition(&status, "Ready").last_transition_time, Some(api_time(at(1))));
    assert_eq!(condition(&status, "PodReadyToStartContainers").last_transition_time, Some(api_time(at(100))));
    assert_eq!(condition(&status, "example.com/gate").status, "True", "others' conditions stay");
}

#[test]
fn a_failed_init_container_leaves_the_others_waiting() {
    let mut case = Case::new("Never", &["i"], &["a"]).with(vec![container("i", 0, Stage::Exited, 1)]);
    case.previous = case.status();
    case.has_ended = true;
    let status = case.status();
    assert_eq!(
        (status.phase.as_deref(), waiting_reason(first(&status))),
        (Some("Failed"), Some("PodInitializing"))
    );
}

#[test]
fn a_pod_that_the_node_rejects_has_no_container_statuses() {
    let mut case = Case::new("Always", &["i"], &["a"]);
    case.observed = Observed::new(vec![], vec![]);
    case.failure =
        Some(Failure { reason: "SysctlForbidden".into(), message: "Pod was rejected: …".into() });
    case.has_ended = true;
    let status = case.status();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref()),
        (Some("Failed"), Some("SysctlForbidden"))
    );
    assert_eq!((status.container_statuses, status.init_container_statuses), (None, None));
}

#[test]
fn a_lost_container_is_told_apart_from_one_that_never_ran() {
    let mut case = Case::new("Always", &[], &["a"]).with(vec![container("a", 4, Stage::Running, 0)]);
    case.previous = case.status();
    case.observed.containers.clear();
    let status = case.status();
    let a = first(&status);
    let last = a.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    assert_eq!(a.restart_count, 5);
    case.has_ended = true;
    let status = case.status();
    assert_eq!(first(&status).state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 137);
    assert_eq!(status.phase.as_deref(), Some("Failed"));
}

#[test]
fn a_container_is_ready_when_its_probes_say_so() {
    let mut case = Case::new("Always", &[], &["a"]).with(vec![container("a", 0, Stage::Running, 0)]);
    let probe = json!({"tcpSocket": {"port": 1}});
    let spec = case.pod.spec.as_mut().unwrap();
    spec.containers[0].readiness_probe = Some(serde_json::from_value(probe.clone()).unwrap());
    spec.containers[0].startup_probe = Some(serde_json::from_value(probe).unwrap());
    let shown = |case: &Case| {
        let status = case.status();
        (first(&status).started, first(&status).ready, condition(&status, "Ready").status.clone())
    };
    assert_eq!(shown(&case), (Some(false), false, "False".into()));
    case.probes.set("a-0", crate::probe::Kind::Startup, true);
    assert_eq!(shown(&case), (Some(true), false, "False".into()));
    case.probes.set("a-0", crate::probe::Kind::Readiness, true);
    assert_eq!(shown(&case), (Some(true), true, "True".into()));
}

#[test]
fn a_container_that_a_rule_restarts_is_not_the_pods_end() {
    let mut case = Case::new("Never", &[], &["a"]).with(vec![container("a", 0, Stage::Exited, 42)]);
    assert_eq!(case.status().phase.as_deref(), Some("Failed"));
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let container = &mut case.pod.spec.as_mut().unwrap().containers[0];
    container.restart_policy_rules = serde_json::from_value(rules).unwrap();
    assert_eq!(case.status().phase.as_deref(), Some("Running"));
}
