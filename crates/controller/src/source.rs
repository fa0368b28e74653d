//! A watch whose objects are kept, as a controller's loop uses it.

use informer::{Object, Store, Target, Update};
use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Updates that wait for the controller before the watch itself waits.
const BACKLOG: usize = 64;

/// Objects of one collection as they are now, and their changes.
#[derive(Debug)]
pub(crate) struct Source<K> {
    updates: mpsc::Receiver<Update<K>>,
    store: Store<K>,
    task: JoinHandle<()>,
    stop: DropGuard,
}

impl<K: Object> Source<K> {
    /// Begins to watch.
    pub(crate) fn new(client: &Client, target: Target) -> Self {
        let (out, updates) = mpsc::channel(BACKLOG);
        let stop = CancellationToken::new();
        let task = tokio::spawn(informer::watch(client.clone(), target, out, stop.clone()));
        Self { updates, store: Store::default(), task, stop: stop.drop_guard() }
    }

    /// Waits for the next change and takes it over; gives the keys that it touched. Nothing is lost when it is dropped
    /// before it ends.
    pub(crate) async fn changed(&mut self) -> Vec<String> {
        match self.updates.recv().await {
            Some(update) => self.store.apply(update),
            // The watch ends only with the source.
            None => std::future::pending().await,
        }
    }

    /// The objects.
    pub(crate) const fn store(&self) -> &Store<K> {
        &self.store
    }

    /// Whether all objects were told once.
    pub(crate) const fn is_synced(&self) -> bool {
        self.store.is_synced()
    }

    /// Ends the watch and waits until it has ended.
    pub(crate) async fn close(self) {
        drop(self.stop);
        drop(self.updates);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "a watch ended before its time");
        }
    }
}
