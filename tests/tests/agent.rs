//! `kakoi kubelet` as a program: a node agent alone, joined to an API server by a kubeconfig, over a runtime that is a
//! process of its own.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::{Agent, Containerd, Node, NodeOptions, WORKER, admit_worker, processes_on};

/// A Pod for the worker that counts its runs in its log and then sleeps.
fn pod(name: &str, fields: Value) -> String {
    let line = "echo begun; exec sleep infinity";
    let mut spec = json!({
        "hostUsers": false, "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false,
        "nodeSelector": {"kubernetes.io/hostname": WORKER},
        "containers": [{"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", line]}],
    });
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    spec.as_object_mut().unwrap().extend(fields);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// A node whose API server knows the worker.
fn cluster() -> Node {
    let mut node = Node::prepare(NodeOptions::default());
    admit_worker(&node);
    node.up();
    node
}

/// What must stay as it is when processes around a Pod come and go: its container, its map, that it never began anew.
fn identity(node: &Node, pod: &str) -> (String, String, String) {
    let status = node.get(&format!("pod/{pod}"))["status"]["containerStatuses"][0].clone();
    let map = node.exec(pod, &["cat", "/proc/self/uid_map"]).ok();
    (status["containerID"].to_string(), map, node.kubectl(&["logs", pod]).ok())
}

#[test]
fn a_node_agent_alone_joins_and_its_pods_outlive_it_and_their_runtime() {
    let node = cluster();
    let mut agent = Agent::new(&node);
    // The kubelet first: it waits for the runtime.
    agent.start_kubelet();
    agent.start_runtime();
    agent.ready();
    let version = &node.get(&format!("node/{WORKER}"))["status"]["nodeInfo"]["containerRuntimeVersion"];
    assert!(version.as_str().unwrap().starts_with("kakoi://"), "{version}");

    node.apply(&pod("joined", json!({})));
    node.ready(&["joined"]);
    assert_eq!(node.get("pod/joined")["spec"]["nodeName"], WORKER, "the scheduler sends it there");
    let before = identity(&node, "joined");
    let uid = node.uid("joined");
    let record = agent.root().join("var/lib/kubelet/pods").join(&uid).join("userns");
    let record = fs::read_to_string(record).unwrap();
    let first = before.1.split_whitespace().nth(1).unwrap();
    assert!(record.contains(&format!("\"hostId\":{first},")), "{record} {first}");
    assert_eq!(before.2, "begun\n");

    // The kubelet dies: the Pod lives; what is asked meanwhile is done when it is back.
    agent.kill_kubelet();
    node.apply(&pod("later", json!({})));
    agent.start_kubelet();
    node.ready(&["later"]);
    assert_eq!(identity(&node, "joined"), before);

    // The runtime dies under it: nothing ends, and containers that end afterwards are seen to.
    agent.kill_runtime();
    agent.start_runtime();
    node.until("the runtime to be back", Duration::from_secs(30), |node| {
        node.exec("joined", &["true"]).code == 0
    });
    assert_eq!(identity(&node, "joined"), before);
    node.apply(&pod("last", json!({})));
    node.ready(&["last"]);
    node.kubectl(&["delete", "pod", "joined", "later", "last", "--timeout=60s"]).ok();
    let pods = agent.root().join("var/lib/kubelet/pods");
    node.until("the Pods' directories to go", Duration::from_secs(30), |_| {
        fs::read_dir(&pods).unwrap().next().is_none()
    });
}

/// The processes of a Pod of the worker, by its record.
fn processes(agent: &Agent<'_>, uid: &str) -> BTreeSet<u32> {
    let record = agent.root().join("var/lib/kubelet/pods").join(uid).join("userns");
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap_or_default()).unwrap_or_default();
    let first = record["uidMappings"][0]["hostId"].as_u64().unwrap_or_default();
    if first == 0 { BTreeSet::new() } else { processes_on(&(first..first + 65_536)) }
}

