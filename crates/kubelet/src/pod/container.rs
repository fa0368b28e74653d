//! One container as the runtime is asked for it: its mounts, environment, identity and limits. Pure.

use std::path::{Path, PathBuf};

use cri::v1;
use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};

use super::label;
use super::resource::{amount_of, cgroup_values, oom_score_adj, unified_values};
use super::sandbox::cri_resources;
use super::security::{ImageUser, NodeSecurity, plan_container_security};
use crate::env::{Environment, expansion, plan_arguments};
use crate::huge::{Pools, container_limits};
use crate::userns::{PodUserns, cri_mapping};
use crate::volume::setup::ReadyVolume;

/// A file of the node agent that every container gets: `/etc/hosts`, the termination message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnFile {
    pub(crate) host_path: PathBuf,
    pub(crate) container_path: String,
    pub(crate) is_mapped: bool,
}

/// What a container is planned from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ContainerInput<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) container: &'a Container,
    pub(crate) restart_count: i32,
    /// The container whose processes this one sees.
    pub(crate) target_id: Option<&'a str>,
    pub(crate) image: &'a v1::ImageSpec,
    pub(crate) image_user: &'a ImageUser,
    pub(crate) environment: &'a Environment,
    pub(crate) userns: &'a PodUserns,
    pub(crate) mounts: &'a [MountPlan],
    pub(crate) own_files: &'a [OwnFile],
    pub(crate) node: &'a NodeSecurity,
    /// The node's memory in bytes.
    pub(crate) node_memory: i64,
    /// The node's pools of huge pages.
    pub(crate) huge_pages: &'a Pools,
    /// The node has cgroup v2 alone; runtimes refuse values by file name elsewhere.
    pub(crate) has_unified_cgroups: bool,
}

/// A volume mount, before sub-paths are bound.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MountPlan {
    pub(crate) volume: ReadyVolume,
    /// Path inside the volume to mount instead of all of it.
    pub(crate) sub_path: Option<String>,
    /// What to mount: the volume's path, or the bound sub-path.
    pub(crate) host_path: PathBuf,
    pub(crate) container_path: String,
    pub(crate) is_read_only: bool,
    pub(crate) is_recursive_read_only: bool,
    pub(crate) propagation: v1::MountPropagation,
    /// The image to mount instead of a path, once it is on the node.
    pub(crate) image: Option<v1::ImageSpec>,
}

/// Why a mount cannot be planned.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum MountError {
    #[error("cannot find volume {volume:?} to mount into container {container:?}")]
    NoVolume { volume: String, container: String },
    #[error(
        "volume mount {0:?}: mountPropagation Bidirectional cannot be had with `hostUsers: false`; set `hostUsers: true` or use HostToContainer"
    )]
    Bidirectional(String),
    #[error("volume mount {0:?}: subPathExpr {1:?} names a variable that is not set")]
    Expression(String, String),
    #[error("volume mount {0:?}: recursiveReadOnly is Enabled, but the runtime handler does not support it")]
    RecursiveReadOnly(String),
    #[error("container {0:?} asks for volumeDevices, which this node does not support")]
    Devices(String),
}

/// What mounts of a container are planned from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountInput<'a> {
    pub(crate) container: &'a Container,
    pub(crate) volumes: &'a [ReadyVolume],
    pub(crate) environment: &'a Environment,
    pub(crate) has_own_userns: bool,
    pub(crate) can_recurse_read_only: bool,
}

/// Plans a container's volume mounts, in the spec's order.
pub(crate) fn plan_mounts(input: MountInput<'_>) -> Result<Vec<MountPlan>, MountError> {
    if input.container.volume_devices.iter().flatten().next().is_some() {
        return Err(MountError::Devices(input.container.name.clone()));
    }
    input.container.volume_mounts.iter().flatten().map(|mount| plan_mount(input, mount)).collect()
}

fn plan_mount(input: MountInput<'_>, mount: &VolumeMount) -> Result<MountPlan, MountError> {
    let volume = input.volumes.iter().find(|volume| volume.name == mount.name);
    let volume = volume.ok_or_else(|| MountError::NoVolume {
        volume: mount.name.clone(),
        container: input.container.name.clone(),
    })?;
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => v1::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") if input.has_own_userns => {
            return Err(MountError::Bidirectional(mount.name.clone()));
        }
        Some("Bidirectional") => v1::MountPropagation::PropagationBidirectional,
        _ => v1::MountPropagation::PropagationPrivate,
    };
    let is_recursive_read_only = match mount.recursive_read_only.as_deref() {
        Some("Enabled") if !input.can_recurse_read_only => {
            return Err(MountError::RecursiveReadOnly(mount.name.clone()));
        }
        Some("Enabled") => true,
        Some("IfPossible") => input.can_recurse_read_only,
        _ => false,
    };
    Ok(MountPlan {
        volume: volume.clone(),
        sub_path: sub_path(input, mount)?,
        host_path: volume.host_path.clone(),
        container_path: absolute(&mount.mount_path),
        is_read_only: mount.read_only == Some(true) || volume.is_read_only,
        is_recursive_read_only,
        propagation,
        image: None,
    })
}

