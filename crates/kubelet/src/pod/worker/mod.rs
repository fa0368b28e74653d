//! One Pod's worker: it looks at the runtime, takes one [`step`], does what that asks, and waits for the next event.
//!
//! What wakes it: a new spec, a deletion, a container event, a changed `ConfigMap` or `Secret`, a wait that is over.
//! Nothing is remembered that could not be found again after a crash, but for back-off times.

pub(crate) mod adopt;
mod clean;
mod container;
mod end;
mod fence;
mod handler;
mod prepare;
mod probes;
mod remote;
mod resize;
mod sandbox;
pub(crate) mod stage;
mod sync;
mod verify;

pub(crate) use clean::pod_of_sandbox;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cri::v1;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::backoff::Backoff;
use super::image::LocalImage;
use super::observed::Observed;
use super::plan::{CrashKey, crash_key};
use super::publish::Publisher;
use super::resize::Sizes;
use super::status::condition::is_own;
use super::status::phase::Phase;
use super::status::{Failure, StatusInput, Waiting, plan_status};
use crate::event::Kind;
use crate::fence::Fence;
use crate::logs::read::log_file;
use crate::object::cache::PodObjects;
use crate::probe::Prober;
use crate::runtime::observe::observe_pod;
use crate::shared::Shared;
use crate::token::PodTokens;
use crate::uid::PodUid;
use crate::userns::PodUserns;
use crate::volume::setup::ReadyVolume;
use stage::{Action, Facts, Stage, step};

/// The node's own decision that a Pod ends.
#[derive(Clone, Debug)]
pub(crate) struct Ending {
    /// What its status says then.
    pub(crate) failure: Failure,
    /// How long its containers get at most.
    pub(crate) grace: Duration,
}

/// What the API wants of a Pod.
#[derive(Clone, Debug)]
pub(crate) struct Desired {
    pub(crate) pod: Arc<Pod>,
    /// The API does not have it (any more).
    pub(crate) is_gone: bool,
    /// The node ends it.
    pub(crate) ending: Option<Ending>,
}

impl Desired {
    /// A Pod that is meant to run.
    pub(crate) fn of(pod: Arc<Pod>) -> Self {
        Self { pod, is_gone: false, ending: None }
    }

    pub(crate) fn must_end(&self) -> bool {
        self.is_gone || self.ending.is_some() || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Seconds between SIGTERM and SIGKILL, at least one.
    fn grace(&self) -> Duration {
        let spec = self.pod.spec.as_ref();
        let asked = self.pod.metadata.deletion_grace_period_seconds;
        let seconds = asked.or_else(|| spec?.termination_grace_period_seconds).unwrap_or(30);
        let own = Duration::from_secs(u64::try_from(seconds).unwrap_or(1));
        let given = self.ending.as_ref().map_or(own, |ending| ending.grace.min(own));
        given.max(Duration::from_secs(1))
    }
}

/// What a pass ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Something was done: look again.
    Again,
    /// Nothing to do before this time, or before an event.
    Wait(Option<Timestamp>),
}

/// The worker's memory.
#[expect(clippy::struct_excessive_bools, reason = "each is one independent fact")]
pub(crate) struct Worker {
    shared: Arc<Shared>,
    uid: PodUid,
    input: watch::Receiver<Desired>,
    wake: Arc<Notify>,
    stage: Stage,
    status: PodStatus,
    publisher: Publisher,
    objects: PodObjects,
    tokens: PodTokens,
    crashes: Backoff<CrashKey>,
    /// Why containers wait.
    waiting: BTreeMap<String, Waiting>,
    prober: Prober,
    /// Containers that are not tried again before a time.
    held: BTreeMap<String, Timestamp>,
    told: BTreeSet<String>,
    failure: Option<Failure>,
    /// Why the node does not take the Pod, unless it runs already.
    refusal: Option<Failure>,
    /// What its containers are allocated and have got.
    sizes: Sizes,
    /// The runtime handler of its class, once it was asked for.
    handler: Option<String>,
    failures_in_a_row: u32,
    prepared: Option<Prepared>,
    /// When volumes of drivers that want that are published again.
    republish_at: Option<Timestamp>,
    /// What was decided about its user namespace.
    fence: Option<Fence>,
    /// Images that were pulled to decide that; their containers need not ask again.
    fetched: BTreeMap<String, LocalImage>,
    /// Volumes may have to show something new.
    is_stale: bool,
    /// When that is looked at, of a Pod that ran before the node agent began and lacks nothing.
    turn_at: Option<Instant>,
    /// All was prepared since the last wait: passes that follow at once need no second look at it.
    is_fresh: bool,
    is_over: bool,
    is_deleted: bool,
    is_clean: bool,
    is_removed: bool,
    first_seen: Timestamp,
    has_run: bool,
    has_looked: bool,
}

