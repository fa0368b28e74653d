//! SIGKILL of the daemon at random moments while Pods come and go. In the end nothing may be held twice, leaked or
//! left behind.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tests::{Leftovers, Node, processes_on, unreaped};

/// Kills in CI; `make soak` sets `KAKOI_SOAK` to how many it wants.
const KILLS: u64 = 50;

/// Pods that stay; one of more is deleted in each round.
const KEPT: usize = 4;

fn pod(number: u64) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: p{number} }}\nspec:\n  hostUsers: false\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: busybox\n    \
         command: [sleep, infinity]\n    volumeMounts: [{{ name: v, mountPath: /v }}]\n  volumes:\n  - name: v\n    emptyDir: {{}}\n"
    )
}

/// A number for each call, the same for the same seed (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn seed() -> u64 {
    let given = std::env::var("KAKOI_SEED").ok().and_then(|seed| seed.parse().ok());
    let now = || u64::from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos());
    given.unwrap_or_else(now) | 1
}

#[test]
fn killed_at_any_moment_nothing_is_held_twice_leaked_or_left() {
    let wanted = std::env::var("KAKOI_SOAK").map_or(KILLS, |kills| kills.parse().unwrap());
    let seed = seed();
    println!("KAKOI_SEED={seed} repeats this run");
    let mut trial = Trial { node: Node::start(), random: Random(seed), running: BTreeMap::new() };
    let (mut kills, mut rounds, mut survivals) = (0, 0, 0);
    while kills < wanted {
        let victim = trial.look();
        survivals += trial.running.len();
        trial.change(rounds, victim.as_deref());
        kills += trial.restart();
        check_ranges(&trial.node, seed);
        rounds += 1;
    }
    trial.look();
    println!("{kills} kills in {rounds} rounds; {survivals} times a container outlived its daemon");
    assert!(survivals as u64 >= rounds, "seed {seed}: hardly a container ran when the daemon was killed");
    trial.settle();
    end(trial.node, seed);
}

/// A Pod as it was when it was first seen running.
struct Runs {
    range: Range<u64>,
    processes: BTreeSet<u32>,
    /// More than 0 when the daemon died between making and starting the first container.
    restarts: u64,
}

/// A node that is killed again and again.
struct Trial {
    node: Node,
    random: Random,
    /// Pods that ran once and were not deleted since.
    running: BTreeMap<String, Runs>,
}

impl Trial {
    /// Sees which Pods run, checks that those which ran before still do, and picks one to delete.
    fn look(&mut self) -> Option<String> {
        let listed = self.node.get("pod");
        let staying: Vec<&Value> =
            listed["items"].as_array().unwrap().iter().filter(|pod| stays(pod)).collect();
        for (name, Runs { range, processes, .. }) in &self.running {
            assert_eq!(
                &processes_on(range),
                processes,
                "the Pod {name} did not live on: {}",
                self.node.log()
            );
        }
        for pod in staying.iter().filter(|pod| is_ready(pod)) {
            let range = recorded(&self.node, pod["metadata"]["uid"].as_str().unwrap());
            let (processes, restarts) = (processes_on(&range), restarts(pod));
            self.running.entry(name(pod)).or_insert(Runs { range, processes, restarts });
        }
        let index = self.random.below(staying.len().max(1) as u64);
        let victim = (staying.len() > KEPT).then(|| name(staying[usize::try_from(index).unwrap()]))?;
        self.running.remove(&victim);
        Some(victim)
    }

