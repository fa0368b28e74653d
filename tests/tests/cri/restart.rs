//! A runtime that dies with many containers running.

use std::collections::BTreeMap;

use cri::v1::{ContainerFilter, ContainerState, ContainerStatusRequest, ListContainersRequest};
use tests::{Node, NodeOptions, Runtime};

use crate::side::{Side, container};

/// Sandboxes, and containers in each.
const MANY: (usize, usize) = (20, 10);

/// The first process of each running container.
async fn running(side: &mut Side) -> BTreeMap<String, u64> {
    let filter = ContainerFilter {
        state: Some(cri::v1::ContainerStateValue { state: ContainerState::ContainerRunning.into() }),
        ..ContainerFilter::default()
    };
    let request = ListContainersRequest { filter: Some(filter) };
    let listed = side.runtime.list_containers(request).await.unwrap().into_inner().containers;
    let mut pids = BTreeMap::new();
    for one in listed {
        let request = ContainerStatusRequest { container_id: one.id.clone(), verbose: true };
        let info = side.runtime.container_status(request).await.unwrap().into_inner().info;
        let info: serde_json::Value = serde_json::from_str(&info["info"]).unwrap();
        pids.insert(one.id, info["pid"].as_u64().unwrap());
    }
    pids
}

#[test]
fn two_hundred_containers_run_on_while_the_daemon_is_killed_and_started_again() {
    let node = Node::prepare(NodeOptions::default());
    let mut runtime = Runtime::start(&node);
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let logs = node.root().join("logs");
    let before = tokio.block_on(async {
        let mut side = Side::connect(&runtime.socket(), logs.clone()).await;
        for _ in 0..MANY.0 {
            let pod = side.pod("kept").await;
            for number in 0..MANY.1 {
                let line =
                    "i=0; while read -r word; do i=$((i+1)); echo $word $i; done </tmp/say; exec sleep 1000";
                let line = format!("mkfifo /tmp/say; exec 3<>/tmp/say; {}", line.replace("</tmp/say", "<&3"));
                side.start(&pod, container(&format!("c{number}"), &line)).await;
            }
        }
        running(&mut side).await
    });
    assert_eq!(before.len(), MANY.0 * MANY.1);

    runtime.kill();
    for pid in before.values() {
        assert!(std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} died with the daemon");
    }
    runtime.spawn();
    runtime.wait();
    tokio.block_on(async {
        let mut side = Side::connect(&runtime.socket(), logs).await;
        assert_eq!(running(&mut side).await, before, "each container has the process that it had");
        // What a container says reaches its log, which nobody but its shim has written meanwhile.
        let (id, _) = before.first_key_value().unwrap();
        assert_eq!(side.exec(id, "echo word >/tmp/say").await, "");
        let log = side.status(id).await.log_path;
        node.until("the container's word", std::time::Duration::from_secs(20), |_| {
            std::fs::read_to_string(&log).unwrap().contains("stdout F word 1")
        });
        side.clean().await;
        assert_eq!(running(&mut side).await, BTreeMap::new());
    });
    for pid in before.values() {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
    }
}
