//! All Pods of this node: each that the API binds here gets a worker, and what is left of others is cleared away.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use cri::v1;
use informer::{Target, Typed, Update, watch};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::pod::worker::{Desired, Worker, pod_of_sandbox};
use crate::registry::Applied;
use crate::shared::Shared;
use crate::uid::PodUid;

/// Updates that may wait.
const QUEUE: usize = 256;

/// Watches the Pods bound to this node and runs their workers until `shutdown`, then joins them.
pub(crate) async fn run_pods(shared: Arc<Shared>, shutdown: CancellationToken) {
    let target = Target::all("/api/v1/pods").with_fields(format!("spec.nodeName={}", shared.node_name));
    let (updates, mut changes) = mpsc::channel(QUEUE);
    shared.tasks.spawn(watch::<Typed<Pod>>(shared.client.clone(), target, updates, shutdown.clone()));
    let mut pods = Pods { shared, workers: JoinSet::new(), has_cleared_orphans: false };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(update) = changes.recv() => pods.take(update.into_objects()).await,
            Some(ended) = pods.workers.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a Pod's worker broke off");
                }
            }
        }
        pods.count();
    }
    while pods.workers.join_next().await.is_some() {}
}

struct Pods {
    shared: Arc<Shared>,
    workers: JoinSet<()>,
    has_cleared_orphans: bool,
}

impl Pods {
    fn count(&self) {
        self.shared.metrics.pods.set(i64::try_from(self.workers.len()).unwrap_or(i64::MAX));
    }

    async fn take(&mut self, update: Update<Pod>) {
        match update {
            Update::Applied(pod) => self.apply(pod),
            Update::Deleted(pod) => {
                if let Some(uid) = uid_of(&pod) {
                    self.shared.registry.mark_gone(&uid, Some(Arc::new(pod)));
                }
            }
            Update::Snapshot(pods) => {
                let known: HashSet<PodUid> = pods.iter().filter_map(uid_of).collect();
                for uid in self.shared.registry.uids().iter().filter(|uid| !known.contains(uid)) {
                    self.shared.registry.mark_gone(uid, None);
                }
                for pod in pods {
                    self.apply(pod);
                }
                if !self.has_cleared_orphans {
                    self.clear_orphans(&known).await;
                }
            }
        }
    }

    fn apply(&mut self, pod: Pod) {
        let Some(uid) = uid_of(&pod) else {
            tracing::error!(name = pod.metadata.name, "a Pod without a usable UID is left alone");
            return;
        };
        self.desire(uid, Desired { pod: Arc::new(pod), is_gone: false });
    }

    /// Tells the worker, or starts one.
    fn desire(&mut self, uid: PodUid, desired: Desired) {
        let Applied::New(input, wake) = self.shared.registry.apply(&uid, desired) else { return };
        let worker = Worker::new(Arc::clone(&self.shared), uid.clone(), input, wake);
        let shared = Arc::clone(&self.shared);
        self.workers.spawn(async move {
            Box::pin(worker.run()).await;
            if !shared.shutdown.is_cancelled() {
                shared.registry.remove(&uid);
            }
        });
    }

    /// Once, after the first look at the API: what the runtime or the disk still hold of Pods that are no more.
    async fn clear_orphans(&mut self, known: &HashSet<PodUid>) {
        let listed = self.shared.cri.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await;
        let sandboxes = match listed {
            Ok(listed) => listed.items,
            Err(error) => {
                tracing::warn!(%error, "orphaned Pods are looked for later");
                return;
            }
        };
        self.has_cleared_orphans = true;
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
            tracing::info!(pod = %uid, name = pod.metadata.name, "cleared away: the API does not have this Pod");
            self.desire(uid, Desired { pod: Arc::new(pod), is_gone: true });
        }
    }
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
