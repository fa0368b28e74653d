//! What the machine is: the address that others reach it at, and the resolver that it uses.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

/// An address of the documentation range: asking the kernel for the way to it sends nothing.
const ELSEWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 9);

/// The source address of packets to elsewhere: the node's InternalIP. `None` without a default route.
pub(crate) fn address() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ELSEWHERE).ok()?;
    socket.local_addr().ok().map(|local| local.ip()).filter(|ip| !ip.is_unspecified())
}
