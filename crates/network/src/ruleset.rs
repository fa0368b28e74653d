//! The nftables rules of an instance as text: a table of each family of which its Pods have addresses. Pure: golden
//! tests hold every line.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddrV4};

use crate::address::{Cidr, Family, PodCidrs};
use crate::port::PortMapping;

/// The rules of all families.
#[derive(Debug)]
pub(crate) struct Rules {
    plans: Vec<RulesPlan>,
    /// Families without a range, which may have had one when the program ran last.
    former: Vec<RulesPlan>,
}

impl Rules {
    /// What `bridge` needs for Pods of `cidrs`. The API server is found by IPv4. Families that the kernel does not know
    /// are none of its tables'.
    pub(crate) fn new(
        (table, bridge): (&str, &str),
        cidrs: PodCidrs,
        api: Option<ApiService>,
        has_ipv6: bool,
    ) -> Self {
        let plan = |cidr: Cidr| RulesPlan {
            table: table.to_owned(),
            bridge: bridge.to_owned(),
            cidr,
            api: api.filter(|_| cidr.family() == Family::V4),
        };
        let known = [Some(Family::V4), has_ipv6.then_some(Family::V6)].into_iter().flatten();
        let former = known.filter(|family| cidrs.of(*family).is_none());
        Self {
            plans: cidrs.iter().map(plan).collect(),
            former: former.map(|family| plan(family.all())).collect(),
        }
    }

    /// All tables, in the place of what was there. One transaction: no packet sees half of it.
    pub(crate) fn whole(&self, pods: &[(&[IpAddr], &PortMapping)]) -> String {
        let former: String = self.former.iter().map(RulesPlan::removal).collect();
        let of = |plan: &RulesPlan| {
            let ports =
                pods.iter().filter_map(|(addresses, port)| Some((plan.leads(addresses, port)?, *port)));
            plan.whole(ports)
        };
        self.plans.iter().map(of).fold(former, |text, table| text + &table)
    }

    /// Opens the host ports of a Pod.
    pub(crate) fn open(&self, addresses: &[IpAddr], ports: &[PortMapping]) -> String {
        self.plans.iter().map(|plan| plan.change("add", addresses, ports)).collect()
    }

    /// Closes the host ports of a Pod, whether they are open or not: `delete` alone fails for what is not there.
    pub(crate) fn close(&self, addresses: &[IpAddr], ports: &[PortMapping]) -> String {
        let closed = self.plans.iter().map(|plan| plan.change("delete", addresses, ports));
        closed.fold(self.open(addresses, ports), |text, delete| text + &delete)
    }

    /// Removes all tables, whether they are there or not.
    pub(crate) fn removal(&self) -> String {
        self.plans.iter().chain(&self.former).map(RulesPlan::removal).collect()
    }
}

/// What the rules of one family depend on.
#[derive(Debug, Clone)]
struct RulesPlan {
    table: String,
    bridge: String,
    cidr: Cidr,
    api: Option<ApiService>,
}

/// The address at which Pods expect the API server, and where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiService {
    /// What Pods connect to (`KUBERNETES_SERVICE_HOST` and `_PORT`), for example `10.96.0.1:443`.
    pub address: SocketAddrV4,
    /// The port on which the API server listens on this node.
    pub port: u16,
}

impl RulesPlan {
    /// Where a port of a Pod with these addresses leads in this family.
    fn leads(&self, addresses: &[IpAddr], port: &PortMapping) -> Option<IpAddr> {
        let family = self.cidr.family();
        addresses.iter().copied().find(|address| Family::of(*address) == family && port.is_of(family))
    }

    /// The whole table, in the place of what was there.
    fn whole<'a>(&self, pods: impl IntoIterator<Item = (IpAddr, &'a PortMapping)>) -> String {
        let Self { table, bridge, cidr, .. } = self;
        let Words { ip, addr, loopback, multicast } = Words::of(cidr.family());
        let own = self.own();
        let (mut any, mut one) = (Vec::new(), Vec::new());
        for (address, port) in pods {
            let elements = if port.host_ip.is_some() { &mut one } else { &mut any };
            elements.push(element(address, port));
        }
        let (any, one, api) = (elements(&mut any), elements(&mut one), self.api_rule());
        let removal = self.removal();
        format!(
            "{removal}table {ip} {table} {{
	map host_ports {{
		type inet_proto . inet_service : {addr} . inet_service
{any}	}}

	map host_ports_at {{
		type {addr} . inet_proto . inet_service : {addr} . inet_service
{one}	}}

	chain guard {{
		type filter hook prerouting priority raw; policy accept;
		iifname \"{bridge}\" {ip} saddr != {own} drop
		iifname \"{bridge}\" {ip} daddr {loopback} drop
	}}

	chain arriving {{
		type nat hook prerouting priority dstnat; policy accept;
{api}		fib daddr type local dnat {ip} to {ip} daddr . meta l4proto . th dport map @host_ports_at
		fib daddr type local dnat {ip} to meta l4proto . th dport map @host_ports
	}}

	chain outgoing {{
		type nat hook output priority -100; policy accept;
		fib daddr type local dnat {ip} to {ip} daddr . meta l4proto . th dport map @host_ports_at
		fib daddr type local dnat {ip} to meta l4proto . th dport map @host_ports
	}}

	chain leaving {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname \"{bridge}\" {ip} saddr {loopback} masquerade
		oifname \"{bridge}\" {ip} saddr {cidr} ct status dnat masquerade
		oifname != \"{bridge}\" {ip} saddr {cidr} {ip} daddr != {multicast} masquerade
	}}
}}
"
        )
    }

    fn api_rule(&self) -> String {
        self.api.map_or_else(String::new, |ApiService { address, port }| {
            let (bridge, gateway) = (&self.bridge, self.cidr.gateway());
            let (ip, vip_port) = (address.ip(), address.port());
            format!("\t\tiifname \"{bridge}\" ip daddr {ip} tcp dport {vip_port} dnat to {gateway}:{port}\n")
        })
    }

    /// The addresses that packets from the bridge may have: with IPv6 also what links have before they have an address.
    fn own(&self) -> String {
        match self.cidr.family() {
            Family::V4 => self.cidr.to_string(),
            Family::V6 => format!("{{ ::, fe80::/10, {} }}", self.cidr),
        }
    }

    fn change(&self, verb: &str, addresses: &[IpAddr], ports: &[PortMapping]) -> String {
        let (table, ip) = (&self.table, Words::of(self.cidr.family()).ip);
        ports.iter().fold(String::new(), |mut text, port| {
            let map = if port.host_ip.is_some() { "host_ports_at" } else { "host_ports" };
            if let Some(address) = self.leads(addresses, port) {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{verb} element {ip} {table} {map} {{ {} }}", element(address, port));
            }
            text
        })
    }

    /// Removes the table, whether it is there or not.
    fn removal(&self) -> String {
        let (table, ip) = (&self.table, Words::of(self.cidr.family()).ip);
        format!("table {ip} {table}\ndelete table {ip} {table}\n")
    }
}

