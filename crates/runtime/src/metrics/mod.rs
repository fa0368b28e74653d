//! `ListMetricDescriptors` and `ListPodSandboxMetrics`: what the kernel counts for containers and sandboxes, under the
//! names that cAdvisor made usual. Read when asked for; nothing is kept.

mod family;
pub(crate) mod interface;
mod process;

use std::sync::Arc;

use cri::v1::{
    ContainerMetrics, LinuxContainerResources, Metric, MetricDescriptor, PodSandboxMetrics, UInt64Value,
};

use self::interface::{Interface, Traffic};
use crate::container::{apply, cgroup_path, status};
use crate::core::{Core, blocking, now};
use crate::error::Result;
use crate::record::{ContainerRecord, SandboxRecord};
use crate::state::{Container, Sandbox};

const SECOND: u64 = 1_000_000_000;

/// All metrics that are served.
pub(crate) fn descriptors() -> Vec<MetricDescriptor> {
    family::FAMILIES.iter().map(family::Family::descriptor).collect()
}

/// The metrics of every sandbox that is ready.
pub(crate) async fn all(core: Arc<Core>) -> Result<Vec<PodSandboxMetrics>> {
    blocking(move || {
        let sandboxes = core.table.sandboxes();
        Ok(sandboxes.iter().filter(|sandbox| sandbox.shim().is_some()).map(|one| of(&core, one)).collect())
    })
    .await
}

/// One sandbox's. What can't be read is left out and said in the log: the others' metrics are wanted all the same.
fn of(core: &Core, sandbox: &Sandbox) -> PodSandboxMetrics {
    let record = sandbox.record();
    let mut samples = Samples::new(labels(core.cgroups.parent_of(&record), &record, None));
    match interface::interfaces(sandbox) {
        Ok(found) => found.iter().for_each(|one| network(&mut samples, one)),
        Err(error) => tracing::warn!(sandbox = sandbox.id, %error, "metrics without the network"),
    }
    let containers = core.table.containers_of(&sandbox.id);
    let running = containers.iter().filter(|container| container.is_running());
    PodSandboxMetrics {
        pod_sandbox_id: sandbox.id.clone(),
        metrics: samples.metrics,
        container_metrics: running.map(|container| of_container(core, &record, container)).collect(),
    }
}

fn of_container(core: &Core, sandbox: &SandboxRecord, container: &Container) -> ContainerMetrics {
    let record = container.record();
    let group = cgroup_path(core, sandbox, &container.id);
    let mut samples = Samples::new(labels(group.clone(), sandbox, Some(&record)));
    usage(&mut samples, &core.cgroups.stats(&group));
    details(&mut samples, &core.cgroups.details(&group));
    for (resource, [waiting, stalled]) in PRESSURE {
        if let Some(pressure) = core.cgroups.pressure(&group, resource) {
            samples.put(waiting, Some(pressure.some.total / 1_000_000));
            samples.put(stalled, Some(pressure.full.total / 1_000_000));
        }
    }
    processes(&mut samples, &core.cgroups.processes(&group));
    filesystem(&mut samples, &container.directory().join(apply::UPPER));
    limits(&mut samples, &record);
    let seconds = |nanoseconds: i64| u64::try_from(nanoseconds).ok().map(|time| time / SECOND);
    samples.put("container_start_time_seconds", seconds(status::started_at(&record.phase)));
    samples.put("container_last_seen", seconds(now()));
    ContainerMetrics { container_id: container.id.clone(), metrics: samples.metrics }
}

const PRESSURE: [(&str, [&str; 2]); 3] = [
    ("cpu", ["container_pressure_cpu_waiting_seconds_total", "container_pressure_cpu_stalled_seconds_total"]),
    (
        "memory",
        [
            "container_pressure_memory_waiting_seconds_total",
            "container_pressure_memory_stalled_seconds_total",
        ],
    ),
    ("io", ["container_pressure_io_waiting_seconds_total", "container_pressure_io_stalled_seconds_total"]),
];

/// The values of [`family::BASE`].
fn labels(group: String, sandbox: &SandboxRecord, container: Option<&ContainerRecord>) -> Vec<String> {
    let pod = sandbox.config.metadata.clone().unwrap_or_default();
    let name = container.map_or_else(|| sandbox.id.clone(), |container| container.id.clone());
    let image = container.map(|container| container.image.name.clone()).unwrap_or_default();
    let of_container = container.and_then(|container| container.config.metadata.clone()).unwrap_or_default();
    vec![group, name, image, pod.namespace, pod.name, of_container.name]
}

