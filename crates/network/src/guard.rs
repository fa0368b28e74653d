//! Each bridge port speaks for its own Pod alone: a table of the family `bridge` drops IPv4 and ARP packets that carry
//! another address than the Pod's. Pure: the rules are text, and a Pod's elements are the bytes of set keys.

use std::net::Ipv4Addr;

use crate::nfnetlink::Element;

/// The set of the instance's bridge ports. `meta ibrname` would do, but not every kernel has it.
const LINKS: &str = "links";
/// The set of a port's name with the address of its Pod.
const PODS: &str = "pods";
/// The size of a link's name in a set's key (`IFNAMSIZ`).
const NAME: usize = 16;

/// The table with the addresses of Pods.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) table: String,
}

impl Guard {
    /// The whole table, in the place of what was there.
    pub(crate) fn whole(&self, pods: &[(String, Ipv4Addr)]) -> String {
        let links = elements(pods.iter().map(|(link, _)| format!("\"{link}\"")));
        let addresses = elements(pods.iter().map(|(link, address)| format!("\"{link}\" . {address}")));
        let (removal, table) = (self.removal(), &self.table);
        format!(
            "{removal}table bridge {table} {{
	set {LINKS} {{
		type ifname
{links}	}}

	set {PODS} {{
		type ifname . ipv4_addr
{addresses}	}}

	chain guard {{
		type filter hook prerouting priority dstnat; policy accept;
		iifname != @{LINKS} accept
		iifname . ip saddr @{PODS} accept
		iifname . arp saddr ip @{PODS} accept
		ether type {{ ip, arp }} drop
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
    pub(crate) fn elements_of(&self, link: &str, address: Ipv4Addr) -> [Element<'_>; 2] {
        let mut name = [0; NAME];
        name.iter_mut().zip(link.bytes()).for_each(|(to, from)| *to = from);
        let pair = [name.as_slice(), &address.octets()].concat();
        [
            Element { table: &self.table, set: LINKS, key: name.to_vec() },
            Element { table: &self.table, set: PODS, key: pair },
        ]
    }
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
            ("veth02".to_owned(), Ipv4Addr::new(10, 85, 0, 3)),
            ("veth01".to_owned(), Ipv4Addr::new(10, 85, 0, 2)),
        ];
        assert_eq!(guard.whole(&pods), include_str!("../testdata/guard.nft"));
    }

    #[test]
    fn keys_are_the_padded_name_and_the_address() {
        let guard = Guard { table: "kakoi".to_owned() };
        let [link, pod] = guard.elements_of("v9", Ipv4Addr::new(10, 1, 0, 9));
        assert_eq!((link.set, link.key), ("links", b"v9\0\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec()));
        assert_eq!((pod.set, pod.key), ("pods", b"v9\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x0a\x01\x00\x09".to_vec()));
    }
}
