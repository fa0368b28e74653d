//! The Pod Security Standards with user namespaces (userns B01-B08): what a Pod says counts, what the policy does not.

use serde_json::{Value, json};
use tests::{Node, NodeOptions};

use super::{namespace, pod};

/// A Pod that keeps to `restricted` but for its user, which is root.
fn root_pod(name: &str, host_users: Option<bool>) -> String {
    let container = json!({"name": "c", "image": "busybox", "command": ["sleep", "infinity"],
        "securityContext": {"runAsUser": 0, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}});
    let mut fields =
        json!({"containers": [container], "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}});
    if let Some(host_users) = host_users {
        fields["hostUsers"] = json!(host_users);
    }
    pod("restricted", name, fields)
}

fn labels(mode: &str, standard: &str) -> Value {
    let (level, version) = standard.split_once(':').unwrap();
    json!({format!("pod-security.kubernetes.io/{mode}"): level, format!("pod-security.kubernetes.io/{mode}-version"): version})
}

const IS_ROOT: &str = "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true), \
                       runAsUser=0 (container \"c\" must not set runAsUser=0)";

#[test]
fn b01_to_b08_with_each_policy_only_the_users_word_relaxes() {
    for policy in ["opt-in", "default", "always"] {
        let flags = vec![format!("--user-namespaces={policy}")];
        let node = Node::start_with(NodeOptions { flags, ..NodeOptions::default() });
        node.apply(&namespace("restricted", labels("enforce", "restricted:latest")));
        let create = |manifest: &str| node.kubectl_with(&["create", "-f", "-"], manifest);
        // B01, B02: and it runs as root inside.
        create(&root_pod("fenced", Some(false))).ok();
        node.kubectl(&["wait", "-n", "restricted", "--for=condition=Ready", "pod/fenced", "--timeout=60s"])
            .ok();
        assert_eq!(node.kubectl(&["exec", "-n", "restricted", "fenced", "--", "whoami"]).ok(), "root\n");
        // What the policy alone would fence is held to the standard as it is written.
        let silent = create(&root_pod("silent", None)).refused();
        let text =
            format!("pods \"silent\" is forbidden: violates PodSecurity \"restricted:latest\": {IS_ROOT}");
        assert!(silent.contains(&text), "{policy}: {silent}");
        // B04.
        let shared = create(&root_pod("shared", Some(true))).refused();
        assert!(shared.contains("forbidden"), "{policy}: {shared}");
        // B03.
        node.kubectl(&[
            "label",
            "--overwrite",
            "namespace",
            "restricted",
            "pod-security.kubernetes.io/enforce-version=v1.34",
        ])
        .ok();
        let older = create(&root_pod("older", Some(false))).refused();
        assert!(
            older.contains(&format!("violates PodSecurity \"restricted:v1.34\": {IS_ROOT}")),
            "{policy}: {older}"
        );
        // B05 to B08.
        let container =
            |security: Value| json!([{"name": "c", "image": "busybox", "securityContext": security}]);
        let unmasked = json!({"hostUsers": false, "containers": container(json!({"procMount": "Unmasked"}))});
        node.apply(&namespace("baseline", labels("enforce", "baseline:latest")));
        node.kubectl_with(
            &["create", "--dry-run=server", "-f", "-"],
            &pod("baseline", "unmasked", unmasked.clone()),
        )
        .ok();
        node.kubectl(&[
            "label",
            "--overwrite",
            "namespace",
            "restricted",
            "pod-security.kubernetes.io/enforce-version=latest",
        ])
        .ok();
        let refused = create(&pod("restricted", "unmasked", unmasked)).refused();
        assert!(
            refused.contains(
                "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")"
            ),
            "{refused}"
        );
        let admin = json!({"hostUsers": false, "containers": container(json!({"capabilities": {"add": ["SYS_ADMIN"]}}))});
        let refused = create(&pod("baseline", "admin", admin)).refused();
        assert!(
            refused.contains("non-default capabilities (container \"c\" must not include \"SYS_ADMIN\""),
            "{refused}"
        );
        let volumes = json!([{"name": "h", "hostPath": {"path": "/srv"}}]);
        let host =
            create(&pod("baseline", "host", json!({"hostUsers": false, "volumes": volumes}))).refused();
        assert!(host.contains("hostPath volumes (volume \"h\")"), "{host}");
    }
}

#[test]
fn warn_only_warns_and_a_label_that_chooses_nothing_is_refused() {
    let node = Node::start();
    node.apply(&namespace("restricted", labels("warn", "restricted:latest")));
    let created = node.kubectl_with(&["create", "-f", "-"], &root_pod("told", None));
    let line = format!("Warning: would violate PodSecurity \"restricted:latest\": {IS_ROOT}");
    assert!(created.stderr.lines().any(|found| found == line), "{}", created.stderr);
    created.ok();
    let text = node.kubectl(&[
        "label",
        "--overwrite",
        "namespace",
        "restricted",
        "pod-security.kubernetes.io/enforce=restricted",
    ]);
    assert!(text.stderr.contains("existing pods in namespace \"restricted\" violate the new PodSecurity enforce level \"restricted:latest\""), "{}", text.stderr);
    assert!(text.stderr.contains("told: runAsNonRoot != true"), "{}", text.stderr);
    text.ok();
    let bad = node
        .kubectl(&[
            "label",
            "--overwrite",
            "namespace",
            "restricted",
            "pod-security.kubernetes.io/enforce=strict",
        ])
        .refused();
    assert!(bad.contains("must be one of privileged, baseline, restricted"), "{bad}");
}

#[test]
fn an_ephemeral_container_is_held_to_the_standard_too() {
    let node = Node::start();
    node.apply(&namespace("baseline", labels("enforce", "baseline:latest")));
    node.kubectl_with(&["create", "-f", "-"], &pod("baseline", "target", json!({}))).ok();
    let debug = |profile: &str| {
        let profile = format!("--profile={profile}");
        node.kubectl(&["debug", "-n", "baseline", "target", "--image=busybox", &profile, "--", "true"])
    };
    let refused = debug("sysadmin").refused();
    assert!(
        refused.contains("violates PodSecurity \"baseline:latest\": privileged (container \"debugger-"),
        "{refused}"
    );
    debug("baseline").ok();
}
