//! The planner as a table: spec and runtime state in, actions out.

use serde_json::json;

use super::super::observed::fixture::{at, container, sandbox};
use super::*;

fn pod(policy: &str, init: &[&str], main: &[&str]) -> Pod {
    let list =
        |names: &[&str]| names.iter().map(|name| json!({"name": name, "image": "i"})).collect::<Vec<_>>();
    serde_json::from_value(json!({"metadata": {"name": "p"},
        "spec": {"restartPolicy": policy, "initContainers": list(init), "containers": list(main)}}))
    .unwrap()
}

fn plan(pod: &Pod, sandboxes: Vec<Sandbox>, containers: Vec<ContainerRecord>) -> Plan {
    let observed = Observed::new(sandboxes, containers);
    plan_pod(PlanInput {
        pod,
        status: &PodStatus::default(),
        observed: &observed,
        crashes: &Backoff::default(),
        held: &BTreeMap::new(),
        probes: &Results::default(),
        now: at(1000),
    })
}

fn starts(plan: &Plan) -> Vec<(&str, i32)> {
    plan.start.iter().map(|start| (start.name.as_str(), start.restart_count)).collect()
}

#[test]
fn a_new_pod_gets_a_sandbox_first_and_its_containers_next() {
    let pod = pod("Always", &[], &["a", "b"]);
    let first = plan(&pod, vec![], vec![]);
    assert_eq!(first.sandbox, SandboxPlan::Create { attempt: 0, replaces: None });
    assert!(first.start.is_empty());
    let second = plan(&pod, vec![sandbox(0, true)], vec![]);
    assert_eq!(second.sandbox, SandboxPlan::Keep);
    assert_eq!(starts(&second), [("a", 0), ("b", 0)]);
}

#[test]
fn a_running_pod_is_left_alone() {
    let pod = pod("Always", &[], &["a"]);
    let idle = plan(&pod, vec![sandbox(0, true)], vec![container("a", 3, Stage::Running, 0)]);
    assert_eq!(idle, Plan::default());
}

#[test]
fn a_dead_sandbox_is_replaced_by_the_next_attempt() {
    let pod = pod("Always", &[], &["a"]);
    for dead in [
        sandbox(2, false),
        Sandbox { ips: vec![], ..sandbox(2, true) },
        Sandbox { uses_host_network: true, ..sandbox(2, true) },
    ] {
        let next = plan(&pod, vec![dead], vec![container("a", 0, Stage::Running, 0)]);
        assert_eq!(next.sandbox, SandboxPlan::Create { attempt: 3, replaces: Some("s2".into()) });
    }
    let two = plan(&pod, vec![sandbox(0, true), sandbox(1, true)], vec![]);
    assert_eq!(two.sandbox, SandboxPlan::Create { attempt: 2, replaces: Some("s1".into()) });
}

#[test]
fn no_sandbox_is_made_for_a_pod_that_would_run_nothing() {
    let dead = || vec![sandbox(0, false)];
    assert!(plan(&pod("Never", &[], &["a"]), dead(), vec![container("a", 0, Stage::Exited, 1)]).is_over);
    assert!(plan(&pod("Never", &[], &["a"]), dead(), vec![container("a", 0, Stage::Running, 0)]).is_over);
    assert!(plan(&pod("OnFailure", &[], &["a"]), dead(), vec![container("a", 0, Stage::Exited, 0)]).is_over);
    assert!(!plan(&pod("OnFailure", &[], &["a"]), dead(), vec![container("a", 0, Stage::Exited, 1)]).is_over);
    assert!(!plan(&pod("Always", &[], &["a"]), dead(), vec![container("a", 0, Stage::Exited, 0)]).is_over);
    assert!(!plan(&pod("Never", &[], &["a"]), dead(), vec![]).is_over, "it never ran");
}

#[test]
fn a_container_that_was_made_and_never_ran_is_replaced_and_counts_for_nothing() {
    let pod = pod("Never", &[], &["a"]);
    for count in [0, 4] {
        let plan = plan(&pod, vec![sandbox(0, true)], vec![container("a", count, Stage::Created, 0)]);
        assert_eq!(starts(&plan), [("a", count)]);
        assert_eq!(plan.start[0].replaces, Some(format!("a-{count}")));
    }
}

