//! The referenced objects of this node's Pods (`ConfigMap`s, `Secret`s, claims and their volumes), each watched alone and only while a Pod needs it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures::FutureExt as _;
use futures::future::{BoxFuture, select_all};
use informer::{Object, Target, Typed, Update};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret};
use kube::Client;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bundle::{Bundles, follow_bundles};
use super::{References, Snapshot};

/// What is known of one object.
#[derive(Clone, Debug)]
pub(super) enum Known<K> {
    Unknown,
    Absent,
    Present(Arc<K>),
}

/// One object's watch; it ends with the last Pod that holds it.
#[derive(Debug)]
struct Entry<K> {
    state: watch::Receiver<Known<K>>,
    stop: CancellationToken,
}

impl<K> Drop for Entry<K> {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Watches by the collection's path and the object's name.
type Entries<K> = Mutex<HashMap<(String, String), Weak<Entry<K>>>>;

/// All watched objects.
pub(crate) struct ObjectCache {
    client: Client,
    config_maps: Entries<ConfigMap>,
    secrets: Entries<Secret>,
    claims: Entries<PersistentVolumeClaim>,
    persistent_volumes: Entries<PersistentVolume>,
    trust_bundles: Mutex<Weak<Entry<Bundles>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// A name, its watch, and how much of it the Pod has seen.
type Held<K> = (String, Arc<Entry<K>>, watch::Receiver<Known<K>>);

/// The objects of one Pod, kept up to date while this lives.
#[derive(Debug, Default)]
pub(crate) struct PodObjects {
    references: References,
    config_maps: Vec<Held<ConfigMap>>,
    secrets: Vec<Held<Secret>>,
    claims: Vec<Held<PersistentVolumeClaim>>,
    persistent_volumes: Vec<Held<PersistentVolume>>,
    /// At most one: all bundles are watched together.
    trust_bundles: Vec<Held<Bundles>>,
}

impl ObjectCache {
    pub(crate) fn new(client: Client, tasks: TaskTracker, shutdown: CancellationToken) -> Self {
        Self {
            client,
            config_maps: Entries::default(),
            secrets: Entries::default(),
            claims: Entries::default(),
            persistent_volumes: Entries::default(),
            trust_bundles: Mutex::default(),
            tasks,
            shutdown,
        }
    }

    /// Watches what `references` names, in `namespace`; what `held` watches already is kept.
    pub(crate) fn hold(&self, namespace: &str, references: References, held: &mut PodObjects) {
        if held.references == references {
            return;
        }
        let within = |resource: &str| format!("/api/v1/namespaces/{namespace}/{resource}");
        *held = PodObjects {
            config_maps: self.hold_each(&self.config_maps, &within("configmaps"), &references.config_maps),
            secrets: self.hold_each(&self.secrets, &within("secrets"), &references.secrets),
            claims: self.hold_each(&self.claims, &within("persistentvolumeclaims"), &references.claims),
            persistent_volumes: self.hold_each(
                &self.persistent_volumes,
                "/api/v1/persistentvolumes",
                &references.persistent_volumes,
            ),
            trust_bundles: references.has_trust_bundles.then(|| self.hold_bundles()).into_iter().collect(),
            references,
        };
    }

    fn hold_bundles(&self) -> Held<Bundles> {
        let mut known = self.trust_bundles.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = known.upgrade().unwrap_or_else(|| {
            let stop = self.shutdown.child_token();
            let (state, receiver) = watch::channel(Known::Unknown);
            self.tasks.spawn(follow_bundles(self.client.clone(), state, stop.clone()));
            Arc::new(Entry { state: receiver, stop })
        });
        *known = Arc::downgrade(&entry);
        let receiver = entry.state.clone();
        (String::new(), entry, receiver)
    }

    fn hold_each<K>(&self, entries: &Entries<K>, path: &str, names: &BTreeSet<String>) -> Vec<Held<K>>
    where
        K: Send + Sync + 'static,
        Typed<K>: Object,
    {
        let held = names.iter().map(|name| {
            let entry = self.entry(entries, path, name);
            let receiver = entry.state.clone();
            (name.clone(), entry, receiver)
        });
        held.collect()
    }

