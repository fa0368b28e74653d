//! What becomes of a Pod between its start and its end, over the real runtime and with the real `kubectl`: sidecars,
//! probes, hooks, ephemeral containers, resizes, static Pods, deadlines, gates. All Pods have user namespaces.

#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tests::{GRPC_SERVER, Kept, Node, NodeOptions, SharedNode};

static NODE: SharedNode = SharedNode::new(Node::start);

fn node() -> Arc<Kept> {
    NODE.get()
}

const PATIENCE: Duration = Duration::from_mins(2);

/// A container of `busybox` that runs a shell line, with further fields.
fn container(name: &str, line: &str, fields: Value) -> Value {
    let mut container = json!({"name": name, "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", line]});
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    container.as_object_mut().unwrap().extend(fields);
    container
}

/// A Pod with these fields in its spec.
fn pod(name: &str, fields: Value) -> String {
    let mut spec = json!({"hostUsers": false, "terminationGracePeriodSeconds": 1, "automountServiceAccountToken": false});
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    spec.as_object_mut().unwrap().extend(fields);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string()
}

/// A probe that is made each second, and may take long on a busy machine.
fn each_second(probe: Value) -> Value {
    let mut probe = probe;
    probe["periodSeconds"] = json!(1);
    probe["timeoutSeconds"] = json!(10);
    probe
}

const FOREVER: &str = "exec sleep infinity";

