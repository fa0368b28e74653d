//! The pool: the host IDs that Pods may be given, worked out from configuration and from what the machine has
//! already given away.

use std::fmt;

use serde::Serialize;

use crate::range::{IdRange, MAX_HOST_ID};

/// `KubeletConfiguration.userNamespaces.idsPerPod`'s default.
pub const DEFAULT_IDS_PER_POD: u32 = 65_536;

/// IDs below this are never in the default pool: the node's own accounts (block 0) and the block that the first
/// release kept free, so that a fresh node's first Pod gets 131072.
const DEFAULT_POOL_FLOOR: u64 = 131_072;

/// IDs of each Pod: a multiple of 65536 that fits 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct IdsPerPod(u32);

impl IdsPerPod {
    /// Checks `userNamespaces.idsPerPod`.
    ///
    /// # Errors
    /// When it is below 65536, above 4294967295, or no multiple of 65536.
    pub fn new(ids: i64) -> Result<Self, PoolError> {
        if ids < 65_536 {
            return Err(PoolError::IdsPerPod { ids, rule: "must be not less than 65536" });
        }
        let Ok(fits) = u32::try_from(ids) else {
            return Err(PoolError::IdsPerPod { ids, rule: "must be not more than 4294967295" });
        };
        if !fits.is_multiple_of(65_536) {
            return Err(PoolError::IdsPerPod { ids, rule: "must be a multiple of 65536" });
        }
        Ok(Self(fits))
    }

    /// The number.
    pub fn get(self) -> u32 {
        self.0
    }

    fn wide(self) -> u64 {
        self.0.into()
    }
}

impl Default for IdsPerPod {
    fn default() -> Self {
        Self(DEFAULT_IDS_PER_POD)
    }
}

/// IDs that the machine has given to somebody else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reserved {
    /// The IDs.
    #[serde(serialize_with = "as_text")]
    pub range: IdRange,
    /// Who has them, as a phrase: ``the user `ann` in /etc/subuid``.
    pub owner: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands the field by reference")]
pub(crate) fn as_text<S: serde::Serializer>(range: &IdRange, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(range)
}

/// What the machine says about its IDs.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The ranges of the user `kubelet` in the sub-UID and the sub-GID source; `None` without such a user or
    /// without ranges.
    pub kubelet: Option<(Vec<IdRange>, Vec<IdRange>)>,
    /// What others have.
    pub reserved: Vec<Reserved>,
}

/// What the pool is made from.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// IDs of each Pod.
    pub ids_per_pod: IdsPerPod,
    /// `maxPods`: the pool must have at least so many usable blocks.
    pub max_pods: u32,
    /// The machine's word.
    pub machine: Machine,
}

/// Where the pool comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PoolSource {
    /// The whole ID space from 131072 on.
    Default,
    /// The ranges of the user `kubelet`.
    KubeletUser,
}

impl fmt::Display for PoolSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "the default pool: the machine has no user `kubelet` with subordinate IDs",
            Self::KubeletUser => "the subordinate IDs of the user `kubelet`",
        })
    }
}

/// A pool that can't be used. This is configuration, so the node does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// `idsPerPod` is not usable.
    #[error("userNamespaces.idsPerPod: {ids} {rule}")]
    IdsPerPod {
        /// The value given.
        ids: i64,
        /// The rule that it breaks.
        rule: &'static str,
    },
    /// The user `kubelet` has several ranges, or none on one side.
    #[error(
        "the user `kubelet` has {uids} subordinate UID ranges and {gids} GID ranges; give it exactly one line in \
         /etc/subuid and the same in /etc/subgid"
    )]
    NotOneRange {
        /// Ranges for UIDs.
        uids: usize,
        /// Ranges for GIDs.
        gids: usize,
    },
    /// The UID and GID ranges differ.
    #[error(
        "the user `kubelet` has UIDs {uids} but GIDs {gids}; make its lines in /etc/subuid and /etc/subgid equal"
    )]
    UidsDifferFromGids {
        /// The UID range.
        uids: IdRange,
        /// The GID range.
        gids: IdRange,
    },
    /// The range does not consist of whole blocks of its own.
    #[error(
        "the subordinate range of the user `kubelet`: {what} {value} {rule} ({ids_per_pod} IDs per Pod); correct its \
         lines in /etc/subuid and /etc/subgid"
    )]
    Range {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u32,
        /// The rule that it breaks.
        rule: &'static str,
        /// IDs per Pod.
        ids_per_pod: u32,
    },
    /// Fewer blocks than Pods.
    #[error(
        "the ID pool has {blocks} usable blocks of {ids_per_pod} IDs but maxPods is {max_pods}; enlarge the range \
         of the user `kubelet` or lower maxPods"
    )]
    TooFewBlocks {
        /// Usable blocks.
        blocks: u64,
        /// Pods to be held.
        max_pods: u32,
        /// IDs per Pod.
        ids_per_pod: u32,
    },
}