/// Metrics of one container or sandbox, as they are put together.
struct Samples {
    base: Vec<String>,
    timestamp: i64,
    metrics: Vec<Metric>,
}

impl Samples {
    fn new(base: Vec<String>) -> Self {
        Self { base, timestamp: now(), metrics: Vec::new() }
    }

    /// Adds a value, where there is one.
    fn put(&mut self, name: &'static str, value: Option<u64>) {
        if let Some(value) = value {
            self.put_with(name, &[], value);
        }
    }

    /// Adds a value with labels of its own.
    fn put_with(&mut self, name: &'static str, labels: &[&str], value: u64) {
        let Some(family) = family::find(name) else { return };
        let own = labels.iter().map(|label| (*label).to_owned());
        self.metrics.push(Metric {
            name: name.to_owned(),
            timestamp: self.timestamp,
            metric_type: family.kind.into(),
            label_values: self.base.iter().cloned().chain(own).collect(),
            value: Some(UInt64Value { value }),
        });
    }
}

fn usage(samples: &mut Samples, stats: &sys::cgroup::Stats) {
    if let Some(nanoseconds) = stats.cpu_nanoseconds {
        samples.put_with("container_cpu_usage_seconds_total", &["total"], nanoseconds / SECOND);
    }
    samples.put("container_memory_usage_bytes", stats.memory_usage);
    samples.put("container_memory_working_set_bytes", stats.memory_working_set);
    samples.put("container_memory_rss", stats.memory_rss);
    samples.put("container_oom_events_total", stats.oom_kills);
    samples.put("container_threads", stats.pids);
    for (kind, count) in [("pgfault", stats.page_faults), ("pgmajfault", stats.major_page_faults)] {
        if let Some(count) = count {
            samples.put_with("container_memory_failures_total", &[kind, "container"], count);
        }
    }
}

fn details(samples: &mut Samples, details: &sys::cgroup::Details) {
    let seconds = |nanoseconds: Option<u64>| nanoseconds.map(|time| time / SECOND);
    samples.put("container_cpu_user_seconds_total", seconds(details.cpu_user));
    samples.put("container_cpu_system_seconds_total", seconds(details.cpu_system));
    samples.put("container_cpu_cfs_periods_total", details.cpu_periods);
    samples.put("container_cpu_cfs_throttled_periods_total", details.cpu_throttled_periods);
    samples.put("container_cpu_cfs_throttled_seconds_total", seconds(details.cpu_throttled));
    samples.put("container_memory_cache", details.memory_cache);
    samples.put("container_memory_mapped_file", details.memory_mapped);
    samples.put("container_memory_kernel_usage", details.memory_kernel);
    samples.put("container_memory_swap", details.memory_swap);
    samples.put("container_memory_max_usage_bytes", details.memory_peak);
    samples.put("container_memory_failcnt", details.memory_limit_hits);
    samples.put("container_threads_max", Some(details.pids_limit.unwrap_or(0)));
    for huge in &details.huge_pages {
        samples.put_with("container_hugetlb_usage_bytes", &[&huge.page_size], huge.usage);
        samples.put_with("container_hugetlb_max_usage_bytes", &[&huge.page_size], huge.peak);
    }
    details.devices.iter().for_each(|device| input_output(samples, device));
}

fn input_output(samples: &mut Samples, io: &sys::cgroup::DeviceIo) {
    let (major, minor) = (io.major.to_string(), io.minor.to_string());
    // The name as sysfs has it; a device that is gone has its numbers only.
    let link = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}")).ok();
    let name = link.as_deref().and_then(|link| link.file_name()).map(|name| name.to_string_lossy());
    let device = name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"));
    for (operation, bytes) in [("Read", io.read_bytes), ("Write", io.written_bytes)] {
        let labels = [device.as_str(), &major, &minor, operation];
        samples.put_with("container_blkio_device_usage_total", &labels, bytes);
    }
    samples.put_with("container_fs_reads_bytes_total", &[&device], io.read_bytes);
    samples.put_with("container_fs_reads_total", &[&device], io.reads);
    samples.put_with("container_fs_writes_bytes_total", &[&device], io.written_bytes);
    samples.put_with("container_fs_writes_total", &[&device], io.writes);
}

