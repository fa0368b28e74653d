//! Pods with IPv6 addresses, alone and beside IPv4.

use std::net::{IpAddr, Ipv6Addr};

use network::{NetworkConfig, NetworkError, PodNetwork, PortMapping, Protocol};

use crate::world::{NODE, Netns, OUTSIDE, PATIENCE, REFUSED, World, shell};

const NODE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd85, 0, 0, 0, 0, 0, 0, 1);

/// A world that is reached by both families.
fn world() -> World {
    let world = World::new();
    world
        .node
        .shell(&format!("ip addr add {NODE6}/64 dev uplink nodad && ip route add default via {OUTSIDE6}"));
    world.outside.shell(&format!("ip addr add {OUTSIDE6}/64 dev uplink nodad"));
    world
}

fn config(world: &World, cidrs: &str) -> NetworkConfig {
    NetworkConfig { pod_cidrs: cidrs.parse().unwrap(), ..world.config() }
}

async fn attach(network: &PodNetwork, id: &str, pod: &Netns, ports: &[PortMapping]) -> Vec<IpAddr> {
    network.attach(id, pod.fd(), ports).await.unwrap().ips
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn web(host_ip: Option<&str>) -> PortMapping {
    let host_ip = host_ip.map(|ip| ip.parse().unwrap());
    PortMapping { host_ip, host_port: 8080, container_port: 80, protocol: Protocol::Tcp }
}

#[test]
fn with_two_ranges_a_pod_has_an_address_of_each_in_their_order_and_both_lead_everywhere() {
    let world = world();
    let (one, two) = (Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(config(&world, "10.85.0.0/16,fd85::/64")).await.unwrap();
        let first = attach(&network, "one", &one, &[]).await;
        let second = attach(&network, "two", &two, &[]).await;
        assert_eq!(first, addresses(&["10.85.0.2", "fd85::2"]));
        assert_eq!(second, addresses(&["10.85.0.3", "fd85::3"]));
        assert_eq!(network.addresses("one").unwrap().ips, first);
        let _servers = [two.serve("[::]:80"), world.node.serve("[::]:81"), world.outside.serve("[::]:82")];
        assert_eq!(
            one.ask(second[1], 80, PATIENCE),
            Some("fd85::2".to_owned()),
            "a Pod sees the other's address"
        );
        assert_eq!(one.ask(second[0], 80, PATIENCE), Some("::ffff:10.85.0.2".to_owned()));
        assert_eq!(one.ask(GATEWAY6, 81, PATIENCE), Some("fd85::2".to_owned()), "the node sees the Pod's");
        assert_eq!(one.ask(NODE6, 81, PATIENCE), Some("fd85::2".to_owned()));
        assert_eq!(one.ask(OUTSIDE6, 82, PATIENCE), Some(NODE6.to_string()), "the world sees the node");
        assert_eq!(one.ask(OUTSIDE, 82, PATIENCE), Some(format!("::ffff:{NODE}")));
        assert_eq!(world.node.ask(second[1], 80, PATIENCE), Some(GATEWAY6.to_string()));
        assert_eq!(two.ask(second[1], 80, PATIENCE), Some("fd85::3".to_owned()), "a Pod reaches itself");
        network.detach("one").await.unwrap();
        assert_eq!(network.addresses("one"), None);
        let third = attach(&network, "three", &Netns::new(), &[]).await;
        assert_eq!(third, addresses(&["10.85.0.4", "fd85::4"]), "next-fit in both");
    });
}

#[test]
fn a_node_can_have_ipv6_alone_and_its_pods_speak_at_once() {
    let world = world();
    let pod = Netns::new();
    world.on_node(async || {
        let network = PodNetwork::open(config(&world, "fd85::/64")).await.unwrap();
        let _server = world.outside.serve("[::]:82");
        assert_eq!(attach(&network, "one", &pod, &[]).await, addresses(&["fd85::2"]));
        let shown = pod.shell(
            "ip -6 -o addr show dev eth0 scope global; ip -4 -o addr show dev eth0; ip -o link show eth0",
        );
        assert!(shown.contains("inet6 fd85::2/64") && !shown.contains("tentative"), "{shown}");
        assert!(
            !shown.contains("inet ") && shown.contains("0a:58:00:00:00:02") && shown.contains("mtu 1400"),
            "{shown}"
        );
        // Duplicate address detection would hold the first packet back for a second.
        assert_eq!(pod.ask(OUTSIDE6, 82, REFUSED), Some(NODE6.to_string()));
        assert!(shell("nft list tables").lines().all(|table| table != "table ip kakoi"));
    });
}

