//! The Pod's side of its network: what is done inside its network namespace, by a thread that lives only for it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::netlink::Netlink;

/// The name of a Pod's link, as everyone knows it.
pub(crate) const LINK: &str = "eth0";

/// What a Pod is to have of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) address: IpAddr,
    pub(crate) prefix: u8,
    pub(crate) gateway: IpAddr,
}

/// What a Pod is to have.
#[derive(Debug)]
pub(crate) struct PodSide {
    pub(crate) places: Vec<Place>,
}

impl PodSide {
    /// Whether the Pod has it already.
    pub(crate) fn probe(&self, netns: BorrowedFd<'_>) -> io::Result<bool> {
        within(netns, |netlink| {
            let Some(link) = netlink.link(LINK)? else { return Ok(false) };
            let present = netlink.addresses(link.index)?;
            Ok(self.places.iter().all(|place| present.contains(&place.address)))
        })
    }

    /// Sets the link up with its addresses and the default routes, and the loopback.
    ///
    /// Returns the namespace's socket: packets flow only after the other end is up as well.
    pub(crate) fn apply(&self, netns: BorrowedFd<'_>) -> io::Result<Netlink> {
        within(netns, |netlink| {
            netlink.set_up(LOOPBACK)?;
            let gone = || io::Error::new(io::ErrorKind::NotFound, "the Pod's link vanished");
            let link = netlink.link(LINK)?.ok_or_else(gone)?;
            if self.places.iter().any(|place| place.address.is_ipv6()) {
                sole_router(LINK)?;
            }
            for place in &self.places {
                netlink.add_address(link.index, place.address, place.prefix)?;
            }
            netlink.set_up(link.index)?;
            for place in &self.places {
                netlink.add_default_route(link.index, place.gateway)?;
            }
            Ok(netlink)
        })
    }
}

/// Has a link take no router but the bridge, whatever another Pod announces, and its own address at once: the MACs of a
/// bridge differ, and while an address is still looked for (duplicate address detection) no neighbour can be asked for.
pub(crate) fn sole_router(link: &str) -> io::Result<()> {
    let settings = ["accept_ra", "accept_dad"];
    settings.iter().try_for_each(|name| fs::write(format!("/proc/sys/net/ipv6/conf/{link}/{name}"), "0"))
}

/// Sets the loopback of a sandbox up.
pub(crate) fn raise_loopback(netns: BorrowedFd<'_>) -> io::Result<()> {
    within(netns, |netlink| netlink.set_up(LOOPBACK))
}

/// `lo` is the first link of every network namespace.
const LOOPBACK: u32 = 1;

/// A locally administered MAC that holds the IPv4 address, or the end of the IPv6 address where there is no other, so
/// that what other Pods remember of an address stays true when it is reused.
pub(crate) fn mac_of(addresses: &[IpAddr]) -> [u8; 6] {
    let preferred = addresses.iter().find(|address| address.is_ipv4()).or_else(|| addresses.first());
    let [a, b, c, d] = match preferred {
        Some(IpAddr::V4(address)) => address.octets(),
        Some(IpAddr::V6(address)) => last_four(*address),
        None => [0; 4],
    };
    [0x0a, 0x58, a, b, c, d]
}

fn last_four(address: Ipv6Addr) -> [u8; 4] {
    let [.., a, b, c, d] = address.octets();
    [a, b, c, d]
}

/// The link-local address that the kernel gives a link of this MAC (RFC 4291, appendix A).
pub(crate) fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [first, .., second_last, last] = mac;
    let [_, second, third, fourth, ..] = mac;
    let own = [first ^ 2, second, third, 0xff, 0xfe, fourth, second_last, last];
    Ipv6Addr::from_bits((0xfe80 << 112) | u128::from(u64::from_be_bytes(own)))
}

/// Runs `work` with a socket of the namespace `netns`. The thread that enters it is not used for anything else.
fn within<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce(Netlink) -> io::Result<T> + Send,
) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
            work(Netlink::open()?)
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the Pod's namespace panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_holds_the_address_and_leads_to_the_link_local_one() {
        let (v4, v6): (IpAddr, IpAddr) = ("10.85.0.2".parse().unwrap(), "fd85::1:203".parse().unwrap());
        let mac = [0x0a, 0x58, 10, 85, 0, 2];
        assert_eq!((mac_of(&[v4]), mac_of(&[v6, v4])), (mac, mac));
        assert_eq!(mac_of(&[v6]), [0x0a, 0x58, 0, 1, 2, 3]);
        assert_eq!(link_local(mac).to_string(), "fe80::858:aff:fe55:2");
    }
}
