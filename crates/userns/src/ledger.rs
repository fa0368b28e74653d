//! The ledger: who holds which host IDs now, and which block the next Pod gets.
//!
//! Reservations are intervals, so that ranges of another length, of a former pool or of a bad record stay kept
//! out of the way. One order, next-fit: a range just freed is the last to be given again.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::PodUid;
use crate::pool::{Pool, Reserved};
use crate::range::IdRange;

/// Who a reservation is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A Pod, whose mapping this is or was.
    Pod(PodUid),
    /// A Pod whose record can't be used.
    Quarantined(PodUid),
}

impl Holder {
    /// The Pod.
    pub fn pod(&self) -> &PodUid {
        let (Self::Pod(pod) | Self::Quarantined(pod)) = self;
        pod
    }
}

/// Host IDs and who holds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The IDs.
    pub range: IdRange,
    /// Who holds them.
    pub holder: Holder,
}

/// Why a Pod gets no IDs. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocateError {
    /// Every block is held.
    #[error(
        "no empty slot in the ID pool {first}-{last}: all {blocks} blocks of {ids_per_pod} IDs are held; delete \
         Pods, or enlarge the range of the user `kubelet` in /etc/subuid and /etc/subgid"
    )]
    Exhausted {
        /// First ID of the pool.
        first: u64,
        /// Last ID of the pool.
        last: u64,
        /// Usable blocks.
        blocks: u64,
        /// IDs per Pod.
        ids_per_pod: u32,
    },
    /// The Pod has been terminated; its IDs may be another's by now.
    #[error("the Pod {0} has been terminated and gets no host IDs again")]
    Terminated(PodUid),
    /// The Pod's record can't be used.
    #[error("the user namespace record of the Pod {pod} is invalid: {reason}; delete the Pod to free it")]
    Quarantined {
        /// The Pod.
        pod: PodUid,
        /// What is wrong with the record.
        reason: String,
    },
}

/// Why a Pod can't take a range as its own.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// Another holds some of the IDs.
    #[error("the IDs {range} overlap {taken}, which the Pod {} holds", .holder.pod())]
    Taken {
        /// The range asked for.
        range: IdRange,
        /// The range that stands in the way.
        taken: IdRange,
        /// Who holds it.
        holder: Holder,
    },
    /// The Pod has another range.
    #[error("the Pod {pod} already uses the IDs {has}, not {range}")]
    Different {
        /// The Pod.
        pod: PodUid,
        /// The range it has.
        has: IdRange,
        /// The range asked for.
        range: IdRange,
    },
}

/// Who holds which host IDs.
#[derive(Debug)]
pub struct Ledger {
    pool: Pool,
    /// By first ID, then by number, since a bad record's range may begin where another's does.
    held: BTreeMap<(u32, u64), Reservation>,
    mappings: HashMap<PodUid, IdRange>,
    quarantined: BTreeMap<PodUid, String>,
    terminated: HashSet<PodUid>,
    foreign: Vec<Reserved>,
    longest: u64,
    number: u64,
    cursor: Option<u64>,
}

