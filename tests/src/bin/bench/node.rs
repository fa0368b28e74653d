//! A full node: 250 Pods of one container each, with readiness and liveness probes of all four kinds at their default
//! period. How soon all run, what they cost at rest, how soon an end is seen, and a new daemon knows all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tests::{GRPC_SERVER, Node};

use crate::report;

/// Pods of the node.
const PODS: usize = 250;
/// How many of them are made at a time.
const AT_ONCE: usize = 8;
/// How long the daemon is watched at rest: six periods of the probes.
const REST: Duration = Duration::from_mins(1);
/// Containers that are ended one after another.
const EXITS: usize = 40;
/// How often the daemon is killed and started again.
const RESTARTS: usize = 5;
/// Containers that end meanwhile.
const ENDED: usize = 10;
/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_mins(10);

/// Blocks of the node's own ID pool, far from those of other tests' nodes.
const BLOCKS: (u64, u64) = (55_250, 400);

/// Fills a node and measures it.
pub(crate) fn measure() {
    let mut node = Node::prepare(crate::quiet());
    node.set_log("warn");
    node.set_flags(&["--log-format", "json", "--pod-cidr", "10.240.0.0/22"]);
    let (first, count) = BLOCKS;
    let line = format!("kubelet:{}:{}", first * 65_536, count * 65_536);
    node.shell(&format!("for f in uid gid; do echo {line} > /etc/sub$f; done")).ok();
    node.configure(&format!("maxPods: {}\n", PODS + 50));
    node.up();
    let before = Size::of(&node);
    crate::inside(&node, &["inside-node-fill"]);
    let after = Size::of(&node);
    after.print(&before);
    rest(&node);
    crate::inside(&node, &["inside-node-exits"]);
    node.set_log("warn,path=debug");
    let (mut times, mut before) = (Vec::new(), 0);
    for round in 0..RESTARTS {
        node.kill_daemon();
        before = node.log().len();
        end_some(&node, round);
        node.spawn_daemon();
        let begun = Instant::now();
        crate::inside(&node, &["inside-node-known", &round.to_string()]);
        times.push(begun.elapsed());
    }
    report(&format!("restart, {PODS} Pods, to {ENDED} ends seen and running again"), "1 s", &mut times);
    crate::steps::print(node.log().get(before..).unwrap_or_default());
}

/// The Pod's number tells how it is probed.
fn pod(number: usize) -> Value {
    let (image, command, check) = match number % 4 {
        0 => (
            "busybox",
            json!(["httpd", "-f", "-p", "8080", "-h", "/etc"]),
            json!({"httpGet": {"path": "/passwd", "port": 8080}}),
        ),
        1 => (
            "busybox",
            json!(["nc", "-ll", "-p", "8080", "-e", "true"]),
            json!({"tcpSocket": {"port": 8080}}),
        ),
        2 => ("busybox", json!(["sleep", "infinity"]), json!({"exec": {"command": ["true"]}})),
        _ => ("debian", json!(["perl", "-e", GRPC_SERVER]), json!({"grpc": {"port": 50051}})),
    };
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name(number)},
        "spec": {
            "hostUsers": false, "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "c", "image": image, "imagePullPolicy": "IfNotPresent", "command": command,
                "readinessProbe": check, "livenessProbe": check,
            }],
        },
    })
}

fn name(number: usize) -> String {
    format!("p{number}")
}

async fn pods() -> Api<Pod> {
    Api::default_namespaced(kube::Client::try_default().await.expect("the node's kubeconfig works"))
}

/// Makes the Pods and waits until each is Ready; prints when all ran.
pub(crate) async fn fill() {
    let pods = pods().await;
    let begin = Instant::now();
    let made = stream::iter(0..PODS).map(|number| {
        let pods = pods.clone();
        async move {
            let object = serde_json::from_value(pod(number)).expect("it is a Pod");
            pods.create(&PostParams::default(), &object).await.expect("the Pod can be created");
        }
    });
    let made = made.buffer_unordered(AT_ONCE).for_each(|()| async {});
    let running = settle(&pods, |pod| phase(pod) == "Running");
    let ((), ()) = tokio::join!(made, running);
    println!(
        "{:<55} {:>8.1} s",
        format!("{PODS} Pods with probes, all Running"),
        begin.elapsed().as_secs_f64()
    );
    settle(&pods, is_ready).await;
    println!("{:<55} {:>8.1} s", "… all Ready", begin.elapsed().as_secs_f64());
}

