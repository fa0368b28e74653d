//! Volumes of a CSI driver: what it is told, when, and what becomes of Pods whose volumes it mounts.

mod driver;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use userns::policy::Policy;

use crate::node::{Node, until};
use crate::script::Script;
use driver::{Call, Driver, NAME};

/// A node with the driver, which can do `can` beside staging, and whose `CSIDriver` says `spec`.
async fn start(node: Node, can: Option<driver::Can>, spec: Value) -> (Node, Driver) {
    let object = json!({"metadata": {"name": NAME}, "spec": spec});
    create::<CSIDriver>(Api::all(node.admin.clone()), object).await;
    let driver = Driver::start(&node.kubelet_dir(), can);
    driver.registered().await;
    (node, driver)
}

async fn create<K>(api: Api<K>, object: Value)
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
}

/// A bound claim `disk` of the driver's volume `disk-1`, and the Pod's volume that stands for it.
async fn claim(node: &Node, mut csi: Value) -> Value {
    csi["driver"] = json!(NAME);
    csi["volumeHandle"] = json!("disk-1");
    let (modes, size) = (json!(["ReadWriteOnce"]), json!({"storage": "1Mi"}));
    let volume = json!({"metadata": {"name": "disk"}, "spec": {"accessModes": modes, "capacity": size, "csi": csi,
        "claimRef": {"name": "disk", "namespace": "default"}}});
    let claim = json!({"metadata": {"name": "disk"}, "spec": {"accessModes": modes, "volumeName": "disk",
        "storageClassName": "", "resources": {"requests": size}}});
    create::<PersistentVolume>(Api::all(node.admin.clone()), volume).await;
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(node.admin.clone(), "default");
    create(claims.clone(), claim).await;
    let bound = Patch::Merge(json!({"status": {"phase": "Bound"}}));
    claims.patch_status("disk", &PatchParams::default(), &bound).await.unwrap();
    json!({"name": "v", "persistentVolumeClaim": {"claimName": "disk"}})
}

