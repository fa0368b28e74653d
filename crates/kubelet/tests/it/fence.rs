//! The policy for Pods that say nothing of `hostUsers`: decided once, at the first sandbox, and kept.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;
use userns::policy::Policy;

use crate::node::{Node, until, waiting};
use crate::script::Script;

async fn start(policy: Policy, script: Script) -> Node {
    let mut node = Node::without_kubelet(script, true).await;
    node.policy = policy;
    node.start_kubelet().await;
    node
}

/// Restarts the node agent under another policy.
async fn restart(node: &mut Node, policy: Policy) {
    node.stop_kubelet().await;
    node.policy = policy;
    node.start_kubelet().await;
}

/// The status and the reason of the Pod's condition.
fn fence(status: &PodStatus) -> Option<(String, String)> {
    let mut conditions = status.conditions.iter().flatten();
    let found = conditions.find(|condition| condition.type_ == "kakoi.dev/UserNamespace")?;
    Some((found.status.clone(), found.reason.clone().unwrap_or_default()))
}

fn is(status: &PodStatus, holds: &str, reason: &str) -> bool {
    fence(status) == Some((holds.to_owned(), reason.to_owned()))
}

/// The host IDs with which the newest container was asked for.
fn asked(node: &Node) -> Option<u32> {
    let books = node.script.books();
    let container = books.containers.values().last().unwrap();
    let context = container.config.linux.as_ref().unwrap().security_context.as_ref().unwrap();
    let options = context.namespace_options.as_ref().unwrap().userns_options.clone()?;
    options.uids.first().map(|line| line.host_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_says_nothing_gets_ids_and_keeps_them_under_any_policy() {
    let mut node = start(Policy::Default, Script::new()).await;
    let pod = node.create("p", json!({})).await;
    node.wait_for_phase("p", "Running").await;
    node.wait_for("p", "fenced", |status| is(status, "True", "FencedByPolicy")).await;
    assert!(node.pod_dir(&pod).join("userns").exists());
    {
        // The image was needed for the decision; the container did not ask for it again.
        let calls = node.script.books().calls.clone();
        let order: Vec<&str> = calls
            .iter()
            .map(String::as_str)
            .filter(|call| call.starts_with("pull") || call.starts_with("run"))
            .collect();
        assert_eq!(order, ["pull_image", "run_pod_sandbox"]);
    }
    restart(&mut node, Policy::OptIn).await;
    node.script.exit("c", 1);
    until("it runs again", async || node.script.count("start_container") == 2).await;
    assert_eq!(asked(&node), Some(131_072));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exempt_pod_stays_exempt_when_it_would_be_refused_now() {
    let mut node = start(Policy::Default, Script::new()).await;
    let pod = node.create("p", json!({"hostNetwork": true})).await;
    node.wait_for_phase("p", "Running").await;
    node.wait_for("p", "exempt", |status| is(status, "False", "HostNetwork")).await;
    let event = node.wait_for_event("p", "UserNamespaceExempt").await;
    assert!(event.message.unwrap().starts_with("Runs with the node's IDs: `hostNetwork: true`: "));
    assert!(node.pod_dir(&pod).join("userns-exempt").exists() && !node.pod_dir(&pod).join("userns").exists());
    restart(&mut node, Policy::Always).await;
    node.script.exit("c", 1);
    until("it runs again", async || node.script.count("start_container") == 2).await;
    assert_eq!(asked(&node), None);
    assert!(is(&node.status("p").await, "False", "HostNetwork"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_images_user_beyond_the_range_is_seen_before_the_sandbox() {
    let node = start(Policy::Default, Script::new()).await;
    node.script.books().image_users.insert("image:1".into(), 70_000);
    let pod = node.create("p", json!({})).await;
    node.wait_for("p", "exempt", |status| is(status, "False", "ImageUserOutOfRange")).await;
    node.wait_for_phase("p", "Running").await;
    assert!(!node.pod_dir(&pod).join("userns").exists());
    node.create("own-user", json!({"securityContext": {"runAsUser": 1000}})).await;
    node.wait_for("own-user", "fenced", |status| is(status, "True", "FencedByPolicy")).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_does_not_come_is_shown_and_tried_again_without_a_sandbox() {
    let node = start(Policy::Default, Script::new()).await;
    node.script.fail_next("pull_image", "registry is away");
    node.create("p", json!({})).await;
    node.wait_for("p", "waiting for its image", |status| {
        matches!(waiting(status), Some("ErrImagePull" | "ImagePullBackOff"))
    })
    .await;
    assert_eq!(node.script.count("run_pod_sandbox"), 0);
    node.wait_for_phase("p", "Running").await;
    node.wait_for("p", "fenced", |status| is(status, "True", "FencedByPolicy")).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn under_always_a_pod_that_cannot_be_fenced_fails_before_anything_is_made() {
    let node = start(Policy::Always, Script::new()).await;
    for (name, spec) in [("network", json!({"hostNetwork": true})), ("said", json!({"hostUsers": true}))] {
        node.create(name, spec).await;
        let status = node.wait_for_phase(name, "Failed").await;
        assert_eq!(status.reason.as_deref(), Some("UserNamespaceRefused"));
        assert!(status.message.unwrap().contains("the policy `always` lets no Pod run with the node's IDs"));
    }
    assert_eq!(node.script.count("run_pod_sandbox"), 0);
    node.create("plain", json!({})).await;
    node.wait_for_phase("plain", "Running").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_support_a_pod_is_exempt_by_default_and_waits_under_always() {
    let script = || Script { has_userns: false, ..Script::new() };
    let node = start(Policy::Default, script()).await;
    node.create("p", json!({})).await;
    node.wait_for_phase("p", "Running").await;
    node.wait_for("p", "exempt", |status| is(status, "False", "NoSupport")).await;
    node.stop().await;
    let node = start(Policy::Always, script()).await;
    node.create("p", json!({})).await;
    let event = node.wait_for_event("p", "FailedCreatePodSandBox").await;
    assert!(event.message.unwrap().contains("runtime does not support user namespaces"));
    assert_eq!(node.status("p").await.phase.as_deref(), Some("Pending"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_from_before_the_policy_keeps_the_nodes_ids() {
    let mut node = start(Policy::OptIn, Script::new()).await;
    let pod = node.create("p", json!({})).await;
    node.wait_for_phase("p", "Running").await;
    node.stop_kubelet().await;
    std::fs::remove_file(node.pod_dir(&pod).join("userns-exempt")).unwrap();
    node.policy = Policy::Always;
    node.start_kubelet().await;
    node.wait_for("p", "adopted", |status| is(status, "False", "SandboxWasThere")).await;
    assert!(!node.pod_dir(&pod).join("userns").exists());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespaces_label_overrules_the_node() {
    let node = start(Policy::Default, Script::new()).await;
    node.label_namespace("opt-in").await;
    node.create("p", json!({})).await;
    node.wait_for("p", "exempt", |status| is(status, "False", "NotAsked")).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_gate_turned_off_a_fenced_pod_stays_fenced() {
    let mut node = start(Policy::Default, Script::new()).await;
    node.create("p", json!({})).await;
    node.wait_for_phase("p", "Running").await;
    node.stop_kubelet().await;
    node.is_userns_on = false;
    node.start_kubelet().await;
    node.script.exit("c", 1);
    until("it runs again", async || node.script.count("start_container") == 2).await;
    assert_eq!(asked(&node), Some(131_072));
    node.create("q", json!({})).await;
    node.wait_for_phase("q", "Running").await;
    assert_eq!(fence(&node.status("q").await), None);
    node.stop().await;
}
