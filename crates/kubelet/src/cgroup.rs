//! Pod cgroups: one per Pod below its quality-of-service parent, with the Pod's limits; containers go below, and are
//! the runtime's. The parents share the processor as upstream's do: best effort gets what is left, burstable Pods
//! what they request together.
//!
//! They are directories, or slices of the service manager: as the runtime has it (KEP-4033).

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use sys::cgroup::{CgroupError, Layout, Limits, plan_create, plan_update};
use systemd::{Bus, BusError, Slice, Units};

use crate::huge::{Pools, pod_limits};
use crate::pod::resource::{CgroupValues, QosClass, cgroup_values, group_amount, qos_class};
use crate::uid::PodUid;

/// How long killed processes may take to leave their group.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who makes groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupDriver {
    /// Directories are made in the mounted hierarchies.
    #[default]
    Cgroupfs,
    /// The service manager is asked, over D-Bus; cgroup v2 only.
    Systemd,
}

/// Where all Pods' groups lie, for each driver.
#[derive(Clone, Debug)]
pub struct CgroupRoots {
    /// The instance's group, e.g. `/kakoi`.
    pub cgroupfs: String,
    /// The path whose slice holds the Pods' slices, e.g. `/kubepods` for `kubepods.slice`.
    pub systemd: String,
    /// The driver, where the runtime does not say which it has.
    pub driver: CgroupDriver,
}

/// Why a Pod has no group.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodCgroupError {
    #[error(transparent)]
    Group(#[from] CgroupError),
    #[error(transparent)]
    Unit(#[from] BusError),
    #[error("{0} is no name of a slice")]
    Name(String),
}

/// The names of Pods' groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tree {
    pub(crate) root: String,
    pub(crate) driver: CgroupDriver,
}

impl Tree {
    /// What the runtime is told: a path, or a slice's name.
    pub(crate) fn parent_for_runtime(&self, pod: &Pod) -> String {
        let path = self.path(pod);
        match self.driver {
            CgroupDriver::Cgroupfs => path,
            CgroupDriver::Systemd => Slice::of_path(&path).map_or(path, |slice| slice.name().to_owned()),
        }
    }

    /// The Pod's steps below the root, before a driver gives them its form.
    fn path(&self, pod: &Pod) -> String {
        self.path_in(qos_class(pod), pod.metadata.uid.as_deref().unwrap_or_default())
    }

    fn path_in(&self, class: QosClass, uid: &str) -> String {
        format!("{}{}/pod{uid}", self.root, parent_of(class))
    }

    /// Where a group lies below the mount point.
    fn group(&self, path: &str) -> String {
        match self.driver {
            CgroupDriver::Cgroupfs => path.to_owned(),
            CgroupDriver::Systemd => {
                Slice::of_path(path).map_or_else(|| path.to_owned(), |slice| slice.group())
            }
        }
    }
}

