#![allow(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]

use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> PodFacts {
    PodFacts::read(&json!({ "spec": spec })).unwrap()
}

fn ask(pod: &PodFacts, policy: Policy, node: &NodeFacts) -> Decision {
    decide(Question { pod, policy, ids_per_pod: 65_536, node })
}

fn reasons(spec: Value) -> Vec<Reason> {
    let pod = pod(spec);
    match ask(&pod, Policy::Default, &NodeFacts::default()) {
        Decision::Fenced(_) => Vec::new(),
        other => other.findings().iter().map(|finding| finding.reason).collect(),
    }
}

fn with_container(field: &str, value: Value) -> Value {
    let mut container = json!({"name": "c", "image": "i"});
    container[field] = value;
    json!({ "containers": [container] })
}

fn host_path(path: &str, kind: &str) -> Value {
    json!({"containers": [], "volumes": [{"name": "v", "hostPath": {"path": path, "type": kind}}]})
}

#[test]
fn a_pod_that_says_nothing_is_fenced_unless_the_policy_is_opt_in() {
    let pod = pod(json!({"containers": [{"name": "web", "image": "nginx"}]}));
    let node = NodeFacts::default();
    assert_eq!(ask(&pod, Policy::Default, &node), Decision::Fenced(Basis::Policy(Policy::Default)));
    assert_eq!(ask(&pod, Policy::Always, &node), Decision::Fenced(Basis::Policy(Policy::Always)));
    let opt_in = ask(&pod, Policy::OptIn, &node);
    assert_eq!((opt_in.outcome(), opt_in.reason()), ("exempt", "NotAsked"));
}

#[test]
fn the_users_word_is_honoured_or_refused() {
    let node = NodeFacts::default();
    let host = pod(json!({"hostUsers": true}));
    assert_eq!(ask(&host, Policy::OptIn, &node).outcome(), "exempt");
    assert_eq!(ask(&host, Policy::Default, &node).outcome(), "exempt");
    assert_eq!(ask(&host, Policy::Always, &node).outcome(), "refused");
    let own = pod(
        json!({"hostUsers": false, "containers": [{"name": "c", "securityContext": {"privileged": true}}]}),
    );
    for policy in Policy::ALL {
        assert_eq!(ask(&own, policy, &node), Decision::Fenced(Basis::Requested), "{policy}");
    }
    let cannot = pod(json!({"hostUsers": false, "securityContext": {"runAsUser": 70_000}}));
    for policy in Policy::ALL {
        let decision = ask(&cannot, policy, &node);
        assert_eq!((decision.outcome(), decision.reason()), ("refused", "IDOutOfRange"), "{policy}");
    }
}

#[test]
fn what_cannot_be_fenced_is_exempt_by_default_and_refused_under_always() {
    let pod = pod(json!({"hostNetwork": true, "hostPID": true}));
    let node = NodeFacts::default();
    let exempt = ask(&pod, Policy::Default, &node);
    assert_eq!(exempt.findings().len(), 2);
    assert_eq!((exempt.outcome(), exempt.reason()), ("exempt", "HostNetwork"));
    assert_eq!(ask(&pod, Policy::Always, &node), Decision::Refused(exempt.findings().to_vec()));
}

#[test]
fn each_reason_is_found_where_it_stands() {
    let security = |value: Value| with_container("securityContext", value);
    for (spec, expected) in [
        (json!({"hostNetwork": true}), Reason::HostNetwork),
        (json!({"hostPID": true}), Reason::HostPid),
        (json!({"hostIPC": true}), Reason::HostIpc),
        (
            with_container("volumeDevices", json!([{"name": "v", "devicePath": "/dev/x"}])),
            Reason::VolumeDevices,
        ),
        (security(json!({"privileged": true})), Reason::Privileged),
        (security(json!({"capabilities": {"add": ["CAP_SYS_TIME"]}})), Reason::Capability),
        (security(json!({"capabilities": {"add": ["all"]}})), Reason::Capability),
        (security(json!({"runAsUser": 65_536})), Reason::IdOutOfRange),
        (security(json!({"runAsGroup": 1_000_650_000})), Reason::IdOutOfRange),
        (json!({"securityContext": {"fsGroup": 70_000}}), Reason::IdOutOfRange),
        (json!({"securityContext": {"supplementalGroups": [1, 70_000]}}), Reason::IdOutOfRange),
        (
            json!({"securityContext": {"sysctls": [{"name": "vm.max_map_count", "value": "1"}]}}),
            Reason::Sysctl,
        ),
        (host_path("/proc/", ""), Reason::KernelPath),
        (host_path("/sys/fs/cgroup", "Directory"), Reason::KernelPath),
        (host_path("//dev/./shm", ""), Reason::KernelPath),
        (host_path("/", ""), Reason::KernelPath),
        (host_path("/var/run/docker.sock", ""), Reason::NodeSocket),
        (host_path("/srv/x", "Socket"), Reason::NodeSocket),
        (host_path("/var/run", ""), Reason::NodeSocket),
        (host_path("/dev/kvm", "CharDevice"), Reason::Device),
        (
            with_container("volumeMounts", json!([{"name": "v", "mountPropagation": "Bidirectional"}])),
            Reason::Propagation,
        ),
        (with_container("resources", json!({"limits": {"nvidia.com/gpu": 1}})), Reason::Device),
        (with_container("resources", json!({"claims": [{"name": "gpu"}]})), Reason::Device),
        (json!({"resourceClaims": [{"name": "gpu"}]}), Reason::Device),
        (json!({"volumes": [{"name": "v", "nfs": {"server": "filer", "path": "/x"}}]}), Reason::Filesystem),
    ] {
        assert_eq!(reasons(spec.clone()), [expected], "{spec}");
    }
}

