//! Sessions that people have with Pods every day: logs, exec, copies, forwarded ports, restarts, deletions.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

mod golden;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use golden::{golden, normalise};
use serde_json::{Value, json};
use tests::{Kept, Node, SharedNode};

static NODE: SharedNode = SharedNode::new(Node::start);

fn node() -> Arc<Kept> {
    NODE.get()
}

const PATIENCE: Duration = Duration::from_mins(1);

/// A Pod in a user namespace with one container of `busybox` that runs a shell line.
fn pod(name: &str, line: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "hostUsers": false, "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", line]}],
    }})
}

/// The same with fields of its own, by JSON pointer.
fn with(mut pod: Value, fields: &[(&str, Value)]) -> Value {
    for (pointer, value) in fields {
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        pod.pointer_mut(parent).unwrap().as_object_mut().unwrap().insert(name.to_owned(), value.clone());
    }
    pod
}

const CONTAINER: &str = "/spec/containers/0";

/// Creates a Pod and waits until it is Ready.
fn run(node: &Node, pod: &Value) {
    create(node, pod);
    node.ready(&[pod["metadata"]["name"].as_str().unwrap()]);
}

fn create(node: &Node, pod: &Value) {
    node.kubectl_with(&["create", "-f", "-"], &pod.to_string()).ok();
}

/// A `kubectl` that goes on; killed at the end.
struct Session(Child);