#[test]
fn host_ports_are_open_on_the_addresses_of_both_families() {
    let world = world();
    let (pod, other) = (Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(config(&world, "fd85::/64,10.85.0.0/16")).await.unwrap();
        let dns = PortMapping { host_port: 5300, container_port: 53, protocol: Protocol::Udp, host_ip: None };
        attach(&network, "web", &pod, &[web(None), dns]).await;
        attach(&network, "other", &other, &[]).await;
        let _server = pod.serve("[::]:80");
        assert_eq!(
            world.outside.ask(NODE6, 8080, PATIENCE),
            Some(OUTSIDE6.to_string()),
            "the Pod sees who asks"
        );
        assert_eq!(world.outside.ask(NODE, 8080, PATIENCE), Some(format!("::ffff:{OUTSIDE}")));
        let udp = pod.serve_one_udp("[::]:53");
        assert_eq!(world.outside.ask_udp(NODE6, 5300, PATIENCE), Some(OUTSIDE6.to_string()));
        udp.join().unwrap();
        for ip in [NODE6, GATEWAY6] {
            assert!(world.node.ask(ip, 8080, PATIENCE).is_some(), "from the node by {ip}");
        }
        assert!(other.ask(NODE6, 8080, PATIENCE).is_some(), "from another Pod");
        assert!(pod.ask(NODE6, 8080, PATIENCE).is_some(), "from itself");
        network.detach("web").await.unwrap();
        assert_eq!(world.outside.ask(NODE6, 8080, REFUSED), None, "closed");
    });
}

#[test]
fn a_host_port_on_one_address_is_of_that_family_alone() {
    let world = world();
    let pod = Netns::new();
    world.on_node(async || {
        let network = PodNetwork::open(config(&world, "10.85.0.0/16,fd85::/64")).await.unwrap();
        attach(&network, "web", &pod, &[web(Some("2001:db8::1"))]).await;
        let _server = pod.serve("[::]:80");
        assert!(world.outside.ask(NODE6, 8080, PATIENCE).is_some());
        assert_eq!(world.outside.ask(NODE, 8080, REFUSED), None);
        assert_eq!(world.node.ask(GATEWAY6, 8080, REFUSED), None, "another address of the node");
        network.teardown().await.unwrap();
        let network = PodNetwork::open(world.config()).await.unwrap();
        let error = network.attach("web", pod.fd(), &[web(Some("2001:db8::1"))]).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot map host port 8080 on 2001:db8::1 for sandbox web: its Pod has no IPv6 address; leave `hostIP` \
             out or give the node a range of that family with `--pod-cidr`"
        );
        assert_eq!(network.addresses("web"), None);
    });
}

#[test]
fn a_pod_cannot_speak_with_a_foreign_ipv6_address() {
    let world = world();
    let (thief, victim, other) = (Netns::new(), Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(config(&world, "fd85::/64")).await.unwrap();
        attach(&network, "thief", &thief, &[]).await;
        let address = attach(&network, "victim", &victim, &[]).await[0];
        attach(&network, "other", &other, &[]).await;
        let _server = victim.serve("[::]:80");
        let _trap = thief.serve("[::]:80");
        assert!(other.ask(address, 80, PATIENCE).is_some());
        victim.shell("ip link set eth0 down");
        thief.shell(&format!("ip addr add {address}/64 dev eth0 nodad"));
        for asker in [&other, &world.node] {
            asker.shell("ip -6 neigh flush all");
            assert_eq!(asker.ask(address, 80, REFUSED), None, "the thief cannot answer for the victim");
        }
        shell("nft flush chain bridge kakoi guard");
        other.shell("ip -6 neigh flush all");
        assert!(other.ask(address, 80, PATIENCE).is_some(), "it is the guard that stops it");
    });
}

#[test]
fn a_pod_cannot_announce_another_pods_address_from_its_own() {
    let world = world();
    let (thief, victim, other) = (Netns::new(), Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(config(&world, "fd85::/64")).await.unwrap();
        let thiefs = attach(&network, "thief", &thief, &[]).await[0];
        let victims = attach(&network, "victim", &victim, &[]).await[0];
        let others = attach(&network, "other", &other, &[]).await[0];
        let _server = victim.serve("[::]:80");
        assert!(other.ask(victims, 80, PATIENCE).is_some());
        let known = other.shell(&format!("ip -6 neigh show {victims}"));
        assert!(known.contains("0a:58:00:00:00:03"), "{known}");
        thief.run(|| announce(thiefs, victims, others));
        assert_eq!(neighbour(&other, victims), "0a:58:00:00:00:03", "what it announced did not arrive");
        shell("nft flush chain bridge kakoi guard");
        thief.run(|| announce(thiefs, victims, others));
        assert_eq!(neighbour(&other, victims), "0a:58:00:00:00:02", "it is the guard that stops it");
    });
}