    fn entry<K>(&self, entries: &Entries<K>, path: &str, name: &str) -> Arc<Entry<K>>
    where
        K: Send + Sync + 'static,
        Typed<K>: Object,
    {
        let key = (path.to_owned(), name.to_owned());
        let mut entries = entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get(&key).and_then(Weak::upgrade) {
            return entry;
        }
        entries.retain(|_, entry| entry.strong_count() > 0);
        let stop = self.shutdown.child_token();
        let (state, receiver) = watch::channel(Known::Unknown);
        let target = Target::all(path).with_fields(format!("metadata.name={name}"));
        let (updates, changes) = mpsc::channel(8);
        self.tasks.spawn(informer::watch(self.client.clone(), target, updates, stop.clone()));
        self.tasks.spawn(follow(changes, state));
        let entry = Arc::new(Entry { state: receiver, stop });
        entries.insert(key, Arc::downgrade(&entry));
        entry
    }
}

/// Turns updates of one object into its state.
async fn follow<K>(mut changes: mpsc::Receiver<Update<Typed<K>>>, state: watch::Sender<Known<K>>) {
    while let Some(update) = changes.recv().await {
        let known = match update.into_objects() {
            Update::Snapshot(mut objects) => match objects.pop() {
                Some(object) => Known::Present(Arc::new(object)),
                None => Known::Absent,
            },
            Update::Applied(object) => Known::Present(Arc::new(object)),
            Update::Deleted(_) => Known::Absent,
        };
        state.send_replace(known);
    }
}

impl PodObjects {
    /// The persistent volumes that are watched.
    pub(crate) fn persistent_volumes(&self) -> BTreeSet<String> {
        self.references.persistent_volumes.clone()
    }

    /// The objects as they are now; waits until each has been looked up once.
    pub(crate) async fn snapshot(&mut self) -> Snapshot {
        Snapshot {
            config_maps: settle_each(&mut self.config_maps).await,
            secrets: settle_each(&mut self.secrets).await,
            claims: settle_each(&mut self.claims).await,
            persistent_volumes: settle_each(&mut self.persistent_volumes).await,
            trust_bundles: settle_each(&mut self.trust_bundles).await.into_values().next(),
        }
    }

    /// Ends when one of the objects has changed since the last [`snapshot`](Self::snapshot).
    pub(crate) async fn changed(&mut self) {
        let all: Vec<_> = change_each(&mut self.config_maps)
            .chain(change_each(&mut self.secrets))
            .chain(change_each(&mut self.claims))
            .chain(change_each(&mut self.persistent_volumes))
            .chain(change_each(&mut self.trust_bundles))
            .collect();
        if all.is_empty() {
            return std::future::pending().await;
        }
        select_all(all).await;
    }
}

async fn settle_each<K>(held: &mut [Held<K>]) -> BTreeMap<String, Arc<K>> {
    let mut objects = BTreeMap::new();
    for (name, _, receiver) in held {
        if let Some(object) = settled(receiver).await {
            objects.insert(name.clone(), object);
        }
    }
    objects
}

fn change_each<K: Send + Sync>(held: &mut [Held<K>]) -> impl Iterator<Item = BoxFuture<'_, ()>> {
    held.iter_mut().map(|(_, _, receiver)| change(receiver).boxed())
}

async fn change<K>(receiver: &mut watch::Receiver<Known<K>>) {
    if receiver.changed().await.is_err() {
        // The watch ends only with the node agent.
        std::future::pending::<()>().await;
    }
}

async fn settled<K>(receiver: &mut watch::Receiver<Known<K>>) -> Option<Arc<K>> {
    let known = receiver.wait_for(|known| !matches!(known, Known::Unknown)).await;
    let object = match known.as_deref() {
        Ok(Known::Present(object)) => Some(Arc::clone(object)),
        _ => None,
    };
    drop(known);
    receiver.mark_unchanged();
    object
}
