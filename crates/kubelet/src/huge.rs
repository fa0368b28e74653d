//! Huge pages: which sizes the node has, and how they are called as a resource, as a medium and in a cgroup.
//!
//! Source: page "Manage `HugePages`"; `Documentation/admin-guide/mm/hugetlbpage.rst` of the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sys::cgroup::HugePages;

use crate::pod::resource::total;
use crate::quantity::{self, Amounts};

const PREFIX: &str = "hugepages-";
/// The media of an `emptyDir`.
const MEDIUM: &str = "HugePages";

/// Sizes of huge pages in bytes, and how many of each the node has.
pub(crate) type Pools = BTreeMap<u64, u64>;

/// Why an `emptyDir` gets no huge pages. The messages are upstream's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HugeError {
    #[error("hugePages storage requested, but there is no resource request for huge pages")]
    NotRequested,
    #[error(
        "medium: {MEDIUM} can't be used if containers request multiple huge page sizes; say which, as `HugePages-2Mi`"
    )]
    Several,
    #[error("medium {0:?} names no size of huge pages")]
    Unknown(String),
}

/// Reads `/sys/kernel/mm/hugepages`; a kernel without huge pages has none.
pub(crate) fn read_pools() -> Pools {
    read_pools_at(Path::new("/sys/kernel/mm/hugepages"))
}

fn read_pools_at(directory: &Path) -> Pools {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let pools = entries.filter_map(|entry| {
        let name = entry.file_name();
        let kibibytes = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()?;
        let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
        Some((kibibytes * 1024, count))
    });
    pools.collect()
}

/// The resource that stands for pages of so many bytes: `hugepages-2Mi`.
pub(crate) fn resource(page: u64) -> String {
    format!("{PREFIX}{}", quantity::binary(page))
}

/// The size of the pages that a resource stands for.
fn page_of(resource: &str) -> Option<u64> {
    size(resource.strip_prefix(PREFIX)?)
}

fn size(text: &str) -> Option<u64> {
    u64::try_from(quantity::value(&Quantity(text.to_owned()))).ok().filter(|size| *size > 0)
}

/// A container's limit of one resource; a limit of huge pages is also its request.
fn limit(container: &Container, resource: &str) -> i64 {
    let resources = container.resources.as_ref();
    let of = |amounts: Option<&Amounts>| amounts?.get(resource).map(quantity::value);
    let limits = of(resources.and_then(|resources| resources.limits.as_ref()));
    limits.or_else(|| of(resources.and_then(|resources| resources.requests.as_ref()))).unwrap_or(0)
}

/// What a container may use of each pool that has pages; nothing of those that it does not name.
pub(crate) fn container_limits(container: &Container, pools: &Pools) -> Vec<HugePages> {
    limits(pools, |resource| limit(container, resource))
}

/// What all containers of a Pod may use together.
pub(crate) fn pod_limits(pod: &Pod, pools: &Pools) -> Vec<HugePages> {
    limits(pools, |resource| pod_limit(pod, resource))
}

fn pod_limit(pod: &Pod, resource: &str) -> i64 {
    pod.spec.as_ref().map_or(0, |spec| total(spec, |container| limit(container, resource)))
}

fn limits(pools: &Pools, of: impl Fn(&str) -> i64) -> Vec<HugePages> {
    let with_pages = pools.iter().filter(|(_, count)| **count > 0).map(|(page, _)| *page);
    let each = with_pages.map(|page| HugePages {
        page_size: cgroup_size(page),
        limit: u64::try_from(of(&resource(page))).unwrap_or_default(),
    });
    each.collect()
}

/// The size as the kernel's cgroup files have it: `2MB`.
fn cgroup_size(page: u64) -> String {
    format!("{}B", quantity::binary(page).trim_end_matches('i'))
}

/// The size of the pages that an `emptyDir` of this medium has, and the most bytes that the Pod may use of them; `None`
/// when the medium is not huge pages. The Pod's containers must request them.
pub(crate) fn plan_medium(pod: &Pod, medium: &str) -> Option<Result<(u64, u64), HugeError>> {
    let rest = medium.strip_prefix(MEDIUM)?;
    Some(plan_pages(pod, medium, rest))
}

