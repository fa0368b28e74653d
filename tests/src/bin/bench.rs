//! `make bench`: the promises of SPECIFICATION.md, measured on this machine and printed beside their bounds. It judges
//! nothing: machines are shared and noisy, and ratios within one run count for more than single times.

#![expect(clippy::print_stdout, reason = "a program for people")]
#![expect(clippy::expect_used, reason = "a measurement that fails ends with a sentence")]

use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use tests::{Node, NodeOptions};

/// Pods of each kind that are started one after another.
const PODS: usize = 30;
/// Starts of the node.
const STARTS: usize = 30;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("inside") => runtime().block_on(measure_pods()),
        _ => measure_node(),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio starts")
}

/// What is seen from outside: starting, memory; then the rest, inside the node's network namespace.
fn measure_node() {
    if std::env::var_os("KAKOI_BINARY").is_none() {
        println!("measuring target/debug/kakoi; set KAKOI_BINARY=target/release/kakoi for what users run");
    }
    let mut node = Node::prepare(NodeOptions::default());
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let begin = Instant::now();
        node.up();
        starts.push(begin.elapsed());
        node.kill_daemon();
    }
    report("start to node Ready, kubectl's own time included", "1 s", &mut starts);
    node.up();
    node.until("idle", Duration::from_secs(5), |_| true);
    println!(
        "{:<55} {:>8} kB            (bound 60 MB)",
        "daemon, idle, resident",
        kilobytes(node.daemon_pid(), "VmRSS")
    );
    let program = std::env::current_exe().expect("this program has a path");
    let status = node.inside(&program).arg("inside").status().expect("it can be run inside the node");
    assert!(status.success(), "the measurements inside the node failed");
    println!("{:<55} {:>8} kB", "daemon, after all Pods, resident", kilobytes(node.daemon_pid(), "VmRSS"));
    measure_shims(&node);
}

/// A number in kB of `/proc/PID/status`.
fn kilobytes(pid: u32, field: &str) -> u64 {
    number(&format!("/proc/{pid}/status"), field)
}

fn number(path: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn measure_shims(node: &Node) {
    let pods: Vec<String> = (0..20).map(|n| format!("shim-{n}")).collect();
    let manifests: Vec<String> = pods.iter().map(|name| pod(name, false).to_string()).collect();
    node.apply(&manifests.join("\n---\n"));
    node.ready(&pods.iter().map(String::as_str).collect::<Vec<_>>());
    let mut dirty: Vec<u64> = tests::shims(&node.instance())
        .into_iter()
        .map(|pid| number(&format!("/proc/{pid}/smaps_rollup"), "Private_Dirty"))
        .collect();
    dirty.sort_unstable();
    let middle = dirty.get(dirty.len() / 2).copied().unwrap_or(0);
    println!(
        "{:<55} {middle:>8} kB median, {} kB largest of {} (bound 250 kB)",
        "shim, private dirty, 20 Pods",
        dirty.last().unwrap_or(&0),
        dirty.len()
    );
}

fn report(what: &str, bound: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or_default();
    println!(
        "{what:<55} {:>8.1} ms median, {:.1} ms p95 of {} (bound {bound})",
        at(50).as_secs_f64() * 1e3,
        at(95).as_secs_f64() * 1e3,
        times.len()
    );
}

fn pod(name: &str, host_users: bool) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "hostUsers": host_users,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "infinity"], "imagePullPolicy": "IfNotPresent"}],
        },
    })
}

/// Apply to Running through the API, with and without a user namespace in turn; then 100 Pods, 8 at a time.
async fn measure_pods() {
    let client = kube::Client::try_default().await.expect("the node's kubeconfig works");
    let pods: Api<Pod> = Api::default_namespaced(client);
    start(&pods, "warm", false).await;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..PODS {
        with.push(start(&pods, &format!("with-{round}"), false).await);
        without.push(start(&pods, &format!("without-{round}"), true).await);
    }
    report("create to Running, user namespace", "100 ms", &mut with);
    report("create to Running, the node's IDs", "10 ms less", &mut without);
    let begin = Instant::now();
    let names = (0..100).map(|n| format!("many-{n}"));
    let mut each: Vec<Duration> =
        stream::iter(names).map(|name| start_and_keep(&pods, name)).buffer_unordered(8).collect().await;
    println!("{:<55} {:>8.1} Pods/s", "100 Pods, 8 at a time", 100.0 / begin.elapsed().as_secs_f64());
    report("  each of them, create to Running", "none", &mut each);
    let (now, all) = (DeleteParams::default().grace_period(0), ListParams::default());
    pods.delete_collection(&now, &all).await.expect("the Pods can be deleted");
}

async fn start(pods: &Api<Pod>, name: &str, host_users: bool) -> Duration {
    let took = run(pods, name, host_users).await;
    pods.delete(name, &DeleteParams::default().grace_period(0)).await.expect("the Pod can be deleted");
    took
}

async fn start_and_keep(pods: &Api<Pod>, name: String) -> Duration {
    run(pods, &name, false).await
}

async fn run(pods: &Api<Pod>, name: &str, host_users: bool) -> Duration {
    let object = serde_json::from_value(pod(name, host_users)).expect("it is a Pod");
    let begin = Instant::now();
    let created = pods.create(&PostParams::default(), &object).await.expect("the Pod can be created");
    let version = created.metadata.resource_version.expect("objects have a version");
    let one = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = pods.watch(&one, &version).await.expect("Pods can be watched").boxed();
    while let Some(event) = events.next().await {
        if let WatchEvent::Modified(pod) = event.expect("the watch goes on")
            && pod.status.and_then(|status| status.phase).as_deref() == Some("Running")
        {
            return begin.elapsed();
        }
    }
    panic!("the watch of {name} has ended")
}
