//! Containers as status messages.

use cri::v1::{
    Container as Item, ContainerFilter, ContainerResources, ContainerState, ContainerStatus, ContainerUser,
    ImageSpec, LinuxContainerUser,
};
use shim::protocol::{Exit, FailureKind};

use super::plan;
use crate::process::signal;
use crate::record::{ContainerPhase, ContainerRecord, Exited};
use crate::sandbox::status::has_labels;
use crate::state::Sandbox;

/// CRI's word for a phase.
pub(crate) fn state(phase: &ContainerPhase) -> ContainerState {
    match phase {
        ContainerPhase::Creating | ContainerPhase::Created | ContainerPhase::Starting => {
            ContainerState::ContainerCreated
        }
        ContainerPhase::Running { .. } => ContainerState::ContainerRunning,
        ContainerPhase::Exited(_) => ContainerState::ContainerExited,
        ContainerPhase::Removing => ContainerState::ContainerUnknown,
    }
}

/// When the container started; 0 when it has not.
pub(crate) fn started_at(phase: &ContainerPhase) -> i64 {
    match phase {
        ContainerPhase::Running { started_at, .. } => *started_at,
        ContainerPhase::Exited(exited) => exited.started_at,
        _ => 0,
    }
}

/// The end that a shim reports, in the words of the field (`kubectl describe` shows the reason).
pub(crate) fn exited(started_at: i64, exit: &Exit) -> Exited {
    let reason = match (exit.oom_killed, exit.code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, code) if is_failed_start(exit) => start_failure(code),
        (false, _) => "Error",
    };
    Exited {
        started_at,
        finished_at: i64::try_from(exit.finished_at).unwrap_or_default(),
        code: exit.code,
        reason: reason.to_owned(),
        message: exit.message.clone(),
    }
}

/// Whether the container ended before its program ran: only then does a shim say why.
pub(crate) fn is_failed_start(exit: &Exit) -> bool {
    !exit.message.is_empty() && matches!(exit.code, 126..=128)
}

/// The reason of a container that did not start: its command is not in the image or can't be executed, or it could
/// not be set up.
pub(crate) fn start_failure(code: i32) -> &'static str {
    if code == FailureKind::Setup.exit_code() { "StartError" } else { "ContainerCannotRun" }
}

/// The whole status.
pub(crate) fn status(record: &ContainerRecord, sandbox: Option<&Sandbox>) -> ContainerStatus {
    let ended = match &record.phase {
        ContainerPhase::Exited(exited) => exited.clone(),
        _ => Exited::default(),
    };
    let log = sandbox.map(|sandbox| plan::log_path(record, &sandbox.record())).unwrap_or_default();
    let image_stop = Some(record.image.config.stop_signal.as_str()).filter(|signal| !signal.is_empty());
    ContainerStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: state(&record.phase).into(),
        created_at: record.created_at,
        started_at: started_at(&record.phase),
        finished_at: ended.finished_at,
        exit_code: ended.code,
        image: Some(image_spec(record)),
        image_ref: record.image.reference.clone(),
        image_id: record.image.id.clone(),
        reason: ended.reason,
        message: ended.message,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: super::image_mount::with_references(record),
        log_path: log.to_string_lossy().into_owned(),
        resources: resources(record),
        user: Some(user(record)),
        stop_signal: signal::to_cri(signal::stop_signal(record.config.stop_signal, image_stop)).into(),
    }
}

/// What the container was made of, under the image's own name.
fn image_spec(record: &ContainerRecord) -> ImageSpec {
    ImageSpec { image: record.image.name.clone(), ..record.config.image.clone().unwrap_or_default() }
}

fn resources(record: &ContainerRecord) -> Option<ContainerResources> {
    let linux = record.config.linux.as_ref()?.resources.clone()?;
    Some(ContainerResources { linux: Some(linux), windows: None })
}

fn user(record: &ContainerRecord) -> ContainerUser {
    let user = &record.user;
    ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.groups.iter().map(|group| i64::from(*group)).collect(),
        }),
    }
}

/// The status as a line of a list.
pub(crate) fn item(record: &ContainerRecord) -> Item {
    Item {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox.clone(),
        metadata: record.config.metadata.clone(),
        image: Some(image_spec(record)),
        image_ref: record.image.reference.clone(),
        state: state(&record.phase).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image.id.clone(),
    }
}

/// Whether a filter lets the container through.
pub(crate) fn matches(record: &ContainerRecord, filter: &ContainerFilter) -> bool {
    (filter.id.is_empty() || filter.id == record.id)
        && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == record.sandbox)
        && filter.state.is_none_or(|wanted| wanted.state == i32::from(state(&record.phase)))
        && has_labels(&record.config.labels, &filter.label_selector)
}
