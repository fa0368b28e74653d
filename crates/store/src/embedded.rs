//! The embedded store: one redb file, read from any thread, written by one.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, WriteTransaction,
};
use tokio::sync::{mpsc, oneshot};

use crate::table::{self, CEILING, CLEAN, CURRENT, FLOOR, FORMAT, FORMAT_VERSION, GAPS, LOG, META, REVISION};
use crate::writer::{Command, Writer};
use crate::{
    BoxFuture, CommitError, Entry, FollowError, Listing, Revision, Row, Sink, Storage, StoreError, Write,
};

/// How many writes may wait for the writer thread before `commit` makes its caller wait.
const QUEUE: usize = 1024;

/// How a store behaves.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// redb's page cache, in bytes. Small: the watch cache above is the cache.
    pub cache_bytes: usize,
    /// How long a relaxed write may wait for the disk.
    pub relaxed_for: Duration,
    /// How long the file may stay in a state that a crash makes slow to open (redb's quick repair).
    pub slow_repair_for: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 4 * 1024 * 1024,
            relaxed_for: Duration::from_secs(10),
            slow_repair_for: Duration::from_secs(1),
        }
    }
}

/// Numbers that readers see without asking the writer.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) revision: AtomicU64,
    pub(crate) floor: AtomicU64,
    pub(crate) has_failed: AtomicBool,
}

/// The embedded store. Dropping it writes what is left and closes the file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    database: Arc<Database>,
    /// The revision when it was opened; the file may say an earlier one until it has been marked as open.
    opened: Revision,
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the store in the file `path`, which is made (mode 0600) when it isn't there; its directory must be.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another process has it open, else what the system said.
    pub fn open(path: &Path, options: &StoreOptions) -> Result<Arc<Store>, StoreError> {
        let database = open_database(path, options)?;
        let opened = prepare(&database).map_err(|source| open_error(path, source))?;
        if opened.format != FORMAT_VERSION {
            return Err(StoreError::Format {
                path: path.to_owned(),
                found: opened.format,
                expected: FORMAT_VERSION,
            });
        }
        let database = Arc::new(database);
        let shared = Arc::new(Shared::default());
        shared.revision.store(opened.revision, Ordering::Release);
        shared.floor.store(opened.floor, Ordering::Release);
        let (commands, queue) = mpsc::channel(QUEUE);
        let found = (opened.gaps, opened.mark);
        let writer = Writer::new(database.clone(), shared.clone(), found, options.clone());
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(StoreError::Thread)?;
        Ok(Arc::new(Store {
            path: path.to_owned(),
            database,
            opened: opened.revision,
            shared,
            commands,
            thread: Mutex::new(Some(thread)),
        }))
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, StoreError> {
        let (answer, receiver) = oneshot::channel();
        self.commands.send(command(answer)).await.map_err(|_| StoreError::Closed)?;
        receiver.await.map_err(|_| StoreError::Closed)
    }

    fn read<T>(
        &self,
        action: &'static str,
        read: impl FnOnce(&redb::ReadTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.database
            .begin_read()
            .map_err(redb::Error::from)
            .and_then(|transaction| read(&transaction))
            .map_err(StoreError::engine(action))
    }
}

impl Storage for Store {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.read("could not read a key", |transaction| table::entry(&transaction.open_table(CURRENT)?, key))
    }

    fn range(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<Listing, StoreError> {
        self.read("could not list keys", |transaction| {
            let revision = table::number(&transaction.open_table(META)?, REVISION)?.max(self.opened);
            let current = transaction.open_table(CURRENT)?;
            let limit = if limit == 0 { usize::MAX } else { limit };
            let mut entries = Vec::new();
            let from = start_after.filter(|start| *start > prefix).unwrap_or(prefix);
            for row in current.range(from..)? {
                let (key, value) = row?;
                if !key.value().starts_with(prefix) || entries.len() == limit {
                    break;
                }
                if start_after == Some(key.value()) {
                    continue;
                }
                let (revision, value) = value.value();
                entries.push(Entry {
                    key: Arc::from(key.value()),
                    revision,
                    value: bytes::Bytes::copy_from_slice(value),
                });
            }
            Ok(Listing { revision, entries })
        })
    }

    fn export(&self, take: &mut dyn FnMut(&Entry) -> bool) -> Result<Revision, StoreError> {
        self.read("could not read all entries", |transaction| {
            let revision = table::number(&transaction.open_table(META)?, REVISION)?.max(self.opened);
            for row in transaction.open_table(CURRENT)?.iter()? {
                let (key, value) = row?;
                let (revision, value) = value.value();
                let value = bytes::Bytes::copy_from_slice(value);
                if !take(&Entry { key: Arc::from(key.value()), revision, value }) {
                    break;
                }
            }
            Ok(revision)
        })
    }

    fn load(&self, take: &(dyn Fn(Row<'_>) -> bool + Sync)) -> Result<(), StoreError> {
        self.read("could not read all entries", |transaction| {
            let current = transaction.open_table(CURRENT)?;
            let last = usize::try_from(current.len()? / 2).unwrap_or(usize::MAX);
            let first = usize::try_from(current.len()?).unwrap_or(usize::MAX) - last;
            let from_the_end = || table::give(current.iter()?.rev().take(last), take);
            std::thread::scope(|scope| {
                let beside = std::thread::Builder::new().name("load".to_owned());
                let beside = beside.spawn_scoped(scope, from_the_end);
                table::give(current.iter()?.take(first), take)?;
                match beside {
                    Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                    // No second thread: it only takes longer.
                    Err(_) => from_the_end(),
                }
            })
        })
    }

    fn commit(&self, write: Write) -> BoxFuture<'_, Result<Revision, CommitError>> {
        Box::pin(async move { self.ask(|answer| Command::Write { write, answer }).await? })
    }

    fn follow(&self, after: Revision, sink: Box<dyn Sink>) -> BoxFuture<'_, Result<(), FollowError>> {
        Box::pin(async move { self.ask(|answer| Command::Follow { after, sink, answer }).await? })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.ask(|answer| Command::Compact { revision, answer }).await? })
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // A store that is closed already has nothing left to do.
            self.ask(|answer| Command::Close { answer }).await.ok();
        })
    }

    fn revision(&self) -> Revision {
        self.shared.revision.load(Ordering::Acquire)
    }

    fn floor(&self) -> Revision {
        self.shared.floor.load(Ordering::Acquire)
    }

    fn is_writable(&self) -> bool {
        !self.shared.has_failed.load(Ordering::Acquire)
    }

    fn size(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Closing the queue ends the writer, which makes everything durable first.
        let (closed, _) = mpsc::channel(1);
        self.commands = closed;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!(path = %self.path.display(), "the store's writer thread panicked");
        }
    }
}

