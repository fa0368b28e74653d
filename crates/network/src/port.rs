//! Ports of the node that lead to a port of a Pod.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::address::Family;

/// The protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// A `hostPort` of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The address of the node on which it is open; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
    /// The port of the node; a mapping with 0 is none.
    pub host_port: u16,
    /// The port in the Pod.
    pub container_port: u16,
    /// The protocol of both.
    pub protocol: Protocol,
}

impl PortMapping {
    /// Whether it is open on the node's addresses of this family.
    pub(crate) fn is_of(&self, family: Family) -> bool {
        self.host_ip.is_none_or(|ip| Family::of(ip) == family)
    }

    /// Whether both cannot be on one node.
    pub(crate) fn collides_with(&self, other: &Self) -> bool {
        let same_address = match (self.host_ip, other.host_ip) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => true,
        };
        same_address && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_port_on_all_addresses_collides_with_the_same_on_one() {
        let all = PortMapping { host_ip: None, host_port: 80, container_port: 8080, protocol: Protocol::Tcp };
        let one = PortMapping { host_ip: Some(Ipv4Addr::LOCALHOST.into()), ..all };
        let other = PortMapping { host_ip: Some(Ipv4Addr::new(10, 0, 0, 1).into()), ..all };
        assert!(all.collides_with(&one) && one.collides_with(&all));
        assert!(!one.collides_with(&other));
        assert!(!all.collides_with(&PortMapping { protocol: Protocol::Udp, ..all }));
    }
}
