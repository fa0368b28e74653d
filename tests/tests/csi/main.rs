//! Volumes of a CSI driver, in user namespaces and without: the driver is the test's own and mounts on the node.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

mod driver;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use driver::{Call, Driver, NAME};
use serde_json::{Value, json};
use tests::{Kept, Node, SharedNode};

static NODE: SharedNode = SharedNode::new(Node::start);

const PATIENCE: Duration = Duration::from_mins(1);

/// A Pod of user 1000 and group 2000 that sleeps, with one volume at `/data`.
fn pod(name: &str, host_users: bool, volume: &Value) -> String {
    let mut volume = volume.clone();
    volume["name"] = json!("data");
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "hostUsers": host_users, "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsUser": 1000, "fsGroup": 2000},
        "containers": [{"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent",
            "command": ["sleep", "infinity"], "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "volumes": [volume],
    }})
    .to_string()
}

/// A `PersistentVolume` of the driver with its claim `disk`, bound to each other.
fn claim(node: &Node) -> Value {
    let (modes, size) = (json!(["ReadWriteMany"]), json!({"storage": "1Mi"}));
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"}, "spec": {
        "accessModes": modes, "capacity": size, "storageClassName": "", "persistentVolumeReclaimPolicy": "Retain",
        "csi": {"driver": NAME, "volumeHandle": "disk-1", "volumeAttributes": {"colour": "red"}},
        "claimRef": {"name": "disk", "namespace": "default"}}});
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "disk"}, "spec": {
        "accessModes": modes, "resources": {"requests": size}, "storageClassName": "", "volumeName": "disk"}});
    node.apply(&volume.to_string());
    node.apply(&claim.to_string());
    for object in ["pv/disk", "pvc/disk"] {
        node.kubectl(&["patch", object, "--subresource=status", "-p", r#"{"status":{"phase":"Bound"}}"#])
            .ok();
    }
    json!({"persistentVolumeClaim": {"claimName": "disk"}})
}

/// The driver's object: it takes inline volumes and wants to know of Pods.
fn register(node: &Arc<Kept>) -> Driver {
    node.apply(
        &json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": NAME}, "spec": {
            "attachRequired": false, "podInfoOnMount": true, "fsGroupPolicy": "File",
            "tokenRequests": [{"audience": "disks"}], "volumeLifecycleModes": ["Persistent", "Ephemeral"]}})
        .to_string(),
    );
    let driver = Driver::start(node);
    node.until("the driver to be registered", PATIENCE, |node| {
        node.kubectl(&["get", "csinode", "node", "-o", "jsonpath={.spec.drivers[*].name}"]).stdout == NAME
    });
    driver
}

/// The kinds of what the driver was asked, of one volume.
fn kinds(driver: &Driver, handle: &str) -> Vec<&'static str> {
    let of = |call: &Call| match call {
        Call::Stage(request) => (request.volume_id == handle).then_some("stage"),
        Call::Publish(request) => (request.volume_id == handle).then_some("publish"),
        Call::Unpublish(volume) => (volume == handle).then_some("unpublish"),
        Call::Unstage(volume) => (volume == handle).then_some("unstage"),
    };
    driver.calls().iter().filter_map(of).collect()
}

/// What a Pod's events of this reason say.
fn events(node: &Node, pod: &str, reason: &str) -> String {
    let path = format!("jsonpath={{.items[?(@.reason==\"{reason}\")].message}}");
    node.kubectl(&["get", "events", "--field-selector", &format!("involvedObject.name={pod}"), "-o", &path])
        .stdout
}

#[test]
fn h09_h10_h18_volumes_of_a_driver_are_mounted_mapped_and_taken_back_or_refused() {
    let node = NODE.get();
    let driver = register(&node);
    every_pod_sees_the_same_owners_and_the_volume_is_staged_once(&node, &driver);
    an_inline_volume_knows_its_pod_and_one_that_cannot_be_mapped_is_refused(&node, &driver);
}

