//! What the machine is: the address that others reach it at, and the resolver that it uses.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use network::Family;

/// The source address of packets to elsewhere: the node's `InternalIP`. `None` without a default route.
pub(crate) fn address(family: Family) -> Option<IpAddr> {
    // Addresses of the documentation ranges: asking the kernel for the way to them sends nothing.
    let (any, elsewhere): (IpAddr, IpAddr) = match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(198, 51, 100, 1).into()),
        Family::V6 => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(SocketAddr::new(elsewhere, 9)).ok()?;
    socket.local_addr().ok().map(|local| local.ip()).filter(|ip| !ip.is_unspecified())
}

/// systemd-resolved's list of real servers, where `/etc/resolv.conf` names its stub on the node's loopback, which
/// Pods can't reach.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// The resolver file whose servers Pods use.
pub(crate) fn resolver() -> PathBuf {
    let own = PathBuf::from("/etc/resolv.conf");
    let is_stub = fs::read_to_string(&own).is_ok_and(|text| text.lines().any(names_stub));
    if is_stub && fs::exists(RESOLVED).unwrap_or(false) { RESOLVED.into() } else { own }
}

fn names_stub(line: &str) -> bool {
    let mut words = line.split_whitespace();
    words.next() == Some("nameserver") && matches!(words.next(), Some("127.0.0.53" | "127.0.0.54"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stub_of_systemd_resolved_is_recognised() {
        assert!(names_stub("nameserver 127.0.0.53"));
        assert!(!names_stub("nameserver 192.0.2.53"));
        assert!(!names_stub("# nameserver 127.0.0.53"));
    }
}
