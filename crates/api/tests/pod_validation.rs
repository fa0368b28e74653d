//! Whole Pods through defaulting, admission, preparation and validation, as the API server does it. The refusals
//! and their texts are in `golden/pod_refusals.txt`; `UPDATE_GOLDEN=1` writes that file anew.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fmt::Write as _;

use api::feature::{Feature, Gates};
use api::kind::{Ctx, Kind, find};
use api::{admission, default, schema};
use jiff::Timestamp;
use serde_json::{Value, json};

fn pods() -> &'static Kind {
    find("", "v1", "pods").unwrap()
}

fn ctx() -> Ctx {
    Ctx { now: Timestamp::UNIX_EPOCH, gates: Gates::default() }
}

fn base() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "default"},
        "spec": {"containers": [{"name": "a", "image": "nginx"}]}})
}

fn admit(mut pod: Value, ctx: &Ctx) -> Value {
    default::apply(schema::type_named(pods().type_name).unwrap(), &mut pod);
    (pods().default)(&mut pod);
    admission::service_account_name(&mut pod);
    admission::admit_pod(&mut pod, &json!({}), 1).unwrap();
    (pods().prepare_create)(&mut pod, ctx);
    pod
}

fn merged(mut target: Value, patch: &Value) -> Value {
    match (&mut target, patch) {
        (Value::Object(fields), Value::Object(changes)) => {
            for (name, change) in changes {
                let old = fields.get(name).cloned().unwrap_or_default();
                fields.insert(name.clone(), merged(old, change));
            }
            target
        }
        _ => patch.clone(),
    }
}

fn with(patch: &Value) -> Value {
    merged(base(), patch)
}

fn container(fields: &Value) -> Value {
    json!({"spec": {"containers": [merged(json!({"name": "a", "image": "nginx"}), fields)]}})
}

fn refusals() -> Vec<(&'static str, Value)> {
    vec![
        ("no containers", json!({"spec": {"containers": []}})),
        ("no image", json!({"spec": {"containers": [{"name": "a"}]}})),
        ("padded image", container(&json!({"image": " nginx"}))),
        ("bad container name", container(&json!({"name": "A_b"}))),
        (
            "two containers of one name",
            json!({"spec": {"containers": [{"name": "a", "image": "x"}, {"name": "a", "image": "y"}]}}),
        ),
        ("bad pod name", json!({"metadata": {"name": "P_0"}})),
        ("hostUsers false with hostNetwork", json!({"spec": {"hostUsers": false, "hostNetwork": true}})),
        (
            "hostUsers false with hostPID and hostIPC",
            json!({"spec": {"hostUsers": false, "hostPID": true, "hostIPC": true}}),
        ),
        (
            "hostUsers false with volumeDevices",
            merged(
                container(&json!({"volumeDevices": [{"name": "d", "devicePath": "/dev/x"}]})),
                &json!({"spec": {"hostUsers": false, "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]}}),
            ),
        ),
        (
            "Unmasked in the node's user namespace",
            container(&json!({"securityContext": {"procMount": "Unmasked"}})),
        ),
        ("runAsUser below 0", container(&json!({"securityContext": {"runAsUser": -5}}))),
        ("mount without volume", container(&json!({"volumeMounts": [{"name": "x", "mountPath": "/x"}]}))),
        ("bad restart policy", json!({"spec": {"restartPolicy": "Sometimes"}})),
        ("bad pull policy", container(&json!({"imagePullPolicy": "Maybe"}))),
        (
            "bad protocol and port",
            container(
                &json!({"ports": [{"containerPort": 0}, {"containerPort": 70000, "protocol": "ICMP"}]}),
            ),
        ),
        (
            "request above limit",
            container(&json!({"resources": {"limits": {"memory": "1Gi"}, "requests": {"memory": "2Gi"}}})),
        ),
        ("bad DNS", json!({"spec": {"dnsPolicy": "None"}})),
        ("bad host alias", json!({"spec": {"hostAliases": [{"ip": "1.2.3", "hostnames": ["a b"]}]}})),
        ("deadline of 0", json!({"spec": {"activeDeadlineSeconds": 0}})),
        ("bad toleration", json!({"spec": {"tolerations": [{"key": "a", "operator": "Is"}]}})),
        (
            "init container with a probe",
            json!({"spec": {"initContainers": [{"name": "i", "image": "x", "readinessProbe": {"tcpSocket": {"port": 1}}}]}}),
        ),
        (
            "ephemeral containers on create",
            json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "x"}]}}),
        ),
        (
            "the annotation on a volume that is not there",
            json!({"metadata": {"annotations": {"kakoi.dev/volume-mapping.x": "none"}}}),
        ),
        (
            "mirror Pod without node",
            json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}}),
        ),
        ("windows with hostUsers", json!({"spec": {"os": {"name": "windows"}, "hostUsers": true}})),
        (
            "bad environment",
            container(&json!({"env": [{"name": "A=B", "value": "x"}, {"name": "C", "valueFrom": {}}]})),
        ),
        ("gated and bound", json!({"spec": {"nodeName": "n", "schedulingGates": [{"name": "x.io/g"}]}})),
    ]
}