/// What a family is called in rules.
struct Words {
    ip: &'static str,
    addr: &'static str,
    loopback: &'static str,
    multicast: &'static str,
}

impl Words {
    fn of(family: Family) -> Self {
        match family {
            Family::V4 => {
                Self { ip: "ip", addr: "ipv4_addr", loopback: "127.0.0.0/8", multicast: "224.0.0.0/4" }
            }
            Family::V6 => Self { ip: "ip6", addr: "ipv6_addr", loopback: "::1", multicast: "ff00::/8" },
        }
    }
}

fn element(address: IpAddr, port: &PortMapping) -> String {
    let PortMapping { host_ip, host_port, container_port, protocol } = port;
    let at = host_ip.map(|ip| format!("{ip} . ")).unwrap_or_default();
    format!("{at}{protocol} . {host_port} : {address} . {container_port}")
}

fn elements(elements: &mut [String]) -> String {
    elements.sort();
    if elements.is_empty() {
        String::new()
    } else {
        format!("\t\telements = {{ {} }}\n", elements.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    fn rules(cidrs: &str, api: Option<ApiService>) -> Rules {
        Rules::new(("kakoi", "kakoi0"), cidrs.parse().unwrap(), api, cidrs.contains(':'))
    }

    fn api() -> ApiService {
        ApiService { address: "10.96.0.1:443".parse().unwrap(), port: 6443 }
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn port(host_port: u16, protocol: Protocol) -> PortMapping {
        PortMapping { host_ip: None, host_port, container_port: 80, protocol }
    }

    #[test]
    fn the_whole_table_is_this_text() {
        let web = port(8080, Protocol::Tcp);
        let dns = PortMapping { host_ip: "192.168.1.5".parse().ok(), ..port(53, Protocol::Udp) };
        let pod = addresses(&["10.85.0.2"]);
        let text = rules("10.85.0.0/16", Some(api())).whole(&[(&pod, &web), (&pod, &dns)]);
        assert_eq!(text, include_str!("../testdata/whole.nft"));
        assert_eq!(rules("10.85.0.0/16", None).whole(&[]), include_str!("../testdata/bare.nft"));
    }

    #[test]
    fn with_both_families_each_has_its_table_and_the_ports_of_its_addresses() {
        let web = port(8080, Protocol::Tcp);
        let dns = PortMapping { host_ip: "2001:db8::5".parse().ok(), ..port(53, Protocol::Udp) };
        let pod = addresses(&["10.85.0.2", "fd85::2"]);
        let both = rules("10.85.0.0/16,fd85::/64", None);
        assert_eq!(both.whole(&[(&pod, &web), (&pod, &dns)]), include_str!("../testdata/both.nft"));
        assert_eq!(both.removal().matches("delete table").count(), 2);
    }

    #[test]
    fn the_table_of_a_family_that_pods_have_no_more_is_removed_where_the_kernel_knows_it() {
        let of = |has_ipv6| Rules::new(("kakoi", "kakoi0"), "10.85.0.0/16".parse().unwrap(), None, has_ipv6);
        assert!(of(true).whole(&[]).starts_with("table ip6 kakoi\ndelete table ip6 kakoi\ntable ip kakoi\n"));
        assert!(!of(false).whole(&[]).contains("ip6"));
    }

    #[test]
    fn ports_open_and_close_by_element() {
        let ports = [
            port(8080, Protocol::Tcp),
            PortMapping { host_ip: "127.0.0.1".parse().ok(), ..port(99, Protocol::Sctp) },
        ];
        let pod = addresses(&["10.85.0.2", "fd85::2"]);
        let (four, six) = (rules("10.85.0.0/16", Some(api())), rules("fd85::/64", None));
        let open = "add element ip kakoi host_ports { tcp . 8080 : 10.85.0.2 . 80 }\n\
                    add element ip kakoi host_ports_at { 127.0.0.1 . sctp . 99 : 10.85.0.2 . 80 }\n";
        assert_eq!(four.open(&pod, &ports), open);
        assert_eq!(four.close(&pod, &ports), open.to_owned() + &open.replace("add", "delete"));
        assert_eq!(four.open(&pod, &[]), "");
        assert_eq!(
            six.open(&pod, &ports),
            "add element ip6 kakoi host_ports { tcp . 8080 : fd85::2 . 80 }\n"
        );
    }
}
