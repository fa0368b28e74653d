//! `StopContainer` and `RemoveContainer`.

use std::sync::Arc;
use std::time::Duration;

use cri::v1::ContainerEventType;

use crate::core::{Core, blocking};
use crate::crash::CrashPoint;
use crate::error::{Error, Result};
use crate::handler;
use crate::process::signal;
use crate::record::ContainerPhase;
use crate::sandbox;
use crate::state::{Container, Sandbox, lock};

/// Ends a container: its stop signal, then SIGKILL after `timeout` seconds. Unknown or ended already is success.
pub(crate) async fn stop(core: Arc<Core>, id: String, timeout: i64) -> Result<()> {
    let Some(container) = core.table.find_container(&id) else { return Ok(()) };
    if !container.is_running() {
        return Ok(());
    }
    let Some(sandbox) = core.table.find_sandbox(&container.sandbox) else { return Ok(()) };
    let patience = Duration::from_secs(u64::try_from(timeout).unwrap_or(0));
    if !patience.is_zero() {
        ask_to_end(&core, &sandbox, &container).await?;
        if tokio::time::timeout(patience, container.wait_ended()).await.is_ok() {
            return Ok(());
        }
    }
    sandbox::kill(&core, &sandbox, &container).await
}

/// Sends the stop signal: through the OCI runtime where one runs the container, for only that knows what the PID means.
async fn ask_to_end(core: &Core, sandbox: &Sandbox, container: &Container) -> Result<()> {
    let Some(shim) = sandbox.shim() else { return Ok(()) };
    let record = container.record();
    let image = Some(record.image.config.stop_signal.as_str()).filter(|signal| !signal.is_empty());
    let number = signal::stop_signal(record.config.stop_signal, image);
    let id = container.id.clone();
    // A handler that is no longer configured can't be asked.
    let handler = core.handlers.find(&sandbox.record().handler).ok().flatten().cloned();
    let sent = blocking(move || match handler {
        Some(handler) => handler.kill(&id, number),
        None => shim.signal(&id, number).map_err(|error| Error::failed("signal the container", error)),
    });
    match sent.await {
        Err(error) if container.is_running() => Err(error),
        _ => Ok(()),
    }
}

/// Removes a container, ending it first. Unknown is success.
pub(crate) async fn remove(core: Arc<Core>, id: String) -> Result<()> {
    let Some(container) = core.table.find_container(&id) else { return Ok(()) };
    let _gate = container.gate.lock().await;
    let sandbox = core.table.find_sandbox(&container.sandbox);
    if let Some(sandbox) = &sandbox {
        sandbox::kill(&core, sandbox, &container).await?;
    }
    let erased = {
        let (core, container) = (Arc::clone(&core), Arc::clone(&container));
        blocking(move || {
            container.update(|record| record.phase = ContainerPhase::Removing)?;
            erase(&core, sandbox.as_deref(), &container)
        })
    };
    erased.await?;
    core.table.remove_container(&id);
    core.announce(&id, &container.sandbox, ContainerEventType::ContainerDeletedEvent);
    Ok(())
}

/// Removes what a container left: its plan in the shim, its cgroup, its directory.
fn erase(core: &Core, sandbox: Option<&Sandbox>, container: &Container) -> Result<()> {
    core.config.crash.reached(CrashPoint::ContainerRemoving)?;
    lock(&container.rootfs).take();
    if let Some(sandbox) = sandbox {
        if let Some(shim) = sandbox.shim()
            && let Err(error) = shim.remove_container(&container.id)
        {
            // A container that was never started is unknown to its shim.
            tracing::debug!(container = container.id, %error, "the shim does not hold the container");
        }
        handler::forget(core, &sandbox.record().handler, &container.id)?;
        core.cgroups.remove(&super::cgroup_path(core, &sandbox.record(), &container.id))?;
    }
    core.trash.discard(&container.directory().join(super::apply::UPPER))?;
    core.config.crash.reached(CrashPoint::ContainerFilesRemoved)?;
    core.trash.discard(container.directory())
}
