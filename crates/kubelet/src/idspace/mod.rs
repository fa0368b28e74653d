//! The node's ID space: gives each Pod its block of host IDs, durably, and never the same ID to two of them.
//!
//! Decisions are made in `userns`; here are the files. Three things say who holds what, and each has its place:
//! the record in the Pod's directory (durable), the machine's register below `/run/kakoi/ids` (shared with other
//! instances), and the ledger in memory (rebuilt from both, and from the sandboxes that run, at start).
//! Calls block for an fsync; async callers use a blocking thread.

mod claims;
mod files;
mod inspect;
mod machine;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use userns::{
    AdoptError, AllocateError, Finding, Holder, IdMappings, IdRange, IdsPerPod, Ledger, LiveSandbox, Machine,
    PodUid, Pool, PoolConfig, PoolError, Record, RecordError, Recovery, Reserved, Snapshot,
};

pub use crate::fault::{CrashPoint, Faults, NoFaults};
use claims::Claims;
use files::PodDirs;
pub use inspect::inspect;
pub use machine::{MachineError, MachineFiles, host_ranges};

/// Where the ID space is kept, and its settings.
#[derive(Clone, Debug)]
pub struct IdSpaceConfig {
    /// `<kubelet root>/pods`.
    pub pods_dir: PathBuf,
    /// The machine's register, `/run/kakoi/ids`, whatever the instance's root.
    pub claims_dir: PathBuf,
    /// The instance's name, which is its file's name in the register.
    pub instance: String,
    /// The instance's root, told to other instances.
    pub root: PathBuf,
    /// Where the search goes on: a hint that may be lost.
    pub cursor_file: PathBuf,
    /// `userNamespaces.idsPerPod`.
    pub ids_per_pod: i64,
    /// `maxPods`.
    pub max_pods: u32,
    /// Where the machine says what it has given away.
    pub machine: MachineFiles,
    /// Faults to be injected by tests.
    pub faults: Arc<dyn Faults>,
}

/// Why the ID space can't be opened. All of these are configuration or a broken machine, never a Pod's record.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The pool can't be made.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// The machine's files can't be used.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// A directory can't be used.
    #[error("can't {what} {}: {cause}", .path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// Why a Pod's IDs can't be given or freed. Nothing is half done; the call can be repeated.