fn sub_path(input: MountInput<'_>, mount: &VolumeMount) -> Result<Option<String>, MountError> {
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let Some(expression) = set(&mount.sub_path_expr) else { return Ok(set(&mount.sub_path)) };
    let mut is_complete = true;
    let known: Vec<&str> = input.environment.variables.iter().map(|(name, _)| name.as_str()).collect();
    for name in references(&expression) {
        is_complete &= known.contains(&name);
    }
    if !is_complete {
        return Err(MountError::Expression(mount.name.clone(), expression));
    }
    Ok(Some(expansion::expand(&expression, |name| input.environment.get(name).map(str::to_owned))))
}

/// Names in `$(NAME)` references.
fn references(text: &str) -> Vec<&str> {
    let pieces = text.split("$(").skip(1);
    pieces.filter_map(|piece| piece.split_once(')')).map(|(name, _)| name).collect()
}

fn absolute(path: &str) -> String {
    if Path::new(path).is_absolute() { path.to_owned() } else { format!("/{path}") }
}

/// Plans the container.
pub(crate) fn plan_container(input: ContainerInput<'_>) -> v1::ContainerConfig {
    let container = input.container;
    let mut security =
        plan_container_security(input.pod, container, input.userns, input.image_user, input.node);
    if let (Some(target), Some(options)) = (input.target_id, &mut security.namespace_options) {
        options.pid = v1::NamespaceMode::Target.into();
        target.clone_into(&mut options.target_id);
    }
    let mut resources = cri_resources(cgroup_values(amount_of(container)));
    resources.oom_score_adj = oom_score_adj(input.pod, container, input.node_memory);
    resources.hugepage_limits = container_limits(container, input.huge_pages)
        .into_iter()
        .map(|limit| v1::HugepageLimit { page_size: limit.page_size, limit: limit.limit })
        .collect();
    if input.has_unified_cgroups {
        resources.unified = unified_values();
    }
    let attempt = u32::try_from(input.restart_count).unwrap_or_default();
    let envs = input.environment.variables.iter();
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: container.name.clone(), attempt }),
        image: Some(input.image.clone()),
        command: plan_arguments(container.command.as_ref(), input.environment),
        args: plan_arguments(container.args.as_ref(), input.environment),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        envs: envs
            .map(|(key, value)| v1::KeyValue { key: key.clone(), value: value.clone().into_bytes() })
            .collect(),
        mounts: all_mounts(input),
        labels: label::container_labels(input.pod, container),
        annotations: label::container_annotations(input.pod, container, input.restart_count),
        log_path: log_path(&container.name, input.restart_count),
        stop_signal: stop_signal(container).into(),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        linux: Some(v1::LinuxContainerConfig {
            resources: Some(resources),
            security_context: Some(security),
        }),
        ..Default::default()
    }
}

/// `lifecycle.stopSignal`; without it the image's counts.
fn stop_signal(container: &Container) -> v1::Signal {
    let name = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.as_deref());
    name.and_then(signal_named).unwrap_or(v1::Signal::RuntimeDefault)
}

/// A signal by the API's name, such as `SIGRTMIN+1`, which CRI calls `SIGRTMINPLUS1`.
fn signal_named(name: &str) -> Option<v1::Signal> {
    let name = name.replace("SIGRTMIN+", "SIGRTMINPLUS").replace("SIGRTMAX-", "SIGRTMAXMINUS");
    v1::Signal::from_str_name(&name)
}

/// The API's name of a signal.
pub(crate) fn signal_name(signal: v1::Signal) -> String {
    signal.as_str_name().replace("SIGRTMINPLUS", "SIGRTMIN+").replace("SIGRTMAXMINUS", "SIGRTMAX-")
}

/// A container's log file, relative to the sandbox's log directory.
pub(crate) fn log_path(name: &str, restart_count: i32) -> String {
    format!("{name}/{restart_count}.log")
}

/// Volume mounts, then the node agent's own files. With a user namespace each carries the Pod's mappings, but for those
/// that are bound as they are.
fn all_mounts(input: ContainerInput<'_>) -> Vec<v1::Mount> {
    let mapped = |is_mapped: bool, mount: v1::Mount| match input.userns.mappings().filter(|_| is_mapped) {
        None => mount,
        Some(mappings) => v1::Mount {
            uid_mappings: mappings.uids.iter().map(cri_mapping).collect(),
            gid_mappings: mappings.gids.iter().map(cri_mapping).collect(),
            ..mount
        },
    };
    let volumes = input.mounts.iter().map(|plan| {
        let mount = v1::Mount {
            container_path: plan.container_path.clone(),
            host_path: plan.host_path.display().to_string(),
            readonly: plan.is_read_only,
            propagation: plan.propagation.into(),
            recursive_read_only: plan.is_recursive_read_only,
            image_sub_path: plan.image.as_ref().and_then(|_| plan.sub_path.clone()).unwrap_or_default(),
            image: plan.image.clone(),
            ..Default::default()
        };
        // The runtime maps the layers of an image itself; the mount carries the Pod's mappings all the same.
        mapped(plan.volume.is_mapped || plan.image.is_some(), mount)
    });
    let taken = |path: &str| input.mounts.iter().any(|plan| plan.container_path == path);
    let files = input.own_files.iter().filter(|file| !taken(&file.container_path)).map(|file| {
        let mount = v1::Mount {
            container_path: file.container_path.clone(),
            host_path: file.host_path.display().to_string(),
            ..Default::default()
        };
        mapped(file.is_mapped, mount)
    });
    volumes.chain(files).collect()
}

#[cfg(test)]
mod tests;