/// What containers of the Pod are made with; gathered before the first one starts.
#[derive(Clone, Debug)]
struct Prepared {
    userns: PodUserns,
    volumes: Vec<ReadyVolume>,
    objects: crate::object::Snapshot,
    /// The node agent's own files can be ID-mapped; else they carry host IDs from this on.
    own_files: OwnFiles,
    runtime_handler: String,
}

/// How the node agent's own files are made visible to a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct OwnFiles {
    is_mapped: bool,
    base: u32,
}

impl Worker {
    pub(crate) fn new(
        shared: Arc<Shared>,
        uid: PodUid,
        (input, wake): (watch::Receiver<Desired>, Arc<Notify>),
        refusal: Option<Failure>,
    ) -> Self {
        let desired = input.borrow().clone();
        let publisher = Publisher::start(&shared, &desired.pod);
        let first_seen = shared.clock.now();
        Self {
            shared,
            uid,
            input,
            wake,
            stage: Stage::Running,
            status: desired.pod.status.clone().unwrap_or_default(),
            publisher,
            objects: PodObjects::default(),
            tokens: PodTokens::default(),
            crashes: Backoff::default(),
            waiting: BTreeMap::new(),
            prober: Prober::default(),
            held: BTreeMap::new(),
            told: BTreeSet::new(),
            failure: None,
            refusal,
            sizes: desired.pod.status.as_ref().map(Sizes::of).unwrap_or_default(),
            handler: None,
            failures_in_a_row: 0,
            prepared: None,
            republish_at: None,
            fence: None,
            fetched: BTreeMap::new(),
            is_stale: true,
            turn_at: None,
            is_fresh: false,
            is_over: false,
            is_deleted: false,
            is_clean: false,
            is_removed: false,
            first_seen,
            has_run: false,
            has_looked: false,
        }
    }

    /// Tells of what was found wrong with the Pod's record at start.
    fn tell_findings(&self) {
        let pod = self.input.borrow().pod.clone();
        for (_, message) in self.shared.findings.iter().filter(|(uid, _)| *uid == self.uid) {
            self.shared.events.pod(&pod, Kind::Warning, "UserNamespaceRecord", message.clone());
        }
    }

    /// Works until nothing of the Pod is left, or the node agent stops.
    pub(crate) async fn run(mut self) {
        let shutdown = self.shared.shutdown.clone();
        self.tell_findings();
        shutdown
            .run_until_cancelled(async {
                loop {
                    let Some(next) = Box::pin(self.pass()).await else { return };
                    if let Next::Wait(until) = next {
                        self.wait(until).await;
                    }
                }
            })
            .await;
    }

