//! Measurements of containers and sandboxes, read from their cgroups when asked for.

use std::path::Path;
use std::sync::Arc;

use cri::v1::{
    ContainerAttributes, ContainerStats, ContainerStatsFilter, CpuUsage, FilesystemIdentifier,
    FilesystemUsage, IoUsage, LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage,
    PodSandboxAttributes, PodSandboxStats, PodSandboxStatsFilter, ProcessUsage, PsiData, PsiStats, SwapUsage,
    UInt64Value,
};

use sys::cgroup::Stats;

use crate::container::{apply, cgroup_path};
use crate::core::{Core, blocking, now};
use crate::error::Result;
use crate::sandbox::status::has_labels;
use crate::state::{Container, Sandbox};

/// One container.
pub(crate) async fn container(core: Arc<Core>, id: String) -> Result<ContainerStats> {
    let container = core.table.container(&id)?;
    blocking(move || measure(&core, &container)).await
}

/// The containers that a filter lets through, as far as they run.
pub(crate) async fn containers(
    core: Arc<Core>,
    filter: Option<ContainerStatsFilter>,
) -> Result<Vec<ContainerStats>> {
    let mut filter = filter.unwrap_or_default();
    filter.id = core.table.whole_container_id(filter.id);
    filter.pod_sandbox_id = core.table.whole_sandbox_id(filter.pod_sandbox_id);
    let is_wanted = move |container: &Arc<Container>| {
        (filter.id.is_empty() || filter.id == container.id)
            && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == container.sandbox)
            && has_labels(&container.record().config.labels, &filter.label_selector)
    };
    blocking(move || {
        let running = core.table.containers().into_iter().filter(|container| container.is_running());
        running.filter(is_wanted).map(|container| measure(&core, &container)).collect()
    })
    .await
}

/// One sandbox with its containers.
pub(crate) async fn sandbox(core: Arc<Core>, id: String) -> Result<PodSandboxStats> {
    let sandbox = core.table.sandbox(&id)?;
    blocking(move || measure_sandbox(&core, &sandbox)).await
}

/// The sandboxes that a filter lets through.
pub(crate) async fn sandboxes(
    core: Arc<Core>,
    filter: Option<PodSandboxStatsFilter>,
) -> Result<Vec<PodSandboxStats>> {
    let mut filter = filter.unwrap_or_default();
    filter.id = core.table.whole_sandbox_id(filter.id);
    let is_wanted = move |sandbox: &Arc<Sandbox>| {
        (filter.id.is_empty() || filter.id == sandbox.id)
            && has_labels(&sandbox.record().config.labels, &filter.label_selector)
    };
    blocking(move || {
        let wanted = core.table.sandboxes().into_iter().filter(is_wanted);
        wanted.map(|sandbox| measure_sandbox(&core, &sandbox)).collect()
    })
    .await
}

