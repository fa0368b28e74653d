//! What the node makes of records, directories, shims and settings that changed behind its back: it starts, tells, keeps
//! what runs as it is, and never gives a range twice.
//!
//! The IDs are those of the behaviour's specification (persistence and recovery E01-E23; T06).

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use tests::{Leftovers, Node, processes_on};

/// A Pod without anything mounted in its directory.
fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{ name: {name} }}\nspec:\n  hostUsers: false\n  terminationGracePeriodSeconds: 0\n  \
         automountServiceAccountToken: false\n  containers:\n  - name: c\n    image: busybox\n    command: [sleep, infinity]\n"
    )
}

/// A Pod that gets a record and never a sandbox: the kernel refuses this setting.
fn without_sandbox(name: &str) -> String {
    pod(name).replace(
        "  containers:",
        "  securityContext: { sysctls: [{ name: net.ipv4.ip_local_port_range, value: none }] }\n  containers:",
    )
}

fn directory(node: &Node, pod: &str) -> PathBuf {
    node.root().join("var/lib/kubelet/pods").join(node.uid(pod))
}

/// The messages of a Pod's events with this reason.
fn events(node: &Node, pod: &str, reason: &str) -> Vec<String> {
    let listed = node.kubectl(&["events", "--for", &format!("pod/{pod}"), "-o", "json"]).ok();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let items = listed["items"].as_array().unwrap().iter().filter(|event| event["reason"] == reason);
    items.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
}