/// Asks the worker's own server as the cluster's administrator, who needs no API server for it.
fn ask(node: &Node, agent: &Agent<'_>, path: &str) -> String {
    let line = format!(
        "cd {root} && openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout admin.key \
         -subj /O=system:masters/CN=admin -out admin.csr && openssl x509 -req -in admin.csr -CA {pki}/ca.crt \
         -CAkey {pki}/ca.key -CAcreateserial -days 2 -out admin.crt -extfile <(echo extendedKeyUsage=clientAuth) && \
         curl -s --fail-with-body --cacert {pki}/ca.crt --cert admin.crt --key admin.key https://192.0.2.10:10250{path}",
        root = agent.root().display(),
        pki = node.root().join("var/lib/kakoi/pki").display(),
    );
    node.shell(&line).ok()
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

fn end_all(pids: &BTreeSet<u32>) {
    for pid in pids {
        signal(*pid, Signal::KILL);
    }
}

/// A process that takes connections and does nothing, until this is dropped.
struct Frozen(u32);

impl Frozen {
    fn new(pid: u32) -> Self {
        signal(pid, Signal::STOP);
        Self(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal(self.0, Signal::CONT);
    }
}

#[test]
fn while_the_api_server_and_the_runtime_are_away_pods_live_on_and_all_is_told_afterwards() {
    let node = cluster();
    let mut agent = Agent::new(&node);
    agent.start_runtime();
    agent.start_kubelet();
    agent.ready();
    node.apply(&pod("joined", json!({})));
    node.ready(&["joined"]);
    let uid = node.uid("joined");
    let first = processes(&agent, &uid);
    let again = |agent: &Agent<'_>, before: &BTreeSet<u32>| {
        node.until("a new process", Duration::from_mins(1), |_| {
            let now = processes(agent, &uid);
            !now.is_empty() && now.is_disjoint(before)
        });
        processes(agent, &uid)
    };

    // The API server takes connections and answers nothing.
    let frozen = Frozen::new(node.daemon_pid());
    end_all(&first);
    let second = again(&agent, &first);
    assert_eq!(ask(&node, &agent, "/containerLogs/default/joined/c"), "begun\n");
    assert!(ask(&node, &agent, "/pods").contains("joined"));
    fs::create_dir_all(agent.root().join("manifests")).unwrap();
    fs::write(agent.root().join("manifests/by-file.json"), pod("by-file", json!({}))).unwrap();
    let known: BTreeSet<String> = directories(&agent);
    node.until("the static Pod", Duration::from_mins(1), |_| {
        directories(&agent).difference(&known).any(|uid| !processes(&agent, uid).is_empty())
    });

    // The runtime dies as well, and what ends meanwhile is seen when it is back.
    agent.kill_runtime();
    end_all(&second);
    agent.start_runtime();
    let third = again(&agent, &second);

    // A kubelet that starts now ends nothing of what it finds.
    agent.kill_kubelet();
    agent.start_kubelet();
    node.until("the kubelet to serve", Duration::from_secs(30), |node| {
        node.shell("curl -sk https://192.0.2.10:10250/healthz").stdout == "ok"
    });
    assert_eq!(processes(&agent, &uid), third);
    drop(frozen);
    node.wait_for("pod/joined", ".status.containerStatuses[0].restartCount", "2");
    node.wait_for(&format!("pod/by-file-{WORKER}"), ".status.phase", "Running");
    assert_eq!(processes(&agent, &uid), third);
    node.kubectl(&["delete", "pod", "joined", "--timeout=60s"]).ok();
}

/// The UIDs of the Pods that the worker has directories of.
fn directories(agent: &Agent<'_>) -> BTreeSet<String> {
    let entries = fs::read_dir(agent.root().join("var/lib/kubelet/pods")).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// A Pod with a volume, a probe and a hook that never asks for a user namespace.
fn plain(name: &str) -> String {
    let sh = |line: &str| json!({"exec": {"command": ["sh", "-c", line]}});
    let mut readiness = sh("test -f /data/hooked");
    readiness["periodSeconds"] = json!(1);
    let container = json!({
        "name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", "cat /settings/colour; echo; until [ -f /data/end ]; do sleep 0.2; done; exit 3"],
        "lifecycle": {"postStart": sh("touch /data/hooked")}, "readinessProbe": readiness,
        "resources": {"limits": {"memory": "64Mi"}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "settings", "mountPath": "/settings"}],
    });
    let fields = json!({"hostUsers": true, "containers": [container], "volumes": [
        {"name": "data", "emptyDir": {}}, {"name": "settings", "configMap": {"name": "settings"}}]});
    pod(name, fields)
}

