//! In-place resize (KEP-1287): what each container was given, what it was last asked to have, and what the node holds
//! back. Pure.
//!
//! The spec says what is *wanted*; the node *allocates* it when it fits, and the containers then get it *applied*. The
//! status shows the latter two, which is also where they are found again after a restart of the node agent.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus, ResourceRequirements};

use super::resource::amount_of;
use super::restart::is_sidecar;
use crate::quantity::Amounts;

/// Resources by container.
type Resources = BTreeMap<String, ResourceRequirements>;

/// Why a wanted change waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// `Deferred` until there is room, or `Infeasible` on this node.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The sizes of one Pod's containers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sizes {
    allocated: Resources,
    applied: Resources,
    pub(crate) pending: Option<Pending>,
    /// Why the last change could not be applied.
    pub(crate) error: Option<String>,
}

/// Containers whose resources can change: those that run on.
fn resizable(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| {
        spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(|init| is_sidecar(init)))
    })
}

fn resizable_mut(pod: &mut Pod) -> impl Iterator<Item = &mut Container> {
    let spec = pod.spec.iter_mut();
    spec.flat_map(|spec| {
        let inits = spec.init_containers.iter_mut().flatten().filter(|init| is_sidecar(init));
        spec.containers.iter_mut().chain(inits)
    })
}

fn same(a: &Container, b: &ResourceRequirements) -> bool {
    let other = Container { resources: Some(b.clone()), ..Container::default() };
    amount_of(a) == amount_of(&other)
}

impl Sizes {
    /// What a status of the node agent says of sizes.
    pub(crate) fn of(status: &PodStatus) -> Self {
        let lists = [&status.container_statuses, &status.init_container_statuses];
        let statuses = lists.into_iter().flatten().flatten();
        let applied: Resources = statuses
            .filter(|status| status.container_id.is_some())
            .filter_map(|status| Some((status.name.clone(), status.resources.clone()?)))
            .collect();
        Self { allocated: applied.clone(), applied, ..Self::default() }
    }

    /// Whether the spec wants another size than is allocated. What has none yet gets what the spec says.
    pub(crate) fn wants_change(&mut self, pod: &Pod) -> bool {
        let mut is_changed = false;
        for container in resizable(pod) {
            let wanted = container.resources.clone().unwrap_or_default();
            let allocated = self.allocated.entry(container.name.clone()).or_insert(wanted);
            is_changed |= !same(container, allocated);
        }
        is_changed
    }

    /// Allocates what the spec says.
    pub(crate) fn accept(&mut self, pod: &Pod) {
        for container in resizable(pod) {
            self.allocated.insert(container.name.clone(), container.resources.clone().unwrap_or_default());
        }
        (self.pending, self.error) = (None, None);
    }

    /// The Pod as the node runs it: with the resources that are allocated.
    pub(crate) fn allocated_pod(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        for container in resizable_mut(&mut pod) {
            if let Some(resources) = self.allocated.get(&container.name) {
                container.resources = Some(resources.clone());
            }
        }
        pod
    }

    /// The Pod with the larger of what its containers have and what they get: its cgroup must hold both meanwhile.
    pub(crate) fn largest_pod(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        for container in resizable_mut(&mut pod) {
            let Some(applied) = self.applied.get(&container.name).cloned() else { continue };
            let own = container.resources.get_or_insert_default();
            raise(own.requests.get_or_insert_default(), applied.requests.as_ref());
            raise(own.limits.get_or_insert_default(), applied.limits.as_ref());
        }
        pod
    }

    /// Notes what a container has got.
    pub(crate) fn note_applied(&mut self, container: &Container) {
        self.applied.insert(container.name.clone(), container.resources.clone().unwrap_or_default());
    }

    /// Containers of the allocated Pod that have not got what they are allocated.
    pub(crate) fn unapplied<'a>(
        &'a self,
        pod: &'a Pod,
    ) -> impl Iterator<Item = (&'a Container, &'a ResourceRequirements)> {
        resizable(pod).filter_map(|container| {
            let applied = self.applied.get(&container.name)?;
            (!same(container, applied)).then_some((container, applied))
        })
    }

    /// What the status shows of a container: `allocatedResources` and `resources`.
    pub(crate) fn show(&self, container: &Container, status: &mut ContainerStatus) {
        status.allocated_resources =
            container.resources.as_ref().and_then(|resources| resources.requests.clone());
        status.resources = self.applied.get(&container.name).cloned().or_else(|| container.resources.clone());
    }
}

