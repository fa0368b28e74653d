//! The program dies by SIGKILL in the middle of attachments; the next run leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use network::{PodNetwork, PortMapping, Protocol};

use crate::world::{Netns, World, attach, shell};

const STATE: &str = "KAKOI_TEST_NETWORK_STATE";

/// Attaches and detaches without end. Only for the test below, which kills it.
#[test]
#[ignore = "it is the program that `kills_in_the_middle_leave_nothing` starts and kills"]
fn victim() {
    let Ok(state) = std::env::var(STATE) else { return };
    let config = network::NetworkConfig {
        instance: "kakoi".to_owned(),
        bridge: "kakoi0".to_owned(),
        table: "kakoi".to_owned(),
        pod_cidrs: "10.85.0.0/24".parse().unwrap(),
        api: None,
        state_dir: format!("{state}/network").into(),
        machine_dir: format!("{state}/run").into(),
    };
    let pods: Vec<Netns> = (0..4).map(|_| Netns::new()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let network = PodNetwork::open(config).await.unwrap();
        println!("running");
        for round in 0_u16.. {
            let slot = usize::from(round % 4);
            let ports = [PortMapping {
                host_ip: None,
                host_port: 9000 + round % 4,
                container_port: 80,
                protocol: Protocol::Tcp,
            }];
            let ports = if round % 2 == 0 { &ports[..] } else { &[] };
            let id = format!("pod-{round}");
            network.attach(&id, pods[slot].fd(), ports).await.unwrap();
            if round >= 3 {
                network.detach(&format!("pod-{}", round - 3)).await.unwrap();
            }
        }
    });
}

#[test]
fn kills_in_the_middle_leave_nothing() {
    let world = World::new();
    let before = world.footprint();
    for round in 0..12_u64 {
        world.node.run(|| {
            let mut victim = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "crash::victim", "--ignored", "--nocapture"])
                .env(STATE, world.state.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            // Its output is held open: it must die by the signal and by nothing else.
            let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
            let started = lines.by_ref().map_while(Result::ok).any(|line| line.contains("running"));
            assert!(started, "the victim does not start");
            // Any moment will do; these are spread over a few attachments.
            std::thread::park_timeout(Duration::from_micros(3_000 + round * 2_713));
            victim.kill().unwrap();
            assert_eq!(victim.wait().unwrap().signal(), Some(9));
        });
    }
    let config =
        network::NetworkConfig { pod_cidrs: "10.85.0.0/24".parse().unwrap(), api: None, ..world.config() };
    let pod = Netns::new();
    world.on_node(async || {
        let network = PodNetwork::open(config.clone()).await.unwrap();
        attach(&network, "after", &pod, &[]).await;
        network.reconcile(&["after".to_owned()]).await.unwrap();
        assert_eq!(shell("ip -o link show master kakoi0").lines().count(), 1);
        assert!(!shell("nft list table ip kakoi").contains("elements"), "a host port stayed");
        let records: Vec<_> = std::fs::read_dir(config.state_dir.join("sandboxes")).unwrap().collect();
        assert_eq!(records.len(), 1, "{records:?}");
        network.teardown().await.unwrap();
    });
    assert_eq!(world.footprint(), before);
}
