//! Sandboxes as status messages.

use std::collections::BTreeMap;

use cri::v1::{
    LinuxPodSandboxStatus, Namespace, NamespaceOption, PodIp, PodSandbox, PodSandboxFilter,
    PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus,
};

use super::plan;
use crate::mapping;
use crate::record::{SandboxPhase, SandboxRecord};

/// Whether a sandbox is usable.
pub(crate) fn state(record: &SandboxRecord) -> PodSandboxState {
    match record.phase {
        SandboxPhase::Ready => PodSandboxState::SandboxReady,
        _ => PodSandboxState::SandboxNotready,
    }
}

/// The whole status.
pub(crate) fn status(record: &SandboxRecord) -> PodSandboxStatus {
    let mut ips = record.addresses.iter().map(ToString::to_string);
    let network = PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    };
    let options = plan::options(&record.config).cloned().unwrap_or_default();
    let options = NamespaceOption { userns_options: Some(mapping::to_options(record.ids)), ..options };
    PodSandboxStatus {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: state(record).into(),
        created_at: record.created_at,
        network: Some(network),
        linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespace { options: Some(options) }) }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

/// The status as a line of a list.
pub(crate) fn item(record: &SandboxRecord) -> PodSandbox {
    PodSandbox {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: state(record).into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

/// Whether a filter lets the sandbox through.
pub(crate) fn matches(record: &SandboxRecord, filter: &PodSandboxFilter) -> bool {
    (filter.id.is_empty() || filter.id == record.id)
        && filter.state.is_none_or(|wanted| wanted.state == i32::from(state(record)))
        && has_labels(&record.config.labels, &filter.label_selector)
}

/// Whether `labels` has every pair of `selector`.
pub(crate) fn has_labels(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}
