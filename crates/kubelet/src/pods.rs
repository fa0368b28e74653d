//! All Pods of this node: each that the API binds here, or that a manifest describes, gets a worker; what is left of
//! others is cleared away.

mod statics;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cri::v1;
use informer::{Target, Typed, Update, watch};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::manifest::mirror::{Mirrors, keep_mirrors, mirror_of, name_of};
use crate::manifest::{ManifestSource, follow_manifests};
use crate::node::shutdown::refusal;
use crate::node::status::declared_features;
use crate::pod::admission::{NodeFacts, check_admission};
use crate::pod::status::Failure;
use crate::pod::status::phase::Phase;
use crate::pod::worker::{Desired, Worker, pod_of_sandbox};
use crate::registry::Applied;
use crate::shared::Shared;
use crate::uid::PodUid;
use statics::Statics;

/// Updates that may wait.
const QUEUE: usize = 256;
/// How long Pods wait for the node's own object.
const NODE_PATIENCE: Duration = Duration::from_secs(10);

/// Runs the workers of this node's Pods until `shutdown`, then joins them.
pub(crate) async fn run_pods(
    shared: Arc<Shared>,
    manifests: Option<ManifestSource>,
    shutdown: CancellationToken,
) {
    let name = shared.node_name.clone();
    let (updates, mut changes) = mpsc::channel(QUEUE);
    let target = Target::all("/api/v1/pods").with_fields(format!("spec.nodeName={name}"));
    shared.tasks.spawn(watch::<Typed<Pod>>(shared.client.clone(), target, updates, shutdown.clone()));
    let (updates, mut nodes) = mpsc::channel(QUEUE);
    let target = Target::all("/api/v1/nodes").with_fields(format!("metadata.name={name}"));
    shared.tasks.spawn(watch::<Typed<Node>>(shared.client.clone(), target, updates, shutdown.clone()));
    let mirrors = keep_mirrors(shared.client.clone(), shared.mirrors.subscribe(), shutdown.clone());
    shared.tasks.spawn(mirrors);
    let (found, mut statics) = mpsc::channel(1);
    let is_waiting_for_statics = manifests.is_some();
    if let Some(source) = manifests {
        shared.tasks.spawn(follow_manifests(source, shared.clock.clone(), found, shutdown.clone()));
    }
    let mut pods = Pods::new(shared, is_waiting_for_statics);
    let mut patience = std::pin::pin!(tokio::time::sleep(NODE_PATIENCE));
    loop {
        // Pods are admitted by the node's labels: these come first.
        let is_ready = pods.node.is_some() || patience.is_elapsed();
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(update) = changes.recv(), if is_ready => pods.take(update.into_objects()).await,
            () = &mut patience, if !is_ready => tracing::warn!("the API does not have this node; its Pods are run all the same"),
            Some(update) = nodes.recv() => pods.take_node(update.into_objects()),
            Some(found) = statics.recv() => pods.take_statics(found).await,
            Some(ended) = pods.workers.join_next() => match ended {
                Ok(uid) => pods.note_end(&uid),
                Err(error) => tracing::error!(%error, "a Pod's worker broke off"),
            }
        }
        pods.count();
    }
    while pods.workers.join_next().await.is_some() {}
}

struct Pods {
    shared: Arc<Shared>,
    workers: JoinSet<PodUid>,
    node: Option<Arc<Node>>,
    statics: Statics,
    /// Pods that the node has taken; others fail without having begun.
    admitted: BTreeSet<PodUid>,
    /// What the API has, once it was seen, until orphans are cleared away.
    known: Option<HashSet<PodUid>>,
    /// The manifests have not been read yet.
    is_waiting_for_statics: bool,
    has_cleared_orphans: bool,
}

impl Pods {
    fn new(shared: Arc<Shared>, is_waiting_for_statics: bool) -> Self {
        Self {
            shared,
            workers: JoinSet::new(),
            node: None,
            statics: Statics::default(),
            admitted: BTreeSet::new(),
            known: None,
            is_waiting_for_statics,
            has_cleared_orphans: false,
        }
    }