/// The changes of all Pods from a version on. A watch that the server ends, as it does after some minutes, goes on.
struct Changes {
    pods: Api<Pod>,
    version: String,
    events: BoxStream<'static, Result<WatchEvent<Pod>, kube::Error>>,
}

impl Changes {
    fn of(pods: &Api<Pod>, version: &str) -> Self {
        Self { pods: pods.clone(), version: version.to_owned(), events: stream::empty().boxed() }
    }

    /// The next Pod that is new or changed.
    async fn next(&mut self) -> Pod {
        loop {
            match self.events.next().await {
                Some(Ok(WatchEvent::Added(pod) | WatchEvent::Modified(pod))) => {
                    self.version = pod.metadata.resource_version.clone().unwrap_or_default();
                    return pod;
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => {
                    let events = self.pods.watch(&WatchParams::default(), &self.version).await;
                    self.events = events.expect("Pods can be watched").boxed();
                }
            }
        }
    }

    /// Waits for a Pod that is as wanted.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Pod) -> bool) {
        let seen = tokio::time::timeout(PATIENCE, async { while !wanted(&self.next().await) {} }).await;
        seen.unwrap_or_else(|_| panic!("not seen in time: {what}"));
    }
}

/// Waits until all Pods are as wanted.
async fn settle(pods: &Api<Pod>, wanted: impl Fn(&Pod) -> bool) {
    let mut are: BTreeMap<String, bool> = BTreeMap::new();
    let mut changes = Changes::of(pods, "0");
    let watching = async {
        while are.len() < PODS || are.values().any(|is| !is) {
            let pod = changes.next().await;
            let is = wanted(&pod);
            are.insert(pod.metadata.name.unwrap_or_default(), is);
        }
    };
    let settled = tokio::time::timeout(PATIENCE, watching).await;
    settled.expect("the Pods settle in time");
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn is_ready(pod: &Pod) -> bool {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.into_iter().any(|status| status.ready)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.map(|status| status.restart_count).sum()
}

fn has_ended(pod: &Pod) -> bool {
    let mut statuses = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    statuses.any(|status| status.state.as_ref().is_some_and(|state| state.terminated.is_some()))
}

/// Kills containers' processes one after another and takes the time until a watch tells of each.
pub(crate) async fn exits() {
    let pods = pods().await;
    let listed = pods.list(&ListParams::default()).await.expect("Pods can be listed");
    let version = listed.metadata.resource_version.clone().unwrap_or_default();
    let mut changes = Changes::of(&pods, &version);
    let mut times = Vec::new();
    // They are listed by name, so that each kind of Pod comes as often.
    for pod in listed.items.iter().take(EXITS) {
        let name = pod.metadata.name.clone().unwrap_or_default();
        let pod = pods.get(&name).await.expect("the Pod is there");
        let (uid, before) = (pod.metadata.uid.clone(), restarts(&pod));
        let processes = processes();
        let pid = uid.as_ref().and_then(|uid| processes.get(uid)).copied();
        let Some(pid) = pid.filter(|_| is_ready(&pod)) else { continue };
        let is_it = |pod: &Pod| pod.metadata.uid == uid;
        let begin = Instant::now();
        kill(pid);
        changes.until(&name, |now| is_it(now) && (has_ended(now) || restarts(now) > before)).await;
        times.push(begin.elapsed());
        // The next end is another thing, not what comes of this one.
        changes.until(&name, |now| is_it(now) && is_ready(now)).await;
    }
    report("a container's end to its status in a watch", "100 ms", &mut times);
    settle(&pods, is_ready).await;
}

/// The Pods whose containers end while the daemon is down, other ones in each round.
fn chosen(round: usize) -> impl Iterator<Item = String> {
    (0..ENDED).map(move |index| name(PODS - 1 - round * ENDED - index))
}

/// Kills the containers of some Pods; nobody restarts them meanwhile.
fn end_some(node: &Node, round: usize) {
    let processes = processes();
    for name in chosen(round) {
        let uid = fs::read_to_string(node.root().join(&name)).expect("the Pod's UID was noted");
        kill(*processes.get(&uid).expect("the Pod runs"));
    }
}

/// Waits until the Pods of a round are Running again, each with one restart more.
pub(crate) async fn known(arguments: &[String]) {
    let round: usize = arguments.first().and_then(|round| round.parse().ok()).expect("a round");
    let known = tokio::time::timeout(PATIENCE, until_known(round)).await;
    known.expect("the Pods are known in time");
}

/// One list as soon as the API server answers, and then a watch: asking more often would take the processors that the
/// daemon needs.
async fn until_known(round: usize) {
    let pods = pods().await;
    let listed = loop {
        match pods.list(&ListParams::default()).await {
            Ok(listed) => break listed,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let mut awaited: BTreeSet<String> = chosen(round).collect();
    let is_back = |pod: &Pod| restarts(pod) == 1 && phase(pod) == "Running" && !has_ended(pod);
    let mut note = |pod: &Pod| {
        if is_back(pod) {
            awaited.remove(pod.metadata.name.as_deref().unwrap_or_default());
        }
        awaited.is_empty()
    };
    let mut changes = Changes::of(&pods, listed.metadata.resource_version.as_deref().unwrap_or_default());
    if !listed.items.iter().any(&mut note) {
        while !note(&changes.next().await) {}
    }
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(pid.cast_signed()).expect("a PID is not 0");
    // It may just have ended by itself.
    let _ = kill_process(pid, Signal::KILL);
}

/// The process of each Pod's container, by the Pod's UID: the first of its PID namespace.
fn processes() -> BTreeMap<String, u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pod_of(pid)?, pid))).collect()
}

