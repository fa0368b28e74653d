//! Follows a shim: its containers' ends become records and events within milliseconds, and its own death ends
//! what it held.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use cri::v1::ContainerEventType;
use shim::client::{Events, ShimClient, exit_records};
use shim::protocol::{Event, Exit};
use tokio::io::Interest;

use crate::container;
use crate::core::{Core, blocking, now};
use crate::error::{Error, Result};
use crate::record::{ContainerPhase, Exited, SandboxPhase};
use crate::state::{Sandbox, lock};

/// Reason of a container that a shim's death ended.
const KILLED_CODE: i32 = 137;

/// Starts to follow; the exits that happened before come first.
pub(crate) fn follow(core: &Arc<Core>, sandbox: &Arc<Sandbox>, shim: Arc<ShimClient>) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| Error::failed("follow the sandbox's shim", error);
    let events = shim.events().map_err(|error| failed(&error))?;
    let handle = events.stop_handle().map_err(|error| failed(&error))?;
    handle.set_nonblocking(true).map_err(|error| failed(&error))?;
    let (core, sandbox) = (Arc::clone(core), Arc::clone(sandbox));
    let tasks = core.tasks.clone();
    tasks.spawn(async move {
        let shutdown = core.shutdown.clone();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = listen(&core, &sandbox, events, handle) => shim_ended(&core, &sandbox, &shim).await,
        }
    });
    Ok(())
}

/// Hands on every event; returns when the shim closes the connection.
async fn listen(core: &Arc<Core>, sandbox: &Arc<Sandbox>, mut events: Events, handle: UnixStream) {
    let socket = match tokio::net::UnixStream::from_std(handle) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(sandbox = sandbox.id, %error, "cannot follow the sandbox's shim");
            return;
        }
    };
    loop {
        match socket.try_io(Interest::READABLE, || events.next_event()) {
            Ok(Some(event)) => take(core, sandbox, event).await,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if socket.readable().await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(sandbox = sandbox.id, %error, "the connection to the sandbox's shim broke");
                return;
            }
        }
    }
}

/// One event after the other. A container's end is written to the disk and waits for its cgroup.
async fn take(core: &Arc<Core>, sandbox: &Arc<Sandbox>, event: Event) {
    let (container, exit) = match event {
        Event::ContainerExited { container, exit } => (container, exit),
        Event::ExecExited { exec, exit, .. } => return core.exec_ended(&exec, exit),
    };
    let (core, of) = (Arc::clone(core), Arc::clone(sandbox));
    let noted = blocking(move || {
        container_exited(&core, &of, &container, &exit);
        Ok(())
    });
    if let Err(error) = noted.await {
        tracing::error!(sandbox = sandbox.id, %error, "cannot note a container's end");
    }
}

/// Records a container's end and tells the listeners.
pub(crate) fn container_exited(core: &Core, sandbox: &Sandbox, id: &str, exit: &Exit) {
    let Some(container) = core.table.find_container(id) else { return };
    {
        let _order = lock(&container.order);
        let phase = container.phase();
        if phase == ContainerPhase::Starting {
            *lock(&container.early_exit) = Some(exit.clone());
            return;
        }
        let started_at = container::status::started_at(&phase);
        if container.set_exited(container::status::exited(started_at, exit)) {
            core.announce(id, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
        }
    }
    let group = container::cgroup_path(core, &sandbox.record(), id);
    if let Err(error) = core.cgroups.remove(&group) {
        tracing::debug!(container = id, %error, "the container's cgroup stays until it is removed");
    }
}

/// The shim closed its connection: at its own end, which is either asked for or an accident.
async fn shim_ended(core: &Arc<Core>, sandbox: &Arc<Sandbox>, shim: &Arc<ShimClient>) {
    shim.reap();
    if sandbox.phase() != SandboxPhase::Ready {
        return core.lose_execs(&sandbox.id);
    }
    let is_alive = {
        let shim = Arc::clone(shim);
        blocking(move || Ok(shim.state().is_ok())).await.unwrap_or(false)
    };
    if is_alive {
        if let Err(error) = follow(core, sandbox, Arc::clone(shim)) {
            tracing::error!(sandbox = sandbox.id, %error, "cannot follow the sandbox's shim again");
        }
        return;
    }
    tracing::error!(sandbox = sandbox.id, pid = shim.pid(), "the sandbox's shim died; ending its containers");
    let pid = Some(shim.pid());
    let (core, sandbox) = (Arc::clone(core), Arc::clone(sandbox));
    let ended = blocking(move || lose_shim(&core, &sandbox, pid)).await;
    if let Err(error) = ended {
        tracing::error!(%error, "cannot end the containers of a shim that died");
    }
}

/// Ends what a dead shim left: its containers through their cgroups, with the ends it recorded where it did.
pub(crate) fn lose_shim(core: &Arc<Core>, sandbox: &Arc<Sandbox>, pid: Option<i32>) -> Result<()> {
    sandbox.set_shim(None);
    // Whether the disk takes it or not, the containers end.
    let noted = sandbox.update(|record| record.phase = SandboxPhase::NotReady);
    let recorded = exit_records(&core.shim_dir(&sandbox.id)).unwrap_or_default();
    let record = sandbox.record();
    let pid = pid.map(|pid| format!(" (PID {pid})")).unwrap_or_default();
    for container in core.table.containers_of(&sandbox.id).iter().filter(|container| container.is_running()) {
        let group = container::cgroup_path(core, &record, &container.id);
        if let Err(error) = core.cgroups.kill(&group) {
            tracing::error!(container = container.id, %error, "cannot end a container of a shim that died");
        }
        let started_at = container::status::started_at(&container.phase());
        let known = recorded.iter().find(|record| record.container == container.id);
        let exited = match known {
            Some(record) => container::status::exited(started_at, &record.exit),
            None => Exited {
                started_at,
                finished_at: now(),
                code: KILLED_CODE,
                reason: "Error".to_owned(),
                message: format!(
                    "the shim of the Pod's sandbox {}{pid} died; its containers were ended",
                    sandbox.id
                ),
            },
        };
        if container.set_exited(exited) {
            core.announce(&container.id, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
        }
    }
    core.lose_execs(&sandbox.id);
    core.announce(&sandbox.id, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
    noted
}
