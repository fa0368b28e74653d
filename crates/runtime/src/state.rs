//! The sandboxes and containers that exist, in memory. The records on disk are the truth; every change of one
//! goes through here, so that the two agree.
//!
//! Whoever reads a record never waits for the disk: lists and status calls are answered by the threads that serve all
//! requests.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use image::{ImagePin, ImageStore};
use serde::Serialize;
use shim::client::ShimClient;
use shim::protocol::Exit;
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::record::{
    self, ContainerPhase, ContainerRecord, Exited, RecordError, SandboxPhase, SandboxRecord,
};

/// Locks a mutex. A panic of another holder leaves data that is replaced as a whole, so it stays usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A record in memory and on disk. It is replaced as a whole, so that whoever reads it needs no copy: on a full node each
/// look of the kubelet reads them all.
#[derive(Debug)]
struct Recorded<T> {
    directory: PathBuf,
    /// Held for an instant, to take the record or to put the next one there.
    now: Mutex<Arc<T>>,
    /// Held from a look at the record to its replacement, over the write to the disk: one change follows the other.
    change: Mutex<()>,
}

impl<T: Clone + Serialize> Recorded<T> {
    fn new(directory: PathBuf, record: T) -> Self {
        Self { directory, now: Mutex::new(Arc::new(record)), change: Mutex::new(()) }
    }

    fn read(&self) -> Arc<T> {
        Arc::clone(&lock(&self.now))
    }

    /// Changes the record, on disk first.
    fn update(&self, change: impl FnOnce(&mut T)) -> Result<(), RecordError> {
        let _one = lock(&self.change);
        let mut next = T::clone(&self.read());
        change(&mut next);
        record::save(&self.directory, &next)?;
        self.replace(next);
        Ok(())
    }

    /// Changes the record where `change` says that there is something to change, in memory in any case; what the disk said.
    fn force(&self, change: impl FnOnce(&mut T) -> bool) -> Option<Result<(), RecordError>> {
        let _one = lock(&self.change);
        let mut next = T::clone(&self.read());
        if !change(&mut next) {
            return None;
        }
        let saved = record::save(&self.directory, &next);
        self.replace(next);
        Some(saved)
    }

    fn replace(&self, next: T) {
        let before = std::mem::replace(&mut *lock(&self.now), Arc::new(next));
        drop(before);
    }
}

/// One sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    record: Recorded<SandboxRecord>,
    shim: Mutex<Option<Arc<ShimClient>>>,
    /// One verb at a time changes the sandbox.
    pub(crate) gate: tokio::sync::Mutex<()>,
}

impl Sandbox {
    pub(crate) fn new(directory: PathBuf, record: SandboxRecord, shim: Option<Arc<ShimClient>>) -> Self {
        Self {
            id: record.id.clone(),
            record: Recorded::new(directory, record),
            shim: Mutex::new(shim),
            gate: tokio::sync::Mutex::new(()),
        }
    }

    /// The record as it is now.
    pub(crate) fn record(&self) -> Arc<SandboxRecord> {
        self.record.read()
    }

    pub(crate) fn phase(&self) -> SandboxPhase {
        self.record().phase
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.record.directory
    }

    /// Changes the record, on disk first.
    pub(crate) fn update(&self, change: impl FnOnce(&mut SandboxRecord)) -> Result<()> {
        Ok(self.record.update(change)?)
    }

    pub(crate) fn shim(&self) -> Option<Arc<ShimClient>> {
        lock(&self.shim).clone()
    }

    pub(crate) fn set_shim(&self, shim: Option<Arc<ShimClient>>) {
        *lock(&self.shim) = shim;
    }

    /// The shim, or why there is none.
    pub(crate) fn live_shim(&self) -> Result<Arc<ShimClient>> {
        let shim = self.shim().filter(|_| self.phase() == SandboxPhase::Ready);
        shim.ok_or_else(|| Error::WrongState(format!("the sandbox {} is not ready; make a new one", self.id)))
    }
}

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) sandbox: String,
    record: Recorded<ContainerRecord>,
    /// The root filesystem made by `CreateContainer`, until `StartContainer` takes it.
    pub(crate) rootfs: Mutex<Option<OwnedFd>>,
    /// Held while a phase is changed and announced, so that nobody hears of an end before the start.
    pub(crate) order: Mutex<()>,
    /// An end that came while `StartContainer` was still waiting for its answer.
    pub(crate) early_exit: Mutex<Option<Exit>>,
    /// Keeps the image's layers while the container exists.
    layers: Mutex<Option<ImagePin>>,
    /// Changes with every phase.
    changed: watch::Sender<u64>,
    /// One verb at a time changes the container.
    pub(crate) gate: tokio::sync::Mutex<()>,
}