#[test]
fn a_container_is_restarted_as_its_policy_says() {
    for (policy, exit_code, restarted) in [
        ("Always", 0, true),
        ("Always", 1, true),
        ("OnFailure", 0, false),
        ("OnFailure", 1, true),
        ("Never", 1, false),
    ] {
        let plan = plan(
            &pod(policy, &[], &["a"]),
            vec![sandbox(0, true)],
            vec![container("a", 0, Stage::Exited, exit_code)],
        );
        assert_eq!(starts(&plan), if restarted { vec![("a", 1)] } else { vec![] }, "{policy} {exit_code}");
        assert_eq!(plan.is_over, !restarted, "{policy} {exit_code}");
    }
}

#[test]
fn a_pod_lives_while_one_container_runs() {
    let records = vec![container("a", 0, Stage::Exited, 0), container("b", 0, Stage::Running, 0)];
    let plan = plan(&pod("Never", &[], &["a", "b"]), vec![sandbox(0, true)], records);
    assert_eq!(plan, Plan::default());
}

#[test]
fn init_containers_run_one_after_another() {
    let pod = pod("Always", &["i1", "i2"], &["a"]);
    let next = |records| plan(&pod, vec![sandbox(0, true)], records);
    assert_eq!(starts(&next(vec![])), [("i1", 0)]);
    assert_eq!(next(vec![container("i1", 0, Stage::Running, 0)]), Plan::default());
    let done = || container("i1", 0, Stage::Exited, 0);
    assert_eq!(starts(&next(vec![done()])), [("i2", 0)]);
    assert_eq!(starts(&next(vec![done(), container("i2", 0, Stage::Exited, 1)])), [("i2", 1)], "retried");
    assert_eq!(starts(&next(vec![done(), container("i2", 1, Stage::Exited, 0)])), [("a", 0)]);
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let plan = plan(
        &pod("Never", &["i"], &["a"]),
        vec![sandbox(0, true)],
        vec![container("i", 0, Stage::Exited, 1)],
    );
    assert!(plan.is_over);
}

#[test]
fn a_new_sandbox_runs_the_init_containers_again() {
    let pod = pod("Always", &["i"], &["a"]);
    let old = vec![container("i", 0, Stage::Exited, 0), container("a", 0, Stage::Exited, 137)];
    let next = plan(&pod, vec![sandbox(0, false), sandbox(1, true)], old);
    assert_eq!(starts(&next), [("i", 1)]);
}

#[test]
fn finished_init_containers_are_not_repeated_once_the_pod_runs() {
    let pod = pod("Always", &["i"], &["a"]);
    let collected = plan(&pod, vec![sandbox(0, true)], vec![container("a", 0, Stage::Running, 0)]);
    assert_eq!(collected, Plan::default(), "the init container's record was collected");
}

#[test]
fn a_sidecar_starts_before_and_is_kept_beside_the_others() {
    let pod: Pod = serde_json::from_value(json!({"spec": {"restartPolicy": "Never",
        "initContainers": [{"name": "side", "restartPolicy": "Always"}, {"name": "i"}],
        "containers": [{"name": "a"}]}}))
    .unwrap();
    let next = |records| plan(&pod, vec![sandbox(0, true)], records);
    assert_eq!(starts(&next(vec![])), [("side", 0)]);
    let side = || container("side", 0, Stage::Running, 0);
    assert_eq!(starts(&next(vec![side()])), [("i", 0)]);
    let done = || container("i", 0, Stage::Exited, 0);
    assert_eq!(starts(&next(vec![side(), done()])), [("a", 0)]);
    let running = || container("a", 0, Stage::Running, 0);
    assert_eq!(starts(&next(vec![container("side", 0, Stage::Exited, 1), done(), running()])), [("side", 1)]);
    let over = next(vec![side(), done(), container("a", 0, Stage::Exited, 0)]);
    assert!(over.is_over);
    assert_eq!(over.kill.iter().map(|kill| kill.name.as_str()).collect::<Vec<_>>(), ["side"]);
}

#[test]
fn a_changed_image_stops_the_container_so_that_it_is_made_anew() {
    let pod = pod("Always", &[], &["a"]);
    let mut running = container("a", 0, Stage::Running, 0);
    running.spec_hash = Some("other".into());
    let plan = plan(&pod, vec![sandbox(0, true)], vec![running]);
    assert_eq!(plan.kill[0].message, "Container a definition changed, will be restarted");
    assert!(plan.start.is_empty(), "its end is seen first");
}

