//! The decision whether a Pod that does not say `hostUsers: false` gets a user namespace: made once, at its first
//! sandbox, and kept until the Pod is gone. What was decided and recorded before is never asked again.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Namespace, Pod};
use kube::{Api, Error};
use tokio_util::sync::CancellationToken;
use userns::policy::{Decision, NodeFacts, POLICY_LABEL, Policy, Question, Reason, decide};

use super::prepare::{Problem, make_directory};
use super::{Next, Worker, blocking};
use crate::event::Kind;
use crate::fence::{Fence, explain, facts_of, has_driver, node_volumes, probe_volumes};
use crate::metrics::DecisionLabels;
use crate::object::Snapshot;
use crate::pod::observed::Observed;
use crate::pod::status::Failure;
use crate::userns::{UsernsError, check_handler};

/// Why a Pod failed that the policy does not let run.
const REFUSED: &str = "UserNamespaceRefused";
/// How long a static Pod waits for the API to say what its namespace asks for.
const STATIC_PATIENCE: Duration = Duration::from_secs(5);
/// Marks Pods that do not come from the API; it may not be there when they start.
const SOURCE: &str = "kubernetes.io/config.source";

/// What a decision may look at.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    pub(super) pod: &'a Pod,
    pub(super) observed: &'a Observed,
    pub(super) objects: &'a Snapshot,
    /// The runtime handler's name; empty for the default one.
    pub(super) handler: &'a str,
    pub(super) abort: &'a CancellationToken,
}

impl Worker {
    /// Whether the Pod has, or asks for, a user namespace of its own.
    pub(super) fn is_fenced(&self, pod: &Pod) -> bool {
        let asks = pod.spec.as_ref().and_then(|spec| spec.host_users) == Some(false);
        asks || self.fence.as_ref().is_some_and(|fence| fence.is_own)
    }

    /// Whether the Pod has a record of IDs.
    pub(super) async fn is_recorded(&self) -> Result<bool, Problem> {
        let (ids, uid) = (std::sync::Arc::clone(&self.shared.ids), self.uid.clone());
        Ok(blocking(move || ids.is_recorded(&uid)).await?)
    }

    /// What was decided, or is decided now.
    pub(super) async fn decide_fence(&mut self, scene: Scene<'_>) -> Result<Fence, Problem> {
        let pod = scene.pod;
        if let Some(fence) = self.fence.clone().filter(|fence| !fence.is_own) {
            return Ok(fence);
        }
        if self.is_recorded().await? {
            return Ok(Fence::by_policy());
        }
        let directory = self.shared.places.of(&self.uid).root().to_owned();
        let read = directory.clone();
        if let Some(kept) = blocking(move || Fence::read_exemption(&read)).await? {
            return Ok(kept);
        }
        if !scene.observed.sandboxes.is_empty() {
            return Ok(Fence::found_running());
        }
        let policy = self.policy_for(pod).await?;
        let facts = facts_of(pod)?;
        let nothing = NodeFacts::default();
        let question = Question { pod: &facts, policy, ids_per_pod: self.shared.ids_per_pod, node: &nothing };
        let node = self.node_facts(scene, question).await?;
        let decision = decide(Question { node: &node, ..question });
        let fence = self.settle(scene, policy, &decision)?;
        if !fence.is_own {
            let exemption = fence.clone();
            let written = blocking(move || {
                make_directory(&directory, 0o750)?;
                exemption.write_exemption(&directory)
            });
            written.await?.map_err(Problem::Directory)?;
        }
        Ok(fence)
    }

    /// Counts and tells what was decided.
    fn settle(&self, scene: Scene<'_>, policy: Policy, decision: &Decision) -> Result<Fence, Problem> {
        let labels = DecisionLabels {
            policy: policy.as_str(),
            outcome: decision.outcome(),
            reason: decision.reason(),
        };
        self.shared.metrics.userns_decisions.get_or_create(&labels).inc();
        match decision {
            Decision::Fenced(_) => Ok(Fence::by_policy()),
            Decision::Exempt(found) => {
                let fence = Fence::exempt(decision.reason(), found);
                let is_told = policy != Policy::OptIn && decision.reason() != Reason::HostUsersTrue.name();
                if is_told {
                    let text = format!("Runs with {}", fence.message);
                    self.shared.events.pod(scene.pod, Kind::Normal, "UserNamespaceExempt", text);
                }
                Ok(fence)
            }
            // The node may be mended: the Pod waits for it.
            Decision::Refused(found) if found.iter().all(|finding| finding.reason == Reason::Handler) => {
                check_handler(&self.shared.runtime.borrow().handlers, scene.handler)?;
                Err(Problem::Refused(explain(found)))
            }
            Decision::Refused(found) => Err(Problem::Refused(explain(found))),
        }
    }

    /// A Pod that the policy does not let run fails at once, with nothing made for it.
    pub(super) fn refuse(&mut self, pod: &Pod, why: &str) -> Next {
        let text = format!("the policy `{}` lets no Pod run with the node's IDs: {why}", Policy::Always);
        self.shared.events.pod(pod, Kind::Warning, REFUSED, text.clone());
        self.failure =
            Some(Failure { reason: REFUSED.to_owned(), message: format!("Pod was rejected: {text}") });
        self.is_over = true;
        Next::Again
    }