fn spec(volume: &Value, mut rest: Value) -> Value {
    rest["volumes"] = json!([volume]);
    rest["containers"] =
        json!([{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]);
    rest
}

async fn secret(node: &Node, name: &str, key: &str) {
    let secret = json!({"metadata": {"name": name}, "stringData": {key: "s3cret"}});
    create::<Secret>(Api::namespaced(node.admin.clone(), "default"), secret).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_waits_for_its_attachment_and_the_driver_gets_what_that_says_and_the_secrets() {
    let (node, driver) = start(Node::start().await, None, json!({})).await;
    secret(&node, "for-stage", "stage").await;
    secret(&node, "for-publish", "publish").await;
    let of = |name: &str| json!({"namespace": "default", "name": name});
    let source = json!({"nodeStageSecretRef": of("for-stage"), "nodePublishSecretRef": of("for-publish")});
    let volume = claim(&node, source).await;
    node.create("p", spec(&volume, json!({"hostUsers": false}))).await;
    let event = node.wait_for_event("p", "FailedMount").await.message.unwrap();
    assert!(
        event.contains("the volume is not attached to this node: there is no VolumeAttachment csi-"),
        "{event}"
    );
    assert_eq!(driver.calls().len(), 0, "nothing is asked before");
    let digest = Sha256::digest(format!("disk-1{NAME}node"));
    let name = digest.iter().fold("csi-".to_owned(), |name, byte| format!("{name}{byte:02x}"));
    let attachments: Api<VolumeAttachment> = Api::all(node.admin.clone());
    let object = json!({"metadata": {"name": name},
        "spec": {"attacher": NAME, "nodeName": "node", "source": {"persistentVolumeName": "disk"}}});
    create(attachments.clone(), object).await;
    let status = json!({"status": {"attached": true, "attachmentMetadata": {"device": "/dev/x"}}});
    attachments.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    node.wait_for_phase("p", "Running").await;
    let calls = driver.calls();
    let [Call::Stage(stage), Call::Publish(publish)] = calls.as_slice() else { panic!("{calls:?}") };
    assert_eq!((&stage.secrets["stage"], &publish.secrets["publish"]), (&"s3cret".into(), &"s3cret".into()));
    assert_eq!(
        (&stage.publish_context["device"], &publish.publish_context["device"]),
        (&"/dev/x".into(), &"/dev/x".into())
    );
    assert_eq!(publish.staging_target_path, stage.staging_target_path);
    assert!(!format!("{stage:?}{publish:?}").contains("s3cret"), "secrets are never shown");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_gives_volumes_to_a_group_is_told_the_group_and_the_node_agent_gives_nothing() {
    let can = Some(driver::Can::VolumeMountGroup);
    let (node, driver) =
        start(Node::start().await, can, json!({"attachRequired": false, "fsGroupPolicy": "File"})).await;
    let volume = claim(&node, json!({})).await;
    let pod = node.create("p", spec(&volume, json!({"securityContext": {"fsGroup": 2000}}))).await;
    node.wait_for_phase("p", "Running").await;
    for call in driver.calls() {
        let capability = match call {
            Call::Stage(request) => request.volume_capability,
            Call::Publish(request) => request.volume_capability,
            other => panic!("{other:?}"),
        };
        let Some(driver::Access::Mount(mount)) = capability.unwrap().access_type else { panic!() };
        assert_eq!(mount.volume_mount_group, "2000");
    }
    let mount = node.pod_dir(&pod).join("volumes/kubernetes.io~csi/v/mount");
    assert_eq!(std::os::unix::fs::MetadataExt::gid(&std::fs::metadata(mount).unwrap()), 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_agent_that_died_between_stage_and_publish_takes_the_volume_back_and_goes_on() {
    let (mut node, driver) = start(Node::start().await, None, json!({"attachRequired": false})).await;
    let volume = claim(&node, json!({})).await;
    // The driver never answers the publication: the node agent dies while it waits.
    driver.hold_publish();
    let pod = node.create("gone", spec(&volume, json!({}))).await;
    until("the volume is staged", async || driver.kinds() == ["stage"]).await;
    node.stop_kubelet().await;
    node.pods().delete("gone", &DeleteParams::default().grace_period(0)).await.unwrap();
    node.start_kubelet().await;
    until("it is taken back", async || driver.kinds() == ["stage", "unpublish", "unstage"]).await;
    until("nothing is left", async || !node.pod_dir(&pod).exists()).await;
    node.stop_kubelet().await;
    // And once more with a Pod that stays: it is staged again, as the driver must allow, and published.
    node.create("stays", spec(&volume, json!({}))).await;
    node.start_kubelet().await;
    until("the volume is staged", async || driver.kinds().len() == 4).await;
    node.stop_kubelet().await;
    driver.release_publish();
    node.start_kubelet().await;
    node.wait_for_phase("stays", "Running").await;
    assert_eq!(driver.kinds()[3..], ["stage", "stage", "publish"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_asks_for_it_is_asked_to_publish_again() {
    let says =
        json!({"attachRequired": false, "requiresRepublish": true, "tokenRequests": [{"audience": "disks"}]});
    let (node, driver) = start(Node::start().await, None, says).await;
    let volume = claim(&node, json!({})).await;
    let pod = node.create("p", spec(&volume, json!({}))).await;
    node.wait_for_phase("p", "Running").await;
    let relabel = async |value: &str| {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"l": value}}}));
        node.pods().patch("p", &PatchParams::default(), &patch).await.unwrap();
    };
    assert_eq!(driver.kinds(), ["stage", "publish"]);
    node.set_clock(1);
    relabel("later").await;
    until("it is published again", async || driver.kinds().len() == 3).await;
    assert_eq!(driver.kinds(), ["stage", "publish", "publish"], "it is not staged again");
    let tokens: Vec<String> = driver
        .calls()
        .iter()
        .filter_map(|call| match call {
            Call::Publish(request) => {
                Some(request.volume_context["csi.storage.k8s.io/serviceAccount.tokens"].clone())
            }
            _ => None,
        })
        .collect();
    assert_ne!(tokens[0], tokens[1], "with a new token");
    // One that fails is told, and the Pod runs on.
    driver.fail_publish("the token is not liked");
    node.set_clock(2);
    relabel("last").await;
    let event = node.wait_for_event("p", "FailedMount").await.message.unwrap();
    assert!(event.contains("the token is not liked"), "{event}");
    assert_eq!(node.status("p").await.phase.as_deref(), Some("Running"));
    assert!(node.pod_dir(&pod).join("volumes/kubernetes.io~csi/v/mount").exists());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn h10_a_drivers_volume_that_cannot_be_mapped_decides_about_the_user_namespace() {
    let mut node = Node::prepare(Script::new()).await;
    node.policy = Policy::Default;
    node.unmappable = Some("kubernetes.io~csi");
    let (node, driver) = start(node.started().await, None, json!({"attachRequired": false})).await;
    let volume = claim(&node, json!({})).await;
    let pod = node.create("p", spec(&volume, json!({}))).await;
    let status = node.wait_for_phase("p", "Running").await;
    let fence = status
        .conditions
        .unwrap()
        .into_iter()
        .find(|found| found.type_ == "kakoi.dev/UserNamespace")
        .unwrap();
    let message = fence.message.unwrap();
    assert_eq!((fence.status.as_str(), fence.reason.as_deref()), ("False", Some("Filesystem")));
    assert!(
        message.contains("the volume `v` is ") && message.contains("which this kernel can't ID-map"),
        "{message}"
    );
    assert!(!node.pod_dir(&pod).join("userns").exists(), "it got no IDs");
    assert_eq!(driver.kinds(), ["stage", "publish"]);
    node.pods().delete("p", &DeleteParams::default()).await.unwrap();
    node.wait_until_gone("p").await;

    node.label_namespace("always").await;
    node.create("q", spec(&volume, json!({}))).await;
    let status = node.wait_for_phase("q", "Failed").await;
    assert_eq!(status.reason.as_deref(), Some("UserNamespaceRefused"));
    assert!(status.message.unwrap().contains("which this kernel can't ID-map"));
    until("the volume is taken back", async || driver.kinds().last() == Some(&"unstage")).await;
    assert_eq!(node.script.count("run_pod_sandbox"), 1, "the refused Pod had no sandbox");
    node.stop().await;
}