/// The MAC that a Pod knows of an address. Asking itself first settles what has come in on its link.
fn neighbour(pod: &Netns, address: IpAddr) -> String {
    pod.ask(GATEWAY6, 9, REFUSED);
    let line = pod.shell(&format!("ip -6 neigh show {address}"));
    let words: Vec<&str> = line.split(' ').collect();
    let at = words.iter().position(|word| *word == "lladdr").unwrap_or_else(|| panic!("{line}"));
    words[at + 1].to_owned()
}

/// Sends a neighbour advertisement (RFC 4861, section 4.4) for `target` with our MAC, from our own address.
fn announce(own: IpAddr, target: IpAddr, to: IpAddr) {
    use std::os::fd::AsFd as _;
    let octets = |address: IpAddr| match address {
        IpAddr::V6(address) => address.octets(),
        IpAddr::V4(_) => panic!("an IPv6 address is wanted"),
    };
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(octets(target));
    message.extend([2, 1, 0x0a, 0x58, 0, 0, 0, 2]);
    let raw = rustix::net::socket(
        rustix::net::AddressFamily::INET6,
        rustix::net::SocketType::RAW,
        Some(rustix::net::ipproto::ICMPV6),
    )
    .unwrap();
    let place = |ip| std::net::SocketAddr::new(ip, 0);
    rustix::net::sockopt::set_ipv6_unicast_hops(raw.as_fd(), Some(255)).unwrap();
    rustix::net::bind(&raw, &place(own)).unwrap();
    rustix::net::sendto(&raw, &message, rustix::net::SendFlags::empty(), &place(to)).unwrap();
}

#[test]
fn lost_records_of_both_families_are_found_again_on_the_bridge() {
    let world = world();
    let pod = Netns::new();
    world.on_node(async || {
        let both = config(&world, "10.85.0.0/16,fd85::/64");
        let network = PodNetwork::open(both.clone()).await.unwrap();
        let first = attach(&network, "one", &pod, &[]).await;
        drop(network);
        std::fs::remove_dir_all(&both.state_dir).unwrap();
        let network = PodNetwork::open(both).await.unwrap();
        assert_eq!(network.addresses("one").unwrap().ips, first);
        assert_eq!(attach(&network, "two", &Netns::new(), &[]).await, addresses(&["10.85.0.3", "fd85::3"]));
    });
}

#[test]
fn a_pod_keeps_its_addresses_when_the_node_gets_a_second_range() {
    let world = world();
    let (old, new) = (Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        let first = attach(&network, "old", &old, &[]).await;
        drop(network);
        let network = PodNetwork::open(config(&world, "10.85.0.0/16,fd85::/64")).await.unwrap();
        assert_eq!(attach(&network, "old", &old, &[]).await, first);
        let second = attach(&network, "new", &new, &[]).await;
        assert_eq!(second, addresses(&["10.85.0.3", "fd85::2"]));
        let _server = new.serve("0.0.0.0:80");
        assert!(old.ask(second[0], 80, PATIENCE).is_some());
        drop(network);
        let network = PodNetwork::open(world.config()).await.unwrap();
        network.reconcile(&["old".to_owned(), "new".to_owned()]).await.unwrap();
        assert!(old.ask(second[0], 80, PATIENCE).is_some(), "the second range is gone, the first one stays");
        assert!(!shell("nft list tables").contains("ip6"), "and no table of it");
    });
}

#[test]
fn a_range_that_an_ipv6_route_uses_is_refused_by_name() {
    let world = world();
    world.on_node(async || {
        let error = PodNetwork::open(config(&world, "10.85.0.0/16,2001:db8::/60")).await.unwrap_err();
        assert!(matches!(error, NetworkError::Overlap { .. }), "{error}");
        assert!(error.to_string().contains("the route 2001:db8::/64 (dev uplink)"), "{error}");
    });
}

#[test]
fn forwarding_keeps_the_way_out_that_was_advertised_and_teardown_leaves_the_node_as_it_was() {
    let world = world();
    let before = world.footprint();
    let pod = Netns::new();
    let accept_ra = "cat /proc/sys/net/ipv6/conf/uplink/accept_ra";
    assert_eq!(world.node.shell(accept_ra), "1\n");
    world.on_node(async || {
        let network = PodNetwork::open(config(&world, "10.85.0.0/16,fd85::/64")).await.unwrap();
        attach(&network, "one", &pod, &[]).await;
        assert_eq!(shell("cat /proc/sys/net/ipv6/conf/all/forwarding"), "1\n");
        assert_eq!(shell(accept_ra), "2\n", "a router that still listens to its own router");
        network.teardown().await.unwrap();
    });
    assert_eq!(world.footprint(), before);
}
