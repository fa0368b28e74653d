//! Makes a store of a snapshot, in the place of another one or of none. The file appears whole or not at all, and the
//! one that was there stays beside it. It refuses a store that somebody has open.

use std::fs::{self, File};
use std::io::{self, BufReader, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::Database;

use crate::embedded::open_database;
use crate::snapshot::{SnapshotError, SnapshotInfo, read};
use crate::table::{CEILING, CLEAN, CURRENT, FLOOR, FORMAT, FORMAT_VERSION, GAPS, LOG, META, REVISION};
use crate::{Entry, Revision, Storage, Store, StoreError, StoreOptions};

/// Entries of one transaction.
const BATCH: usize = 1024;
/// How many revisions a cluster is taken to have made in each second since the snapshot, at most.
const REVISIONS_A_SECOND: u64 = 1_000_000;
/// The least that revisions rise by.
const LEAST_RISE: u64 = 1_000_000_000;

/// What has been restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The snapshot.
    pub snapshot: SnapshotInfo,
    /// The revision at which the store goes on; no watch can be resumed from an earlier one.
    pub revision: Revision,
    /// Where the store is that was there before, if there was one.
    pub replaced: Option<PathBuf>,
    /// Why that one could not be read, if so.
    pub unreadable: Option<String>,
}

/// A snapshot could not be restored; what was there is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The snapshot can't be used.
    #[error("the snapshot {path}: {source}")]
    Snapshot {
        /// The snapshot's file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: SnapshotError,
    },
    /// The store is in use, or the new one can't be made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new store can't be written.
    #[error("writing the new store {path}: {source}")]
    Write {
        /// The new store's file.
        path: PathBuf,
        /// What the engine said.
        #[source]
        source: Box<redb::Error>,
    },
    /// The new store can't be put into its place.
    #[error("putting the new store into its place {path}: {source}")]
    Place {
        /// The store's file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Restores the snapshot in the file `snapshot` to the store `store`; `now` is the time, in seconds since 1970. The
/// store that is there is kept as `<store>.replaced`.
///
/// # Errors
/// See [`RestoreError`]; then nothing has changed.
pub fn restore(snapshot: &Path, store: &Path, now: u64) -> Result<Restored, RestoreError> {
    let wrong = |source| RestoreError::Snapshot { path: snapshot.to_owned(), source };
    let mut file = File::open(snapshot).map_err(|error| wrong(error.into()))?;
    // The whole of it is read first: nothing is touched for a bad one.
    let info = read(BufReader::new(&file), |_| Ok::<_, SnapshotError>(())).map_err(wrong)?;
    file.rewind().map_err(|error| wrong(error.into()))?;
    // Held to the end: nobody can start on the old store while it is replaced.
    let old = Old::open(store)?;
    let revision = next_revision(&info, old.store.as_ref().map(|old| old.revision()), now);
    let new = with_suffix(store, "restoring");
    let made = make(&file, snapshot, &new, revision).and_then(|()| place(&new, store, old.is_there));
    if let Err(error) = made {
        fs::remove_file(&new).ok();
        return Err(error);
    }
    let replaced = old.is_there.then(|| with_suffix(store, "replaced"));
    Ok(Restored { snapshot: info, revision, replaced, unreadable: old.unreadable })
}

/// The revision of a restored store: one that no client can have seen, whatever became of the stores that went on from
/// that snapshot. Where the store that is there can be read, it is above that one's, too.
fn next_revision(info: &SnapshotInfo, there: Option<Revision>, now: u64) -> Revision {
    let rise = now.saturating_sub(info.taken).saturating_mul(REVISIONS_A_SECOND).max(LEAST_RISE);
    info.revision.saturating_add(rise).max(there.unwrap_or_default().saturating_add(LEAST_RISE))
}

/// The store that is there.
struct Old {
    is_there: bool,
    store: Option<Arc<Store>>,
    unreadable: Option<String>,
}

impl Old {
    fn open(path: &Path) -> Result<Self, RestoreError> {
        if !path.exists() {
            return Ok(Self { is_there: false, store: None, unreadable: None });
        }
        match Store::open(path, &StoreOptions::default()) {
            Ok(store) => Ok(Self { is_there: true, store: Some(store), unreadable: None }),
            Err(error @ StoreError::InUse { .. }) => Err(error.into()),
            // A store that can't be read is what snapshots are for.
            Err(error) => Ok(Self { is_there: true, store: None, unreadable: Some(error.to_string()) }),
        }
    }
}

/// Writes the new store beside its place.
fn make(file: &File, snapshot: &Path, path: &Path, revision: Revision) -> Result<(), RestoreError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(RestoreError::Place { path: path.to_owned(), source });
        }
        _ => {}
    }
    let database = open_database(path, &StoreOptions::default())?;
    let write = |source: redb::Error| RestoreError::Write { path: path.to_owned(), source: Box::new(source) };
    let mut batch = Vec::with_capacity(BATCH);
    let read = read(BufReader::new(file), |entry| {
        batch.push(entry);
        if batch.len() == BATCH { fill(&database, &mut batch).map_err(Failed::Write) } else { Ok(()) }
    });
    read.map_err(|failed| match failed {
        Failed::Snapshot(source) => RestoreError::Snapshot { path: snapshot.to_owned(), source },
        Failed::Write(source) => write(source),
    })?;
    fill(&database, &mut batch).and_then(|()| finish(&database, revision)).map_err(write)
}

