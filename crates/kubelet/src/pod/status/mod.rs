//! A Pod's status as the API shows it, worked out from its spec, its last status and what the runtime holds. Pure.

pub(crate) mod condition;
pub(crate) mod container;
pub(crate) mod patch;
pub(crate) mod phase;

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Pod, PodIP, PodStatus};

use super::observed::Observed;
use super::resize::Sizes;
use super::resource::qos_class;
use crate::clock::api_time;
use crate::fence::Fence;
use crate::probe::Results;

/// Why a container is waiting, as users search for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// Why the node ended the Pod, e.g. `DeadlineExceeded`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// Everything a status is made from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StatusInput<'a> {
    pub(crate) pod: &'a Pod,
    /// The last status that this node knows; the API's at first.
    pub(crate) previous: &'a PodStatus,
    pub(crate) observed: &'a Observed,
    /// Containers whose start failed or waits, by name.
    pub(crate) waiting: &'a BTreeMap<String, Waiting>,
    pub(crate) probes: &'a Results,
    /// The node's name for its runtime, the scheme of container IDs.
    pub(crate) runtime: &'a str,
    pub(crate) host_ips: &'a [String],
    pub(crate) failure: Option<&'a Failure>,
    /// What was decided about the Pod's user namespace; `None` while it is not known.
    pub(crate) fence: Option<&'a Fence>,
    pub(crate) sizes: &'a Sizes,
    /// The Pod's containers have ended for good.
    pub(crate) has_ended: bool,
    pub(crate) now: Timestamp,
}

/// Plans the whole status.
pub(crate) fn plan_status(input: StatusInput<'_>) -> PodStatus {
    let containers = container::plan_container_statuses(input);
    let phase = phase::plan_phase(input, &containers);
    let conditions = condition::plan_conditions(input, phase, &containers);
    let (pod_ips, host_ips) = (pod_ips(input, phase), input.host_ips);
    let previous = input.previous;
    let (reason, message) = match input.failure {
        Some(failure) => (Some(failure.reason.clone()), Some(failure.message.clone())),
        None => (previous.reason.clone(), previous.message.clone()),
    };
    PodStatus {
        phase: Some(phase.as_str().to_owned()),
        conditions: Some(conditions),
        reason,
        message,
        container_statuses: Some(containers.main).filter(|list| !list.is_empty()),
        init_container_statuses: Some(containers.init).filter(|list| !list.is_empty()),
        ephemeral_container_statuses: Some(containers.ephemeral).filter(|list| !list.is_empty()),
        host_ip: host_ips.first().cloned(),
        host_ips: list(host_ips.iter().map(|ip| HostIP { ip: ip.clone() })),
        pod_ip: pod_ips.first().cloned(),
        pod_ips: list(pod_ips.iter().map(|ip| PodIP { ip: ip.clone() })),
        start_time: previous.start_time.clone().or_else(|| Some(api_time(input.now))),
        qos_class: Some(qos_class(input.pod).as_str().to_owned()),
        observed_generation: input.pod.metadata.generation.or(previous.observed_generation),
        ..previous.clone()
    }
}

fn list<T>(items: impl Iterator<Item = T>) -> Option<Vec<T>> {
    let items: Vec<T> = items.collect();
    Some(items).filter(|items| !items.is_empty())
}

/// The ready sandbox's addresses, the node's for a Pod in its network; a Pod that has ended keeps its last ones.
fn pod_ips(input: StatusInput<'_>, phase: phase::Phase) -> Vec<String> {
    let spec = input.pod.spec.as_ref();
    if spec.is_some_and(|spec| spec.host_network == Some(true)) {
        let started = input.observed.latest_sandbox().is_some() || input.previous.pod_ip.is_some();
        return if started { input.host_ips.to_vec() } else { Vec::new() };
    }
    let current = input.observed.pod_ips();
    let may_keep = phase.is_terminal() || input.has_ended || input.pod.metadata.deletion_timestamp.is_some();
    if !current.is_empty() || !may_keep {
        return current.to_vec();
    }
    input.previous.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect()
}

#[cfg(test)]
mod tests;
