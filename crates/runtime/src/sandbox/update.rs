//! `UpdatePodSandboxResources`.

use std::sync::Arc;

use cri::v1::{LinuxContainerResources, UpdatePodSandboxResourcesRequest};

use crate::container::merge;
use crate::core::{Core, blocking};
use crate::error::Result;

/// Notes what the Pod may use from now on. The limits themselves are set on the Pod's cgroup by whoever gave it: the
/// kubelet; only a group that the runtime made for the sandbox gets them here.
pub(crate) async fn update_resources(
    core: Arc<Core>,
    request: UpdatePodSandboxResourcesRequest,
) -> Result<()> {
    let sandbox = core.table.sandbox(&request.pod_sandbox_id)?;
    let held = Arc::clone(&sandbox);
    let _gate = held.gate.lock().await;
    sandbox.live_shim()?;
    blocking(move || {
        let record = sandbox.record();
        let is_own = core.cgroups.is_own(&record);
        if let Some(resources) = request.resources.as_ref().filter(|_| is_own) {
            core.cgroups.limit_parent(&record, resources)?;
        }
        sandbox.update(|record| {
            let linux = record.config.linux.get_or_insert_with(Default::default);
            let parts = [(&mut linux.resources, request.resources), (&mut linux.overhead, request.overhead)];
            for (held, update) in parts {
                if let Some(update) = update {
                    merge(held.get_or_insert_with(LinuxContainerResources::default), update);
                }
            }
        })
    })
    .await
}
