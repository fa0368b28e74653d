//! Host ports, from everywhere.

use std::net::Ipv4Addr;

use network::{PodNetwork, PortMapping, Protocol};

use crate::world::{GATEWAY, NODE, Netns, PATIENCE, REFUSED, World, attach, shell};

fn port(host_port: u16, container_port: u16, protocol: Protocol) -> PortMapping {
    PortMapping { host_ip: None, host_port, container_port, protocol }
}

#[test]
fn a_host_port_is_reached_from_the_node_its_loopback_the_world_pods_and_the_pod_itself() {
    let world = World::new();
    let (pod, other) = (Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        attach(&network, "web", &pod, &[port(8080, 80, Protocol::Tcp)]).await;
        attach(&network, "other", &other, &[]).await;
        let _server = pod.serve("0.0.0.0:80");
        let outside = world.outside.ask(NODE, 8080, PATIENCE);
        assert_eq!(outside, Some("192.0.2.2".to_owned()), "the Pod sees who asks");
        for ip in [NODE, GATEWAY, Ipv4Addr::LOCALHOST] {
            assert!(world.node.ask(ip, 8080, PATIENCE).is_some(), "from the node by {ip}");
        }
        assert!(other.ask(NODE, 8080, PATIENCE).is_some(), "from another Pod");
        assert!(pod.ask(NODE, 8080, PATIENCE).is_some(), "from itself");
        network.detach("web").await.unwrap();
        assert_eq!(world.outside.ask(NODE, 8080, REFUSED), None, "closed");
    });
}

#[test]
fn a_host_port_of_udp_answers() {
    let world = World::new();
    let pod = Netns::new();
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        attach(&network, "dns", &pod, &[port(5300, 53, Protocol::Udp)]).await;
        for _ in 0..2 {
            let server = pod.serve_one_udp("0.0.0.0:53");
            assert_eq!(world.outside.ask_udp(NODE, 5300, PATIENCE), Some("192.0.2.2".to_owned()));
            server.join().unwrap();
        }
    });
}

#[test]
fn a_host_port_on_one_address_is_not_open_on_others() {
    let world = World::new();
    let pod = Netns::new();
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        let local =
            PortMapping { host_ip: Some(Ipv4Addr::LOCALHOST.into()), ..port(8080, 80, Protocol::Tcp) };
        attach(&network, "web", &pod, &[local]).await;
        let _server = pod.serve("0.0.0.0:80");
        assert!(world.node.ask(Ipv4Addr::LOCALHOST, 8080, PATIENCE).is_some());
        assert_eq!(world.outside.ask(NODE, 8080, REFUSED), None);
    });
}

#[test]
fn a_port_that_another_sandbox_has_is_refused_by_name() {
    let world = World::new();
    let (pod, other) = (Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        attach(&network, "web", &pod, &[port(8080, 80, Protocol::Sctp)]).await;
        let error = network.attach("other", other.fd(), &[port(8080, 1, Protocol::Sctp)]).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot map host port 8080/sctp for sandbox other: sandbox web has it");
        attach(&network, "other", &other, &[port(8080, 1, Protocol::Tcp)]).await;
    });
}

#[test]
fn ports_survive_a_restart_and_a_flushed_ruleset() {
    let world = World::new();
    let (pod, other) = (Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        attach(&network, "web", &pod, &[port(8080, 80, Protocol::Tcp)]).await;
        let _server = pod.serve("0.0.0.0:80");
        drop(network);
        let network = PodNetwork::open(world.config()).await.unwrap();
        assert!(world.outside.ask(NODE, 8080, PATIENCE).is_some(), "after a restart");
        shell("nft flush ruleset");
        attach(&network, "other", &other, &[port(8081, 80, Protocol::Tcp)]).await;
        assert!(world.outside.ask(NODE, 8080, PATIENCE).is_some(), "the next change puts all rules back");
        shell("nft flush ruleset");
        network.detach("other").await.unwrap();
    });
}

#[test]
fn other_ports_for_the_same_sandbox_take_the_place_of_the_former() {
    let world = World::new();
    let pod = Netns::new();
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        let address = attach(&network, "web", &pod, &[port(8080, 80, Protocol::Tcp)]).await;
        assert_eq!(attach(&network, "web", &pod, &[port(8081, 80, Protocol::Tcp)]).await, address);
        let _server = pod.serve("0.0.0.0:80");
        assert!(world.outside.ask(NODE, 8081, PATIENCE).is_some());
        assert_eq!(world.outside.ask(NODE, 8080, REFUSED), None);
    });
}
