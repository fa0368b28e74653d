//! Requests and limits as the kernel sees them: `QoS` class, CPU shares and quota, memory limit, OOM score.
//!
//! Source: "Pod Quality of Service Classes" page, KEP-2570's unchanged v1 formulas, upstream's `qos` policy.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};

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
    amount_in(container.resources.as_ref())
}

fn amount_in(resources: Option<&ResourceRequirements>) -> Amount {
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

/// The Pod's own resources (KEP-2837), where the spec has some.
fn own_amount(pod: &Pod) -> Option<Amount> {
    let resources = pod.spec.as_ref()?.resources.as_ref()?;
    let amount = amount_in(Some(resources));
    Some(amount).filter(|amount| *amount != Amount::default())
}

fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers))
}

/// The class: Guaranteed when every container limits both resources and requests just that. The Pod's own resources
/// decide alone where there are some.
pub(crate) fn qos_class(pod: &Pod) -> QosClass {
    let amounts: Vec<Amount> =
        own_amount(pod).map_or_else(|| all_containers(pod).map(amount_of).collect(), |own| vec![own]);
    if amounts.iter().all(|amount| *amount == Amount::default()) {
        return QosClass::BestEffort;
    }
    let is_guaranteed = |amount: &Amount| {
        let limited = amount.cpu_limit > 0 && amount.memory_limit > 0;
        limited && amount.cpu_limit == amount.cpu_request && amount.memory_limit == amount.memory_request
    };
    if amounts.iter().all(is_guaranteed) { QosClass::Guaranteed } else { QosClass::Burstable }
}

/// What all containers of a Pod need together, as one field of each says: those that run side by side, or the most
/// that an init container needs beside the sidecars that started before it.
pub(crate) fn total(spec: &PodSpec, of: impl Fn(&Container) -> i64) -> i64 {
    let main: i64 = spec.containers.iter().map(&of).sum();
    let (mut sidecars, mut highest) = (0_i64, 0_i64);
    for init in spec.init_containers.iter().flatten() {
        if is_sidecar(init) {
            sidecars = sidecars.saturating_add(of(init));
            highest = highest.max(sidecars);
        } else {
            highest = highest.max(sidecars.saturating_add(of(init)));
        }
    }
    highest.max(main.saturating_add(sidecars))
}

/// The Pod's amounts without its overhead: its own, or those of its containers. A limit of theirs counts only when
/// every container has one.
pub(crate) fn pod_amount(pod: &Pod) -> Amount {
    let Some(spec) = &pod.spec else { return Amount::default() };
    let own = own_amount(pod).unwrap_or_default();
    let sum = |own: i64, field: fn(&Amount) -> i64| {
        if own > 0 { own } else { total(spec, |container| field(&amount_of(container))) }
    };
    let limited = |own: i64, field: fn(&Amount) -> i64| {
        let all = all_containers(pod).all(|container| field(&amount_of(container)) > 0);
        if own > 0 || all { sum(own, field) } else { 0 }
    };
    Amount {
        cpu_request: sum(own.cpu_request, |amount| amount.cpu_request),
        cpu_limit: limited(own.cpu_limit, |amount| amount.cpu_limit),
        memory_request: sum(own.memory_request, |amount| amount.memory_request),
        memory_limit: limited(own.memory_limit, |amount| amount.memory_limit),
    }
}

/// What running the Pod costs beside its containers (`spec.overhead`, from its `RuntimeClass`).
pub(crate) fn overhead(pod: &Pod) -> Amount {
    let overhead = pod.spec.as_ref().and_then(|spec| spec.overhead.as_ref());
    let cpu = positive(overhead, "cpu").map_or(0, quantity::milli);
    let memory = positive(overhead, "memory").map_or(0, quantity::value);
    Amount { cpu_request: cpu, cpu_limit: cpu, memory_request: memory, memory_limit: memory }
}

/// The Pod's amounts with its overhead, as its cgroup has them. What is not limited stays so.
pub(crate) fn group_amount(pod: &Pod) -> Amount {
    let (amount, over) = (pod_amount(pod), overhead(pod));
    let limit = |limit: i64, over: i64| if limit > 0 { limit.saturating_add(over) } else { 0 };
    Amount {
        cpu_request: amount.cpu_request.saturating_add(over.cpu_request),
        cpu_limit: limit(amount.cpu_limit, over.cpu_limit),
        memory_request: amount.memory_request.saturating_add(over.memory_request),
        memory_limit: limit(amount.memory_limit, over.memory_limit),
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
            let adjusted = 1000 - memory_share(pod, container).saturating_mul(1000) / node_memory.max(1);
            adjusted.clamp(3, 999)
        }
    }
}

/// The bytes that count for a container's OOM score: its request with its part of what the Pod requests beyond its
/// containers. A sidecar counts at least as much as the least of the containers that it serves.
fn memory_share(pod: &Pod, container: &Container) -> i64 {
    let Some(spec) = &pod.spec else { return 0 };
    let request = |container: &Container| amount_of(container).memory_request;
    let asked = total(spec, request);
    let count = i64::try_from(all_containers(pod).count()).unwrap_or(i64::MAX).max(1);
    let own = own_amount(pod).map_or(0, |own| own.memory_request);
    let part = own.saturating_sub(asked).max(0) / count;
    let share = request(container).saturating_add(part);
    if is_sidecar(container) {
        let least = spec.containers.iter().map(request).min().unwrap_or(0).saturating_add(part);
        return share.max(least);
    }
    share
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
    fn an_init_container_counts_beside_the_sidecars_before_it() {
        let container = |name: &str, cpu: &str, policy: Option<&str>| json!({"name": name, "restartPolicy": policy, "resources": {"requests": {"cpu": cpu}}});
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [container("early", "3", None), container("side", "1", Some("Always")),
                container("late", "3", None)],
            "containers": [container("main", "2", None)]}}))
        .unwrap();
        assert_eq!(pod_amount(&pod).cpu_request, 4000, "late and side together need more than main and side");
    }

    #[test]
    fn a_pods_own_resources_stand_for_its_containers_and_overhead_is_added() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
            "overhead": {"cpu": "100m", "memory": "64Mi"},
            "containers": [{"name": "a"}, {"name": "b", "resources": {"requests": {"memory": "512Mi"}}}]}}))
        .unwrap();
        assert_eq!(qos_class(&pod), QosClass::Guaranteed);
        assert_eq!(pod_amount(&pod).memory_limit, 1 << 30);
        let group = group_amount(&pod);
        assert_eq!((group.cpu_request, group.cpu_limit), (1100, 1100));
        assert_eq!(group.memory_limit, (1 << 30) + (64 << 20));
    }

    #[test]
    fn a_sidecar_dies_no_earlier_than_what_it_serves() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "side", "restartPolicy": "Always"}],
            "containers": [{"name": "main", "resources": {"requests": {"memory": "1Gi"}}}]}}))
        .unwrap();
        let side = &pod.spec.as_ref().unwrap().init_containers.as_ref().unwrap()[0];
        assert_eq!(oom_score_adj(&pod, side, 4 << 30), 750);
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
