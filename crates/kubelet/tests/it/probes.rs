//! Probes and hooks, over commands that the scripted runtime answers.

use std::time::Duration;

use kube::api::DeleteParams;
use serde_json::json;

use crate::node::{Node, restarts};
use crate::outage::{MINUTE, stop_time, within};

fn is_ready(status: &k8s_openapi::api::core::v1::PodStatus) -> bool {
    let conditions = status.conditions.iter().flatten();
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn exec(command: &str) -> serde_json::Value {
    json!({"exec": {"command": [command]}, "periodSeconds": 1, "failureThreshold": 1})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_ready_while_its_probe_succeeds() {
    let node = Node::start().await;
    node.script.books().failing.insert("ready".into());
    node.create("p", json!({"containers": [{"name": "c", "image": "i", "readinessProbe": exec("ready")}]}))
        .await;
    let status = node.wait_for_phase("p", "Running").await;
    assert!(!is_ready(&status));
    let event = node.wait_for_event("p", "Unhealthy").await;
    assert_eq!(event.message.as_deref(), Some("Readiness probe failed: no"));
    node.script.books().failing.clear();
    node.wait_for("p", "ready", is_ready).await;
    node.script.books().failing.insert("ready".into());
    node.wait_for("p", "unready again", |status| !is_ready(status)).await;
    assert_eq!(restarts(&node.status("p").await), 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_does_not_live_is_restarted() {
    let node = Node::start().await;
    let container =
        json!({"name": "c", "image": "i", "livenessProbe": exec("alive"), "startupProbe": exec("up")});
    node.create("p", json!({"containers": [container], "terminationGracePeriodSeconds": 1})).await;
    node.wait_for("p", "ready", is_ready).await;
    node.script.books().failing.insert("alive".into());
    node.wait_for("p", "restarted", |status| restarts(status) >= 1).await;
    let event = node.wait_for_event("p", "Killing").await;
    assert_eq!(event.message.as_deref(), Some("Container c failed liveness probe, will be restarted"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_survives_a_restart_of_the_node_agent() {
    let mut node = Node::start().await;
    node.create("p", json!({"containers": [{"name": "c", "image": "i", "readinessProbe": exec("ready")}]}))
        .await;
    let before = node.wait_for("p", "ready", is_ready).await;
    node.stop_kubelet().await;
    node.start_kubelet().await;
    node.create("q", json!({})).await;
    node.wait_for_phase("q", "Running").await;
    assert_eq!(node.status("p").await.conditions, before.conditions);
    node.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_probes_that_a_node_agent_begins_with_are_spread_over_their_period() {
    const PODS: usize = 20;
    let _stopped = stop_time();
    let mut node = Node::start().await;
    let probe = json!({"exec": {"command": ["ready"]}, "timeoutSeconds": 60});
    for number in 0..PODS {
        let container = json!({"name": "c", "image": "i", "readinessProbe": probe});
        node.create(&format!("p{number}"), json!({"containers": [container]})).await;
    }
    for number in 0..PODS {
        node.wait_for(&format!("p{number}"), "ready", is_ready).await;
    }
    node.stop_kubelet().await;
    let before = node.script.count("exec ready");
    node.start_kubelet().await;
    let first = std::cell::Cell::new(None);
    within(MINUTE, "each container is probed", async || {
        let made = node.script.count("exec ready") - before;
        if made > 0 && first.get().is_none() {
            first.set(Some(tokio::time::Instant::now()));
        }
        made >= PODS
    })
    .await;
    let took = first.get().unwrap().elapsed();
    assert!((Duration::from_secs(3)..Duration::from_secs(12)).contains(&took), "{took:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_run_after_the_start_and_before_the_end() {
    let node = Node::start().await;
    let lifecycle =
        json!({"postStart": {"exec": {"command": ["hello"]}}, "preStop": {"exec": {"command": ["bye"]}}});
    node.create("p", json!({"containers": [{"name": "c", "image": "i", "lifecycle": lifecycle}]})).await;
    node.wait_for_phase("p", "Running").await;
    node.pods().delete("p", &DeleteParams::default()).await.unwrap();
    node.wait_until_gone("p").await;
    let calls = node.script.books().calls.clone();
    let position = |call: &str| calls.iter().position(|made| made == call).expect("it was called");
    assert!(position("start_container") < position("exec hello"), "{calls:?}");
    assert!(position("exec bye") < position("stop_container"), "{calls:?}");
    node.stop().await;
}
