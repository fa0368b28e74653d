//! The API server is gone for hours, and the clock is set meanwhile: Pods live, are probed and restarted; static ones begin; nothing
//! is ended that was found; and when it is back it learns of all, and is obeyed.
//!
//! Time stands still in these tests, but for what they let pass.

use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use cri::v1::ContainerState;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::manifests::write;
use crate::node::{Node, a_moment, restarts};
use crate::script::Script;

pub(crate) const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// While this lives time does not pass by itself, though everybody waits.
pub(crate) struct Stopped(#[expect(dead_code, reason = "its end is what counts")] Sender<()>);

pub(crate) fn stop_time() -> Stopped {
    let (sender, held) = channel();
    // Tokio lets no paused time pass while something blocks.
    tokio::task::spawn_blocking(move || held.recv());
    Stopped(sender)
}

/// Lets time pass, in steps that everybody can follow.
async fn pass(mut time: Duration) {
    while !time.is_zero() {
        let step = time.min(Duration::from_secs(5));
        tokio::time::advance(step).await;
        a_moment(Duration::from_millis(1)).await;
        time -= step;
    }
}

/// Lets seconds pass until `holds`, at most `longest`.
pub(crate) async fn within(longest: Duration, what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = tokio::time::Instant::now() + longest;
    while !holds().await {
        assert!(
            tokio::time::Instant::now() < deadline,
            "within {longest:?} it did not come true that {what}"
        );
        tokio::time::advance(Duration::from_millis(500)).await;
        a_moment(Duration::from_millis(2)).await;
    }
}

/// Waits, without time passing, until `holds`.
async fn at_once(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + MINUTE;
    while !holds().await {
        assert!(Instant::now() < deadline, "it did not come true at once that {what}");
        a_moment(Duration::from_millis(2)).await;
    }
}

/// Which run of the container runs now.
fn run_of(node: &Node, name: &str) -> Option<u32> {
    let books = node.script.books();
    let running =
        books.containers.values().filter(|container| container.state == ContainerState::ContainerRunning);
    let own =
        running.filter_map(|container| container.config.metadata.as_ref()).filter(|own| own.name == name);
    own.map(|own| own.attempt).max()
}

fn one(name: &str, fields: Value) -> Value {
    let mut container = json!({"name": name, "image": "image:1"});
    container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    json!({"hostUsers": false, "terminationGracePeriodSeconds": 1, "containers": [container]})
}

async fn create(node: &Node, name: &str, fields: Value) {
    node.create(name, one(name, fields)).await;
    at_once(&format!("{name} runs"), async || run_of(node, name) == Some(0)).await;
}

async fn phase(node: &Node, name: &str) -> String {
    node.status(name).await.phase.unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn pods_live_for_hours_without_the_api_server_and_it_learns_of_all_when_it_is_back() {
    let _stopped = stop_time();
    let node = Node::start().await;
    let exec = |word: &str| json!({"exec": {"command": [word]}, "timeoutSeconds": 60});
    create(&node, "crashing", json!({})).await;
    create(&node, "probed", json!({"livenessProbe": exec("alive"), "readinessProbe": exec("ready")})).await;
    create(&node, "leaving", json!({})).await;
    let mut once = one("once", json!({}));
    once["restartPolicy"] = json!("Never");
    node.create("once", once).await;
    at_once("once runs", async || run_of(&node, "once").is_some()).await;
    within(MINUTE, "the API shows all of them", async || {
        phase(&node, "once").await == "Running" && phase(&node, "probed").await == "Running"
    })
    .await;

    node.line.cut();
    node.pods().delete("leaving", &DeleteParams::default()).await.unwrap();
    node.script.exit("once", 3);
    node.script.exit("crashing", 1);
    at_once("a container that ends is started again", async || run_of(&node, "crashing") == Some(1)).await;
    node.script.exit("crashing", 1);
    let crashed = tokio::time::Instant::now();
    within(MINUTE, "it is after its back-off", async || run_of(&node, "crashing") == Some(2)).await;
    assert!(crashed.elapsed() >= Duration::from_secs(10), "{:?}", crashed.elapsed());
    write(&node, "static", one("static", json!({})));
    within(MINUTE, "a static Pod begins", async || run_of(&node, "static") == Some(0)).await;

    // Hours go by.
    let before = node.script.count("exec alive");
    pass(3 * HOUR).await;
    let probes = node.script.count("exec alive") - before;
    assert!((1_000..=1_090).contains(&probes), "{probes} probes in three hours, one each ten seconds");
    let mut runs = 2;
    for hours in [5, 0, -5] {
        node.set_clock_hours(hours);
        pass(MINUTE).await;
        node.script.exit("crashing", 1);
        runs += 1;
        let what = format!("it is started again with a clock {hours} hours ahead");
        within(6 * MINUTE, &what, async || run_of(&node, "crashing") == Some(runs)).await;
    }
    node.set_clock_hours(0);
    node.script.books().failing.insert("exec alive".into());
    node.script.books().failing.insert("alive".into());
    within(MINUTE, "what does not live is started again", async || run_of(&node, "probed") == Some(1)).await;
    node.script.books().failing.clear();
    assert_eq!(run_of(&node, "leaving"), Some(0), "nobody has told the node agent");
    assert_eq!(node.script.count("run_pod_sandbox"), 5, "each Pod is in its first sandbox");

    node.line.mend();
    let runs = i32::try_from(runs).unwrap();
    within(MINUTE, "the API knows of each restart", async || {
        restarts(&node.status("crashing").await) == runs && restarts(&node.status("probed").await) == 1
    })
    .await;
    within(MINUTE, "the API knows of each end", async || phase(&node, "once").await == "Failed").await;
    let once = node.status("once").await.container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(once.terminated.unwrap().exit_code, 3);
    within(MINUTE, "the deletion is done", async || node.pods().get_opt("leaving").await.unwrap().is_none())
        .await;
    within(MINUTE, "the API shows the static Pod", async || phase(&node, "static-node").await == "Running")
        .await;
    let leases: Api<Lease> = Api::namespaced(node.admin.clone(), "kube-node-lease");
    within(MINUTE, "the lease is renewed", async || {
        let renewed = leases.get("node").await.unwrap().spec.and_then(|spec| spec.renew_time);
        renewed.is_some_and(|time| node.now().duration_since(time.0).as_secs() < 20)
    })
    .await;
    // What happened meanwhile is told too.
    within(MINUTE, "there is an event of the time before", async || {
        node.has_event("probed", "Unhealthy").await
    })
    .await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_node_agent_that_starts_without_the_api_server_ends_nothing_and_runs_static_pods() {
    let _stopped = stop_time();
    let mut node = Node::start().await;
    create(&node, "before", json!({})).await;
    create(&node, "leaving", json!({})).await;
    within(MINUTE, "the API shows both", async || {
        phase(&node, "before").await == "Running" && phase(&node, "leaving").await == "Running"
    })
    .await;
    node.stop_kubelet().await;
    let calls = node.script.books().calls.len();
    node.pods().delete("leaving", &DeleteParams::default().grace_period(0)).await.unwrap();
    node.line.cut();
    node.start_kubelet().await;
    write(&node, "static", one("static", json!({})));
    within(MINUTE, "a static Pod begins", async || run_of(&node, "static") == Some(0)).await;
    pass(HOUR).await;
    let made = node.script.books().calls[calls..].to_vec();
    assert!(!made.iter().any(|call| call.starts_with("stop_") || call.starts_with("remove_")), "{made:?}");
    assert_eq!((run_of(&node, "before"), run_of(&node, "leaving")), (Some(0), Some(0)));

    // What ended is not started again before somebody says that it is still wanted.
    node.script.exit("before", 1);
    pass(MINUTE).await;
    assert_eq!(run_of(&node, "before"), None);
    node.line.mend();
    within(MINUTE, "it is started again", async || run_of(&node, "before") == Some(1)).await;
    within(MINUTE, "nothing is left of what is gone", async || run_of(&node, "leaving").is_none()).await;
    within(MINUTE, "the API shows all", async || {
        restarts(&node.status("before").await) == 1 && phase(&node, "static-node").await == "Running"
    })
    .await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_takes_requests_and_never_answers_keeps_no_static_pod_from_starting() {
    let _stopped = stop_time();
    let mut node = Node::prepare(Script::new()).await;
    node.policy = userns::policy::Policy::Default;
    node.line.silence();
    let mut spec = one("static", json!({}));
    spec.as_object_mut().unwrap().remove("hostUsers");
    write(&node, "static", spec);
    let node = node.started().await;
    within(MINUTE, "the static Pod begins", async || run_of(&node, "static") == Some(0)).await;
    node.script.exit("static", 1);
    within(MINUTE, "it is started again", async || run_of(&node, "static") == Some(1)).await;
    node.line.mend();
    within(MINUTE, "the API shows it", async || phase(&node, "static-node").await == "Running").await;
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_used_on_while_nobody_renews_it_and_renewed_when_the_clock_was_set_back() {
    let _stopped = stop_time();
    let node = Node::start().await;
    let source = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
    let mut spec = one("c", json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    spec["volumes"] = json!([{"name": "v", "projected": {"sources": [source]}}]);
    let pod = node.create("p", spec).await;
    at_once("the Pod runs", async || run_of(&node, "c") == Some(0)).await;
    let file = node.pod_dir(&pod).join("volumes/kubernetes.io~projected/v/token");
    let token = || std::fs::read_to_string(&file).unwrap();
    let first = token();

    node.line.silence();
    pass(HOUR).await;
    node.script.exit("c", 1);
    within(MINUTE, "the container is started again", async || run_of(&node, "c") == Some(1)).await;
    assert_eq!(token(), first);
    node.line.mend();
    within(3 * MINUTE, "the token is renewed", async || token() != first).await;

    let second = token();
    pass(MINUTE).await;
    node.set_clock_hours(-5);
    within(MINUTE, "the token is renewed by the new clock", async || token() != second).await;
    node.stop().await;
}