/// The machine's cgroup hierarchies and the Pods' place in them.
#[derive(Debug)]
pub(crate) struct PodCgroups {
    layout: Layout,
    tree: Tree,
    units: Units,
    /// Shares of the burstable Pods.
    burstable: Mutex<BTreeMap<PodUid, i64>>,
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
    /// Finds the hierarchies.
    ///
    /// # Errors
    /// When there is none, or the driver wants another.
    pub(crate) fn open(roots: CgroupRoots, bus: Bus) -> io::Result<Self> {
        let layout = Layout::detect()?;
        if roots.driver == CgroupDriver::Systemd && !layout.is_unified() {
            let text = "the cgroup driver systemd needs cgroup v2 alone, and this machine has v1: boot it with \
                        systemd.unified_cgroup_hierarchy=1, or set cgroupDriver: cgroupfs here and in the runtime";
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        let root = match roots.driver {
            CgroupDriver::Cgroupfs => roots.cgroupfs,
            CgroupDriver::Systemd => roots.systemd,
        };
        let tree = Tree { root, driver: roots.driver };
        Ok(Self { layout, tree, units: Units::new(bus), burstable: Mutex::default() })
    }

    /// Whether the machine has cgroup v2 alone.
    pub(crate) fn is_unified(&self) -> bool {
        self.layout.is_unified()
    }

    /// The Pods' place.
    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Makes the Pod's group with its limits, or brings it up to date. Blocks.
    pub(crate) fn apply(&self, uid: &PodUid, pod: &Pod, pools: &Pools) -> Result<(), PodCgroupError> {
        let values = cgroup_values(group_amount(pod));
        let limits = Limits { huge_pages: pod_limits(pod, pools), ..limits(values) };
        self.make(&self.tree.path(pod), &limits)?;
        match qos_class(pod) {
            QosClass::Guaranteed => Ok(()),
            QosClass::BestEffort => self.share("/besteffort", 0),
            QosClass::Burstable => self.share("/burstable", self.sum_with(uid, values.cpu_shares)),
        }
    }

    /// Counts a Pod that runs already among those that share, so that no other's limits are worked out without it.
    pub(crate) fn note(&self, uid: &PodUid, pod: &Pod) {
        if qos_class(pod) == QosClass::Burstable {
            self.sum_with(uid, cgroup_values(group_amount(pod)).cpu_shares);
        }
    }

    /// The shares of all burstable Pods, this one's among them.
    fn sum_with(&self, uid: &PodUid, shares: i64) -> i64 {
        let mut burstable = self.burstable.lock().unwrap_or_else(PoisonError::into_inner);
        burstable.insert(uid.clone(), shares);
        burstable.values().sum()
    }

    fn make(&self, path: &str, limits: &Limits) -> Result<(), PodCgroupError> {
        match self.tree.driver {
            CgroupDriver::Cgroupfs => Ok(sys::cgroup::apply(&plan_create(&self.layout, path, limits))?),
            CgroupDriver::Systemd => {
                let slice = Slice::of_path(path).ok_or_else(|| PodCgroupError::Name(path.to_owned()))?;
                let (properties, rest) = systemd::plan_properties(limits);
                Units::wait(self.units.start_slice(&slice, &properties))?;
                Ok(sys::cgroup::apply(&plan_update(&self.layout, &slice.group(), &rest))?)
            }
        }
    }

    /// What the Pod's group has used.
    pub(crate) fn stats(&self, pod: &Pod) -> sys::cgroup::Stats {
        sys::cgroup::stats(&self.layout, &self.tree.group(&self.tree.path(pod)))
    }

    /// Sets what a quality-of-service parent gets of the processor, beside the others.
    fn share(&self, parent: &str, shares: i64) -> Result<(), PodCgroupError> {
        let shares = u64::try_from(shares.clamp(2, 262_144)).ok();
        let limits = Limits { cpu_shares: shares, ..Limits::default() };
        let path = format!("{}{parent}", self.tree.root);
        match self.tree.driver {
            CgroupDriver::Cgroupfs => Ok(sys::cgroup::apply(&plan_update(&self.layout, &path, &limits))?),
            CgroupDriver::Systemd => self.make(&path, &limits),
        }
    }

    /// Removes the Pod's group, whatever its quality of service was, with all below it. Blocks.
    pub(crate) fn remove(&self, uid: &PodUid) -> Result<(), PodCgroupError> {
        let mut result = Ok(());
        for class in [QosClass::Guaranteed, QosClass::Burstable, QosClass::BestEffort] {
            let path = self.tree.path_in(class, &uid.to_string());
            let removed = self.remove_group(&path);
            result = result.and(removed);
        }
        let shares = {
            let mut burstable = self.burstable.lock().unwrap_or_else(PoisonError::into_inner);
            burstable.remove(uid).map(|_| burstable.values().sum())
        };
        let rest = shares.map_or(Ok(()), |shares| self.share("/burstable", shares));
        result.and(rest)
    }

    fn remove_group(&self, path: &str) -> Result<(), PodCgroupError> {
        let group = self.tree.group(path);
        if let (CgroupDriver::Systemd, Some(slice)) = (self.tree.driver, Slice::of_path(path)) {
            sys::cgroup::kill(&self.layout, &group)?;
            Units::wait(self.units.stop(slice.name()))?;
        }
        Ok(sys::cgroup::remove(&self.layout, &group, PATIENCE)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;
    use systemd::testing::{FakeUnits, PrivateBus};

    use super::*;

    #[test]
    fn a_pods_group_lies_below_its_quality_of_service() {
        let pod = |resources: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"uid": "u-1"},
                "spec": {"containers": [{"name": "c", "resources": resources}]}}))
            .unwrap()
        };
        let sized = json!({"cpu": "1", "memory": "1Gi"});
        let plain = Tree { root: "/kakoi".into(), driver: CgroupDriver::Cgroupfs };
        let slices = Tree { root: "/kubepods".into(), driver: CgroupDriver::Systemd };
        for (resources, path, slice) in [
            (json!({}), "/kakoi/besteffort/podu-1", "kubepods-besteffort-podu_1.slice"),
            (json!({"requests": {"cpu": "1"}}), "/kakoi/burstable/podu-1", "kubepods-burstable-podu_1.slice"),
            (json!({"requests": sized, "limits": sized}), "/kakoi/podu-1", "kubepods-podu_1.slice"),
        ] {
            let pod = pod(resources);
            assert_eq!(plain.parent_for_runtime(&pod), path);
            assert_eq!(slices.parent_for_runtime(&pod), slice);
            assert!(slices.group(&slices.path(&pod)).ends_with(slice));
        }
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
        let roots =
            CgroupRoots { cgroupfs: root.clone(), systemd: "/unused".into(), driver: CgroupDriver::Cgroupfs };
        let groups = PodCgroups::open(roots, Bus::system()).unwrap();
        let make = |uid: &str, cpu: &str| {
            let pod = json!({"metadata": {"uid": uid}, "spec": {"containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}});
            let uid = PodUid::parse(uid).unwrap();
            groups.apply(&uid, &serde_json::from_value(pod).unwrap(), &Pools::new()).unwrap();
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

    #[tokio::test(flavor = "multi_thread")]
    async fn pods_are_slices_with_their_limits_where_the_driver_is_systemd() {
        let directory = tempfile::tempdir().unwrap();
        let bus = PrivateBus::start(directory.path()).unwrap();
        let mount = directory.path().join("cgroup");
        let manager = FakeUnits::start(&bus, &mount).await.unwrap();
        let groups = Arc::new(PodCgroups {
            layout: Layout { unified: Some(mount.clone()), legacy: Vec::new() },
            tree: Tree { root: "/kubepods".into(), driver: CgroupDriver::Systemd },
            units: Units::new(bus.bus()),
            burstable: Mutex::default(),
        });
        let uid = PodUid::parse("a-1").unwrap();
        let pod: Pod = serde_json::from_value(json!({"metadata": {"uid": "a-1"}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": {"cpu": "500m"}, "limits": {"cpu": "1", "memory": "64Mi"}}}]}}))
        .unwrap();
        let (apply, of) = (Arc::clone(&groups), uid.clone());
        tokio::task::spawn_blocking(move || apply.apply(&of, &pod, &Pools::new())).await.unwrap().unwrap();
        let slice = manager.unit("kubepods-burstable-poda_1.slice").unwrap();
        assert_eq!(slice["MemoryMax"], (64 << 20).to_string());
        assert_eq!(slice["CPUQuotaPerSecUSec"], "1000000");
        assert_eq!(manager.unit("kubepods-burstable.slice").unwrap()["CPUWeight"], "20");
        tokio::task::spawn_blocking(move || groups.remove(&uid)).await.unwrap().unwrap();
        assert_eq!(manager.unit("kubepods-burstable-poda_1.slice"), None);
        assert!(
            !mount.join("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_1.slice").exists()
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_a_bus_a_pod_is_told_what_is_missing() {
        let directory = tempfile::tempdir().unwrap();
        let groups = PodCgroups {
            layout: Layout { unified: Some(directory.path().to_owned()), legacy: Vec::new() },
            tree: Tree { root: "/kubepods".into(), driver: CgroupDriver::Systemd },
            units: Units::new(Bus::at("unix:path=/nonexistent/bus")),
            burstable: Mutex::default(),
        };
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"uid": "u"}, "spec": {"containers": []}})).unwrap();
        let apply =
            move || groups.apply(&PodUid::parse("u").unwrap(), &pod, &Pools::new()).unwrap_err().to_string();
        let text = tokio::task::spawn_blocking(apply).await.unwrap();
        assert!(
            text.contains("cannot connect to the message bus") && text.contains("systemctl status dbus"),
            "{text}"
        );
    }
}
