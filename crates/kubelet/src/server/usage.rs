//! What the node, its Pods and their containers use: gathered once for `/stats/summary`, `/metrics/resource` and
//! `/metrics/cadvisor`, and put into their forms. Metric and field names are upstream's.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use cri::v1;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::clock::from_nanoseconds;
use crate::node::eviction::Readings;
use crate::node::machine::{cpu_nanoseconds, read};
use crate::pod::label;
use crate::runtime::CriError;
use crate::shared::Shared;

/// One moment's usage.
pub(super) struct Usage {
    now: jiff::Timestamp,
    node: String,
    cores: usize,
    readings: Readings,
    /// CPU time of the machine in nanoseconds.
    cpu_nanoseconds: u64,
    pods: Vec<PodUsage>,
}

struct PodUsage {
    namespace: String,
    name: String,
    uid: String,
    started: Option<jiff::Timestamp>,
    group: sys::cgroup::Stats,
    containers: Vec<ContainerUsage>,
}

struct ContainerUsage {
    name: String,
    id: String,
    image: String,
    started: Option<jiff::Timestamp>,
    cpu_nanoseconds: u64,
    working_set: u64,
    usage: u64,
    rss: u64,
    faults: u64,
    major_faults: u64,
    layer: u64,
    inodes: u64,
}

fn value(number: Option<&v1::UInt64Value>) -> u64 {
    number.map_or(0, |number| number.value)
}

/// Gathers everything.
pub(super) async fn gather(shared: &Shared) -> Result<Usage, CriError> {
    let listed = shared.cri.list_containers(v1::ListContainersRequest::default()).await?;
    let stats = shared.cri.list_container_stats(v1::ListContainerStatsRequest::default()).await?;
    let mut by_pod: BTreeMap<String, Vec<ContainerUsage>> = BTreeMap::new();
    for stats in &stats.stats {
        let Some(attributes) = &stats.attributes else { continue };
        let Some(item) = listed.containers.iter().find(|item| item.id == attributes.id) else { continue };
        if item.state() != v1::ContainerState::ContainerRunning {
            continue;
        }
        let uid = attributes.labels.get(label::POD_UID).cloned().unwrap_or_default();
        by_pod.entry(uid).or_default().push(container(stats, item));
    }
    let pods = shared.registry.pods();
    let pods = pods.iter().map(|pod| {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let containers = by_pod.remove(&uid).unwrap_or_default();
        pod_usage(shared, pod, containers)
    });
    Ok(Usage {
        now: shared.clock.now(),
        node: shared.node_name.clone(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        readings: read(&shared.places.pods()),
        cpu_nanoseconds: cpu_nanoseconds(),
        pods: pods.filter(|pod| !pod.containers.is_empty()).collect(),
    })
}

fn pod_usage(shared: &Shared, pod: &Pod, mut containers: Vec<ContainerUsage>) -> PodUsage {
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    PodUsage {
        namespace: part(&pod.metadata.namespace),
        name: part(&pod.metadata.name),
        uid: part(&pod.metadata.uid),
        started,
        group: shared.cgroups.stats(pod),
        containers,
    }
}

fn container(stats: &v1::ContainerStats, item: &v1::Container) -> ContainerUsage {
    let memory = stats.memory.as_ref();
    let of = |field: fn(&v1::MemoryUsage) -> Option<&v1::UInt64Value>| value(memory.and_then(field));
    let layer = stats.writable_layer.as_ref();
    ContainerUsage {
        name: item.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
        id: item.id.clone(),
        image: item.image_ref.clone(),
        started: from_nanoseconds(item.created_at),
        cpu_nanoseconds: value(stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds.as_ref())),
        working_set: of(|memory| memory.working_set_bytes.as_ref()),
        usage: of(|memory| memory.usage_bytes.as_ref()),
        rss: of(|memory| memory.rss_bytes.as_ref()),
        faults: of(|memory| memory.page_faults.as_ref()),
        major_faults: of(|memory| memory.major_page_faults.as_ref()),
        layer: value(layer.and_then(|layer| layer.used_bytes.as_ref())),
        inodes: value(layer.and_then(|layer| layer.inodes_used.as_ref())),
    }
}

/// Metrics in Prometheus' text form: each family with its help and type once.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (String, f64)>,
    ) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = if labels.is_empty() {
                writeln!(self.0, "{name} {value}")
            } else {
                writeln!(self.0, "{name}{{{labels}}} {value}")
            };
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus' numbers are floating point")]
fn float(number: u64) -> f64 {
    number as f64
}

fn seconds(nanoseconds: u64) -> f64 {
    float(nanoseconds) / 1e9
}

