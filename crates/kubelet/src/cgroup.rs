//! Pod cgroups: one per Pod below its quality-of-service parent, with the Pod's limits; containers go below, and are
//! the runtime's. The parents share the processor as upstream's do: best effort gets what is left, burstable Pods
//! what they request together.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use sys::cgroup::{CgroupError, Layout, Limits, plan_create, plan_update};

use crate::pod::resource::{CgroupValues, QosClass, cgroup_values, group_amount, qos_class};
use crate::uid::PodUid;

/// How long killed processes may take to leave their group.
const PATIENCE: Duration = Duration::from_secs(5);

/// The machine's cgroup hierarchies and the instance's group in them.
#[derive(Debug)]
pub(crate) struct PodCgroups {
    layout: Layout,
    root: String,
    /// Shares of the burstable Pods.
    burstable: Mutex<BTreeMap<PodUid, i64>>,
}

/// The path of a Pod's group below `root`.
pub(crate) fn group_of(root: &str, pod: &Pod) -> String {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    format!("{root}{}/pod{uid}", parent_of(qos_class(pod)))
}

fn parent_of(class: QosClass) -> &'static str {
    match class {
        QosClass::Guaranteed => "",
        QosClass::Burstable => "/burstable",
        QosClass::BestEffort => "/besteffort",
    }
}

fn limits(values: CgroupValues) -> Limits {
    let positive = |value: i64| Some(value).filter(|value| *value > 0);
    let quota = positive(values.cpu_quota);
    Limits {
        memory: positive(values.memory_limit),
        cpu_shares: u64::try_from(values.cpu_shares).ok(),
        cpu_quota: quota,
        cpu_period: quota.and_then(|_| u64::try_from(values.cpu_period).ok()),
        ..Limits::default()
    }
}

impl PodCgroups {
    /// Finds the hierarchies; `root` is the instance's group, e.g. `/kakoi`.
    pub(crate) fn open(root: String) -> io::Result<Self> {
        Ok(Self { layout: Layout::detect()?, root, burstable: Mutex::default() })
    }

    /// Whether the machine has cgroup v2 alone.
    pub(crate) fn is_unified(&self) -> bool {
        self.layout.is_unified()
    }

    /// The instance's group.
    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// Makes the Pod's group with its limits, or brings it up to date.
    pub(crate) fn apply(&self, uid: &PodUid, pod: &Pod) -> Result<(), CgroupError> {
        let values = cgroup_values(group_amount(pod));
        sys::cgroup::apply(&plan_create(&self.layout, &group_of(&self.root, pod), &limits(values)))?;
        match qos_class(pod) {
            QosClass::Guaranteed => Ok(()),
            QosClass::BestEffort => self.share("/besteffort", 0),
            QosClass::Burstable => {
                let shares = {
                    let mut burstable = self.burstable.lock().unwrap_or_else(PoisonError::into_inner);
                    burstable.insert(uid.clone(), values.cpu_shares);
                    burstable.values().sum()
                };
                self.share("/burstable", shares)
            }
        }
    }

    /// What the Pod's group has used.
    pub(crate) fn stats(&self, pod: &Pod) -> sys::cgroup::Stats {
        sys::cgroup::stats(&self.layout, &group_of(&self.root, pod))
    }

    /// Sets what a quality-of-service parent gets of the processor, beside the others.
    fn share(&self, parent: &str, shares: i64) -> Result<(), CgroupError> {
        let shares = u64::try_from(shares.clamp(2, 262_144)).ok();
        let limits = Limits { cpu_shares: shares, ..Limits::default() };
        sys::cgroup::apply(&plan_update(&self.layout, &format!("{}{parent}", self.root), &limits))
    }

    /// Removes the Pod's group, whatever its quality of service was, with all below it.
    pub(crate) fn remove(&self, uid: &PodUid) -> Result<(), CgroupError> {
        let mut result = Ok(());
        for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
            let group = format!("{}{}/pod{uid}", self.root, parent_of(class));
            let removed = sys::cgroup::remove(&self.layout, &group, PATIENCE);
            result = result.and(removed);
        }
        let shares = {
            let mut burstable = self.burstable.lock().unwrap_or_else(PoisonError::into_inner);
            burstable.remove(uid).map(|_| burstable.values().sum())
        };
        let rest = shares.map_or(Ok(()), |shares| self.share("/burstable", shares));
        result.and(rest)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pods_group_lies_below_its_quality_of_service() {
        let pod = |resources: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"uid": "u"},
                "spec": {"containers": [{"name": "c", "resources": resources}]}}))
            .unwrap()
        };
        let sized = json!({"cpu": "1", "memory": "1Gi"});
        assert_eq!(group_of("/kakoi", &pod(json!({}))), "/kakoi/besteffort/podu");
        assert_eq!(group_of("/kakoi", &pod(json!({"requests": {"cpu": "1"}}))), "/kakoi/burstable/podu");
        assert_eq!(group_of("/kakoi", &pod(json!({"requests": sized, "limits": sized}))), "/kakoi/podu");
    }

    #[test]
    fn what_is_not_limited_is_left_as_it_is() {
        let free = CgroupValues { cpu_shares: 2, cpu_quota: 0, cpu_period: 100_000, memory_limit: 0 };
        assert_eq!(limits(free), Limits { cpu_shares: Some(2), ..Limits::default() });
        let tight =
            CgroupValues { cpu_shares: 256, cpu_quota: 50_000, cpu_period: 100_000, memory_limit: 64 << 20 };
        let expected = Limits {
            memory: Some(64 << 20),
            cpu_shares: Some(256),
            cpu_quota: Some(50_000),
            cpu_period: Some(100_000),
            ..Limits::default()
        };
        assert_eq!(limits(tight), expected);
    }

    #[test]
    fn burstable_pods_share_what_they_request_together() {
        assert!(rustix::process::geteuid().is_root(), "this test makes cgroups: run it as root");
        let root = format!("/kubelet-unit-{}-{:x}", std::process::id(), rand::random::<u32>());
        let groups = PodCgroups::open(root.clone()).unwrap();
        let make = |uid: &str, cpu: &str| {
            let pod = json!({"metadata": {"uid": uid}, "spec": {"containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
            let uid = PodUid::parse(uid).unwrap();
            groups.apply(&uid, &serde_json::from_value(pod).unwrap()).unwrap();
            uid
        };
        let shares = || {
            let directory = groups.layout.controller("cpu", &format!("{root}/burstable"));
            let file = if groups.layout.is_unified() { "cpu.weight" } else { "cpu.shares" };
            directory.map(|directory| std::fs::read_to_string(directory.join(file)).unwrap())
        };
        let first = make("a", "500m");
        let one = shares();
        let second = make("b", "500m");
        let both = shares();
        groups.remove(&second).unwrap();
        let after = shares();
        groups.remove(&first).unwrap();
        sys::cgroup::remove(&groups.layout, &root, PATIENCE).unwrap();
        assert_eq!(one, after);
        assert_ne!(one, both);
        if let (Some(one), Some(both), false) = (one, both, groups.layout.is_unified()) {
            assert_eq!((one.trim(), both.trim()), ("512", "1024"));
        }
    }
}
