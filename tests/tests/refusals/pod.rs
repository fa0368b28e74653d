//! Pods that are refused, by the API or by the node.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tests::Node;

use crate::golden::{golden, normalise};
use crate::registry::{Image, Layer, Registry};
use crate::{BUSYBOX, PATIENCE, assert_nothing_stays, places, said, warnings};

/// A Pod that is refused: its name, what it shall show in `kubectl get pods`, and its spec.
type Case = (&'static str, &'static str, Value);

/// A container of `busybox` that would sleep, with fields of its own.
fn sleeper(fields: &Value) -> Value {
    let mut container = json!({"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sleep", "infinity"]});
    container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    container
}

/// The spec of a Pod in a user namespace, with fields of its own.
fn spec(container: &Value, fields: &Value) -> Value {
    let mut spec = json!({"hostUsers": false, "terminationGracePeriodSeconds": 0, "containers": [container]});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    spec
}

fn with_security(context: &Value) -> Value {
    let volume = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let fields = json!({"securityContext": context, "volumes": [{"name": "v", "emptyDir": {}}]});
    spec(&sleeper(&volume), &fields)
}

fn with_env(env: &Value) -> Value {
    spec(&sleeper(&json!({"env": [{"name": "A", "valueFrom": env}]})), &json!({}))
}

