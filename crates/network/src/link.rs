//! Links, addresses and routes of one network namespace, in the words that the Pod network needs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage, State,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use crate::address::{Cidr, Family};
use crate::netlink::{CHANGE, CREATE, LIST, Netlink, REPLACE};

/// How long a link may take to become operational.
const OPERATIONAL: Duration = Duration::from_secs(2);

/// What is known of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) master: u32,
    pub(crate) mtu: u32,
    pub(crate) is_bridge: bool,
    /// Packets flow: the kernel has done what it does after the carrier came.
    pub(crate) is_operational: bool,
}

impl Link {
    fn of(message: Message) -> Option<Self> {
        let Message::NewLink(message) = message else { return None };
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            alias: String::new(),
            master: 0,
            mtu: 0,
            is_bridge: false,
            is_operational: false,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::IfAlias(alias) => link.alias = alias,
                LinkAttribute::Controller(master) => link.master = master,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::OperState(state) => link.is_operational = state == State::Up,
                LinkAttribute::LinkInfo(info) => {
                    link.is_bridge = info.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                _ => {}
            }
        }
        Some(link)
    }
}

/// A route to other machines or Pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Cidr,
    pub(crate) index: u32,
}

/// The pair that connects a Pod: one end on the bridge, one in the Pod.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    pub(crate) name: &'a str,
    pub(crate) bridge: u32,
    pub(crate) mtu: u32,
    pub(crate) pod: BorrowedFd<'a>,
    pub(crate) pod_name: &'a str,
    pub(crate) pod_mac: [u8; 6],
}

impl Netlink {
    /// The link of this name.
    pub(crate) fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.call(Message::GetLink(message), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(Link::of)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The link of this number.
    pub(crate) fn link_at(&self, index: u32) -> io::Result<Option<Link>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.call(Message::GetLink(message), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(Link::of)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The links that are ports of a bridge.
    pub(crate) fn ports_of(&self, bridge: u32) -> io::Result<Vec<Link>> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Controller(bridge));
        let links = self.call(Message::GetLink(message), LIST)?.into_iter().filter_map(Link::of);
        Ok(links.filter(|link| link.master == bridge).collect())
    }

    /// Makes a bridge, down. A fixed `mac` keeps the Pods' neighbour entry for it valid whatever is plugged in.
    pub(crate) fn add_bridge(&self, name: &str, mtu: u32, mac: [u8; 6]) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)])),
            ]),
        ];
        self.call(Message::NewLink(message), CREATE).map(drop)
    }

    /// Makes a veth pair, both ends down: the kernel refuses to set one up while the other is elsewhere.
    pub(crate) fn add_veth(&self, veth: &Veth<'_>) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(veth.pod_name.to_owned()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::Address(veth.pod_mac.to_vec()),
            LinkAttribute::NetNsFd(veth.pod.as_raw_fd()),
        ];
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(veth.name.to_owned()),
            LinkAttribute::Mtu(veth.mtu),
            LinkAttribute::Controller(veth.bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.call(Message::NewLink(message), CREATE).map(drop)
    }

    /// Sets a bridge port up, with an alias for people and hairpin: a Pod reaches itself through the bridge.
    pub(crate) fn set_port_up(&self, name: &str, alias: &str) -> io::Result<()> {
        let mut message = up(LinkMessage::default());
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::IfAlias(alias.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::PortKind(InfoPortKind::Bridge),
                LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
            ]),
        ];
        self.call(Message::NewLink(message), CHANGE).map(drop)
    }

    /// Sets a link up.
    pub(crate) fn set_up(&self, index: u32) -> io::Result<()> {
        let mut message = up(LinkMessage::default());
        message.header.index = index;
        self.call(Message::SetLink(message), CHANGE).map(drop)
    }

    /// Waits until packets flow through a link that has been set up. The kernel starts a link's queue and opens
    /// its bridge port some time after the carrier came, and drops what is sent before: without this a Pod's first
    /// connection would sometimes take a second longer. Kernels from 6.8 on do it when asked for the link.
    pub(crate) fn await_operational(&self, name: &str) -> io::Result<()> {
        let deadline = Instant::now() + OPERATIONAL;
        let is_operational = || self.link(name).map(|link| link.is_none_or(|link| link.is_operational));
        if is_operational()? {
            return Ok(());
        }
        let changes = self.link_changes()?;
        while !is_operational()? {
            if !changes.wait(deadline)? {
                tracing::warn!(
                    link = name,
                    "a Pod's link is not operational yet; its first packets may be lost"
                );
                return Ok(());
            }
        }
        Ok(())
    }

    /// Removes a link; that there is none is fine.
    pub(crate) fn remove_link(&self, name: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.call(Message::DelLink(message), CHANGE) {
            Err(error) if !is_absent(&error) => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives a link an address, which it may have already. One of IPv6 can be used at once: that nobody else has it is
    /// known, and looking for others (duplicate address detection) would take a second.
    pub(crate) fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(Family::of(address));
        message.header.prefix_len = prefix;
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
        match address {
            IpAddr::V4(address) => {
                let hosts = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
                let broadcast = Ipv4Addr::from_bits(address.to_bits() | hosts);
                message.attributes.push(AddressAttribute::Broadcast(broadcast));
            }
            IpAddr::V6(_) => message.header.flags |= AddressHeaderFlags::Nodad,
        }
        self.call(Message::NewAddress(message), REPLACE).map(drop)
    }

    /// The addresses of a link.
    pub(crate) fn addresses(&self, index: u32) -> io::Result<Vec<IpAddr>> {
        let mut addresses = Vec::new();
        for answer in self.call(Message::GetAddress(AddressMessage::default()), LIST)? {
            let Message::NewAddress(message) = answer else { continue };
            // IPv6 has no address of the other end, and tells the link's own in the place of it.
            let local = message.attributes.into_iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) | AddressAttribute::Address(address @ IpAddr::V6(_)) => {
                    Some(address)
                }
                _ => None,
            });
            addresses.extend(local.filter(|_| message.header.index == index));
        }
        Ok(addresses)
    }

    /// Sends all of `gateway`'s family that has no other route to it, through this link.
    pub(crate) fn add_default_route(&self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(Family::of(gateway));
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
        self.call(Message::NewRoute(message), REPLACE).map(drop)
    }

    /// The routes of a family that lead somewhere or are local, of all tables.
    pub(crate) fn routes(&self, of: Family) -> io::Result<Vec<Route>> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(of);
        let answers = self.call(Message::GetRoute(message), LIST)?;
        Ok(answers.into_iter().filter_map(route_of).collect())
    }
}

fn family(family: Family) -> AddressFamily {
    match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    }
}

fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message
}

fn route_of(message: Message) -> Option<Route> {
    let Message::NewRoute(message) = message else { return None };
    if !matches!(message.header.kind, RouteType::Unicast | RouteType::Local) {
        return None;
    }
    let (mut address, mut index) = match message.header.address_family {
        AddressFamily::Inet6 => (IpAddr::from(Ipv6Addr::UNSPECIFIED), 0),
        _ => (IpAddr::from(Ipv4Addr::UNSPECIFIED), 0),
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(destination)) => address = destination.into(),
            RouteAttribute::Destination(RouteAddress::Inet6(destination)) => address = destination.into(),
            RouteAttribute::Oif(oif) => index = oif,
            _ => {}
        }
    }
    Some(Route { destination: Cidr::around(address, message.header.destination_prefix_length), index })
}

fn is_absent(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error())
}
