//! Resizing running containers: whether there is room, and the change itself.

use std::sync::Arc;

use cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use super::{Desired, Worker, blocking};
use crate::event::Kind;
use crate::pod::admission::{NodeFacts, check_capacity, check_room};
use crate::pod::observed::{ContainerRecord, Observed};
use crate::pod::plan::Kill;
use crate::pod::resize::{Pending, needs_restart};
use crate::pod::resource::{amount_of, cgroup_values, oom_score_adj, qos_class};
use crate::pod::sandbox::cri_resources;
use crate::pod::status::phase::Phase;

impl Worker {
    /// The Pod as it is run: with the resources that the node has allocated to it. A changed spec is allocated when
    /// there is room.
    pub(super) fn allocate(&mut self, desired: Desired) -> Desired {
        let pod = &*desired.pod;
        let wants_change = self.sizes.wants_change(pod) && !desired.must_end();
        if !wants_change {
            self.sizes.pending = None;
        } else if let Err(pending) = self.check_resize(pod) {
            if self.sizes.pending.as_ref() != Some(&pending) {
                let reason = if pending.reason == "Deferred" { "ResizeDeferred" } else { "ResizeInfeasible" };
                let text = format!("Pod resize {}: {}", pending.reason, pending.message);
                self.shared.events.pod(pod, Kind::Warning, reason, text);
            }
            self.sizes.pending = Some(pending);
        } else {
            self.sizes.accept(pod);
            self.shared.events.pod(pod, Kind::Normal, "ResizeStarted", "Pod resize started");
        }
        if self.sizes.pending.is_none() {
            return desired;
        }
        Desired { pod: Arc::new(self.sizes.allocated_pod(pod)), ..desired }
    }

    fn check_resize(&self, pod: &Pod) -> Result<(), Pending> {
        let node = NodeFacts {
            name: &self.shared.node_name,
            allocatable: &self.shared.allocatable,
            labels: None,
            features: &[],
        };
        check_capacity(pod, node).map_err(|message| Pending { reason: "Infeasible", message })?;
        let pods = self.shared.registry.pods();
        let is_other = |other: &&Arc<Pod>| {
            let phase = other.status.as_ref().and_then(|status| status.phase.as_deref());
            other.metadata.uid != pod.metadata.uid && Phase::stored_terminal(phase).is_none()
        };
        let others: Vec<&Pod> = pods.iter().filter(is_other).map(|other| &**other).collect();
        check_room(pod, node, &others)
            .map_err(|failure| Pending { reason: "Deferred", message: failure.message })
    }

    /// Gives running containers what they are allocated. Says whether anything was done.
    pub(super) async fn apply_sizes(&mut self, desired: &Desired, observed: &Observed) -> bool {
        let pod = &*desired.pod;
        let changes: Vec<(Container, ResourceRequirements)> = self
            .sizes
            .unapplied(pod)
            .map(|(container, applied)| (container.clone(), applied.clone()))
            .collect();
        if changes.is_empty() {
            return false;
        }
        let mut has_acted = false;
        for (container, applied) in changes {
            let running = observed.latest(&container.name).filter(|record| record.is_running());
            // One that does not run gets its size when it starts.
            let Some(record) = running else { continue };
            if needs_restart(&container, &applied) {
                let (id, name) = (record.id.clone(), container.name.clone());
                let message = format!("Container {name} resize requires restart");
                self.stop_one(desired, observed, &Kill { id, name, message }).await;
                has_acted = true;
                continue;
            }
            if let Err(text) = self.resize_one(pod, &container, &applied, record).await {
                self.note_resize_error(pod, &container.name, &text);
                return has_acted;
            }
            self.sizes.note_applied(&container);
            has_acted = true;
        }
        if self.sizes.unapplied(pod).next().is_none() {
            self.complete_resize(pod).await;
        }
        has_acted
    }

    async fn resize_one(
        &self,
        pod: &Pod,
        container: &Container,
        applied: &ResourceRequirements,
        record: &ContainerRecord,
    ) -> Result<(), String> {
        let amount = amount_of(container);
        let before = amount_of(&Container { resources: Some(applied.clone()), ..Container::default() });
        let is_shrinking = amount.memory_limit > 0
            && (before.memory_limit == 0 || amount.memory_limit < before.memory_limit);
        if is_shrinking {
            let request = v1::ContainerStatsRequest { container_id: record.id.clone() };
            let answer = self.shared.cri.container_stats(request).await.map_err(|error| error.message)?;
            let usage =
                answer.stats.and_then(|stats| stats.memory?.usage_bytes).map_or(0, |usage| usage.value);
            if usage > u64::try_from(amount.memory_limit).unwrap_or_default() {
                return Err(format!(
                    "attempting to set the memory limit ({}) below current usage ({usage}); the limit stays until the container uses less",
                    amount.memory_limit
                ));
            }
        }
        let mut linux = cri_resources(cgroup_values(amount));
        linux.oom_score_adj = oom_score_adj(pod, container, self.shared.memory);
        let request = v1::UpdateContainerResourcesRequest {
            container_id: record.id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        self.shared.cri.update_container_resources(request).await.map(drop).map_err(|error| error.message)
    }

    fn note_resize_error(&mut self, pod: &Pod, container: &str, cause: &str) {
        let text = format!("error resizing container {container}: {cause}");
        if self.sizes.error.as_ref() != Some(&text) {
            self.shared.events.pod(pod, Kind::Warning, "ResizeError", text.clone());
        }
        self.sizes.error = Some(text);
    }

    /// The Pod's cgroup follows its containers.
    async fn complete_resize(&mut self, pod: &Pod) {
        self.sizes.error = None;
        let (shared, uid, owned) = (Arc::clone(&self.shared), self.uid.clone(), pod.clone());
        match blocking(move || shared.cgroups.apply(&uid, &owned, &shared.huge_pages)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(pod = %self.uid, %error, class = qos_class(pod).as_str(), "the Pod's cgroup is not resized");
            }
            Err(error) => tracing::warn!(pod = %self.uid, %error, "the Pod's cgroup is not resized"),
        }
        self.shared.events.pod(pod, Kind::Normal, "ResizeCompleted", "Pod resize completed");
    }
}