impl Session {
    fn start(node: &Node, arguments: &[&str]) -> Self {
        let mut command = node.inside(Path::new("kubectl"));
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// The next line of its output.
    fn line(&mut self) -> String {
        let mut bytes = Vec::new();
        let mut byte = [0];
        let output = self.0.stdout.as_mut().unwrap();
        while std::io::Read::read(output, &mut byte).unwrap() == 1 && byte != *b"\n" {
            bytes.extend(byte);
        }
        String::from_utf8(bytes).unwrap()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn g21_logs_are_followed_to_the_containers_end() {
    let node = node();
    let pod = pod("followed", "echo one; until test -e /go; do sleep 0.05; done; echo two; echo three >&2");
    run(&node, &with(pod, &[("/spec/restartPolicy", json!("Never"))]));
    let mut session = Session::start(&node, &["logs", "-f", "followed"]);
    assert_eq!(session.line(), "one");
    node.exec("followed", &["touch", "/go"]).ok();
    let rest: Vec<String> =
        BufReader::new(session.0.stdout.take().unwrap()).lines().map(Result::unwrap).collect();
    assert!(rest == ["two", "three"] || rest == ["three", "two"], "{rest:?}");
    assert!(session.0.wait().unwrap().success());
    assert_eq!(node.kubectl(&["logs", "followed", "--tail=1"]).ok().lines().count(), 1);
    let stamped = node.kubectl(&["logs", "followed", "--timestamps"]).ok();
    let (stamp, text) = stamped.lines().next().unwrap().split_once(' ').unwrap();
    assert!(stamp.ends_with('Z') && stamp.contains('T') && text == "one", "{stamped}");
    assert_eq!(node.kubectl(&["logs", "followed", "--limit-bytes=2"]).ok(), "on");
}

#[test]
fn logs_of_the_container_before_are_kept() {
    let node = node();
    create(&node, &pod("previous", "echo run; exit 3"));
    node.until("a second start", PATIENCE, |node| {
        let status = node.get("pod/previous")["status"]["containerStatuses"][0].take();
        status["restartCount"].as_u64() >= Some(1)
    });
    assert_eq!(node.kubectl(&["logs", "previous", "--previous"]).ok(), "run\n");
    let last = node.get("pod/previous")["status"]["containerStatuses"][0]["lastState"]["terminated"].take();
    assert_eq!((last["exitCode"].as_i64(), last["reason"].as_str()), (Some(3), Some("Error")));
    run(&node, &pod("first", "echo run; sleep infinity"));
    let refused = node.kubectl(&["logs", "first", "--previous"]).refused();
    assert!(refused.contains("previous terminated container \"c\" in pod \"first\" not found"), "{refused}");
    let refused = node.kubectl(&["logs", "first", "-c", "ghost"]).refused();
    assert!(refused.contains("container ghost is not valid for pod first"), "{refused}");
}

#[test]
fn files_are_copied_to_and_from_a_pod() {
    let node = node();
    run(&node, &pod("copies", "sleep infinity"));
    let dir = node.root().join("copies");
    fs::create_dir_all(dir.join("tree/sub")).unwrap();
    let bytes: Vec<u8> =
        (0..1_500_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(dir.join("tree/sub/large"), &bytes).unwrap();
    fs::write(dir.join("tree/small"), "small\n").unwrap();
    let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
    node.kubectl(&["cp", &path("tree"), "copies:/tmp/tree"]).ok();
    assert_eq!(node.exec("copies", &["stat", "-c", "%u:%g", "/tmp/tree/small"]).ok(), "0:0\n");
    node.kubectl(&["cp", "copies:/tmp/tree", &path("back")]).ok();
    assert!(fs::read(dir.join("back/sub/large")).unwrap() == bytes, "what comes back is what went");
    assert_eq!(fs::read_to_string(dir.join("back/small")).unwrap(), "small\n");
}

#[test]
fn commands_in_a_pod_end_with_their_code_and_take_a_mebibyte() {
    let node = node();
    run(&node, &pod("commands", "sleep infinity"));
    for (line, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)] {
        assert_eq!(node.exec("commands", &["sh", "-c", line]).code, code, "{line}");
    }
    let refused = node.exec("commands", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!(
        (refused.stdout.as_str(), refused.stderr.as_str()),
        ("out\n", "err\ncommand terminated with exit code 7\n")
    );
    let refused = node.exec("commands", &["ghost"]).refused();
    assert!(refused.contains("executable file not found in $PATH"), "{refused}");
    let file = node.root().join("mebibyte");
    let line = format!(
        "head -c 1048576 /dev/urandom > {0}; kubectl exec -i commands -- cat < {0} | cmp - {0} && echo same",
        file.display()
    );
    assert_eq!(node.shell(&line).ok(), "same\n");
    let counted = node.kubectl_with(&["exec", "-i", "commands", "--", "wc", "-c"], "four");
    assert_eq!(counted.ok().trim(), "4", "the end of the input arrives");
}

#[test]
fn attach_reaches_the_containers_own_input_and_output() {
    let node = node();
    let reader = pod("attached", "echo ready; while read line; do echo \"got $line\"; done; echo end");
    let fields = [
        (&*format!("{CONTAINER}/stdin"), json!(true)),
        (&*format!("{CONTAINER}/stdinOnce"), json!(true)),
        ("/spec/restartPolicy", json!("Never")),
    ];
    run(&node, &with(reader, &fields));
    let ran = node.kubectl_with(&["attach", "-i", "attached"], "one\ntwo\n").ok();
    assert!(ran.contains("got one\ngot two\n"), "{ran}");
    node.wait_for("pod/attached", ".status.phase", "Succeeded");
    assert_eq!(node.kubectl(&["logs", "attached"]).ok(), "ready\ngot one\ngot two\nend\n");
}

/// A Pod that serves `text` at `/file`.
fn server(name: &str, text: &str) -> Value {
    pod(name, &format!("mkdir /www; echo {text} > /www/file; exec httpd -f -p 8080 -h /www"))
}

/// What an HTTP server answers.
fn fetch(node: &Node, address: &str, port: &str) -> String {
    let line = format!(
        "exec 3<>/dev/tcp/{address}/{port} && printf 'GET /file HTTP/1.0\\r\\n\\r\\n' >&3 && tail -n 1 <&3"
    );
    node.shell(&line).stdout
}

#[test]
fn g21_a_forwarded_port_serves_several_connections() {
    let node = node();
    run(&node, &server("forwarded", "through"));
    let mut session = Session::start(&node, &["port-forward", "pod/forwarded", ":8080"]);
    let line = session.line();
    let (_, port) = line.split_once("127.0.0.1:").unwrap();
    let port = port.split_whitespace().next().unwrap();
    for _ in 0..3 {
        assert_eq!(fetch(&node, "127.0.0.1", port), "through\n", "{line}");
    }
}

#[test]
fn a_host_port_is_reached_at_the_nodes_address() {
    let node = node();
    let ports = json!([{"containerPort": 8080, "hostPort": 18080}]);
    run(&node, &with(server("host-port", "port"), &[(&format!("{CONTAINER}/ports"), ports)]));
    assert_eq!(fetch(&node, "192.0.2.10", "18080"), "port\n");
    let address = node.get("pod/host-port")["status"]["podIP"].as_str().unwrap().to_owned();
    assert_eq!(fetch(&node, &address, "8080"), "port\n");
    node.kubectl(&["delete", "pod", "host-port"]).ok();
    assert_eq!(fetch(&node, "192.0.2.10", "18080"), "", "nobody answers any more");
}

#[test]
fn a_pod_reaches_the_api_with_its_token() {
    let node = node();
    run(&node, &pod("client", "sleep infinity"));
    let mounted = "/var/run/secrets/kubernetes.io/serviceaccount";
    let env =
        node.exec("client", &["sh", "-c", "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT"]).ok();
    assert_eq!(env, "10.96.0.1:443\n");
    let dir = node.root().join("client");
    fs::create_dir_all(&dir).unwrap();
    for file in ["token", "ca.crt", "namespace"] {
        let text = node.exec("client", &["cat", &format!("{mounted}/{file}")]).ok();
        fs::write(dir.join(file), text).unwrap();
    }
    assert_eq!(fs::read_to_string(dir.join("namespace")).unwrap(), "default");
    // The images have no TLS client: the node's kubectl speaks from the Pod's network namespace.
    let ask = |path: &str| {
        node.shell(&format!(
            "nsenter -t {} -n kubectl --kubeconfig /dev/null --server https://{} --certificate-authority {2}/ca.crt \
             --token $(cat {2}/token) get --raw {path}",
            node.main_pid("client"),
            env.trim(),
            dir.display()
        ))
    };
    assert!(ask("/api").ok().contains("\"APIVersions\""));
    let refused = ask("/api/v1/namespaces/default/pods").refused();
    assert!(
        refused.contains("User \"system:serviceaccount:default:default\" cannot list resource \"pods\""),
        "{refused}"
    );
}

#[test]
fn the_environment_tells_of_the_pod_and_a_changed_configmap_reaches_the_volume() {
    let node = node();
    node.kubectl(&["create", "configmap", "changing", "--from-literal=colour=red"]).ok();
    let from = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let env = json!([
        {"name": "NAME", "valueFrom": from("metadata.name")}, {"name": "NODE", "valueFrom": from("spec.nodeName")},
        {"name": "IP", "valueFrom": from("status.podIP")}, {"name": "LABEL", "valueFrom": from("metadata.labels['app']")},
        {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
        {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "changing", "key": "colour"}}},
        {"name": "JOINED", "value": "$(NAME)-$(COLOUR)-$$(NAME)"},
    ]);
    let volumes = json!([{"name": "v", "projected": {"sources": [
        {"configMap": {"name": "changing"}}, {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
    ]}}]);
    let fields = [
        ("/metadata/labels", json!({"app": "told"})),
        (&*format!("{CONTAINER}/env"), env),
        (&*format!("{CONTAINER}/resources"), json!({"limits": {"memory": "64Mi"}})),
        (&*format!("{CONTAINER}/volumeMounts"), json!([{"name": "v", "mountPath": "/v"}])),
        ("/spec/volumes", volumes),
    ];
    run(&node, &with(pod("told", "sleep infinity"), &fields));
    let said = node.exec("told", &["sh", "-c", "echo $NAME $NODE $LABEL $MEMORY $JOINED $IP"]).ok();
    let address = node.get("pod/told")["status"]["podIP"].as_str().unwrap().to_owned();
    assert_eq!(said, format!("told node told 64 told-red-$(NAME) {address}\n"));
    node.kubectl(&["patch", "configmap", "changing", "-p", r#"{"data":{"colour":"blue"}}"#]).ok();
    node.kubectl(&["label", "pod", "told", "app=changed", "--overwrite"]).ok();
    node.until("the changes in the volume", PATIENCE, |node| {
        node.exec("told", &["cat", "/v/colour", "/v/labels"]).stdout == "blueapp=\"changed\""
    });
    assert_eq!(
        node.exec("told", &["sh", "-c", "echo $COLOUR"]).ok(),
        "red\n",
        "a process keeps its environment"
    );
}

#[test]
fn deletion_waits_for_the_grace_period_and_no_longer() {
    let node = node();
    let stubborn = |name: &str| {
        with(
            pod(name, "trap '' TERM; sleep infinity & wait; wait"),
            &[("/spec/terminationGracePeriodSeconds", json!(30))],
        )
    };
    for name in ["patient", "hurried"] {
        run(&node, &stubborn(name));
    }
    let began = Instant::now();
    node.kubectl(&["delete", "pod", "patient", "--grace-period=2"]).ok();
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(20), "{took:?}");
    let forced = node.kubectl(&["delete", "pod", "hurried", "--grace-period=0", "--force"]);
    assert!(forced.stderr.contains("Immediate deletion does not wait"), "{}", forced.stderr);
    forced.ok();
    node.until("the forced Pod's directory to go", PATIENCE, |node| {
        let names = node.shell(&format!("ls {}/var/log/pods", node.root().display())).stdout;
        !names.contains("_hurried_")
    });
}

#[test]
fn init_containers_run_one_after_the_other_before_the_others() {
    let node = node();
    let mount = json!([{"name": "v", "mountPath": "/v"}]);
    let step = |name: &str, line: &str| {
        json!({"name": name, "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", line], "volumeMounts": mount})
    };
    let steps = json!([
        step("one", "until test -e /v/go; do sleep 0.05; done; echo one >> /v/order"),
        step("two", "echo two >> /v/order"),
    ]);
    let fields = [
        ("/spec/initContainers", steps),
        ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}])),
        (&*format!("{CONTAINER}/volumeMounts"), mount.clone()),
    ];
    create(&node, &with(pod("steps", "echo main >> /v/order; cat /v/order; sleep infinity"), &fields));
    node.until("the first step to run", PATIENCE, |node| {
        node.kubectl(&["exec", "steps", "-c", "one", "--", "true"]).code == 0
    });
    let row = node.kubectl(&["get", "pod", "steps", "--no-headers"]).ok();
    assert_eq!(row.split_whitespace().skip(1).take(2).collect::<Vec<_>>(), ["0/1", "Init:0/2"], "{row}");
    node.kubectl(&["exec", "steps", "-c", "one", "--", "touch", "/v/go"]).ok();
    node.ready(&["steps"]);
    assert_eq!(node.kubectl(&["logs", "steps"]).ok(), "one\ntwo\nmain\n");
    let failing =
        json!([{"name": "one", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["false"]}]);
    let fields = [("/spec/initContainers", failing), ("/spec/restartPolicy", json!("Never"))];
    create(&node, &with(pod("stuck", "echo never"), &fields));
    node.wait_for("pod/stuck", ".status.phase", "Failed");
    let row = node.kubectl(&["get", "pod", "stuck", "--no-headers"]).ok();
    assert_eq!(row.split_whitespace().nth(2), Some("Init:Error"), "{row}");
}

