//! The ranges of Pod addresses and who has which. Pure: what is on disk is the caller's.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::error::CidrError;

/// A version of the Internet Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// The range of all addresses.
    pub(crate) fn all(self) -> Cidr {
        Cidr { network: self.address(0), prefix: 0 }
    }

    /// The number of bits of an address.
    fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// The prefixes with room for a node's Pods. Of IPv6 the shortest that is one site's, and no longer than for IPv4.
    fn prefixes(self) -> std::ops::RangeInclusive<u8> {
        match self {
            Self::V4 => 8..=29,
            Self::V6 => 48..=125,
        }
    }

    fn address(self, bits: u128) -> IpAddr {
        match self {
            // What is beyond 32 bits is none of an IPv4 address.
            Self::V4 => Ipv4Addr::from_bits(u32::try_from(bits & 0xffff_ffff).unwrap_or_default()).into(),
            Self::V6 => Ipv6Addr::from_bits(bits).into(),
        }
    }

    fn mask(self, prefix: u8) -> u128 {
        let host = self.bits().saturating_sub(prefix);
        u128::MAX.checked_shl(host.into()).unwrap_or(0) & (u128::MAX >> (128 - self.bits()))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// The range of `prefix` bits that `address` lies in; a prefix with more bits than an address counts as all of them.
    pub(crate) fn around(address: IpAddr, prefix: u8) -> Self {
        let family = Family::of(address);
        let prefix = prefix.min(family.bits());
        Self { network: family.address(bits_of(address) & family.mask(prefix)), prefix }
    }

    /// The number of network bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.network)
    }

    /// The first usable address: the bridge's, and the Pods' default route.
    pub fn gateway(&self) -> IpAddr {
        self.family().address(bits_of(self.network) + 1)
    }

    /// Whether the address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let family = self.family();
        Family::of(address) == family && bits_of(address) & family.mask(self.prefix) == bits_of(self.network)
    }

    /// Whether the ranges share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// The last address, which is IPv4's broadcast address.
    fn last(self) -> u128 {
        let family = self.family();
        bits_of(self.network) | (family.mask(family.bits()) ^ family.mask(self.prefix))
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let syntax = || CidrError::Syntax { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
        let prefixes = Family::of(address).prefixes();
        if !prefixes.contains(&prefix) {
            return Err(CidrError::Prefix { prefix, shortest: *prefixes.start(), longest: *prefixes.end() });
        }
        let cidr = Self::around(address, prefix);
        let network = cidr.network;
        if network == address { Ok(cidr) } else { Err(CidrError::HostBits { address, network, prefix }) }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.network, self.prefix)
    }
}

/// The ranges of a node's Pods: one, or one of each family. Written as Kubernetes does: `10.85.0.0/16,fd85::/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PodCidrs {
    first: Cidr,
    second: Option<Cidr>,
}

impl PodCidrs {
    /// The range of the Pods' first address, `status.podIP`.
    pub fn first(&self) -> Cidr {
        self.first
    }

    /// The ranges, in the order of the Pods' addresses.
    pub fn iter(&self) -> impl Iterator<Item = Cidr> + use<> {
        std::iter::once(self.first).chain(self.second)
    }

    /// The range of a family.
    pub fn of(&self, family: Family) -> Option<Cidr> {
        self.iter().find(|cidr| cidr.family() == family)
    }
}

impl From<Cidr> for PodCidrs {
    fn from(first: Cidr) -> Self {
        Self { first, second: None }
    }
}

impl FromStr for PodCidrs {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let Some((first, second)) = text.split_once(',') else { return text.parse().map(Cidr::into) };
        let (first, second): (Cidr, Cidr) = (first.trim().parse()?, second.trim().parse()?);
        if first.family() == second.family() {
            return Err(CidrError::Family { first, second });
        }
        Ok(Self { first, second: Some(second) })
    }
}

impl fmt::Display for PodCidrs {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.first)?;
        self.second.map_or(Ok(()), |second| write!(formatter, ",{second}"))
    }
}

/// The addresses of a range, given out next-fit: one after another, so that the address freed last is used last
/// and what others remember of it (UDP flows, caches of names) has gone.
#[derive(Debug)]
pub(crate) struct Pool {
    cidr: Cidr,
    taken: BTreeSet<u128>,
    /// The address given out last.
    cursor: u128,
}

impl Pool {
    /// A pool with these addresses taken, as far as they are of its family. Without a `cursor` it goes on after the
    /// highest of them.
    pub(crate) fn new(cidr: Cidr, taken: impl IntoIterator<Item = IpAddr>, cursor: Option<IpAddr>) -> Self {
        let family = cidr.family();
        let ours = taken.into_iter().filter(|address| Family::of(*address) == family);
        let taken: BTreeSet<u128> = ours.map(bits_of).collect();
        let highest = taken.iter().rev().copied().find(|bits| cidr.contains(family.address(*bits)));
        let cursor = cursor.filter(|address| cidr.contains(*address)).map(bits_of);
        Self { cidr, taken, cursor: cursor.or(highest).unwrap_or_else(|| bits_of(cidr.gateway())) }
    }

    /// The range.
    pub(crate) fn cidr(&self) -> Cidr {
        self.cidr
    }

    /// Takes the next free address.
    pub(crate) fn take(&mut self) -> Option<IpAddr> {
        let (first, last) = (bits_of(self.cidr.gateway()) + 1, self.cidr.last() - 1);
        let after = self.cursor.max(first - 1) + 1;
        let free =
            (after..=last).chain(first..after.min(last + 1)).find(|bits| !self.taken.contains(bits))?;
        self.taken.insert(free);
        self.cursor = free;
        Some(self.cidr.family().address(free))
    }