impl Container {
    pub(crate) fn new(directory: PathBuf, record: ContainerRecord) -> Self {
        Self {
            id: record.id.clone(),
            sandbox: record.sandbox.clone(),
            record: Recorded::new(directory, record),
            rootfs: Mutex::new(None),
            order: Mutex::new(()),
            early_exit: Mutex::new(None),
            layers: Mutex::new(None),
            changed: watch::Sender::new(0),
            gate: tokio::sync::Mutex::new(()),
        }
    }

    /// Holds the image's layers against removal.
    pub(crate) fn pin(&self, images: &ImageStore) {
        let record = self.record();
        let mounted = record.image_mounts.iter().flat_map(|mount| &mount.layers);
        let pin = images.pin(&record.image.layers.iter().chain(mounted).cloned().collect::<Vec<_>>());
        *lock(&self.layers) = Some(pin);
    }

    /// The record as it is now.
    pub(crate) fn record(&self) -> Arc<ContainerRecord> {
        self.record.read()
    }

    pub(crate) fn phase(&self) -> ContainerPhase {
        self.record().phase.clone()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.record.directory
    }

    /// Changes the record, on disk first.
    pub(crate) fn update(&self, change: impl FnOnce(&mut ContainerRecord)) -> Result<()> {
        self.record.update(change)?;
        self.changed.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Records the end of the container, unless it has ended already. Memory changes even when the disk does not,
    /// so that nobody waits for a process that is gone.
    pub(crate) fn set_exited(&self, exited: Exited) -> bool {
        let noted = self.record.force(|record| {
            let is_new = !matches!(record.phase, ContainerPhase::Exited(_) | ContainerPhase::Removing);
            if is_new {
                record.phase = ContainerPhase::Exited(exited);
            }
            is_new
        });
        if let Some(Err(error)) = &noted {
            tracing::error!(container = self.id, %error, "cannot record that a container ended");
        }
        self.changed.send_modify(|count| *count += 1);
        noted.is_some()
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.record().phase, ContainerPhase::Starting | ContainerPhase::Running { .. })
    }

    /// Waits until the container does not run.
    pub(crate) async fn wait_ended(&self) {
        let mut changes = self.changed.subscribe();
        while self.is_running() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Characters of an ID's beginning that can stand for it.
const SHORTEST_ID: usize = 4;

/// Everything that exists.
#[derive(Debug, Default)]
pub(crate) struct Table {
    sandboxes: RwLock<HashMap<String, Arc<Sandbox>>>,
    containers: RwLock<HashMap<String, Arc<Container>>>,
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    /// Every sandbox, the oldest first.
    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.sandboxes_where(|_| true)
    }

    /// Those that are meant, the oldest first.
    pub(crate) fn sandboxes_where(&self, is_meant: impl Fn(&SandboxRecord) -> bool) -> Vec<Arc<Sandbox>> {
        let meant = |sandbox: &&Arc<Sandbox>| is_meant(&sandbox.record());
        let mut all: Vec<_> = read(&self.sandboxes).values().filter(meant).cloned().collect();
        all.sort_by_cached_key(|sandbox| (sandbox.record().created_at, sandbox.id.clone()));
        all
    }

    /// Every container, the oldest first.
    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.containers_where(|_| true)
    }

    /// Those that are meant, the oldest first.
    pub(crate) fn containers_where(
        &self,
        is_meant: impl Fn(&ContainerRecord) -> bool,
    ) -> Vec<Arc<Container>> {
        let meant = |container: &&Arc<Container>| is_meant(&container.record());
        let mut all: Vec<_> = read(&self.containers).values().filter(meant).cloned().collect();
        all.sort_by_cached_key(|container| (container.record().created_at, container.id.clone()));
        all
    }

    /// A sandbox's containers, the oldest first.
    pub(crate) fn containers_of(&self, sandbox: &str) -> Vec<Arc<Container>> {
        self.containers_where(|record| record.sandbox == sandbox)
    }

    pub(crate) fn find_sandbox(&self, id: &str) -> Option<Arc<Sandbox>> {
        read(&self.sandboxes).get(id).cloned()
    }

