//! The runtime or the registry fails: what is shown, what is tried again, what is left behind.

use std::sync::atomic::Ordering;

use kube::Api;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::node::{Node, restarts, until, waiting};
use crate::script::Script;

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_fails_is_tried_again_with_the_same_ids() {
    let node = Node::start().await;
    node.script.fail_next("run_pod_sandbox", "no space left on device");
    let pod = node.create("p", json!({"hostUsers": false})).await;
    let event = node.wait_for_event("p", "FailedCreatePodSandBox").await;
    assert_eq!(event.message.as_deref(), Some("Failed to create pod sandbox: no space left on device"));
    node.wait_for_phase("p", "Running").await;
    let record = std::fs::read_to_string(node.pod_dir(&pod).join("userns")).unwrap();
    assert!(record.contains("131072"), "{record}");
    assert_eq!(node.script.count("run_pod_sandbox"), 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_sandbox_is_replaced_and_counts_as_one_restart() {
    let node = Node::start().await;
    let pod = node.create("p", json!({"hostUsers": false})).await;
    node.wait_for_phase("p", "Running").await;
    let record = std::fs::read_to_string(node.pod_dir(&pod).join("userns")).unwrap();
    node.script.lose_sandbox();
    node.wait_for("p", "restarted", |status| restarts(status) == 1 && waiting(status).is_none()).await;
    node.wait_for_event("p", "SandboxChanged").await;
    assert_eq!(std::fs::read_to_string(node.pod_dir(&pod).join("userns")).unwrap(), record, "the same IDs");
    {
        let books = node.script.books();
        let ready: Vec<_> = books.sandboxes.values().filter(|sandbox| sandbox.is_ready).collect();
        assert_eq!(ready.len(), 1);
        assert_eq!(ready[0].config.metadata.as_ref().unwrap().attempt, 1);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_pulled_backs_off() {
    let node = Node::start().await;
    for _ in 0..3 {
        node.script.fail_next("pull_image", "manifest unknown");
    }
    node.create("p", json!({})).await;
    let status = node.wait_for("p", "refused", |status| waiting(status) == Some("ErrImagePull")).await;
    let first = &status.container_statuses.unwrap()[0];
    assert_eq!(
        first.state.as_ref().unwrap().waiting.as_ref().unwrap().message.as_deref(),
        Some("manifest unknown")
    );
    node.wait_for("p", "waiting", |status| waiting(status) == Some("ImagePullBackOff")).await;
    let event = node.wait_for_event("p", "BackOff").await;
    assert_eq!(event.message.as_deref(), Some("Back-off pulling image \"image:1\""));
    assert_eq!(node.script.count("pull_image"), 1, "the back-off holds");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn never_means_never() {
    let node = Node::start().await;
    let containers = json!([{"name": "c", "image": "absent:1", "imagePullPolicy": "Never"}]);
    node.create("p", json!({"containers": containers})).await;
    node.wait_for("p", "refused", |status| waiting(status) == Some("ErrImageNeverPull")).await;
    assert_eq!(node.script.count("pull_image"), 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_does_not_wait_for_a_pull() {
    let node = Node::start().await;
    node.script.holds_pulls.store(true, Ordering::SeqCst);
    node.create("p", json!({"hostUsers": false})).await;
    node.wait_for_event("p", "Pulling").await;
    node.pods().delete("p", &DeleteParams::default()).await.unwrap();
    node.wait_until_gone("p").await;
    assert!(node.script.books().sandboxes.is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_created_or_started_says_why() {
    let node = Node::start().await;
    node.script.fail_next("create_container", "bad request");
    node.create("created", json!({})).await;
    node.wait_for("created", "refused", |status| waiting(status) == Some("CreateContainerError")).await;
    node.script.fail_next("start_container", "exec: \"x\": not found");
    node.create("started", json!({"restartPolicy": "Never"})).await;
    let status = node.wait_for_phase("started", "Failed").await;
    let state = status.container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(state.terminated.unwrap().exit_code, 128);
    let event = node.wait_for_event("started", "Failed").await;
    assert_eq!(event.message.as_deref(), Some("Error: exec: \"x\": not found"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_object_is_told_and_its_creation_is_enough() {
    let node = Node::start().await;
    let env = json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "k"}}}]);
    node.create("p", json!({"containers": [{"name": "c", "image": "i", "env": env}]})).await;
    node.wait_for("p", "refused", |status| waiting(status) == Some("CreateContainerConfigError")).await;
    let event = node.wait_for_event("p", "Failed").await;
    assert_eq!(event.message.as_deref(), Some("Error: configmap \"late\" not found"));
    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(node.admin.clone(), "default");
    let map = serde_json::from_value(json!({"metadata": {"name": "late"}, "data": {"k": "v"}})).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    node.wait_for_phase("p", "Running").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_while_events_are_away_is_seen_when_they_are_back() {
    let node = Node::start().await;
    node.create("p", json!({"restartPolicy": "Never"})).await;
    node.wait_for_phase("p", "Running").await;
    node.script.break_events();
    node.script.exit("c", 0);
    node.wait_for_phase("p", "Succeeded").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_without_events_is_looked_at() {
    let node = Node::start_with(Script { has_events: false, ..Script::new() }, true).await;
    node.create("p", json!({"restartPolicy": "Never"})).await;
    node.wait_for_phase("p", "Running").await;
    node.script.exit("c", 3);
    node.wait_for_phase("p", "Failed").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_fails_is_tried_again() {
    let node = Node::start().await;
    let pod = node.create("p", json!({"hostUsers": false})).await;
    node.wait_for_phase("p", "Running").await;
    node.script.fail_next("stop_container", "busy");
    node.script.fail_next("remove_pod_sandbox", "busy");
    node.pods().delete("p", &DeleteParams::default()).await.unwrap();
    node.wait_until_gone("p").await;
    until("its directory is gone", async || !node.pod_dir(&pod).exists()).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_drops_the_mapping_is_found_out() {
    // The test's own process has the node's IDs.
    let node = Node::start_with(Script { pid: Some(std::process::id()), ..Script::new() }, true).await;
    node.create("p", json!({"hostUsers": false, "restartPolicy": "Never"})).await;
    let event = node.wait_for_event("p", "Failed").await;
    let message = event.message.unwrap();
    assert!(
        message.contains("the uid_map `0 0 4294967295`, which is not the Pod's: it was ended"),
        "{message}"
    );
    node.wait_for_phase("p", "Failed").await;
    assert!(node.script.count("stop_container 0") == 1);
    node.create("plain", json!({})).await;
    node.wait_for_phase("plain", "Running").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_by_days_ends_no_pod_and_keeps_none_waiting() {
    let node = Node::start().await;
    node.create("p", json!({"hostUsers": false})).await;
    node.create("other", json!({"containers": [{"name": "o", "image": "image:1"}]})).await;
    node.wait_for_phase("p", "Running").await;
    node.wait_for_phase("other", "Running").await;
    for (days, runs) in [(1, 1), (-1, 2)] {
        node.set_clock(days);
        node.script.exit("c", 1);
        node.wait_for("p", "restarted", |status| restarts(status) == runs && waiting(status).is_none()).await;
    }
    let other = node.status("other").await;
    assert_eq!((other.phase.as_deref(), restarts(&other)), (Some("Running"), 0));
    assert_eq!(node.script.count("stop_container"), 0);
    node.stop().await;
}