    /// Makes one Pod and deletes another; the daemon is killed meanwhile or soon after. Both may fail.
    fn change(&mut self, round: u64, victim: Option<&str>) {
        let (node, pause) = (&self.node, Duration::from_millis(self.random.below(900)));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                node.kubectl_with(&["create", "--request-timeout=5s", "-f", "-"], &pod(round));
            });
            if let Some(victim) = victim {
                let delete = ["delete", "pod", victim, "--wait=false", "--request-timeout=5s"];
                scope.spawn(move || node.kubectl(&delete));
            }
            std::thread::park_timeout(pause);
            let daemon = Pid::from_raw(node.daemon_pid().cast_signed()).unwrap();
            kill_process(daemon, Signal::KILL).unwrap();
        });
        self.node.kill_daemon();
    }

    /// Starts the next daemon; each third one is killed while it takes over. Answers how many have been killed.
    fn restart(&mut self) -> u64 {
        let mut kills = 1;
        self.node.spawn_daemon();
        if self.random.below(3) == 0 {
            std::thread::park_timeout(Duration::from_millis(self.random.below(600)));
            self.node.kill_daemon();
            self.node.spawn_daemon();
            kills += 1;
        }
        self.node.until("the API after a kill", Duration::from_secs(30), |node| {
            node.kubectl(&["get", "--raw=/readyz", "--request-timeout=2s"]).code == 0
        });
        kills
    }

    /// What stays gets Ready, and what ran all the time was never started again.
    fn settle(&mut self) {
        self.node.until("the node to be Ready", Duration::from_secs(30), |node| {
            node.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=10s"]).code == 0
        });
        let listed = self.node.get("pod");
        let staying = listed["items"].as_array().unwrap().iter().filter(|pod| stays(pod));
        let names: Vec<String> = staying.map(name).collect();
        self.node.ready(&names.iter().map(String::as_str).collect::<Vec<_>>());
        for (name, runs) in &self.running {
            let pod = self.node.get(&format!("pod/{name}"));
            assert_eq!(restarts(&pod), runs.restarts, "{name}: {}", pod["status"]);
        }
    }
}

fn name(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().unwrap().to_owned()
}

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap()
}

fn stays(pod: &Value) -> bool {
    pod["metadata"].get("deletionTimestamp").is_none()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// The range in the record of the Pod with this UID.
fn recorded(node: &Node, uid: &str) -> Range<u64> {
    let path = node.root().join("var/lib/kubelet/pods").join(uid).join("userns");
    let record: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let first = record["uidMappings"][0]["hostId"].as_u64().unwrap();
    first..first + 65_536
}

/// Everything is deleted and taken down; nothing may be left.
fn end(mut node: Node, seed: u64) {
    let deleted = node.kubectl(&["delete", "pod", "--all", "--timeout=60s"]);
    assert_eq!(deleted.code, 0, "seed {seed}: {}\n{}", deleted.stderr, node.log());
    // The API lets a Pod go before its logs and its directory are removed.
    node.until_none(Duration::from_secs(30), |node| {
        let ranges = held(node).into_iter().map(|range| format!("the IDs {range:?}"));
        ranges.chain(node.leftovers().files).collect()
    });
    let daemon = node.daemon_pid();
    node.until("the daemon to reap its children", Duration::from_secs(5), |_| unreaped(daemon).is_empty());
    node.down().ok();
    assert_eq!(node.leftovers(), Leftovers::default(), "seed {seed}");
    assert_eq!(node.network_leftovers(), "", "seed {seed}");
}

/// The ranges that the node holds, as it says itself.
fn held(node: &Node) -> Vec<Range<u64>> {
    let shown = node.kakoi(&["userns", "--output", "json"]).ok();
    let snapshot: Value = serde_json::from_str(&shown).unwrap();
    let range = |entry: &Value| {
        let (first, last) = entry["range"].as_str().unwrap().split_once('-').unwrap();
        first.parse::<u64>().unwrap()..last.parse::<u64>().unwrap() + 1
    };
    snapshot["pods"].as_array().unwrap().iter().map(range).collect()
}

/// No two records overlap, and no range carries processes of two user namespaces.
fn check_ranges(node: &Node, seed: u64) {
    let mut ranges = held(node);
    ranges.sort_by_key(|range| range.start);
    for pair in ranges.windows(2) {
        assert!(pair[0].end <= pair[1].start, "seed {seed}: {pair:?} overlap");
    }
    for range in &ranges {
        let namespaces: BTreeSet<_> = processes_on(range)
            .into_iter()
            .filter_map(|pid| fs::read_link(format!("/proc/{pid}/ns/user")).ok())
            .collect();
        assert!(namespaces.len() <= 1, "seed {seed}: {range:?} carries {namespaces:?}");
    }
}