fn started(at: Option<jiff::Timestamp>) -> f64 {
    at.map_or(0.0, |at| at.as_duration().as_secs_f64())
}

impl Usage {
    fn each_container<'a>(
        &'a self,
        value: impl Fn(&ContainerUsage) -> f64 + 'a,
    ) -> impl Iterator<Item = (String, f64)> + 'a {
        let containers = self.pods.iter().flat_map(|pod| pod.containers.iter().map(move |one| (pod, one)));
        containers.map(move |(pod, one)| {
            let labels = format!("container={:?},namespace={:?},pod={:?}", one.name, pod.namespace, pod.name);
            (labels, value(one))
        })
    }

    fn each_pod<'a>(
        &'a self,
        value: impl Fn(&PodUsage) -> f64 + 'a,
    ) -> impl Iterator<Item = (String, f64)> + 'a {
        self.pods
            .iter()
            .map(move |pod| (format!("namespace={:?},pod={:?}", pod.namespace, pod.name), value(pod)))
    }

    fn memory_used(&self) -> u64 {
        self.readings.memory.map_or(0, |memory| memory.capacity.saturating_sub(memory.available))
    }

    /// `/metrics/resource`: what autoscalers read.
    pub(super) fn resource_metrics(&self) -> String {
        let mut text = Text::default();
        let one = |value| [(String::new(), value)];
        text.family(
            "container_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
            self.each_container(|one| seconds(one.cpu_nanoseconds)),
        );
        text.family(
            "container_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the container in bytes",
            self.each_container(|one| float(one.working_set)),
        );
        text.family(
            "container_start_time_seconds",
            "gauge",
            "[STABLE] Start time of the container since unix epoch in seconds",
            self.each_container(|one| started(one.started)),
        );
        text.family(
            "node_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
            one(seconds(self.cpu_nanoseconds)),
        );
        text.family(
            "node_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the node in bytes",
            one(float(self.memory_used())),
        );
        text.family(
            "pod_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
            self.each_pod(|pod| seconds(pod.group.cpu_nanoseconds.unwrap_or(0))),
        );
        text.family(
            "pod_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the pod in bytes",
            self.each_pod(|pod| float(pod.group.memory_working_set.unwrap_or(0))),
        );
        text.family(
            "resource_scrape_error",
            "gauge",
            "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
            one(0.0),
        );
        text.0
    }

    /// `/metrics/cadvisor`: what dashboards read of containers and the machine.
    pub(super) fn cadvisor_metrics(&self) -> String {
        let mut text = Text::default();
        let named = |value: fn(&ContainerUsage) -> f64| {
            let containers =
                self.pods.iter().flat_map(|pod| pod.containers.iter().map(move |one| (pod, one)));
            containers.map(move |(pod, one)| {
                let id = format!("/pod{}/{}", pod.uid, one.id);
                let labels = format!(
                    "container={:?},id={id:?},image={:?},name={:?},namespace={:?},pod={:?}",
                    one.name, one.image, one.id, pod.namespace, pod.name
                );
                (labels, value(one))
            })
        };
        text.family(
            "container_cpu_usage_seconds_total",
            "counter",
            "Cumulative cpu time consumed in seconds.",
            named(|one| seconds(one.cpu_nanoseconds)),
        );
        text.family(
            "container_memory_usage_bytes",
            "gauge",
            "Current memory usage in bytes.",
            named(|one| float(one.usage)),
        );
        text.family(
            "container_memory_working_set_bytes",
            "gauge",
            "Current working set in bytes.",
            named(|one| float(one.working_set)),
        );
        text.family("container_memory_rss", "gauge", "Size of RSS in bytes.", named(|one| float(one.rss)));
        text.family(
            "container_fs_usage_bytes",
            "gauge",
            "Number of bytes that are consumed by the container on this filesystem.",
            named(|one| float(one.layer)),
        );
        text.family(
            "container_start_time_seconds",
            "gauge",
            "Start time of the container since unix epoch in seconds.",
            named(|one| started(one.started)),
        );
        let one = |value| [(String::new(), value)];
        text.family(
            "machine_cpu_cores",
            "gauge",
            "Number of logical CPU cores.",
            one(f64::from(u32::try_from(self.cores).unwrap_or(u32::MAX))),
        );
        text.family(
            "machine_memory_bytes",
            "gauge",
            "Amount of memory installed on the machine.",
            one(float(self.readings.memory.map_or(0, |memory| memory.capacity))),
        );
        text.0
    }

    /// `/stats/summary`.
    pub(super) fn summary(&self) -> Value {
        let time = self.now.to_string();
        let readings = self.readings;
        let filesystem = readings.disk.map(|disk| {
            let inodes = readings.inodes.unwrap_or_default();
            json!({"time": time, "availableBytes": disk.available, "capacityBytes": disk.capacity,
                "usedBytes": disk.capacity.saturating_sub(disk.available), "inodesFree": inodes.available,
                "inodes": inodes.capacity, "inodesUsed": inodes.capacity.saturating_sub(inodes.available)})
        });
        let available = readings.memory.map_or(0, |memory| memory.available);
        let pids = readings.pids.unwrap_or_default();
        json!({
            "node": {
                "nodeName": self.node,
                "cpu": {"time": time, "usageCoreNanoSeconds": self.cpu_nanoseconds},
                "memory": {"time": time, "availableBytes": available, "usageBytes": self.memory_used(),
                    "workingSetBytes": self.memory_used()},
                "fs": filesystem,
                "runtime": {"imageFs": filesystem},
                "rlimit": {"time": time, "maxpid": pids.capacity,
                    "curproc": pids.capacity.saturating_sub(pids.available)},
            },
            "pods": self.pods.iter().map(|pod| pod.summary(&time)).collect::<Vec<_>>(),
        })
    }
}

