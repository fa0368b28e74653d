//! Graceful shutdown of the node: logind over a real `dbus-daemon`, played by the test.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node as NodeObject, PodStatus};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::Api;
use kube::api::PostParams;
use kubelet::{ShutdownPeriod, ShutdownSettings};
use serde_json::{Value, json};
use systemd::Bus;
use systemd::testing::{FakeLogin, PrivateBus};

use crate::node::{Node, until};
use crate::script::Script;

const SECOND: u64 = 1_000_000;
const TERMINATED: &str = "Pod was terminated in response to imminent node shutdown.";

fn settings(periods: &[(i32, u64)]) -> ShutdownSettings {
    let period = |(priority, grace): &(i32, u64)| ShutdownPeriod {
        priority: *priority,
        grace: Duration::from_secs(*grace),
    };
    ShutdownSettings::by_priority(periods.iter().map(period).collect())
}

/// A node with a logind that allows 5 s until it is told otherwise.
struct Scene {
    node: Node,
    logind: FakeLogin,
    _bus: PrivateBus,
}

impl Scene {
    async fn start(periods: &[(i32, u64)]) -> Self {
        let mut node = Node::prepare(Script::new()).await;
        let bus = PrivateBus::start(node.directory.path()).unwrap();
        let logind = FakeLogin::start(&bus, 5 * SECOND, Some(node.logind_conf_dir())).await.unwrap();
        node.graceful = Some((settings(periods), bus.bus()));
        let classes: Api<PriorityClass> = Api::all(node.admin.clone());
        let high = json!({"metadata": {"name": "high"}, "value": 1000});
        classes.create(&PostParams::default(), &serde_json::from_value(high).unwrap()).await.unwrap();
        node.start_kubelet().await;
        within(logind.wait_for_locks(1, 1)).await;
        Self { node, logind, _bus: bus }
    }

    /// A Pod `low` and a Pod `high` that run; each has one container of its name.
    async fn run_two(&self) {
        self.node.create("low", spec("low", json!({"terminationGracePeriodSeconds": 60}))).await;
        self.node.create("high", spec("high", json!({"priorityClassName": "high"}))).await;
        self.node.wait_for_phase("low", "Running").await;
        self.node.wait_for_phase("high", "Running").await;
    }

    async fn wait_for_ready(&self, status: &str, message: &str) {
        let nodes: Api<NodeObject> = Api::all(self.node.admin.clone());
        until(&format!("the node is ready: {status}, {message}"), async || {
            let Some(node) = nodes.get_opt("node").await.unwrap() else { return false };
            let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
            let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
            ready.is_some_and(|ready| ready.status == status && ready.message.as_deref() == Some(message))
        })
        .await;
    }
}

fn spec(container: &str, mut spec: Value) -> Value {
    spec["containers"] = json!([{"name": container, "image": "image:1"}]);
    spec
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("in time")
}

async fn stops(node: &Node, seconds: u64) {
    until(&format!("a container is stopped within {seconds} s"), async || {
        node.script.books().calls.contains(&format!("stop_container {seconds}"))
    })
    .await;
}

