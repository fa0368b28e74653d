//! Rotation of container logs: a file that has grown beyond the limit is renamed and the runtime opens a new one.
//!
//! The kernel tells which logs grow. Checks are at least a second apart, and there are none while nobody writes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cri::v1;
use tokio_util::sync::CancellationToken;

use super::watch::Watch;
use crate::clock::Clock;
use crate::runtime::Cri;

/// Limits of a container's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes at which a file is rotated (`containerLogMaxSize`).
    pub max_size: u64,
    /// Files that a container has at most, the current one included (`containerLogMaxFiles`).
    pub max_files: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { max_size: 10 << 20, max_files: 5 }
    }
}

const BETWEEN_CHECKS: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Tracked {
    /// Container ID by log file.
    logs: BTreeMap<PathBuf, String>,
    /// Directory by watch descriptor.
    directories: BTreeMap<i32, PathBuf>,
}

/// Knows which logs are written, and rotates them.
#[derive(Debug)]
pub(crate) struct Rotator {
    cri: Cri,
    clock: Clock,
    limits: LogLimits,
    watch: Watch,
    tracked: Mutex<Tracked>,
}

impl Rotator {
    pub(crate) fn new(cri: Cri, clock: Clock, limits: LogLimits) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { cri, clock, limits, watch: Watch::new()?, tracked: Mutex::default() }))
    }

    /// The container with this ID writes this log from now on.
    pub(crate) fn track(&self, log: PathBuf, container_id: &str) {
        let mut tracked = self.tracked.lock().unwrap_or_else(PoisonError::into_inner);
        if tracked.logs.get(&log).is_some_and(|known| known == container_id) {
            return;
        }
        let Some(directory) = log.parent().map(Path::to_owned) else { return };
        match self.watch.add(&directory) {
            Ok(watch) => {
                tracked.directories.insert(watch, directory);
                tracked.logs.insert(log, container_id.to_owned());
            }
            Err(error) => {
                tracing::warn!(directory = %directory.display(), %error, "log not watched for rotation");
            }
        }
    }

    /// The log is not written any more.
    pub(crate) fn forget(&self, log: &Path) {
        let mut tracked = self.tracked.lock().unwrap_or_else(PoisonError::into_inner);
        if tracked.logs.remove(log).is_none() {
            return;
        }
        let Some(directory) = log.parent() else { return };
        if tracked.logs.keys().any(|other| other.parent() == Some(directory)) {
            return;
        }
        let ended: Vec<i32> = tracked
            .directories
            .iter()
            .filter(|(_, path)| *path == directory)
            .map(|(watch, _)| *watch)
            .collect();
        for watch in ended {
            tracked.directories.remove(&watch);
            self.watch.remove(watch);
        }
    }

    /// Rotates until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        shutdown
            .run_until_cancelled(async {
                loop {
                    match self.watch.changed().await {
                        Ok(changes) => self.check(&changes).await,
                        Err(error) => tracing::warn!(%error, "log changes not read"),
                    }
                    tokio::time::sleep(BETWEEN_CHECKS).await;
                }
            })
            .await;
    }

    async fn check(&self, changes: &super::watch::Changes) {
        let logs: Vec<(PathBuf, String)> = {
            let tracked = self.tracked.lock().unwrap_or_else(PoisonError::into_inner);
            let grew = |log: &Path| {
                let mut directories =
                    changes.watches.iter().filter_map(|watch| tracked.directories.get(watch));
                changes.has_overflowed || directories.any(|directory| log.parent() == Some(directory))
            };
            let logs = tracked.logs.iter().filter(|(log, _)| grew(log));
            logs.map(|(log, id)| (log.clone(), id.clone())).collect()
        };
        for (log, id) in logs {
            let size = fs::metadata(&log).map(|meta| meta.len()).unwrap_or_default();
            if size > self.limits.max_size
                && let Err(error) = self.rotate(&log, &id).await
            {
                tracing::warn!(log = %log.display(), %error, "log not rotated");
            }
        }
    }

    /// Renames the file and lets the runtime open a new one; undone when the runtime refuses.
    async fn rotate(&self, log: &Path, container_id: &str) -> io::Result<()> {
        remove_oldest(log, self.limits.max_files)?;
        let time = self.clock.now().strftime("%Y%m%d-%H%M%S").to_string();
        let mut rotated = log.as_os_str().to_owned();
        rotated.push(format!(".{time}"));
        fs::rename(log, &rotated)?;
        let request = v1::ReopenContainerLogRequest { container_id: container_id.to_owned() };
        if let Err(error) = self.cri.reopen_container_log(request).await {
            fs::rename(&rotated, log)?;
            return Err(io::Error::other(error));
        }
        Ok(())
    }
}

/// Leaves room for one more rotated file: the current one counts too.
fn remove_oldest(log: &Path, max_files: usize) -> io::Result<()> {
    let mut rotated = rotated_files(log)?;
    let keep = max_files.saturating_sub(2);
    let surplus = rotated.len().saturating_sub(keep);
    for file in rotated.drain(..surplus) {
        fs::remove_file(file)?;
    }
    Ok(())
}

/// The rotated files of a log, oldest first.
fn rotated_files(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_files_make_room() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        for day in 1..=6 {
            fs::write(directory.path().join(format!("0.log.2026010{day}-000000")), "").unwrap();
        }
        fs::write(directory.path().join("10.log.20250101-000000"), "").unwrap();
        remove_oldest(&log, 5).unwrap();
        let left = rotated_files(&log).unwrap();
        assert_eq!(left.len(), 3, "with the current one and the one to come: five");
        assert!(left[0].ends_with("0.log.20260104-000000"));
    }
}