fn measure(core: &Core, container: &Container) -> Result<ContainerStats> {
    let sandbox = core.table.sandbox(&container.sandbox)?;
    let record = container.record();
    let group = cgroup_path(core, &sandbox.record(), &container.id);
    let usage = core.cgroups.stats(&group);
    let layer = container.directory().join(apply::UPPER);
    let (bytes, inodes) = disk_usage(&layer);
    Ok(ContainerStats {
        attributes: Some(ContainerAttributes {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        cpu: Some(cpu(core, &group, &usage)),
        memory: Some(memory(core, &group, &usage)),
        writable_layer: Some(FilesystemUsage {
            timestamp: now(),
            fs_id: Some(FilesystemIdentifier { mountpoint: layer.to_string_lossy().into_owned() }),
            used_bytes: Some(value(bytes)),
            inodes_used: Some(value(inodes)),
        }),
        swap: Some(swap(core, &group)),
        io: io(core, &group),
    })
}

fn measure_sandbox(core: &Core, sandbox: &Sandbox) -> Result<PodSandboxStats> {
    let record = sandbox.record();
    let group = core.cgroups.parent_of(&record);
    let usage = core.cgroups.stats(&group);
    let running =
        core.table.containers_of(&sandbox.id).into_iter().filter(|container| container.is_running());
    let containers = running.map(|container| measure(core, &container)).collect::<Result<_>>()?;
    let linux = LinuxPodSandboxStats {
        cpu: Some(cpu(core, &group, &usage)),
        memory: Some(memory(core, &group, &usage)),
        network: network(sandbox)?,
        process: Some(ProcessUsage { timestamp: now(), process_count: usage.pids.map(value) }),
        containers,
        io: io(core, &group),
    };
    Ok(PodSandboxStats {
        attributes: Some(PodSandboxAttributes {
            id: record.id.clone(),
            metadata: record.config.metadata.clone(),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        linux: Some(linux),
        windows: None,
    })
}

fn cpu(core: &Core, group: &str, stats: &Stats) -> CpuUsage {
    CpuUsage {
        timestamp: now(),
        usage_core_nano_seconds: stats.cpu_nanoseconds.map(value),
        psi: psi(core, group, "cpu"),
        ..CpuUsage::default()
    }
}

fn memory(core: &Core, group: &str, stats: &Stats) -> MemoryUsage {
    let working_set = stats.memory_working_set;
    let available = stats.memory_limit.zip(working_set).map(|(limit, used)| limit.saturating_sub(used));
    MemoryUsage {
        timestamp: now(),
        working_set_bytes: working_set.map(value),
        available_bytes: available.map(value),
        usage_bytes: stats.memory_usage.map(value),
        rss_bytes: stats.memory_rss.map(value),
        page_faults: stats.page_faults.map(value),
        major_page_faults: stats.major_page_faults.map(value),
        psi: psi(core, group, "memory"),
    }
}

fn swap(core: &Core, group: &str) -> SwapUsage {
    let used = core.cgroups.details(group).memory_swap;
    SwapUsage { timestamp: now(), swap_usage_bytes: used.map(value), swap_available_bytes: None }
}

fn io(core: &Core, group: &str) -> Option<IoUsage> {
    psi(core, group, "io").map(|psi| IoUsage { timestamp: now(), psi: Some(psi) })
}

/// How long the group's tasks waited; `None` where the machine does not count it (cgroup v1).
fn psi(core: &Core, group: &str, resource: &str) -> Option<PsiStats> {
    let data = |stall: sys::cgroup::Stall| PsiData {
        total: stall.total,
        avg10: stall.average_10,
        avg60: stall.average_60,
        avg300: stall.average_300,
    };
    let pressure = core.cgroups.pressure(group, resource)?;
    Some(PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) })
}

/// The sandbox's interfaces; the first is the one that its addresses are on.
fn network(sandbox: &Sandbox) -> Result<Option<NetworkUsage>> {
    let found = crate::metrics::interface::interfaces(sandbox)?;
    let usage = |one: &crate::metrics::interface::Interface| NetworkInterfaceUsage {
        name: one.name.clone(),
        rx_bytes: Some(value(one.received.bytes)),
        rx_errors: Some(value(one.received.errors)),
        tx_bytes: Some(value(one.sent.bytes)),
        tx_errors: Some(value(one.sent.errors)),
    };
    let mut interfaces: Vec<_> = found.iter().map(usage).collect();
    if interfaces.is_empty() {
        return Ok(None);
    }
    let default_interface = Some(interfaces.remove(0));
    Ok(Some(NetworkUsage { timestamp: now(), default_interface, interfaces }))
}

fn value(value: u64) -> UInt64Value {
    UInt64Value { value }
}

/// Bytes (in whole blocks) and files below a directory, without following links. What vanishes meanwhile is left out.
pub(crate) fn disk_usage(directory: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;

    let mut waiting = vec![directory.to_owned()];
    let (mut bytes, mut inodes) = (0, 0);
    while let Some(next) = waiting.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes += metadata.blocks() * 512;
            inodes += 1;
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}