#[test]
fn what_looks_alike_is_no_reason() {
    for spec in [
        host_path("/process", ""),
        host_path("/var/lib/data", "DirectoryOrCreate"),
        host_path("/var/run/secrets/app", ""),
        with_container(
            "securityContext",
            json!({"capabilities": {"add": ["NET_ADMIN", "NET_BIND_SERVICE"]}}),
        ),
        with_container("securityContext", json!({"runAsUser": 65_535})),
        with_container(
            "resources",
            json!({"limits": {"cpu": "1", "hugepages-2Mi": "4Mi", "ephemeral-storage": "1Gi"}}),
        ),
        json!({"securityContext": {"sysctls": [{"name": "net/ipv4/ip_unprivileged_port_start", "value": "0"}]}}),
        json!({"hostNetwork": false, "hostPID": null, "volumes": null, "containers": [{"name": "c", "securityContext": null}]}),
        json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "e", "emptyDir": {}}]}),
    ] {
        assert_eq!(reasons(spec.clone()), [], "{spec}");
    }
}

#[test]
fn what_the_node_found_counts() {
    let annotations =
        json!({"kakoi.dev/volume-mapping.plain": "none", "kakoi.dev/volume-mapping.claimed": "none"});
    let pod = PodFacts::read(&json!({"metadata": {"annotations": annotations},
        "spec": {"containers": [{"name": "c", "image": "i"}], "volumes": [
            {"name": "v", "hostPath": {"path": "/x"}}, {"name": "plain", "hostPath": {"path": "/y"}},
            {"name": "claimed", "persistentVolumeClaim": {"claimName": "data"}}]}}))
    .unwrap();
    let with = |node: NodeFacts| ask(&pod, Policy::Default, &node).reason();
    let volume = |name: &str, fact| NodeFacts { volumes: vec![(name.into(), fact)], ..NodeFacts::default() };
    let unmappable = || VolumeFact::NotMappable { path: "/x".into(), filesystem: "nfs4".into() };
    assert_eq!(with(volume("v", unmappable())), "Filesystem");
    assert_eq!(with(volume("plain", unmappable())), "FencedByPolicy");
    assert_eq!(with(volume("claimed", unmappable())), "Filesystem");
    assert_eq!(with(volume("v", VolumeFact::Socket("/x".into()))), "NodeSocket");
    assert_eq!(with(volume("v", VolumeFact::Device("/x".into()))), "Device");
    assert_eq!(with(volume("v", VolumeFact::LeadsTo("/proc/1".into()))), "KernelPath");
    let user = |id| NodeFacts { image_users: vec![("c".into(), id)], ..NodeFacts::default() };
    assert_eq!(with(user(65_536)), "ImageUserOutOfRange");
    assert_eq!(with(user(101)), "FencedByPolicy");
    let handler =
        NodeFacts { handler: Some("the runtime handler `kata` has none".into()), ..NodeFacts::default() };
    assert_eq!(with(handler), "NoSupport");
}

#[test]
fn an_image_s_user_does_not_count_where_the_pod_sets_one() {
    let pod = pod(json!({"securityContext": {"runAsUser": 1000}, "containers": [{"name": "c"}]}));
    let node = NodeFacts { image_users: vec![("c".into(), 70_000)], ..NodeFacts::default() };
    assert_eq!(ask(&pod, Policy::Default, &node).outcome(), "fenced");
}

#[test]
fn a_larger_range_has_more_ids() {
    let pod = pod(json!({"securityContext": {"runAsUser": 70_000}}));
    let question =
        Question { pod: &pod, policy: Policy::Default, ids_per_pod: 131_072, node: &NodeFacts::default() };
    assert_eq!(decide(question).outcome(), "fenced");
}

#[test]
fn a_sentence_names_the_place_the_cause_and_the_remedy() {
    let pod = pod(with_container("securityContext", json!({"privileged": true})));
    let decision = ask(&pod, Policy::Default, &NodeFacts::default());
    let finding = &decision.findings()[0];
    assert_eq!(
        finding.to_string(),
        "the container `c` is `privileged`: it works on the node's devices and kernel settings, which a user namespace keeps closed"
    );
    assert!(finding.remedy().starts_with("remove `privileged`"));
}

#[test]
fn every_reason_has_one_row_and_names_are_unique() {
    let names: std::collections::BTreeSet<_> = REASONS.iter().map(|info| info.name).collect();
    assert_eq!(names.len(), REASONS.len());
    for info in REASONS {
        assert_eq!(info.reason.name(), info.name);
        assert!(!info.why.ends_with('.') && !info.remedy.ends_with('.'), "{}", info.name);
    }
}

#[test]
fn the_label_overrules_the_node_and_the_gate_overrules_both() {
    assert_eq!(Policy::Default.in_force(None, true), Ok(Policy::Default));
    assert_eq!(Policy::Default.in_force(Some("always"), true), Ok(Policy::Always));
    assert_eq!(Policy::Always.in_force(Some("opt-in"), true), Ok(Policy::OptIn));
    assert_eq!(Policy::Always.in_force(Some("always"), false), Ok(Policy::OptIn));
    let text = Policy::Default.in_force(Some("never"), true).unwrap_err().to_string();
    assert!(text.contains("`never`") && text.contains("`always`"), "{text}");
}