#[test]
fn restart_policies_lead_to_their_phases() {
    let node = node();
    let volume = [
        ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}])),
        (&*format!("{CONTAINER}/volumeMounts"), json!([{"name": "v", "mountPath": "/v"}])),
    ];
    let policy = |policy: &str| ("/spec/restartPolicy", json!(policy));
    create(&node, &with(pod("never-good", "exit 0"), &[policy("Never")]));
    create(&node, &with(pod("never-bad", "exit 3"), &[policy("Never")]));
    let twice = with(pod("on-failure", "test -e /v/seen && exit 0; touch /v/seen; exit 3"), &volume);
    create(&node, &with(twice, &[policy("OnFailure")]));
    for (name, phase, shown, restarts) in [
        ("never-good", "Succeeded", "Completed", 0),
        ("never-bad", "Failed", "Error", 0),
        ("on-failure", "Succeeded", "Completed", 1),
    ] {
        node.wait_for(&format!("pod/{name}"), ".status.phase", phase);
        let row = node.kubectl(&["get", "pod", name, "--no-headers"]).ok();
        assert_eq!(row.split_whitespace().nth(2), Some(shown), "{row}");
        let status = node.get(&format!("pod/{name}"))["status"]["containerStatuses"][0].take();
        assert_eq!(status["restartCount"].as_u64(), Some(restarts), "{name}");
    }
}

