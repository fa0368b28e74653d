//! Pods reach each other, the node, the API and the world; what is attached can be attached and detached again.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use network::{NetworkError, PodNetwork};

use crate::world::{GATEWAY, NODE, Netns, OUTSIDE, PATIENCE, REFUSED, World, attach, shell};

/// Number and name of the link on the bridge; the kernel changes its state by and by.
const LINK: &str = "ip -o link show master kakoi0 | cut -d: -f1,2";

#[test]
fn pods_reach_each_other_the_node_and_the_world_which_sees_the_node() {
    let world = World::new();
    let (one, two) = (Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        let first = attach(&network, "one", &one, &[]).await;
        let second = attach(&network, "two", &two, &[]).await;
        assert_eq!((first, second), (Ipv4Addr::new(10, 85, 0, 2), Ipv4Addr::new(10, 85, 0, 3)));
        assert!(one.shell("ip route").contains(&format!("default via {GATEWAY} ")));
        let _servers =
            [two.serve("0.0.0.0:80"), world.node.serve("0.0.0.0:81"), world.outside.serve("0.0.0.0:82")];
        assert_eq!(one.ask(second, 80, PATIENCE), Some(first.to_string()), "a Pod sees the other's address");
        assert_eq!(
            one.ask(GATEWAY, 81, PATIENCE),
            Some(first.to_string()),
            "the node sees the Pod's address"
        );
        assert_eq!(one.ask(NODE, 81, PATIENCE), Some(first.to_string()));
        assert_eq!(one.ask(OUTSIDE, 82, PATIENCE), Some(NODE.to_string()), "the world sees the node");
        assert_eq!(
            world.node.ask(second, 80, PATIENCE),
            Some(GATEWAY.to_string()),
            "a Pod sees the bridge's address"
        );
        assert_eq!(two.ask(second, 80, PATIENCE), Some(second.to_string()), "a Pod reaches itself");
        assert_eq!(
            two.ask(Ipv4Addr::LOCALHOST, 80, PATIENCE),
            Some("127.0.0.1".to_owned()),
            "the loopback is up"
        );
    });
}

#[test]
fn a_pods_link_has_the_uplinks_mtu_and_a_mac_of_its_address() {
    let world = World::new();
    let pod = Netns::new();
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        attach(&network, "one", &pod, &[]).await;
        let link = pod.shell("ip -o link show eth0; ip -o addr show eth0; ip route");
        assert!(link.contains("mtu 1400") && link.contains("0a:58:0a:55:00:02"), "{link}");
        assert!(
            link.contains("inet 10.85.0.2/16 brd 10.85.255.255") && link.contains("default via 10.85.0.1"),
            "{link}"
        );
        let host = shell("ip -d -o link show type veth master kakoi0");
        assert!(host.contains("hairpin on") && host.contains("alias kakoi one 10.85.0.2"), "{host}");
    });
}

#[test]
fn the_api_service_leads_pods_and_nobody_else_to_the_node() {
    let world = World::new();
    let pod = Netns::new();
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        let address = attach(&network, "one", &pod, &[]).await;
        let _api = world.node.serve("0.0.0.0:6443");
        let service = Ipv4Addr::new(10, 96, 0, 1);
        assert_eq!(pod.ask(service, 443, PATIENCE), Some(address.to_string()));
        assert_eq!(pod.ask(service, 80, REFUSED), None);
        assert_eq!(world.node.ask(service, 443, REFUSED), None);
    });
}

#[test]
fn a_pod_cannot_speak_with_a_foreign_address_nor_to_the_nodes_loopback() {
    let world = World::new();
    let pod = Netns::new();
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        attach(&network, "one", &pod, &[]).await;
        let _server = world.node.serve("127.0.0.1:83");
        let _open = world.node.serve("0.0.0.0:84");
        pod.shell("ip addr add 203.0.113.9/32 dev eth0 && ip route replace default via 10.85.0.1 src 203.0.113.9");
        world.node.shell("ip route add 203.0.113.9/32 dev kakoi0");
        assert_eq!(pod.ask(NODE, 84, REFUSED), None, "a foreign source address");
        unguarded(async || assert!(pod.ask(NODE, 84, PATIENCE).is_some(), "it is the guard that drops it")).await;
        world.node.shell("ip route del 203.0.113.9/32 dev kakoi0");
        pod.shell("ip route replace default via 10.85.0.1 && ip addr del 203.0.113.9/32 dev eth0");
        assert!(pod.ask(NODE, 84, PATIENCE).is_some());
        // The way of CVE-2020-8558: packets for 127.0.0.1 sent to the node's MAC.
        pod.shell(
            "ip link set lo down; echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet; ip addr flush dev lo; \
             ip route del local 127.0.0.0/8 table local 2>/dev/null || true; \
             ip route add 127.0.0.1 via 10.85.0.1 src 10.85.0.2",
        );
        assert_eq!(pod.ask(Ipv4Addr::LOCALHOST, 83, REFUSED), None, "the node's loopback");
        let ask = async || assert!(pod.ask(Ipv4Addr::LOCALHOST, 83, PATIENCE).is_some(), "it is the guard that drops it");
        unguarded(ask).await;
    });
}

