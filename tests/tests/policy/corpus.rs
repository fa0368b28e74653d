//! Manifests as people write them: what `kakoi policy explain` says of each, held in a file, and that a real node decides
//! the same.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use api::template::pod_of;
use serde_json::{Value, json};
use tests::Node;

use super::condition;
use super::golden::golden;

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy")
}

/// What the program prints of the corpus; it needs neither root nor a node.
fn explain(flags: &[&str]) -> String {
    let program = std::env::var_os("KAKOI_BINARY")
        .map_or_else(|| here().join("../../../target/debug/kakoi"), PathBuf::from);
    let output = Command::new(program)
        .args(["policy", "explain", "-f", "manifests"])
        .args(flags)
        .current_dir(here())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn each_manifest_is_explained_as_held() {
    let text = explain(&[]);
    let share = text.lines().find(|line| line.contains(" fenced (")).unwrap();
    println!("under the policy `default`: {share}");
    golden("policy-explain.txt", &text);
}

#[test]
fn under_opt_in_only_what_asks_is_fenced_and_under_always_nothing_is_exempt() {
    let count = |flags: &[&str], decision: &str| {
        let all: Value = serde_json::from_str(&explain(&[flags, &["-o", "json"]].concat())).unwrap();
        let of = |one: &&Value| {
            one["decision"] == decision && one["namespace"] != "strict" && one["namespace"] != "lenient"
        };
        all.as_array().unwrap().iter().filter(of).count()
    };
    assert_eq!(count(&["--user-namespaces", "opt-in"], "fenced"), 4);
    assert_eq!(count(&["--user-namespaces", "always"], "exempt"), 0);
    assert_eq!(count(&["--user-namespaces", "always"], "fenced"), count(&[], "fenced"));
}

/// An explained object with its Pod.
struct Case {
    name: String,
    /// Where it runs: a namespace with a policy of its own, or the default one.
    namespace: &'static str,
    decision: String,
    reason: String,
    pod: Value,
}

fn cases() -> Vec<Case> {
    let explained: Value = serde_json::from_str(&explain(&["-o", "json"])).unwrap();
    let mut explained = explained.as_array().unwrap().iter();
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(here().join("manifests")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let objects = files.iter().flat_map(|file| api::codec::documents(&std::fs::read(file).unwrap()).unwrap());
    let objects = objects.flat_map(|object| match object["items"].as_array() {
        Some(items) => items.clone(),
        None => vec![object],
    });
    let mut cases = Vec::new();
    for object in objects {
        let Some(pod) = pod_of(object["kind"].as_str().unwrap(), &object) else { continue };
        let said = explained.next().unwrap();
        let own = object["metadata"]["name"]
            .as_str()
            .or_else(|| object["metadata"]["generateName"].as_str())
            .unwrap();
        assert_eq!(said["name"], own);
        let namespace = ["strict", "lenient"].into_iter().find(|own| said["namespace"] == **own);
        cases.push(Case {
            namespace: namespace.unwrap_or("default"),
            name: format!("{}-{}", said["namespace"].as_str().unwrap(), own.trim_end_matches('-')),
            decision: said["decision"].as_str().unwrap().to_owned(),
            reason: said["reasons"][0]["reason"].as_str().unwrap_or_default().to_owned(),
            pod: pod.clone(),
        });
    }
    assert!(cases.len() >= 60 && explained.next().is_none());
    cases
}

/// The Pod as it can run here: the same words about users, namespaces, rights and volumes, but an image that is there and
/// a command that ends, and bound to the node, whatever resources it asks for.
fn runnable(case: &Case, root: &Path) -> Value {
    let mut spec = case.pod["spec"].clone();
    let fields = spec.as_object_mut().unwrap();
    for name in ["serviceAccountName", "priorityClassName", "hostUser"] {
        fields.remove(name);
    }
    fields.insert("nodeName".into(), json!("node"));
    fields.insert("restartPolicy".into(), json!("Never"));
    fields.insert("terminationGracePeriodSeconds".into(), json!(0));
    for list in ["initContainers", "containers"] {
        for container in fields.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let container = container.as_object_mut().unwrap();
            for name in ["env", "ports", "readinessProbe", "args", "restartPolicy"] {
                container.remove(name);
            }
            if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
                resources.remove("requests");
                if let Some(limits) = resources.get_mut("limits").and_then(Value::as_object_mut) {
                    limits.retain(|name, _| name.contains('/'));
                }
            }
            container.insert("image".into(), json!("busybox"));
            container.insert("command".into(), json!(["true"]));
        }
    }
    add_claimed_volumes(fields);
    for volume in fields.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        let name = volume["name"].clone();
        let is_raw = case.reason == "VolumeDevices";
        let needs_others = ["configMap", "secret", "ephemeral"].iter().any(|kind| volume.get(kind).is_some())
            || volume.pointer("/emptyDir/medium") == Some(&json!("HugePages"))
            || (volume.get("persistentVolumeClaim").is_some() && !is_raw);
        if needs_others {
            *volume = json!({"name": name, "emptyDir": {}});
        }
        if case.decision == "fenced"
            && let Some(path) = volume.pointer("/hostPath/path").and_then(Value::as_str)
        {
            // Below the node's own root, whose filesystem is known.
            let inside = root.join("host").join(path.trim_start_matches('/'));
            *volume = json!({"name": name, "hostPath": {"path": inside, "type": "DirectoryOrCreate"}});
        }
    }
    let metadata = json!({"name": case.name, "namespace": case.namespace, "annotations": case.pod["metadata"]["annotations"]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
}

/// The volumes that a `StatefulSet` would make of its claim templates.
fn add_claimed_volumes(spec: &mut serde_json::Map<String, Value>) {
    let list = |name: &str| spec.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    let has = |name: &Value| list("volumes").iter().any(|volume| volume["name"] == *name);
    let mounts = list("containers")
        .into_iter()
        .flat_map(|c| c["volumeMounts"].as_array().cloned().unwrap_or_default());
    let claimed = mounts.map(|mount| mount["name"].clone()).filter(|name| !has(name));
    let volumes: Vec<Value> = claimed.map(|name| json!({"name": name, "emptyDir": {}})).collect();
    let all = list("volumes").into_iter().chain(volumes).collect();
    spec.insert("volumes".into(), Value::Array(all));
}

/// Whether the node does not take the Pod at all, so that nothing is decided about it.
fn is_turned_away(pod: &Value) -> bool {
    let reason = pod["status"]["reason"].as_str().unwrap_or_default();
    let is_known = reason.starts_with("OutOf") || ["ResourceClaims", "SysctlForbidden"].contains(&reason);
    pod["status"]["phase"] == "Failed" && is_known
}

/// Whether the Pod asks for what this machine has not, or sets what this node does not allow.
fn may_be_turned_away(pod: &Value) -> bool {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut limits = containers.filter_map(|container| container.pointer("/resources/limits")?.as_object());
    limits.any(|limits| limits.keys().any(|name| name.contains('/')))
        || pod["spec"].get("resourceClaims").is_some()
        || pod.pointer("/spec/securityContext/sysctls").is_some()
}

#[test]
fn a_node_decides_of_each_what_was_explained() {
    let node = Node::start();
    for (name, policy) in [("strict", "always"), ("lenient", "opt-in")] {
        node.apply(&super::namespace(name, json!({"kakoi.dev/user-namespaces": policy})));
    }
    node.until("the namespaces' accounts", Duration::from_secs(30), |node| {
        ["strict", "lenient"].iter().all(|name| node.kubectl(&["get", "sa", "default", "-n", name]).code == 0)
    });
    let cases = cases();
    let items: Vec<Value> = cases.iter().map(|case| runnable(case, node.root())).collect();
    let created = node.kubectl_with(
        &["create", "-f", "-"],
        &json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string(),
    );
    // An ID that is out of the range is refused by the node.
    let is_refused = |case: &Case| case.decision == "refused" && case.reason != "IDOutOfRange";
    let refused = cases.iter().filter(|case| is_refused(case)).count();
    assert_eq!(created.stdout.lines().count(), cases.len() - refused, "{}", created.stderr);
    let all = |node: &Node| -> Vec<Value> {
        let text = node.kubectl(&["get", "pods", "-A", "-o", "json"]).ok();
        serde_json::from_str::<Value>(&text).unwrap()["items"].as_array().unwrap().clone()
    };
    node.until("each Pod's decision", Duration::from_secs(90), |node| {
        all(node).iter().all(|pod| condition(pod).is_some() || is_turned_away(pod))
    });
    let pods = all(&node);
    for case in &cases {
        let found = pods.iter().find(|pod| pod["metadata"]["name"] == case.name.as_str());
        if is_refused(case) {
            let told = format!("pods \"{}\" is forbidden", case.name);
            assert!(found.is_none() && created.stderr.contains(&told), "{}: {}", case.name, created.stderr);
            continue;
        }
        let found = found.unwrap_or_else(|| panic!("{} was not made: {}", case.name, created.stderr));
        if is_turned_away(found) {
            assert!(may_be_turned_away(found), "{}: {}", case.name, found["status"]);
            continue;
        }
        let (status, reason, message) = condition(found).unwrap();
        let expected = if case.decision == "exempt" { "False" } else { "True" };
        assert_eq!(status, expected, "{}: {message}", case.name);
        if case.decision == "exempt" {
            assert_eq!(reason, case.reason, "{}: {message}", case.name);
        }
    }
}
