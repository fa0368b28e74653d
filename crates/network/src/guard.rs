//! Each bridge port speaks for its own Pod alone: a table of the family `bridge` drops IP and ARP packets that carry
//! another address than the Pod's, and announcements of IPv6 neighbours (RFC 4861) that tell of another. No Pod is a
//! router of others. Pure: the rules are text, and a Pod's elements are the bytes of set keys.

use std::net::{IpAddr, Ipv6Addr};

use crate::nfnetlink::Element;
use crate::pod::{link_local, mac_of};

/// The set of the instance's bridge ports. `meta ibrname` would do, but not every kernel has it.
const LINKS: &str = "links";
/// The set of a port's name with the IPv4 address of its Pod.
const PODS: &str = "pods";
/// The set of a port's name with the IPv6 addresses of its Pod, the link's own among them.
const PODS6: &str = "pods6";
/// The same as what is announced (`@th,64,128`); `nft` takes no set of addresses for it.
const NEIGHBOURS: &str = "neighbours";
/// The size of a link's name in a set's key (`IFNAMSIZ`).
const NAME: usize = 16;

/// The table with the addresses of Pods.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) table: String,
}

impl Guard {
    /// The whole table, in the place of what was there.
    pub(crate) fn whole(&self, pods: &[(String, Vec<IpAddr>)]) -> String {
        let links = elements(pods.iter().map(|(link, _)| format!("\"{link}\"")));
        let (mut four, mut six, mut told) = (Vec::new(), Vec::new(), Vec::new());
        for (link, addresses) in pods {
            for address in spoken_for(addresses) {
                match address {
                    IpAddr::V4(address) => four.push(format!("\"{link}\" . {address}")),
                    IpAddr::V6(address) => {
                        six.push(format!("\"{link}\" . {address}"));
                        told.push(format!("\"{link}\" . {:#034x}", address.to_bits()));
                    }
                }
            }
        }
        let [four, six, told] = [four, six, told].map(|all| elements(all.into_iter()));
        let (removal, table) = (self.removal(), &self.table);
        format!(
            "{removal}table bridge {table} {{
	set {LINKS} {{
		type ifname
{links}	}}

	set {PODS} {{
		type ifname . ipv4_addr
{four}	}}

	set {PODS6} {{
		type ifname . ipv6_addr
{six}	}}

	set {NEIGHBOURS} {{
		typeof iifname . @th,64,128
{told}	}}

	chain guard {{
		type filter hook prerouting priority dstnat; policy accept;
		iifname != @{LINKS} accept
		iifname . ip saddr @{PODS} accept
		iifname . arp saddr ip @{PODS} accept
		icmpv6 type {{ nd-router-advert, nd-redirect }} drop
		icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @{NEIGHBOURS} drop
		iifname . ip6 saddr @{PODS6} accept
		ip6 saddr :: icmpv6 type nd-neighbor-solicit accept
		ether type {{ ip, arp, ip6 }} drop
	}}
}}
"
        )
    }

    /// Removes the table, whether it is there or not.
    pub(crate) fn removal(&self) -> String {
        format!("table bridge {0}\ndelete table bridge {0}\n", self.table)
    }

    /// What the sets hold for one Pod.
    pub(crate) fn elements_of(&self, link: &str, addresses: &[IpAddr]) -> Vec<Element<'_>> {
        let mut name = [0; NAME];
        name.iter_mut().zip(link.bytes()).for_each(|(to, from)| *to = from);
        let element = |set, octets: &[u8]| Element { table: &self.table, set, key: [&name, octets].concat() };
        let mut all = vec![element(LINKS, &[])];
        for address in spoken_for(addresses) {
            match address {
                IpAddr::V4(address) => all.push(element(PODS, &address.octets())),
                IpAddr::V6(address) => {
                    all.extend([PODS6, NEIGHBOURS].map(|set| element(set, &address.octets())));
                }
            }
        }
        all
    }
}

/// A Pod's addresses with its link's own, which the kernel makes of the MAC.
fn spoken_for(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    let own: Ipv6Addr = link_local(mac_of(addresses));
    addresses.iter().copied().chain([own.into()])
}

fn elements(elements: impl Iterator<Item = String>) -> String {
    let mut elements: Vec<String> = elements.collect();
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

    #[test]
    fn the_whole_table_is_this_text() {
        let guard = Guard { table: "kakoi".to_owned() };
        let pods = [
            ("veth02".to_owned(), vec!["10.85.0.3".parse().unwrap(), "fd85::3".parse().unwrap()]),
            ("veth01".to_owned(), vec!["10.85.0.2".parse().unwrap()]),
        ];
        assert_eq!(guard.whole(&pods), include_str!("../testdata/guard.nft"));
    }

    #[test]
    fn keys_are_the_padded_name_and_the_address() {
        let guard = Guard { table: "kakoi".to_owned() };
        let elements = guard.elements_of("v9", &["10.1.0.9".parse().unwrap()]);
        let name = b"v9\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let own = b"\xfe\x80\0\0\0\0\0\0\x08\x58\x0a\xff\xfe\x01\x00\x09";
        let expected = [
            ("links", name.to_vec()),
            ("pods", [name.as_slice(), b"\x0a\x01\x00\x09"].concat()),
            ("pods6", [name.as_slice(), own].concat()),
            ("neighbours", [name.as_slice(), own].concat()),
        ];
        let found: Vec<_> = elements.into_iter().map(|element| (element.set, element.key)).collect();
        assert_eq!(found, expected);
    }
}
