//! Whose an ID, a file and a process is: asked of a node whose daemon runs, and of one whose daemon was killed.

use serde_json::json;
use tests::Node;

use super::pod;

/// Every process of the instance's Pods: its PID, and the UID of the Pod in whose control group it is.
fn processes(node: &Node) -> Vec<(u32, String)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let instance = node.instance();
    let found = pids.filter_map(|pid| {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let line = groups.lines().find(|line| line.contains(&instance) && line.contains("/pod"))?;
        let uid = line.split('/').find_map(|part| part.strip_prefix("pod"))?;
        Some((pid, uid.to_owned()))
    });
    found.collect()
}

/// A Pod of the test: its UID, which `kubectl` can't be asked for when the daemon is dead, and whether it is fenced.
struct Known {
    uid: String,
    name: &'static str,
    is_fenced: bool,
}

#[track_caller]
fn every_process_is_known(node: &Node, pods: &[Known]) {
    let found = processes(node);
    for pod in pods {
        assert!(found.iter().any(|(_, uid)| *uid == pod.uid), "no process of {} is found", pod.name);
    }
    for (pid, uid) in found {
        let pod = pods.iter().find(|pod| pod.uid == uid).unwrap_or_else(|| panic!("whose is {pid}?"));
        let of_process = node.kakoi(&["who-owns", &format!("pid:{pid}")]);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let id = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            line.and_then(|line| line.split_whitespace().nth(1).map(str::to_owned))
        };
        // A process that has ended meanwhile is nobody's.
        let (Some(user), Some(group)) = (id("Uid:"), id("Gid:")) else { continue };
        let of_process = of_process.ok();
        let named = format!("Pod default/{} (UID {uid})", pod.name);
        assert!(of_process.contains(&format!("control group of the {named}")), "{of_process}");
        assert!(of_process.contains(&format!("UID {user}")), "{of_process}");
        if !pod.is_fenced {
            assert!(node.kakoi(&["who-owns", &user]).ok().contains("the node's account `root`"));
            continue;
        }
        for subject in [user, format!("gid:{group}")] {
            let said = node.kakoi(&["who-owns", &subject]).ok();
            assert!(said.contains(&named), "{subject}: {said}");
        }
    }
}

#[test]
fn each_process_of_each_pod_is_its_pods_with_the_daemon_running_and_killed() {
    let mut node = Node::start();
    node.apply(&pod("default", "one", json!({})));
    node.apply(&pod("default", "two", json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 2000}})));
    node.apply(&pod("default", "agent", json!({"hostPID": true})));
    node.ready(&["one", "two", "agent"]);
    let (first, uid) = (node.first_id("one"), node.uid("one"));
    let known = [("one", true), ("two", true), ("agent", false)];
    let known = known.map(|(name, is_fenced)| Known { uid: node.uid(name), name, is_fenced });
    every_process_is_known(&node, &known);
    let record = node.root().join("var/lib/kubelet/pods").join(&uid).join("userns");
    for is_running in [true, false] {
        if !is_running {
            node.kill_daemon();
            every_process_is_known(&node, &known);
        }
        let say = |what: &str| node.kakoi(&["who-owns", what]).ok();
        // Of nobody, and why.
        assert!(say("4294967295").contains("\"no ID\" to the kernel"));
        assert!(say("70000").contains("nobody, and no Pod is given it: the pool begins at"));
        assert!(say("gid:0").contains("the node's group `root`"));
        let range = say(&format!("{}-{}", first - 1, first + 65_535));
        assert!(range.lines().any(|line| line.contains(&format!("Pod default/one (UID {uid})"))), "{range}");
        assert!(range.lines().count() >= 2, "{range}");
        let file = say(&record.to_string_lossy());
        assert!(
            file.contains("the node's account `root`")
                && file.contains("lies in the directory of the Pod default/one"),
            "{file}"
        );
        let json = node.kakoi(&["who-owns", &first.to_string(), "--output", "json"]).ok();
        assert!(json.contains("\"owner\": \"pod\"") || json.contains("\"owner\": \"Pod\""), "{json}");
        let picture = node.kakoi(&["userns"]).ok();
        for part in [
            "Pool:",
            "IDs per Pod:  65536",
            "Blocks:",
            "default/one",
            "default/two",
            "Given away by the machine:",
        ] {
            assert!(picture.contains(part), "{part} is missing in:\n{picture}");
        }
    }
    let unknown = node.kakoi(&["who-owns", "pid:2147483646"]).refused();
    assert!(unknown.contains("there is no process 2147483646"), "{unknown}");
}
