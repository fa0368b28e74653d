//! What can go wrong with a store, said for the person who must act.

use std::path::PathBuf;
use std::sync::Arc;

use crate::{Entry, Revision};

/// Opening, reading or compacting a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process holds the file.
    #[error(
        "opening the store {path}: another process has it open; stop that process (is `kakoi up` already running on \
         this root?) or use another --root"
    )]
    InUse {
        /// The store's file.
        path: PathBuf,
    },
    /// The file can't be opened or created.
    #[error("opening the store {path}: {source}; check the directory's permissions and free space")]
    Open {
        /// The store's file.
        path: PathBuf,
        /// What the system or the engine said.
        #[source]
        source: Box<redb::Error>,
    },
    /// The file was written by something else.
    #[error(
        "opening the store {path}: its format is version {found}, this program reads version {expected}; use the \
         version of kakoi that wrote it"
    )]
    Format {
        /// The store's file.
        path: PathBuf,
        /// The version in the file.
        found: u64,
        /// The version that this program reads.
        expected: u64,
    },
    /// The writer thread could not be started.
    #[error("starting the store's writer thread: {0}")]
    Thread(#[source] std::io::Error),
    /// Reading or writing failed.
    #[error("the store {action}: {source}")]
    Engine {
        /// What was tried.
        action: &'static str,
        /// What the engine said; shared, because one failed transaction fails all its writes.
        #[source]
        source: Arc<redb::Error>,
    },
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    pub(crate) fn engine(action: &'static str) -> impl Fn(redb::Error) -> StoreError {
        move |source| StoreError::Engine { action, source: Arc::new(source) }
    }
}

/// A write was not made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The key is not as the write expected.
    #[error("the key is not as the write expected (now: {})", match current { Some(entry) => format!("revision {}", entry.revision), None => "absent".to_owned() })]
    Conflict {
        /// What is under the key now.
        current: Option<Entry>,
    },
    /// The engine could not make it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The past can't be followed from that revision.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// Some changes after that revision are no longer known.
    #[error("changes after revision {after} are no longer known (the oldest known revision is {floor})")]
    Compacted {
        /// The revision asked for.
        after: Revision,
        /// The oldest revision that works.
        floor: Revision,
    },
    /// That revision has not been given out yet.
    #[error("revision {after} is in the future (the newest is {current})")]
    Future {
        /// The revision asked for.
        after: Revision,
        /// The newest revision.
        current: Revision,
    },
    /// The engine could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}