/// The ID space as the node prints it.
fn userns(node: &Node) -> Value {
    serde_json::from_str(&node.kakoi(&["userns", "--output", "json"]).ok()).unwrap()
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[test]
fn e07_e15_a_bad_record_costs_its_own_pod_and_no_other() {
    let mut node = Node::start();
    for manifest in [pod("fine"), pod("healed"), without_sandbox("broken"), without_sandbox("twin")] {
        node.apply(&manifest);
    }
    node.ready(&["fine", "healed"]);
    for name in ["broken", "twin"] {
        node.until("a record without a sandbox", Duration::from_secs(30), |node| {
            directory(node, name).join("userns").exists()
                && !events(node, name, "FailedCreatePodSandBox").is_empty()
        });
    }
    let (fine, healed) = (node.record("fine"), node.record("healed"));
    let ranges = [node.range("fine"), node.range("healed")];
    let [broken, twin, cut] = ["broken", "twin", "healed"].map(|name| directory(&node, name));
    node.kill_daemon();
    fs::write(broken.join("userns"), "{\"uidMappings\":[{\"host").unwrap();
    fs::write(cut.join("userns"), "null").unwrap();
    fs::write(twin.join("userns"), &fine).unwrap();
    node.up();

    // Who runs is healed from what runs; who does not waits for a person.
    node.ready(&["fine", "healed"]);
    assert_eq!((node.record("fine"), node.record("healed")), (fine, healed));
    for (name, range) in ["fine", "healed"].iter().zip(&ranges) {
        let map = node.exec(name, &["cat", "/proc/self/uid_map"]).ok();
        assert!(map.contains(&range.start.to_string()), "{map}");
        assert_eq!(node.get(&format!("pod/{name}"))["status"]["containerStatuses"][0]["restartCount"], 0);
    }
    let told = |name: &str, part: &str| {
        node.until(&format!("an event of {name} with `{part}`"), Duration::from_secs(30), |node| {
            let listed = node.kubectl(&["events", "--for", &format!("pod/{name}"), "-o", "json"]).ok();
            listed.contains(part)
        });
    };
    told("healed", "of the running sandbox stand");
    told("broken", "the user namespace record is invalid");
    told("twin", "the user namespace record is invalid");
    let shown = userns(&node).to_string();
    for name in ["broken", "twin"] {
        assert!(shown.contains(&node.uid(name)), "quarantined Pods are shown: {shown}");
        assert!(node.get(&format!("pod/{name}"))["status"]["phase"] == "Pending");
    }

    // The node goes on: a new Pod gets a range of its own, and a quarantined one is freed by its deletion.
    node.apply(&pod("new"));
    node.ready(&["new"]);
    assert!(ranges.iter().all(|range| !overlap(range, &node.range("new"))));
    node.kubectl(&["delete", "pod", "--all", "--timeout=60s"]).ok();
    node.until("the records to go", Duration::from_secs(30), |node| {
        userns(node)["pods"].as_array().is_some_and(Vec::is_empty) && node.leftovers().files.is_empty()
    });
    node.down().ok();
    assert_eq!(node.leftovers(), Leftovers::default());
}

#[test]
fn e18_a_directory_deleted_by_hand_frees_nothing_while_the_sandbox_runs() {
    let mut node = Node::start();
    node.apply(&pod("victim"));
    node.ready(&["victim"]);
    let (range, dir) = (node.range("victim"), directory(&node, "victim"));
    fs::remove_dir_all(&dir).unwrap();
    let newcomers = |node: &Node, names: &[&str]| {
        for name in names {
            node.apply(&pod(name));
        }
        node.ready(names);
        for name in names {
            assert!(!overlap(&range, &node.range(name)), "{name} has got the range of a Pod that runs");
        }
    };
    newcomers(&node, &["a", "b"]);
    node.kill_daemon();
    fs::remove_file(node.root().join("var/lib/kakoi/ids/next")).unwrap();
    node.up();
    newcomers(&node, &["c", "d"]);
    assert!(!processes_on(&range).is_empty(), "the Pod has run all the time");
    assert_eq!(node.exec("victim", &["id", "-u"]).ok(), "0\n");
    node.kubectl(&["delete", "pod", "victim", "--timeout=60s"]).ok();
    node.until("its range to be free", Duration::from_secs(30), |node| {
        processes_on(&range).is_empty()
            && !userns(node)["pods"].to_string().contains(&format!("{}-", range.start))
    });
    assert!(!dir.exists());
}

#[test]
fn e11_another_number_of_ids_for_each_pod_leaves_those_that_run_as_they_are() {
    let mut node = Node::start();
    node.configure("maxPods: 40\n");
    for name in ["one", "two", "three"] {
        node.apply(&pod(name));
    }
    node.ready(&["one", "two", "three"]);
    let old = ["one", "two", "three"].map(|name| (node.record(name), node.range(name)));
    node.kill_daemon();
    node.configure("maxPods: 40\nuserNamespaces: { idsPerPod: 131072 }\n");
    node.up();
    node.ready(&["one", "two", "three"]);
    node.apply(&pod("large"));
    node.ready(&["large"]);
    let map = node.exec("large", &["cat", "/proc/self/uid_map"]).ok();
    let numbers: Vec<u64> = map.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!((numbers[0], numbers[1] % 131_072, numbers[2]), (0, 0, 131_072));
    let large = numbers[1]..numbers[1] + 131_072;
    for (name, (record, range)) in ["one", "two", "three"].iter().zip(&old) {
        assert_eq!(node.record(name), *record);
        assert!(!overlap(&large, range), "{large:?} and {range:?}");
        assert_eq!(node.exec(name, &["id", "-u"]).ok(), "0\n");
    }
    // A container that starts again does so in its old namespace.
    let sleeper = processes_on(&old[0].1).into_iter().next().unwrap();
    node.shell(&format!("kill -9 {sleeper}")).ok();
    node.until("a restart", Duration::from_secs(30), |node| {
        let status = &node.get("pod/one")["status"]["containerStatuses"][0];
        status["restartCount"] == 1 && status["ready"] == true
    });
    assert!(node.exec("one", &["cat", "/proc/self/uid_map"]).ok().contains(&old[0].1.start.to_string()));
}

#[test]
fn a_shim_that_dies_ends_its_pod_with_a_reason_and_the_pod_comes_back_with_its_mapping() {
    let node = Node::start();
    node.apply(&pod("fallen"));
    node.apply(&pod("other"));
    node.ready(&["fallen", "other"]);
    let (record, range, others) =
        (node.record("fallen"), node.range("fallen"), processes_on(&node.range("other")));
    let sleeper = processes_on(&range).into_iter().next().unwrap();
    let status = fs::read_to_string(format!("/proc/{sleeper}/status")).unwrap();
    let shim = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned();
    node.shell(&format!("kill -9 {shim}")).ok();
    node.until("a new container", Duration::from_secs(30), |node| {
        let status = &node.get("pod/fallen")["status"]["containerStatuses"][0];
        status["restartCount"] == 1 && status["ready"] == true
    });
    let last = node.get("pod/fallen")["status"]["containerStatuses"][0]["lastState"]["terminated"].clone();
    assert_eq!(last["exitCode"], 137, "{last}");
    let message = last["message"].as_str().unwrap_or_default();
    assert!(message.contains("shim") && message.contains(&shim), "{last}");
    assert_eq!(node.record("fallen"), record);
    let now = processes_on(&range);
    assert!(!now.is_empty() && !now.contains(&sleeper), "the old container is gone: {now:?}");
    assert_eq!(processes_on(&node.range("other")), others, "the other Pod has noticed nothing");
    assert_eq!(node.exec("fallen", &["id", "-u"]).ok(), "0\n");
}

#[test]
fn t06_before_a_range_is_given_again_nothing_of_its_last_pod_is_left() {
    // A node with two blocks: the third Pod gets the first one's.
    let mut node = Node::prepare(tests::NodeOptions::default());
    let first = (56_000 + u64::from(std::process::id() % 4_000) * 2) * 65_536;
    node.shell(&format!("for f in uid gid; do echo kubelet:{first}:131072 > /etc/sub$f; done")).ok();
    node.configure("maxPods: 2\n");
    node.up();
    node.apply(&pod("old"));
    node.apply(&pod("neighbour"));
    node.ready(&["old", "neighbour"]);
    let range = node.range("old");
    let leave = "echo x > /left; echo x > /dev/shm/left; mkfifo /tmp/pipe; (sleep 1000 &)";
    node.exec("old", &["sh", "-c", leave]).ok();
    let owned = |node: &Node| {
        let find = format!(
            "find {} /dev/shm /tmp -xdev -uid +{} -uid -{} 2>/dev/null",
            node.root().display(),
            range.start - 1,
            range.end
        );
        node.shell(&find).stdout
    };
    assert!(owned(&node).contains("left"), "the root filesystem's files carry the range");
    node.kubectl(&["delete", "pod", "old", "--timeout=60s"]).ok();
    node.apply(&pod("new"));
    node.ready(&["new"]);
    assert_eq!(node.range("new"), range, "there is no other");
    assert!(!owned(&node).contains("left"), "{}", owned(&node));
    for name in ["/left", "/dev/shm/left", "/tmp/pipe"] {
        node.exec("new", &["test", "!", "-e", name]).ok();
    }
    // Whoever has the range now has it in one user namespace, the new Pod's. (Numbers of namespaces are used again, so
    // the old one's number says nothing.)
    let find = format!(
        "grep -lE '^ +0 +{} ' /proc/[0-9]*/uid_map 2>/dev/null | sed 's/uid_map/ns\\/user/' | xargs readlink | sort -u",
        range.start
    );
    let namespaces = node.shell(&find).ok();
    assert_eq!(namespaces.lines().count(), 1, "{namespaces}");
    assert_eq!(processes_on(&range).len(), 1, "the new Pod's process alone");
}
