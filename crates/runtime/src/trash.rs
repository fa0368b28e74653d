//! Directories that nobody needs any more. They are moved aside, which is done at once, and removed behind the answer: a file
//! system that discards what is freed (`discard`) waits for the disk with each file. What is still there when the daemon
//! ends, however it ends, the next one removes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::core::{Core, blocking, make_dir, remove_tree};
use crate::error::Result;
use crate::state::lock;

/// The directory's name, beside those that it takes.
const NAME: &str = "removed";

/// What waits for its removal, in the directories of state and of running.
#[derive(Debug)]
pub(crate) struct Trash {
    places: Vec<PathBuf>,
    /// Held by the one who removes: one file system has nothing from two.
    removal: Mutex<()>,
    filled: Notify,
}

impl Trash {
    /// Makes a place below each of the directories, which may lie on different file systems.
    pub(crate) fn open(directories: &[&Path]) -> Result<Self> {
        let places: Vec<PathBuf> = directories.iter().map(|directory| directory.join(NAME)).collect();
        places.iter().try_for_each(|place| make_dir(place))?;
        let filled = Notify::new();
        // For what an earlier daemon left.
        filled.notify_one();
        Ok(Self { places, removal: Mutex::new(()), filled })
    }

    /// Has a directory gone when this returns, and what it takes on the disk later. One that is absent is as wanted.
    pub(crate) fn discard(&self, directory: &Path) -> Result<()> {
        let moved = self.place_of(directory).map(|place| std::fs::rename(directory, place));
        match moved {
            Some(Ok(())) => {
                self.filled.notify_one();
                Ok(())
            }
            // On a file system of its own, or absent.
            _ => remove_tree(directory),
        }
    }

    /// Where a directory is moved to: a name of its own, for every directory is named by an ID.
    fn place_of(&self, directory: &Path) -> Option<PathBuf> {
        let within = |place: &PathBuf| {
            let path = directory.strip_prefix(place.parent()?).ok()?;
            let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
            Some(place.join(parts.join("-")))
        };
        self.places.iter().find_map(within)
    }

    /// Removes all that was moved aside; blocks on the disk. What can't be removed stays for the next time.
    pub(crate) fn empty(&self) {
        let _one = lock(&self.removal);
        let entries = |place: &PathBuf| std::fs::read_dir(place).into_iter().flatten().flatten();
        for entry in self.places.iter().flat_map(entries) {
            if let Err(error) = remove_tree(&entry.path()) {
                tracing::warn!(%error, "cannot remove what a Pod has left; trying again later");
            }
        }
    }
}

/// Removes what is moved aside, until the runtime shuts down.
pub(crate) async fn serve(core: Arc<Core>) {
    while core.shutdown.run_until_cancelled(core.trash.filled.notified()).await.is_some() {
        let of = Arc::clone(&core);
        let emptied = blocking(move || {
            of.trash.empty();
            Ok(())
        });
        // It says itself what it could not do.
        drop(emptied.await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_discarded_is_gone_at_once_and_takes_nothing_after() {
        let (state, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let trash = Trash::open(&[state.path(), run.path()]).unwrap();
        for directory in [state.path().join("containers/a/upper"), run.path().join("shims/a")] {
            std::fs::create_dir_all(directory.join("deep")).unwrap();
            std::fs::write(directory.join("deep/file"), "text").unwrap();
            trash.discard(&directory).unwrap();
            assert!(!directory.exists());
            trash.discard(&directory).unwrap();
        }
        assert!(state.path().join("removed/containers-a-upper/deep/file").exists());
        assert!(run.path().join("removed/shims-a/deep/file").exists());
        // As the next daemon does.
        Trash::open(&[state.path(), run.path()]).unwrap().empty();
        for place in [state.path().join(NAME), run.path().join(NAME)] {
            assert_eq!(std::fs::read_dir(place).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_cannot_be_moved_is_removed_where_it_is() {
        let (state, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let trash = Trash::open(&[state.path()]).unwrap();
        let (outside, taken) = (elsewhere.path().join("a"), state.path().join("b"));
        std::fs::create_dir_all(outside.join("deep")).unwrap();
        std::fs::create_dir_all(taken.join("deep")).unwrap();
        std::fs::create_dir_all(state.path().join("removed/b/full")).unwrap();
        for directory in [outside, taken] {
            trash.discard(&directory).unwrap();
            assert!(!directory.exists(), "{}", directory.display());
        }
    }
}
