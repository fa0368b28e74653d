//! Volumes of every further kind, shown inside a Pod in a user namespace: parts of volumes, claims, images, mounts
//! below mounts, and what lies outside a Pod's IDs.
//!
//! The IDs are those of the behaviour's specification. H08 (FUSE) has no test: no FUSE filesystem is on a test machine,
//! and the kubelet refuses whatever the kernel does not map by the same sentence as in H07.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]
#![allow(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tests::{Kept, Node, SharedNode};

static NODE: SharedNode = SharedNode::new(Node::start);

fn node() -> Arc<Kept> {
    NODE.get()
}

/// A Pod whose one container sleeps, with these mounts, volumes and further fields.
fn pod(name: &str, mounts: Value, volumes: Value, fields: Value) -> Value {
    let container = json!({"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "infinity"], "volumeMounts": mounts,
        "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]});
    let mut spec = json!({"hostUsers": false, "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": false, "containers": [container], "volumes": volumes});
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    spec.as_object_mut().unwrap().extend(fields);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

/// A directory of the node below its root, for tests of this file.
fn host(node: &Node, name: &str) -> PathBuf {
    let path = node.root().join("srv").join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

fn sh(node: &Node, pod: &str, line: &str) -> String {
    node.exec(pod, &["sh", "-c", line]).ok()
}

fn owned(path: &Path, text: &str, mode: u32, owner: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    chown(path, Some(owner), Some(owner)).unwrap();
}

#[test]
fn a_part_of_a_volume_is_mounted_by_its_path_or_by_the_pods_name() {
    let node = node();
    let mounts = json!([
        {"name": "v", "mountPath": "/whole"},
        {"name": "v", "mountPath": "/part", "subPath": "a/b"},
        {"name": "v", "mountPath": "/own", "subPathExpr": "pods/$(NAME)"}]);
    node.apply(&pod("parts", mounts, json!([{"name": "v", "emptyDir": {}}]), json!({})).to_string());
    node.ready(&["parts"]);
    let printed = sh(
        &node,
        "parts",
        "echo 1 > /part/f; echo 2 > /own/g; cat /whole/a/b/f /whole/pods/parts/g; stat -c %u:%g /whole/a/b",
    );
    assert_eq!(printed, "1\n2\n0:0\n");
}

/// A `PersistentVolume` with its claim, bound to each other.
fn bind(node: &Node, (volume, claim): (&str, &str), source: Value, owners: Value) {
    let (modes, size) = (json!(["ReadWriteOnce"]), json!({"storage": "1Mi"}));
    let mut spec = json!({"accessModes": modes, "capacity": size, "storageClassName": "",
        "claimRef": {"name": claim, "namespace": "default"}});
    spec.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    node.apply(
        &json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}, "spec": spec})
            .to_string(),
    );
    let claimed = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim, "ownerReferences": owners},
        "spec": {"accessModes": modes, "resources": {"requests": size}, "storageClassName": "", "volumeName": volume}});
    node.apply(&claimed.to_string());
    for object in [format!("pv/{volume}"), format!("pvc/{claim}")] {
        node.kubectl(&["patch", &object, "--subresource=status", "-p", r#"{"status":{"phase":"Bound"}}"#])
            .ok();
    }
}

#[test]
fn claims_lead_to_local_and_host_path_volumes_and_to_the_pods_own() {
    let node = node();
    let directories = ["local", "host-path", "own"].map(|name| host(&node, name));
    for directory in &directories {
        owned(&directory.join("seen"), "data\n", 0o640, 0);
    }
    let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node"]}]}]}});
    let local = json!({"local": {"path": directories[0]}, "nodeAffinity": affinity});
    bind(&node, ("local", "local"), local.clone(), json!([]));
    bind(&node, ("host-path", "host-path"), json!({"hostPath": {"path": directories[1]}}), json!([]));
    let claimed = |name: &str| json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
    let template = json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "",
        "resources": {"requests": {"storage": "1Mi"}}}});
    let mount = |name: &str| json!({"name": name, "mountPath": format!("/{name}")});
    let mounts = json!([mount("local"), mount("host-path"), mount("own")]);
    let volumes = json!([claimed("local"), claimed("host-path"), {"name": "own", "ephemeral": {"volumeClaimTemplate": template}}]);
    // The node is named: whether a claim will be bound is the scheduler's question, not this test's.
    node.apply(
        &pod("claims", mounts, volumes, json!({"nodeName": "node", "securityContext": {"fsGroup": 2000}}))
            .to_string(),
    );
    let owner = json!([{"apiVersion": "v1", "kind": "Pod", "name": "claims", "uid": node.uid("claims"), "controller": true}]);
    let own = json!({"local": {"path": directories[2]}, "nodeAffinity": affinity});
    bind(&node, ("own", "claims-own"), own, owner);
    node.ready(&["claims"]);
    for name in ["local", "host-path", "own"] {
        let expected = if name == "host-path" { "data\n0:0 640\n" } else { "data\n0:2000 660\n" };
        let line = format!("cat /{name}/seen; stat -c '%u:%g %a' /{name}/seen; echo x > /{name}/new");
        assert_eq!(sh(&node, "claims", &line), expected, "{name}");
    }
    assert!(directories.iter().all(|directory| directory.join("new").exists()));
}

