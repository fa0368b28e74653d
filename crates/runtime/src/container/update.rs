//! `UpdateContainerResources` and `ReopenContainerLog`.

use std::sync::Arc;

use cri::v1::{LinuxContainerConfig, LinuxContainerResources};

use super::{apply, plan};
use crate::core::{Core, blocking};
use crate::error::{Error, Result};
use crate::record::ContainerPhase;

/// Changes a container's limits; what is 0 or empty stays as it is.
pub(crate) async fn update_resources(
    core: Arc<Core>,
    id: String,
    wanted: LinuxContainerResources,
) -> Result<()> {
    let container = core.table.container(&id)?;
    let sandbox = core.table.sandbox(&container.sandbox)?;
    let held = Arc::clone(&container);
    let _gate = held.gate.lock().await;
    if matches!(container.phase(), ContainerPhase::Exited(_) | ContainerPhase::Removing) {
        return Err(Error::WrongState(format!("the container {id} has ended; its limits can't be changed")));
    }
    blocking(move || {
        if container.is_running() {
            core.cgroups.update(&super::cgroup_path(&core, &sandbox.record(), &id), &wanted)?;
        }
        container.update(|record| {
            let linux = record.config.linux.get_or_insert_with(LinuxContainerConfig::default);
            merge(linux.resources.get_or_insert_with(LinuxContainerResources::default), wanted);
        })
    })
    .await
}

/// Takes over what an update sets.
pub(crate) fn merge(resources: &mut LinuxContainerResources, update: LinuxContainerResources) {
    let numbers = [
        (&mut resources.cpu_period, update.cpu_period),
        (&mut resources.cpu_quota, update.cpu_quota),
        (&mut resources.cpu_shares, update.cpu_shares),
        (&mut resources.memory_limit_in_bytes, update.memory_limit_in_bytes),
        (&mut resources.memory_swap_limit_in_bytes, update.memory_swap_limit_in_bytes),
        (&mut resources.oom_score_adj, update.oom_score_adj),
    ];
    for (held, new) in numbers.into_iter().filter(|(_, new)| *new != 0) {
        *held = new;
    }
    if !update.cpuset_cpus.is_empty() {
        resources.cpuset_cpus = update.cpuset_cpus;
    }
    if !update.cpuset_mems.is_empty() {
        resources.cpuset_mems = update.cpuset_mems;
    }
    resources.unified.extend(update.unified);
    if !update.hugepage_limits.is_empty() {
        resources.hugepage_limits = update.hugepage_limits;
    }
}

/// Continues the log in a new file at the same path, after a rotation.
pub(crate) async fn reopen_log(core: Arc<Core>, id: String) -> Result<()> {
    let container = core.table.container(&id)?;
    let sandbox = core.table.sandbox(&container.sandbox)?;
    if !container.is_running() {
        return Err(Error::WrongState(format!("the container {id} does not run, so it writes no log")));
    }
    let path = plan::log_path(&container.record(), &sandbox.record());
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    let shim = sandbox.live_shim()?;
    blocking(move || {
        let log = apply::open_log(&path)?;
        shim.reopen_log(&id, log).map_err(|error| Error::failed("reopen the container's log", error))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_changes_only_what_it_sets() {
        let mut held =
            LinuxContainerResources { cpu_shares: 2, cpu_quota: 5, ..LinuxContainerResources::default() };
        let update = LinuxContainerResources { cpu_quota: 9, cpuset_cpus: "0".into(), ..Default::default() };
        merge(&mut held, update);
        assert_eq!((held.cpu_shares, held.cpu_quota, held.cpuset_cpus.as_str()), (2, 9, "0"));
    }
}