    /// The node's policy, or what the namespace's label says instead.
    async fn policy_for(&self, pod: &Pod) -> Result<Policy, Problem> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<Namespace> = Api::all(self.shared.client.clone());
        let own = self.shared.userns_policy;
        // A server that takes a request and never answers must not keep a static Pod from starting.
        let patience = if is_static(pod) { STATIC_PATIENCE } else { Duration::MAX };
        let Ok(found) = tokio::time::timeout(patience, api.get(namespace)).await else {
            tracing::warn!(
                namespace,
                ?patience,
                "the API does not answer: the node's own policy holds for static Pods"
            );
            return Ok(own);
        };
        let found = match found {
            Ok(found) => found,
            Err(Error::Api(status)) if matches!(status.code, 403 | 404) => {
                tracing::warn!(namespace, %status, "the namespace can't be read: the node's own policy holds");
                return Ok(own);
            }
            Err(error) if is_static(pod) => {
                tracing::warn!(namespace, %error, "the API does not answer: the node's own policy holds for static Pods");
                return Ok(own);
            }
            Err(cause) => return Err(Problem::Namespace { namespace: namespace.to_owned(), cause }),
        };
        let label = found.metadata.labels.as_ref().and_then(|labels| labels.get(POLICY_LABEL));
        Ok(own.in_force(label.map(String::as_str), true).unwrap_or_else(|error| {
            let text = format!(
                "the label {POLICY_LABEL} of the namespace {namespace}: {error}; the node's `{own}` holds"
            );
            self.shared.events.pod(pod, Kind::Warning, "UserNamespacePolicy", text);
            own
        }))
    }

    /// What only the node can tell, where it matters for the decision.
    async fn node_facts(&mut self, scene: Scene<'_>, question: Question<'_>) -> Result<NodeFacts, Problem> {
        let says = scene.pod.spec.as_ref().and_then(|spec| spec.host_users);
        if question.policy == Policy::OptIn || says.is_some() {
            return Ok(NodeFacts::default());
        }
        let handler = self.handler_problem(scene.handler);
        let places = self.shared.places.of(&self.uid);
        let volumes = match node_volumes(scene.pod, scene.objects, &places) {
            Ok(volumes) => volumes,
            // What the Pod says decides alone: its claims need not be waited for.
            Err(_) if !matches!(decide(question), Decision::Fenced(_)) => Vec::new(),
            Err(waits) => return Err(waits.into()),
        };
        if has_driver(&volumes) && matches!(decide(question), Decision::Fenced(_)) {
            let publish = Box::pin(self.publish_csi(scene.pod, scene.objects));
            scene.abort.run_until_cancelled(publish).await.ok_or(Problem::Aborted)??;
        }
        let shared = std::sync::Arc::clone(&self.shared);
        let volumes = blocking(move || probe_volumes(&volumes, &*shared.probe)).await?;
        let image_users = self.image_users(scene).await?;
        Ok(NodeFacts { handler, image_users, volumes })
    }

    /// Why the Pod's handler makes no user namespaces.
    fn handler_problem(&self, name: &str) -> Option<String> {
        let runtime = self.shared.runtime.borrow();
        let error = check_handler(&runtime.handlers, name).err()?;
        Some(match (error, runtime.userns_problem.as_str()) {
            (UsernsError::Runtime(_), problem) if !problem.is_empty() => {
                format!("the node's container runtime ({problem})")
            }
            (UsernsError::Handler(name, detail), _) => format!("the runtime handler `{name}`{detail}"),
            (UsernsError::Runtime(detail), _) => format!("the node's container runtime{detail}"),
            (UsernsError::GateOff, _) => "the node's container runtime".to_owned(),
        })
    }

    /// The numeric users of the containers' images. An image that is not there is pulled: what it says counts.
    async fn image_users(&mut self, scene: Scene<'_>) -> Result<Vec<(String, i64)>, Problem> {
        let spec = scene.pod.spec.as_ref();
        let inits = spec.and_then(|spec| spec.init_containers.as_deref()).unwrap_or_default();
        let mains = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let mut users = Vec::new();
        for list in [inits, mains] {
            for container in list {
                let user = self.image_user(scene, container).await?;
                users.extend(user.map(|user| (container.name.clone(), user)));
            }
        }
        Ok(users)
    }

    async fn image_user(&mut self, scene: Scene<'_>, container: &Container) -> Result<Option<i64>, Problem> {
        // What can't be looked up is told by the container's start.
        let Ok(found) = self.shared.puller.find(container).await else { return Ok(None) };
        if let Some(image) = found {
            return Ok(image.user.uid);
        }
        if container.image_pull_policy.as_deref() == Some("Never") {
            return Ok(None);
        }
        let pull = self.ensure_image(scene.pod, container, scene.objects, scene.abort);
        let pulled = Box::pin(pull).await.ok_or(Problem::Aborted)?;
        let image =
            pulled.map_err(|failure| Problem::Image { container: container.name.clone(), failure })?;
        let user = image.user.uid;
        self.fetched.insert(container.name.clone(), image);
        Ok(user)
    }
}

/// Whether the Pod comes from a file of the node and not from the API.
pub(super) fn is_static(pod: &Pod) -> bool {
    let source = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SOURCE));
    source.is_some_and(|source| source != "api")
}