fn processes(samples: &mut Samples, pids: &[i32]) {
    let open = process::open(pids);
    samples.put("container_processes", u64::try_from(pids.len()).ok());
    samples.put("container_file_descriptors", Some(open.files));
    samples.put("container_sockets", Some(open.sockets));
    if let Some(limit) = pids.first().and_then(|pid| process::open_files_limit(*pid)) {
        samples.put_with("container_ulimits_soft", &["max_open_files"], limit);
    }
}

fn filesystem(samples: &mut Samples, layer: &std::path::Path) {
    let (bytes, _) = crate::stats::disk_usage(layer);
    let place = layer.to_string_lossy();
    samples.put_with("container_fs_usage_bytes", &[&place], bytes);
    if let Ok(whole) = rustix::fs::statvfs(layer) {
        samples.put_with("container_fs_limit_bytes", &[&place], whole.f_blocks * whole.f_frsize);
        samples.put_with("container_fs_inodes_total", &[&place], whole.f_files);
        samples.put_with("container_fs_inodes_free", &[&place], whole.f_ffree);
    }
}

fn limits(samples: &mut Samples, record: &ContainerRecord) {
    let asked = record.config.linux.as_ref().and_then(|linux| linux.resources.clone());
    let LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes,
        memory_swap_limit_in_bytes,
        unified,
        ..
    } = asked.unwrap_or_default();
    let reservation = unified.get("memory.low").and_then(|text| text.parse().ok());
    for (name, value) in [
        ("container_spec_cpu_period", cpu_period),
        ("container_spec_cpu_quota", cpu_quota),
        ("container_spec_cpu_shares", cpu_shares),
        ("container_spec_memory_limit_bytes", memory_limit_in_bytes),
        ("container_spec_memory_swap_limit_bytes", memory_swap_limit_in_bytes),
        ("container_spec_memory_reservation_limit_bytes", reservation.unwrap_or(0)),
    ] {
        samples.put(name, Some(u64::try_from(value).unwrap_or(0))); // Unlimited is negative, and here 0.
    }
}

fn network(samples: &mut Samples, interface: &Interface) {
    let mut put = |names: [&'static str; 4], traffic: Traffic| {
        let values = [traffic.bytes, traffic.packets, traffic.errors, traffic.dropped];
        for (name, value) in names.into_iter().zip(values) {
            samples.put_with(name, &[&interface.name], value);
        }
    };
    put(RECEIVED, interface.received);
    put(SENT, interface.sent);
}

const RECEIVED: [&str; 4] = [
    "container_network_receive_bytes_total",
    "container_network_receive_packets_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
];

const SENT: [&str; 4] = [
    "container_network_transmit_bytes_total",
    "container_network_transmit_packets_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Samples {
        Samples::new(vec![String::new(); family::BASE.len()])
    }

    #[test]
    fn every_sample_has_a_value_for_each_label_of_its_descriptor() {
        let mut samples = samples();
        let io = sys::cgroup::DeviceIo::default();
        let huge = sys::cgroup::HugeUsage { page_size: "2MB".into(), usage: 0, peak: 0 };
        usage(
            &mut samples,
            &sys::cgroup::Stats { cpu_nanoseconds: Some(1), page_faults: Some(1), ..Default::default() },
        );
        details(
            &mut samples,
            &sys::cgroup::Details { devices: vec![io], huge_pages: vec![huge], ..Default::default() },
        );
        processes(&mut samples, &[i32::try_from(std::process::id()).unwrap()]);
        filesystem(&mut samples, std::path::Path::new("/"));
        network(&mut samples, &Interface { name: "eth0".into(), ..Interface::default() });
        assert!(samples.metrics.len() > 25, "{}", samples.metrics.len());
        for metric in &samples.metrics {
            let descriptor = family::find(&metric.name).unwrap().descriptor();
            assert_eq!(metric.label_values.len(), descriptor.label_keys.len(), "{}", metric.name);
        }
    }

    #[test]
    fn every_pressure_metric_is_in_the_table() {
        for name in PRESSURE.iter().flat_map(|(_, names)| names).chain(&RECEIVED).chain(&SENT) {
            assert!(family::find(name).is_some(), "{name}");
        }
    }
}
