//! Sessions with `kubectl` about nodes and what runs on them.

#![allow(clippy::unwrap_used, reason = "a test ends at its first surprise")]

mod common;

use common::Cluster;

const NODE: &str = "
apiVersion: v1
kind: Node
metadata: {name: one, labels: {kubernetes.io/os: linux, node-role.kubernetes.io/control-plane: ''}}
";

const STATUS: &str = r#"{"status":{
  "addresses":[{"type":"InternalIP","address":"10.0.0.7"},{"type":"Hostname","address":"one"}],
  "capacity":{"cpu":"2","memory":"4Gi","pods":"110"},"allocatable":{"cpu":"2","memory":"3Gi","pods":"110"},
  "conditions":[{"type":"Ready","status":"True","reason":"KubeletReady","message":"kubelet is posting ready status",
    "lastHeartbeatTime":"2026-11-23T12:00:00Z","lastTransitionTime":"2026-11-23T12:00:00Z"}],
  "nodeInfo":{"kubeletVersion":"v1.36.2","osImage":"Debian GNU/Linux 13 (trixie)","kernelVersion":"6.18.0",
    "containerRuntimeVersion":"kakoi://0.1.0","architecture":"amd64","operatingSystem":"linux","machineID":"","systemUUID":"",
    "bootID":"","kubeProxyVersion":""}}}"#;

fn make_node(cluster: &Cluster) {
    cluster.ok_with(&["create", "-f", "-"], NODE);
    cluster.ok(&["patch", "node", "one", "--subresource=status", "--type=merge", "-p", STATUS]);
}

fn make_pod(cluster: &Cluster, name: &str) {
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - name: c\n    image: debian\n    resources: {{requests: {{cpu: 250m, memory: 64Mi}}}}\n"
    );
    cluster.ok_with(&["create", "-f", "-"], &pod);
    let binding = format!(
        r#"{{"apiVersion":"v1","kind":"Binding","metadata":{{"name":"{name}"}},"target":{{"kind":"Node","name":"one"}}}}"#
    );
    let path = format!("/api/v1/namespaces/default/pods/{name}/binding");
    cluster.ok_with(&["create", "--raw", &path, "-f", "-"], &binding);
}

#[test]
fn a_node_shows_what_it_is_and_what_runs_on_it() {
    let cluster = Cluster::start();
    make_node(&cluster);
    make_pod(&cluster, "p");
    let wide = cluster.ok(&["get", "node", "-o", "wide", "--no-headers"]);
    let words: Vec<&str> = wide.split_whitespace().collect();
    assert_eq!(words.get(..3), Some(&["one", "Ready", "control-plane"][..]), "{wide}");
    for part in ["v1.36.2", "10.0.0.7", "Debian GNU/Linux 13 (trixie)", "6.18.0", "kakoi://0.1.0"] {
        assert!(wide.contains(part), "{wide}");
    }
    let described = cluster.ok(&["describe", "node", "one"]);
    for part in [
        "Roles:              control-plane",
        "KubeletReady",
        "default                     p",
        "250m (12%)",
        "64Mi (2%)",
    ] {
        assert!(described.contains(part), "{part}: {described}");
    }
    let pod =
        cluster.ok(&["get", "pod", "p", "-o", "jsonpath={.spec.nodeName} {.status.conditions[0].type}"]);
    assert_eq!(pod, "one PodScheduled");
    let twice = cluster.fails(
        &["create", "--raw", "/api/v1/namespaces/default/pods/p/binding", "-f", "-"],
        r#"{"apiVersion":"v1","kind":"Binding","metadata":{"name":"p"},"target":{"kind":"Node","name":"one"}}"#,
    );
    assert!(twice.contains("pod p is already assigned to node \"one\""), "{twice}");
}

#[test]
fn a_node_is_cordoned_tainted_and_drained() {
    let cluster = Cluster::start();
    make_node(&cluster);
    make_pod(&cluster, "p");
    cluster.ok(&["taint", "node", "one", "key=value:NoSchedule"]);
    assert_eq!(cluster.ok(&["cordon", "one"]), "node/one cordoned\n");
    assert!(cluster.ok(&["get", "node", "one"]).contains("Ready,SchedulingDisabled"));
    let drained = cluster.ok(&["drain", "one", "--force", "--timeout=20s"]);
    assert!(
        drained.contains("evicting pod default/p") && drained.ends_with("node/one drained\n"),
        "{drained}"
    );
    cluster.fails(&["get", "pod", "p"], "");
    assert_eq!(cluster.ok(&["uncordon", "one"]), "node/one uncordoned\n");
    let taints = cluster.ok(&["get", "node", "one", "-o", "jsonpath={.spec.taints}"]);
    assert_eq!(taints, r#"[{"effect":"NoSchedule","key":"key","value":"value"}]"#);
}

#[test]
fn an_object_is_edited_and_its_events_are_shown() {
    let cluster = Cluster::start();
    make_node(&cluster);
    make_pod(&cluster, "p");
    let uid = cluster.ok(&["get", "pod", "p", "-o", "jsonpath={.metadata.uid}"]);
    let event = format!(
        r#"{{"apiVersion":"v1","kind":"Event","metadata":{{"name":"p.1","namespace":"default"}},"type":"Normal","reason":"Started",
        "message":"Started container c","involvedObject":{{"kind":"Pod","namespace":"default","name":"p","uid":"{uid}","apiVersion":"v1"}},
        "source":{{"component":"kubelet"}},"count":2,"firstTimestamp":"2026-11-23T12:00:00Z","lastTimestamp":"2026-11-23T12:00:01Z"}}"#
    );
    cluster.ok_with(&["create", "-f", "-"], &event);
    for listed in [
        cluster.ok(&["get", "events"]),
        cluster.ok(&["events", "--for", "pod/p"]),
        cluster.ok(&["describe", "pod", "p"]),
    ] {
        assert!(listed.contains("Started container c"), "{listed}");
    }
    let mut editing = cluster.command(&["edit", "pod", "p"]);
    let edited = editing.env("KUBE_EDITOR", "sed -i s/image:.debian/image:\\ debian:13/").output().unwrap();
    assert!(edited.status.success(), "{edited:?}");
    let shown =
        cluster.ok(&["get", "pod", "p", "-o", "jsonpath={.spec.containers[0].image} {.metadata.generation}"]);
    assert_eq!(shown, "debian:13 2");
}
