//! What the kubelet decides, what stays of it, and what the API server says.

use std::time::Duration;

use serde_json::json;
use tests::{Node, NodeOptions};

use super::{NODES, condition, namespace, pod, uid_map};

#[test]
fn a_pod_that_says_nothing_is_fenced_and_its_own_file_shows_no_change() {
    let mut node = Node::start();
    let manifest = pod("default", "silent", json!({}));
    let applied = node.kubectl_with(&["apply", "-f", "-"], &manifest);
    assert_eq!(applied.stderr, "", "nothing is to be warned of");
    applied.ok();
    node.ready(&["silent"]);
    let first = node.first_id("silent");
    assert_eq!(uid_map(&node, "silent"), [0, first, 65_536]);

    let found = node.get("pod/silent");
    assert_eq!(found["spec"].get("hostUsers"), None, "nothing is written into the spec");
    let (status, reason, message) = condition(&found).unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "FencedByPolicy"));
    let range = format!("{first}-{}", first + 65_535);
    assert!(message.starts_with(&format!("{range} of the node are its 0-65535: ")), "{message}");
    let wide = node.kubectl(&["get", "pods", "-o", "wide"]).ok();
    assert!(wide.lines().next().unwrap().trim_end().ends_with("HOST-UIDS"), "{wide}");
    assert!(wide.lines().nth(1).unwrap().trim_end().ends_with(&range), "{wide}");

    // The user's own file is what is there: apply, diff and replace find no difference.
    assert_eq!(node.kubectl_with(&["diff", "-f", "-"], &manifest).ok(), "");
    assert_eq!(node.apply(&manifest), "pod/silent unchanged\n");
    let stored = node.kubectl(&["get", "pod", "silent", "-o", "json"]).ok();
    node.kubectl_with(&["replace", "-f", "-"], &stored).ok();
    assert_eq!(node.get("pod/silent")["spec"], found["spec"]);
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "busybox"}]}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": template}})
    .to_string();
    node.apply(&deployment);
    assert_eq!(node.kubectl_with(&["diff", "-f", "-"], &deployment).ok(), "");
    node.kubectl_with(&["replace", "-f", "-"], &deployment).ok();
    assert_eq!(node.get("deployment/d")["spec"]["template"]["spec"].get("hostUsers"), None);

    // What was decided stays, whatever the policy has become.
    node.kill_daemon();
    node.set_flags(&["--user-namespaces=opt-in"]);
    node.up();
    node.apply(&pod("default", "later", json!({})));
    node.ready(&["silent", "later"]);
    assert_eq!(uid_map(&node, "silent"), [0, first, 65_536]);
    assert_eq!(condition(&node.get("pod/silent")).unwrap().1, "FencedByPolicy");
    assert_eq!(uid_map(&node, "later"), NODES);
    assert_eq!(condition(&node.get("pod/later")).unwrap().1, "NotAsked");

    // Also with new sandboxes.
    node.down().ok();
    node.up();
    node.ready(&["silent", "later"]);
    assert_eq!(uid_map(&node, "silent"), [0, first, 65_536]);
}

