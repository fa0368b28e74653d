//! What a Pod needs before its sandbox and containers: host IDs, objects, tokens, cgroup, directories, volumes.

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::fence::Scene;
use super::{BlockingError, Next, OwnFiles, Prepared, Worker, blocking};
use crate::event::Kind;
use crate::fault::CrashPoint;
use crate::fence::Fence;
use crate::idspace::IdSpaceError;
use crate::object::{Snapshot, references};
use crate::pod::image::ImageFailure;
use crate::pod::observed::Observed;
use crate::token::TokenError;
use crate::userns::{PodUserns, UsernsError, Wish, check_handler, plan_wish};
use crate::volume::claim::bound_volumes;
use crate::volume::payload::{PayloadInput, Tokens, fs_group};
use crate::volume::plan::{VolumeError, plan_volumes};
use crate::volume::setup::{SetupInput, apply_volumes};

/// Why a Pod cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error(transparent)]
    Userns(#[from] UsernsError),
    #[error(transparent)]
    Handler(#[from] super::handler::HandlerError),
    #[error(transparent)]
    Ids(#[from] IdSpaceError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error("MountVolume.SetUp failed for volume {volume:?} : {cause}")]
    Token { volume: String, cause: TokenError },
    #[error("unable to ensure pod container exists: {0}")]
    Cgroup(#[from] crate::cgroup::PodCgroupError),
    #[error("make the Pod's directories: {0}")]
    Directory(std::io::Error),
    #[error(transparent)]
    Blocking(#[from] BlockingError),
    #[error("ask for the policy of the namespace {namespace}: {cause}")]
    Namespace { namespace: String, cause: kube::Error },
    #[error("read the Pod's spec: {0}")]
    Spec(#[from] serde_json::Error),
    #[error("the image of the container {container:?} is not there: {}", .failure.waiting.message)]
    Image { container: String, failure: ImageFailure },
    #[error("{0}")]
    Refused(String),
    #[error("the Pod is being deleted")]
    Aborted,
}

impl Worker {
    /// Gathers and sets up everything; what is there already is only checked.
    pub(super) async fn prepare(
        &mut self,
        pod: &Pod,
        observed: &Observed,
        abort: &CancellationToken,
    ) -> Result<(), Problem> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let step = tracing::debug_span!(target: "path", "kubelet: objects");
        let gathered = abort.run_until_cancelled(self.gather(pod, namespace)).instrument(step).await;
        let objects = gathered.ok_or(Problem::Aborted)?;
        let now = self.shared.clock.now();
        let step = tracing::debug_span!(target: "path", "kubelet: tokens");
        let fetch = self.tokens.fetch(&self.shared.client, pod, now);
        let fetched = abort.run_until_cancelled(fetch).instrument(step).await;
        let tokens = fetched
            .ok_or(Problem::Aborted)?
            .map_err(|cause| Problem::Token { volume: first_token_volume(pod), cause })?;
        let (runtime_handler, userns) = self.userns(pod, observed, &objects, abort).await?;
        let mount = Box::pin(self.mount_remote(pod, &objects, &userns));
        abort.run_until_cancelled(mount).await.ok_or(Problem::Aborted)??;
        // From here on a change of the objects is a new one.
        (self.is_stale, self.turn_at) = (false, None);
        let setup = Setup {
            shared: std::sync::Arc::clone(&self.shared),
            uid: self.uid.clone(),
            pod: pod.clone(),
            group: self.sizes.largest_pod(pod),
            userns,
            objects,
            tokens,
            runtime_handler,
        };
        let prepared = blocking(move || setup.apply()).await?;
        match prepared {
            Ok(prepared) => {
                self.prepared = Some(prepared);
                self.is_fresh = true;
                Ok(())
            }
            Err(problem) => {
                (self.is_stale, self.is_fresh) = (true, false);
                Err(problem)
            }
        }
    }

    /// The objects that the Pod refers to, and those that its claims are bound to.
    async fn gather(&mut self, pod: &Pod, namespace: &str) -> Snapshot {
        let mut wanted = references(pod);
        // What was bound stays watched: a claim's volume does not change.
        wanted.persistent_volumes = self.objects.persistent_volumes();
        self.shared.objects.hold(namespace, wanted.clone(), &mut self.objects);
        let objects = self.objects.snapshot().await;
        let bound: BTreeSet<String> = bound_volumes(&objects).collect();
        if bound == wanted.persistent_volumes {
            return objects;
        }
        wanted.persistent_volumes = bound;
        self.shared.objects.hold(namespace, wanted, &mut self.objects);
        self.objects.snapshot().await
    }

    /// The runtime handler and the Pod's user namespace; the handler is asked before anything is allocated.
    async fn userns(
        &mut self,
        pod: &Pod,
        observed: &Observed,
        objects: &Snapshot,
        abort: &CancellationToken,
    ) -> Result<(String, PodUserns), Problem> {
        let handler = self.runtime_handler(pod).await?;
        let fence = match plan_wish(pod, self.shared.is_userns_on)? {
            Wish::Unspoken if !self.is_recorded().await? => return Ok((handler, PodUserns::Unspoken)),
            Wish::Unspoken => Fence::by_policy(),
            Wish::Own => {
                check_handler(&self.shared.runtime.borrow().handlers, &handler)?;
                Fence::requested()
            }
            Wish::Policy => {
                let scene = Scene { pod, observed, objects, handler: &handler, abort };
                Box::pin(self.decide_fence(scene)).await?
            }
        };
        if !fence.is_own {
            self.fence = Some(fence);
            return Ok((handler, PodUserns::Node));
        }
        let (ids, uid) = (std::sync::Arc::clone(&self.shared.ids), self.uid.clone());
        let step = tracing::debug_span!(target: "path", "kubelet: host IDs recorded, fsync");
        let mappings = blocking(move || step.in_scope(|| ids.get_or_create(&uid))).await??;
        self.shared.reached(CrashPoint::IdsRecorded);
        self.fence = Some(fence.with_ids(&mappings));
        Ok((handler, PodUserns::Own(mappings)))
    }

    /// Tells of a problem and plans the next try.
    pub(super) fn report_problem(&mut self, pod: &Pod, problem: &Problem) -> Next {
        let (reason, message) = match problem {
            Problem::Aborted => return Next::Again,
            Problem::Refused(message) => return self.refuse(pod, message),
            Problem::Image { container, failure } => {
                let until = self.note_missing_image(pod, container, failure.clone());
                return Next::Wait(until);
            }
            Problem::Userns(_) | Problem::Ids(_) | Problem::Handler(_) => {
                if self.is_fenced(pod) {
                    self.shared.metrics.userns_pods.inc();
                    self.shared.metrics.userns_pods_errors.inc();
                }
                ("FailedCreatePodSandBox", format!("Failed to create pod sandbox: {problem}"))
            }
            Problem::Volume(_) | Problem::Token { .. } => ("FailedMount", problem.to_string()),
            Problem::Cgroup(_) => ("FailedCreatePodContainer", problem.to_string()),
            Problem::Directory(_) | Problem::Blocking(_) | Problem::Namespace { .. } | Problem::Spec(_) => {
                ("FailedSync", problem.to_string())
            }
        };
        self.shared.events.pod(pod, Kind::Warning, reason, message);
        self.retry()
    }
}

fn first_token_volume(pod: &Pod) -> String {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let found = volumes.filter(|volume| {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        sources.into_iter().any(|source| source.service_account_token.is_some())
    });
    found.map(|volume| volume.name.clone()).next().unwrap_or_default()
}

/// Everything the blocking part needs.
struct Setup {
    shared: std::sync::Arc<crate::shared::Shared>,
    uid: crate::uid::PodUid,
    pod: Pod,
    /// The Pod as large as its cgroup must be.
    group: Pod,
    userns: PodUserns,
    objects: crate::object::Snapshot,
    tokens: Tokens,
    runtime_handler: String,
}

impl Setup {
    fn apply(self) -> Result<Prepared, Problem> {
        let places = self.shared.places.of(&self.uid);
        make_directory(places.root(), 0o750).map_err(Problem::Directory)?;
        tracing::debug_span!(target: "path", "kubelet: Pod cgroup")
            .in_scope(|| self.shared.cgroups.apply(&self.uid, &self.group, &self.shared.huge_pages))?;
        self.shared.reached(CrashPoint::CgroupMade);
        let _step = tracing::debug_span!(target: "path", "kubelet: volumes").entered();
        let plans = plan_volumes(PayloadInput {
            pod: &self.pod,
            objects: &self.objects,
            tokens: &self.tokens,
            allocatable: &self.shared.allocatable,
        })?;
        let setup = SetupInput {
            places: &places,
            mappings: self.userns.mappings(),
            fs_group: fs_group(&self.pod),
            probe: &*self.shared.probe,
            now: self.shared.clock.now(),
        };
        let volumes = apply_volumes(setup, &plans)?;
        self.shared.reached(CrashPoint::VolumesPrepared);
        let own_files = self.own_files(places.root())?;
        let Self { userns, objects, runtime_handler, .. } = self;
        Ok(Prepared { userns, volumes, objects, own_files, runtime_handler })
    }

    /// The node agent's own files lie in the Pod's directory.
    fn own_files(&self, root: &Path) -> Result<OwnFiles, Problem> {
        let Some(mappings) = self.userns.mappings() else {
            return Ok(OwnFiles { is_mapped: false, base: 0 });
        };
        if self.shared.probe.can_map(root).map_err(Problem::Directory)? {
            return Ok(OwnFiles { is_mapped: true, base: 0 });
        }
        let base = mappings.uids.first().map_or(0, |line| line.host_id);
        Ok(OwnFiles { is_mapped: false, base })
    }
}

pub(super) fn make_directory(path: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
}
