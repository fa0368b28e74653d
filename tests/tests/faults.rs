//! SIGKILL of the daemon at random moments while Pods come and go. In the end nothing may be held twice, leaked or
//! left behind.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tests::{Leftovers, Node, processes_on};

/// Kills in CI; `make soak` sets `KAKOI_SOAK` for twenty times as many.
const KILLS: u64 = 50;

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
    let kills = if std::env::var_os("KAKOI_SOAK").is_some() { KILLS * 20 } else { KILLS };
    let seed = seed();
    println!("KAKOI_SEED={seed} repeats this run");
    let mut random = Random(seed);
    let mut node = Node::start();
    for round in 0..kills {
        // Both may fail when the daemon dies meanwhile: that is the point.
        let manifest = pod(round);
        node.kubectl_with(&["create", "--request-timeout=5s", "-f", "-"], &manifest);
        if round >= 3 {
            let old = format!("p{}", round - 3);
            node.kubectl(&[
                "delete",
                "pod",
                &old,
                "--wait=false",
                "--request-timeout=5s",
                "--ignore-not-found",
            ]);
        }
        std::thread::park_timeout(Duration::from_millis(random.below(700)));
        node.kill_daemon();
        node.spawn_daemon();
        node.until("the API after a kill", Duration::from_secs(30), |node| {
            node.kubectl(&["get", "--raw=/readyz", "--request-timeout=2s"]).code == 0
        });
        check_ranges(&node, seed);
    }
    node.until("the node to be Ready", Duration::from_secs(30), |node| {
        node.kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=10s"]).code == 0
    });
    let deleted = node.kubectl(&["delete", "pod", "--all", "--timeout=120s"]);
    assert_eq!(deleted.code, 0, "seed {seed}: {}\n{}", deleted.stderr, node.log());
    node.until("the records to go", Duration::from_secs(30), |node| held(node).is_empty());
    node.down().ok();
    assert_eq!(node.leftovers(), Leftovers::default(), "seed {seed}");
    assert_eq!(node.network_leftovers(), "", "seed {seed}");
}

/// The ranges that the node holds, as it says itself.
fn held(node: &Node) -> Vec<std::ops::Range<u64>> {
    let shown = node.kakoi(&["userns", "--output", "json"]).ok();
    let snapshot: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let range = |entry: &serde_json::Value| {
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
            .filter_map(|pid| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok())
            .collect();
        assert!(namespaces.len() <= 1, "seed {seed}: {range:?} carries {namespaces:?}");
    }
}