#[test]
fn memory_has_an_end_in_volumes_and_in_containers() {
    let node = node();
    let fields = [
        ("/spec/volumes", json!([{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}])),
        (&*format!("{CONTAINER}/volumeMounts"), json!([{"name": "v", "mountPath": "/v"}])),
    ];
    run(&node, &with(pod("memory", "sleep infinity"), &fields));
    let mounts = node.exec("memory", &["cat", "/proc/self/mounts"]).ok();
    assert!(mounts.lines().any(|line| line.starts_with("tmpfs /v tmpfs")), "{mounts}");
    let full = node.exec("memory", &["dd", "if=/dev/zero", "of=/v/f", "bs=64k"]);
    assert!(full.stderr.contains("No space left on device"), "{}", full.stderr);
    assert_eq!(node.exec("memory", &["stat", "-c", "%s", "/v/f"]).ok(), "1048576\n");
    let fields = [
        ("/spec/restartPolicy", json!("Never")),
        (&*format!("{CONTAINER}/resources"), json!({"limits": {"memory": "16Mi"}})),
    ];
    create(&node, &with(pod("hungry", "exec tail /dev/zero"), &fields));
    node.wait_for("pod/hungry", ".status.phase", "Failed");
    let end = node.get("pod/hungry")["status"]["containerStatuses"][0]["state"]["terminated"].take();
    assert_eq!((end["reason"].as_str(), end["exitCode"].as_i64()), (Some("OOMKilled"), Some(137)));
    let row = node.kubectl(&["get", "pod", "hungry", "--no-headers"]).ok();
    assert_eq!(row.split_whitespace().nth(2), Some("OOMKilled"), "{row}");
}

