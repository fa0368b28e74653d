//! Records of mappings that are spoiled while Pods run: nothing that runs is touched by it, and no range is given twice.

use std::fs;
use std::path::Path;

use kube::api::DeleteParams;
use serde_json::json;

use crate::node::{Node, restarts, until, waiting};

/// As many Pods as run meanwhile.
const PODS: usize = 50;

/// What happens to a record.
enum Spoil {
    Text(fn(&str) -> String),
    Kind(fn(&Path)),
}

const SPOILS: [(&str, Spoil); 20] = [
    ("E06 empty", Spoil::Text(|_| String::new())),
    ("E07 cut off", Spoil::Text(|old| old[..old.len() / 2].to_owned())),
    ("E07 null", Spoil::Text(|_| "null".into())),
    ("E07 a list", Spoil::Text(|_| "[]".into())),
    ("E07 binary", Spoil::Text(|_| "\u{0}\u{1}\u{2}".into())),
    ("E08 no mapping", Spoil::Text(|_| "{}".into())),
    (
        "E08 two mappings",
        Spoil::Text(|old| old.replace("}]", "},{\"hostId\":0,\"containerId\":9,\"length\":1}]")),
    ),
    ("E09 unequal", Spoil::Text(|old| old.replacen("\"hostId\":", "\"hostId\":65536", 1))),
    ("E10 root unmapped", Spoil::Text(|old| old.replace("\"containerId\":0", "\"containerId\":1"))),
    ("E11 longer", Spoil::Text(|old| old.replace("65536}", "131072}"))),
    ("E12 unaligned", Spoil::Text(|_| record(70_000))),
    ("E13 the node's own", Spoil::Text(|_| record(0))),
    ("E14 far away", Spoil::Text(|_| record(65_536 * 60_000))),
    ("E15 another Pod's", Spoil::Text(|_| record(131_072))),
    ("E16 too large", Spoil::Text(|old| format!("{old}{}", " ".repeat(100 << 10)))),
    ("E19 another range", Spoil::Text(|_| record(65_536 * 1_000))),
    ("E22 a link", Spoil::Kind(|path| std::os::unix::fs::symlink("/etc/hostname", path).unwrap())),
    ("E22 a directory", Spoil::Kind(|path| fs::create_dir(path).unwrap())),
    ("E22 a pipe", Spoil::Kind(make_pipe)),
    ("E23 terminal", Spoil::Text(|_| record(4_294_901_760))),
];

fn record(first: u64) -> String {
    let map = format!("[{{\"hostId\":{first},\"containerId\":0,\"length\":65536}}]");
    format!("{{\"uidMappings\":{map},\"gidMappings\":{map}}}")
}

fn make_pipe(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

impl Spoil {
    fn apply(&self, path: &Path) {
        let old = fs::read_to_string(path).unwrap();
        match self {
            Self::Text(change) => fs::write(path, change(&old)).unwrap(),
            Self::Kind(make) => {
                fs::remove_file(path).unwrap();
                make(path);
            }
        }
    }
}

/// The first host ID of each Pod's sandbox, as the runtime has it, in order.
fn ranges(node: &Node) -> Vec<u32> {
    let books = node.script.books();
    let mut found: Vec<u32> = books
        .sandboxes
        .values()
        .map(|sandbox| {
            let linux = sandbox.config.linux.as_ref().unwrap();
            let options = linux.security_context.as_ref().unwrap().namespace_options.as_ref().unwrap();
            options.userns_options.as_ref().unwrap().uids[0].host_id
        })
        .collect();
    found.sort_unstable();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn e06_to_e16_e19_e22_e23_records_spoiled_while_fifty_pods_run_touch_none_of_them() {
    let mut node = Node::start().await;
    let mut pods = Vec::new();
    for number in 0..PODS {
        pods.push(node.create(&format!("p{number}"), json!({"hostUsers": false})).await);
    }
    for number in 0..PODS {
        node.wait_for_phase(&format!("p{number}"), "Running").await;
    }
    let before = ranges(&node);
    for (pod, (_, spoil)) in pods.iter().zip(SPOILS.iter().cycle()) {
        spoil.apply(&node.pod_dir(pod).join("userns"));
    }

    // A new kubelet finds them so, and goes by what runs.
    node.stop_kubelet().await;
    let calls = node.script.books().calls.len();
    node.start_kubelet().await;
    node.create("new", json!({"hostUsers": false})).await;
    node.wait_for_phase("new", "Running").await;
    for (number, (name, _)) in (0..PODS).zip(SPOILS.iter().cycle()) {
        let status = node.status(&format!("p{number}")).await;
        assert_eq!(status.phase.as_deref(), Some("Running"), "{name}");
    }
    let after = ranges(&node);
    assert!(before.iter().all(|first| after.contains(first)) && after.len() == PODS + 1);
    let mut distinct = after.clone();
    distinct.dedup();
    assert_eq!(distinct, after, "no range is given twice");
    let made: Vec<String> = node.script.books().calls[calls..].to_vec();
    assert_eq!(made.iter().filter(|call| call.starts_with("run_pod_sandbox")).count(), 1, "{made:?}");
    assert!(!made.iter().any(|call| call.starts_with("stop_") || call.starts_with("remove_")), "{made:?}");

    // And they can be deleted as any others.
    for number in 0..PODS {
        node.pods().delete(&format!("p{number}"), &DeleteParams::default().grace_period(1)).await.unwrap();
    }
    for (pod, (name, _)) in pods.iter().zip(SPOILS.iter().cycle()) {
        until(&format!("the Pod with `{name}` leaves nothing"), async || !node.pod_dir(pod).exists()).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_spoiled_under_a_running_kubelet_is_put_right_before_its_containers_start_again() {
    let node = Node::start().await;
    let name = |number: usize| format!("c{number}");
    let mut pods = Vec::new();
    for number in 0..SPOILS.len() {
        let containers = json!([{"name": name(number), "image": "image:1"}]);
        pods.push(node.create(&name(number), json!({"hostUsers": false, "containers": containers})).await);
    }
    for number in 0..SPOILS.len() {
        node.wait_for_phase(&name(number), "Running").await;
    }
    let (before, path) = (ranges(&node), |pod| node.pod_dir(pod).join("userns"));
    let records: Vec<String> = pods.iter().map(|pod| fs::read_to_string(path(pod)).unwrap()).collect();
    for (number, (pod, (_, spoil))) in pods.iter().zip(&SPOILS).enumerate() {
        spoil.apply(&path(pod));
        node.script.exit(&name(number), 1);
    }
    for (number, (what, _)) in SPOILS.iter().enumerate() {
        let is_back = |status: &_| restarts(status) == 1 && waiting(status).is_none();
        node.wait_for(&name(number), &format!("restarted with a record that is {what}"), is_back).await;
    }
    for (record, pod) in records.iter().zip(&pods) {
        assert_eq!(fs::read_to_string(path(pod)).unwrap(), *record);
    }
    assert_eq!(ranges(&node), before, "no sandbox was made anew");
    node.stop().await;
}