    /// One look, one step, one action. `None` when nothing is left to do, ever.
    async fn pass(&mut self) -> Option<Next> {
        let desired = self.input.borrow_and_update().clone();
        let desired = self.allocate(desired);
        self.take_conditions(&desired.pod);
        self.take_ending(&desired);
        let span = tracing::debug_span!(target: "path", "kubelet: look at the runtime", pod = %self.uid);
        let look = observe_pod(&self.shared.cri, &self.uid, &self.shared.ended).instrument(span);
        let observed = match look.await {
            Ok(observed) => self.with_messages(&desired.pod, observed).await,
            Err(error) => {
                tracing::warn!(pod = %self.uid, %error, "the runtime cannot be asked; it is asked again");
                return Some(self.retry());
            }
        };
        self.track_logs(&desired.pod, &observed);
        if !std::mem::replace(&mut self.has_looked, true) {
            self.resume_backoff(&desired.pod, &observed);
            self.adopt(&desired.pod, &observed);
        }
        self.follow_probes(&desired, &observed);
        let facts = self.facts(&desired, &observed);
        let (stage, action) = step(self.stage, facts);
        if stage != self.stage {
            tracing::debug!(pod = %self.uid, from = ?self.stage, to = ?stage, "stage");
            self.stage = stage;
        }
        let next = match action {
            Action::Sync => self.sync_or_abort(&desired, &observed).await,
            Action::Kill => self.kill(&desired, &observed).await,
            Action::CleanUp => self.clean_up(&desired, &observed).await,
            Action::Delete => self.delete(&desired).await,
            Action::Remove => self.remove(&desired).await,
            Action::Wait => {
                self.publish(&desired.pod, &observed);
                self.rest().await
            }
            Action::Finish => return None,
        };
        Some(next)
    }

    /// The node ends the Pod: it fails, with the reason.
    fn take_ending(&mut self, desired: &Desired) {
        let Some(ending) = desired.ending.as_ref().filter(|_| self.failure.is_none()) else { return };
        let failure = &ending.failure;
        self.shared.events.pod(&desired.pod, Kind::Warning, failure.reason.clone(), failure.message.clone());
        self.failure = Some(failure.clone());
        self.is_over = true;
    }

    /// Conditions that others write, readiness gates among them, are as the API has them.
    fn take_conditions(&mut self, pod: &Pod) {
        let Some(status) = &pod.status else { return };
        let is_foreign = |condition: &&PodCondition| !is_own(condition);
        let foreign: Vec<PodCondition> =
            status.conditions.iter().flatten().filter(is_foreign).cloned().collect();
        let known = self.status.conditions.get_or_insert_default();
        known.retain(is_own);
        known.extend(foreign);
    }

    /// Back-off goes on where it was before a restart of the node agent: the restart counts tell.
    fn resume_backoff(&mut self, pod: &Pod, observed: &Observed) {
        let spec = pod.spec.iter();
        let containers = spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
        for container in containers {
            let Some(latest) = observed.latest(&container.name) else { continue };
            let failures = u32::try_from(latest.restart_count).unwrap_or_default();
            if let Some(tried_at) = latest.created_at {
                self.crashes.resume(&crash_key(container), failures, tried_at);
            }
        }
    }

    /// Logs of running containers are watched for rotation, others not any more.
    fn track_logs(&self, pod: &Pod, observed: &Observed) {
        let logs = self.shared.places.pod_logs(pod);
        for record in &observed.containers {
            let log = log_file(&logs, &record.name, record.restart_count);
            if record.is_running() {
                self.shared.rotator.track(log, &record.id);
            } else {
                self.shared.rotator.forget(&log);
            }
        }
    }

    fn facts(&self, desired: &Desired, observed: &Observed) -> Facts {
        let stored = Phase::stored_terminal(self.status.phase.as_deref());
        Facts {
            is_deleting: desired.pod.metadata.deletion_timestamp.is_some(),
            is_gone_from_api: desired.is_gone || self.is_deleted,
            is_over: self.is_over || stored.is_some(),
            is_alive: observed.live().next().is_some()
                || observed.sandboxes.iter().any(|sandbox| sandbox.is_ready),
            is_clean: self.is_clean,
            is_removed: self.is_removed,
        }
    }

    /// Runs a sync; a deletion that arrives meanwhile cuts its waits short.
    async fn sync_or_abort(&mut self, desired: &Desired, observed: &Observed) -> Next {
        let abort = CancellationToken::new();
        let mut input = self.input.clone();
        let mut sync = Box::pin(self.sync(desired, observed, &abort));
        tokio::select! {
            next = &mut sync => return next,
            _ = input.wait_for(Desired::must_end) => abort.cancel(),
        }
        sync.await
    }

