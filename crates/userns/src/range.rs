//! Intervals of host IDs, in 64-bit arithmetic so that none can wrap.

use std::fmt;

/// The highest host ID that a user namespace can map. 4294967295 is `(uid_t) -1`, which the kernel keeps for
/// "no ID" and refuses in `uid_map` with EINVAL (`user_namespaces(7)`).
pub const MAX_HOST_ID: u32 = u32::MAX - 1;

/// A non-empty interval of host IDs inside `[0, 2^32)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdRange {
    first: u32,
    length: u32,
}

/// Why an interval of IDs can't exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The interval has no IDs.
    #[error("a range of 0 IDs starting at {0} maps nothing")]
    Empty(u64),
    /// The interval leaves the 32-bit ID space.
    #[error("the range of {length} IDs from {first} passes the last ID, 4294967295")]
    PastEnd {
        /// The first ID asked for.
        first: u64,
        /// How many IDs were asked for.
        length: u64,
    },
}

impl IdRange {
    /// The interval of `length` IDs that begins at `first`.
    ///
    /// # Errors
    /// When it is empty or leaves the 32-bit ID space.
    pub fn new(first: u64, length: u64) -> Result<Self, RangeError> {
        let past = RangeError::PastEnd { first, length };
        if length == 0 {
            return Err(RangeError::Empty(first));
        }
        let end = first.checked_add(length).ok_or(past)?;
        if end > 1 << 32 {
            return Err(past);
        }
        let (Ok(first), Ok(length)) = (u32::try_from(first), u32::try_from(length)) else { return Err(past) };
        Ok(Self { first, length })
    }

    /// The single ID `id`.
    pub fn single(id: u32) -> Self {
        Self { first: id, length: 1 }
    }

    /// The first ID.
    pub fn first(self) -> u32 {
        self.first
    }

    /// How many IDs, at least 1.
    pub fn length(self) -> u32 {
        self.length
    }

    /// One past the last ID, at most 2^32.
    pub fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.length)
    }

    /// The last ID.
    pub fn last(self) -> u32 {
        self.first + (self.length - 1)
    }

    /// Whether `id` lies in the interval.
    pub fn contains(self, id: u32) -> bool {
        (self.first..=self.last()).contains(&id)
    }

    /// Whether the two have an ID in common.
    pub fn overlaps(self, other: Self) -> bool {
        u64::from(self.first) < other.end() && u64::from(other.first) < self.end()
    }

    /// Whether the kernel accepts the interval as the host side of a `uid_map` line.
    pub fn is_mappable(self) -> bool {
        self.last() <= MAX_HOST_ID
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_would_wrap_is_refused() {
        assert_eq!(
            IdRange::new(4_294_836_224, 262_144),
            Err(RangeError::PastEnd { first: 4_294_836_224, length: 262_144 })
        );
        IdRange::new(u64::MAX, 2).unwrap_err();
        assert_eq!(IdRange::new(7, 0), Err(RangeError::Empty(7)));
    }

    #[test]
    fn the_terminal_block_exists_but_is_not_mappable() {
        let terminal = IdRange::new(4_294_901_760, 65_536).unwrap();
        assert_eq!(terminal.end(), 1 << 32);
        assert!(!terminal.is_mappable());
        assert!(IdRange::new(4_294_901_760, 65_535).unwrap().is_mappable());
    }

    #[test]
    fn neighbours_do_not_overlap() {
        let a = IdRange::new(131_072, 65_536).unwrap();
        let b = IdRange::new(196_608, 65_536).unwrap();
        assert!(!a.overlaps(b) && !b.overlaps(a) && a.overlaps(a));
        assert!(a.overlaps(IdRange::single(196_607)) && !a.overlaps(IdRange::single(196_608)));
        assert_eq!(a.to_string(), "131072-196607");
    }
}
