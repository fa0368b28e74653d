//! Beside firewalls that drop what they do not know.

use std::net::Ipv4Addr;

use network::{PodNetwork, PortMapping, Protocol};

use crate::world::{NODE, Netns, OUTSIDE, PATIENCE, REFUSED, World, attach, shell};

/// As Docker and ufw leave a machine.
const IPTABLES: &str = "iptables -P FORWARD DROP; iptables -P INPUT DROP; iptables -N DOCKER-USER; \
    iptables -A FORWARD -j DOCKER-USER; iptables -A DOCKER-USER -j RETURN; \
    iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT; iptables -A INPUT -i lo -j ACCEPT";

/// As firewalld does: its chains accept by policy and reject at their end.
const FIREWALLD: &str = "nft 'table inet firewalld { chain filter_FORWARD { type filter hook forward priority filter + 10; \
    policy accept; ct state { established, related } accept; reject with icmpx admin-prohibited; }; }'";

fn pods_work_beside(firewall: &str) {
    let world = World::new();
    world.node.shell(firewall);
    let before = world.footprint();
    let (pod, other) = (Netns::new(), Netns::new());
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        let web = PortMapping { host_ip: None, host_port: 8080, container_port: 80, protocol: Protocol::Tcp };
        let address = attach(&network, "web", &pod, &[web]).await;
        attach(&network, "other", &other, &[]).await;
        let _servers =
            [pod.serve("0.0.0.0:80"), world.outside.serve("0.0.0.0:82"), world.node.serve("0.0.0.0:6443")];
        assert!(pod.ask(OUTSIDE, 82, PATIENCE).is_some(), "to the world");
        assert!(world.outside.ask(NODE, 8080, PATIENCE).is_some(), "from the world to a host port");
        assert!(other.ask(address, 80, PATIENCE).is_some(), "from Pod to Pod");
        assert!(pod.ask(Ipv4Addr::new(10, 96, 0, 1), 443, PATIENCE).is_some(), "to the API");
        network.reconcile(&["web".to_owned(), "other".to_owned()]).await.unwrap();
        assert!(shell("nft list ruleset").matches("kakoi:kakoi0").count() <= 5, "no rule twice");
        network.teardown().await.unwrap();
    });
    assert_eq!(world.footprint(), before);
}

#[test]
fn pods_work_beside_docker_and_ufw() {
    pods_work_beside(IPTABLES);
}

#[test]
fn pods_work_beside_firewalld() {
    pods_work_beside(FIREWALLD);
}

#[test]
fn iptables_reads_and_writes_its_tables_as_before() {
    let world = World::new();
    world.node.shell(IPTABLES);
    world.on_node(async || {
        let _network = PodNetwork::open(world.config()).await.unwrap();
        let rules = shell("iptables -S");
        assert!(
            rules.contains("-A FORWARD -i kakoi0 -m comment --comment \"kakoi:kakoi0\" -j ACCEPT"),
            "{rules}"
        );
        assert!(rules.contains("-A INPUT -i kakoi0 -p tcp -m tcp --dport 6443"), "{rules}");
        shell("iptables -A FORWARD -j ACCEPT && iptables -D FORWARD -j ACCEPT && iptables-save > /dev/null");
    });
}

#[test]
fn a_firewall_that_comes_later_is_passed_after_a_reconciliation() {
    let world = World::new();
    let pod = Netns::new();
    world.on_node(async || {
        let network = PodNetwork::open(world.config()).await.unwrap();
        attach(&network, "one", &pod, &[]).await;
        let _server = world.outside.serve("0.0.0.0:82");
        shell(IPTABLES);
        assert_eq!(pod.ask(OUTSIDE, 82, REFUSED), None);
        network.reconcile(&["one".to_owned()]).await.unwrap();
        assert!(pod.ask(OUTSIDE, 82, PATIENCE).is_some());
    });
}