fn plan_pages(pod: &Pod, medium: &str, rest: &str) -> Result<(u64, u64), HugeError> {
    let requested = requested(pod);
    let page = if rest.is_empty() {
        let mut sizes = requested.iter();
        match (sizes.next(), sizes.next()) {
            (Some(page), None) => *page,
            (None, _) => return Err(HugeError::NotRequested),
            (Some(_), Some(_)) => return Err(HugeError::Several),
        }
    } else {
        let page = rest.strip_prefix('-').and_then(size);
        page.ok_or_else(|| HugeError::Unknown(medium.to_owned()))?
    };
    if !requested.contains(&page) {
        return Err(HugeError::NotRequested);
    }
    Ok((page, u64::try_from(pod_limit(pod, &resource(page))).unwrap_or_default()))
}

/// The sizes of huge pages that the Pod's containers request.
fn requested(pod: &Pod) -> BTreeSet<u64> {
    let spec = pod.spec.iter();
    let containers = spec.flat_map(|spec| spec.init_containers.iter().flatten().chain(&spec.containers));
    let amounts = containers.filter_map(|container| container.resources.as_ref());
    let names = amounts.flat_map(|resources| {
        resources.requests.iter().flatten().chain(resources.limits.iter().flatten()).map(|(name, _)| name)
    });
    names.filter_map(|name| page_of(name)).collect()
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const SMALL: u64 = 2 << 20;
    const LARGE: u64 = 1 << 30;

    fn pod(containers: Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
    }

    fn container(limits: Value) -> Value {
        json!({"name": "c", "resources": {"limits": limits}})
    }

    #[test]
    fn the_nodes_pools_are_read_and_called_as_everywhere() {
        let sys = tempfile::tempdir().unwrap();
        for (name, count) in
            [("hugepages-2048kB", "16\n"), ("hugepages-1048576kB", "0\n"), ("hugepages-64kB", "1")]
        {
            fs::create_dir(sys.path().join(name)).unwrap();
            fs::write(sys.path().join(name).join("nr_hugepages"), count).unwrap();
        }
        let pools = read_pools_at(sys.path());
        assert_eq!(pools, Pools::from([(64 << 10, 1), (SMALL, 16), (LARGE, 0)]));
        let names: Vec<_> = pools.keys().map(|page| (resource(*page), cgroup_size(*page))).collect();
        let expected = [("hugepages-64Ki", "64KB"), ("hugepages-2Mi", "2MB"), ("hugepages-1Gi", "1GB")];
        assert_eq!(names, expected.map(|(name, size)| (name.to_owned(), size.to_owned())));
        assert_eq!(read_pools_at(&sys.path().join("none")), Pools::new());
    }

    #[test]
    fn a_container_may_use_what_its_limit_says_and_nothing_of_other_pools() {
        let pools = Pools::from([(SMALL, 16), (LARGE, 4), (64 << 10, 0)]);
        let pod = pod(json!([
            container(json!({"hugepages-2Mi": "8Mi"})),
            container(json!({"hugepages-2Mi": "4Mi"}))
        ]));
        let limit = |page_size: &str, limit| HugePages { page_size: page_size.into(), limit };
        let first = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(container_limits(first, &pools), [limit("2MB", 8 << 20), limit("1GB", 0)]);
        assert_eq!(pod_limits(&pod, &pools), [limit("2MB", 12 << 20), limit("1GB", 0)]);
    }

    #[test]
    fn the_medium_has_the_pages_that_the_pod_requests() {
        let one = pod(json!([container(json!({"hugepages-2Mi": "8Mi"}))]));
        let two = pod(json!([container(json!({"hugepages-2Mi": "8Mi", "hugepages-1Gi": "1Gi"}))]));
        let none = pod(json!([container(json!({"memory": "1Gi"}))]));
        assert_eq!(plan_medium(&one, "Memory"), None);
        assert_eq!(plan_medium(&one, "HugePages"), Some(Ok((SMALL, 8 << 20))));
        assert_eq!(plan_medium(&two, "HugePages-1Gi"), Some(Ok((LARGE, 1 << 30))));
        assert_eq!(plan_medium(&two, "HugePages"), Some(Err(HugeError::Several)));
        for (pod, medium) in [(&none, "HugePages"), (&one, "HugePages-1Gi")] {
            assert_eq!(plan_medium(pod, medium), Some(Err(HugeError::NotRequested)), "{medium}");
        }
        assert_eq!(plan_medium(&one, "HugePages-x"), Some(Err(HugeError::Unknown("HugePages-x".into()))));
    }
}
