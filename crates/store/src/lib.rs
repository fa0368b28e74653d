//! A revisioned key-value store: every write gets the next revision, and every change after a revision can be
//! followed. This crate knows nothing of Kubernetes; it stores bytes under text keys.
//!
//! [`Store`] keeps everything in one redb file. [`Storage`] is what callers depend on, so that another engine
//! (etcd) can stand behind it. It refuses to guess: a write says what it expects to find, and a second process
//! that opens the same file gets an error that says so.

mod embedded;
mod error;
mod restore;
mod snapshot;
mod table;
mod writer;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

pub use embedded::{Store, StoreOptions};
pub use error::{CommitError, FollowError, StoreError};
pub use restore::{RestoreError, Restored, restore};
pub use snapshot::{SnapshotError, SnapshotInfo, read as read_snapshot, save as save_snapshot};

/// The number of a write. The first write of a store has revision 1; revisions only rise, also across a crash.
pub type Revision = u64;

/// One key as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The revision of the write that made this value.
    pub revision: Revision,
    /// The value as it was given.
    pub value: Bytes,
}

/// The entries of one [`Storage::range`], in key order, and the store's revision when they were read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// The store's revision of this listing.
    pub revision: Revision,
    /// The entries, in key order.
    pub entries: Vec<Entry>,
}

/// One key as it is now, where it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row<'a> {
    /// The key.
    pub key: &'a str,
    /// The revision of the write that made this value.
    pub revision: Revision,
    /// The value as it was given.
    pub value: &'a [u8],
}

/// What a write expects to find under its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The key has no value.
    Absent,
    /// The key's value has exactly this revision.
    Revision(Revision),
    /// Whatever is there.
    Any,
}

/// What a write does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets the value.
    Put(Bytes),
    /// Removes the key. Removing a key that isn't there changes nothing and takes no revision.
    Delete,
}

/// When a write counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// After the disk has it.
    Synced,
    /// At once. A crash can lose it (up to about ten seconds of writes), together with all later relaxed writes,
    /// but never a synced one and never so that a revision is given out twice.
    Relaxed,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    /// The key.
    pub key: String,
    /// What must be there now.
    pub expect: Expect,
    /// What to do.
    pub op: Op,
    /// When it is done.
    pub durability: Durability,
}

/// What a change left under its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// This value.
    Value(Bytes),
    /// The value that the follower has already, as it said ([`Sink::has`]).
    Known,
    /// Nothing: the key was removed.
    Removed,
}

/// One change, as followers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The revision that this change made.
    pub revision: Revision,
    /// The key.
    pub key: Arc<str>,
    /// What the key has now.
    pub after: After,
    /// The value before, with its revision; `None` when the key was new.
    pub previous: Option<(Revision, Bytes)>,
}

/// Takes changes in the order of their revisions, each exactly once.
///
/// It is called before the writers of those changes learn that their writes are done: whoever sees a commit's
/// revision can read it back from whatever its sinks built. It must not block.
pub trait Sink: Send {
    /// Takes the changes of one group commit, or some of the history that comes first.
    fn take(&mut self, changes: &[Change]);

    /// Whether it has the value already that a key got at this revision, which is the key's newest. Then the history need
    /// not read it again: it tells of it as [`After::Known`].
    fn has(&self, _key: &str, _revision: Revision) -> bool {
        false
    }
}

impl<F: FnMut(&[Change]) + Send> Sink for F {
    fn take(&mut self, changes: &[Change]) {
        self(changes);
    }
}

/// A future that a [`Storage`] method returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the API server needs of a store.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// The entry of a key, if it has one. Reads from disk or its cache; it can block for milliseconds.
    ///
    /// # Errors
    /// When the engine can't be read.
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError>;

    /// Up to `limit` entries (0: all) whose keys begin with `prefix` and come after `start_after`.
    ///
    /// # Errors
    /// When the engine can't be read.
    fn range(&self, prefix: &str, start_after: Option<&str>, limit: usize) -> Result<Listing, StoreError>;

    /// Gives every entry to `take`, in key order and all as they are at one revision, until it answers false; tells that
    /// revision. It blocks as long as `take` does, and the space of what is replaced meanwhile stays in use.
    ///
    /// # Errors
    /// When the engine can't be read.
    fn export(&self, take: &mut dyn FnMut(&Entry) -> bool) -> Result<Revision, StoreError>;

    /// Gives every entry to `take`, from two threads at once and so in no order, all as they are at one revision, until it
    /// answers false: for a start, which shall be soon. What `take` makes of an entry may stay in memory.
    ///
    /// # Errors
    /// When the engine can't be read.
    fn load(&self, take: &(dyn Fn(Row<'_>) -> bool + Sync)) -> Result<(), StoreError>;

    /// Makes one write and returns its revision once it is as durable as asked and all sinks have seen it.
    /// A caller that drops the future may or may not have written.
    fn commit(&self, write: Write) -> BoxFuture<'_, Result<Revision, CommitError>>;

    /// Gives `sink` every change after revision `after`: first those of the past, then each new one.
    ///
    /// # Errors
    /// [`FollowError::Compacted`] when that past is gone, [`FollowError::Future`] when `after` has not been yet.
    fn follow(&self, after: Revision, sink: Box<dyn Sink>) -> BoxFuture<'_, Result<(), FollowError>>;

    /// Forgets the history up to and including `revision`. Values stay.
    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Makes everything durable and closes the engine; every later call fails. Dropping does the same.
    fn close(&self) -> BoxFuture<'_, ()>;

    /// The revision of the newest write that is done.
    fn revision(&self) -> Revision;

    /// The newest revision from which history can no longer be followed completely: [`Storage::follow`] works for
    /// this one and newer ones.
    fn floor(&self) -> Revision;

    /// Whether writes can succeed: false from the first failed write on (a full disk), until the store is opened anew.
    fn is_writable(&self) -> bool;

    /// The engine's size on disk, in bytes.
    fn size(&self) -> u64;
}
