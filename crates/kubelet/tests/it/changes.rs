//! What users change on Pods that run: ephemeral containers, sizes, readiness gates; and Pods that the node refuses.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::node::{Node, until};

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_container_joins_a_running_pod() {
    let node = Node::start().await;
    node.create("p", json!({"hostUsers": false})).await;
    node.wait_for_phase("p", "Running").await;
    let shell = json!({"name": "debugger", "image": "busybox", "stdin": true, "tty": true, "targetContainerName": "c"});
    let patch = json!({"spec": {"ephemeralContainers": [shell]}});
    let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
    let pods = node.pods();
    pods.patch_subresource("ephemeralcontainers", "p", &params, &patch).await.unwrap();
    let status = node
        .wait_for("p", "debugged", |status| {
            let first = status.ephemeral_container_statuses.as_ref().and_then(|list| list.first());
            first.is_some_and(|first| first.state.as_ref().is_some_and(|state| state.running.is_some()))
        })
        .await;
    assert!(!status.ephemeral_container_statuses.unwrap()[0].ready);
    let target = {
        let books = node.script.books();
        let of = |name: &str| {
            let mut all = books.containers.values();
            all.find(|container| container.config.metadata.as_ref().unwrap().name == name).unwrap().clone()
        };
        let linux = of("debugger").config.linux.unwrap().security_context.unwrap();
        let options = linux.namespace_options.unwrap();
        assert_eq!(options.pid(), cri::v1::NamespaceMode::Target);
        assert_eq!(options.userns_options.unwrap().mode(), cri::v1::NamespaceMode::Pod);
        assert!(of("debugger").config.tty);
        (options.target_id, of("c").id)
    };
    assert_eq!(target.0, target.1);
    node.script.exit("debugger", 1);
    node.wait_for("p", "left by the debugger", |status| {
        let first = status.ephemeral_container_statuses.as_ref().and_then(|list| list.first());
        first.is_some_and(|first| first.state.as_ref().is_some_and(|state| state.terminated.is_some()))
    })
    .await;
    assert_eq!(node.script.count("create_container"), 2, "it is not started again");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_ready_when_its_gate_is() {
    let node = Node::start().await;
    node.create("p", json!({"readinessGates": [{"conditionType": "example.com/gate"}]})).await;
    let ready = |status: &k8s_openapi::api::core::v1::PodStatus, wanted: &str| {
        let conditions = status.conditions.iter().flatten();
        conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == wanted)
    };
    node.wait_for("p", "running and held back by its gate", |status| {
        let reason = "ReadinessGatesNotReady";
        status.conditions.iter().flatten().any(|condition| condition.reason.as_deref() == Some(reason))
    })
    .await;
    for value in ["True", "False"] {
        let patch = json!({"status": {"conditions": [{"type": "example.com/gate", "status": value}]}});
        node.pods().patch_status("p", &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
        let status = node.wait_for("p", "as its gate says", |status| ready(status, value)).await;
        let mut conditions = status.conditions.iter().flatten();
        let gate = conditions.find(|condition| condition.type_ == "example.com/gate").unwrap();
        assert_eq!(gate.status, value, "the gate stays as it was written");
    }
    node.stop().await;
}

fn sized(cpu: &str, memory: &str) -> serde_json::Value {
    json!({"requests": {"cpu": cpu, "memory": "16Mi"}, "limits": {"memory": memory}})
}

async fn resize(node: &Node, resources: serde_json::Value) -> Pod {
    let patch = json!({"spec": {"containers": [{"name": "c", "resources": resources}]}});
    let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
    node.pods().patch_subresource("resize", "p", &params, &patch).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_container_is_resized_in_place() {
    let node = Node::start().await;
    let policy = json!([{"resourceName": "memory", "restartPolicy": "RestartContainer"}]);
    let container =
        json!({"name": "c", "image": "image:1", "resources": sized("100m", "64Mi"), "resizePolicy": policy});
    node.create("p", json!({"containers": [container]})).await;
    node.wait_for_phase("p", "Running").await;
    resize(&node, sized("200m", "64Mi")).await;
    node.wait_for("p", "resized", |status| {
        let first = status.container_statuses.as_ref().and_then(|list| list.first());
        let requests = first.and_then(|first| first.resources.as_ref()?.requests.as_ref());
        requests.is_some_and(|requests| requests["cpu"].0 == "200m")
    })
    .await;
    {
        let books = node.script.books();
        assert_eq!(books.updates.iter().map(|update| update.cpu_shares).collect::<Vec<_>>(), [204]);
    }
    assert_eq!(node.script.count("create_container"), 1, "it was not restarted");
    node.wait_for_event("p", "ResizeCompleted").await;
    resize(&node, sized("200m", "128Mi")).await;
    until("a new run has the new limit", async || {
        let books = node.script.books();
        let mut limits = books.containers.values().map(|container| {
            container.config.linux.as_ref().unwrap().resources.as_ref().unwrap().memory_limit_in_bytes
        });
        limits.any(|limit| limit == 128 << 20)
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resize_that_does_not_fit_waits_and_says_so() {
    let node = Node::start().await;
    let container = json!({"name": "c", "image": "image:1", "resources": sized("100m", "64Mi")});
    node.create("p", json!({"containers": [container]})).await;
    node.wait_for_phase("p", "Running").await;
    resize(&node, sized("5000", "64Mi")).await;
    let status = node
        .wait_for("p", "waiting for its resize", |status| {
            status.conditions.iter().flatten().any(|condition| condition.type_ == "PodResizePending")
        })
        .await;
    let mut conditions = status.conditions.iter().flatten();
    let pending = conditions.find(|condition| condition.type_ == "PodResizePending").unwrap();
    assert_eq!(pending.reason.as_deref(), Some("Infeasible"));
    assert!(
        pending
            .message
            .as_ref()
            .unwrap()
            .starts_with("Node didn't have enough capacity: cpu, requested: 5000000")
    );
    resize(&node, sized("100m", "64Mi")).await;
    node.wait_for("p", "content", |status| {
        !status.conditions.iter().flatten().any(|condition| condition.type_ == "PodResizePending")
    })
    .await;
    assert!(node.script.books().updates.is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_the_node_cannot_take_fails_with_the_reason() {
    let node = Node::start().await;
    let huge = json!({"requests": {"cpu": "5000"}});
    node.create("p", json!({"containers": [{"name": "c", "image": "image:1", "resources": huge}]})).await;
    let status = node.wait_for_phase("p", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("OutOfcpu"));
    assert!(
        status
            .message
            .unwrap()
            .starts_with("Pod was rejected: Node didn't have enough resource: cpu, requested: 5000000")
    );
    node.wait_for_event("p", "OutOfcpu").await;
    node.create("q", json!({"nodeSelector": {"zone": "nowhere"}})).await;
    let status = node.wait_for_phase("q", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("NodeAffinity"));
    assert_eq!(node.script.count("run_pod_sandbox"), 0);
    node.stop().await;
}