#[derive(Debug, thiserror::Error)]
pub enum IdSpaceError {
    /// No block can be given.
    #[error("create user namespace: {0}")]
    Allocate(#[from] AllocateError),
    /// The record says something that can't be.
    #[error("create user namespace: the record {}: {cause}", .path.display())]
    Adopt {
        /// The record.
        path: PathBuf,
        /// What stands in the way.
        cause: AdoptError,
    },
    /// The record has become unusable since start.
    #[error("create user namespace: the record {}: {cause}; delete the Pod to free it", .path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        cause: RecordError,
    },
    /// The range can't be used any more.
    #[error("create user namespace: the record {}: the IDs {range} {why}", .path.display())]
    Unusable {
        /// The record.
        path: PathBuf,
        /// The range.
        range: IdRange,
        /// Why it can't be used.
        why: String,
    },
    /// A file operation failed.
    #[error("user namespace of the Pod {pod}: can't {what}: {cause}{}", remedy(.cause))]
    Io {
        /// The Pod.
        pod: PodUid,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        cause: io::Error,
    },
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gauges {
    /// Blocks of the pool.
    pub blocks: u64,
    /// Blocks that a Pod could still be given.
    pub free: u64,
    /// Pods whose record can't be used.
    pub quarantined: usize,
}

/// The node's ID space. Calls from many threads are served one after another.
#[derive(Debug)]
pub struct IdSpace {
    config: IdSpaceConfig,
    dirs: PodDirs,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    ledger: Ledger,
    claims: Claims,
}

impl IdSpace {
    /// Opens the ID space and settles what the records and the running sandboxes say. `live` lists every sandbox
    /// of the runtime.
    ///
    /// # Errors
    /// For bad configuration, and when the directories can't be used. A bad record is a [`Finding`].
    pub fn open(config: IdSpaceConfig, live: &[LiveSandbox]) -> Result<(Self, Vec<Finding>), OpenError> {
        let dirs = PodDirs::new(config.pods_dir.clone());
        let io = |what, path: &PathBuf| {
            let path = path.clone();
            move |cause| OpenError::Io { what, path, cause }
        };
        let machine = config.machine.read()?;
        let mut claims = Claims::open(&config.claims_dir, &config.instance)
            .map_err(io("open the register of IDs", &config.claims_dir))?;
        let lock = claims.lock().map_err(io("lock the register of IDs", &config.claims_dir))?;
        claims
            .remove_abandoned(&lock, &config.machine.proc)
            .map_err(io("clean the register of IDs", &config.claims_dir))?;
        let foreign = claims.foreign(&lock).map_err(io("read the register of IDs", &config.claims_dir))?;
        dirs.close().map_err(io("make", &config.pods_dir))?;
        dirs.remove_leftovers().map_err(io("clean", &config.pods_dir))?;
        let records = dirs.records().map_err(io("read the records in", &config.pods_dir))?;
        let foreign = foreign.unwrap_or_default();
        let machine = with_running(machine, &config, &records, live, &foreign);
        let given: Vec<Reserved> = machine.reserved.iter().chain(&foreign).cloned().collect();
        let mut plan = userns::plan_recovery(&records, live, &given);
        let mut ledger = Ledger::new(plan_pool(&config, machine)?, read_cursor(&config));
        ledger.set_foreign(foreign);
        apply(&mut ledger, &dirs, &mut plan, &config);
        claims
            .rewrite(&lock, &config.root, &held(&ledger))
            .map_err(io("write the register of IDs", &config.claims_dir))?;
        drop(lock);
        Ok((Self { config, dirs, state: Mutex::new(State { ledger, claims }) }, plan.findings))
    }

    /// The Pod's mappings: those of its record, or a new block, recorded durably before this returns.
    ///
    /// # Errors
    /// When the Pod is terminated or its record is unusable, when every block is held, and when the record can't
    /// be written; then nothing is held for it.
    pub fn get_or_create(&self, pod: &PodUid) -> Result<IdMappings, IdSpaceError> {
        let mut state = self.lock();
        state.ledger.check(pod)?;
        if let Some(range) = state.ledger.mapping_of(pod) {
            self.keep_recorded(pod, range)?;
            return Ok(IdMappings::of(range));
        }
        let range = match self.dirs.read(pod) {
            Some(Ok(Record::Range(range))) => self.take_recorded(&mut state, pod, range)?,
            Some(Err(cause)) => return Err(IdSpaceError::Record { path: self.dirs.record_path(pod), cause }),
            Some(Ok(Record::Empty)) | None => self.create(&mut state, pod)?,
        };
        Ok(IdMappings::of(range))
    }

    /// Whether the Pod has IDs, or a record, good or bad: it was fenced.
    pub fn is_recorded(&self, pod: &PodUid) -> bool {
        let has_ids = self.lock().ledger.mapping_of(pod).is_some();
        has_ids || matches!(self.dirs.read(pod), Some(Ok(Record::Range(_)) | Err(_)))
    }

    /// Refuses IDs to the Pod from now on; what it has stays until [`release`](Self::release).
    pub fn terminate(&self, pod: &PodUid) {
        self.lock().ledger.terminate(pod);
    }

    /// Frees what the Pod holds and removes its record. The caller knows that no sandbox of the Pod is left.
    /// A Pod that holds nothing is left alone.
    ///
    /// # Errors
    /// When the record or the claim can't be removed; the block then stays held.
    pub fn release(&self, pod: &PodUid) -> Result<(), IdSpaceError> {
        let mut state = self.lock();
        state.ledger.terminate(pod);
        self.free(&mut state, pod)
    }