    /// Gives an address back; one of another family is none of this pool's.
    pub(crate) fn give_back(&mut self, address: IpAddr) {
        if Family::of(address) == self.cidr.family() {
            self.taken.remove(&bits_of(address));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
        Ipv4Addr::new(a, b, c, d).into()
    }

    #[test]
    fn a_range_is_read_or_refused_with_a_hint() {
        assert_eq!(cidr("10.85.0.0/16").to_string(), "10.85.0.0/16");
        assert_eq!(cidr("10.85.0.0/16").gateway(), v4(10, 85, 0, 1));
        assert_eq!(cidr("fd85:1::/64").to_string(), "fd85:1::/64");
        assert_eq!(cidr("fd85:1::/64").gateway(), "fd85:1::1".parse::<IpAddr>().unwrap());
        let refused = |text: &str| text.parse::<Cidr>().unwrap_err().to_string();
        assert_eq!(
            refused("10.85.1.0/16"),
            "10.85.1.0/16 has bits set beyond its prefix: did you mean 10.85.0.0/16?"
        );
        assert_eq!(
            refused("fd85::1/64"),
            "fd85::1/64 has bits set beyond its prefix: did you mean fd85::/64?"
        );
        assert_eq!(
            refused("10.85.0.0"),
            "\"10.85.0.0\" is no range of addresses: write it like `10.85.0.0/16` or `fd85::/64`"
        );
        assert_eq!(refused("10.85.0.0/30"), "/30 is no prefix for Pods: use /8 to /29");
        assert_eq!(refused("fd00::/32"), "/32 is no prefix for Pods: use /48 to /125");
    }

    #[test]
    fn ranges_of_both_families_are_read_in_the_order_of_the_pods_addresses() {
        let both: PodCidrs = "fd85::/64, 10.85.0.0/16".parse().unwrap();
        assert_eq!(both.to_string(), "fd85::/64,10.85.0.0/16");
        assert_eq!((both.first(), both.of(Family::V4)), (cidr("fd85::/64"), Some(cidr("10.85.0.0/16"))));
        let one: PodCidrs = "10.85.0.0/16".parse().unwrap();
        assert_eq!((one.iter().count(), one.of(Family::V6)), (1, None));
        let refused = |text: &str| text.parse::<PodCidrs>().unwrap_err().to_string();
        assert_eq!(
            refused("10.85.0.0/16,10.86.0.0/16"),
            "10.85.0.0/16 and 10.86.0.0/16 are of one family: give one range of IPv4 and one of IPv6"
        );
        assert!(refused("10.85.0.0/16,fd85::/64,fd86::/64").contains("\"fd85::/64,fd86::/64\" is no range"));
    }

    #[test]
    fn ranges_overlap_when_one_lies_in_the_other() {
        assert!(cidr("10.0.0.0/8").overlaps(&cidr("10.85.0.0/16")));
        assert!(cidr("10.85.0.0/16").overlaps(&cidr("10.0.0.0/8")));
        assert!(!cidr("10.84.0.0/16").overlaps(&cidr("10.85.0.0/16")));
        assert!(cidr("fd85::/64").overlaps(&cidr("fd85::/56")));
        assert!(!cidr("fd85::/64").overlaps(&Cidr::around(Ipv4Addr::UNSPECIFIED.into(), 0)));
        assert!(cidr("10.84.0.0/16").overlaps(&Cidr::around(Ipv4Addr::UNSPECIFIED.into(), 0)));
    }

    #[test]
    fn the_address_freed_last_is_used_last() {
        let mut pool = Pool::new(cidr("10.0.0.0/29"), [], None);
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).map(|address| bits_of(address) & 0xff).collect();
        assert_eq!(all, [2, 3, 4, 5, 6]);
        pool.give_back(v4(10, 0, 0, 4));
        pool.give_back(v4(10, 0, 0, 2));
        assert_eq!(pool.take(), Some(v4(10, 0, 0, 2)));
        assert_eq!(pool.take(), Some(v4(10, 0, 0, 4)));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn a_lost_cursor_goes_on_after_the_highest_address() {
        let mut pool = Pool::new(cidr("10.0.0.0/24"), [v4(10, 0, 0, 9)], None);
        assert_eq!(pool.take(), Some(v4(10, 0, 0, 10)));
        let mut pool = Pool::new(cidr("10.0.0.0/24"), [], Some(v4(10, 0, 0, 40)));
        assert_eq!(pool.take(), Some(v4(10, 0, 0, 41)));
        let mut pool = Pool::new(cidr("10.0.0.0/24"), [], Some(v4(192, 168, 0, 1)));
        assert_eq!(pool.take(), Some(v4(10, 0, 0, 2)));
    }

    proptest! {
        #[test]
        fn no_address_is_given_out_twice(
            host_bits in 3u8..=6,
            family in prop_oneof![Just(Family::V4), Just(Family::V6)],
            steps in proptest::collection::vec(any::<Option<u8>>(), 1..200),
        ) {
            let base = if family == Family::V4 { v4(10, 9, 8, 0) } else { "fd09:8::".parse().unwrap() };
            let range = Cidr::around(base, family.bits() - host_bits);
            let mut pool = Pool::new(range, [], None);
            let mut held = BTreeSet::new();
            let room = (1usize << host_bits) - 3;
            for step in steps {
                if let Some(which) = step.filter(|_| !held.is_empty()) {
                    let address = *held.iter().nth(usize::from(which) % held.len()).unwrap();
                    held.remove(&address);
                    pool.give_back(address);
                } else if let Some(address) = pool.take() {
                    prop_assert!(range.contains(address) && address != range.gateway());
                    prop_assert!(held.insert(address));
                } else {
                    prop_assert_eq!(held.len(), room);
                }
            }
        }
    }
}
