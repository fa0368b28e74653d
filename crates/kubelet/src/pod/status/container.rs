//! The statuses of a Pod's containers: what runs, what ran before it, why something waits.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, ContainerUser, LinuxContainerUser, Pod, PodSpec,
};

use super::StatusInput;
use crate::clock::api_time;
use crate::pod::ephemeral::{as_container, ephemeral_containers};
use crate::pod::observed::{ContainerRecord, Stage};
use crate::pod::restart::{is_sidecar, must_start};
use crate::pod::restart_all;

/// Exit code of a container whose real one nobody knows.
const UNKNOWN_EXIT_CODE: i32 = 137;

/// Which list of the spec a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Init,
    Main,
    Ephemeral,
}

/// Statuses of the spec's lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ContainerStatuses {
    pub(crate) init: Vec<ContainerStatus>,
    pub(crate) main: Vec<ContainerStatus>,
    pub(crate) ephemeral: Vec<ContainerStatus>,
}

impl ContainerStatuses {
    /// The status of an init container.
    pub(crate) fn init(&self, name: &str) -> Option<&ContainerStatus> {
        self.init.iter().find(|status| status.name == name)
    }

    /// The status of a main container.
    pub(crate) fn main(&self, name: &str) -> Option<&ContainerStatus> {
        self.main.iter().find(|status| status.name == name)
    }
}

/// Plans the statuses: init containers in the spec's order, the others by name.
pub(crate) fn plan_container_statuses(input: StatusInput<'_>) -> ContainerStatuses {
    let Some(spec) = input.pod.spec.as_ref().filter(|_| !is_rejected(input)) else {
        return ContainerStatuses::default();
    };
    let init_list = spec.init_containers.as_deref().unwrap_or_default();
    let init_before = input.previous.init_container_statuses.as_deref().unwrap_or_default();
    let main_before = input.previous.container_statuses.as_deref().unwrap_or_default();
    let waits = if init_list.is_empty() { "ContainerCreating" } else { "PodInitializing" };
    let init = init_list.iter().map(|container| {
        plan_one(input, container, find(init_before, container), "PodInitializing", List::Init)
    });
    let main = spec
        .containers
        .iter()
        .map(|container| plan_one(input, container, find(main_before, container), waits, List::Main));
    let ephemeral = plan_ephemeral(input, spec, waits);
    let mut statuses = ContainerStatuses { init: init.collect(), main: main.collect(), ephemeral };
    statuses.main.sort_by(|a, b| a.name.cmp(&b.name));
    statuses
}

/// An ephemeral container is never ready and never starts twice.
fn plan_ephemeral(input: StatusInput<'_>, spec: &PodSpec, waits: &str) -> Vec<ContainerStatus> {
    let before = input.previous.ephemeral_container_statuses.as_deref().unwrap_or_default();
    let planned = ephemeral_containers(spec).map(|ephemeral| {
        let container = as_container(ephemeral);
        let status = plan_one(input, &container, find(before, &container), waits, List::Ephemeral);
        ContainerStatus { ready: false, started: None, ..status }
    });
    let mut statuses: Vec<ContainerStatus> = planned.collect();
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    statuses
}

/// Refused before anything was made for it: as with upstream, it has no container to speak of, and `kubectl get` shows
/// the Pod's own reason.
fn is_rejected(input: StatusInput<'_>) -> bool {
    let nothing = |statuses: &Option<Vec<ContainerStatus>>| statuses.as_ref().is_none_or(Vec::is_empty);
    input.failure.is_some()
        && input.observed.containers.is_empty()
        && nothing(&input.previous.container_statuses)
        && nothing(&input.previous.init_container_statuses)
}

fn find<'a>(list: &'a [ContainerStatus], container: &Container) -> Option<&'a ContainerStatus> {
    list.iter().find(|status| status.name == container.name)
}

fn plan_one(
    input: StatusInput<'_>,
    container: &Container,
    before: Option<&ContainerStatus>,
    default_reason: &str,
    list: List,
) -> ContainerStatus {
    let mut history = input.observed.history(&container.name);
    let mut status = match history.next() {
        Some(latest) => from_records(input, container, latest, history.next(), before),
        None => without_record(input, container, before, default_reason, list),
    };
    let is_init = list == List::Init;
    let finished = status.state.as_ref().and_then(|state| state.terminated.as_ref());
    let init_is_done = is_init && !is_sidecar(container) && finished.is_some_and(|end| end.exit_code == 0);
    let running = status.state.as_ref().is_some_and(|state| state.running.is_some());
    let latest = input.observed.latest(&container.name);
    let will_run = match list {
        List::Ephemeral => latest.is_none(),
        List::Init | List::Main => must_start(input.pod, container, latest),
    };
    if let Some(waiting) =
        input.waiting.get(&container.name).filter(|_| will_run && !init_is_done && !input.has_ended)
    {
        if finished.is_some() {
            status.last_state.clone_from(&status.state);
        }
        status.state = Some(waiting_state(&waiting.reason, &waiting.message));
    }
    let id = input.observed.latest(&container.name).map(|record| record.id.as_str()).unwrap_or_default();
    status.started = Some(running && input.probes.has_started(container, id));
    status.ready = if is_init && !is_sidecar(container) {
        init_is_done
    } else {
        running && !is_terminal(input) && input.probes.is_ready(container, id)
    };
    status
}

fn is_terminal(input: StatusInput<'_>) -> bool {
    input.has_ended || input.failure.is_some()
}

