//! The range of Pod addresses and who has which. Pure: what is on disk is the caller's.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::error::CidrError;

/// An IPv4 range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

impl Cidr {
    /// The range of `prefix` bits that `address` lies in; a prefix over 32 counts as 32.
    pub(crate) fn around(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { network: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    /// The number of network bits.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The first usable address: the bridge's, and the Pods' default route.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() + 1)
    }

    /// Whether the address lies in it.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }

    /// Whether the ranges share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    fn broadcast(self) -> u32 {
        self.network.to_bits() | !mask(self.prefix)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let syntax = || CidrError::Syntax { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').ok_or_else(syntax)?;
        let address: Ipv4Addr = address.parse().map_err(|_| syntax())?;
        let prefix: u8 = prefix.parse().map_err(|_| syntax())?;
        if !(8..=29).contains(&prefix) {
            return Err(CidrError::Prefix { prefix });
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

/// The addresses of a range, given out next-fit: one after another, so that the address freed last is used last
/// and what others remember of it (UDP flows, caches of names) has gone.
#[derive(Debug)]
pub(crate) struct Pool {
    cidr: Cidr,
    taken: BTreeSet<u32>,
    /// The address given out last.
    cursor: u32,
}

impl Pool {
    /// A pool with these addresses taken. Without a `cursor` it goes on after the highest of them.
    pub(crate) fn new(
        cidr: Cidr,
        taken: impl IntoIterator<Item = Ipv4Addr>,
        cursor: Option<Ipv4Addr>,
    ) -> Self {
        let taken: BTreeSet<u32> = taken.into_iter().map(Ipv4Addr::to_bits).collect();
        let highest = taken.iter().rev().copied().find(|bits| cidr.contains(Ipv4Addr::from_bits(*bits)));
        let cursor = cursor.filter(|address| cidr.contains(*address)).map(Ipv4Addr::to_bits);
        Self { cidr, taken, cursor: cursor.or(highest).unwrap_or_else(|| cidr.gateway().to_bits()) }
    }

    /// Takes the next free address.
    pub(crate) fn take(&mut self) -> Option<Ipv4Addr> {
        let (first, last) = (self.cidr.gateway().to_bits() + 1, self.cidr.broadcast() - 1);
        let after = self.cursor.max(first - 1) + 1;
        let free =
            (after..=last).chain(first..after.min(last + 1)).find(|bits| !self.taken.contains(bits))?;
        self.taken.insert(free);
        self.cursor = free;
        Some(Ipv4Addr::from_bits(free))
    }

    /// Gives an address back.
    pub(crate) fn give_back(&mut self, address: Ipv4Addr) {
        self.taken.remove(&address.to_bits());
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

    #[test]
    fn a_range_is_read_or_refused_with_a_hint() {
        assert_eq!(cidr("10.85.0.0/16").to_string(), "10.85.0.0/16");
        assert_eq!(cidr("10.85.0.0/16").gateway(), Ipv4Addr::new(10, 85, 0, 1));
        let refused = |text: &str| text.parse::<Cidr>().unwrap_err().to_string();
        assert_eq!(
            refused("10.85.1.0/16"),
            "10.85.1.0/16 has bits set beyond its prefix: did you mean 10.85.0.0/16?"
        );
        assert_eq!(refused("10.85.0.0"), "\"10.85.0.0\" is no IPv4 range: write it like `10.85.0.0/16`");
        assert_eq!(refused("10.85.0.0/30"), "/30 is no prefix for Pods: use /8 to /29");
        assert_eq!(refused("fd00::/64"), "\"fd00::/64\" is no IPv4 range: write it like `10.85.0.0/16`");
    }

    #[test]
    fn ranges_overlap_when_one_lies_in_the_other() {
        assert!(cidr("10.0.0.0/8").overlaps(&cidr("10.85.0.0/16")));
        assert!(cidr("10.85.0.0/16").overlaps(&cidr("10.0.0.0/8")));
        assert!(!cidr("10.84.0.0/16").overlaps(&cidr("10.85.0.0/16")));
        assert!(cidr("10.84.0.0/16").overlaps(&Cidr::around(Ipv4Addr::UNSPECIFIED, 0)));
    }

    #[test]
    fn the_address_freed_last_is_used_last() {
        let mut pool = Pool::new(cidr("10.0.0.0/29"), [], None);
        let all: Vec<_> = std::iter::from_fn(|| pool.take()).map(|address| address.octets()[3]).collect();
        assert_eq!(all, [2, 3, 4, 5, 6]);
        pool.give_back(Ipv4Addr::new(10, 0, 0, 4));
        pool.give_back(Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 0, 0, 4)));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn a_lost_cursor_goes_on_after_the_highest_address() {
        let mut pool = Pool::new(cidr("10.0.0.0/24"), [Ipv4Addr::new(10, 0, 0, 9)], None);
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 0, 0, 10)));
        let mut pool = Pool::new(cidr("10.0.0.0/24"), [], Some(Ipv4Addr::new(10, 0, 0, 40)));
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 0, 0, 41)));
        let mut pool = Pool::new(cidr("10.0.0.0/24"), [], Some(Ipv4Addr::new(192, 168, 0, 1)));
        assert_eq!(pool.take(), Some(Ipv4Addr::new(10, 0, 0, 2)));
    }

    proptest! {
        #[test]
        fn no_address_is_given_out_twice(prefix in 26u8..=29, steps in proptest::collection::vec(any::<Option<u8>>(), 1..200)) {
            let range = Cidr::around(Ipv4Addr::new(10, 9, 8, 0), prefix);
            let mut pool = Pool::new(range, [], None);
            let mut held = BTreeSet::new();
            let room = (1usize << (32 - prefix)) - 3;
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