/// A description without what no two runs share: columns are joined, ages and dates have a name.
fn described(text: &str, names: &[(&str, &str)]) -> String {
    let line = |line: &str| {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line.split_whitespace().collect();
        let joined = words.join(" ");
        let dated = words.iter().position(|word| word.ends_with(',') && word.len() == 4);
        let joined = match dated.filter(|_| joined.ends_with("+0000")) {
            Some(day) => format!("{} DATE", words[..day].join(" ")),
            None => joined,
        };
        format!("{}{joined}\n", &line[..indent])
    };
    normalise(&text.lines().map(line).collect::<String>(), names)
}

#[test]
fn a_pods_description_tells_all_of_it() {
    let node = node();
    let fields = [
        ("/metadata/labels", json!({"app": "described"})),
        (&*format!("{CONTAINER}/ports"), json!([{"containerPort": 80, "name": "web"}])),
        (&*format!("{CONTAINER}/env"), json!([{"name": "A", "value": "1"}])),
        (
            &*format!("{CONTAINER}/resources"),
            json!({"limits": {"memory": "32Mi"}, "requests": {"cpu": "10m"}}),
        ),
        ("/spec/volumes", json!([{"name": "v", "emptyDir": {}}])),
        (&*format!("{CONTAINER}/volumeMounts"), json!([{"name": "v", "mountPath": "/v", "readOnly": true}])),
        ("/spec/tolerations", json!([{"key": "a", "operator": "Exists"}])),
    ];
    run(&node, &with(pod("described", "sleep infinity"), &fields));
    let events = || {
        node.kubectl(&["get", "events", "--field-selector", "involvedObject.name=described", "-o", "name"])
            .ok()
    };
    node.until("the events of the start", PATIENCE, |_| events().lines().count() >= 5);
    let text = node.kubectl(&["describe", "pod", "described"]).ok();
    let token = text.split_whitespace().find(|word| word.starts_with("kube-api-access-")).unwrap();
    golden("describe-pod.txt", &described(&text, &[(token, "kube-api-access-NAME")]));
    let row = node
        .kubectl(&[
            "get",
            "events",
            "--field-selector",
            "reason=Started,involvedObject.name=described",
            "--no-headers",
        ])
        .ok();
    assert_eq!(
        row.split_whitespace().skip(1).collect::<Vec<_>>().join(" "),
        "Normal Started pod/described Started container c"
    );
}

