//! The daemon may die at any instant: Pods live on, and nothing is lost, leaked or held twice.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::{Leftovers, Node, NodeOptions, processes_on, shims};

const SOON: Duration = Duration::from_secs(30);

fn pod(name: &str) -> String {
    pod_of(name, "Always", "trap exit TERM; echo started; sleep infinity & wait")
}

fn pod_of(name: &str, restart: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name} }}\nspec:\n  hostUsers: false\n  restartPolicy: {restart}\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: busybox\n    command: [sh, -c, '{script}']\n"
    )
}

/// A node with one Pod `one` that runs, its record, and its processes.
fn node_with_a_pod() -> (Node, String, BTreeSet<u32>) {
    let node = Node::start();
    node.apply(&pod("one"));
    node.ready(&["one"]);
    let (record, processes) = (node.record("one"), processes_on(&node.range("one")));
    assert_eq!(processes.len(), 2, "a shell and its sleep");
    (node, record, processes)
}

fn container(node: &Node, pod: &str) -> Value {
    node.get(&format!("pod/{pod}"))["status"]["containerStatuses"][0].clone()
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Ends the Pod and the node; nothing may be left.
fn end(mut node: Node) {
    node.kubectl(&["delete", "pod", "--all", "--timeout=60s"]).ok();
    // The API lets a Pod go before its logs and its directory are removed.
    node.until("the Pods' files to go", SOON, |node| node.leftovers().files.is_empty());
    node.down().ok();
    assert_eq!(node.leftovers(), Leftovers::default());
    assert_eq!(node.network_leftovers(), "");
}

/// A command inside a node whose lines can be waited for. Dropped, it is ended.
struct Session {
    child: Child,
    lines: Receiver<String>,
}

impl Session {
    fn start(mut command: Command) -> (Self, ChildStdin) {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let stdin = child.stdin.take().unwrap();
        (Self { child, lines }, stdin)
    }

    fn logs(node: &Node, pod: &str) -> Self {
        let mut command = node.inside(Path::new("kubectl"));
        command.args(["logs", "-f", pod]);
        Self::start(command).0
    }

    /// Waits for a line that has `wanted` in it.
    #[track_caller]
    fn line(&self, wanted: &str) {
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(SOON) {
            if line.contains(wanted) {
                return;
            }
            seen.push(line);
        }
        panic!("no line has {wanted:?}: {seen:?}");
    }

    /// Waits for numbers that follow one another from `first` to `last`, each on its line.
    #[track_caller]
    fn count(&self, first: u64, last: u64) {
        for number in first..=last {
            assert_eq!(self.lines.recv_timeout(SOON), Ok(number.to_string()));
        }
    }

    /// Waits for the end and answers the exit code.
    #[track_caller]
    fn ended(&mut self, node: &Node) -> Option<i32> {
        node.until("a session to end", SOON, |_| self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `kubectl exec -it` with a shell, as somebody would type it into a terminal.
fn shell_in(node: &Node, pod: &str) -> (Session, ChildStdin) {
    let mut command = node.inside(Path::new("script"));
    command.args(["-qec", &format!("kubectl exec -it {pod} -- sh"), "/dev/null"]);
    Session::start(command)
}

#[test]
fn killed_with_three_pods_running_the_node_takes_them_over_as_they_are() {
    let mut node = Node::start();
    let names = ["one", "two", "three"];
    for name in names {
        node.apply(&pod(name));
    }
    node.ready(&names);
    let ranges = names.map(|name| node.range(name));
    let processes = || ranges.each_ref().map(processes_on);
    let (records, before) = (names.map(|name| node.record(name)), processes());
    assert!(before.iter().all(|pids| pids.len() == 2), "a shell and its sleep each: {before:?}");
    node.kill_daemon();
    assert_eq!(processes(), before, "they run without a daemon");
    node.up();
    node.ready(&names);
    assert_eq!((names.map(|name| node.record(name)), processes()), (records, before));
    for name in names {
        let status = &node.get(&format!("pod/{name}"))["status"]["containerStatuses"][0];
        assert_eq!((status["restartCount"].as_u64(), status["ready"].as_bool()), (Some(0), Some(true)));
        assert_eq!(node.exec(name, &["id", "-u"]).ok(), "0\n");
        assert_eq!(node.kubectl(&["logs", name]).ok(), "started\n");
    }
    node.apply(&pod("four"));
    node.ready(&["four"]);
    end(node);
}

#[test]
fn down_stops_the_pods_and_up_brings_them_back_with_the_same_mapping() {
    let mut node = Node::start();
    node.apply(&pod("one"));
    node.ready(&["one"]);
    let record = node.record("one");
    node.down().ok();
    assert_eq!(node.leftovers().processes, Vec::<String>::new());
    assert_eq!(node.leftovers().mounts, Vec::<String>::new());
    node.up();
    node.until("the Pod to run again", Duration::from_secs(30), |node| node.exec("one", &["true"]).code == 0);
    assert_eq!(node.record("one"), record);
}

#[test]
fn thirty_pods_at_once_have_thirty_disjoint_ranges_and_run_on_them() {
    let node = Node::start();
    let names: Vec<String> = (0..30).map(|n| format!("p{n}")).collect();
    let all: Vec<String> = names.iter().map(|name| pod(name)).collect();
    node.apply(&all.join("---\n"));
    let refs: Vec<&str> = names.iter().map(String::as_str).collect();
    node.ready(&refs);
    let firsts: BTreeSet<u64> = names.iter().map(|name| node.first_id(name)).collect();
    assert_eq!(firsts.len(), 30);
    for name in &names {
        let map = node.exec(name, &["cat", "/proc/1/uid_map"]).ok();
        let numbers: Vec<u64> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert_eq!(numbers, [0, node.first_id(name), 65_536]);
    }
    end(node);
}

#[test]
fn two_instances_on_one_machine_never_overlap() {
    let (a, b) = (Node::start(), Node::start_with(NodeOptions::default()));
    for node in [&a, &b] {
        node.apply(&format!("{}---\n{}", pod("one"), pod("two")));
    }
    for node in [&a, &b] {
        node.ready(&["one", "two"]);
    }
    let firsts: BTreeSet<u64> =
        [&a, &b].into_iter().flat_map(|node| ["one", "two"].map(|name| node.first_id(name))).collect();
    assert_eq!(firsts.len(), 4);
}

#[test]
fn a_killed_shim_ends_its_containers_and_the_pod_comes_back_with_the_same_mapping() {
    let (node, record, before) = node_with_a_pod();
    let [shim] = shims(&node.instance())[..] else { panic!("one Pod has one shim") };
    signal(shim, Signal::KILL);
    node.until("the containers' end", SOON, |node| processes_on(&node.range("one")).is_disjoint(&before));
    node.wait_for("pod/one", ".status.containerStatuses[0].restartCount", "1");
    node.ready(&["one"]);
    let ended = container(&node, "one")["lastState"]["terminated"].clone();
    assert_eq!(ended["exitCode"], 137, "{ended}");
    let message = ended["message"].as_str().unwrap();
    assert!(message.contains("shim") && message.contains(&format!("PID {shim}")), "{message}");
    assert_eq!(node.record("one"), record);
    let map = node.exec("one", &["cat", "/proc/1/uid_map"]).ok();
    assert_eq!(map.split_whitespace().nth(1), Some(node.first_id("one").to_string().as_str()));
    assert_eq!(shims(&node.instance()).len(), 1);
    end(node);
}

#[test]
fn a_shim_killed_while_the_daemon_is_down_is_found_dead_and_the_pod_comes_back() {
    let (mut node, record, before) = node_with_a_pod();
    node.kill_daemon();
    for shim in shims(&node.instance()) {
        signal(shim, Signal::KILL);
    }
    node.up();
    node.wait_for("pod/one", ".status.containerStatuses[0].restartCount", "1");
    node.ready(&["one"]);
    let ended = container(&node, "one")["lastState"]["terminated"].clone();
    assert_eq!(ended["exitCode"], 137, "{ended}");
    assert!(ended["message"].as_str().unwrap().contains("shim"), "{ended}");
    assert_eq!(node.record("one"), record);
    assert!(processes_on(&node.range("one")).is_disjoint(&before));
    end(node);
}

#[test]
fn what_ended_while_the_daemon_was_down_is_told_with_its_exit_code() {
    let mut node = Node::start();
    let script = "trap \"exit 3\" TERM; while :; do sleep 0.1; done";
    node.apply(&format!("{}---\n{}", pod_of("never", "Never", script), pod_of("always", "Always", script)));
    node.ready(&["never", "always"]);
    let ranges = ["never", "always"].map(|name| node.range(name));
    node.kill_daemon();
    for range in &ranges {
        // The shell is the first of its PID namespace.
        signal(*processes_on(range).first().unwrap(), Signal::TERM);
    }
    node.until("both to end", SOON, |_| ranges.iter().all(|range| processes_on(range).is_empty()));
    node.up();
    node.wait_for("pod/never", ".status.phase", "Failed");
    assert_eq!(container(&node, "never")["state"]["terminated"]["exitCode"], 3);
    node.wait_for("pod/always", ".status.containerStatuses[0].restartCount", "1");
    assert_eq!(container(&node, "always")["lastState"]["terminated"]["exitCode"], 3);
    end(node);
}

#[test]
fn logs_go_on_where_they_were_and_lose_nothing_that_was_written_without_a_daemon() {
    let mut node = Node::start();
    node.apply(&pod_of("one", "Always", "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done"));
    node.ready(&["one"]);
    let mut before = Session::logs(&node, "one");
    before.count(0, 20);
    node.kill_daemon();
    before.ended(&node);
    node.up();
    let after = Session::logs(&node, "one");
    after.count(0, 120);
    drop(after);
    end(node);
}

#[test]
fn a_session_ends_with_its_shells_exit_code_and_with_the_daemon_that_carries_it() {
    let (mut node, _, before) = node_with_a_pod();
    let (mut session, mut typed) = shell_in(&node, "one");
    writeln!(typed, "echo I am $((40+2)); exit 7").unwrap();
    session.line("I am 42");
    assert_eq!(session.ended(&node), Some(7));
    assert_eq!(processes_on(&node.range("one")), before, "nothing of the session is left");

    let (mut session, mut typed) = shell_in(&node, "one");
    writeln!(typed, "echo I am $((40+3))").unwrap();
    session.line("I am 43");
    node.kill_daemon();
    assert_ne!(session.ended(&node), Some(0));
    node.up();
    node.until("the shell's end", SOON, |node| processes_on(&node.range("one")) == before);
    let (mut session, mut typed) = shell_in(&node, "one");
    writeln!(typed, "exit 0").unwrap();
    assert_eq!(session.ended(&node), Some(0));
    end(node);
}

#[test]
fn a_deletion_asked_for_just_before_the_daemon_died_is_finished_by_the_next_one() {
    let (mut node, _, before) = node_with_a_pod();
    let range = node.range("one");
    node.kubectl(&["delete", "pod", "one", "--wait=false"]).ok();
    node.kill_daemon();
    node.up();
    node.kubectl(&["wait", "--for=delete", "pod/one", "--timeout=30s"]).ok();
    assert!(processes_on(&range).is_disjoint(&before));
    end(node);
}

#[test]
fn down_works_without_a_daemon() {
    let (mut node, record, _) = node_with_a_pod();
    let range = node.range("one");
    node.kill_daemon();
    node.down().ok();
    assert_eq!(processes_on(&range), BTreeSet::new());
    let left = node.leftovers();
    assert_eq!((left.processes, left.mounts, left.cgroups), Default::default());
    assert_eq!(node.network_leftovers(), "");
    node.down().ok();
    node.up();
    node.ready(&["one"]);
    assert_eq!(node.record("one"), record);
    end(node);
}

#[test]
fn down_needs_none_of_ups_flags() {
    let flags = vec!["--pod-cidr=10.240.7.0/24".to_owned()];
    let mut node = Node::prepare(NodeOptions { flags, ..NodeOptions::default() });
    // Why one gives another range: the machine's own network has the usual one.
    node.shell(
        "ip link add office type bridge && ip addr add 10.208.0.1/12 dev office && ip link set office up",
    )
    .ok();
    node.up();
    node.apply(&pod("one"));
    node.ready(&["one"]);
    let pod = node.get("pod/one");
    let address = pod["status"]["podIP"].as_str().unwrap_or_default();
    assert!(address.starts_with("10.240.7."), "{address}");
    node.down().ok();
    node.shell("ip link del office").ok();
    assert_eq!(node.network_leftovers(), "");
}

#[test]
fn e20_with_the_gate_switched_off_a_fenced_pod_runs_on_until_it_is_deleted() {
    let (mut node, record, before) = node_with_a_pod();
    let range = node.range("one");
    node.kill_daemon();
    node.set_flags(&["--feature-gates=UserNamespacesSupport=false"]);
    node.up();
    node.ready(&["one"]);
    assert_eq!((node.record("one"), processes_on(&range)), (record, before));
    assert_eq!(container(&node, "one")["restartCount"], 0);
    node.apply(&pod("two"));
    node.ready(&["two"]);
    let map = node.exec("two", &["cat", "/proc/self/uid_map"]).ok();
    assert_eq!(map.split_whitespace().nth(1), Some("0"), "a new Pod has the node's IDs");
    node.kubectl(&["delete", "pod", "one", "--timeout=30s"]).ok();
    assert_eq!(processes_on(&range), BTreeSet::new());
    end(node);
}

#[test]
fn asked_to_end_the_daemon_does_so_whoever_is_connected_and_the_pods_run_on() {
    let (mut node, record, before) = node_with_a_pod();
    let mut logs = Session::logs(&node, "one");
    logs.line("started");
    let (mut shell, mut typed) = shell_in(&node, "one");
    writeln!(typed, "echo I am $((40+2))").unwrap();
    shell.line("I am 42");
    let mut command = node.inside(Path::new("kubectl"));
    command.args(["get", "pods", "-w", "--no-headers"]);
    let (mut watch, _) = Session::start(command);
    watch.line("one");
    signal(node.daemon_pid(), Signal::TERM);
    assert_eq!(node.wait_daemon(Duration::from_secs(10)), Some(0), "{}", node.log());
    for session in [&mut logs, &mut shell, &mut watch] {
        session.ended(&node);
    }
    node.up();
    node.ready(&["one"]);
    assert_eq!((node.record("one"), processes_on(&node.range("one"))), (record, before));
    end(node);
}

#[test]
fn a_killed_shim_takes_the_process_namespace_that_its_containers_share_with_it() {
    let node = Node::start();
    let pod = pod("one").replace("hostUsers: false", "hostUsers: false\n  shareProcessNamespace: true");
    node.apply(&pod.replace(
        "  containers:\n",
        "  containers:\n  - { name: d, image: busybox, command: [sleep, infinity] }\n",
    ));
    node.ready(&["one"]);
    let before = processes_on(&node.range("one"));
    let mut exec = node.inside(Path::new("kubectl"));
    exec.args(["exec", "-i", "one", "-c", "d", "--", "sh", "-c", "echo here; sleep infinity"]);
    let (mut exec, _) = Session::start(exec);
    exec.line("here");
    let [shim] = shims(&node.instance())[..] else { panic!("one Pod has one shim") };
    signal(shim, Signal::KILL);
    assert_ne!(exec.ended(&node), Some(0));
    node.until("the containers' end", SOON, |node| processes_on(&node.range("one")).is_disjoint(&before));
    node.wait_for("pod/one", ".status.containerStatuses[?(@.name==\"c\")].restartCount", "1");
    node.wait_for("pod/one", ".status.containerStatuses[?(@.name==\"d\")].restartCount", "1");
    node.ready(&["one"]);
    assert_eq!(node.exec("one", &["cat", "/proc/1/uid_map"]).code, 0);
    end(node);
}

#[test]
fn an_init_container_that_the_daemon_did_not_see_end_is_not_run_again() {
    let mut node = Node::start();
    let init = "  initContainers:\n  - name: i\n    image: busybox\n    command: [sh, -c, 'echo ran >> /v/runs; until [ -e /v/go ]; do sleep 0.1; done']\n    \
                volumeMounts: [{ name: v, mountPath: /v }]\n  volumes: [{ name: v, emptyDir: {} }]\n  containers:\n";
    let pod = pod("one").replace("  containers:\n", init);
    node.apply(&pod.replace(
        "image: busybox\n    command: [sh, -c, 'trap",
        "image: busybox\n    volumeMounts: [{ name: v, mountPath: /v }]\n    command: [sh, -c, 'trap",
    ));
    node.wait_for("pod/one", ".status.initContainerStatuses[0].started", "true");
    let range = node.range("one");
    let volume = node
        .root()
        .join("var/lib/kubelet/pods")
        .join(node.uid("one"))
        .join("volumes/kubernetes.io~empty-dir/v");
    node.until("the init container's word", SOON, |_| volume.join("runs").exists());
    node.kill_daemon();
    std::fs::write(volume.join("go"), "").unwrap();
    node.until("the init container's end", SOON, |_| processes_on(&range).is_empty());
    node.up();
    node.ready(&["one"]);
    assert_eq!(node.exec("one", &["cat", "/v/runs"]).ok(), "ran\n");
    assert_eq!(container(&node, "one")["restartCount"], 0);
    end(node);
}

#[test]
fn after_a_restart_volumes_follow_their_objects_and_addresses_stay() {
    let mut node = Node::start();
    node.kubectl(&["create", "configmap", "words", "--from-literal=word=before"]).ok();
    let volume = "  volumes: [{ name: v, configMap: { name: words } }]\n  containers:\n";
    let serve = pod_of("one", "Always", "exec httpd -f -p 8080 -h /v").replace("  containers:\n", volume);
    node.apply(
        &serve
            .replace("image: busybox\n", "image: busybox\n    volumeMounts: [{ name: v, mountPath: /v }]\n"),
    );
    node.ready(&["one"]);
    let address = |node: &Node, pod: &str| {
        node.get(&format!("pod/{pod}"))["status"]["podIP"].as_str().unwrap().to_owned()
    };
    let one = address(&node, "one");
    node.kill_daemon();
    node.up();
    let get = r#"printf "GET /word HTTP/1.0\r\n\r\n""#;
    let fetch = format!("exec 3<>/dev/tcp/{one}/8080; {get} >&3; tail -n 1 <&3");
    assert_eq!(node.shell(&fetch).ok(), "before");
    node.kubectl_with(
        &["patch", "configmap", "words", "--type=merge", "--patch-file=/dev/stdin"],
        r#"{"data":{"word":"after"}}"#,
    )
    .ok();
    node.until("the volume to follow", SOON, |node| node.shell(&fetch).stdout == "after");
    node.apply(&pod("two"));
    node.ready(&["two"]);
    assert_ne!(address(&node, "two"), one);
    assert_eq!(address(&node, "one"), one);
    let fetch = format!("{get} | nc {one} 8080 | tail -n 1");
    assert_eq!(node.exec("two", &["sh", "-c", &fetch]).ok(), "after");
    assert_eq!(container(&node, "one")["restartCount"], 0);
    end(node);
}