    /// Works out the status and hands it to the publisher.
    fn publish(&mut self, pod: &Pod, observed: &Observed) {
        let has_ended = matches!(self.stage, Stage::Cleaning | Stage::Settled | Stage::Removing);
        // A Pod fails when its containers have stopped: who sees it failed may start another in its place.
        let is_stopped = has_ended || observed.live().next().is_none();
        let runtime = self.shared.runtime.borrow().name.clone();
        let probes = self.prober.results();
        let status = plan_status(StatusInput {
            pod,
            previous: &self.status,
            observed,
            waiting: &self.waiting,
            probes: &probes,
            runtime: &runtime,
            host_ips: &self.shared.host_ips,
            failure: self.failure.as_ref().filter(|_| is_stopped),
            fence: self.fence.as_ref(),
            sizes: &self.sizes,
            has_ended,
            now: self.shared.clock.now(),
        });
        if !self.has_run && status.phase.as_deref() == Some("Running") {
            self.has_run = true;
            let took = self.shared.clock.now().duration_since(self.first_seen);
            self.shared.metrics.pod_start.observe(took.as_secs_f64());
        }
        self.status = status.clone();
        self.publisher.publish(status);
    }

    /// Waits for anything that may change what is to be done.
    async fn wait(&mut self, until: Option<Timestamp>) {
        self.is_fresh = false;
        let now = self.shared.clock.now();
        let pause = until.map(|until| {
            Duration::try_from(until.duration_since(now)).unwrap_or_default() + Duration::from_millis(1)
        });
        let timer = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        let watches_objects = self.stage == Stage::Running;
        tokio::select! {
            changed = self.input.changed() => {
                (self.is_stale, self.turn_at) = (true, None);
                if changed.is_err() {
                    // The Pods' owner is gone: the node agent stops.
                    self.shared.shutdown.cancelled().await;
                }
            }
            () = self.wake.notified() => {}
            () = self.shared.room.notified(), if self.sizes.pending.is_some() => {}
            () = self.objects.changed(), if watches_objects => {
                self.is_stale = true;
                self.held.clear();
                self.failures_in_a_row = 0;
            }
            () = timer => {}
        }
    }

    /// Notes the Pod's end once the API knows of it, unless something happens first.
    async fn rest(&mut self) -> Next {
        let mut input = self.input.clone();
        tokio::select! {
            () = self.publisher.flush() => self.shared.registry.note_settled(&self.uid),
            _ = input.changed() => {}
            () = self.wake.notified() => return Next::Again,
        }
        Next::Wait(None)
    }

    /// The next try after a failure: 1, 2, 4, 8 … 60 s.
    fn retry(&mut self) -> Next {
        let seconds = 1_i64.checked_shl(self.failures_in_a_row.min(6)).unwrap_or(60).min(60);
        self.failures_in_a_row = self.failures_in_a_row.saturating_add(1);
        let until = self.shared.clock.now().saturating_add(SignedDuration::from_secs(seconds));
        Next::Wait(Some(until.unwrap_or(Timestamp::MAX)))
    }

    fn sandbox_identity(pod: &Pod) -> v1::PodSandboxConfig {
        let meta = &pod.metadata;
        let part = |text: &Option<String>| text.clone().unwrap_or_default();
        v1::PodSandboxConfig {
            metadata: Some(v1::PodSandboxMetadata {
                name: part(&meta.name),
                uid: part(&meta.uid),
                namespace: part(&meta.namespace),
                attempt: 0,
            }),
            ..Default::default()
        }
    }
}

/// Runs blocking work; it ends with its result even when nobody waits any more.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, BlockingError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| BlockingError(error.to_string()))
}

/// Work on a blocking thread that did not come to its end.
#[derive(Debug, thiserror::Error)]
#[error("the work was broken off: {0}")]
struct BlockingError(String);