#[test]
fn plain_pods_run_over_debians_containerd_and_a_user_namespace_is_refused_by_name() {
    let node = cluster();
    let mut containerd = Containerd::start(&node);
    let mut agent = Agent::over(&node, &containerd.endpoint());
    agent.start_kubelet();
    agent.ready();
    let version = &node.get(&format!("node/{WORKER}"))["status"]["nodeInfo"]["containerRuntimeVersion"];
    assert!(version.as_str().unwrap().starts_with("containerd://"), "{version}");

    node.kubectl(&["create", "configmap", "settings", "--from-literal=colour=red"]).ok();
    node.apply(&plain("plain"));
    node.ready(&["plain"]);
    assert_eq!(node.kubectl(&["logs", "plain"]).ok(), "red\n");
    assert_eq!(
        node.exec("plain", &["sh", "-c", "id -u; cat /settings/colour; hostname"]).ok(),
        "0\nredplain\n"
    );
    let before = node.get("pod/plain")["status"]["containerStatuses"][0]["containerID"].clone();
    assert!(before.as_str().unwrap().starts_with("containerd://"), "{before}");

    // Both die in turn; the Pod knows of nothing.
    agent.kill_kubelet();
    containerd.restart();
    agent.start_kubelet();
    node.until("exec over both", Duration::from_secs(30), |node| node.exec("plain", &["true"]).code == 0);
    assert_eq!(node.get("pod/plain")["status"]["containerStatuses"][0]["containerID"], before);

    // A container that ends is started again, and its first run's log is there.
    node.exec("plain", &["sh", "-c", "touch /data/end"]).ok();
    node.wait_for("pod/plain", ".status.containerStatuses[0].lastState.terminated.exitCode", "3");
    assert_eq!(node.kubectl(&["logs", "plain", "--previous"]).ok(), "red\n");

    node.apply(&pod("mapped", json!({"nodeName": WORKER})));
    if Containerd::is_newer() {
        runs_mapped(&node, &agent, "mapped");
    } else {
        // Debian's containerd makes no user namespaces: the kubelet says so and starts nothing.
        node.until("the refusal", Duration::from_secs(30), |node| {
            let events = node.kubectl(&["events", "--for", "pod/mapped"]).stdout;
            events.contains("FailedCreatePodSandBox") && events.contains("hostUsers")
        });
    }
    node.kubectl(&["delete", "pod", "plain", "mapped", "--timeout=90s"]).ok();
    let pods = agent.root().join("var/lib/kubelet/pods");
    node.until("the Pods' directories to go", Duration::from_secs(30), |_| {
        fs::read_dir(&pods).unwrap().next().is_none()
    });
}

/// The Pod runs on the host IDs of its record, and only on them; a container that ends is started again on the same.
fn runs_mapped(node: &Node, agent: &Agent<'_>, name: &str) {
    node.ready(&[name]);
    let uid = node.uid(name);
    let before = processes(agent, &uid);
    assert!(!before.is_empty(), "its process runs on its record's IDs");
    let map = node.exec(name, &["cat", "/proc/self/uid_map"]).ok();
    let numbers: Vec<u64> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!((numbers[0], numbers[2], numbers.len()), (0, 65_536, 3), "{map}");
    assert_eq!(node.exec(name, &["id", "-u"]).ok(), "0\n");
    end_all(&before);
    node.wait_for(&format!("pod/{name}"), ".status.containerStatuses[0].restartCount", "1");
    node.ready(&[name]);
    assert_eq!(node.exec(name, &["cat", "/proc/self/uid_map"]).ok(), map);
}

/// How long the cluster's signer makes certificates good in the next test.
const LIFE: &str = "25s";

/// Lets whoever has this bootstrap token ask for the certificates of nodes, as `kubeadm` sets a cluster up.
fn admit_bootstrappers(node: &Node, id: &str, secret: &str) {
    let fields = [("token-id", id), ("token-secret", secret), ("usage-bootstrap-authentication", "true")];
    let literals: Vec<String> =
        fields.iter().map(|(name, text)| format!("--from-literal={name}={text}")).collect();
    let name = format!("bootstrap-token-{id}");
    let mut create = vec!["create", "secret", "generic", &name, "-n", "kube-system"];
    create.push("--type=bootstrap.kubernetes.io/token");
    create.extend(literals.iter().map(String::as_str));
    node.kubectl(&create).ok();
    let requests = "system:certificates.k8s.io:certificatesigningrequests";
    for (name, role, group) in [
        ("ask", "system:node-bootstrapper".to_owned(), "system:bootstrappers"),
        ("first", format!("{requests}:nodeclient"), "system:bootstrappers"),
        ("renewal", format!("{requests}:selfnodeclient"), "system:nodes"),
    ] {
        let (role, group) = (format!("--clusterrole={role}"), format!("--group={group}"));
        node.kubectl(&["create", "clusterrolebinding", name, &role, &group]).ok();
    }
}

