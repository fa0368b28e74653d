//! Pods whose network is that of CNI plugins: Debian's `bridge`, `host-local` and `portmap`.

use std::fs;

use cri::v1::{PodSandboxConfig, PodSandboxStatusRequest, PortMapping, Protocol};
use serde_json::json;
use tests::{Node, NodeOptions, Runtime};

use crate::side::{Pod, Side, container};

const SUBNET: &str = "10.88.0.0/24";

fn write_list(node: &Node) -> String {
    let dir = node.root().join("net.d");
    fs::create_dir(&dir).unwrap();
    let ipam = json!({"type": "host-local", "dataDir": node.root().join("leases"),
        "ranges": [[{"subnet": SUBNET}]], "routes": [{"dst": "0.0.0.0/0"}]});
    let list = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni1", "isGateway": true, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": true}}]});
    fs::write(dir.join("10-pods.conflist"), list.to_string()).unwrap();
    dir.display().to_string()
}

async fn address(side: &mut Side, pod: &Pod) -> String {
    let request = PodSandboxStatusRequest { pod_sandbox_id: pod.id.clone(), verbose: false };
    let status = side.runtime.pod_sandbox_status(request).await.unwrap().into_inner().status.unwrap();
    status.network.unwrap().ip
}

/// A sandbox that is reached on a port of the node.
fn with_port(mut config: PodSandboxConfig) -> PodSandboxConfig {
    let tcp = Protocol::Tcp.into();
    config.port_mappings =
        vec![PortMapping { protocol: tcp, container_port: 8080, host_port: 18080, host_ip: String::new() }];
    config
}

#[test]
fn pods_speak_to_each_other_and_to_the_node_through_cni_plugins_and_leave_nothing() {
    let node = Node::prepare(NodeOptions::default());
    let conf_dir = write_list(&node);
    let mut runtime = Runtime::start_with(&node, &["--cni-conf-dir", &conf_dir]);
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let logs = node.root().join("logs");
    let (server, ip) = tokio.block_on(async {
        let mut side = Side::connect(&runtime.socket(), logs.clone()).await;
        let config = with_port(side.sandbox("server"));
        let server = side.run(config).await;
        let line = "while :; do echo served | nc -l -p 8080; done";
        side.start(&server, container("c", line)).await;
        let ip = address(&mut side, &server).await;
        let (_, client) = side.sleeper("client").await;
        let ask = format!("until nc -w 2 {ip} 8080 </dev/null; do sleep 0.1; done");
        assert_eq!(side.exec(&client, &ask).await, "served");
        (server, ip)
    });
    assert!(ip.starts_with("10.88.0."), "{ip}");
    // The node's own side: the bridge, the port that is mapped, the addresses that are given away.
    assert!(node.shell("ip -4 -o addr show dev cni1").ok().contains("10.88.0.1/24"));
    let uplink = node.shell("ip -4 -o addr show dev uplink").ok();
    let uplink = uplink.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
    let ask = format!("busybox nc -w 2 {uplink} 18080 </dev/null");
    node.until("the mapped port", std::time::Duration::from_secs(20), |node| {
        node.shell(&ask).stdout == "served\n"
    });

    // The plugins are told to undo what they were told to do, by a daemon that did not tell it.
    runtime.kill();
    fs::remove_file(node.root().join("net.d/10-pods.conflist")).unwrap();
    runtime.spawn();
    runtime.wait();
    tokio.block_on(async {
        let mut side = Side::connect(&runtime.socket(), logs).await;
        assert_eq!(address(&mut side, &server).await, ip);
        side.clean().await;
    });
    let left = "ip -o link show type veth master cni1; ls $0/leases/pods | grep -v -e lock -e last; iptables -t nat -S | grep -e --dport";
    assert_eq!(node.shell(&left.replace("$0", &node.root().display().to_string())).stdout, "");
    runtime.down().ok();
}