    /// Drops the Pod's tombstone, once it is gone from the API and from disk.
    pub fn forget(&self, pod: &PodUid) {
        self.lock().ledger.forget(pod);
    }

    /// Frees what belongs to Pods that neither the API nor the runtime knows any more.
    ///
    /// # Errors
    /// When the Pods' directories can't be listed (nothing is freed), or with the first failure to free.
    pub fn reconcile(
        &self,
        known: &HashSet<PodUid>,
        live: &[LiveSandbox],
    ) -> Result<Vec<PodUid>, IdSpaceError> {
        let mut state = self.lock();
        let gone = |pod: &PodUid| !known.contains(pod) && live.iter().all(|sandbox| sandbox.pod != *pod);
        let listing = |cause| {
            let pod = known.iter().next().cloned().unwrap_or_else(none);
            IdSpaceError::Io { pod, what: "list the Pods' directories", cause }
        };
        let on_disk = self.dirs.pods().map_err(listing)?;
        let recorded = on_disk.into_iter().filter(|pod| self.dirs.read(pod).is_some());
        let held = state.ledger.reservations().map(|r| r.holder.pod().clone());
        let orphans: BTreeSet<PodUid> = recorded.chain(held).filter(|pod| gone(pod)).collect();
        for pod in &orphans {
            self.free(&mut state, pod)?;
        }
        Ok(orphans.into_iter().collect())
    }

    /// Numbers for metrics.
    pub fn gauges(&self) -> Gauges {
        let state = self.lock();
        let ledger = &state.ledger;
        Gauges {
            blocks: ledger.pool().usable_blocks(),
            free: ledger.free_blocks(),
            quarantined: ledger.quarantined().count(),
        }
    }

    /// The ID space as it stands, without Pods' names.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        inspect::picture(&state.ledger, &self.dirs)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_recorded(
        &self,
        state: &mut State,
        pod: &PodUid,
        range: IdRange,
    ) -> Result<IdRange, IdSpaceError> {
        let unusable = |why: String| IdSpaceError::Unusable { path: self.dirs.record_path(pod), range, why };
        if !range.is_mappable() {
            return Err(unusable("include 4294967295, which the kernel maps for nobody".to_owned()));
        }
        let io = |cause| IdSpaceError::Io { pod: pod.clone(), what: "claim the IDs on this machine", cause };
        let lock = state.claims.lock().map_err(io)?;
        state.refresh(&lock).map_err(io)?;
        let given = state.ledger.pool().reserved().iter().chain(state.ledger.foreign());
        if let Some(other) = given.into_iter().find(|r| r.range.overlaps(range)) {
            return Err(unusable(format!("belong to {}", other.owner)));
        }
        let adopted = state.ledger.adopt(pod, range);
        adopted.map_err(|cause| IdSpaceError::Adopt { path: self.dirs.record_path(pod), cause })?;
        state.claim(&lock, range).map_err(io)?;
        Ok(range)
    }

    /// Has the record say what the Pod holds, whatever became of it since: the mapping was settled when it was given or
    /// found at start, and the Pod may run with it.
    fn keep_recorded(&self, pod: &PodUid, range: IdRange) -> Result<(), IdSpaceError> {
        let found = match self.dirs.read(pod) {
            Some(Ok(Record::Range(found))) if found == range => return Ok(()),
            Some(Ok(Record::Range(found))) => format!("it named the IDs {found}"),
            Some(Ok(Record::Empty)) => "it was empty".to_owned(),
            Some(Err(cause)) => cause.to_string(),
            None => "it was gone".to_owned(),
        };
        self.dirs.write(pod, range, self.config.faults.as_ref()).map_err(|cause| IdSpaceError::Io {
            pod: pod.clone(),
            what: "write the record anew",
            cause,
        })?;
        tracing::warn!(%pod, %range, found, "somebody has changed the record of host IDs; it is as it was again");
        Ok(())
    }

