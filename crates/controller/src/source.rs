//! A watch whose objects are kept, as a controller's loop uses it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use informer::{Object, Store, Target, Update};
use kube::Client;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Updates that wait for the controller before the watch itself waits.
const BACKLOG: usize = 16;

/// Objects of one collection as they are now, and their changes. It has no task of its own: the watch goes on while
/// somebody waits for [`Source::changed`], and ends when the source is dropped.
pub(crate) struct Source<K> {
    watch: Pin<Box<dyn Future<Output = ()> + Send>>,
    updates: mpsc::Receiver<Update<K>>,
    store: Store<K>,
}

impl<K> fmt::Debug for Source<K> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Source").finish_non_exhaustive()
    }
}

impl<K: Object> Source<K> {
    /// A watch that begins when it is first waited for.
    pub(crate) fn new(client: &Client, target: Target) -> Self {
        let (out, updates) = mpsc::channel(BACKLOG);
        let watch = Box::pin(informer::watch(client.clone(), target, out, CancellationToken::new()));
        Self { watch, updates, store: Store::default() }
    }

    /// Waits for the next change and takes it over; gives the keys that it touched. Nothing is lost when it is dropped
    /// before it ends.
    pub(crate) async fn changed(&mut self) -> Vec<String> {
        tokio::select! {
            biased;
            Some(update) = self.updates.recv() => self.store.apply(update),
            () = &mut self.watch => std::future::pending().await,
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
}
