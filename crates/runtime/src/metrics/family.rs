//! The metrics that the runtime serves, one row each: the names, labels and meanings that cAdvisor made usual, so that
//! dashboards and alerts go on working when the kubelet asks the runtime instead.

use cri::v1::{MetricDescriptor, MetricType};

/// Labels of every metric; what a container or a sandbox has none of is empty.
pub(super) const BASE: [&str; 6] = ["id", "name", "image", "namespace", "pod", "container"];

/// One metric.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: MetricType,
    /// Labels after [`BASE`].
    pub(super) labels: &'static [&'static str],
    help: &'static str,
}

impl Family {
    pub(super) fn descriptor(&self) -> MetricDescriptor {
        let labels = BASE.iter().chain(self.labels).map(|label| (*label).to_owned());
        MetricDescriptor {
            name: self.name.to_owned(),
            help: self.help.to_owned(),
            label_keys: labels.collect(),
        }
    }
}

/// The row of a metric.
pub(super) fn find(name: &str) -> Option<&'static Family> {
    FAMILIES.iter().find(|family| family.name == name)
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, kind: MetricType::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Family {
    Family { name, kind: MetricType::Gauge, labels, help }
}

const NONE: &[&str] = &[];
const DEVICE: &[&str] = &["device"];
const INTERFACE: &[&str] = &["interface"];
const PAGE_SIZE: &[&str] = &["pagesize"];

/// All of them.
#[rustfmt::skip]
pub(super) const FAMILIES: &[Family] = &[
    counter("container_blkio_device_usage_total", &["device", "major", "minor", "operation"], "Bytes read from and written to a device"),
    counter("container_cpu_cfs_periods_total", NONE, "Periods of the CPU limit that have passed"),
    counter("container_cpu_cfs_throttled_periods_total", NONE, "Periods of the CPU limit in which the container was throttled"),
    counter("container_cpu_cfs_throttled_seconds_total", NONE, "Whole seconds for which the container was throttled"),
    counter("container_cpu_system_seconds_total", NONE, "Whole seconds of CPU time in the kernel"),
    counter("container_cpu_usage_seconds_total", &["cpu"], "Whole seconds of CPU time"),
    counter("container_cpu_user_seconds_total", NONE, "Whole seconds of CPU time in user mode"),
    gauge("container_file_descriptors", NONE, "Open files of the container's processes"),
    gauge("container_fs_inodes_free", DEVICE, "Free inodes of the filesystem with the container's writable layer"),
    gauge("container_fs_inodes_total", DEVICE, "Inodes of the filesystem with the container's writable layer"),
    gauge("container_fs_limit_bytes", DEVICE, "Size of the filesystem with the container's writable layer"),
    counter("container_fs_reads_bytes_total", DEVICE, "Bytes read"),
    counter("container_fs_reads_total", DEVICE, "Reads"),
    gauge("container_fs_usage_bytes", DEVICE, "Bytes in the container's writable layer"),
    counter("container_fs_writes_bytes_total", DEVICE, "Bytes written"),
    counter("container_fs_writes_total", DEVICE, "Writes"),
    gauge("container_hugetlb_max_usage_bytes", PAGE_SIZE, "The most bytes of huge pages that were ever in use"),
    gauge("container_hugetlb_usage_bytes", PAGE_SIZE, "Bytes of huge pages in use"),
    gauge("container_last_seen", NONE, "When the container was last measured, in seconds since 1970"),
    gauge("container_memory_cache", NONE, "Bytes of page cache"),
    counter("container_memory_failcnt", NONE, "How often the memory limit was met"),
    counter("container_memory_failures_total", &["failure_type", "scope"], "Page faults"),
    gauge("container_memory_kernel_usage", NONE, "Bytes of the kernel's memory for the container"),
    gauge("container_memory_mapped_file", NONE, "Bytes of mapped files"),
    gauge("container_memory_max_usage_bytes", NONE, "The most bytes of memory that were ever in use"),
    gauge("container_memory_rss", NONE, "Bytes of anonymous memory"),
    gauge("container_memory_swap", NONE, "Bytes in swap"),
    gauge("container_memory_usage_bytes", NONE, "Bytes of memory in use, page cache included"),
    gauge("container_memory_working_set_bytes", NONE, "Bytes of memory in use without inactive page cache"),
    counter("container_network_receive_bytes_total", INTERFACE, "Bytes received"),
    counter("container_network_receive_errors_total", INTERFACE, "Errors while receiving"),
    counter("container_network_receive_packets_dropped_total", INTERFACE, "Packets dropped while receiving"),
    counter("container_network_receive_packets_total", INTERFACE, "Packets received"),
    counter("container_network_transmit_bytes_total", INTERFACE, "Bytes sent"),
    counter("container_network_transmit_errors_total", INTERFACE, "Errors while sending"),
    counter("container_network_transmit_packets_dropped_total", INTERFACE, "Packets dropped while sending"),
    counter("container_network_transmit_packets_total", INTERFACE, "Packets sent"),
    counter("container_oom_events_total", NONE, "Processes that the out-of-memory killer ended"),
    counter("container_pressure_cpu_stalled_seconds_total", NONE, "Whole seconds for which all tasks waited for CPU time"),
    counter("container_pressure_cpu_waiting_seconds_total", NONE, "Whole seconds for which a task waited for CPU time"),
    counter("container_pressure_io_stalled_seconds_total", NONE, "Whole seconds for which all tasks waited for input and output"),
    counter("container_pressure_io_waiting_seconds_total", NONE, "Whole seconds for which a task waited for input and output"),
    counter("container_pressure_memory_stalled_seconds_total", NONE, "Whole seconds for which all tasks waited for memory"),
    counter("container_pressure_memory_waiting_seconds_total", NONE, "Whole seconds for which a task waited for memory"),
    gauge("container_processes", NONE, "Processes"),
    gauge("container_sockets", NONE, "Open sockets of the container's processes"),
    gauge("container_spec_cpu_period", NONE, "Period of the CPU limit in microseconds"),
    gauge("container_spec_cpu_quota", NONE, "CPU time in a period in microseconds; 0 is unlimited"),
    gauge("container_spec_cpu_shares", NONE, "CPU shares"),
    gauge("container_spec_memory_limit_bytes", NONE, "Memory limit in bytes; 0 is unlimited"),
    gauge("container_spec_memory_reservation_limit_bytes", NONE, "Memory that is protected from reclaim, in bytes"),
    gauge("container_spec_memory_swap_limit_bytes", NONE, "Limit of memory and swap in bytes; 0 is unlimited"),
    gauge("container_start_time_seconds", NONE, "When the container started, in seconds since 1970"),
    gauge("container_threads", NONE, "Processes and threads"),
    gauge("container_threads_max", NONE, "Processes and threads that may be; 0 is unlimited"),
    gauge("container_ulimits_soft", &["ulimit"], "Soft limits of the container's first process; all ones is unlimited"),
];
