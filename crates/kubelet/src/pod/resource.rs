//! Requests and limits as the kernel sees them: `QoS` class, CPU shares and quota, memory limit, OOM score.
//!
//! Source: "Pod Quality of Service Classes" page, KEP-2570's unchanged v1 formulas, upstream's `qos` policy.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::restart::is_sidecar;
use crate::quantity::{self, Amounts};

/// A Pod's quality of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    /// The word that the API uses.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// CPU and memory of one container or Pod: requests and limits, zero for "none".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) cpu_request: i64,
    pub(crate) cpu_limit: i64,
    pub(crate) memory_request: i64,
    pub(crate) memory_limit: i64,
}

/// Values for a cgroup; zero or negative as CRI means them ("leave as it is").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CgroupValues {
    pub(crate) cpu_shares: i64,
    pub(crate) cpu_quota: i64,
    pub(crate) cpu_period: i64,
    pub(crate) memory_limit: i64,
}

/// The kernel's default scheduling period in microseconds.
pub(crate) const CPU_PERIOD: i64 = 100_000;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;
/// The kernel refuses quotas below a millisecond.
const MIN_QUOTA: i64 = 1000;

fn positive<'a>(
    amounts: Option<&'a Amounts>,
    resource: &str,
) -> Option<&'a k8s_openapi::apimachinery::pkg::api::resource::Quantity> {
    amounts?.get(resource).filter(|amount| quantity::milli(amount) > 0)
}

/// The amounts of one container; a limit without a request is also the request.
pub(crate) fn amount_of(container: &Container) -> Amount {
    let resources = container.resources.as_ref();
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let cpu_limit = positive(limits, "cpu").map_or(0, quantity::milli);
    let memory_limit = positive(limits, "memory").map_or(0, quantity::value);
    let requested = |resource| requests.and_then(|requests| requests.get(resource));
    Amount {
        cpu_request: requested("cpu").map_or(cpu_limit, quantity::milli),
        cpu_limit,
        memory_request: requested("memory").map_or(memory_limit, quantity::value),
        memory_limit,
    }
}

fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

/// The class: Guaranteed when every container limits both resources and requests just that.
pub(crate) fn qos_class(pod: &Pod) -> QosClass {
    let amounts: Vec<Amount> = all_containers(pod).map(amount_of).collect();
    if amounts.iter().all(|amount| *amount == Amount::default()) {
        return QosClass::BestEffort;
    }
    let is_guaranteed = |amount: &Amount| {
        let limited = amount.cpu_limit > 0 && amount.memory_limit > 0;
        limited && amount.cpu_limit == amount.cpu_request && amount.memory_limit == amount.memory_request
    };
    if amounts.iter().all(is_guaranteed) { QosClass::Guaranteed } else { QosClass::Burstable }
}

/// The Pod's amounts: the sum of containers and sidecars, or the largest init container. A limit counts only when
/// every container has one.
pub(crate) fn pod_amount(pod: &Pod) -> Amount {
    let Some(spec) = &pod.spec else { return Amount::default() };
    let inits = || spec.init_containers.iter().flatten();
    let running: Vec<Amount> =
        spec.containers.iter().chain(inits().filter(|init| is_sidecar(init))).map(amount_of).collect();
    let once: Vec<Amount> = inits().filter(|init| !is_sidecar(init)).map(amount_of).collect();
    let total = |field: fn(&Amount) -> i64| {
        let sum: i64 = running.iter().map(field).sum();
        sum.max(once.iter().map(field).max().unwrap_or(0))
    };
    let limited = |field: fn(&Amount) -> i64| {
        let all = running.iter().chain(&once).all(|amount| field(amount) > 0);
        if all { total(field) } else { 0 }
    };
    Amount {
        cpu_request: total(|amount| amount.cpu_request),
        cpu_limit: limited(|amount| amount.cpu_limit),
        memory_request: total(|amount| amount.memory_request),
        memory_limit: limited(|amount| amount.memory_limit),
    }
}

