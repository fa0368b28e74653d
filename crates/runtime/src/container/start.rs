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
use crate::record::{ContainerPhase, Exited};
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
    let started = {
        let (core, sandbox, container) = (Arc::clone(&core), Arc::clone(&sandbox), Arc::clone(&container));
        blocking(move || Ok(launch(&core, &sandbox, &container, &shim))).await?
    };
    match started {
        Ok(()) => {
            core.announce(&id, &sandbox.id, ContainerEventType::ContainerStartedEvent);
            Ok(())
        }
        Err(failure) => {
            if container.set_exited(failure.exited) {
                core.announce(&id, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
            }
            Err(failure.error)
        }
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
) -> Result<(), Box<Failure>> {
    container.update(|record| record.phase = ContainerPhase::Starting)?;
    core.config.crash.reached(CrashPoint::ContainerStarting)?;
    let started = hand_over(core, sandbox, container).and_then(|()| {
        let started = shim.start_container(&container.id)?;
        core.config.crash.reached(CrashPoint::ContainerStarted)?;
        Ok(started)
    });
    match started {
        Ok(started) => {
            running(container, &started)?;
            Ok(())
        }
        Err(failure) => {
            let group = super::cgroup_path(core, &sandbox.record(), &container.id);
            // The process may run by now; whatever it is, it ends with the failure.
            let _ = core.cgroups.kill(&group).and_then(|()| core.cgroups.remove(&group));
            Err(failure)
        }
    }
}

/// Opens everything and gives the shim the plan.
fn hand_over(core: &Core, sandbox: &Sandbox, container: &Container) -> Result<(), Box<Failure>> {
    let (record, of_sandbox) = (container.record(), sandbox.record());
    let group = super::cgroup_path(core, &of_sandbox, &record.id);
    let resources =
        record.config.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let devices = device::find(&record, &of_sandbox)?;
    let directories = core.cgroups.make(&group, &resources, &devices)?;
    core.config.crash.reached(CrashPoint::CgroupMade)?;
    let surroundings = plan::Surroundings {
        sandbox_files: sandbox.directory().to_owned(),
        volumes: container.directory().join(apply::VOLUMES),
        devices: devices.nodes,
    };
    let planned = plan::plan_container(&record, &of_sandbox, &surroundings)?;
    let rootfs = take_rootfs(core, sandbox, container)?;
    let log = plan::log_path(&record, &of_sandbox);
    let mut descriptors = apply::open(core, sandbox, &planned.sources, Some(rootfs), &log)?;
    let mut plan = planned.plan;
    plan.cgroup =
        descriptors.push_cgroup(&directories).map_err(|error| Error::failed("pass on the cgroup", error))?;
    sandbox.live_shim()?.create_container(&plan, &descriptors)?;
    core.config.crash.reached(CrashPoint::ContainerCreatedInShim)?;
    Ok(())
}

/// The root filesystem that `CreateContainer` made; made again when the daemon has been restarted since.
fn take_rootfs(core: &Core, sandbox: &Sandbox, container: &Container) -> Result<OwnedFd> {
    let made = lock(&container.rootfs).take();
    made.map_or_else(|| apply::rootfs(core, sandbox, &container.record()), Ok)
}

fn running(container: &Container, started: &Started) -> Result<()> {
    for warning in &started.warnings {
        tracing::warn!(container = container.id, warning, "the container got less than it asked for");
    }
    container.update(|record| {
        // The end of a process that ends at once may have been recorded already.
        if record.phase == ContainerPhase::Starting {
            record.phase = ContainerPhase::Running {
                pid: started.pid,
                started_at: i64::try_from(started.started_at).unwrap_or_default(),
            };
        } else if let ContainerPhase::Exited(exited) = &mut record.phase
            && exited.started_at == 0
        {
            exited.started_at = i64::try_from(started.started_at).unwrap_or_default();
        }
    })
}