impl PodUsage {
    fn summary(&self, time: &str) -> Value {
        let containers = self.containers.iter().map(|one| {
            json!({"name": one.name, "startTime": one.started.map(|at| at.to_string()),
                "cpu": {"time": time, "usageCoreNanoSeconds": one.cpu_nanoseconds},
                "memory": {"time": time, "usageBytes": one.usage, "workingSetBytes": one.working_set,
                    "rssBytes": one.rss, "pageFaults": one.faults, "majorPageFaults": one.major_faults},
                "rootfs": {"time": time, "usedBytes": one.layer, "inodesUsed": one.inodes}})
        });
        json!({
            "podRef": {"name": self.name, "namespace": self.namespace, "uid": self.uid},
            "startTime": self.started.map(|at| at.to_string()),
            "containers": containers.collect::<Vec<_>>(),
            "cpu": {"time": time, "usageCoreNanoSeconds": self.group.cpu_nanoseconds},
            "memory": {"time": time, "usageBytes": self.group.memory_usage,
                "workingSetBytes": self.group.memory_working_set, "rssBytes": self.group.memory_rss,
                "pageFaults": self.group.page_faults, "majorPageFaults": self.group.major_page_faults},
            "process_stats": {"process_count": self.group.pids},
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage() -> Usage {
        let container = ContainerUsage {
            name: "c".into(),
            id: "abc".into(),
            image: "i".into(),
            started: Some(jiff::Timestamp::UNIX_EPOCH),
            cpu_nanoseconds: 1_500_000_000,
            working_set: 1024,
            usage: 2048,
            rss: 512,
            faults: 1,
            major_faults: 0,
            layer: 10,
            inodes: 1,
        };
        let group = sys::cgroup::Stats { cpu_nanoseconds: Some(2_000_000_000), ..Default::default() };
        let pod = PodUsage {
            namespace: "ns".into(),
            name: "p".into(),
            uid: "u".into(),
            started: None,
            group,
            containers: vec![container],
        };
        Usage {
            now: jiff::Timestamp::UNIX_EPOCH,
            node: "n".into(),
            cores: 2,
            readings: Readings::default(),
            cpu_nanoseconds: 3_000_000_000,
            pods: vec![pod],
        }
    }

    #[test]
    fn metrics_have_upstreams_names_and_labels() {
        let text = usage().resource_metrics();
        for line in [
            "# TYPE container_cpu_usage_seconds_total counter",
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"ns\",pod=\"p\"} 1.5",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"ns\",pod=\"p\"} 1024",
            "pod_cpu_usage_seconds_total{namespace=\"ns\",pod=\"p\"} 2",
            "node_cpu_usage_seconds_total 3",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        let text = usage().cadvisor_metrics();
        assert!(text.contains("container_memory_rss{container=\"c\",id=\"/podu/abc\",image=\"i\",name=\"abc\",namespace=\"ns\",pod=\"p\"} 512"), "{text}");
        assert!(text.contains("machine_cpu_cores 2\n"), "{text}");
    }

    #[test]
    fn the_summary_has_upstreams_shape() {
        let summary = usage().summary();
        assert_eq!(summary["node"]["nodeName"], "n");
        let pod = &summary["pods"][0];
        assert_eq!(pod["podRef"]["uid"], "u");
        assert_eq!(pod["containers"][0]["memory"]["workingSetBytes"], 1024);
        assert_eq!(pod["cpu"]["usageCoreNanoSeconds"], 2_000_000_000_u64);
    }
}