fn open_error(path: &Path, source: redb::Error) -> StoreError {
    match source {
        redb::Error::DatabaseAlreadyOpen => StoreError::InUse { path: path.to_owned() },
        source => StoreError::Open { path: path.to_owned(), source: Box::new(source) },
    }
}

pub(crate) fn open_database(path: &Path, options: &StoreOptions) -> Result<Database, StoreError> {
    let io = |error: std::io::Error| open_error(path, redb::Error::Io(error));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    // A file that has something in it was made by somebody who did this first.
    let is_new = file.metadata().map_err(io)?.len() == 0;
    if let Some(directory) = path.parent().filter(|_| is_new) {
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(io)?;
    }
    let mut builder = Database::builder();
    builder.set_cache_size(options.cache_bytes).set_repair_callback(|_| {
        tracing::info!("the store was not closed cleanly; checking it");
    });
    FileBackend::new(file)
        .and_then(|backend| builder.create_with_backend(backend))
        .map_err(|error: DatabaseError| open_error(path, error.into()))
}

/// What the file says when it is opened.
struct Opened {
    format: u64,
    revision: Revision,
    floor: Revision,
    gaps: Vec<(Revision, Revision)>,
    /// What marks the file as open, to be committed before anything else is written. All that is read before it is the
    /// same as after it, so nobody has to wait for the disk.
    mark: Option<WriteTransaction>,
}

/// Makes the tables, and after a crash continues beyond every revision that may have been given out.
fn prepare(database: &Database) -> Result<Opened, redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    let (mut opened, is_new) = {
        transaction.open_table(CURRENT)?;
        transaction.open_table(LOG)?;
        let mut gaps = transaction.open_table(GAPS)?;
        let mut meta = transaction.open_table(META)?;
        let mut revision = table::number(&meta, REVISION)?;
        let ceiling = table::number(&meta, CEILING)?;
        let is_new = revision == 0 && ceiling == 0;
        if is_new {
            meta.insert(FORMAT, FORMAT_VERSION)?;
        } else if table::number(&meta, CLEAN)? == 0 && ceiling > revision {
            gaps.insert(revision, ceiling)?;
            revision = ceiling;
        }
        meta.insert(REVISION, revision)?;
        meta.insert(CEILING, revision + crate::writer::REVISIONS_AHEAD)?;
        meta.insert(CLEAN, 0)?;
        let gaps = gaps
            .iter()?
            .map(|row| row.map(|(start, end)| (start.value(), end.value())))
            .collect::<Result<_, _>>()?;
        let (format, floor) = (table::number(&meta, FORMAT)?, table::number(&meta, FLOOR)?);
        (Opened { format, revision, floor, gaps, mark: None }, is_new)
    };
    match opened.format == FORMAT_VERSION {
        // Until then there are no tables to read.
        true if is_new => transaction.commit()?,
        true => opened.mark = Some(transaction),
        false => transaction.abort()?,
    }
    Ok(opened)
}
