//! The watch cache: every stored object as the bytes that go over the wire, and the latest changes of each resource.
//! All reads are served from here. It is filled by the store's thread before a writer learns that its write is done, so
//! whoever was told of a write can read it. Nothing here parses JSON but selectors, and those once for each object.

mod object;
mod table;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use api::kind::{Kind, kinds};
use store::{Change, Durability, Expect, FollowError, Op, Sink, Storage, StoreError, Write};

pub(crate) use object::Object;
pub(crate) use table::{Event, Expired, Snapshot, Table, When, frame};

/// How far back a start takes the history, in revisions: what watchers can have missed while the server was away is the
/// last of it, and each change costs the start its reading and an object of memory.
const HISTORY: u64 = 4096;

/// The cache could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The store can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's history can't be followed.
    #[error("following the store: {0}")]
    Follow(#[from] FollowError),
    /// An object in the store isn't in the form that this program writes.
    #[error(
        "the stored object {key} is not in the form that this version of kakoi writes; use the version that wrote it"
    )]
    Form {
        /// Its key.
        key: String,
    },
}

/// All tables, and the store below them.
#[derive(Debug)]
pub(crate) struct Cache {
    /// Shared with the store's thread, which fills them.
    filled: Arc<Filled>,
    store: Arc<dyn Storage>,
}

/// What the store's thread fills. It must not know the store: that thread would keep itself alive.
#[derive(Debug)]
struct Filled {
    tables: Vec<Table>,
    revision: AtomicU64,
}

impl Filled {
    /// Reads all objects. Nothing writes yet.
    fn load(&self, store: &dyn Storage) -> Result<(), CacheError> {
        let strange = OnceLock::new();
        store.load(&|row| {
            let Some((table, key)) = self.split(row.key) else { return true };
            let is_ours = table.load(key, row.revision, row.value);
            if !is_ours {
                // One of several is enough to tell of.
                strange.set(row.key.to_owned()).ok();
            }
            is_ours
        })?;
        strange.into_inner().map_or(Ok(()), |key| Err(CacheError::Form { key }))
    }

    fn take(&self, changes: &[Change], loaded: u64) {
        for change in changes {
            if let Some((table, key)) = self.split(&change.key) {
                let when = if change.revision <= loaded { When::Past } else { When::Now };
                table.take(key, change, when);
            }
        }
        if let Some(last) = changes.last() {
            self.revision.fetch_max(last.revision, Ordering::AcqRel);
        }
        for table in &self.tables {
            table.wake();
        }
    }

    fn split<'a>(&self, key: &'a str) -> Option<(&Table, &'a str)> {
        let (prefix, key) = key.split_once('/')?;
        Some((self.tables.iter().find(|table| table.kind().store_prefix == prefix)?, key))
    }
}

/// Takes what the store tells.
struct Follower {
    filled: Arc<Filled>,
    /// Changes up to this revision are in what was loaded.
    loaded: u64,
}

impl Sink for Follower {
    fn take(&mut self, changes: &[Change]) {
        self.filled.take(changes, self.loaded);
    }

    fn has(&self, key: &str, revision: u64) -> bool {
        let found = self.filled.split(key).and_then(|(table, key)| table.get(key));
        found.is_some_and(|object| object.revision() == revision)
    }
}

impl Cache {
    /// Reads everything that is stored and follows the store from then on.
    pub(crate) async fn open(store: Arc<dyn Storage>) -> Result<Arc<Self>, CacheError> {
        let mut tables: Vec<Table> = Vec::new();
        for kind in kinds().iter().filter(|kind| kind.is_stored()) {
            if !tables.iter().any(|table| table.kind().store_prefix == kind.store_prefix) {
                tables.push(Table::new(kind));
            }
        }
        let loaded = store.revision();
        let filled = Arc::new(Filled { tables, revision: AtomicU64::new(loaded) });
        filled.load(&*store)?;
        let cache = Self { filled, store };
        cache.follow(loaded).await?;
        Ok(Arc::new(cache))
    }

    /// Takes the end of the history, then every new change.
    async fn follow(&self, loaded: u64) -> Result<(), FollowError> {
        let mut from = self.store.floor().max(loaded.saturating_sub(HISTORY));
        loop {
            for table in self.tables() {
                table.set_floor(from);
            }
            let follower = Follower { filled: self.filled.clone(), loaded };
            match self.store.follow(from, Box::new(follower)).await {
                Err(FollowError::Compacted { floor, .. }) if floor > from => from = floor,
                done => {
                    self.tables().iter().for_each(Table::past_is_told);
                    return done;
                }
            }
        }
    }

    /// The newest revision of all resources.
    pub(crate) fn revision(&self) -> u64 {
        self.filled.revision.load(Ordering::Acquire)
    }

    /// The table that holds the objects of a kind; none for kinds that are never stored.
    pub(crate) fn table(&self, kind: &Kind) -> Option<&Table> {
        self.tables().iter().find(|table| table.kind().store_prefix == kind.store_prefix)
    }

    /// All tables.
    pub(crate) fn tables(&self) -> &[Table] {
        &self.filled.tables
    }

    /// The newest state of a resource, whose revision is the newest of all.
    pub(crate) fn snapshot(&self, table: &Table) -> Snapshot {
        table.snapshot(|| self.revision())
    }

    /// The object under a key such as `default/nginx`.
    pub(crate) fn get(&self, kind: &Kind, key: &str) -> Option<Arc<Object>> {
        self.table(kind)?.get(key)
    }

    /// The store below, for its numbers and compaction.
    pub(crate) fn store(&self) -> &Arc<dyn Storage> {
        &self.store
    }

    /// Writes or removes an object. Events and Leases don't wait for the disk.
    pub(crate) async fn commit(
        &self,
        table: &Table,
        key: &str,
        expect: Expect,
        op: Op,
    ) -> Result<u64, store::CommitError> {
        let prefix = table.kind().store_prefix;
        let durability = match prefix {
            "events" | "leases" => Durability::Relaxed,
            _ => Durability::Synced,
        };
        self.store.commit(Write { key: format!("{prefix}/{key}"), expect, op, durability }).await
    }
}

#[cfg(test)]
mod tests;