/// The host IDs that Pods may be given, in blocks of `idsPerPod`.
#[derive(Clone, Debug)]
pub struct Pool {
    pub(crate) first: u64,
    pub(crate) end: u64,
    ids_per_pod: IdsPerPod,
    source: PoolSource,
    reserved: Vec<Reserved>,
}

impl Pool {
    /// Works the pool out.
    ///
    /// # Errors
    /// When the configuration can't be honoured; see [`PoolError`].
    pub fn plan(config: PoolConfig) -> Result<Self, PoolError> {
        let ids = config.ids_per_pod;
        let (bounds, source) = match &config.machine.kubelet {
            Some((uids, gids)) => (kubelet_bounds(uids, gids, ids)?, PoolSource::KubeletUser),
            None => ((DEFAULT_POOL_FLOOR.next_multiple_of(ids.wide()), u64::MAX), PoolSource::Default),
        };
        let mut reserved = config.machine.reserved;
        reserved.sort_by_key(|r| (r.range, r.owner.clone()));
        let end = bounds.1.min(u64::from(MAX_HOST_ID) + 1) / ids.wide() * ids.wide();
        let pool = Self { first: bounds.0, end, ids_per_pod: ids, source, reserved };
        let blocks = pool.usable_blocks();
        if blocks < u64::from(config.max_pods) {
            return Err(PoolError::TooFewBlocks {
                blocks,
                max_pods: config.max_pods,
                ids_per_pod: ids.get(),
            });
        }
        Ok(pool)
    }

    /// IDs of each Pod.
    pub fn ids_per_pod(&self) -> u32 {
        self.ids_per_pod.get()
    }

    /// Where the pool comes from.
    pub fn source(&self) -> PoolSource {
        self.source
    }

    /// The first and the last ID of the pool.
    pub fn bounds(&self) -> (u64, u64) {
        (self.first, self.end.saturating_sub(1))
    }

    /// What the machine has given to others, in order.
    pub fn reserved(&self) -> &[Reserved] {
        &self.reserved
    }

    /// How many blocks the pool has, without those that the machine has given away.
    pub fn usable_blocks(&self) -> u64 {
        let all = self.end.saturating_sub(self.first) / self.ids_per_pod.wide();
        all - self.reserved_blocks()
    }

    fn reserved_blocks(&self) -> u64 {
        let size = self.ids_per_pod.wide();
        let (mut count, mut next) = (0, self.first);
        for range in self.reserved.iter().map(|r| r.range) {
            let first = (u64::from(range.first()) / size * size).max(next);
            let end = range.end().next_multiple_of(size).min(self.end);
            if first < end {
                count += (end - first) / size;
                next = end;
            }
        }
        count
    }
}

