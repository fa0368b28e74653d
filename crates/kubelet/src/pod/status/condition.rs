//! A Pod's conditions, in the order that users know from `kubectl describe`. Conditions of others are kept.

use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition};

use super::StatusInput;
use super::container::ContainerStatuses;
use super::phase::Phase;
use crate::clock::api_time;
use crate::fence::{CONDITION, Fence};
use crate::pod::restart_all;

const READY_TO_START: &str = "PodReadyToStartContainers";
const INITIALIZED: &str = "Initialized";
const READY: &str = "Ready";
const CONTAINERS_READY: &str = "ContainersReady";
const SCHEDULED: &str = "PodScheduled";
const RESIZE_PENDING: &str = "PodResizePending";
const RESIZE_IN_PROGRESS: &str = "PodResizeInProgress";
/// The node ends the Pod.
const DISRUPTION: &str = "DisruptionTarget";

/// The reason of a disruption that is the node agent's own doing.
const BY_KUBELET: &str = "TerminationByKubelet";

/// How the types begin that are this project's own.
const OURS: &str = "kakoi.dev/";

/// Whether the node agent writes this condition; others' are only kept.
pub(crate) fn is_own(condition: &PodCondition) -> bool {
    const OWN: [&str; 8] = [
        READY_TO_START,
        INITIALIZED,
        READY,
        CONTAINERS_READY,
        SCHEDULED,
        RESIZE_PENDING,
        RESIZE_IN_PROGRESS,
        restart_all::CONDITION,
    ];
    let type_ = condition.type_.as_str();
    OWN.contains(&type_)
        || type_.starts_with(OURS)
        || (type_ == DISRUPTION && condition.reason.as_deref() == Some(BY_KUBELET))
}

/// A condition before times are added.
struct Claim<'a> {
    type_: &'static str,
    holds: bool,
    reason: Option<&'a str>,
    message: Option<String>,
}

impl<'a> Claim<'a> {
    fn holds(type_: &'static str) -> Self {
        Self { type_, holds: true, reason: None, message: None }
    }

    fn fails(type_: &'static str, reason: &'a str, message: Option<String>) -> Self {
        Self { type_, holds: false, reason: Some(reason), message }
    }
}

/// Plans all conditions: the kubelet's own first, then those that others wrote.
pub(crate) fn plan_conditions(
    input: StatusInput<'_>,
    phase: Phase,
    statuses: &ContainerStatuses,
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(phase, statuses);
    let mut claims = vec![
        ready_to_start(input),
        initialized(input, phase, statuses),
        ready(input, &containers_ready),
        containers_ready,
        Claim::holds(SCHEDULED),
    ];
    claims.extend(restarting(input, phase));
    claims.extend(input.fence.map(user_namespace));
    claims.extend(resize(input));
    claims.extend(disruption(input));
    let is_claimed = |type_: &str| claims.iter().any(|claim| claim.type_ == type_);
    // What was decided before a restart of the node agent holds until it is decided again.
    let is_kept = |condition: &&PodCondition| {
        !is_claimed(&condition.type_) && (!is_own(condition) || condition.type_.starts_with(OURS))
    };
    let foreign: Vec<PodCondition> =
        input.previous.conditions.iter().flatten().filter(is_kept).cloned().collect();
    claims.iter().map(|claim| with_times(input, claim)).chain(foreign).collect()
}

/// The time of the last change is kept as long as the status is the same.
fn with_times(input: StatusInput<'_>, claim: &Claim<'_>) -> PodCondition {
    let status = if claim.holds { "True" } else { "False" };
    let before = input.previous.conditions.iter().flatten().find(|condition| condition.type_ == claim.type_);
    let kept = before
        .filter(|before| before.status == status)
        .and_then(|before| before.last_transition_time.clone());
    PodCondition {
        type_: claim.type_.to_owned(),
        status: status.to_owned(),
        reason: claim.reason.map(str::to_owned),
        message: claim.message.clone(),
        last_transition_time: Some(kept.unwrap_or_else(|| api_time(input.now))),
        last_probe_time: before.and_then(|before| before.last_probe_time.clone()),
        observed_generation: input.pod.metadata.generation,
    }
}

/// Whether the Pod has a user namespace of its own, with which IDs, and why.
fn user_namespace(fence: &Fence) -> Claim<'_> {
    let message = Some(fence.message.clone());
    Claim { type_: CONDITION, holds: fence.is_own, reason: Some(&fence.reason), message }
}