/// What ends the reading of a snapshot into a store.
enum Failed {
    Snapshot(SnapshotError),
    Write(redb::Error),
}

impl From<SnapshotError> for Failed {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(error)
    }
}

fn fill(database: &Database, batch: &mut Vec<Entry>) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(redb::Durability::None)?;
    {
        let mut current = transaction.open_table(CURRENT)?;
        for entry in batch.drain(..) {
            current.insert(&*entry.key, (entry.revision, entry.value.as_ref()))?;
        }
    }
    Ok(transaction.commit()?)
}

/// The numbers of a store that was closed well and has no past.
fn finish(database: &Database, revision: Revision) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    {
        transaction.open_table(CURRENT)?;
        transaction.open_table(LOG)?;
        transaction.open_table(GAPS)?;
        let mut meta = transaction.open_table(META)?;
        for (name, number) in [
            (FORMAT, FORMAT_VERSION),
            (REVISION, revision),
            (CEILING, revision),
            (FLOOR, revision),
            (CLEAN, 1),
        ] {
            meta.insert(name, number)?;
        }
    }
    Ok(transaction.commit()?)
}

/// Puts the new store into its place; there is a store there at every instant.
fn place(new: &Path, path: &Path, keep: bool) -> Result<(), RestoreError> {
    let placed = || -> io::Result<()> {
        if keep {
            let kept = with_suffix(path, "replaced");
            match fs::remove_file(&kept) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::hard_link(path, &kept)?,
            }
        }
        fs::rename(new, path)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or_else(|| Path::new(".")))?.sync_all()
    };
    placed().map_err(|source| RestoreError::Place { path: path.to_owned(), source })
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restored_store_goes_on_where_no_client_has_been() {
        let info = SnapshotInfo { revision: 500, taken: 1000, entries: 0 };
        for (there, now, expected, why) in [
            (None, 1000, 1_000_000_500, "at once"),
            (None, 900, 1_000_000_500, "the clock went back"),
            (None, 11_000, 10_000_000_500, "after ten thousand seconds"),
            (Some(700), 1000, 1_000_000_700, "a store that has gone on"),
            (Some(2_000_000_000), 1000, 3_000_000_000, "a store that was restored before"),
        ] {
            assert_eq!(next_revision(&info, there, now), expected, "{why}");
        }
    }
}