impl Ledger {
    /// An empty ledger over `pool`. `cursor` is the remembered place to go on from.
    pub fn new(pool: Pool, cursor: Option<u64>) -> Self {
        Self {
            pool,
            held: BTreeMap::new(),
            mappings: HashMap::new(),
            quarantined: BTreeMap::new(),
            terminated: HashSet::new(),
            foreign: Vec::new(),
            longest: 0,
            number: 0,
            cursor,
        }
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The Pod's mapping, if it has one.
    pub fn mapping_of(&self, pod: &PodUid) -> Option<IdRange> {
        self.mappings.get(pod).copied()
    }

    /// Every reservation, in the order of IDs.
    pub fn reservations(&self) -> impl Iterator<Item = &Reservation> {
        self.held.values()
    }

    /// Quarantined Pods and why.
    pub fn quarantined(&self) -> impl Iterator<Item = (&PodUid, &str)> {
        self.quarantined.iter().map(|(pod, reason)| (pod, reason.as_str()))
    }

    /// Where the next search begins: an ID, to be kept as a hint.
    pub fn cursor(&self) -> u64 {
        self.cursor.unwrap_or_else(|| self.after_highest())
    }

    /// How many blocks a Pod could still be given.
    pub fn free_blocks(&self) -> u64 {
        let (size, mut at, mut free) = (u64::from(self.pool.ids_per_pod()), self.pool.first, 0);
        while let Some(block) = self.first_free(at, self.pool.end) {
            let next = self.next_obstacle(block).min(self.pool.end);
            let run = (next - block) / size;
            free += run;
            at = block + run * size;
        }
        free
    }

    /// Replaces what other instances on this machine hold.
    pub fn set_foreign(&mut self, mut foreign: Vec<Reserved>) {
        foreign.sort_by_key(|r| r.range);
        self.foreign = foreign;
    }

    /// What other instances on this machine hold.
    pub fn foreign(&self) -> &[Reserved] {
        &self.foreign
    }

    /// The Pod's IDs: those that it has, or the next free block.
    ///
    /// # Errors
    /// When every block is held, or the Pod is terminated or quarantined. The ledger is as before.
    pub fn allocate(&mut self, pod: &PodUid) -> Result<IdRange, AllocateError> {
        self.check(pod)?;
        if let Some(range) = self.mapping_of(pod) {
            return Ok(range);
        }
        let start = self.cursor();
        let found = self.first_free(start, self.pool.end).or_else(|| self.first_free(self.pool.first, start));
        let size = self.pool.ids_per_pod();
        let range = found.and_then(|first| IdRange::new(first, size.into()).ok());
        let range = range.ok_or_else(|| self.exhausted())?;
        self.insert(range, Holder::Pod(pod.clone()));
        self.mappings.insert(pod.clone(), range);
        self.cursor = Some(range.end());
        Ok(range)
    }

    /// Whether the Pod may have IDs at all.
    ///
    /// # Errors
    /// When it is terminated or quarantined.
    pub fn check(&self, pod: &PodUid) -> Result<(), AllocateError> {
        if self.terminated.contains(pod) {
            return Err(AllocateError::Terminated(pod.clone()));
        }
        match self.quarantined.get(pod) {
            Some(reason) => Err(AllocateError::Quarantined { pod: pod.clone(), reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Takes `range` as the Pod's mapping: from its record, or from its running sandbox.
    ///
    /// # Errors
    /// When another Pod holds some of the IDs, or the Pod has other IDs.
    pub fn adopt(&mut self, pod: &PodUid, range: IdRange) -> Result<(), AdoptError> {
        match self.mapping_of(pod) {
            Some(has) if has == range => return Ok(()),
            Some(has) => return Err(AdoptError::Different { pod: pod.clone(), has, range }),
            None => {}
        }
        if let Some(other) = self.overlapping(range).find(|r| r.holder.pod() != pod) {
            return Err(AdoptError::Taken { range, taken: other.range, holder: other.holder.clone() });
        }
        self.insert(range, Holder::Pod(pod.clone()));
        self.mappings.insert(pod.clone(), range);
        Ok(())
    }

    /// Keeps `range` out of the way on the Pod's behalf, whoever else holds some of it.
    pub fn reserve(&mut self, range: IdRange, holder: Holder) {
        self.insert(range, holder);
    }

    /// Refuses new sandboxes for the Pod and keeps every range that its record touches.
    pub fn quarantine(&mut self, pod: &PodUid, ranges: &[IdRange], reason: String) {
        for range in ranges {
            self.insert(*range, Holder::Quarantined(pod.clone()));
        }
        self.quarantined.insert(pod.clone(), reason);
    }

    /// Frees all that the Pod holds; a Pod that holds nothing is left alone. Returns what became free.
    pub fn release(&mut self, pod: &PodUid) -> Vec<IdRange> {
        self.mappings.remove(pod);
        self.quarantined.remove(pod);
        let keys: Vec<_> =
            self.held.iter().filter(|(_, r)| r.holder.pod() == pod).map(|(key, _)| *key).collect();
        keys.iter().filter_map(|key| self.held.remove(key)).map(|r| r.range).collect()
    }

    /// Frees a block that was allocated and could not be recorded, quickly and without a tombstone.
    pub fn undo(&mut self, pod: &PodUid, range: IdRange) {
        self.mappings.remove(pod);
        let holder = Holder::Pod(pod.clone());
        let mine = |r: &Reservation| r.range == range && r.holder == holder;
        let key = self.held.range((range.first(), 0)..).find(|(_, r)| mine(r)).map(|(key, _)| *key);
        if let Some(key) = key {
            self.held.remove(&key);
        }
        self.cursor = Some(range.first().into());
    }

    /// Refuses IDs to the Pod from now on, so that a late start can't bring back what termination freed.
    pub fn terminate(&mut self, pod: &PodUid) {
        self.terminated.insert(pod.clone());
    }

    /// Drops the tombstone: the Pod is gone from the API and from disk, and its UID may come back (static Pods).
    pub fn forget(&mut self, pod: &PodUid) {
        self.terminated.remove(pod);
    }

    fn exhausted(&self) -> AllocateError {
        let (first, last) = self.pool.bounds();
        let (blocks, ids_per_pod) = (self.pool.usable_blocks(), self.pool.ids_per_pod());
        AllocateError::Exhausted { first, last, blocks, ids_per_pod }
    }

    fn insert(&mut self, range: IdRange, holder: Holder) {
        self.number += 1;
        self.longest = self.longest.max(range.length().into());
        self.held.insert((range.first(), self.number), Reservation { range, holder });
    }

    fn after_highest(&self) -> u64 {
        let inside = self.mappings.values().map(|r| r.end()).filter(|end| *end <= self.pool.end);
        inside.max().unwrap_or(self.pool.first).max(self.pool.first)
    }

    /// The first free block that begins in `[from, until)`.
    fn first_free(&self, from: u64, until: u64) -> Option<u64> {
        let size = u64::from(self.pool.ids_per_pod());
        let mut first = from.max(self.pool.first).next_multiple_of(size);
        while first < until && first + size <= self.pool.end {
            match self.obstacle(first, first + size) {
                None => return Some(first),
                Some(end) => first = end.next_multiple_of(size),
            }
        }
        None
    }

    /// The end of something that lies in `[first, end)`.
    fn obstacle(&self, first: u64, end: u64) -> Option<u64> {
        let given = [self.pool.reserved(), &self.foreign].into_iter().flatten().map(|r| r.range);
        let given = given.filter(|range| u64::from(range.first()) < end && first < range.end());
        let held = self.held_between(first, end).map(|r| r.range);
        given.chain(held).map(IdRange::end).max()
    }

    /// The first ID at or after `from` that somebody has, or the end of the ID space.
    fn next_obstacle(&self, from: u64) -> u64 {
        let given =
            [self.pool.reserved(), &self.foreign].into_iter().flatten().map(|r| u64::from(r.range.first()));
        let given = given.filter(|first| *first >= from).min();
        let key = (u32::try_from(from).unwrap_or(u32::MAX), 0);
        let held = self.held.range(key..).next().map(|(key, _)| u64::from(key.0));
        given.into_iter().chain(held).min().unwrap_or(1 << 32)
    }

    fn overlapping(&self, range: IdRange) -> impl Iterator<Item = &Reservation> {
        self.held_between(range.first().into(), range.end())
    }

    fn held_between(&self, first: u64, end: u64) -> impl Iterator<Item = &Reservation> {
        let clip = |id: u64| u32::try_from(id).unwrap_or(u32::MAX);
        let from = (clip(first.saturating_sub(self.longest)), 0);
        let until = (clip(end - 1), u64::MAX);
        self.held.range(from..=until).map(|(_, r)| r).filter(move |r| first < r.range.end())
    }
}

#[cfg(test)]
mod tests;