#[test]
fn what_cannot_be_fenced_is_exempt_and_everybody_is_told_and_it_stays_so() {
    let mut node = Node::start();
    let manifest = pod("default", "agent", json!({"hostNetwork": true, "hostPID": true}));
    let applied = node.kubectl_with(&["apply", "-f", "-"], &manifest);
    let warnings: Vec<&str> = applied.stderr.lines().collect();
    assert_eq!(
        warnings,
        [
            "Warning: spec: gets no user namespace and runs with the node's IDs: `hostNetwork: true`: the node's network \
             belongs to the node's root, and root of a user namespace has no rights over it; use the Pod network, with \
             `hostPort` or a Service where others must reach it",
            "Warning: spec: gets no user namespace and runs with the node's IDs: `hostPID: true`: the node's processes are \
             closed to a user namespace; remove `hostPID`; containers of one Pod see each other with `shareProcessNamespace`",
        ]
    );
    applied.ok();
    node.ready(&["agent"]);
    assert_eq!(uid_map(&node, "agent"), NODES);
    let exempt = condition(&node.get("pod/agent")).unwrap();
    assert_eq!((exempt.0.as_str(), exempt.1.as_str()), ("False", "HostNetwork"));
    assert!(exempt.2.contains("`hostPID: true`: the node's processes are closed"), "{}", exempt.2);
    let events = node.kubectl(&["events", "--for", "pod/agent"]).ok();
    assert!(
        events.contains("UserNamespaceExempt") && events.contains("Runs with the node's IDs"),
        "{events}"
    );
    let wide = node.kubectl(&["get", "pod", "agent", "-o", "wide", "--no-headers"]).ok();
    assert!(wide.trim_end().ends_with("node (HostNetwork)"), "{wide}");

    let container = node.get("pod/agent")["status"]["containerStatuses"][0]["containerID"].clone();
    node.kill_daemon();
    node.set_flags(&["--user-namespaces=always"]);
    node.up();
    node.ready(&["agent"]);
    assert_eq!(node.get("pod/agent")["status"]["containerStatuses"][0]["containerID"], container);
    assert_eq!(condition(&node.get("pod/agent")).unwrap(), exempt);
    let refused = node
        .kubectl_with(&["create", "-f", "-"], &pod("default", "other", json!({"hostNetwork": true})))
        .refused();
    assert!(
        refused
            .contains("pods \"other\" is forbidden: the policy `always` lets no Pod run with the node's IDs"),
        "{refused}"
    );
    assert!(refused.contains("use the Pod network"), "the remedy is told: {refused}");
}

#[test]
fn a_namespaces_label_overrules_the_node() {
    let node = Node::start();
    node.apply(&namespace("strict", json!({"kakoi.dev/user-namespaces": "always"})));
    node.apply(&namespace("lenient", json!({"kakoi.dev/user-namespaces": "opt-in"})));
    let create = |manifest: &str| node.kubectl_with(&["create", "-f", "-"], manifest);
    let said_true = create(&pod("strict", "host", json!({"hostUsers": true}))).refused();
    assert!(
        said_true.contains("the Pod says `hostUsers: true`")
            && said_true.contains("remove `hostUsers: true`"),
        "{said_true}"
    );
    create(&pod("strict", "plain", json!({}))).ok();
    create(&pod("lenient", "plain", json!({}))).ok();
    for (space, status) in [("strict", "True"), ("lenient", "False")] {
        node.kubectl(&["wait", "-n", space, "--for=condition=Ready", "pod/plain", "--timeout=60s"]).ok();
        let text = node.kubectl(&["get", "pod", "plain", "-n", space, "-o", "json"]).ok();
        assert_eq!(condition(&serde_json::from_str(&text).unwrap()).unwrap().0, status, "{space}");
    }
    let bad = create(&namespace("odd", json!({"kakoi.dev/user-namespaces": "never"}))).refused();
    assert!(
        bad.contains("metadata.labels[kakoi.dev/user-namespaces]: Unsupported value: \"never\"")
            && bad.contains("\"always\""),
        "{bad}"
    );
}

#[test]
fn the_kubelet_refuses_what_came_past_admission_under_always() {
    // The label is set after the Pod was made and before it could run: no node takes it yet.
    let node = Node::start_with(NodeOptions { flags: Vec::new(), ..NodeOptions::default() });
    node.apply(&namespace("late", json!({})));
    node.kubectl(&["cordon", "node"]).ok();
    node.kubectl_with(&["create", "-f", "-"], &pod("late", "p", json!({"hostPID": true}))).ok();
    node.kubectl(&["label", "namespace", "late", "kakoi.dev/user-namespaces=always"]).ok();
    node.kubectl(&["uncordon", "node"]).ok();
    node.until("the refusal", Duration::from_secs(30), |node| {
        let text = node.kubectl(&[
            "get",
            "pod",
            "p",
            "-n",
            "late",
            "-o",
            "jsonpath={.status.phase} {.status.reason}",
        ]);
        text.stdout == "Failed UserNamespaceRefused"
    });
    let events = node.kubectl(&["events", "-n", "late", "--for", "pod/p"]).ok();
    assert!(events.contains("the policy `always` lets no Pod run with the node's IDs"), "{events}");
}