#[test]
fn a_sidecar_is_up_before_the_work_and_ends_after_it() {
    let node = node();
    let shared = json!([{"name": "shared", "mountPath": "/shared"}]);
    let up = each_second(json!({"exec": {"command": ["test", "-f", "/shared/up"]}}));
    let sidecar =
        "trap 'echo last; exit 0' TERM; sleep 1; touch /shared/up; while :; do sleep 1 & wait; done";
    let fields = json!({"restartPolicy": "Always", "volumeMounts": shared});
    let mut sidecar = container("sidecar", sidecar, fields);
    sidecar["startupProbe"] = up;
    sidecar["startupProbe"]["failureThreshold"] = json!(30);
    node.apply(&pod(
        "sidecar",
        json!({
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 20,
            "initContainers": [sidecar],
            "containers": [container("work", "ls /shared", json!({"volumeMounts": shared}))],
            "volumes": [{"name": "shared", "emptyDir": {}}],
        }),
    ));
    node.wait_for("pod/sidecar", ".status.phase", "Succeeded");
    assert_eq!(
        node.kubectl(&["logs", "sidecar", "-c", "work"]).ok(),
        "up\n",
        "it was up before the work began"
    );
    let status = node.get("pod/sidecar")["status"].clone();
    let sidecar = &status["initContainerStatuses"][0]["state"]["terminated"];
    let work = &status["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(sidecar["exitCode"], 0, "{status}");
    let (sidecar, work) = (sidecar["finishedAt"].as_str().unwrap(), work["finishedAt"].as_str().unwrap());
    assert!(sidecar >= work, "the sidecar ends last: {sidecar} {work}");
    assert_eq!(node.kubectl(&["logs", "sidecar", "-c", "sidecar"]).ok(), "last\n", "it was asked to end");
}

#[test]
fn every_kind_of_probe_says_when_a_container_is_ready_and_when_it_lives() {
    let node = node();
    let probed = |name: &str, line: &str, readiness: Value| {
        container(name, line, json!({"readinessProbe": each_second(readiness)}))
    };
    let mut grpc = probed("grpc", "", json!({"grpc": {"port": 50051}}));
    (grpc["image"], grpc["command"]) = (json!("debian"), json!(["perl", "-e", GRPC_SERVER]));
    let mut exec = probed(
        "exec",
        "touch /alive; exec sleep infinity",
        json!({"exec": {"command": ["test", "-f", "/ready"]}}),
    );
    exec["livenessProbe"] = each_second(json!({"exec": {"command": ["test", "-f", "/alive"]}}));
    let http = "mkdir /www; echo hello > /www/health; exec httpd -f -p 8080 -h /www";
    node.apply(&pod(
        "probed",
        json!({"containers": [
            exec,
            probed("http", http, json!({"httpGet": {"path": "/health", "port": 8080}})),
            probed("tcp", "exec nc -ll -p 9090 -e true", json!({"tcpSocket": {"port": 9090}})),
            grpc,
        ]}),
    ));
    let ready = |node: &Node| -> Vec<(String, bool)> {
        let status = node.get("pod/probed")["status"]["containerStatuses"].clone();
        let statuses = status.as_array().cloned().unwrap_or_default();
        statuses.iter().map(|one| (one["name"].as_str().unwrap().to_owned(), one["ready"] == true)).collect()
    };
    node.until("all but one to be ready", PATIENCE, |node| {
        let ready = ready(node);
        ready.len() == 4 && ready.iter().all(|(name, is_ready)| *is_ready == (name != "exec"))
    });
    node.exec("probed", &["touch", "/ready"]).ok();
    node.ready(&["probed"]);
    node.exec("probed", &["rm", "/alive"]).ok();
    node.wait_for("pod/probed", ".status.containerStatuses[0].restartCount", "1");
    let text = node.kubectl(&["describe", "pod", "probed"]).ok();
    assert!(text.contains("Liveness probe failed") && text.contains("Readiness probe failed"), "{text}");
    node.kubectl(&["delete", "pod", "probed", "--wait=false"]).ok();
}

#[test]
fn hooks_run_inside_after_the_start_and_before_the_end() {
    let node = node();
    let seen = node.root().join("hooks");
    fs::create_dir_all(&seen).unwrap();
    let sh = |line: &str| json!({"exec": {"command": ["sh", "-c", line]}});
    let hooked = container(
        "c",
        FOREVER,
        json!({
            "lifecycle": {"postStart": sh("id -u > /seen/begun"), "preStop": sh("cat /proc/self/uid_map > /seen/ended")},
            "volumeMounts": [{"name": "seen", "mountPath": "/seen"}],
        }),
    );
    node.apply(&pod(
        "hooked",
        json!({"containers": [hooked], "volumes": [{"name": "seen", "hostPath": {"path": seen}}], "terminationGracePeriodSeconds": 10}),
    ));
    node.ready(&["hooked"]);
    assert_eq!(
        fs::read_to_string(seen.join("begun")).unwrap(),
        "0\n",
        "the container runs only after its hook"
    );
    let first = node.first_id("hooked").to_string();
    node.kubectl(&["delete", "pod", "hooked", "--timeout=60s"]).ok();
    let map = fs::read_to_string(seen.join("ended")).unwrap();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", &first, "65536"]);
}

#[test]
fn kubectl_debug_joins_a_running_pod_and_sees_the_processes_of_its_target() {
    let node = node();
    node.apply(&pod("target", json!({"containers": [container("c", "exec sleep 123456", json!({}))]})));
    node.ready(&["target"]);
    let line = "tr '\\0' ' ' < /proc/1/cmdline; cat /proc/self/uid_map; exec sleep infinity";
    node.kubectl(&[
        "debug",
        "target",
        "--image=busybox",
        "--image-pull-policy=IfNotPresent",
        "--target=c",
        "-c",
        "look",
        "--profile=general",
        "--",
        "sh",
        "-c",
        line,
    ])
    .ok();
    let first = node.first_id("target").to_string();
    node.until("what it sees", PATIENCE, |node| {
        let text = node.kubectl(&["logs", "target", "-c", "look"]).stdout;
        text.contains("sleep 123456") && text.contains(&first)
    });
}

#[test]
fn a_resize_reaches_the_running_containers_cgroup() {
    let node = node();
    let resources = |cpu: &str, memory: &str| json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"cpu": cpu, "memory": memory}});
    node.apply(&pod(
        "sized",
        json!({"containers": [container("c", FOREVER, json!({"resources": resources("100m", "32Mi")}))]}),
    ));
    node.ready(&["sized"]);
    let id = node.get("pod/sized")["status"]["containerStatuses"][0]["containerID"].clone();
    let id = id.as_str().unwrap().rsplit('/').next().unwrap().to_owned();
    let cgroup = |name: &str| {
        let line = format!("find /sys/fs/cgroup -path '*{id}*' \\( {name} \\) | head -n 1 | xargs cat");
        node.shell(&line).ok().trim().to_owned()
    };
    let cpu = "-name cpu.cfs_quota_us -o -name cpu.max";
    let memory = "-name memory.limit_in_bytes -o -name memory.max";
    let is_cpu = |text: &str, quota: &str| text == quota || text == format!("{quota} 100000");
    assert!(is_cpu(&cgroup(cpu), "10000"), "{}", cgroup(cpu));
    assert_eq!(cgroup(memory), (32_u64 << 20).to_string());
    let patch =
        json!({"spec": {"containers": [{"name": "c", "resources": resources("200m", "64Mi")}]}}).to_string();
    node.kubectl(&["patch", "pod", "sized", "--subresource", "resize", "-p", &patch]).ok();
    node.wait_for("pod/sized", ".status.containerStatuses[0].resources.limits.memory", "64Mi");
    assert!(is_cpu(&cgroup(cpu), "20000"), "{}", cgroup(cpu));
    assert_eq!(cgroup(memory), (64_u64 << 20).to_string());
    assert_eq!(node.get("pod/sized")["status"]["containerStatuses"][0]["restartCount"], 0);
}

