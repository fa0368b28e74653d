//! The nftables rules of an instance as text. Pure: golden tests hold every line.

use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::address::Cidr;
use crate::port::PortMapping;

/// What the rules depend on.
#[derive(Debug, Clone)]
pub(crate) struct RulesPlan {
    pub(crate) table: String,
    pub(crate) bridge: String,
    pub(crate) cidr: Cidr,
    pub(crate) api: Option<ApiService>,
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
    /// The whole table, in the place of what was there. One transaction: no packet sees half of it.
    pub(crate) fn whole<'a>(&self, pods: impl IntoIterator<Item = (Ipv4Addr, &'a PortMapping)>) -> String {
        let Self { table, bridge, cidr, .. } = self;
        let (mut any, mut one) = (Vec::new(), Vec::new());
        for (address, port) in pods {
            let elements = if port.host_ip.is_some() { &mut one } else { &mut any };
            elements.push(element(address, port));
        }
        let (any, one, api) = (elements(&mut any), elements(&mut one), self.api_rule());
        format!(
            "table ip {table}
delete table ip {table}
table ip {table} {{
	map host_ports {{
		type inet_proto . inet_service : ipv4_addr . inet_service
{any}	}}

	map host_ports_at {{
		type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
{one}	}}

	chain guard {{
		type filter hook prerouting priority raw; policy accept;
		iifname \"{bridge}\" ip saddr != {cidr} drop
		iifname \"{bridge}\" ip daddr 127.0.0.0/8 drop
	}}

	chain arriving {{
		type nat hook prerouting priority dstnat; policy accept;
{api}		fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @host_ports_at
		fib daddr type local dnat ip to meta l4proto . th dport map @host_ports
	}}

	chain outgoing {{
		type nat hook output priority -100; policy accept;
		fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @host_ports_at
		fib daddr type local dnat ip to meta l4proto . th dport map @host_ports
	}}

	chain leaving {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname \"{bridge}\" ip saddr 127.0.0.0/8 masquerade
		oifname \"{bridge}\" ip saddr {cidr} ct status dnat masquerade
		oifname != \"{bridge}\" ip saddr {cidr} ip daddr != 224.0.0.0/4 masquerade
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

    /// Opens the host ports of a Pod.
    pub(crate) fn open(&self, address: Ipv4Addr, ports: &[PortMapping]) -> String {
        self.change("add", address, ports)
    }

    /// Closes the host ports of a Pod, whether they are open or not: `delete` alone fails for what is not there.
    pub(crate) fn close(&self, address: Ipv4Addr, ports: &[PortMapping]) -> String {
        self.change("add", address, ports) + &self.change("delete", address, ports)
    }

    fn change(&self, verb: &str, address: Ipv4Addr, ports: &[PortMapping]) -> String {
        ports.iter().fold(String::new(), |mut text, port| {
            let map = if port.host_ip.is_some() { "host_ports_at" } else { "host_ports" };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{verb} element ip {} {map} {{ {} }}", self.table, element(address, port));
            text
        })
    }

    /// Removes the table, whether it is there or not.
    pub(crate) fn removal(&self) -> String {
        format!("table ip {0}\ndelete table ip {0}\n", self.table)
    }
}

fn element(address: Ipv4Addr, port: &PortMapping) -> String {
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

    fn plan() -> RulesPlan {
        RulesPlan {
            table: "kakoi".to_owned(),
            bridge: "kakoi0".to_owned(),
            cidr: "10.85.0.0/16".parse().unwrap(),
            api: Some(ApiService { address: "10.96.0.1:443".parse().unwrap(), port: 6443 }),
        }
    }

    fn port(host_port: u16, protocol: Protocol) -> PortMapping {
        PortMapping { host_ip: None, host_port, container_port: 80, protocol }
    }

    #[test]
    fn the_whole_table_is_this_text() {
        let web = port(8080, Protocol::Tcp);
        let dns = PortMapping { host_ip: Some(Ipv4Addr::new(192, 168, 1, 5)), ..port(53, Protocol::Udp) };
        let pod = Ipv4Addr::new(10, 85, 0, 2);
        let text = plan().whole([(pod, &web), (pod, &dns)]);
        assert_eq!(text, include_str!("../testdata/whole.nft"));
        let bare = RulesPlan { api: None, ..plan() };
        assert_eq!(bare.whole([]), include_str!("../testdata/bare.nft"));
    }

    #[test]
    fn ports_open_and_close_by_element() {
        let ports = [
            port(8080, Protocol::Tcp),
            PortMapping { host_ip: Some(Ipv4Addr::LOCALHOST), ..port(99, Protocol::Sctp) },
        ];
        let pod = Ipv4Addr::new(10, 85, 0, 2);
        let open = "add element ip kakoi host_ports { tcp . 8080 : 10.85.0.2 . 80 }\n\
                    add element ip kakoi host_ports_at { 127.0.0.1 . sctp . 99 : 10.85.0.2 . 80 }\n";
        assert_eq!(plan().open(pod, &ports), open);
        assert_eq!(plan().close(pod, &ports), open.to_owned() + &open.replace("add", "delete"));
        assert_eq!(plan().open(pod, &[]), "");
    }
}
