//! The one thread that writes. It takes every write that waits, makes them in one transaction (group commit), shows
//! the changes to the sinks and only then answers the writers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::{Database, ReadableDatabase, ReadableTable, Table, WriteTransaction};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::embedded::Shared;
use crate::table::{self, CEILING, CLEAN, CURRENT, FLOOR, GAPS, LOG, LogRow, META, REVISION};
use crate::{
    After, Change, CommitError, Durability, Entry, Expect, FollowError, Op, Revision, Sink, StoreError,
    StoreOptions, Write,
};

/// How many revisions relaxed writes may take before one write must reach the disk: after a crash the store goes on
/// this far beyond the last revision on disk, so that no revision is ever given out twice.
pub(crate) const REVISIONS_AHEAD: u64 = 1000;
/// The most writes of one transaction.
const GROUP: usize = 256;
/// What a client is told of a write that the disk refused; the store takes no others until it is opened anew.
const CANNOT_WRITE: &str = "could not write (when its disk is full: free space, then start kakoi again)";
/// Log rows removed in one transaction, so that writes do not wait long for a compaction.
const COMPACT_ROWS: usize = 4096;

/// What the thread is asked to do.
pub(crate) enum Command {
    Write { write: Write, answer: oneshot::Sender<Result<Revision, CommitError>> },
    Follow { after: Revision, sink: Box<dyn Sink>, answer: oneshot::Sender<Result<(), FollowError>> },
    Compact { revision: Revision, answer: oneshot::Sender<Result<(), StoreError>> },
    Close { answer: oneshot::Sender<()> },
}

type Waiting = (Write, oneshot::Sender<Result<Revision, CommitError>>);

/// The thread's state.
pub(crate) struct Writer {
    database: Arc<Database>,
    shared: Arc<Shared>,
    options: StoreOptions,
    sinks: Vec<Box<dyn Sink>>,
    gaps: Vec<(Revision, Revision)>,
    revision: Revision,
    ceiling: Revision,
    /// What marks the file as open. It is committed before anything else is written, and soon when nothing is: no start
    /// waits for the disk.
    mark: Option<WriteTransaction>,
    /// When the file must be made durable and quick to repair, if it isn't.
    settle_at: Option<Instant>,
    failed: Option<Arc<redb::Error>>,
    is_closing: bool,
}

impl Writer {
    pub(crate) fn new(
        database: Arc<Database>,
        shared: Arc<Shared>,
        (gaps, mark): (Vec<(Revision, Revision)>, Option<WriteTransaction>),
        options: StoreOptions,
    ) -> Self {
        let revision = shared.revision.load(Ordering::Acquire);
        let settle_at = mark.as_ref().map(|_| Instant::now() + options.slow_repair_for);
        Self {
            database,
            shared,
            options,
            sinks: Vec::new(),
            gaps,
            revision,
            ceiling: revision + REVISIONS_AHEAD,
            mark,
            settle_at,
            failed: None,
            is_closing: false,
        }
    }

