//! `spec.hostUsers` as users write it: what it makes, what it excludes, and what the feature gate makes of it.
//!
//! The IDs are those of the behaviour's specification (API and static Pods A01-A18; S09 and E20 belong to the same
//! nodes). The part of A07 about ephemeral containers waits for their subresource, which this API does not serve yet:
//! `kubectl debug` says so.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{Kept, Leftovers, Node, NodeOptions, SharedNode};

/// Under upstream's policy, where absent `hostUsers` means the node's IDs.
static NODE: SharedNode = SharedNode::new(|| {
    let flags = vec!["--user-namespaces=opt-in".to_owned()];
    Node::start_with(NodeOptions { flags, ..NodeOptions::default() })
});

fn node() -> Arc<Kept> {
    NODE.get()
}

/// A Pod that sleeps, with these fields added to its spec.
fn pod(name: &str, fields: Value) -> String {
    let container = json!({"name": "c", "image": "busybox", "command": ["sleep", "infinity"]});
    let mut spec = json!({"terminationGracePeriodSeconds": 0, "containers": [container]});
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    spec.as_object_mut().unwrap().extend(fields);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// Three numbers of a map.
fn map(node: &Node, pod: &str, kind: &str) -> Vec<u64> {
    let text = node.exec(pod, &["cat", &format!("/proc/self/{kind}")]).ok();
    text.split_whitespace().map(|word| word.parse().unwrap()).collect()
}

fn refused(node: &Node, fields: Value) -> String {
    node.kubectl_with(&["create", "-f", "-"], &pod("refused", fields)).refused()
}

#[test]
fn a01_a02_without_the_field_and_with_true_a_pod_has_the_nodes_ids() {
    let node = node();
    node.apply(&pod("absent", json!({})));
    node.apply(&pod("shared", json!({"hostUsers": true})));
    node.ready(&["absent", "shared"]);
    assert_eq!(node.get("pod/absent")["spec"].get("hostUsers"), None, "no default is written into the spec");
    assert_eq!(node.get("pod/shared")["spec"]["hostUsers"], json!(true));
    for name in ["absent", "shared"] {
        assert_eq!(
            (map(&node, name, "uid_map"), map(&node, name, "gid_map")),
            (vec![0, 0, 4_294_967_295], vec![0, 0, 4_294_967_295])
        );
        assert!(!node.root().join("var/lib/kubelet/pods").join(node.uid(name)).join("userns").exists());
    }
}

#[test]
fn a03_with_false_a_pod_has_a_block_of_its_own() {
    let node = node();
    node.apply(&pod("own", json!({"hostUsers": false})));
    node.ready(&["own"]);
    let uids = map(&node, "own", "uid_map");
    assert_eq!((uids[0], uids[1] % 65_536, uids[2]), (0, 0, 65_536));
    assert!(uids[1] >= 65_536);
    assert_eq!(uids, [0, node.first_id("own"), 65_536]);
    assert_eq!(map(&node, "own", "gid_map"), uids);
}

#[test]
fn a04_the_nodes_network_is_refused_while_its_gate_is_off() {
    assert_eq!(
        refused(&node(), json!({"hostUsers": false, "hostNetwork": true})),
        "The Pod \"refused\" is invalid: spec.hostNetwork: Forbidden: when `hostUsers` is false\n"
    );
}

#[test]
fn a06_the_nodes_processes_and_ipc_are_refused_together() {
    let node = node();
    let pid = "spec.HostPID: Forbidden: when `hostUsers` is false";
    let ipc = "spec.HostIPC: Forbidden: when `hostUsers` is false";
    let one = |error: &str| format!("The Pod \"refused\" is invalid: {error}\n");
    assert_eq!(refused(&node, json!({"hostUsers": false, "hostPID": true})), one(pid));
    assert_eq!(refused(&node, json!({"hostUsers": false, "hostIPC": true})), one(ipc));
    assert_eq!(
        refused(&node, json!({"hostUsers": false, "hostPID": true, "hostIPC": true})),
        format!("The Pod \"refused\" is invalid: \n* {pid}\n* {ipc}\n")
    );
}

#[test]
fn a07_raw_block_volumes_are_refused_for_each_container() {
    let node = node();
    let with_device = |name: &str| json!({"name": name, "image": "busybox", "volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]});
    let fields = json!({
        "hostUsers": false,
        "initContainers": [with_device("i")],
        "containers": [with_device("a"), {"name": "b", "image": "busybox"}, with_device("c")],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "v"}}],
    });
    let text = refused(&node, fields);
    let expected = ["initContainers[0]", "containers[0]", "containers[2]"]
        .map(|at| format!("* spec.{at}.volumeDevices: Forbidden: when `hostUsers` is false\n"));
    assert_eq!(text.matches("* ").count(), 3, "{text}");
    assert!(expected.iter().all(|line| text.contains(line)), "{text}");
    let debug = node.kubectl(&["debug", "a07", "--image=busybox", "--profile=general"]).refused();
    assert!(debug.contains("NotFound") || debug.contains("ephemeral containers are disabled"), "{debug}");
}