/// Cgroup values for an amount: shares from the request, quota and memory limit from the limits.
pub(crate) fn cgroup_values(amount: Amount) -> CgroupValues {
    let quota = amount.cpu_limit * CPU_PERIOD / 1000;
    CgroupValues {
        cpu_shares: (amount.cpu_request * 1024 / 1000).clamp(MIN_SHARES, MAX_SHARES),
        cpu_quota: if amount.cpu_limit > 0 { quota.max(MIN_QUOTA) } else { 0 },
        cpu_period: CPU_PERIOD,
        memory_limit: amount.memory_limit,
    }
}

/// `oom_score_adj` of a container: -997 guaranteed, 1000 best effort, between by its share of the node's memory.
pub(crate) fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i64) -> i64 {
    const CRITICAL_PRIORITY: i32 = 2_000_000_000;
    if pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|priority| priority >= CRITICAL_PRIORITY)
    {
        return -997;
    }
    match qos_class(pod) {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let request = amount_of(container).memory_request;
            let adjusted = 1000 - request.saturating_mul(1000) / node_memory.max(1);
            adjusted.clamp(3, 999)
        }
    }
}

/// Cgroup v2's `unified` values that follow from a container's limits.
pub(crate) fn unified_values() -> BTreeMap<String, String> {
    BTreeMap::from([("memory.oom.group".to_owned(), "1".to_owned())])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(containers: &[(&str, &str, &str, &str)]) -> Pod {
        let resources = |(cpu, cpu_limit, memory, memory_limit): &(&str, &str, &str, &str)| {
            let amounts = |cpu: &str, memory: &str| {
                let pairs = [("cpu", cpu.to_owned()), ("memory", memory.to_owned())];
                pairs.into_iter().filter(|(_, text)| !text.is_empty()).collect::<BTreeMap<_, _>>()
            };
            json!({"name": "c", "resources": {
                "requests": amounts(cpu, memory), "limits": amounts(cpu_limit, memory_limit)}})
        };
        let containers: Vec<_> = containers.iter().map(resources).collect();
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    #[test]
    fn classes_are_as_documented() {
        for (containers, class) in [
            (vec![("", "", "", "")], QosClass::BestEffort),
            (vec![("1", "1", "1Gi", "1Gi")], QosClass::Guaranteed),
            (vec![("", "1", "", "1Gi")], QosClass::Guaranteed),
            (vec![("1", "", "", "")], QosClass::Burstable),
            (vec![("1", "1", "1Gi", "1Gi"), ("", "", "", "")], QosClass::Burstable),
            (vec![("1", "2", "1Gi", "1Gi")], QosClass::Burstable),
        ] {
            assert_eq!(qos_class(&pod(&containers)), class, "{containers:?}");
        }
    }

    #[test]
    fn cgroup_values_come_from_requests_and_limits() {
        let of = |container| cgroup_values(pod_amount(&pod(&[container])));
        let values = of(("250m", "500m", "", "64Mi"));
        assert_eq!(
            values,
            CgroupValues { cpu_shares: 256, cpu_quota: 50_000, cpu_period: 100_000, memory_limit: 64 << 20 }
        );
        assert_eq!(
            of(("", "", "", "")),
            CgroupValues { cpu_shares: 2, cpu_quota: 0, cpu_period: 100_000, memory_limit: 0 }
        );
        assert_eq!(of(("", "1m", "", "")).cpu_quota, 1000, "the kernel's least quota");
    }

    #[test]
    fn a_pod_is_limited_only_when_each_container_is() {
        let one = pod_amount(&pod(&[("", "1", "", ""), ("100m", "", "", "1Gi")]));
        assert_eq!(one, Amount { cpu_request: 1100, cpu_limit: 0, memory_request: 1 << 30, memory_limit: 0 });
    }

    #[test]
    fn the_oom_killer_takes_best_effort_first() {
        let score = |container| {
            let pod = pod(&[container]);
            oom_score_adj(&pod, &pod.spec.as_ref().unwrap().containers[0], 4 << 30)
        };
        assert_eq!(score(("1", "1", "1Gi", "1Gi")), -997);
        assert_eq!(score(("", "", "", "")), 1000);
        assert_eq!(score(("", "", "1Gi", "")), 750);
        assert_eq!(score(("", "", "4Gi", "")), 3);
        assert_eq!(score(("100m", "", "", "")), 999);
    }
}