    pub(crate) fn find_container(&self, id: &str) -> Option<Arc<Container>> {
        read(&self.containers).get(id).cloned()
    }

    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>> {
        self.find_sandbox(id).ok_or_else(|| Error::NotFound { what: "sandbox", id: id.to_owned() })
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>> {
        self.find_container(id).ok_or_else(|| Error::NotFound { what: "container", id: id.to_owned() })
    }

    /// The whole ID of the sandbox that a text means: itself, or its beginning as people copy it from a table. What means
    /// none, or more than one, stays as it is.
    pub(crate) fn whole_sandbox_id(&self, text: String) -> String {
        whole_id(&read(&self.sandboxes), text)
    }

    /// As [`Table::whole_sandbox_id`], of a container.
    pub(crate) fn whole_container_id(&self, text: String) -> String {
        whole_id(&read(&self.containers), text)
    }

    /// Adds a sandbox unless one with the same metadata exists, which is returned.
    pub(crate) fn add_sandbox(&self, sandbox: Arc<Sandbox>) -> std::result::Result<(), Arc<Sandbox>> {
        let mut all = write(&self.sandboxes);
        let metadata = &sandbox.record().config.metadata;
        if let Some(twin) = all.values().find(|other| other.record().config.metadata == *metadata) {
            return Err(Arc::clone(twin));
        }
        all.insert(sandbox.id.clone(), sandbox);
        Ok(())
    }

    /// Adds a container unless one of the same sandbox with the same metadata exists, which is returned.
    pub(crate) fn add_container(&self, container: Arc<Container>) -> std::result::Result<(), Arc<Container>> {
        let mut all = write(&self.containers);
        let metadata = &container.record().config.metadata;
        let is_twin = |other: &&Arc<Container>| {
            other.sandbox == container.sandbox && other.record().config.metadata == *metadata
        };
        if let Some(twin) = all.values().find(is_twin) {
            return Err(Arc::clone(twin));
        }
        all.insert(container.id.clone(), container);
        Ok(())
    }

    pub(crate) fn remove_sandbox(&self, id: &str) {
        write(&self.sandboxes).remove(id);
    }

    pub(crate) fn remove_container(&self, id: &str) {
        write(&self.containers).remove(id);
    }
}

fn whole_id<T>(all: &HashMap<String, T>, text: String) -> String {
    if text.len() < SHORTEST_ID || all.contains_key(&text) {
        return text;
    }
    let mut meant = all.keys().filter(|id| id.starts_with(&text));
    match (meant.next(), meant.next()) {
        (Some(id), None) => id.clone(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_record_is_read_while_the_next_one_is_being_written() {
        let directory = tempfile::tempdir().unwrap();
        // Whoever writes to it waits for a reader, as for a slow disk.
        let slow = directory.path().join(".record.json");
        rustix::fs::mkfifoat(rustix::fs::CWD, &slow, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        let recorded = Arc::new(Recorded::new(directory.path().to_owned(), 1));
        let (changing, is_changing) = mpsc::channel();
        let writer = {
            let recorded = Arc::clone(&recorded);
            std::thread::spawn(move || {
                recorded.update(|number| {
                    *number = 2;
                    changing.send(()).unwrap();
                })
            })
        };
        is_changing.recv().unwrap();
        let (read, was_read) = mpsc::channel();
        let reader = Arc::clone(&recorded);
        std::thread::spawn(move || read.send(*reader.read()));
        assert_eq!(was_read.recv_timeout(Duration::from_secs(10)), Ok(1));
        assert_eq!(std::fs::read(slow).unwrap(), b"2");
        writer.join().unwrap().unwrap();
        assert_eq!(*recorded.read(), 2);
    }

    #[test]
    fn the_beginning_of_an_id_means_it_where_no_other_begins_so() {
        let table = |ids: &[&str]| ids.iter().map(|id| ((*id).to_owned(), 0)).collect::<HashMap<_, _>>();
        let whole = |text: &str| whole_id(&table(&["abcd1", "abcd2", "abcd", "dcba1"]), text.to_owned());
        assert_eq!((whole("dcba"), whole("dcba1")), ("dcba1".into(), "dcba1".into()));
        assert_eq!(whole("abcd"), "abcd", "an ID means itself, whatever begins with it");
        assert_eq!((whole("dcb"), whole("")), ("dcb".into(), String::new()), "too short to mean one");
        assert_eq!(whole("dcba12"), "dcba12");
        assert_eq!(whole_id(&table(&["abcd1", "abcd2"]), "abcd".to_owned()), "abcd", "two begin so");
    }
}