#[test]
fn an_images_user_beyond_the_range_exempts_its_pod() {
    let node = Node::start();
    let container = json!({"name": "c", "image": "busybox", "command": ["sleep", "infinity"], "securityContext": {"runAsUser": 70_000}});
    node.kubectl_with(&["create", "-f", "-"], &pod("default", "large", json!({"containers": [container]})))
        .ok();
    node.ready(&["large"]);
    assert_eq!(condition(&node.get("pod/large")).unwrap().1, "IDOutOfRange");
    assert_eq!(node.exec("large", &["id", "-u"]).ok(), "70000\n");
}

#[test]
fn a_claim_is_waited_for_and_decided_about_where_it_leads() {
    let node = Node::start();
    let at = |name: &str| node.root().join("data").join(name).display().to_string();
    let (plain, over) = (at("plain"), at("over"));
    let layers = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    let make = format!("mkdir -p {plain} {over} {} {} {}", at("lower"), at("upper"), at("work"));
    node.shell(&format!("{make} && mount -t overlay overlay -o {layers} {over}")).ok();
    for name in ["plain", "over"] {
        let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "spec": {"storageClassName": "", "volumeName": name, "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}}}});
        node.apply(&claim.to_string());
        let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": name}}]);
        node.apply(&pod("default", name, json!({"volumes": volumes})));
    }
    node.until("the wait for the claims", Duration::from_secs(30), |node| {
        let told = |name: &str| {
            let events = node.kubectl(&["events", "--for", &format!("pod/{name}")]).stdout;
            events.contains("FailedMount") && events.contains(&format!("PVC \"{name}\" is not bound"))
        };
        told("plain") && told("over")
    });
    assert_eq!(condition(&node.get("pod/over")), None, "nothing is decided before the claim is bound");
    for name in ["plain", "over"] {
        let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {"storageClassName": "", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                "hostPath": {"path": at(name)}, "claimRef": {"namespace": "default", "name": name}}});
        node.apply(&volume.to_string());
        let bound = [
            "patch",
            "pvc",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"status":{"phase":"Bound"}}"#,
        ];
        node.kubectl(&bound).ok();
    }
    node.ready(&["plain", "over"]);
    assert_eq!(condition(&node.get("pod/plain")).unwrap().1, "FencedByPolicy");
    let (status, reason, message) = condition(&node.get("pod/over")).unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "Filesystem"));
    assert!(
        message.contains(&format!("the volume `data` is {over} on overlay, which this kernel can't ID-map")),
        "{message}"
    );
    assert_eq!(uid_map(&node, "over"), NODES);
}

#[test]
fn an_image_that_is_not_there_is_shown_before_the_sandbox() {
    let node = Node::start();
    let container = json!({"name": "c", "image": "no-such-image-anywhere"});
    node.kubectl_with(&["create", "-f", "-"], &pod("default", "lost", json!({"containers": [container]})))
        .ok();
    node.until("the image's error", Duration::from_secs(30), |node| {
        let path = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
        let reason = node.kubectl(&["get", "pod", "lost", "-o", path]).stdout;
        ["ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"].contains(&reason.as_str())
    });
    node.kubectl(&["delete", "pod", "lost", "--timeout=30s"]).ok();
}

#[test]
fn a_static_pod_is_decided_about_like_any_other() {
    let mut node = Node::prepare(NodeOptions::default());
    let directory = node.root().join("etc/kubernetes/manifests");
    std::fs::create_dir_all(&directory).unwrap();
    for (name, fields) in [("quiet", json!({})), ("open", json!({"hostNetwork": true}))] {
        std::fs::write(directory.join(format!("{name}.yaml")), pod("default", name, fields)).unwrap();
    }
    node.up();
    node.until("the mirror Pods", Duration::from_secs(30), |node| {
        ["quiet-node", "open-node"].iter().all(|name| node.kubectl(&["get", "pod", name]).code == 0)
    });
    node.ready(&["quiet-node", "open-node"]);
    let (status, reason, message) = condition(&node.get("pod/quiet-node")).unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("True", "FencedByPolicy"), "{message}");
    let map = uid_map(&node, "quiet-node");
    assert!(message.starts_with(&format!("{}-", map[1])) && map[1] >= 65_536, "{map:?} {message}");
    let (status, reason, message) = condition(&node.get("pod/open-node")).unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "HostNetwork"), "{message}");
    assert_eq!(uid_map(&node, "open-node"), NODES);
}
