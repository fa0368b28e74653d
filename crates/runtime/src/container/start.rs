//! `StartContainer`: cgroup, descriptors, plan to the shim, launch.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use cri::v1::ContainerEventType;
use shim::client::{ClientError, ShimClient};
use shim::protocol::{FailureKind, Started};

use super::{apply, device, plan, status};
use crate::core::{Core, blocking, now};
use crate::crash::CrashPoint;
use crate::error::{Error, Result};
use crate::handler::{self, Launch};
use crate::record::{ContainerPhase, Exited};
use crate::sandbox::follow;
use crate::state::{Container, Sandbox, lock};

/// Starts a container.
pub(crate) async fn start(core: Arc<Core>, id: String) -> Result<()> {
    let container = core.table.container(&id)?;
    let sandbox = core.table.sandbox(&container.sandbox)?;
    let _gate = container.gate.lock().await;
    let phase = container.phase();
    if phase != ContainerPhase::Created {
        return Err(Error::WrongState(format!(
            "the container {id} is {}; only a created container can be started",
            status::state(&phase).as_str_name()
        )));
    }
    let shim = sandbox.live_shim()?;
    let held = Arc::clone(&container);
    blocking(move || start_held(&core, &sandbox, &held, &shim)).await
}

/// Launches, and tells of the start before any end that came meanwhile.
fn start_held(core: &Core, sandbox: &Sandbox, container: &Container, shim: &ShimClient) -> Result<()> {
    let launched = launch(core, sandbox, container, shim);
    let early = {
        let _order = lock(&container.order);
        let recorded = launched.and_then(|started| Ok(running(container, &started)?));
        if let Err(failure) = recorded {
            end_unwanted(core, sandbox, container);
            if container.set_exited(failure.exited) {
                core.announce(&container.id, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
            }
            return Err(failure.error);
        }
        core.announce(&container.id, &sandbox.id, ContainerEventType::ContainerStartedEvent);
        lock(&container.early_exit).take()
    };
    if let Some(exit) = early {
        follow::container_exited(core, sandbox, &container.id, &exit);
    }
    Ok(())
}

/// The process may run when its start fails in the end; whatever it is, it ends with the failure.
fn end_unwanted(core: &Core, sandbox: &Sandbox, container: &Container) {
    let record = sandbox.record();
    // An OCI runtime that hangs is still at it, outside of the container's group.
    if let Some(shim) = sandbox.shim().filter(|_| !record.handler.is_empty())
        && let Err(error) = shim.abort(&container.id)
    {
        tracing::warn!(container = container.id, %error, "cannot end a launch that failed");
    }
    let group = super::cgroup_path(core, &record, &container.id);
    let ended =
        core.cgroups.kill(&group).and_then(|()| handler::forget(core, &record.handler, &container.id));
    if let Err(error) = ended.and_then(|()| core.cgroups.remove(&group)) {
        tracing::warn!(container = container.id, %error, "cannot clean up after a start that failed");
    }
}

/// A start that failed: the answer, and what the container's status says from now on.
struct Failure {
    error: Error,
    exited: Exited,
}

impl From<Error> for Box<Failure> {
    fn from(error: Error) -> Self {
        Failure::boxed(error, FailureKind::Setup.exit_code())
    }
}

impl Failure {
    fn boxed(error: Error, code: i32) -> Box<Self> {
        let reason = status::start_failure(code);
        let exited = Exited {
            started_at: 0,
            finished_at: now(),
            code,
            reason: reason.to_owned(),
            message: error.to_string(),
        };
        Box::new(Self { error, exited })
    }
}

impl From<ClientError> for Box<Failure> {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            ClientError::Refused(failure) => failure.kind,
            _ => FailureKind::Setup,
        };
        Failure::boxed(Error::failed("start the container", &error), kind.exit_code())
    }
}

fn launch(
    core: &Core,
    sandbox: &Sandbox,
    container: &Container,
    shim: &ShimClient,
) -> Result<Started, Box<Failure>> {
    container.update(|record| record.phase = ContainerPhase::Starting)?;
    core.config.crash.reached(CrashPoint::ContainerStarting)?;
    hand_over(core, sandbox, container)?;
    let started = tracing::debug_span!(target: "path", "runtime: start: shim launches, execve")
        .in_scope(|| shim.start_container(&container.id))?;
    core.config.crash.reached(CrashPoint::ContainerStarted)?;
    core.warn_once(&container.id, &started.warnings);
    Ok(started)
}

/// Opens everything and gives the shim the plan.
fn hand_over(core: &Core, sandbox: &Sandbox, container: &Container) -> Result<(), Box<Failure>> {
    let (record, of_sandbox) = (container.record(), sandbox.record());
    let group = super::cgroup_path(core, &of_sandbox, &record.id);
    let resources =
        record.config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let devices = device::find(&record, &of_sandbox)?;
    // A scope whose processes were all killed is gone.
    core.cgroups.prepare(&of_sandbox, &core.launcher)?;
    let directories = tracing::debug_span!(target: "path", "runtime: start: cgroup")
        .in_scope(|| core.cgroups.make(&group, &resources, &devices))?;
    core.config.crash.reached(CrashPoint::CgroupMade)?;
    let surroundings = plan::Surroundings {
        sandbox_files: sandbox.directory().to_owned(),
        volumes: container.directory().join(apply::VOLUMES),
        devices: devices.nodes.clone(),
    };
    let planned = plan::plan_container(&record, &of_sandbox, &surroundings)?;
    let rootfs = take_rootfs(core, sandbox, container)?;
    let log = plan::log_path(&record, &of_sandbox);
    let mut descriptors = tracing::debug_span!(target: "path", "runtime: start: mounts, seccomp")
        .in_scope(|| apply::open(core, sandbox, &planned.sources, Some(rootfs), &log))?;
    let mut plan = planned.plan;
    if let Some(handler) = core.handlers.find(&of_sandbox.handler)? {
        let launch =
            Launch { record: &record, sandbox: &of_sandbox, devices: &devices, sources: &planned.sources };
        plan.oci = Some(handler.hand_over(core, &launch, &plan, &mut descriptors)?);
    }
    plan.cgroup =
        descriptors.push_cgroup(&directories).map_err(|error| Error::failed("pass on the cgroup", error))?;
    let shim = sandbox.live_shim()?;
    tracing::debug_span!(target: "path", "runtime: start: plan to the shim")
        .in_scope(|| shim.create_container(&plan, &descriptors))?;
    core.config.crash.reached(CrashPoint::ContainerCreatedInShim)?;
    Ok(())
}

/// The root filesystem that `CreateContainer` made; made again when the daemon has been restarted since.
fn take_rootfs(core: &Core, sandbox: &Sandbox, container: &Container) -> Result<OwnedFd> {
    let made = lock(&container.rootfs).take();
    made.map_or_else(|| apply::rootfs_again(core, sandbox, &container.record()), Ok)
}

fn running(container: &Container, started: &Started) -> Result<()> {
    container.update(|record| {
        record.phase = ContainerPhase::Running {
            pid: started.pid,
            started_at: i64::try_from(started.started_at).unwrap_or_default(),
        };
    })
}
