//! The Pod's side of its network: what is done inside its network namespace, by a thread that lives only for it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::netlink::Netlink;

/// The name of a Pod's link, as everyone knows it.
pub(crate) const LINK: &str = "eth0";

/// What a Pod is to have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodSide {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) gateway: Ipv4Addr,
}

impl PodSide {
    /// A MAC made of the address, so that what other Pods remember of an address stays true when it is reused.
    pub(crate) fn mac(&self) -> [u8; 6] {
        mac_of(self.address)
    }

    /// Whether the Pod has it already.
    pub(crate) fn probe(self, netns: BorrowedFd<'_>) -> io::Result<bool> {
        within(netns, |netlink| match netlink.link(LINK)? {
            Some(link) => Ok(netlink.addresses(link.index)?.contains(&self.address)),
            None => Ok(false),
        })
    }

    /// Sets the link up with its address and the default route, and the loopback.
    ///
    /// Returns the namespace's socket: packets flow only after the other end is up as well.
    pub(crate) fn apply(self, netns: BorrowedFd<'_>) -> io::Result<Netlink> {
        within(netns, |netlink| {
            netlink.set_up(LOOPBACK)?;
            let gone = || io::Error::new(io::ErrorKind::NotFound, "the Pod's link vanished");
            let link = netlink.link(LINK)?.ok_or_else(gone)?;
            netlink.add_address(link.index, self.address, self.prefix)?;
            netlink.set_up(link.index)?;
            netlink.add_default_route(self.gateway)?;
            Ok(netlink)
        })
    }
}

/// Sets the loopback of a sandbox up.
pub(crate) fn raise_loopback(netns: BorrowedFd<'_>) -> io::Result<()> {
    within(netns, |netlink| netlink.set_up(LOOPBACK))
}

/// `lo` is the first link of every network namespace.
const LOOPBACK: u32 = 1;

/// A locally administered MAC that holds an IPv4 address.
pub(crate) fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
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