    /// Runs until every sender is gone, then leaves the file clean.
    pub(crate) fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "the store's writer could not make its timer");
                return;
            }
        };
        runtime.block_on(async {
            while !self.is_closing {
                let command = match self.settle_at {
                    None => queue.recv().await,
                    Some(at) => {
                        let Ok(command) = tokio::time::timeout_at(at, queue.recv()).await else {
                            self.settle(false);
                            continue;
                        };
                        command
                    }
                };
                let Some(command) = command else { break };
                self.work(command, &mut queue);
                if self.settle_at.is_some_and(|at| at <= Instant::now()) {
                    self.settle(false);
                }
            }
        });
        if !self.is_closing {
            self.settle(true);
        }
    }

    /// Takes what waits: writes together, everything else in its turn.
    fn work(&mut self, first: Command, queue: &mut mpsc::Receiver<Command>) {
        let mut group: Vec<Waiting> = Vec::new();
        let mut next = Some(first);
        while let Some(command) = next {
            match command {
                Command::Write { write, answer } => group.push((write, answer)),
                other => {
                    self.write(std::mem::take(&mut group));
                    self.other(other);
                }
            }
            next = if group.len() < GROUP && !self.is_closing { queue.try_recv().ok() } else { None };
        }
        self.write(group);
    }

    fn other(&mut self, command: Command) {
        match command {
            Command::Write { .. } => {}
            Command::Follow { after, sink, answer } => {
                answer.send(self.follow(after, sink)).ok();
            }
            Command::Compact { revision, answer } => {
                answer.send(self.compact(revision)).ok();
            }
            Command::Close { answer } => {
                self.is_closing = true;
                self.settle(true);
                answer.send(()).ok();
            }
        }
    }

    fn write(&mut self, group: Vec<Waiting>) {
        if group.is_empty() {
            return;
        }
        let (writes, answers): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        let step = tracing::debug_span!(target: "path", "store: transaction, fsync", writes = writes.len());
        let made = step
            .in_scope(|| self.ready().and_then(|()| self.transact(writes).map_err(|error| self.fail(error))));
        drop(step);
        match made {
            Ok((results, changes)) => {
                self.shared.revision.store(self.revision, Ordering::Release);
                let step = tracing::debug_span!(target: "path", "store: show to watches");
                step.in_scope(|| self.show(&changes));
                drop(step);
                for (answer, result) in answers.into_iter().zip(results) {
                    // A writer that no longer waits has nothing to learn.
                    answer.send(result).ok();
                }
            }
            Err(source) => {
                for answer in answers {
                    let error = StoreError::Engine { action: CANNOT_WRITE, source: source.clone() };
                    answer.send(Err(error.into())).ok();
                }
            }
        }
    }

    fn show(&mut self, changes: &[Change]) {
        if !changes.is_empty() {
            for sink in &mut self.sinks {
                sink.take(changes);
            }
        }
    }

    /// Makes a group in one transaction. On an error nothing of it has happened.
    #[expect(clippy::type_complexity, reason = "one use, and the names of the parts say it")]
    fn transact(
        &mut self,
        writes: Vec<Write>,
    ) -> Result<(Vec<Result<Revision, CommitError>>, Vec<Change>), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        let mut revision = self.revision;
        let mut results = Vec::with_capacity(writes.len());
        let mut changes = Vec::with_capacity(writes.len());
        let mut synced = false;
        {
            let mut current = transaction.open_table(CURRENT)?;
            let mut log = transaction.open_table(LOG)?;
            for write in writes {
                let durability = write.durability;
                match apply(&mut current, &mut log, write, revision + 1)? {
                    Applied::Changed(change) => {
                        revision = change.revision;
                        synced |= durability == Durability::Synced;
                        results.push(Ok(revision));
                        changes.push(change);
                    }
                    Applied::Unchanged => results.push(Ok(revision)),
                    Applied::Conflict(current) => results.push(Err(CommitError::Conflict { current })),
                }
            }
        }
        if changes.is_empty() {
            transaction.abort()?;
            return Ok((results, changes));
        }
        synced |= revision >= self.ceiling;
        self.finish(&mut transaction, revision, synced)?;
        transaction.commit()?;
        self.revision = revision;
        if synced {
            self.ceiling = revision + REVISIONS_AHEAD;
        }
        Ok((results, changes))
    }

    /// Sets how a transaction is committed, and when what it leaves open must be settled.
    fn finish(
        &mut self,
        transaction: &mut WriteTransaction,
        revision: Revision,
        synced: bool,
    ) -> Result<(), redb::Error> {
        let wait = if synced { self.options.slow_repair_for } else { self.options.relaxed_for };
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert(REVISION, revision)?;
            if synced {
                meta.insert(CEILING, revision + REVISIONS_AHEAD)?;
            }
        }
        if !synced {
            transaction.set_durability(redb::Durability::None)?;
        }
        // Quick repair needs two more syncs: a commit of its own pays for them, not the writer that waits.
        let at = Instant::now() + wait;
        self.settle_at = Some(self.settle_at.map_or(at, |earlier| earlier.min(at)));
        Ok(())
    }

    /// Makes everything durable and the file quick to repair; `closing` also marks it clean.
    fn settle(&mut self, closing: bool) {
        self.settle_at = None;
        let is_settled = self.mark.is_some() && !closing;
        if self.ready().is_err() || is_settled {
            return;
        }
        let settled = (|| -> Result<(), redb::Error> {
            let mut transaction = self.database.begin_write()?;
            transaction.set_quick_repair(true);
            {
                let mut meta = transaction.open_table(META)?;
                meta.insert(CEILING, self.revision + REVISIONS_AHEAD)?;
                meta.insert(CLEAN, u64::from(closing))?;
            }
            Ok(transaction.commit()?)
        })();
        match settled {
            Ok(()) => {
                self.ceiling = self.revision + REVISIONS_AHEAD;
            }
            Err(error) => {
                self.fail(error);
            }
        }
    }

    fn follow(&mut self, after: Revision, mut sink: Box<dyn Sink>) -> Result<(), FollowError> {
        let floor = self.shared.floor.load(Ordering::Acquire);
        if after > self.revision {
            return Err(FollowError::Future { after, current: self.revision });
        }
        let lost = self.gaps.iter().find(|(start, end)| *start < after && after < *end).map(|(_, end)| *end);
        if let Some(floor) = lost.or_else(|| (after < floor).then_some(floor)) {
            return Err(FollowError::Compacted { after, floor });
        }
        (|| -> Result<(), redb::Error> {
            let transaction = self.database.begin_read()?;
            let (current, log) = (transaction.open_table(CURRENT)?, transaction.open_table(LOG)?);
            table::history(&current, &log, after, &mut *sink)
        })()
        .map_err(StoreError::engine("could not read its history"))?;
        self.sinks.push(sink);
        Ok(())
    }

    fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        let to = revision.min(self.revision);
        let engine = |source| StoreError::Engine { action: "could not compact its history", source };
        self.ready().map_err(engine)?;
        while self.compact_some(to).map_err(|error| engine(self.fail(error)))? {}
        self.gaps.retain(|(_, end)| *end > to);
        self.shared.floor.fetch_max(to, Ordering::AcqRel);
        self.settle(false);
        Ok(())
    }

    /// Removes some log rows; says whether there are more.
    fn compact_some(&self, to: Revision) -> Result<bool, redb::Error> {
        let mut transaction = self.database.begin_write()?;
        transaction.set_durability(redb::Durability::None)?;
        let removed = {
            let mut log = transaction.open_table(LOG)?;
            let mut removed = 0;
            let last = log.range(..=to)?.take(COMPACT_ROWS).last().transpose()?.map(|(key, _)| key.value());
            if let Some(last) = last {
                log.retain_in(..=last, |_, _| {
                    removed += 1;
                    false
                })?;
            }
            let mut meta = transaction.open_table(META)?;
            let floor = table::number(&meta, FLOOR)?.max(to);
            meta.insert(FLOOR, floor)?;
            transaction.open_table(GAPS)?.retain(|_, end| end > to)?;
            removed
        };
        transaction.commit()?;
        Ok(removed == COMPACT_ROWS)
    }

    /// Whether it can be written; it is marked as open from then on.
    fn ready(&mut self) -> Result<(), Arc<redb::Error>> {
        if let Some(Err(error)) = self.mark.take().map(WriteTransaction::commit) {
            self.fail(error.into());
        }
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// After a failed transaction redb refuses every other one, and what readers saw may be gone: so do we.
    fn fail(&mut self, error: redb::Error) -> Arc<redb::Error> {
        tracing::error!(%error, "the store failed and takes no more writes; free disk space, then start again");
        let error = Arc::new(error);
        self.failed = Some(error.clone());
        self.shared.has_failed.store(true, Ordering::Release);
        error
    }
}