#[test]
fn h16_an_image_is_a_volume_that_belongs_to_root_and_is_only_read() {
    let node = node();
    let mounts = json!([
        {"name": "image", "mountPath": "/image", "readOnly": true},
        {"name": "image", "mountPath": "/programs", "subPath": "bin", "readOnly": true}]);
    let image = json!([{"name": "image", "image": {"reference": "busybox", "pullPolicy": "IfNotPresent"}}]);
    let mut two = pod("image", mounts, image, json!({}));
    let mut second = two["spec"]["containers"][0].clone();
    second["name"] = json!("d");
    two["spec"]["containers"].as_array_mut().unwrap().push(second);
    node.apply(&two.to_string());
    node.ready(&["image"]);
    for container in ["c", "d"] {
        let line = "stat -c %u:%g /image/bin/busybox /programs/busybox; ! touch /image/x 2>&1";
        let printed = node.kubectl(&["exec", "image", "-c", container, "--", "sh", "-c", line]).ok();
        assert!(printed.starts_with("0:0\n0:0\n") && printed.contains("Read-only file system"), "{printed}");
    }
}

#[test]
fn h06_h19_a_mount_below_a_host_path_is_not_mapped_and_read_only_goes_all_the_way_down() {
    let node = node();
    let outer = host(&node, "outer");
    let inner = outer.join("inner");
    fs::create_dir_all(&inner).unwrap();
    node.shell(&format!(
        "mount -t tmpfs -o mode=1777 tmpfs {0} && cd {0} && echo x > f && chmod 600 f",
        inner.display()
    ))
    .ok();
    let mounts = json!([
        {"name": "v", "mountPath": "/open", "mountPropagation": "HostToContainer"},
        {"name": "v", "mountPath": "/closed", "readOnly": true, "recursiveReadOnly": "Enabled"}]);
    let volumes = json!([{"name": "v", "hostPath": {"path": outer, "type": "Directory"}}]);
    node.apply(&pod("below", mounts, volumes, json!({})).to_string());
    node.ready(&["below"]);
    // H06: the volume itself is mapped, a mount below it is not: its root is nobody the Pod knows.
    let line =
        "stat -c %u:%g /open /open/inner/f; cat /open/inner/f 2>&1; touch /open/inner/new && echo written";
    let printed = sh(&node, "below", line);
    assert!(printed.starts_with("0:0\n65534:65534\n") && printed.contains("Permission denied"), "{printed}");
    assert!(printed.ends_with("written\n"), "the directory below is open to all: {printed}");
    // H19: what can be written there as long as the mount is not read-only to the bottom.
    let refused = sh(&node, "below", "touch /closed/x 2>&1; touch /closed/inner/x 2>&1; true");
    assert_eq!(refused.matches("Read-only file system").count(), 2, "{refused}");
}