#[test]
fn a_pod_cannot_take_another_pods_address() {
    let world = World::new();
    let (thief, victim, other) = (Netns::new(), Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        attach(&network, "thief", &thief, &[]).await;
        let address = attach(&network, "victim", &victim, &[]).await;
        attach(&network, "other", &other, &[]).await;
        let _server = victim.serve("0.0.0.0:80");
        let _trap = thief.serve("0.0.0.0:80");
        let answer = other.ask(address, 80, PATIENCE).unwrap();
        // The thief has the victim's address, and the MAC that goes with it, and says so to all.
        let steal = format!(
            "mac=$(printf '0a:58:%02x:%02x:%02x:%02x' {}); ip link set eth0 down; ip link set eth0 address $mac; \
             ip addr add {address}/16 dev eth0; ip link set eth0 up; ip route replace default via {GATEWAY} src {address}",
            address.octets().map(|octet| octet.to_string()).join(" ")
        );
        victim.shell("ip link set eth0 down");
        thief.shell(&steal);
        assert_eq!(thief.ask(NODE, 80, REFUSED), None, "nothing listens there");
        assert_eq!(other.ask(address, 80, REFUSED), None, "the thief cannot answer for the victim");
        world.node.shell("ip neigh flush all");
        assert_eq!(world.node.ask(address, 80, REFUSED), None, "nor to the node");
        shell("nft flush chain bridge kakoi guard");
        assert_eq!(other.ask(address, 80, PATIENCE), Some(answer), "it is the guard that stops it");
    });
}

#[test]
fn a_guard_that_was_flushed_comes_back_with_the_next_pod() {
    let world = World::new();
    let (one, two) = (Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        attach(&network, "one", &one, &[]).await;
        shell("nft flush ruleset");
        let address = attach(&network, "two", &two, &[]).await;
        let _server = two.serve("0.0.0.0:80");
        assert!(one.ask(address, 80, PATIENCE).is_some());
        let pods = shell("nft list set bridge kakoi pods");
        assert!(pods.contains("10.85.0.2") && pods.contains("10.85.0.3"), "{pods}");
        network.detach("one").await.unwrap();
        let pods = shell("nft list set bridge kakoi pods");
        assert!(!pods.contains("10.85.0.2") && pods.contains("10.85.0.3"), "{pods}");
    });
}

/// Shows that what was refused is refused by the guard and not by an accident of the test.
async fn unguarded(check: impl AsyncFnOnce()) {
    let rules = shell("nft list chain ip kakoi guard; nft list chain bridge kakoi guard");
    shell("nft flush chain ip kakoi guard; nft flush chain bridge kakoi guard");
    check().await;
    shell(&format!("nft -f - <<'RULES'\n{rules}\nRULES"));
}

#[test]
fn attaching_twice_changes_nothing_and_detaching_twice_is_fine() {
    let world = World::new();
    let (pod, other) = (Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        let address = attach(&network, "one", &pod, &[]).await;
        let before = shell(LINK);
        assert_eq!(attach(&network, "one", &pod, &[]).await, address);
        assert_eq!(shell(LINK), before);
        assert_eq!(attach(&network, "one", &other, &[]).await, address, "a new namespace keeps the address");
        let _server = other.serve("0.0.0.0:80");
        assert!(world.node.ask(address, 80, PATIENCE).is_some());
        network.detach("one").await.unwrap();
        network.detach("one").await.unwrap();
        network.detach("never").await.unwrap();
        assert_eq!(network.addresses("one"), None);
        assert_eq!(shell("ip -o link show master kakoi0"), "");
        assert_eq!(
            attach(&network, "two", &Netns::new(), &[]).await,
            Ipv4Addr::new(10, 85, 0, 3),
            "next-fit"
        );
    });
}

#[test]
fn a_new_run_takes_over_what_is_attached_and_drops_what_is_not_live() {
    let world = World::new();
    let (one, two) = (Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        let address = attach(&network, "one", &one, &[]).await;
        attach(&network, "two", &two, &[]).await;
        drop(network);
        shell("nft flush ruleset && ip link add vethstray type veth peer name straypeer && ip link set vethstray master kakoi0");
        let network = PodNetwork::open(world.config()).await.unwrap();
        assert_eq!(network.addresses("one").unwrap().ips, [address]);
        network.reconcile(&["one".to_owned()]).await.unwrap();
        assert_eq!(network.addresses("two"), None);
        assert_eq!(shell("ip -o link show master kakoi0").lines().count(), 1);
        let _server = world.outside.serve("0.0.0.0:80");
        assert_eq!(one.ask(OUTSIDE, 80, PATIENCE), Some(NODE.to_string()), "the rules are back");
    });
}