fn with_volume(source: &Value) -> Value {
    let mut volume = json!({"name": "v"});
    volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    let mounted = sleeper(&json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
    spec(&mounted, &json!({"volumes": [volume]}))
}

fn with_image(image: &str) -> Value {
    spec(&json!({"name": "c", "image": image}), &json!({}))
}

fn with_command(command: &[&str], directory: &str) -> Value {
    spec(&sleeper(&json!({"command": command, "workingDir": directory})), &json!({}))
}

fn create(node: &Node, cases: &[Case]) {
    let item = |(name, _, spec): &Case| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
    let list =
        json!({"apiVersion": "v1", "kind": "List", "items": cases.iter().map(item).collect::<Vec<_>>()});
    node.kubectl_with(&["create", "-f", "-"], &list.to_string()).ok();
}

/// What each Pod comes to: the line of `kubectl get`, the container's and the Pod's own words, the warnings.
fn describe(node: &Node, cases: &[Case]) -> String {
    let mut all = String::new();
    for (name, shows, _) in cases {
        let (mut line, mut status) = (String::new(), Value::Null);
        node.until(&format!("the Pod {name} to be {shows}"), PATIENCE, |node| {
            line = node.kubectl(&["get", "pod", name, "--no-headers"]).stdout;
            status = node.get(&format!("pod/{name}"))["status"].take();
            let reason = &status["containerStatuses"][0]["state"]["waiting"]["reason"];
            let is_still = reason.as_str().is_none_or(|reason| reason == *shows);
            line.split_whitespace().nth(2) == Some(shows) && is_still && !warnings(node, name).is_empty()
        });
        let ready = line.split_whitespace().nth(1).unwrap();
        writeln!(all, "# {name}: {ready} {shows}").unwrap();
        if let Some(message) = status["message"].as_str() {
            writeln!(all, "{}: {message}", status["phase"].as_str().unwrap()).unwrap();
        }
        for status in status["containerStatuses"].as_array().into_iter().flatten() {
            for state in
                ["state", "lastState"].into_iter().filter_map(|state| status[state].as_object()).flatten()
            {
                let (kind, state) = state;
                let code = state["exitCode"].as_i64().map_or_else(String::new, |code| format!(" ({code})"));
                let text = |field: &str| state[field].as_str().unwrap_or("-").to_owned();
                writeln!(all, "{kind}{code}: {}: {}", text("reason"), text("message")).unwrap();
            }
        }
        for (reason, message) in warnings(node, name) {
            writeln!(all, "Warning  {reason}  {message}").unwrap();
        }
        all.push('\n');
    }
    // How long a crashed container waits depends on how often it has crashed.
    let waits = ["back-off 10s", "back-off 20s", "back-off 40s"].map(|text| (text, "back-off TIME"));
    let places = places(node);
    let mut names: Vec<(&str, &str)> = places.iter().map(|(from, to)| (from.as_str(), *to)).collect();
    names.extend(waits);
    normalise(&all, &names)
}

#[test]
fn ids_outside_the_pods_map_are_named_with_the_map_and_the_remedy() {
    let mut node = Node::start();
    let waits = "CreateContainerError";
    let cases = [
        ("user", waits, with_security(&json!({"runAsUser": 70000}))),
        ("group", waits, with_security(&json!({"runAsUser": 0, "runAsGroup": 70000}))),
        ("groups", waits, with_security(&json!({"supplementalGroups": [70000]}))),
        ("fs-group", waits, with_security(&json!({"fsGroup": 70000}))),
        ("own-user", waits, spec(&sleeper(&json!({"securityContext": {"runAsUser": 70000}})), &json!({}))),
    ];
    create(&node, &cases);
    golden("refusals-ids.txt", &describe(&node, &cases));
    assert_nothing_stays(&mut node, &[BUSYBOX]);
}

#[test]
fn what_a_pod_refers_to_and_is_not_there_is_named() {
    let mut node = Node::start();
    node.kubectl(&["create", "configmap", "there", "--from-literal=known=1"]).ok();
    node.kubectl(&["create", "secret", "generic", "there", "--from-literal=known=1"]).ok();
    let (config, creating) = ("CreateContainerConfigError", "ContainerCreating");
    let key = |name: &str| json!({"name": name, "key": "ghost"});
    let items = json!([{"key": "ghost", "path": "p"}]);
    let cases = [
        ("env-configmap", config, with_env(&json!({"configMapKeyRef": key("ghost")}))),
        ("env-configmap-key", config, with_env(&json!({"configMapKeyRef": key("there")}))),
        ("env-secret", config, with_env(&json!({"secretKeyRef": key("ghost")}))),
        ("env-secret-key", config, with_env(&json!({"secretKeyRef": key("there")}))),
        ("volume-configmap", creating, with_volume(&json!({"configMap": {"name": "ghost"}}))),
        (
            "volume-configmap-key",
            creating,
            with_volume(&json!({"configMap": {"name": "there", "items": items}})),
        ),
        ("volume-secret", creating, with_volume(&json!({"secret": {"secretName": "ghost"}}))),
        (
            "volume-secret-key",
            creating,
            with_volume(&json!({"secret": {"secretName": "there", "items": items}})),
        ),
        ("host-path", creating, with_volume(&json!({"hostPath": {"path": "/ghost", "type": "Directory"}}))),
    ];
    create(&node, &cases);
    let optional = |name: &str| json!({"name": name, "key": "ghost", "optional": true});
    let projected = json!({"projected": {"sources": [
        {"configMap": {"name": "there", "items": items, "optional": true}}, {"secret": {"name": "ghost", "optional": true}},
    ]}});
    let fine = [
        ("optional-env", "Running", with_env(&json!({"configMapKeyRef": optional("there")}))),
        ("optional-secret", "Running", with_env(&json!({"secretKeyRef": optional("ghost")}))),
        ("optional-volume", "Running", with_volume(&projected)),
    ];
    create(&node, &fine);
    node.ready(&fine.each_ref().map(|(name, ..)| *name));
    assert_eq!(node.exec("optional-env", &["sh", "-c", "echo ${A-unset}"]).ok(), "unset\n");
    assert_eq!(node.exec("optional-volume", &["ls", "/v"]).ok(), "");
    golden("refusals-references.txt", &describe(&node, &cases));
    // What was missing arrives: the Pods start without being made anew.
    node.kubectl(&["create", "configmap", "ghost", "--from-literal=ghost=1"]).ok();
    node.ready(&["env-configmap", "volume-configmap"]);
    assert_eq!(node.exec("env-configmap", &["sh", "-c", "echo $A"]).ok(), "1\n");
    assert_nothing_stays(&mut node, &[BUSYBOX]);
}

#[test]
fn a_command_that_cannot_run_is_named() {
    let mut node = Node::start();
    let crash = "CrashLoopBackOff";
    let cases = [
        ("no-file", crash, with_command(&["/bin/ghost"], "/")),
        ("not-in-path", crash, with_command(&["ghost"], "/")),
        ("no-program", crash, with_command(&["/etc/passwd"], "/")),
        ("a-directory", crash, with_command(&["/etc"], "/")),
        ("no-directory", crash, with_command(&["true"], "/etc/passwd")),
        ("not-root", "CreateContainerConfigError", with_security(&json!({"runAsNonRoot": true}))),
        (
            "sysctl",
            "SysctlForbidden",
            with_security(&json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]})),
        ),
        (
            "too-much",
            "Pending",
            spec(&sleeper(&json!({"resources": {"requests": {"cpu": "5000"}}})), &json!({})),
        ),
        ("nowhere", "Pending", spec(&sleeper(&json!({})), &json!({"nodeSelector": {"disk": "ssd"}}))),
    ];
    create(&node, &cases);
    golden("refusals-commands.txt", &describe(&node, &cases));
    assert_nothing_stays(&mut node, &[BUSYBOX]);
}

