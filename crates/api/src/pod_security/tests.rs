#![allow(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]

use serde_json::{Value, json};

use super::*;

fn standard(text: &str) -> LevelVersion {
    let (level, version) = text.split_once(':').unwrap();
    let namespace = json!({"metadata": {"labels": {
        "pod-security.kubernetes.io/enforce": level, "pod-security.kubernetes.io/enforce-version": version}}});
    let found = Modes::of(&namespace).enforce;
    assert_eq!(found.to_string(), text);
    found
}

fn check(text: &str, spec: Value) -> String {
    violations(standard(text), &json!({ "spec": spec })).unwrap_or_default()
}

/// A Pod that keeps to `restricted` but for its user.
fn hardened(fields: Value) -> Value {
    let mut spec = json!({"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]});
    for (name, value) in fields.as_object().unwrap() {
        spec[name] = value.clone();
    }
    spec
}

fn with_context(mut spec: Value, fields: Value) -> Value {
    for (name, value) in fields.as_object().unwrap() {
        spec["containers"][0]["securityContext"][name] = value.clone();
    }
    spec
}

const NON_ROOT: &str =
    "runAsNonRoot != true (pod or container \"a\" must set securityContext.runAsNonRoot=true)";

#[test]
fn b01_a_fenced_pod_need_not_say_run_as_non_root() {
    assert_eq!(check("restricted:latest", hardened(json!({"hostUsers": false}))), "");
    assert_eq!(check("restricted:latest", hardened(json!({}))), NON_ROOT);
}

#[test]
fn b02_a_fenced_pod_may_be_root() {
    let root = with_context(hardened(json!({"hostUsers": false})), json!({"runAsUser": 0}));
    assert_eq!(check("restricted:latest", root), "");
}

#[test]
fn b03_an_older_version_relaxes_nothing() {
    assert_eq!(check("restricted:v1.34", hardened(json!({"hostUsers": false}))), NON_ROOT);
    let root =
        with_context(hardened(json!({"hostUsers": false})), json!({"runAsUser": 0, "runAsNonRoot": true}));
    assert_eq!(
        check("restricted:v1.34", root.clone()),
        "runAsUser=0 (container \"a\" must not set runAsUser=0)"
    );
    assert_eq!(check("restricted:v1.35", root), "");
}

#[test]
fn b04_a_pod_with_the_nodes_ids_may_not_be_root() {
    let root = with_context(hardened(json!({"hostUsers": true})), json!({"runAsUser": 0}));
    assert_eq!(
        check("restricted:latest", root),
        format!("{NON_ROOT}, runAsUser=0 (container \"a\" must not set runAsUser=0)")
    );
}

#[test]
fn b05_a_fenced_pod_may_see_all_of_proc_under_baseline() {
    let unmasked = with_context(hardened(json!({"hostUsers": false})), json!({"procMount": "Unmasked"}));
    assert_eq!(check("baseline:latest", unmasked.clone()), "");
    let text = "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")";
    assert_eq!(check("baseline:v1.34", unmasked), text);
}

#[test]
fn b06_restricted_refuses_an_unmasked_proc_always() {
    let unmasked = with_context(hardened(json!({"hostUsers": false})), json!({"procMount": "Unmasked"}));
    let text = "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")";
    assert_eq!(check("restricted:latest", unmasked), text);
}

#[test]
fn b07_capabilities_are_not_relaxed() {
    let admin =
        with_context(hardened(json!({"hostUsers": false})), json!({"capabilities": {"add": ["SYS_ADMIN"]}}));
    assert_eq!(
        check("baseline:latest", admin),
        "non-default capabilities (container \"a\" must not include \"SYS_ADMIN\" in securityContext.capabilities.add)"
    );
}

#[test]
fn b08_host_paths_are_not_relaxed() {
    let host =
        hardened(json!({"hostUsers": false, "volumes": [{"name": "h", "hostPath": {"path": "/srv"}}]}));
    assert_eq!(check("baseline:latest", host.clone()), "hostPath volumes (volume \"h\")");
    assert_eq!(
        check("restricted:latest", host),
        "restricted volume types (volume \"h\" uses restricted volume type \"hostPath\")"
    );
}

#[test]
fn a_plain_pod_fails_restricted_in_kubernetes_words() {
    assert_eq!(
        check("restricted:latest", json!({"containers": [{"name": "a"}, {"name": "b"}]})),
        "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set securityContext.allowPrivilegeEscalation=false), \
         unrestricted capabilities (containers \"a\", \"b\" must set securityContext.capabilities.drop=[\"ALL\"]), \
         runAsNonRoot != true (pod or containers \"a\", \"b\" must set securityContext.runAsNonRoot=true), \
         seccompProfile (pod or containers \"a\", \"b\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
    assert_eq!(check("baseline:latest", json!({"containers": [{"name": "a"}]})), "");
    assert_eq!(check("privileged:latest", json!({"hostPID": true})), "");
}

#[test]
fn each_baseline_check_has_its_words() {
    let one = |field: &str, value: Value| json!({"containers": [{"name": "a", field: value}]});
    for (spec, text) in [
        (json!({"hostNetwork": true, "hostIPC": true}), "host namespaces (hostNetwork=true, hostIPC=true)"),
        (
            one("securityContext", json!({"privileged": true})),
            "privileged (container \"a\" must not set securityContext.privileged=true)",
        ),
        (
            one("ports", json!([{"hostPort": 80}, {"hostPort": 443}])),
            "hostPort (container \"a\" uses hostPorts 443, 80)",
        ),
        (
            one("livenessProbe", json!({"httpGet": {"host": "10.0.0.1"}})),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"10.0.0.1\")",
        ),
        (
            json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
            "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]}}),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
            "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            one("securityContext", json!({"seLinuxOptions": {"type": "spc_t", "user": "u"}})),
            "seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
        ),
        (
            json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
    ] {
        assert_eq!(check("baseline:latest", spec), text);
    }
    let sysctl = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}});
    assert_eq!(check("baseline:v1.31", sysctl), "forbidden sysctls (net.ipv4.tcp_rmem)");
}

#[test]
fn a_label_that_chooses_nothing_is_refused_and_enforced_strictly_where_it_is() {
    let namespace = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "strict",
        "pod-security.kubernetes.io/warn": "strict", "pod-security.kubernetes.io/enforce-version": "1.30"}}});
    let modes = Modes::of(&namespace);
    assert_eq!((modes.enforce.level, modes.warn.level), (Level::Restricted, Level::Privileged));
    let errors: Vec<String> = validate_labels(&namespace).iter().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 3);
    assert_eq!(
        errors[0],
        "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted"
    );
}