/// What became of one write inside its transaction.
enum Applied {
    Changed(Change),
    Unchanged,
    Conflict(Option<Entry>),
}

fn apply(
    current: &mut Table<'_, &'static str, (u64, &'static [u8])>,
    log: &mut Table<'_, u64, LogRow>,
    write: Write,
    revision: Revision,
) -> Result<Applied, redb::Error> {
    let key = write.key.as_str();
    let before = table::entry(current, key)?;
    let expected = match write.expect {
        Expect::Absent => before.is_none(),
        Expect::Revision(revision) => before.as_ref().is_some_and(|entry| entry.revision == revision),
        Expect::Any => true,
    };
    if !expected {
        return Ok(Applied::Conflict(before));
    }
    let after = match write.op {
        Op::Put(value) => {
            current.insert(key, (revision, value.as_ref()))?;
            After::Value(value)
        }
        Op::Delete if before.is_none() => return Ok(Applied::Unchanged),
        Op::Delete => {
            current.remove(key)?;
            After::Removed
        }
    };
    let previous = before.map(|entry| (entry.revision, entry.value));
    let (previous_revision, previous_value) =
        previous.as_ref().map_or((0, &[][..]), |(revision, value)| (*revision, value.as_ref()));
    log.insert(revision, (u8::from(after == After::Removed), key, previous_revision, previous_value))?;
    Ok(Applied::Changed(Change { revision, key: Arc::from(key), after, previous }))
}