/// Whether all containers are being restarted; absent of a Pod that no rule can restart so.
fn restarting(input: StatusInput<'_>, phase: Phase) -> Option<Claim<'static>> {
    input.pod.spec.as_ref().filter(|spec| restart_all::could_restart_all(spec))?;
    let fails = |reason| Claim { holds: false, reason, message: None, type_: restart_all::CONDITION };
    Some(match phase {
        Phase::Succeeded => fails(Some("PodCompleted")),
        Phase::Failed => fails(Some("PodFailed")),
        Phase::Pending | Phase::Running
            if restart_all::is_restarting(input.pod, input.observed, input.previous) =>
        {
            let message = Some("container exited with restart policy rule".to_owned());
            let reason = Some("RestartAllContainersStarted");
            Claim { reason, message, ..Claim::holds(restart_all::CONDITION) }
        }
        Phase::Pending | Phase::Running => fails(None),
    })
}

/// Conditions of a resize that waits or goes on; absent without one.
fn resize(input: StatusInput<'_>) -> Vec<Claim<'_>> {
    let sizes = input.sizes;
    let holds = |type_, reason, message| Claim { reason, message, ..Claim::holds(type_) };
    let pending = sizes
        .pending
        .as_ref()
        .map(|pending| holds(RESIZE_PENDING, Some(pending.reason), Some(pending.message.clone())));
    let is_going_on = sizes.unapplied(input.pod).next().is_some() && !input.has_ended;
    let progress = is_going_on.then(|| {
        let error = sizes.error.clone();
        holds(RESIZE_IN_PROGRESS, error.as_ref().map(|_| "Error"), error)
    });
    pending.into_iter().chain(progress).collect()
}

/// That the node ended the Pod for want of something.
fn disruption(input: StatusInput<'_>) -> Option<Claim<'static>> {
    let failure = input.failure?;
    let is_terminated = matches!(failure.reason.as_str(), "Evicted" | "Terminated");
    is_terminated.then(|| Claim {
        reason: Some(BY_KUBELET),
        message: Some(failure.message.clone()),
        ..Claim::holds(DISRUPTION)
    })
}

fn ready_to_start(input: StatusInput<'_>) -> Claim<'static> {
    let has_address = |ips: &[String], host: bool| host || !ips.is_empty();
    let ready = input.observed.ready_sandbox();
    let holds = ready.is_some_and(|sandbox| has_address(&sandbox.ips, sandbox.uses_host_network));
    Claim { type_: READY_TO_START, holds, reason: None, message: None }
}

fn initialized(input: StatusInput<'_>, phase: Phase, statuses: &ContainerStatuses) -> Claim<'static> {
    let spec = input.pod.spec.as_ref();
    let is_sidecar = |name: &str| {
        let mut containers = spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
        containers
            .any(|container| container.name == name && container.restart_policy.as_deref() == Some("Always"))
    };
    let began = statuses.main.iter().any(|status| {
        let running = status.state.as_ref().is_some_and(|state| state.running.is_some());
        running || status.last_state.as_ref().is_some_and(|state| state.terminated.is_some())
    });
    let incomplete: Vec<&str> = statuses
        .init
        .iter()
        .filter(|status| if is_sidecar(&status.name) { status.started != Some(true) } else { !status.ready })
        .map(|status| status.name.as_str())
        .collect();
    if phase == Phase::Succeeded {
        return Claim { reason: Some("PodCompleted"), ..Claim::holds(INITIALIZED) };
    }
    if incomplete.is_empty() || began {
        return Claim::holds(INITIALIZED);
    }
    let text = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    Claim::fails(INITIALIZED, "ContainersNotInitialized", Some(text))
}

fn containers_ready(phase: Phase, statuses: &ContainerStatuses) -> Claim<'static> {
    match phase {
        Phase::Succeeded => return Claim::fails(CONTAINERS_READY, "PodCompleted", None),
        Phase::Failed => return Claim::fails(CONTAINERS_READY, "PodFailed", None),
        Phase::Pending | Phase::Running => {}
    }
    let name = |status: &ContainerStatus| status.name.clone();
    let unready: Vec<String> = statuses.main.iter().filter(|status| !status.ready).map(name).collect();
    if unready.is_empty() && !statuses.main.is_empty() {
        return Claim::holds(CONTAINERS_READY);
    }
    let text = format!("containers with unready status: [{}]", unready.join(" "));
    Claim::fails(CONTAINERS_READY, "ContainersNotReady", Some(text))
}

/// Ready when the containers are and every readiness gate holds.
fn ready(input: StatusInput<'_>, containers_ready: &Claim<'static>) -> Claim<'static> {
    if !containers_ready.holds {
        return Claim {
            type_: READY,
            holds: false,
            message: containers_ready.message.clone(),
            ..*containers_ready
        };
    }
    let gates = input.pod.spec.iter().flat_map(|spec| spec.readiness_gates.iter().flatten());
    let conditions = || input.previous.conditions.iter().flatten();
    let unmet: Vec<String> = gates
        .filter_map(|gate| {
            let type_ = &gate.condition_type;
            match conditions().find(|condition| condition.type_ == *type_) {
                None => {
                    Some(format!("corresponding condition of pod readiness gate \"{type_}\" does not exist."))
                }
                Some(condition) if condition.status != "True" => Some(format!(
                    "the status of pod readiness gate \"{type_}\" is not \"True\", but {}",
                    condition.status
                )),
                Some(_) => None,
            }
        })
        .collect();
    if unmet.is_empty() {
        return Claim::holds(READY);
    }
    Claim::fails(READY, "ReadinessGatesNotReady", Some(unmet.join(", ")))
}