#[test]
fn a10_the_field_cannot_be_changed() {
    let node = node();
    node.apply(&pod("fixed", json!({"hostUsers": false})));
    for change in [r#"{"spec":{"hostUsers":true}}"#, r#"{"spec":{"hostUsers":null}}"#] {
        let text = node.kubectl(&["patch", "pod", "fixed", "-p", change]).refused();
        assert!(
            text.starts_with(
                "The Pod \"fixed\" is invalid: spec: Forbidden: pod updates may not change fields other than"
            ),
            "{text}"
        );
    }
    assert_eq!(node.get("pod/fixed")["spec"]["hostUsers"], json!(false));
}

#[test]
fn a05_s09_on_the_nodes_network_a_pod_is_mapped_sees_sys_read_only_and_rules_nothing() {
    let flags = vec!["--feature-gates=UserNamespacesHostNetworkSupport=true".to_owned()];
    let node = Node::start_with(NodeOptions { flags, ..NodeOptions::default() });
    let container = json!({
        "name": "c", "image": "debian", "command": ["sleep", "infinity"],
        "securityContext": {"capabilities": {"add": ["SYS_ADMIN", "NET_ADMIN", "NET_RAW"]}},
    });
    node.apply(&pod("network", json!({"hostUsers": false, "hostNetwork": true, "containers": [container]})));
    node.ready(&["network"]);
    assert_eq!(map(&node, "network", "uid_map"), [0, node.first_id("network"), 65_536]);
    let hosts = node.shell("readlink /proc/self/ns/net").ok();
    assert_eq!(node.exec("network", &["readlink", "/proc/self/ns/net"]).ok(), hosts);
    let mounts = node.exec("network", &["grep", " /sys ", "/proc/self/mountinfo"]).ok();
    assert!(mounts.contains(" /sys ro,nosuid,nodev,noexec,"), "{mounts}");
    let attempts = [
        ("write in /sys", r#"make("/sys/fs/x")"#, "EROFS|EACCES"),
        ("make /sys writable", r#"sys(165, "none", "/sys", 0, 0x1020, 0)"#, "EPERM"),
        ("unmount it", r#"sys(166, "/sys", 2)"#, "EINVAL"),
        ("look below its cgroups", r#"sys(166, "/sys/fs/cgroup", 2)"#, "EINVAL"),
        ("s09: a raw socket", "sys(41, 2, 3, 1)", "EPERM"),
        ("s09: a packet socket", "sys(41, 17, 3, 768)", "EPERM"),
        (
            "s09: a port below 1024",
            r#"my $s = sys(41, 2, 1, 0) + 0; sys(49, $s, pack("SnNx8", 2, 81, 0), 16)"#,
            "EACCES",
        ),
        (
            "a port above",
            r#"my $s = sys(41, 2, 1, 0) + 0; sys(49, $s, pack("SnNx8", 2, 18081, 0), 16)"#,
            "done",
        ),
        ("the host's forwarding", r#"put("/proc/sys/net/ipv4/ip_forward", "0")"#, "EACCES|EROFS|EPERM"),
    ];
    node.attempt("network", &attempts);
}

#[test]
fn a14_a15_a18_e20_the_gate_turned_off_keeps_drops_refuses_and_leaks_nothing() {
    let mut node = Node::start();
    for (name, value) in [("live", false), ("mapped", false), ("shared", true)] {
        node.apply(&pod(name, json!({"hostUsers": value})));
    }
    node.ready(&["live", "mapped", "shared"]);
    let range = node.range("live");
    let dir = node.root().join("var/lib/kubelet/pods").join(node.uid("live"));
    node.kill_daemon();
    node.set_flags(&["--feature-gates=UserNamespacesSupport=false"]);
    node.up();

    // A15: what is stored stays, also through an update.
    node.kubectl(&["label", "pod", "live", "seen=yes"]).ok();
    assert_eq!(node.get("pod/live")["spec"]["hostUsers"], json!(false));
    assert_eq!(map(&node, "live", "uid_map"), [0, range.start, 65_536], "it runs on as it is");

    // E20: it ends, and nothing of it stays.
    node.kubectl(&["delete", "pod", "live", "--timeout=60s"]).ok();
    node.until("the Pod's directory to go", Duration::from_secs(20), |_| !dir.exists());
    assert!(tests::processes_on(&range).is_empty());
    assert!(!node.kakoi(&["userns", "--output", "json"]).ok().contains(&format!("{}-", range.start)));

    // A14: a new Pod loses the field, and its user is told.
    let applied = node.kubectl_with(&["apply", "-f", "-"], &pod("new", json!({"hostUsers": false})));
    assert!(
        applied.stderr.contains("Warning:") && applied.stderr.contains("hostUsers"),
        "{}",
        applied.stderr
    );
    applied.ok();
    node.ready(&["new"]);
    assert_eq!(node.get("pod/new")["spec"].get("hostUsers"), None);
    assert_eq!(map(&node, "new", "uid_map"), [0, 0, 4_294_967_295]);

    // A18: whoever has the field and needs a new sandbox is refused by the gate's name, whatever the value.
    node.down().ok();
    node.up();
    for name in ["mapped", "shared"] {
        let reason = "the feature gate \"UserNamespacesSupport\" is disabled";
        node.until("the refusal", Duration::from_secs(30), |node| {
            let events = node.kubectl(&["events", "--for", &format!("pod/{name}"), "-o", "json"]).ok();
            events.contains("FailedCreatePodSandBox") && events.contains(&reason.replace('"', "\\\""))
        });
    }
    // Without a grace period the API forgets a Pod at once, before the kubelet has cleared it away.
    node.kubectl(&["delete", "pod", "--all", "--timeout=60s"]).ok();
    node.until("the Pods' files to go", Duration::from_secs(30), |node| node.leftovers().files.is_empty());
    node.down().ok();
    assert_eq!(node.leftovers(), Leftovers::default());
}

#[test]
fn a_runtime_class_chooses_runc_or_crun_for_a_fenced_pod() {
    let node = node();
    let class = |name: &str, handler: &str| {
        json!({"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name},
            "handler": handler})
        .to_string()
    };
    let handlers = node.get("node")["items"][0]["status"]["runtimeHandlers"].clone();
    for handler in ["runc", "crun"] {
        let listed = handlers.as_array().unwrap().iter().find(|listed| listed["name"] == handler);
        assert_eq!(listed.unwrap()["features"]["userNamespaces"], true, "{handlers}");
        node.apply(&class(handler, handler));
        node.apply(&pod(handler, json!({"hostUsers": false, "runtimeClassName": handler})));
    }
    node.ready(&["runc", "crun"]);
    for handler in ["runc", "crun"] {
        assert_eq!(map(&node, handler, "uid_map"), [0, node.first_id(handler), 65_536]);
        assert_eq!(node.exec(handler, &["id", "-u"]).ok(), "0\n");
        let state = node.root().join("run/kakoi/oci").join(handler);
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 1, "{handler} itself runs it");
        // Without grace the object goes at once, and the container after it.
        node.kubectl(&["delete", "pod", handler]).ok();
        node.until("the runtime to delete it", Duration::from_mins(1), |_| {
            std::fs::read_dir(&state).unwrap().count() == 0
        });
    }
    node.apply(&class("elsewhere", "kata"));
    node.apply(&pod("elsewhere", json!({"runtimeClassName": "elsewhere"})));
    let events = |node: &Node| node.kubectl(&["events", "--for", "pod/elsewhere"]).ok();
    node.until("the handler to be refused", Duration::from_mins(1), |node| {
        events(node).contains("the runtime handler \"kata\" is not configured")
    });
    node.kubectl(&["delete", "pod", "elsewhere", "--wait=false"]).ok();
}