    fn count(&self) {
        self.shared.metrics.pods.set(i64::try_from(self.workers.len()).unwrap_or(i64::MAX));
    }

    async fn take(&mut self, update: Update<Pod>) {
        match update {
            Update::Applied(pod) => self.apply(pod),
            Update::Deleted(pod) if mirror_of(&pod).is_some() => {
                self.change_mirrors(|state| drop(state.in_api.remove(&name_of(&pod))));
            }
            Update::Deleted(pod) => {
                if let Some(uid) = uid_of(&pod) {
                    self.shared.registry.mark_gone(&uid, Some(Arc::new(pod)));
                }
            }
            Update::Snapshot(mut pods) => {
                let known: HashSet<PodUid> = pods.iter().filter_map(uid_of).collect();
                let is_elsewhere = |uid: &&PodUid| !known.contains(*uid) && !self.statics.is_running(uid);
                for uid in self.shared.registry.uids().iter().filter(is_elsewhere) {
                    self.shared.registry.mark_gone(uid, None);
                }
                // The oldest first: what ran before keeps its place.
                pods.sort_by(|a, b| a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp));
                self.change_mirrors(|state| {
                    state.is_synced = true;
                    let mirrors = pods.iter().filter_map(|pod| Some((name_of(pod), mirror_of(pod)?)));
                    state.in_api = mirrors.collect();
                });
                for pod in pods {
                    self.apply(pod);
                }
                self.known = Some(known);
                self.shared.pods_seen.send_replace(true);
                self.clear_orphans().await;
            }
        }
    }

    fn take_node(&mut self, update: Update<Node>) {
        self.node = match update {
            Update::Snapshot(mut nodes) => nodes.pop().map(Arc::new),
            Update::Applied(node) => Some(Arc::new(node)),
            Update::Deleted(_) => None,
        };
        let node = self.node.clone();
        self.change_mirrors(|state| {
            let uid = |node: &Option<Arc<Node>>| node.as_ref().and_then(|node| node.metadata.uid.clone());
            if uid(&state.node) != uid(&node) {
                state.node = node;
            }
        });
    }

    async fn take_statics(&mut self, found: Vec<Arc<Pod>>) {
        self.statics.want(found);
        self.settle_statics();
        self.is_waiting_for_statics = false;
        self.clear_orphans().await;
    }

    fn apply(&mut self, pod: Pod) {
        if let Some(mirror) = mirror_of(&pod) {
            self.change_mirrors(|state| drop(state.in_api.insert(name_of(&pod), mirror)));
            return;
        }
        let Some(uid) = uid_of(&pod) else {
            tracing::error!(name = pod.metadata.name, "a Pod without a usable UID is left alone");
            return;
        };
        self.desire(uid, Desired::of(Arc::new(pod)));
    }

    /// Starts the static Pods that can start, and ends those whose manifest is gone.
    fn settle_statics(&mut self) {
        for uid in self.statics.unwanted() {
            self.shared.registry.mark_gone(&uid, None);
        }
        for (uid, pod) in self.statics.startable() {
            self.statics.note_start(uid.clone(), Arc::clone(&pod));
            self.desire(uid, Desired::of(pod));
        }
        let statics = self.statics.shown();
        self.change_mirrors(|state| state.statics = statics);
    }

    /// Changes what the keeper of the mirrors works from; nobody is woken for nothing.
    fn change_mirrors(&self, change: impl FnOnce(&mut Mirrors)) {
        self.shared.mirrors.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            !state.is_same(&before)
        });
    }

    /// Tells the worker, or starts one.
    fn desire(&mut self, uid: PodUid, desired: Desired) {
        let pod = Arc::clone(&desired.pod);
        let is_new = !self.shared.registry.has(&uid);
        let refusal = if is_new && !desired.is_gone { self.admit(&uid, &pod) } else { None };
        let Applied::New(input, wake) = self.shared.registry.apply(&uid, desired) else { return };
        let worker = Worker::new(Arc::clone(&self.shared), uid.clone(), (input, wake), refusal);
        let shared = Arc::clone(&self.shared);
        self.workers.spawn(async move {
            Box::pin(worker.run()).await;
            if !shared.shutdown.is_cancelled() {
                shared.registry.remove(&uid);
            }
            uid
        });
    }

    /// Why the node does not take the Pod. One that has begun here before is not asked again.
    fn admit(&mut self, uid: &PodUid, pod: &Pod) -> Option<Failure> {
        let status = pod.status.as_ref();
        let has_begun = status.is_some_and(|status| status.start_time.is_some());
        let is_leaving = pod.metadata.deletion_timestamp.is_some() || is_over(pod);
        if !has_begun && !is_leaving {
            if *self.shared.shutting_down.borrow() {
                return Some(refusal());
            }
            let others: Vec<Arc<Pod>> = self.shared.registry.pods();
            let takes_room =
                |pod: &&Pod| !is_over(pod) && uid_of(pod).is_some_and(|uid| self.admitted.contains(&uid));
            let others: Vec<&Pod> = others.iter().map(|pod| &**pod).filter(takes_room).collect();
            let features = declared_features(&self.shared.runtime.borrow());
            let node = NodeFacts {
                features: &features,
                name: &self.shared.node_name,
                allocatable: &self.shared.allocatable,
                labels: self.node.as_ref().and_then(|node| node.metadata.labels.as_ref()),
            };
            if let Err(failure) = check_admission(pod, node, &others) {
                return Some(failure);
            }
        }
        self.admitted.insert(uid.clone());
        None
    }

    /// A worker has nothing left to do.
    fn note_end(&mut self, uid: &PodUid) {
        self.admitted.remove(uid);
        self.shared.room.notify_waiters();
        if self.statics.note_end(uid) {
            self.settle_statics();
        }
    }

    /// Once, after the first look at the API and at the manifests: what the runtime or the disk still hold of Pods that
    /// are no more.
    async fn clear_orphans(&mut self) {
        if self.has_cleared_orphans || self.is_waiting_for_statics {
            return;
        }
        let Some(mut known) = self.known.clone() else { return };
        known.extend(self.shared.registry.uids());
        let listed = self.shared.cri.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await;
        let sandboxes = match listed {
            Ok(listed) => listed.items,
            Err(error) => {
                tracing::warn!(%error, "orphaned Pods are looked for later");
                return;
            }
        };
        (self.has_cleared_orphans, self.known) = (true, None);
        let mut orphans: BTreeMap<PodUid, Pod> = BTreeMap::new();
        for pod in sandboxes.iter().filter_map(pod_of_sandbox) {
            if let Some(uid) = uid_of(&pod).filter(|uid| !known.contains(uid)) {
                orphans.insert(uid, pod);
            }
        }
        for uid in on_disk(&self.shared.places.pods()) {
            if !known.contains(&uid) {
                orphans.entry(uid.clone()).or_insert_with(|| bare_pod(&uid));
            }
        }
        for (uid, pod) in orphans {
            tracing::info!(pod = %uid, name = pod.metadata.name, "cleared away: nobody has this Pod any more");
            self.desire(uid, Desired { is_gone: true, ..Desired::of(Arc::new(pod)) });
        }
    }
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    Phase::stored_terminal(phase).is_some()
}

fn uid_of(pod: &Pod) -> Option<PodUid> {
    PodUid::parse(pod.metadata.uid.as_deref()?).ok()
}

/// UIDs of the Pods' directories.
fn on_disk(pods: &std::path::Path) -> Vec<PodUid> {
    let entries = std::fs::read_dir(pods).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.filter_map(|entry| PodUid::parse(&entry.file_name().to_string_lossy()).ok()).collect()
}

/// A Pod of which only the directory is left.
fn bare_pod(uid: &PodUid) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.uid = Some(uid.to_string());
    pod.spec = Some(PodSpec::default());
    pod
}