#[test]
fn a_crashing_container_waits() {
    let pod = pod("Always", &[], &["a"]);
    let observed = Observed::new(vec![sandbox(0, true)], vec![container("a", 0, Stage::Exited, 1)]);
    let mut crashes = Backoff::default();
    crashes.lengthen(&crash_key(&pod.spec.as_ref().unwrap().containers[0]), at(0), at(0));
    let held = BTreeMap::new();
    let plan = |now| {
        plan_pod(PlanInput {
            pod: &pod,
            status: &PodStatus::default(),
            observed: &observed,
            crashes: &crashes,
            held: &held,
            probes: &Results::default(),
            now,
        })
    };
    let wait = SignedDuration::from_secs(10);
    let delayed = Delayed { name: "a".into(), until: at(11), wait, restart_count: 0 };
    assert_eq!(plan(at(2)).delayed, [delayed]);
    assert_eq!(starts(&plan(at(11))), [("a", 1)]);
}

#[test]
fn a_container_that_its_probes_have_given_up_is_stopped() {
    let pod = pod("Always", &[], &["a"]);
    let observed = Observed::new(vec![sandbox(0, true)], vec![container("a", 0, Stage::Running, 0)]);
    let mut probes = Results::default();
    probes.set("a-0", crate::probe::Kind::Liveness, false);
    let held = BTreeMap::new();
    let input = PlanInput {
        pod: &pod,
        status: &PodStatus::default(),
        observed: &observed,
        crashes: &Backoff::default(),
        held: &held,
        probes: &probes,
        now: at(0),
    };
    assert_eq!(plan_pod(input).kill[0].message, "Container a failed liveness probe, will be restarted");
}

#[test]
fn the_next_init_container_waits_until_a_sidecar_has_started() {
    let pod: Pod = serde_json::from_value(json!({"spec": {
        "initContainers": [{"name": "side", "restartPolicy": "Always", "startupProbe": {"exec": {"command": ["x"]}}}],
        "containers": [{"name": "a"}]}}))
    .unwrap();
    let observed = Observed::new(vec![sandbox(0, true)], vec![container("side", 0, Stage::Running, 0)]);
    let (crashes, held) = (Backoff::default(), BTreeMap::new());
    let mut probes = Results::default();
    let plan = |probes: &Results| {
        plan_pod(PlanInput {
            pod: &pod,
            status: &PodStatus::default(),
            observed: &observed,
            crashes: &crashes,
            held: &held,
            probes,
            now: at(0),
        })
    };
    assert_eq!(plan(&probes), Plan::default());
    probes.set("side-0", crate::probe::Kind::Startup, true);
    assert_eq!(starts(&plan(&probes)), [("a", 0)]);
}

#[test]
fn an_ephemeral_container_starts_once_whatever_the_others_do() {
    let mut debugged = pod("Always", &["i"], &["a"]);
    let ephemeral = json!([{"name": "e", "image": "busybox"}]);
    debugged.spec.as_mut().unwrap().ephemeral_containers = serde_json::from_value(ephemeral).unwrap();
    let waiting = plan(&debugged, vec![sandbox(0, true)], vec![container("i", 0, Stage::Running, 0)]);
    assert_eq!(starts(&waiting), [("e", 0)]);
    assert_eq!(waiting.start[0].role, Role::Ephemeral);
    let ended = vec![container("e", 0, Stage::Exited, 1), container("i", 0, Stage::Running, 0)];
    assert_eq!(plan(&debugged, vec![sandbox(0, true)], ended), Plan::default());
    let never = pod("Never", &[], &["a"]);
    let only_it = vec![container("e", 0, Stage::Running, 0), container("a", 0, Stage::Exited, 0)];
    assert!(plan(&never, vec![sandbox(0, true)], only_it).is_over, "it keeps no Pod alive");
}

#[test]
fn a_sidecar_that_is_down_keeps_no_pod_alive() {
    let mut with_sidecar = pod("Never", &["side"], &["a"]);
    with_sidecar.spec.as_mut().unwrap().init_containers.as_mut().unwrap()[0].restart_policy =
        Some("Always".into());
    let records = vec![container("side", 0, Stage::Exited, 1), container("a", 0, Stage::Exited, 0)];
    assert!(plan(&with_sidecar, vec![sandbox(0, true)], records).is_over);
}