/// Raises each amount to at least the other's; an amount that the other lacks is not limited there.
fn raise(own: &mut Amounts, other: Option<&Amounts>) {
    let none = Amounts::new();
    let other = other.unwrap_or(&none);
    for (name, amount) in other {
        let own = own.entry(name.clone()).or_insert_with(|| amount.clone());
        if crate::quantity::milli(own) < crate::quantity::milli(amount) {
            *own = amount.clone();
        }
    }
}

/// Whether a change of a container's size takes a new run of it, as its `resizePolicy` says.
pub(crate) fn needs_restart(container: &Container, applied: &ResourceRequirements) -> bool {
    let before = amount_of(&Container { resources: Some(applied.clone()), ..Container::default() });
    let after = amount_of(container);
    let restarts = |resource: &str| {
        let mut policies = container.resize_policy.iter().flatten();
        policies.any(|policy| policy.resource_name == resource && policy.restart_policy == "RestartContainer")
    };
    let cpu = (before.cpu_request, before.cpu_limit) != (after.cpu_request, after.cpu_limit);
    let memory = (before.memory_request, before.memory_limit) != (after.memory_request, after.memory_limit);
    cpu && restarts("cpu") || memory && restarts("memory")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(cpu: &str, memory_limit: &str) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "c",
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}],
            "resources": {"requests": {"cpu": cpu}, "limits": {"memory": memory_limit}}}]}}))
        .unwrap()
    }

    fn cpu_of(pod: &Pod) -> i64 {
        amount_of(&pod.spec.as_ref().unwrap().containers[0]).cpu_request
    }

    #[test]
    fn a_change_is_run_only_when_it_is_accepted_and_shown_only_when_it_is_applied() {
        let (old, new) = (pod("100m", "64Mi"), pod("200m", "64Mi"));
        let mut sizes = Sizes::default();
        assert!(!sizes.wants_change(&old));
        sizes.note_applied(&old.spec.as_ref().unwrap().containers[0]);
        assert!(sizes.wants_change(&new));
        assert_eq!(cpu_of(&sizes.allocated_pod(&new)), 100);
        sizes.accept(&new);
        let run = sizes.allocated_pod(&new);
        assert_eq!(cpu_of(&run), 200);
        let container = &run.spec.as_ref().unwrap().containers[0];
        let mut status = ContainerStatus::default();
        sizes.show(container, &mut status);
        assert_eq!(status.resources.unwrap().requests.unwrap()["cpu"].0, "100m");
        assert_eq!(status.allocated_resources.unwrap()["cpu"].0, "200m");
        assert_eq!(sizes.unapplied(&run).count(), 1);
        sizes.note_applied(container);
        assert_eq!(sizes.unapplied(&run).count(), 0);
    }

    #[test]
    fn the_policy_says_which_change_restarts() {
        let before = pod("100m", "64Mi").spec.unwrap().containers[0].resources.clone().unwrap();
        let restarts = |pod: &Pod| needs_restart(&pod.spec.as_ref().unwrap().containers[0], &before);
        assert!(!restarts(&pod("200m", "64Mi")));
        assert!(restarts(&pod("100m", "128Mi")));
    }

    #[test]
    fn the_pods_group_holds_the_larger_of_both_meanwhile() {
        let mut sizes = Sizes::default();
        sizes.note_applied(&pod("100m", "128Mi").spec.unwrap().containers[0]);
        let group = sizes.largest_pod(&pod("200m", "64Mi"));
        let amount = amount_of(&group.spec.as_ref().unwrap().containers[0]);
        assert_eq!((amount.cpu_request, amount.memory_limit), (200, 128 << 20));
    }

    #[test]
    fn sizes_are_found_again_in_the_status() {
        let status: PodStatus = serde_json::from_value(json!({"containerStatuses": [
            {"name": "c", "containerID": "x://1", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
                "resources": {"requests": {"cpu": "100m"}}}]}))
        .unwrap();
        let mut sizes = Sizes::of(&status);
        assert!(sizes.wants_change(&pod("200m", "64Mi")));
    }
}