#[test]
fn refused_pods_are_told_in_upstreams_words() {
    let mut text = String::new();
    for (name, patch) in refusals() {
        let pod = admit(with(&patch), &ctx());
        let errors = (pods().validate)(&pod, &ctx());
        assert!(!errors.is_empty(), "{name} is accepted");
        write!(text, "# {name}\n{errors}\n\n").unwrap();
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/pod_refusals.txt");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(path).unwrap());
}

#[test]
fn the_pods_of_the_walkthrough_are_accepted_without_warning() {
    for patch in [
        json!({"metadata": {"name": "userns"}, "spec": {"hostUsers": false, "containers": [{"name": "shell", "command": ["sleep", "infinity"], "image": "debian"}]}}),
        json!({"metadata": {"name": "nginx", "labels": {"run": "nginx"}}, "spec": {"hostUsers": false}}),
        json!({"spec": {"containers": [{"name": "nginx", "image": "nginx", "securityContext": {"runAsUser": 1000}}]}}),
    ] {
        let pod = admit(with(&patch), &ctx());
        let errors = (pods().validate)(&pod, &ctx());
        assert!(errors.is_empty(), "{errors}");
        assert!((pods().warnings)(&pod, None).is_empty());
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "BestEffort"}));
        assert_eq!(pod["spec"]["securityContext"], json!({}));
        assert_eq!(pod["spec"]["containers"][0]["imagePullPolicy"], "Always");
    }
}

#[test]
fn the_five_volume_types_and_a_host_path_are_accepted() {
    let volumes = json!([
        {"name": "c", "configMap": {"name": "c", "items": [{"key": "k", "path": "p"}]}},
        {"name": "s", "secret": {"secretName": "s"}},
        {"name": "d", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "cpu", "resourceFieldRef": {"containerName": "a", "resource": "limits.cpu"}}]}},
        {"name": "e", "emptyDir": {"sizeLimit": "1Gi"}},
        {"name": "p", "projected": {"sources": [{"secret": {"name": "s"}}, {"serviceAccountToken": {"path": "t"}}]}},
        {"name": "h", "hostPath": {"path": "/srv"}},
    ]);
    let mounts: Vec<Value> = ["c", "s", "d", "e", "p", "h"]
        .iter()
        .map(|n| json!({"name": n, "mountPath": format!("/{n}")}))
        .collect();
    let patch = merged(
        container(&json!({"volumeMounts": mounts})),
        &json!({"metadata": {"annotations": {"kakoi.dev/volume-mapping.h": "none"}}, "spec": {"hostUsers": false, "volumes": volumes}}),
    );
    let pod = admit(with(&patch), &ctx());
    let errors = (pods().validate)(&pod, &ctx());
    assert!(errors.is_empty(), "{errors}");
    assert_eq!(pod["spec"]["volumes"][0]["configMap"]["defaultMode"], 420);
}

fn update(old: &Value, patch: &Value) -> String {
    let new = merged(old.clone(), patch);
    let errors = (pods().validate_update)(&new, old, &ctx());
    if errors.is_empty() { String::new() } else { errors.to_string() }
}

fn stored(patch: &Value) -> Value {
    merged(admit(with(patch), &ctx()), &json!({"metadata": {"uid": "u", "resourceVersion": "1"}}))
}

#[test]
fn a10_host_users_does_not_change_and_the_answer_shows_the_difference() {
    let old = stored(&json!({"spec": {"hostUsers": false}}));
    let text = update(&old, &json!({"spec": {"hostUsers": true}}));
    let head = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n@@ ";
    assert!(text.starts_with(head), "{text}");
    assert!(text.contains("\n- \"hostUsers\": false,\n+ \"hostUsers\": true,\n"), "{text}");
}

#[test]
fn what_may_change_may_change() {
    let old = stored(&json!({}));
    let mut container = old["spec"]["containers"][0].clone();
    container["image"] = json!("nginx:2");
    assert_eq!(update(&old, &json!({"spec": {"containers": [container]}})), "");
    assert_eq!(update(&old, &json!({"spec": {"activeDeadlineSeconds": 5}})), "");
    let mut tolerations = old["spec"]["tolerations"].as_array().unwrap().clone();
    tolerations.push(json!({"operator": "Exists"}));
    assert_eq!(update(&old, &json!({"spec": {"tolerations": tolerations}})), "");
    assert_eq!(update(&old, &json!({"metadata": {"labels": {"a": "b"}}})), "");
    let negative = stored(&json!({"spec": {"terminationGracePeriodSeconds": -5}}));
    assert_eq!(update(&negative, &json!({"spec": {"terminationGracePeriodSeconds": 1}})), "");
    assert!(
        update(&old, &json!({"spec": {"terminationGracePeriodSeconds": 1}})).starts_with("spec: Forbidden")
    );
}

