//! Volumes follow the objects that they show.

use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::node::{Node, until};

#[tokio::test(flavor = "multi_thread")]
async fn h14_a_changed_config_map_shows_in_its_volume() {
    let node = Node::start().await;
    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> = Api::namespaced(node.admin.clone(), "default");
    let pod = node
        .create(
            "p",
            json!({"hostUsers": false,
        "volumes": [{"name": "v", "configMap": {"name": "cm"}}],
        "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
        )
        .await;
    let event = node.wait_for_event("p", "FailedMount").await;
    assert_eq!(
        event.message.as_deref(),
        Some("MountVolume.SetUp failed for volume \"v\" : configmap \"cm\" not found")
    );
    let map = json!({"metadata": {"name": "cm"}, "data": {"k": "old"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    node.wait_for_phase("p", "Running").await;
    let file = node.pod_dir(&pod).join("volumes/kubernetes.io~configmap/v/k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
    let patch = Patch::Merge(json!({"data": {"k": "new"}}));
    maps.patch("cm", &PatchParams::default(), &patch).await.unwrap();
    until("the new value shows", async || std::fs::read_to_string(&file).unwrap() == "new").await;
    assert_eq!(node.script.count("create_container"), 1, "the container runs on");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projected_token_is_asked_of_the_api() {
    let node = Node::start().await;
    let sources = json!([{"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}}]);
    let pod = node
        .create(
            "p",
            json!({"volumes": [{"name": "t", "projected": {"sources": sources}}],
        "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "t", "mountPath": "/t"}]}]}),
        )
        .await;
    node.wait_for_phase("p", "Running").await;
    let token =
        std::fs::read_to_string(node.pod_dir(&pod).join("volumes/kubernetes.io~projected/t/token")).unwrap();
    assert_eq!(token.split('.').count(), 3, "a JWT");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_that_change_show_in_a_downward_volume() {
    let node = Node::start().await;
    let items = json!([{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]);
    let pod = node
        .create(
            "p",
            json!({"volumes": [{"name": "d", "downwardAPI": {"items": items}}],
        "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "d", "mountPath": "/d"}]}]}),
        )
        .await;
    node.wait_for_phase("p", "Running").await;
    let patch = Patch::Merge(json!({"metadata": {"labels": {"new": "label"}}}));
    node.pods().patch("p", &PatchParams::default(), &patch).await.unwrap();
    let file = node.pod_dir(&pod).join("volumes/kubernetes.io~downward-api/d/labels");
    until("the new label shows", async || std::fs::read_to_string(&file).unwrap() == "new=\"label\"").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_come_from_the_file_that_an_init_container_wrote() {
    let node = Node::start().await;
    let from = |key: &str, optional: bool| json!({"fileKeyRef": {"volumeName": "v", "path": "vars.env", "key": key, "optional": optional}});
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    let pod = node
        .create(
            "p",
            json!({"hostUsers": false, "volumes": [{"name": "v", "emptyDir": {}}],
            "initContainers": [{"name": "setup", "image": "i", "volumeMounts": mounts}],
            "containers": [{"name": "main", "image": "i", "env": [
                {"name": "HOST", "valueFrom": from("HOST", false)},
                {"name": "MAYBE", "valueFrom": from("MAYBE", true)}]}]}),
        )
        .await;
    let file = node.pod_dir(&pod).join("volumes/kubernetes.io~empty-dir/v/vars.env");
    node.script.wait_for_run("setup", 1).await;
    std::fs::write(&file, "# made by setup\nHOST='one'\n").unwrap();
    node.script.exit("setup", 0);
    let first = node.script.wait_for_run("main", 1).await;
    assert_eq!((first.env("HOST").as_deref(), first.env("MAYBE")), (Some("one"), None));
    std::fs::write(&file, "HOST='two'\nMAYBE='yes'\n").unwrap();
    node.script.exit("main", 1);
    let next = node.script.wait_for_run("main", 2).await;
    assert_eq!((next.env("HOST").as_deref(), next.env("MAYBE").as_deref()), (Some("two"), Some("yes")));
    std::fs::remove_file(&file).unwrap();
    let broken =
        json!({"name": "late", "image": "i", "env": [{"name": "HOST", "valueFrom": from("HOST", false)}]});
    let patch = Patch::Strategic(json!({"spec": {"ephemeralContainers": [broken]}}));
    node.pods().patch_ephemeral_containers("p", &PatchParams::default(), &patch).await.unwrap();
    let event = node.wait_for_event("p", "Failed").await;
    let told = "Error: variable HOST: couldn't parse env file: vars.env does not exist in the volume; let an init container write it, or set `optional: true`";
    assert_eq!(event.message.as_deref(), Some(told));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_requests_more_huge_pages_than_the_node_has_is_not_taken() {
    let node = Node::start().await;
    let limits = json!({"memory": "1Mi", "hugepages-2Mi": "1Ti"});
    node.create(
        "p",
        json!({"volumes": [{"name": "v", "emptyDir": {"medium": "HugePages"}}],
        "containers": [{"name": "c", "image": "i", "resources": {"limits": limits},
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
    )
    .await;
    let status = node.wait_for_phase("p", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("OutOfhugepages-2Mi"));
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(node.admin.clone());
    let status = nodes.get("node").await.unwrap().status.unwrap();
    let (capacity, allocatable) = (status.capacity.unwrap(), status.allocatable.unwrap());
    assert_eq!(capacity["hugepages-2Mi"], allocatable["hugepages-2Mi"]);
    assert!(status.declared_features.unwrap().contains(&"RestartAllContainersOnContainerExits".to_owned()));
    node.stop().await;
}
