//! The phase: one word for where a Pod stands. Source: "Pod Lifecycle" page and upstream's `getPhase`.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodSpec};

use super::StatusInput;
use super::container::ContainerStatuses;
use crate::pod::restart::{RestartPolicy, is_sidecar, restarts_after};
use crate::pod::restart_all::{could_restart_all, is_restarting};

/// A Pod's phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    /// The word that the API uses.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    /// No container of the Pod will ever run again.
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }

    /// The terminal phase that a stored status has, if it has one.
    pub(crate) fn stored_terminal(phase: Option<&str>) -> Option<Self> {
        match phase {
            Some("Succeeded") => Some(Self::Succeeded),
            Some("Failed") => Some(Self::Failed),
            _ => None,
        }
    }
}

/// Where one container stands, as the phase counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Waiting,
    Running,
    Stopped { exit_code: i32, restarts: bool },
}

fn standing(pod: &Pod, container: &Container, status: Option<&ContainerStatus>) -> Standing {
    let state = status.and_then(|status| status.state.as_ref());
    if state.is_some_and(|state| state.running.is_some()) {
        return Standing::Running;
    }
    let last = status.and_then(|status| status.last_state.as_ref()).and_then(|last| last.terminated.as_ref());
    let ended = state.and_then(|state| state.terminated.as_ref()).or(last);
    ended.map_or(Standing::Waiting, |ended| Standing::Stopped {
        exit_code: ended.exit_code,
        restarts: restarts_after(RestartPolicy::of(pod, container), container, ended.exit_code),
    })
}

/// Plans the phase. A terminal phase is final.
pub(crate) fn plan_phase(input: StatusInput<'_>, statuses: &ContainerStatuses) -> Phase {
    if input.failure.is_some() {
        return Phase::Failed;
    }
    if let Some(terminal) = Phase::stored_terminal(input.previous.phase.as_deref()) {
        return terminal;
    }
    let Some(spec) = &input.pod.spec else { return Phase::Pending };
    // All containers begin again (KEP-5532): those that have not yet done so have not ended for good.
    if !input.has_ended && could_restart_all(spec) && begins_again(input, spec) {
        return Phase::Pending;
    }
    let (pending, failed) =
        init_counts(input.pod, spec.init_containers.as_deref().unwrap_or_default(), statuses);
    if failed && (input.has_ended || RestartPolicy::of_pod(input.pod) == RestartPolicy::Never) {
        return Phase::Failed;
    }
    let standings: Vec<Standing> = spec
        .containers
        .iter()
        .map(|container| standing(input.pod, container, statuses.main(&container.name)))
        .collect();
    let none_began = standings.iter().all(|standing| *standing == Standing::Waiting);
    if input.has_ended {
        return phase_at_end(&standings);
    }
    if (pending || failed) && none_began || standings.contains(&Standing::Waiting) {
        return Phase::Pending;
    }
    phase_of_started(&standings)
}

/// All containers are being restarted, or have been and not all run yet.
fn begins_again(input: StatusInput<'_>, spec: &PodSpec) -> bool {
    let is_absent = |container: &Container| input.observed.latest(&container.name).is_none();
    is_restarting(input.pod, input.observed, input.previous) || spec.containers.iter().any(is_absent)
}

/// All containers have begun at least once.
fn phase_of_started(standings: &[Standing]) -> Phase {
    let is_alive = |standing: &Standing| !matches!(standing, Standing::Stopped { restarts: false, .. });
    if standings.iter().any(is_alive) { Phase::Running } else { phase_at_end(standings) }
}

fn phase_at_end(standings: &[Standing]) -> Phase {
    let succeeded = |standing: &Standing| matches!(standing, Standing::Stopped { exit_code: 0, .. });
    if !standings.is_empty() && standings.iter().all(succeeded) { Phase::Succeeded } else { Phase::Failed }
}

/// `(some init container has not finished, some init container failed)`.
fn init_counts(pod: &Pod, containers: &[Container], statuses: &ContainerStatuses) -> (bool, bool) {
    let mut counts = (false, false);
    for container in containers {
        let status = statuses.init(&container.name);
        if is_sidecar(container) {
            counts.0 |= status.is_none_or(|status| status.started != Some(true));
            continue;
        }
        match standing(pod, container, status) {
            Standing::Stopped { exit_code: 0, .. } => {}
            Standing::Waiting | Standing::Running | Standing::Stopped { restarts: true, .. } => {
                counts.0 = true;
            }
            Standing::Stopped { .. } => counts.1 = true,
        }
    }
    counts
}