fn every_pod_sees_the_same_owners_and_the_volume_is_staged_once(node: &Node, driver: &Driver) {
    let csi_node = node.get("csinode/node");
    let entry = &csi_node["spec"]["drivers"][0];
    assert_eq!(
        (&entry["nodeID"], &entry["topologyKeys"][0], &entry["allocatable"]["count"]),
        (&json!("the-node-as-the-driver-calls-it"), &json!("disk.kakoi.dev/rack"), &json!(8))
    );
    assert_eq!(csi_node["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert_eq!(node.get("node/node")["metadata"]["labels"]["disk.kakoi.dev/rack"], "7");

    let volume = claim(node);
    for (name, host_users) in [("one", false), ("two", false), ("plain", true)] {
        node.apply(&pod(name, host_users, &volume));
    }
    node.ready(&["one", "two", "plain"]);
    assert_ne!(node.first_id("one"), node.first_id("two"));
    node.exec("one", &["sh", "-c", "umask 077; echo written > /data/file"]).ok();
    let on_disk = fs::metadata(driver.volume("disk-1").join("file")).unwrap();
    assert_eq!((on_disk.uid(), on_disk.gid()), (1000, 2000), "IDs on disk are the container's");
    for name in ["one", "two", "plain"] {
        assert_eq!(node.exec(name, &["stat", "-c", "%u:%g", "/data/file"]).ok(), "1000:2000\n", "{name}");
        assert_eq!(node.exec(name, &["cat", "/data/file"]).ok(), "written\n", "{name}");
    }
    assert_eq!(kinds(driver, "disk-1").iter().filter(|kind| **kind == "publish").count(), 3);
    let Some(Call::Publish(request)) = driver
        .calls()
        .into_iter()
        .find(|call| matches!(call, Call::Publish(request) if request.volume_id == "disk-1"))
    else {
        panic!("{:?}", driver.calls())
    };
    assert_eq!(request.volume_context["colour"], "red");
    assert!(request.target_path.contains("/volumes/kubernetes.io~csi/data/mount"), "{request:?}");

    node.kubectl(&["delete", "pod", "one", "two", "--timeout=60s"]).ok();
    node.until("two Pods' volumes to be taken back", PATIENCE, |_| {
        kinds(driver, "disk-1").iter().filter(|kind| **kind == "unpublish").count() == 2
    });
    assert!(!kinds(driver, "disk-1").contains(&"unstage"), "a third Pod has it");
    assert_eq!(node.exec("plain", &["cat", "/data/file"]).ok(), "written\n");
    node.kubectl(&["delete", "pod", "plain", "--timeout=60s"]).ok();
    node.until("the volume to be unstaged", PATIENCE, |_| kinds(driver, "disk-1").last() == Some(&"unstage"));
    assert!(driver.volume("disk-1").join("file").exists(), "what it holds stays");
    let mounts = node.shell("cat /proc/self/mountinfo").ok();
    assert!(!mounts.contains("globalmount") && !mounts.contains("kubernetes.io~csi/data/mount"), "{mounts}");
}

fn an_inline_volume_knows_its_pod_and_one_that_cannot_be_mapped_is_refused(node: &Node, driver: &Driver) {
    let inline =
        |filesystem: &str| json!({"csi": {"driver": NAME, "volumeAttributes": {"filesystem": filesystem}}});
    node.apply(&pod("inline", false, &inline("tmpfs")));
    node.ready(&["inline"]);
    node.exec("inline", &["sh", "-c", "echo x > /data/file"]).ok();
    assert_eq!(node.exec("inline", &["stat", "-c", "%u:%g", "/data/file"]).ok(), "1000:2000\n");
    let told = driver.calls().into_iter().rev().find_map(|call| match call {
        Call::Publish(request) if request.volume_id.starts_with("csi-") => Some(request.volume_context),
        _ => None,
    });
    let told = told.unwrap();
    let of = |key: &str| told[&format!("csi.storage.k8s.io/{key}")].as_str();
    assert_eq!((of("pod.name"), of("pod.namespace"), of("ephemeral")), ("inline", "default", "true"));
    assert_eq!(of("pod.uid"), node.uid("inline"));
    let tokens: Value = serde_json::from_str(of("serviceAccount.tokens")).unwrap();
    assert_eq!(tokens["disks"]["token"].as_str().unwrap().split('.').count(), 3, "a token for the driver");

    node.apply(&pod("unmappable", false, &inline("proc")));
    node.until("the refusal", PATIENCE, |node| {
        let text = events(node, "unmappable", "FailedMount");
        text.contains("(proc, mounted from proc) cannot be ID-mapped") && text.contains("hostUsers: true")
    });
    node.apply(&pod("driverless", false, &json!({"csi": {"driver": "none.kakoi.dev"}})));
    node.until("the refusal", PATIENCE, |node| {
        events(node, "driverless", "FailedMount")
            .contains("none.kakoi.dev not found in the list of registered CSI drivers")
    });
    node.kubectl(&["delete", "pod", "inline", "unmappable", "driverless", "--timeout=60s"]).ok();
    node.until("the Pods' mounts to go", PATIENCE, |node| {
        !node.shell("cat /proc/self/mountinfo").ok().contains("kubernetes.io~csi")
    });
}