    fn create(&self, state: &mut State, pod: &PodUid) -> Result<IdRange, IdSpaceError> {
        let range = state.claim_new(pod)?;
        let written = self.dirs.write(pod, range, self.config.faults.as_ref());
        if let Err(cause) = written {
            self.undo(state, pod, range);
            return Err(IdSpaceError::Io { pod: pod.clone(), what: "write the record", cause });
        }
        write_cursor(&self.config, state.ledger.cursor());
        Ok(range)
    }

    /// Takes a block back whose record could not be written.
    fn undo(&self, state: &mut State, pod: &PodUid, range: IdRange) {
        let cleaned = self.dirs.remove(pod).and_then(|()| {
            let lock = state.claims.lock()?;
            state.claims.give_up(&lock, range)
        });
        match cleaned {
            Ok(()) => state.ledger.undo(pod, range),
            Err(cause) => tracing::warn!(%pod, %range, %cause, "the IDs stay held until the Pod is deleted"),
        }
    }

    fn free(&self, state: &mut State, pod: &PodUid) -> Result<(), IdSpaceError> {
        let io = |what| move |cause| IdSpaceError::Io { pod: pod.clone(), what, cause };
        self.dirs.remove(pod).map_err(io("remove the record"))?;
        self.config.faults.at(CrashPoint::RecordRemoved).map_err(io("go on after removing the record"))?;
        let held: Vec<_> =
            state.ledger.reservations().filter(|r| r.holder.pod() == pod).map(|r| r.range).collect();
        if !held.is_empty() {
            let give_up = io("give the IDs back to the machine");
            let lock = state.claims.lock().map_err(&give_up)?;
            for range in held {
                state.claims.give_up(&lock, range).map_err(&give_up)?;
            }
        }
        state.ledger.release(pod);
        Ok(())
    }
}

/// What helps against an error that has a remedy.
pub(crate) fn remedy(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::StorageFull => {
            "; free space on the disk of the kubelet's directory, then it is tried again"
        }
        _ => "",
    }
}

impl State {
    /// The next free block, claimed on this machine.
    fn claim_new(&mut self, pod: &PodUid) -> Result<IdRange, IdSpaceError> {
        let io = |cause| IdSpaceError::Io { pod: pod.clone(), what: "claim the IDs on this machine", cause };
        let lock = self.claims.lock().map_err(io)?;
        self.refresh(&lock).map_err(io)?;
        let range = self.ledger.allocate(pod)?;
        if let Err(cause) = self.claim(&lock, range) {
            self.ledger.undo(pod, range);
            return Err(io(cause));
        }
        Ok(range)
    }

    /// Claims a range that the ledger has reserved.
    fn claim(&mut self, lock: &claims::Locked, range: IdRange) -> io::Result<()> {
        let Self { ledger, claims } = self;
        claims.claim(lock, range, || held(ledger))
    }

    /// Learns what other instances have claimed since.
    fn refresh(&mut self, lock: &claims::Locked) -> io::Result<()> {
        if let Some(foreign) = self.claims.foreign(lock)? {
            self.ledger.set_foreign(foreign);
        }
        Ok(())
    }
}

/// Removes the instance's file from the machine's register when no Pod has a record any more. The caller knows that
/// the instance does not run and has no sandbox; a record that can't be read counts as one.
///
/// # Errors
/// When the records can't be listed, or the file is there and can't be removed.
pub fn remove_unused_claims(config: &IdSpaceConfig) -> io::Result<()> {
    if !PodDirs::new(config.pods_dir.clone()).records()?.is_empty() {
        return Ok(());
    }
    let claims = Claims::open(&config.claims_dir, &config.instance)?;
    let lock = claims.lock()?;
    claims.remove(&lock)
}

