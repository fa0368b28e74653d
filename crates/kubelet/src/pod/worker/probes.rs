//! Probes of the Pod's containers, and the hooks of their lives.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};

use super::stage::Stage;
use super::{Desired, Worker};
use crate::event::Kind;
use crate::fault::CrashPoint;
use crate::pod::ephemeral::find;
use crate::pod::observed::Observed;
use crate::pod::restart::is_sidecar;
use crate::probe::{Attempt, ProbeTools, Running, attempt_hook};
use crate::runtime::CriError;

impl Worker {
    /// Probes the running containers of a Pod that is meant to run, and no others.
    pub(super) fn follow_probes(&mut self, desired: &Desired, observed: &Observed) {
        let is_meant_to_run = self.stage == Stage::Running && !desired.must_end();
        let containers = if is_meant_to_run { probed(desired) } else { Vec::new() };
        let runtime = self.shared.runtime.borrow().name.clone();
        let lists = [&self.status.container_statuses, &self.status.init_container_statuses];
        let statuses: Vec<&ContainerStatus> = lists.into_iter().flatten().flatten().collect();
        let running = containers.into_iter().filter_map(|container| {
            let record = observed.latest(&container.name).filter(|record| record.is_running())?;
            let id = Some(format!("{runtime}://{}", record.id));
            let before = statuses.iter().find(|status| status.container_id == id);
            let before = before.map(|status| (status.ready, status.started == Some(true)));
            Some(Running { container, id: &record.id, before })
        });
        let running: Vec<Running<'_>> = running.collect();
        let is_host = desired.pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
        let ips = if is_host { &self.shared.host_ips } else { observed.pod_ips() };
        let tools = ProbeTools {
            cri: self.shared.cri.clone(),
            events: self.shared.events.clone(),
            pod: Arc::clone(&desired.pod),
            pod_ip: ips.first().cloned().unwrap_or_default(),
            wake: Arc::clone(&self.wake),
        };
        self.prober.follow(&running, &tools);
    }

    /// Runs the `postStart` hook of a container that has just started; the error is the hook's.
    pub(super) async fn post_start(
        &self,
        container: &Container,
        container_id: &str,
        observed: &Observed,
    ) -> Result<(), String> {
        let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref())
        else {
            return Ok(());
        };
        let attempt = self.attempt(container, container_id, observed, LONGEST_HOOK);
        attempt_hook(attempt, hook).await
    }

    /// Ends a container: its `preStop` hook first, then SIGTERM; both together within `grace`.
    pub(super) async fn stop(
        &self,
        pod: &Pod,
        observed: &Observed,
        (name, id): (&str, &str),
        grace: Duration,
    ) -> Result<(), CriError> {
        let begun = tokio::time::Instant::now();
        let container = find(pod, name);
        let lifecycle = container.as_ref().and_then(|container| container.lifecycle.as_ref());
        let hook = lifecycle.and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        if let (Some(container), Some(hook)) = (container.as_deref(), hook) {
            let attempt = self.attempt(container, id, observed, grace);
            if let Err(text) = attempt_hook(attempt, hook).await {
                tracing::debug!(pod = %self.uid, container = name, text, "preStop hook failed");
                self.tell_container(
                    pod,
                    name,
                    Kind::Warning,
                    "FailedPreStopHook",
                    "PreStopHook failed".to_owned(),
                );
            }
        }
        self.shared.reached(CrashPoint::PreStopRun);
        let left =
            if hook.is_some() { grace.saturating_sub(begun.elapsed()).max(LEAST_GRACE) } else { grace };
        self.shared.cri.stop_container(id, left).await?;
        self.shared.reached(CrashPoint::ContainerStopped);
        Ok(())
    }

    fn attempt<'a>(
        &'a self,
        container: &'a Container,
        container_id: &'a str,
        observed: &'a Observed,
        timeout: Duration,
    ) -> Attempt<'a> {
        let pod_ip = observed.pod_ips().first().or_else(|| self.shared.host_ips.first());
        let pod_ip = pod_ip.map(String::as_str).unwrap_or_default();
        Attempt { cri: &self.shared.cri, container, container_id, pod_ip, timeout }
    }
}

/// A `postStart` hook may take as long as the runtime lets a command run.
const LONGEST_HOOK: Duration = Duration::from_mins(2);
/// What a container gets after its `preStop` hook at the least.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// Main containers and sidecars that have a probe.
fn probed(desired: &Desired) -> Vec<&Container> {
    let spec = desired.pod.spec.iter();
    let containers = spec.flat_map(|spec| {
        spec.init_containers.iter().flatten().filter(|init| is_sidecar(init)).chain(&spec.containers)
    });
    let has_probe = |container: &&Container| {
        let probes = [&container.startup_probe, &container.readiness_probe, &container.liveness_probe];
        probes.into_iter().any(Option::is_some)
    };
    containers.filter(has_probe).collect()
}
