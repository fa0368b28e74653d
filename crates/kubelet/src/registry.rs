//! The Pods of this node by UID: what the API wants of each, and who is woken when something happens to it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{Notify, watch};

use crate::pod::worker::{Desired, Ending};
use crate::runtime::event::Wake;
use crate::uid::PodUid;

#[derive(Debug)]
struct Entry {
    input: watch::Sender<Desired>,
    /// Nothing of it runs or is held, and the API knows.
    settled: watch::Sender<bool>,
    wakes: Vec<Weak<Notify>>,
}

/// All Pods that have a worker.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<HashMap<PodUid, Entry>>);

/// What an [`apply`](Registry::apply) did.
pub(crate) enum Applied {
    /// A worker knows of the change.
    Told,
    /// The Pod is new: start a worker with these.
    New(watch::Receiver<Desired>, Arc<Notify>),
}

impl Registry {
    fn entries(&self) -> MutexGuard<'_, HashMap<PodUid, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the Pod's worker what the API wants now, or makes room for a new worker.
    pub(crate) fn apply(&self, uid: &PodUid, desired: Desired) -> Applied {
        let mut entries = self.entries();
        if let Some(entry) = entries.get(uid) {
            // What the node has decided stays.
            entry.input.send_modify(|known| {
                let ending = known.ending.take();
                *known = Desired { ending, ..desired };
            });
            return Applied::Told;
        }
        let (input, receiver) = watch::channel(desired);
        let wake = Arc::new(Notify::new());
        entries.insert(
            uid.clone(),
            Entry { input, settled: watch::Sender::default(), wakes: vec![Arc::downgrade(&wake)] },
        );
        Applied::New(receiver, wake)
    }

    /// Tells the worker that the API does not have the Pod any more.
    pub(crate) fn mark_gone(&self, uid: &PodUid, last: Option<Arc<Pod>>) {
        if let Some(entry) = self.entries().get(uid) {
            entry.input.send_modify(|desired| {
                desired.is_gone = true;
                if let Some(last) = last {
                    desired.pod = last;
                }
            });
        }
    }

    /// Whether the Pod has a worker.
    pub(crate) fn has(&self, uid: &PodUid) -> bool {
        self.entries().contains_key(uid)
    }

    /// Tells the worker that the node ends the Pod. The first reason stays; a shorter grace counts.
    pub(crate) fn end(&self, uid: &PodUid, ending: Ending) {
        if let Some(entry) = self.entries().get(uid) {
            entry.input.send_if_modified(|desired| match &mut desired.ending {
                Some(known) if known.grace <= ending.grace => false,
                Some(known) => {
                    known.grace = ending.grace;
                    true
                }
                none => {
                    *none = Some(ending);
                    true
                }
            });
        }
    }

    /// The Pod has come to its end: nothing of it runs, its volumes are gone, and the API knows.
    pub(crate) fn note_settled(&self, uid: &PodUid) {
        if let Some(entry) = self.entries().get(uid) {
            entry.settled.send_replace(true);
        }
    }

    /// Whether the Pod has come to its end. The channel closes when nothing is left of it.
    pub(crate) fn settled(&self, uid: &PodUid) -> Option<watch::Receiver<bool>> {
        self.entries().get(uid).map(|entry| entry.settled.subscribe())
    }

    /// The Pods that have workers.
    pub(crate) fn uids(&self) -> Vec<PodUid> {
        self.entries().keys().cloned().collect()
    }

    /// The worker has nothing left to do.
    pub(crate) fn remove(&self, uid: &PodUid) {
        self.entries().remove(uid);
    }

    /// The Pod of this name that the API still has.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let entries = self.entries();
        let mut live =
            entries.values().map(|entry| entry.input.borrow().clone()).filter(|desired| !desired.is_gone);
        live.find(|desired| {
            let meta = &desired.pod.metadata;
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        })
        .map(|desired| desired.pod)
    }

    /// All Pods that the API still has.
    pub(crate) fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods_where(|desired| !desired.is_gone)
    }

    /// The Pods that the API still has and that the node has not decided to end.
    pub(crate) fn kept_pods(&self) -> Vec<Arc<Pod>> {
        self.pods_where(|desired| !desired.is_gone && desired.ending.is_none())
    }

    fn pods_where(&self, wanted: impl Fn(&Desired) -> bool) -> Vec<Arc<Pod>> {
        let entries = self.entries();
        let inputs = entries.values().map(|entry| entry.input.borrow());
        inputs.filter(|desired| wanted(desired)).map(|desired| Arc::clone(&desired.pod)).collect()
    }

    /// A further listener for what happens to a Pod in the runtime; it ends with its last reference.
    pub(crate) fn listen(&self, uid: &PodUid) -> Arc<Notify> {
        let notify = Arc::new(Notify::new());
        if let Some(entry) = self.entries().get_mut(uid) {
            entry.wakes.retain(|wake| wake.strong_count() > 0);
            entry.wakes.push(Arc::downgrade(&notify));
        }
        notify
    }

    /// Passes a runtime event on.
    pub(crate) fn wake(&self, wake: &Wake) {
        let entries = self.entries();
        let notify =
            |entry: &Entry| entry.wakes.iter().filter_map(Weak::upgrade).for_each(|wake| wake.notify_one());
        match wake {
            Wake::All => entries.values().for_each(notify),
            Wake::Pod(uid) => {
                if let Some(entry) = PodUid::parse(uid).ok().and_then(|uid| entries.get(&uid)) {
                    notify(entry);
                }
            }
        }
    }
}