#[test]
fn a_static_pod_has_a_mirror_that_comes_back_until_its_manifest_goes() {
    let node = node();
    let manifest = node.root().join("etc/kubernetes/manifests/web.json");
    let text =
        pod("web", json!({"containers": [container("c", "echo begun; exec sleep infinity", json!({}))]}));
    fs::write(node.root().join("web.json"), text).unwrap();
    fs::rename(node.root().join("web.json"), &manifest).unwrap();
    node.kubectl(&["wait", "--for=create", "pod/web-node", "--timeout=60s"]).ok();
    node.ready(&["web-node"]);
    assert_eq!(node.kubectl(&["logs", "web-node"]).ok(), "begun\n");
    assert_eq!(node.exec("web-node", &["id", "-u"]).ok(), "0\n");
    let mirror = node.get("pod/web-node");
    let container = mirror["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(mirror["metadata"]["ownerReferences"][0]["kind"], "Node");
    // kubectl would wait for ever where the next mirror is there before it looks.
    node.kubectl(&["delete", "pod", "web-node", "--wait=false"]).ok();
    node.until("the next mirror", PATIENCE, |node| {
        let uid = node.kubectl(&["get", "pod", "web-node", "-o", "jsonpath={.metadata.uid}"]).stdout;
        !uid.is_empty() && mirror["metadata"]["uid"] != uid.as_str()
    });
    node.ready(&["web-node"]);
    let again = node.get("pod/web-node");
    assert_eq!(
        again["status"]["containerStatuses"][0]["containerID"], container,
        "only the mirror was deleted"
    );
    fs::remove_file(manifest).unwrap();
    node.kubectl(&["wait", "--for=delete", "pod/web-node", "--timeout=60s"]).ok();
}

#[test]
fn a_pod_past_its_deadline_is_ended_and_says_why() {
    let node = node();
    node.apply(&pod(
        "late",
        json!({"activeDeadlineSeconds": 1, "containers": [container("c", FOREVER, json!({}))]}),
    ));
    node.wait_for("pod/late", ".status.phase", "Failed");
    let status = node.get("pod/late")["status"].clone();
    assert_eq!(status["reason"], "DeadlineExceeded", "{status}");
    node.until("the container's end", PATIENCE, |node| {
        node.get("pod/late")["status"]["containerStatuses"][0]["state"]["terminated"].is_object()
    });
}

#[test]
fn a_readiness_gate_is_waited_for() {
    let node = node();
    node.apply(&pod(
        "gated",
        json!({"readinessGates": [{"conditionType": "example.com/open"}], "containers": [container("c", FOREVER, json!({}))]}),
    ));
    let containers = ".status.conditions[?(@.type==\"ContainersReady\")].status";
    node.wait_for("pod/gated", containers, "True");
    let condition = |node: &Node| {
        let conditions = node.get("pod/gated")["status"]["conditions"].clone();
        conditions.as_array().unwrap().iter().find(|one| one["type"] == "Ready").cloned().unwrap()
    };
    assert_eq!(
        (&condition(&node)["status"], &condition(&node)["reason"]),
        (&json!("False"), &json!("ReadinessGatesNotReady"))
    );
    let patch = r#"{"status":{"conditions":[{"type":"example.com/open","status":"True"}]}}"#;
    node.kubectl(&["patch", "pod", "gated", "--subresource=status", "-p", patch]).ok();
    node.ready(&["gated"]);
}

#[test]
fn containers_that_share_processes_see_and_signal_each_other() {
    let node = node();
    let containers = [container("a", "exec sleep 777777", json!({})), container("b", FOREVER, json!({}))];
    node.apply(&pod(
        "together",
        json!({"shareProcessNamespace": true, "restartPolicy": "Never", "containers": containers}),
    ));
    node.ready(&["together"]);
    let inside = |line: &str| node.kubectl(&["exec", "together", "-c", "b", "--", "sh", "-c", line]);
    let find = "for p in /proc/[0-9]*; do grep -q '77777[7]' $p/cmdline && basename $p; done; true";
    let pid = inside(find).ok();
    inside(&format!("kill -9 {}", pid.trim())).ok();
    node.wait_for("pod/together", ".status.containerStatuses[0].state.terminated.exitCode", "137");
    assert_eq!(inside("echo still here").ok(), "still here\n");
}

#[test]
fn f13_the_counters_of_user_namespaces_count_each_pod_that_asks_for_one() {
    let node = node();
    let count = |name: &str| -> f64 {
        let text = node.kubectl(&["get", "--raw", "/api/v1/nodes/node/proxy/metrics"]).ok();
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("{name}: {text}"))
    };
    let before = count("kubelet_started_user_namespaced_pods_errors_total");
    let begun = count("kubelet_started_user_namespaced_pods_total");
    let with = |name: &str, host_users: bool, class: Option<&str>| {
        let containers = [container("c", FOREVER, json!({}))];
        let mut fields = json!({"hostUsers": host_users, "containers": containers});
        if let Some(class) = class {
            fields["runtimeClassName"] = json!(class);
            // The scheduler knows that no node has this handler.
            fields["nodeName"] = json!("node");
        }
        pod(name, fields)
    };
    node.apply(r#"{"apiVersion":"node.k8s.io/v1","kind":"RuntimeClass","metadata":{"name":"absent"},"handler":"absent"}"#);
    node.apply(&with("counted", false, None));
    node.apply(&with("failing", false, Some("absent")));
    node.apply(&with("uncounted", true, None));
    node.ready(&["counted", "uncounted"]);
    node.until("the failure to be counted", PATIENCE, |_| {
        count("kubelet_started_user_namespaced_pods_errors_total") > before
    });
    assert!(count("kubelet_started_user_namespaced_pods_total") >= begun + 2.0);
    let events = node.kubectl(&["events", "--for", "pod/failing"]).ok();
    assert!(events.contains("FailedCreatePodSandBox") && events.contains("absent"), "{events}");
    node.kubectl(&["delete", "pod", "failing", "--wait=false"]).ok();
}

#[test]
fn on_a_node_of_both_families_a_pod_has_an_address_of_each_and_is_reached_by_both() {
    let flags = vec!["--pod-cidr=fd85:a::/64,10.85.7.0/24".to_owned()];
    let node = Node::start_with(NodeOptions { flags, ..NodeOptions::default() });
    let spec = node.get("node/node");
    assert_eq!(spec["spec"]["podCIDRs"], json!(["fd85:a::/64", "10.85.7.0/24"]));
    assert_eq!(spec["status"]["addresses"][0], json!({"type": "InternalIP", "address": "fd85:a::1"}));
    let probe = each_second(json!({"httpGet": {"port": 80, "path": "/"}}));
    let env = json!([{"name": "IPS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIPs"}}}]);
    let ports = json!([{"containerPort": 80, "hostPort": 8085}]);
    let line = "mkdir /w && echo served >/w/index.html && exec httpd -f -p [::]:80 -h /w";
    let web = container("c", line, json!({"readinessProbe": probe, "env": env, "ports": ports}));
    node.apply(&pod("server", json!({"containers": [web]})));
    node.apply(&pod("client", json!({"containers": [container("c", FOREVER, json!({}))]})));
    node.ready(&["server", "client"]);

    let server = node.get("pod/server");
    let ips: Vec<&str> =
        server["status"]["podIPs"].as_array().unwrap().iter().map(|ip| ip["ip"].as_str().unwrap()).collect();
    let [v6, v4] = ips[..] else { panic!("{ips:?}") };
    assert!(v6.starts_with("fd85:a::") && v4.starts_with("10.85.7."), "{ips:?}");
    assert_eq!(server["status"]["podIP"], v6);
    assert_eq!(node.exec("server", &["sh", "-c", "echo $IPS"]).ok(), format!("{v6},{v4}\n"));
    let hosts = node.exec("server", &["cat", "/etc/hosts"]).ok();
    assert!(
        hosts.contains(&format!("{v6}\tserver\n")) && hosts.contains(&format!("{v4}\tserver\n")),
        "{hosts}"
    );
    let ask = |nc: &str| format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | {nc} | tail -n 1");
    for ip in [v6, v4] {
        let line = ask(&format!("nc -w 20 {ip} 80"));
        assert_eq!(node.exec("client", &["sh", "-c", &line]).ok(), "served\n", "{ip}");
    }
    for ip in ["fd85:a::1", "10.85.7.1", "127.0.0.1"] {
        let line = ask(&format!("busybox nc -w 20 {ip} 8085"));
        assert_eq!(node.shell(&line).ok(), "served\n", "{ip}");
    }
    let table = node.kubectl(&["get", "pod", "server", "-o", "wide"]).ok();
    assert!(table.contains(v6), "{table}");
}

#[test]
fn a_node_whose_pods_could_not_find_the_api_server_is_refused() {
    let node = Node::prepare(NodeOptions::default());
    let refused = node.kakoi(&["up", "--pod-cidr", "fd85:a::/64"]).refused();
    assert!(refused.contains("fd85:a::/64 alone") && refused.contains("add an IPv4 range"), "{refused}");
}