#[test]
fn lost_records_are_found_again_on_the_bridge() {
    let world = World::new();
    let pod = Netns::new();
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        let address = attach(&network, "one", &pod, &[]).await;
        drop(network);
        std::fs::remove_dir_all(world.config().state_dir).unwrap();
        let network = PodNetwork::open(world.config()).await.unwrap();
        assert_eq!(network.addresses("one").unwrap().ips, [address]);
        assert_ne!(attach(&network, "two", &Netns::new(), &[]).await, address);
    });
}

#[test]
fn many_pods_are_attached_side_by_side() {
    let world = World::new();
    let pods: Vec<Netns> = (0..24).map(|_| Netns::new()).collect();
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for (number, pod) in pods.iter().enumerate() {
            let (network, netns) = (network.clone(), pod.fd().try_clone_to_owned().unwrap());
            let port = network::PortMapping {
                host_ip: None,
                host_port: 8000 + u16::try_from(number).unwrap(),
                container_port: 80,
                protocol: network::Protocol::Tcp,
            };
            tasks.spawn(async move {
                let netns = std::os::fd::AsFd::as_fd(&netns);
                network.attach(&format!("pod-{number}"), netns, &[port]).await.unwrap().ips[0]
            });
        }
        let addresses: std::collections::HashSet<_> = tasks.join_all().await.into_iter().collect();
        assert_eq!(addresses.len(), 24);
        let _server = pods[23].serve("0.0.0.0:80");
        assert!(world.outside.ask(NODE, 8023, PATIENCE).is_some());
    });
}

#[test]
fn a_range_that_a_route_uses_is_refused_by_name() {
    let world = World::new();
    world.on_node(async || {
        shell("ip link add lan type veth peer name lanpeer && ip link set lan up && ip route add 10.85.7.0/24 dev lan");
        let error = PodNetwork::open(world.config()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot use 10.85.0.0/16 for Pods: it overlaps the route 10.85.7.0/24 (dev lan) of this machine; \
             choose another range with `--pod-cidr`"
        );
    });
}

#[test]
fn a_link_with_the_bridges_name_that_is_none_is_refused() {
    let world = World::new();
    world.on_node(async || {
        shell("ip link add kakoi0 type veth peer name peer0");
        let error = PodNetwork::open(world.config()).await.unwrap_err();
        assert!(matches!(error, NetworkError::NotABridge { .. }), "{error}");
    });
}

#[test]
fn a_full_bridge_is_named_and_nothing_stays_of_the_attempt() {
    let world = World::new();
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        shell(
            "ip link add a0 master kakoi0 type veth peer name b0; for i in $(seq 511); do \
             echo link add a$i master kakoi0 type veth peer name b$i; echo link set b$i master kakoi0; done | ip -batch -",
        );
        let error = network.attach("one", Netns::new().fd(), &[]).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot connect sandbox one to kakoi0: a Linux bridge has at most 1023 ports; this node can run no more \
             Pods with a network of their own"
        );
        assert_eq!(network.addresses("one"), None);
    });
}

#[test]
fn teardown_leaves_the_node_as_it_was() {
    let world = World::new();
    let before = world.footprint();
    let pod = Netns::new();
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        attach(&network, "one", &pod, &[]).await;
        assert_eq!(shell("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
        network.teardown().await.unwrap();
    });
    assert_eq!(world.footprint(), before);
    assert!(!world.config().machine_dir.join("ip-forward").exists());
    world.on_node(async || PodNetwork::open(world.config()).await.unwrap().teardown().await.unwrap());
    assert_eq!(world.footprint(), before, "again, with nothing attached");
}

#[test]
fn the_last_of_two_instances_puts_forwarding_back() {
    let world = World::new();
    let before = world.footprint();
    world.on_node(async || {
        let first = PodNetwork::open(world.config()).await.unwrap();
        let other = network::NetworkConfig {
            instance: "kakoi-1".to_owned(),
            bridge: "kk00000001".to_owned(),
            table: "kakoi-1".to_owned(),
            pod_cidrs: "10.86.0.0/16".parse().unwrap(),
            state_dir: world.state.path().join("other"),
            ..world.config()
        };
        let second = PodNetwork::open(other).await.unwrap();
        first.teardown().await.unwrap();
        assert_eq!(shell("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
        second.teardown().await.unwrap();
    });
    assert_eq!(world.footprint(), before);
}

#[test]
fn the_first_packet_of_a_pod_is_not_lost() {
    let world = World::new();
    let _server = world.outside.serve("0.0.0.0:82");
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        let mut slowest = Duration::ZERO;
        for number in 0..20 {
            let pod = Netns::new();
            attach(&network, &format!("pod-{number}"), &pod, &[]).await;
            let start = Instant::now();
            assert!(pod.ask(OUTSIDE, 82, PATIENCE).is_some());
            slowest = slowest.max(start.elapsed());
        }
        // A lost packet is sent again after a second.
        assert!(slowest < Duration::from_millis(900), "{slowest:?}");
    });
}