/// The requests for certificates: their names and signers.
fn requests(node: &Node) -> Vec<(String, String)> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.spec.signerName}{\"\\n\"}{end}";
    let text = node.kubectl(&["get", "csr", "-o", path]).stdout;
    text.lines().filter_map(|line| line.split_once(' ')).map(|(a, b)| (a.to_owned(), b.to_owned())).collect()
}

/// Approves the serving certificates that wait, as a person does.
fn approve_serving(node: &Node) {
    let all = requests(node).into_iter();
    for (name, _) in all.filter(|(_, signer)| signer == "kubernetes.io/kubelet-serving") {
        node.kubectl(&["certificate", "approve", &name]).ok();
    }
}

fn has_ended(node: &Node, certificate: &Path) -> bool {
    node.shell(&format!("openssl x509 -in {} -noout -checkend 0", certificate.display())).code != 0
}

#[test]
fn a_node_agent_joins_with_a_bootstrap_token_and_renews_its_certificates_as_it_runs() {
    let mut node = Node::prepare(NodeOptions::default());
    node.configure(&format!("clusterSigningDuration: {LIFE}\n"));
    node.up();
    let mut agent = Agent::bootstrapping(&node, "abcdef.0123456789abcdef");
    agent.start_runtime();
    // It waits for the right to ask, is killed as soon as it has asked, and asks only once.
    agent.start_kubelet();
    admit_bootstrappers(&node, "abcdef", "0123456789abcdef");
    node.until("the first request", Duration::from_mins(1), |node| !requests(node).is_empty());
    agent.kill_kubelet();
    agent.start_kubelet();
    agent.ready();
    let first = requests(&node).into_iter().filter(|(name, _)| name.starts_with("node-csr-")).count();
    assert_eq!(first, 1, "{:?}", requests(&node));

    let pki = agent.root().join("var/lib/kubelet/pki");
    let current = pki.join("kubelet-client-current.pem");
    let issued = pki.join(fs::read_link(&current).unwrap());
    for file in [&issued, &agent.root().join("kubeconfig")] {
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
    assert!(!pki.join("kubelet-client.key.tmp").exists(), "the request's key has served");

    node.apply(&pod("early", json!({})));
    node.ready(&["early"]);
    node.until("a served kubelet", Duration::from_secs(30), |node| {
        approve_serving(node);
        node.kubectl(&["logs", "early"]).stdout == "begun\n"
    });

    // The first certificate ends; the same process goes on with the next.
    let pid = agent.kubelet_pid();
    node.until("the first certificate's end", Duration::from_mins(1), |node| has_ended(node, &issued));
    assert_ne!(pki.join(fs::read_link(&current).unwrap()), issued);
    assert!(!has_ended(&node, &current));
    node.apply(&pod("late", json!({})));
    node.ready(&["late"]);
    node.until("a kubelet that is served again", Duration::from_secs(30), |node| {
        approve_serving(node);
        node.kubectl(&["logs", "late"]).stdout == "begun\n"
    });
    assert_eq!(agent.kubelet_pid(), pid);
    node.kubectl(&["delete", "pod", "early", "late", "--timeout=60s"]).ok();
}

#[test]
fn a_soft_threshold_ends_a_pod_that_gets_its_grace() {
    let node = cluster();
    let mut agent = Agent::new(&node);
    agent.start_runtime();
    agent.start_kubelet();
    agent.ready();
    let line = "trap 'sleep 2; echo ended in peace; exit 0' TERM; echo begun; while :; do sleep 0.1; done";
    let container = json!({"name": "c", "image": "busybox", "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", line]});
    node.apply(&pod("greedy", json!({"terminationGracePeriodSeconds": 20, "containers": [container]})));
    node.ready(&["greedy"]);

    // No machine has all its memory free.
    agent.kill_kubelet();
    agent.configure(
        "evictionSoft: {memory.available: 100%}\nevictionSoftGracePeriod: {memory.available: 1s}\n\
         evictionMaxPodGracePeriod: 15\nevictionPressureTransitionPeriod: 1s\n",
    );
    agent.start_kubelet();
    node.wait_for("pod/greedy", ".status.reason", "Evicted");
    let status = node.get("pod/greedy")["status"].clone();
    assert_eq!(status["phase"], "Failed");
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("The node was low on resource: memory. Threshold quantity: "), "{message}");
    node.wait_for("pod/greedy", ".status.containerStatuses[0].state.terminated.exitCode", "0");
    assert_eq!(node.kubectl(&["logs", "greedy"]).ok(), "begun\nended in peace\n");
    node.wait_for(
        &format!("node/{WORKER}"),
        ".status.conditions[?(@.type==\"MemoryPressure\")].status",
        "True",
    );
}
