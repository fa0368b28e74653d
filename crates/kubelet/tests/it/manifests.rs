//! Static Pods and their mirrors.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::json;

use crate::node::{Node, until};
use crate::script::Script;

/// Puts a manifest into the node's directory in one step, as its users should.
pub(crate) fn write(node: &Node, name: &str, spec: serde_json::Value) -> PathBuf {
    let directory = node.directory.path().join("manifests");
    std::fs::create_dir_all(&directory).unwrap();
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
    let (made, path) = (node.directory.path().join(name), directory.join(format!("{name}.yaml")));
    std::fs::write(&made, pod.to_string()).unwrap();
    std::fs::rename(&made, &path).unwrap();
    path
}

fn spec(image: &str) -> serde_json::Value {
    json!({"hostUsers": false, "terminationGracePeriodSeconds": 3, "containers": [{"name": "c", "image": image}]})
}

async fn mirror(node: &Node, name: &str) -> Option<Pod> {
    node.pods().get_opt(name).await.unwrap()
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a16_a_static_pod_runs_mapped_and_its_mirror_shows_the_field() {
    let node = Node::prepare(Script::new()).await;
    write(&node, "web", spec("image:1"));
    let node = node.started().await;
    node.wait_for_phase("web-node", "Running").await;
    let shown = mirror(&node, "web-node").await.unwrap();
    assert_eq!(shown.spec.as_ref().unwrap().host_users, Some(false));
    let annotations = shown.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    let hash = &annotations["kubernetes.io/config.mirror"];
    let record = node.kubelet_dir().join("pods").join(hash).join("userns");
    assert!(std::fs::read_to_string(record).unwrap().contains("131072"));
    {
        let books = node.script.books();
        let linux = books.sandboxes.values().next().unwrap().config.linux.clone().unwrap();
        let options = linux.security_context.unwrap().namespace_options.unwrap();
        assert_eq!(options.userns_options.unwrap().mode(), cri::v1::NamespaceMode::Pod);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a17_a_bad_manifest_is_refused_and_the_others_run() {
    let node = Node::prepare(Script::new()).await;
    let mut bad = spec("image:1");
    bad["hostPID"] = json!(true);
    write(&node, "bad", bad);
    write(&node, "good", spec("image:1"));
    let node = node.started().await;
    node.wait_for_phase("good-node", "Running").await;
    assert!(mirror(&node, "bad-node").await.is_none());
    assert_eq!(node.script.count("run_pod_sandbox"), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_mirror_comes_back_and_its_pod_runs_on() {
    let node = Node::start().await;
    write(&node, "web", spec("image:1"));
    node.wait_for_phase("web-node", "Running").await;
    let first = uid(&mirror(&node, "web-node").await.unwrap());
    node.pods().delete("web-node", &DeleteParams::default()).await.unwrap();
    until("another mirror is there", async || {
        mirror(&node, "web-node")
            .await
            .is_some_and(|pod| uid(&pod) != first && pod.metadata.deletion_timestamp.is_none())
    })
    .await;
    node.wait_for_phase("web-node", "Running").await;
    assert_eq!((node.script.count("run_pod_sandbox"), node.script.count("stop_container")), (1, 0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_manifest_is_the_next_pod_and_a_removed_one_is_gone() {
    let node = Node::start().await;
    let path = write(&node, "web", spec("image:1"));
    node.wait_for_phase("web-node", "Running").await;
    write(&node, "web", spec("image:2"));
    until("the mirror shows the new image", async || {
        let Some(pod) = mirror(&node, "web-node").await else { return false };
        let is_new = pod.spec.as_ref().unwrap().containers[0].image.as_deref() == Some("image:2");
        is_new && pod.status.is_some_and(|status| status.phase.as_deref() == Some("Running"))
    })
    .await;
    assert!(node.script.books().calls.contains(&"stop_container 3".to_owned()));
    std::fs::remove_file(path).unwrap();
    node.wait_until_gone("web-node").await;
    until("nothing of it runs", async || node.script.books().sandboxes.is_empty()).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_pod_is_adopted_after_a_restart() {
    let mut node = Node::start().await;
    write(&node, "web", spec("image:1"));
    node.wait_for_phase("web-node", "Running").await;
    node.stop_kubelet().await;
    node.start_kubelet().await;
    let pod = node.create("p", json!({})).await;
    node.wait_for_phase("p", "Running").await;
    assert!(pod.metadata.uid.is_some());
    assert_eq!(node.script.count("run_pod_sandbox"), 2, "one for each Pod");
    assert_eq!(node.script.count("stop_container"), 0);
    node.stop().await;
}