fn pod_of(pid: u32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    let inside: Vec<&str> = numbers.split_whitespace().skip(1).collect();
    if inside.last() != Some(&"1") || status.contains("State:\tZ") {
        return None;
    }
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    groups.lines().find_map(|line| line.split("/pod").nth(1)?.get(..36).map(str::to_owned))
}

/// What the node's processes take of memory.
struct Size {
    daemon: u64,
    shims: Vec<u64>,
}

impl Size {
    fn of(node: &Node) -> Self {
        let shims = tests::shims(&node.instance()).into_iter();
        Self {
            daemon: crate::number(&format!("/proc/{}/status", node.daemon_pid()), "VmRSS"),
            shims: shims
                .map(|pid| crate::number(&format!("/proc/{pid}/smaps_rollup"), "Private_Dirty"))
                .collect(),
        }
    }

    /// The memory of a Pod that is ours: the daemon's share and its shim.
    fn print(&self, before: &Self) {
        let pods = PODS as u64;
        let shim = self.shims.iter().sum::<u64>() / pods.max(1);
        let share = self.daemon.saturating_sub(before.daemon) / pods;
        println!("{:<55} {:>8} kB", format!("daemon with {PODS} Pods, resident"), self.daemon);
        println!(
            "{:<55} {:>8} kB ({share} kB of the daemon, {shim} kB its shim)",
            "memory of a Pod",
            share + shim
        );
    }
}

/// Takes the processor time at rest, while only probes are made.
fn rest(node: &Node) {
    let shims = tests::shims(&node.instance());
    let taken = |pids: &[u32]| pids.iter().map(|pid| cpu(*pid)).sum::<Duration>();
    let daemon = [node.daemon_pid()];
    let (before, before_shims, begun) = (taken(&daemon), taken(&shims), Instant::now());
    std::thread::park_timeout(REST);
    let share = |now: Duration, before: Duration| {
        now.saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0
    };
    let (daemon, shims) = (share(taken(&daemon), before), share(taken(&shims), before_shims));
    println!("{:<55} {daemon:>8.2} % of a core (bound 2 %)", "daemon at rest, 50 probes a second");
    println!("{:<55} {shims:>8.2} % of a core", "… all shims together");
    note_uids(node);
}

/// User and system time of a process.
fn cpu(pid: u32) -> Duration {
    /// `/proc/PID/stat` counts in hundredths of a second.
    const TICK: Duration = Duration::from_millis(10);
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = line.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default().split_whitespace();
    let ticks: u32 = fields.skip(11).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    TICK * ticks
}

/// Keeps the Pods' UIDs for when there is no API server.
fn note_uids(node: &Node) {
    let listed = node.get("pod");
    for pod in listed.pointer("/items").and_then(Value::as_array).into_iter().flatten() {
        let text = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let noted = fs::write(node.root().join(text("/metadata/name")), text("/metadata/uid"));
        noted.expect("a UID can be noted");
    }
}
