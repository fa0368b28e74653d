//! The node agent dies and comes back: Pods go on, counts stay, and what it left half done is finished.

use kube::api::DeleteParams;
use serde_json::json;

use crate::node::{Node, restarts, until, waiting};

#[tokio::test(flavor = "multi_thread")]
async fn running_pods_are_adopted_as_they_are() {
    let mut node = Node::start().await;
    let pod = node.create("p", json!({"hostUsers": false})).await;
    node.wait_for_phase("p", "Running").await;
    node.script.exit("c", 1);
    let before =
        node.wait_for("p", "restarted", |status| restarts(status) == 1 && waiting(status).is_none()).await;
    let record = std::fs::read_to_string(node.pod_dir(&pod).join("userns")).unwrap();
    node.stop_kubelet().await;
    let calls = node.script.books().calls.clone();
    node.start_kubelet().await;
    let next = node.create("q", json!({"hostUsers": false})).await;
    node.wait_for_phase("q", "Running").await;
    let after = node.status("p").await;
    assert_eq!(after.container_statuses, before.container_statuses);
    assert_eq!(std::fs::read_to_string(node.pod_dir(&pod).join("userns")).unwrap(), record);
    assert_ne!(std::fs::read_to_string(node.pod_dir(&next).join("userns")).unwrap(), record);
    {
        let books = node.script.books();
        let changed: Vec<_> =
            books.calls[calls.len()..].iter().filter(|call| call.starts_with("stop")).collect();
        assert!(changed.is_empty(), "{changed:?}");
        assert_eq!(books.sandboxes.len(), 2);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_meanwhile_is_seen() {
    let mut node = Node::start().await;
    node.create("p", json!({"restartPolicy": "Never"})).await;
    node.wait_for_phase("p", "Running").await;
    node.stop_kubelet().await;
    node.script.exit("c", 5);
    node.start_kubelet().await;
    let status = node.wait_for_phase("p", "Failed").await;
    let state = status.container_statuses.unwrap()[0].state.clone().unwrap();
    assert_eq!(state.terminated.unwrap().exit_code, 5);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_meanwhile_is_ended() {
    let mut node = Node::start().await;
    let gone = node.create("forced", json!({"hostUsers": false})).await;
    node.create("asked", json!({"hostUsers": false})).await;
    node.wait_for_phase("forced", "Running").await;
    node.wait_for_phase("asked", "Running").await;
    node.stop_kubelet().await;
    node.pods().delete("asked", &DeleteParams::default()).await.unwrap();
    node.pods().delete("forced", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(node.script.books().sandboxes.len(), 2);
    node.start_kubelet().await;
    node.wait_until_gone("asked").await;
    until("the orphan is cleared away", async || {
        node.script.books().sandboxes.is_empty() && !node.pod_dir(&gone).exists()
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn e17_a_directory_without_a_pod_is_removed() {
    let mut node = Node::start().await;
    node.stop_kubelet().await;
    let orphan = node.kubelet_dir().join("pods/0000-orphan");
    std::fs::create_dir_all(orphan.join("volumes/kubernetes.io~empty-dir/v")).unwrap();
    let record = r#"{"uidMappings":[{"hostId":131072,"containerId":0,"length":65536}],"gidMappings":[{"hostId":131072,"containerId":0,"length":65536}]}"#;
    std::fs::write(orphan.join("userns"), record).unwrap();
    node.start_kubelet().await;
    until("it is gone", async || !orphan.exists()).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_node_is_registered_ready_and_again_after_a_restart() {
    let mut node = Node::start().await;
    let api: kube::Api<k8s_openapi::api::core::v1::Node> = kube::Api::all(node.admin.clone());
    let is_ready = async || {
        let found = api.get_opt("node").await.unwrap();
        let conditions =
            found.and_then(|node| node.status).and_then(|status| status.conditions).unwrap_or_default();
        conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
    };
    until("the node is ready", is_ready).await;
    let found = api.get("node").await.unwrap();
    let info = found.status.unwrap().node_info.unwrap();
    assert_eq!(info.container_runtime_version, "script://1");
    assert!(found.metadata.labels.unwrap().contains_key("node-role.kubernetes.io/control-plane"));
    let leases: kube::Api<k8s_openapi::api::coordination::v1::Lease> =
        kube::Api::namespaced(node.admin.clone(), "kube-node-lease");
    let renewed = async || leases.get_opt("node").await.unwrap().and_then(|lease| lease.spec?.renew_time);
    until("the lease is held", async || renewed().await.is_some()).await;
    let first = renewed().await;
    node.stop_kubelet().await;
    node.start_kubelet().await;
    until("the lease is renewed", async || renewed().await > first).await;
    node.stop().await;
}