fn is_terminated(status: &PodStatus) -> bool {
    let told = (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref());
    told == (Some("Failed"), Some("Terminated"), Some(TERMINATED))
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_end_in_their_order_before_the_machine_is_turned_off() {
    let scene = Scene::start(&[(1_000, 10), (0, 20)]).await;
    let node = &scene.node;
    let drop_in = std::fs::read_to_string(node.logind_conf_dir().join("99-kubelet.conf")).unwrap();
    assert!(drop_in.contains("[Login]\nInhibitDelayMaxSec=30\n"), "{drop_in}");
    scene.run_two().await;
    node.script.hold("low");
    scene.logind.announce(true).await.unwrap();
    scene.wait_for_ready("False", "node is shutting down").await;
    stops(node, 20).await;
    node.create("late", json!({})).await;
    let late = node.wait_for_phase("late", "Failed").await;
    assert_eq!(late.reason.as_deref(), Some("NodeShutdown"));
    assert_eq!(
        late.message.as_deref(),
        Some("Pod was rejected: Pod was rejected as the node is shutting down.")
    );
    assert_eq!(node.status("high").await.phase.as_deref(), Some("Running"), "low is not done");
    assert_eq!(scene.logind.held(), 1, "the machine waits");
    node.script.let_go("low");
    within(scene.logind.wait_for_locks(1, 0)).await;
    // The machine goes on only when the API knows all.
    for name in ["low", "high"] {
        let status = node.status(name).await;
        assert!(is_terminated(&status), "{name}: {status:?}");
        let disrupted = status.conditions.unwrap().into_iter().find(|one| one.type_ == "DisruptionTarget");
        assert_eq!(disrupted.unwrap().reason.as_deref(), Some("TerminationByKubelet"));
    }
    assert!(node.script.books().calls.contains(&"stop_container 10".to_owned()));
    assert!(node.script.books().sandboxes.is_empty());
    assert_eq!(node.wait_for_event("node", "NodeShutdown").await.type_.as_deref(), Some("Normal"));
    let state = std::fs::read_to_string(node.kubelet_dir().join("graceful_node_shutdown_state")).unwrap();
    assert!(state.contains("startTime") && state.contains("endTime"), "{state}");
    scene.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_that_is_given_up_leaves_who_was_not_asked_yet_and_takes_the_lock_again() {
    let scene = Scene::start(&[(0, 20), (1_000, 10)]).await;
    let node = &scene.node;
    scene.run_two().await;
    node.script.hold("low");
    scene.logind.announce(true).await.unwrap();
    stops(node, 20).await;
    scene.logind.announce(false).await.unwrap();
    within(scene.logind.wait_for_locks(2, 1)).await;
    scene.wait_for_ready("True", "kubelet is posting ready status").await;
    node.script.let_go("low");
    node.wait_for("low", "terminated", is_terminated).await;
    node.create("later", json!({})).await;
    node.wait_for_phase("later", "Running").await;
    assert_eq!(node.status("high").await.phase.as_deref(), Some("Running"));
    scene.logind.announce(true).await.unwrap();
    within(scene.logind.wait_for_locks(2, 0)).await;
    assert!(is_terminated(&node.status("high").await), "the next shutdown ends it");
    scene.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_does_not_end_gets_its_time_and_no_more() {
    let scene = Scene::start(&[(0, 1), (1_000, 1)]).await;
    scene.run_two().await;
    scene.node.script.hold("low");
    scene.logind.announce(true).await.unwrap();
    within(scene.logind.wait_for_locks(1, 0)).await;
    assert!(is_terminated(&scene.node.status("high").await), "the next group had its turn");
    assert_eq!(scene.node.script.count("stop_container 1"), 2);
    scene.node.script.let_go("low");
    scene.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_agent_that_is_killed_in_a_shutdown_goes_on_with_it() {
    let mut scene = Scene::start(&[(0, 20), (1_000, 10)]).await;
    scene.run_two().await;
    scene.node.script.hold("low");
    scene.logind.announce(true).await.unwrap();
    stops(&scene.node, 20).await;
    scene.node.stop_kubelet().await;
    within(scene.logind.wait_for_locks(1, 0)).await;
    scene.node.script.let_go("low");
    scene.node.start_kubelet().await;
    scene.wait_for_ready("False", "node is shutting down").await;
    for name in ["low", "high"] {
        scene.node.wait_for(name, "terminated", is_terminated).await;
    }
    until("nothing runs", async || scene.node.script.books().sandboxes.is_empty()).await;
    within(scene.logind.wait_for_locks(1, 0)).await;
    scene.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_bus_runs_its_pods_and_takes_the_lock_when_there_is_one() {
    let mut node = Node::prepare(Script::new()).await;
    let directory: &Path = node.directory.path();
    node.graceful =
        Some((settings(&[(0, 5)]), Bus::at(format!("unix:path={}", directory.join("bus").display()))));
    node.start_kubelet().await;
    node.create("p", json!({})).await;
    node.wait_for_phase("p", "Running").await;
    let bus = PrivateBus::start(node.directory.path()).unwrap();
    let logind = FakeLogin::start(&bus, 5 * SECOND, None).await.unwrap();
    within(logind.wait_for_locks(1, 1)).await;
    assert!(!node.logind_conf_dir().exists(), "5 s are enough");
    node.stop().await;
    within(logind.wait_for_locks(1, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_logind_cannot_be_told_to_wait_longer_each_group_has_its_part() {
    let mut node = Node::prepare(Script::new()).await;
    let bus = PrivateBus::start(node.directory.path()).unwrap();
    let logind = FakeLogin::start(&bus, 3 * SECOND, None).await.unwrap();
    node.graceful = Some((settings(&[(0, 20), (1_000, 10)]), bus.bus()));
    node.start_kubelet().await;
    within(logind.wait_for_locks(1, 1)).await;
    node.create("p", spec("c", json!({"terminationGracePeriodSeconds": 60}))).await;
    node.wait_for_phase("p", "Running").await;
    logind.announce(true).await.unwrap();
    within(logind.wait_for_locks(1, 0)).await;
    stops(&node, 2).await;
    node.stop().await;
}
