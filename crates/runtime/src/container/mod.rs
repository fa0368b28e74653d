//! The verbs of containers.

pub(crate) mod apply;
mod create;
pub(crate) mod device;
mod image_mount;
pub(crate) mod plan;
mod profile;
mod start;
pub(crate) mod status;
mod stop;
mod update;
mod volume;

pub(crate) use create::{create, undo};
pub(crate) use start::start;
pub(crate) use stop::{remove, stop};
pub(crate) use update::{merge, reopen_log, update_resources};

use crate::core::Core;
use crate::record::SandboxRecord;

/// The container's cgroup: below the Pod's, which the kubelet names, else below one of the sandbox's own.
pub(crate) fn cgroup_path(core: &Core, sandbox: &SandboxRecord, container: &str) -> String {
    format!("{}/{container}", core.cgroups.parent_of(sandbox))
}
