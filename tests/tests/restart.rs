//! The daemon may die at any instant: Pods live on, and nothing is lost, leaked or held twice.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

use std::collections::BTreeSet;
use std::time::Duration;

use tests::{Leftovers, Node, NodeOptions, processes_on};

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name} }}\nspec:\n  hostUsers: false\n  terminationGracePeriodSeconds: 1\n  \
         containers:\n  - name: c\n    image: busybox\n    command: [sh, -c, 'trap exit TERM; echo started; sleep infinity & wait']\n"
    )
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
    node.kubectl(&["delete", "pod", "--all", "--wait=true", "--timeout=60s"]).ok();
    node.down().ok();
    assert_eq!(node.leftovers(), Leftovers::default());
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
    let mut node = Node::start();
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
    node.kubectl(&["delete", "pod", "--all", "--timeout=60s"]).ok();
    node.down().ok();
    assert_eq!(node.leftovers(), Leftovers::default());
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