#[test]
fn what_may_not_change_is_named() {
    let old = stored(&json!({"spec": {"activeDeadlineSeconds": 5}}));
    assert_eq!(
        update(&old, &json!({"spec": {"activeDeadlineSeconds": 6}})),
        "spec.activeDeadlineSeconds: Invalid value: 6: must be less than or equal to previous value"
    );
    assert_eq!(
        update(
            &old,
            &json!({"spec": {"containers": [{"name": "a", "image": "x", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}, {"name": "b", "image": "x", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]}})
        ),
        "spec.containers: Forbidden: pod updates may not add or remove containers"
    );
    assert_eq!(
        update(&old, &json!({"spec": {"tolerations": []}})),
        "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"
    );
    assert_eq!(
        update(&old, &json!({"metadata": {"annotations": {"kubernetes.io/config.mirror": "x"}}})),
        "[metadata.annotations[kubernetes.io/config.mirror]: Invalid value: \"x\": must set spec.nodeName if mirror pod annotation is set, metadata.annotations[kubernetes.io/config.mirror]: Forbidden: may not add mirror pod annotation]"
    );
}

#[test]
fn a08_a09_a_stored_pod_keeps_what_is_refused_today() {
    let gates = Gates::default().with(Feature::UserNamespacesHostNetworkSupport, true);
    let on = Ctx { gates, ..ctx() };
    let pod = admit(with(&json!({"spec": {"hostUsers": false, "hostNetwork": true}})), &on);
    assert!((pods().validate)(&pod, &on).is_empty());
    let old = merged(pod, &json!({"metadata": {"uid": "u", "resourceVersion": "1"}}));
    assert_eq!(update(&old, &json!({"metadata": {"labels": {"a": "b"}}})), "");

    let devices = merged(
        container(&json!({"volumeDevices": [{"name": "d", "devicePath": "/dev/x"}]})),
        &json!({"spec": {"hostUsers": false, "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "c"}}]}}),
    );
    assert_eq!(update(&stored(&devices), &json!({"metadata": {"labels": {"a": "b"}}})), "");
}

#[test]
fn a_status_update_changes_no_class_and_revives_no_container() {
    let mut old = stored(&json!({"spec": {"restartPolicy": "Never"}}));
    old["status"]["containerStatuses"] = json!([{"name": "a", "state": {"terminated": {"exitCode": 0}}}]);
    let check =
        |patch: Value| (pods().validate_status)(&merged(old.clone(), &patch), &old, &ctx()).to_string();
    assert_eq!(
        check(json!({"status": {"qosClass": "Guaranteed"}})),
        "status.qosClass: Invalid value: \"Guaranteed\": field is immutable"
    );
    assert_eq!(
        check(json!({"status": {"containerStatuses": [{"name": "a", "state": {"running": {}}}]}})),
        "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"
    );
    assert_eq!(
        check(json!({"status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.2"}]}})),
        "status.podIPs: Invalid value: [{\"ip\":\"10.0.0.1\"},{\"ip\":\"10.0.0.2\"}]: may specify no more than one IP for each IP family"
    );
}

#[test]
fn a14_a_gate_that_is_off_drops_host_users_and_says_so() {
    let off = Ctx { gates: Gates::default().with(Feature::UserNamespacesSupport, false), ..ctx() };
    let asked = with(&json!({"spec": {"hostUsers": false}}));
    let warnings = (pods().dropped)(&asked, &off);
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0]
            .starts_with("spec.hostUsers: dropped, because the feature gate UserNamespacesSupport is off")
    );
    assert!((pods().dropped)(&asked, &ctx()).is_empty());
    let pod = admit(asked, &off);
    assert!(pod["spec"].get("hostUsers").is_none());
    assert!((pods().validate)(&pod, &off).is_empty());
}

#[test]
fn a13_a_windows_pod_says_nothing_of_host_users() {
    let windows =
        |host_users: Value| with(&json!({"spec": {"os": {"name": "windows"}, "hostUsers": host_users}}));
    let refusal = |pod: &Value| (pods().validate)(pod, &ctx()).to_string();
    for host_users in [true, false] {
        let pod = admit(windows(json!(host_users)), &ctx());
        assert_eq!(
            refusal(&pod),
            "spec.hostUsers: Forbidden: cannot be set for a windows pod",
            "{host_users}"
        );
    }
    let silent = admit(with(&json!({"spec": {"os": {"name": "windows"}}})), &ctx());
    assert!((pods().validate)(&silent, &ctx()).is_empty());
}