/// The bounds of the `kubelet` user's pool, checked in upstream's order.
fn kubelet_bounds(uids: &[IdRange], gids: &[IdRange], ids: IdsPerPod) -> Result<(u64, u64), PoolError> {
    let ([uid], [gid]) = (uids, gids) else {
        return Err(PoolError::NotOneRange { uids: uids.len(), gids: gids.len() });
    };
    if uid != gid {
        return Err(PoolError::UidsDifferFromGids { uids: *uid, gids: *gid });
    }
    let refuse = |what, value, rule| Err(PoolError::Range { what, value, rule, ids_per_pod: ids.get() });
    if uid.first() % ids.get() != 0 {
        return refuse("the first ID", uid.first(), "is not a multiple of idsPerPod");
    }
    if uid.first() < ids.get() {
        return refuse("the first ID", uid.first(), "is among the node's own IDs");
    }
    if uid.length() % ids.get() != 0 {
        return refuse("the count", uid.length(), "is not a multiple of idsPerPod");
    }
    Ok((uid.first().into(), uid.end()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, length: u64) -> IdRange {
        IdRange::new(first, length).unwrap()
    }

    fn plan(ids: i64, max_pods: u32, kubelet: Option<IdRange>) -> Result<Pool, PoolError> {
        let machine = Machine { kubelet: kubelet.map(|r| (vec![r], vec![r])), reserved: Vec::new() };
        Pool::plan(PoolConfig { ids_per_pod: IdsPerPod::new(ids)?, max_pods, machine })
    }

    fn refusal(kubelet: IdRange) -> String {
        plan(65_536, 1, Some(kubelet)).unwrap_err().to_string()
    }

    #[test]
    fn c01_to_c03_ids_per_pod_is_checked_with_the_rule_in_the_text() {
        for (ids, word) in [
            (65_535, "not less than"),
            (0, "not less than"),
            (-1, "not less than"),
            (65_537, "multiple"),
            (4_294_967_295, "multiple"),
            (4_294_967_296, "not more than"),
        ] {
            let text = IdsPerPod::new(ids).unwrap_err().to_string();
            assert!(text.contains(word) && text.contains(&ids.to_string()), "{text}");
        }
    }

    #[test]
    fn c04_a_larger_block_is_aligned_to_itself() {
        let pool = plan(131_072, 110, None).unwrap();
        assert_eq!((pool.first, pool.ids_per_pod()), (131_072, 131_072));
    }

    #[test]
    fn c05_a_length_that_does_not_divide_the_space_rounds_the_pool_down() {
        let pool = plan(196_608, 110, None).unwrap();
        assert_eq!(pool.first, 196_608);
        assert_eq!(pool.end % 196_608, 0);
        assert!(pool.end <= u64::from(MAX_HOST_ID) + 1);
    }

    #[test]
    fn c06_without_the_kubelet_user_the_pool_is_the_default_one() {
        let pool = plan(65_536, 110, None).unwrap();
        assert_eq!(pool.bounds(), (131_072, 4_294_901_759));
        assert_eq!((pool.source(), pool.usable_blocks()), (PoolSource::Default, 65_533));
    }

    #[test]
    fn c09_unequal_uid_and_gid_ranges_are_refused() {
        let machine = Machine {
            kubelet: Some((vec![range(65_536, 65_536)], vec![range(131_072, 65_536)])),
            reserved: Vec::new(),
        };
        let config = PoolConfig { ids_per_pod: IdsPerPod::default(), max_pods: 1, machine };
        assert!(Pool::plan(config).unwrap_err().to_string().contains("make its lines"));
    }

    #[test]
    fn c10_two_ranges_are_refused() {
        let two = vec![range(65_536, 65_536), range(196_608, 65_536)];
        let machine = Machine { kubelet: Some((two.clone(), two)), reserved: Vec::new() };
        let config = PoolConfig { ids_per_pod: IdsPerPod::default(), max_pods: 1, machine };
        assert_eq!(Pool::plan(config).unwrap_err(), PoolError::NotOneRange { uids: 2, gids: 2 });
    }

    #[test]
    fn c11_the_first_id_must_be_a_block_above_the_nodes_own() {
        assert!(refusal(range(0, 655_360)).contains("node's own"));
        assert!(refusal(range(65_535, 655_360)).contains("not a multiple"));
        assert!(refusal(range(70_000, 655_360)).contains("not a multiple"));
        assert_eq!(plan(65_536, 10, Some(range(65_536, 655_360))).unwrap().first, 65_536);
    }

    #[test]
    fn c12_the_count_must_be_whole_blocks() {
        assert!(refusal(range(65_536, 100_000)).contains("the count 100000"));
    }

    #[test]
    fn c13_and_c16_a_pool_smaller_than_max_pods_is_refused_with_both_numbers() {
        let text = plan(65_536, 110, Some(range(65_536, 109 * 65_536))).unwrap_err().to_string();
        assert!(text.contains("109 usable blocks") && text.contains("maxPods is 110"), "{text}");
        plan(65_536, 110, Some(range(65_536, 110 * 65_536))).unwrap();
        plan(33_554_432 * 2, 110, None).unwrap_err();
    }

    #[test]
    fn c15_a_range_that_ends_at_2_to_the_32_loses_its_terminal_block() {
        let pool = plan(65_536, 1, Some(range(4_294_967_296 - 3 * 65_536, 3 * 65_536))).unwrap();
        assert_eq!((pool.usable_blocks(), pool.end), (2, 4_294_901_760));
    }

    #[test]
    fn blocks_that_others_have_are_not_counted_twice() {
        let reserve = |first, length| Reserved { range: range(first, length), owner: "x".into() };
        let machine = Machine {
            kubelet: Some((vec![range(65_536, 10 * 65_536)], vec![range(65_536, 10 * 65_536)])),
            reserved: vec![
                reserve(131_072, 65_537),
                reserve(131_073, 1),
                reserve(196_700, 1),
                reserve(0, 10),
            ],
        };
        let config = PoolConfig { ids_per_pod: IdsPerPod::default(), max_pods: 8, machine };
        assert_eq!(Pool::plan(config).unwrap().usable_blocks(), 8);
    }
}