#[test]
fn a_nodes_description_tells_all_of_it() {
    let node = node();
    run(&node, &pod("counted", "sleep infinity"));
    let text = described(&node.kubectl(&["describe", "node", "node"]).ok(), &[]);
    for line in [
        "Roles: control-plane",
        "Taints: <none>",
        "Unschedulable: false",
        "  InternalIP: 192.0.2.10",
        "  Hostname: node",
        "  pods: 110",
        "  Operating System: linux",
        "Non-terminated Pods: (",
        "Allocated resources:",
    ] {
        assert!(text.contains(line), "{line} is missing in:\n{text}");
    }
    for reason in
        ["KubeletHasSufficientMemory", "KubeletHasNoDiskPressure", "KubeletHasSufficientPID", "KubeletReady"]
    {
        assert!(text.contains(reason), "{reason} is missing in:\n{text}");
    }
    for (field, value) in
        [("Kubelet Version:", "v1.36."), ("Container Runtime Version:", "kakoi://"), ("PodCIDR:", "/24")]
    {
        let line = text.lines().find(|line| line.trim_start().starts_with(field)).unwrap();
        assert!(line.contains(value), "{line}");
    }
    let listed = text.lines().find(|line| line.trim_start().starts_with("default counted ")).unwrap();
    assert!(listed.contains("0 (0%) 0 (0%) 0 (0%) 0 (0%)"), "{listed}");
}

/// Progress goes to standard error (no terminal here: a line for each layer), the ID to standard output; the daemon and
/// the store on its own say the same.
#[test]
fn images_are_pulled_with_progress_pinned_and_removed_with_the_daemon_and_without() {
    let mut node = Node::start();
    for is_up in [true, false] {
        if !is_up {
            node.down().ok();
        }
        let pulled = node.kakoi(&["image", "pull", "busybox"]);
        assert!(pulled.stderr.starts_with("busybox: 1 of 1 layers, "), "{pulled:?}");
        let again = node.kakoi(&["image", "pull", "busybox"]);
        assert_eq!(again.stderr, "", "nothing had to be fetched");
        let id = again.ok();
        assert!(id.starts_with("sha256:") && id == pulled.ok());
        node.kakoi(&["image", "pin", "busybox"]).ok();
        assert!(node.kakoi(&["image", "list"]).ok().lines().nth(1).unwrap().ends_with(" MB  pinned"));
        node.kakoi(&["image", "unpin", id.trim()]).ok();
        let listed: Value = serde_json::from_str(&node.kakoi(&["image", "list", "-o", "json"]).ok()).unwrap();
        assert_eq!((&listed[0]["pinned"], listed.as_array().unwrap().len()), (&json!(false), 1));
        node.kakoi(&["image", "remove", "busybox"]).ok();
        for verb in ["remove", "pin"] {
            let refused = node.kakoi(&["image", verb, "busybox"]).refused();
            assert!(refused.contains("no image `busybox`"), "{refused}");
        }
    }
}