#[test]
fn h11_the_ids_of_one_pod_read_nothing_in_the_mounted_volume_of_another() {
    let node = node();
    let volumes = json!([{"name": "v", "emptyDir": {}}]);
    let mounts = json!([{"name": "v", "mountPath": "/v"}]);
    for name in ["mine", "yours"] {
        node.apply(&pod(name, mounts.clone(), volumes.clone(), json!({})).to_string());
    }
    node.ready(&["mine", "yours"]);
    sh(&node, "mine", "umask 077; echo secret > /v/file");
    let process = Path::new("/proc").join(node.main_pid("mine").to_string());
    let on_disk = node.root().join("var/lib/kubelet/pods").join(node.uid("mine"));
    let id = node.first_id("yours");
    // Through the other Pod's process, and where the volume lies.
    for path in [process.join("root").join("v/file"), on_disk.join("volumes/kubernetes.io~empty-dir/v/file")]
    {
        let read = format!("setpriv --reuid {id} --regid {id} --clear-groups cat {}", path.display());
        let said = node.shell(&read).refused();
        assert!(said.contains("Permission denied"), "{}: {said}", path.display());
    }
}

/// A POSIX ACL as an extended attribute: version 2, then tag, permissions and ID of each entry.
const ACL: &str = r#"pack("V", 2) . join("", map { pack("vvV", @$_) } [1, 6, -1 & 0xffffffff], [2, 4, 1000], [4, 0, -1 & 0xffffffff], [16, 4, -1 & 0xffffffff], [32, 0, -1 & 0xffffffff])"#;

#[test]
fn h17_an_access_list_on_disk_names_the_containers_users() {
    let node = node();
    let directory = host(&node, "acl");
    owned(&directory.join("file"), "listed\n", 0o640, 0);
    let path = directory.join("file");
    let set = format!(
        "my $v = {ACL}; my ($p, $k) = ('{}', 'system.posix_acl_access'); syscall(188, $p, $k, $v, length $v, 0) == 0 or die \"$!\\n\"",
        path.display()
    );
    fs::write(directory.join("set.pl"), set).unwrap();
    node.shell(&format!("perl {}", directory.join("set.pl").display())).ok();
    let mut listed = pod(
        "listed",
        json!([{"name": "v", "mountPath": "/v"}]),
        json!([{"name": "v", "hostPath": {"path": directory}}]),
        json!({}),
    );
    listed["spec"]["containers"][0]["image"] = json!("debian");
    listed["spec"]["containers"][0]["securityContext"] = json!({"runAsUser": 1000, "runAsGroup": 1000});
    node.apply(&listed.to_string());
    node.ready(&["listed"]);
    assert_eq!(sh(&node, "listed", "id -u; cat /v/file"), "1000\nlisted\n", "the list lets user 1000 read");
    let get = r#"my ($v, $p, $k) = ("\0" x 64, "/v/file", "system.posix_acl_access"); my $n = syscall(191, $p, $k, $v, 64); my (undef, @e) = unpack("V(a8)*", substr($v, 0, $n)); print join(" ", map { my ($t, $m, $i) = unpack("vvV", $_); $t == 2 ? "user:$i:$m" : () } @e), "\n""#;
    assert_eq!(node.exec("listed", &["perl", "-e", get]).ok(), "user:1000:4\n");
}

#[test]
fn h20_a_file_that_a_process_of_the_node_holds_open_is_shared_both_ways() {
    let node = node();
    let directory = host(&node, "shared");
    let path = directory.join("file");
    let mut held = fs::File::options().create(true).append(true).open(&path).unwrap();
    let volumes = json!([{"name": "v", "hostPath": {"path": directory}}]);
    node.apply(&pod("shares", json!([{"name": "v", "mountPath": "/v"}]), volumes, json!({})).to_string());
    node.ready(&["shares"]);
    std::io::Write::write_all(&mut held, b"node\n").unwrap();
    assert_eq!(sh(&node, "shares", "cat /v/file; echo pod >> /v/file"), "node\n");
    std::io::Write::write_all(&mut held, b"node\n").unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "node\npod\nnode\n");
}

#[test]
fn t08_a_setting_of_one_pods_network_is_no_other_pods_and_not_the_nodes() {
    let node = node();
    let setting = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
    let sysctls = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "4242"}]}});
    node.apply(&pod("changed", json!([]), json!([]), sysctls).to_string());
    node.apply(&pod("unchanged", json!([]), json!([]), json!({})).to_string());
    node.ready(&["changed", "unchanged"]);
    let of = |pod: &str| node.exec(pod, &["cat", setting]).ok();
    assert_eq!(of("changed"), "4242\n");
    assert_ne!(of("unchanged"), "4242\n");
    assert_ne!(node.shell(&format!("cat {setting}")).ok(), "4242\n");
}