#[test]
fn images_that_cannot_be_had_or_are_hostile_are_named() {
    let mut node = Node::start();
    // Another registry's mirror has the hostile images; on port 5000 a registry sends what it has not promised.
    let mirror = node.root().join("hostile");
    let certs = node.root().join("etc/kakoi/certs.d/hostile.test");
    fs::create_dir_all(&certs).unwrap();
    fs::write(certs.join("hosts.toml"), format!("server = \"oci:{}\"\n", mirror.display())).unwrap();
    let layers = [
        ("climbs", Layer::new().file("app", b"").file("../../../../../../../../tmp/kakoi-escaped", b"x")),
        ("absolute", Layer::new().symlink("out", "/tmp").file("out/kakoi-escaped", b"x")),
        (
            "relative",
            Layer::new().symlink("out", "../../../../../../../../tmp").file("out/kakoi-escaped", b"x"),
        ),
    ];
    for (name, layer) in layers {
        Image::of(layer.finish()).write_layout(&mirror.join(name));
    }
    let wrong = Image::of(Layer::new().file("app", b"an app").finish()).with_a_wrong_layer();
    let _registry = Registry::start(node.daemon_pid(), wrong);
    let off = "ImagePullBackOff";
    let cases = [
        ("no-such-image", off, with_image("ghost:1")),
        ("no-such-tag", off, with_image("busybox:ghost")),
        ("bad-name", "InvalidImageName", with_image("Bad/Name:1")),
        (
            "never",
            "ErrImageNeverPull",
            spec(&sleeper(&json!({"image": "ghost", "imagePullPolicy": "Never"})), &json!({})),
        ),
        ("registry-down", off, with_image("127.0.0.1:5001/app")),
        ("wrong-digest", off, with_image("127.0.0.1:5000/app")),
        ("climbs", off, with_image("hostile.test/climbs")),
        ("absolute", off, with_image("hostile.test/absolute")),
        ("relative", off, with_image("hostile.test/relative")),
    ];
    create(&node, &cases);
    let mut text = describe(&node, &cases);
    for image in ["ghost:1", "Bad/Name:1", "127.0.0.1:5000/app", "hostile.test/climbs"] {
        writeln!(text, "# kakoi image pull {image}").unwrap();
        text.push_str(&said(&node, &node.kakoi(&["image", "pull", image])));
    }
    golden("refusals-images.txt", &text);
    assert!(!Path::new("/tmp/kakoi-escaped").exists());
    assert_nothing_stays(&mut node, &[]);
}

#[test]
fn what_the_api_refuses_leaves_the_rest_of_a_file_alone() {
    let mut node = Node::start();
    let pod = |name: &str, fields: &Value| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec(&sleeper(&json!({})), fields)}).to_string()
    };
    let good = pod("good", &json!({}));
    let raw = json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/x"}]});
    let claim = json!({"containers": [sleeper(&raw)], "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "v"}}]});
    let files = [
        (
            "broken YAML after a good Pod",
            format!("{good}\n---\napiVersion: v1\nkind: Pod\n  metadata: {{}}\n"),
        ),
        (
            "an unknown field beside a good Pod",
            format!("{}\n---\n{good}", pod("bad", &json!({"hostUser": false}))),
        ),
        (
            "a wrong type beside a good Pod",
            format!("{}\n---\n{good}", pod("bad", &json!({"hostUsers": "no"}))),
        ),
        (
            "everything of the node's",
            pod("bad", &json!({"hostPID": true, "hostIPC": true, "hostNetwork": true})),
        ),
        ("a raw device", pod("bad", &claim)),
    ];
    let mut text = String::new();
    for (title, file) in files {
        writeln!(text, "# {title}").unwrap();
        // What begins with a brace would be read as JSON alone.
        text.push_str(&said(&node, &node.kubectl_with(&["apply", "-f", "-"], &format!("---\n{file}"))));
    }
    for validation in ["warn", "ignore"] {
        writeln!(text, "# an unknown field, --validate={validation}").unwrap();
        let arguments = ["apply", "-f", "-", &format!("--validate={validation}")];
        let file = pod("warned", &json!({"hostUser": false}));
        text.push_str(&said(&node, &node.kubectl_with(&arguments, &file)));
    }
    golden("refusals-api.txt", &text);
    let names = node.kubectl(&["get", "pods", "-o", "name"]).ok();
    assert_eq!(names, "pod/good\npod/warned\n", "nothing of the refused ones is there");
    assert_nothing_stays(&mut node, &[BUSYBOX]);
}