/// Every range that the ledger holds, each once.
fn held(ledger: &Ledger) -> Vec<IdRange> {
    let ranges: BTreeSet<IdRange> = ledger.reservations().map(|reservation| reservation.range).collect();
    ranges.into_iter().collect()
}

fn none() -> PodUid {
    // The name of no Pod, for an error that concerns all of them.
    PodUid::parse("all").unwrap_or_else(|_| unreachable!("`all` is a valid UID"))
}

fn plan_pool(config: &IdSpaceConfig, machine: Machine) -> Result<Pool, PoolError> {
    let ids_per_pod = IdsPerPod::new(config.ids_per_pod)?;
    Pool::plan(PoolConfig { ids_per_pod, max_pods: config.max_pods, machine })
}

/// Adds the ranges of user namespaces that run on the machine and are nobody's that we know.
fn with_running(
    mut machine: Machine,
    config: &IdSpaceConfig,
    records: &[userns::OnDisk],
    live: &[LiveSandbox],
    foreign: &[Reserved],
) -> Machine {
    let recorded = records.iter().flat_map(|record| match &record.content {
        Ok(Record::Range(range)) => vec![*range],
        Ok(Record::Empty) => Vec::new(),
        Err(error) => error.touched.clone(),
    });
    let known: Vec<IdRange> = recorded
        .chain(live.iter().flat_map(|sandbox| sandbox.maps.clone()))
        .chain(foreign.iter().chain(&machine.reserved).map(|r| r.range))
        .collect();
    let running = machine::mapped_ranges(&config.machine.proc);
    let unknown = running.into_iter().filter(|range| !known.iter().any(|known| known.overlaps(*range)));
    let owner = "a user namespace that runs and is nobody's that is known";
    machine.reserved.extend(unknown.map(|range| Reserved { range, owner: owner.to_owned() }));
    machine
}

/// Carries recovery out. What can't be written stays as it is and is told; the reservation holds all the same.
fn apply(ledger: &mut Ledger, dirs: &PodDirs, plan: &mut Recovery, config: &IdSpaceConfig) {
    let mut failures = Vec::new();
    for (pod, range) in &plan.adopt {
        if let Err(cause) = ledger.adopt(pod, *range) {
            failures.push((pod.clone(), cause.to_string()));
            ledger.reserve(*range, Holder::Quarantined(pod.clone()));
        }
    }
    for (range, holder) in &plan.reserve {
        ledger.reserve(*range, holder.clone());
    }
    for (pod, ranges, reason) in &plan.quarantine {
        ledger.quarantine(pod, ranges, reason.clone());
    }
    for (pod, range) in plan.rewrite.iter().filter(|(pod, _)| dirs.has(pod)) {
        if let Err(cause) = dirs.write(pod, *range, config.faults.as_ref()) {
            failures.push((pod.clone(), format!("can't write the record: {cause}")));
        }
    }
    for pod in &plan.discard {
        if let Err(cause) = dirs.remove(pod) {
            failures.push((pod.clone(), format!("can't remove the record: {cause}")));
        }
    }
    plan.findings.extend(failures.into_iter().map(|(pod, message)| Finding { pod, message }));
}

fn read_cursor(config: &IdSpaceConfig) -> Option<u64> {
    fs::read_to_string(&config.cursor_file).ok()?.trim().parse().ok()
}

/// A hint: what can't be written costs nothing but the order of later blocks.
fn write_cursor(config: &IdSpaceConfig, cursor: u64) {
    let written = config.cursor_file.parent().map_or(Ok(()), fs::create_dir_all);
    if let Err(cause) = written.and_then(|()| fs::write(&config.cursor_file, format!("{cursor}\n"))) {
        tracing::debug!(file = %config.cursor_file.display(), %cause, "the allocation cursor is not kept");
    }
}

#[cfg(test)]
mod tests;