fn from_records(
    input: StatusInput<'_>,
    container: &Container,
    latest: &ContainerRecord,
    older: Option<&ContainerRecord>,
    before: Option<&ContainerStatus>,
) -> ContainerStatus {
    let state = state_of(input, latest);
    let mut sized = ContainerStatus::default();
    input.sizes.show(container, &mut sized);
    let last_state = older
        .filter(|record| record.stage == Stage::Exited)
        .map(|record| state_of(input, record))
        .or_else(|| before.and_then(|before| before.last_state.clone()))
        .unwrap_or_default();
    ContainerStatus {
        name: container.name.clone(),
        state: Some(state),
        last_state: Some(last_state),
        restart_count: latest.restart_count,
        image: latest.image.clone(),
        image_id: latest.image_id.clone(),
        container_id: Some(container_id(input, latest)),
        user: latest.user.as_ref().map(|user| ContainerUser {
            linux: Some(LinuxContainerUser {
                uid: user.uid,
                gid: user.gid,
                supplemental_groups: Some(user.supplemental_groups.clone())
                    .filter(|groups| !groups.is_empty()),
            }),
        }),
        stop_signal: latest.stop_signal.clone(),
        ..sized
    }
}

fn container_id(input: StatusInput<'_>, record: &ContainerRecord) -> String {
    format!("{}://{}", input.runtime, record.id)
}

fn state_of(input: StatusInput<'_>, record: &ContainerRecord) -> ContainerState {
    let time = |at: Option<jiff::Timestamp>| at.map(api_time);
    match record.stage {
        Stage::Running => {
            let started_at = time(record.started_at);
            ContainerState {
                running: Some(ContainerStateRunning { started_at }),
                ..ContainerState::default()
            }
        }
        Stage::Created => waiting_state("ContainerCreating", ""),
        Stage::Exited => ended(ContainerStateTerminated {
            exit_code: record.exit_code,
            reason: Some(record.reason.clone()).filter(|text| !text.is_empty()),
            message: Some(record.message.clone()).filter(|text| !text.is_empty()),
            // One that was never started has the time it was made, so that no client shows the year 1.
            started_at: time(record.started_at.or(record.created_at)),
            finished_at: time(record.finished_at),
            container_id: Some(container_id(input, record)),
            signal: None,
        }),
        Stage::Unknown => ended(unknown_end("The container could not be located by the runtime")),
    }
}

fn unknown_end(message: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: UNKNOWN_EXIT_CODE,
        reason: Some("ContainerStatusUnknown".to_owned()),
        message: Some(message.to_owned()),
        ..ContainerStateTerminated::default()
    }
}

fn ended(terminated: ContainerStateTerminated) -> ContainerState {
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let waiting = ContainerStateWaiting { reason: text(reason), message: text(message) };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

/// The runtime knows no such container: it was never made, or it was collected or lost.
fn without_record(
    input: StatusInput<'_>,
    container: &Container,
    before: Option<&ContainerStatus>,
    default_reason: &str,
    list: List,
) -> ContainerStatus {
    let fresh = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(waiting_state(default_reason, "")),
        last_state: Some(before.and_then(|before| before.last_state.clone()).unwrap_or_default()),
        restart_count: before.map_or(0, |before| before.restart_count),
        ..ContainerStatus::default()
    };
    let state_before = before.and_then(|before| before.state.as_ref());
    let was_terminated = state_before.is_some_and(|state| state.terminated.is_some());
    let was_running = state_before.is_some_and(|state| state.running.is_some());
    let ends = input.has_ended || is_deleted(input.pod);
    let starts_again = !ends && list != List::Ephemeral && !was_running && could_restart_all(input.pod);
    match before {
        // Its record was removed so that it begins anew with the others: how it ended is kept.
        Some(before) if starts_again && before.container_id.is_some() => {
            let ended = before.state.clone().filter(|_| was_terminated);
            ContainerStatus {
                state: fresh.state,
                last_state: ended.or_else(|| before.last_state.clone()),
                ..before.clone()
            }
        }
        Some(before) if was_terminated && (ends || list != List::Main) => before.clone(),
        Some(before) if was_running && ends => {
            let text = "The container could not be located when the pod was deleted.  The container used to be Running";
            ContainerStatus { state: Some(ended(unknown_end(text))), ..before.clone() }
        }
        Some(before) if was_running => {
            let text = "The container could not be located when the pod was terminated";
            let restart_count = before.restart_count.saturating_add(1);
            ContainerStatus { last_state: Some(ended(unknown_end(text))), restart_count, ..fresh }
        }
        _ if input.has_ended && list == List::Main && has_initialized(input) => {
            let text = "The container could not be located when the pod was terminated";
            ContainerStatus { state: Some(ended(unknown_end(text))), ..fresh }
        }
        _ => fresh,
    }
}

/// Whether the main containers' turn had come: without it they have not been lost, they still wait.
fn has_initialized(input: StatusInput<'_>) -> bool {
    let steps = input.pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let Some(last) = steps.last() else { return true };
    let began = |status: &ContainerStatus| {
        let is_running = status.state.as_ref().is_some_and(|state| state.running.is_some());
        is_running || status.last_state.as_ref().is_some_and(|state| state.terminated.is_some())
    };
    input.previous.container_statuses.iter().flatten().any(began)
        || input.observed.latest(&last.name).is_some_and(|record| match record.stage {
            Stage::Exited => record.exit_code == 0,
            _ => is_sidecar(last),
        })
}

fn could_restart_all(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(restart_all::could_restart_all)
}

fn is_deleted(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}
