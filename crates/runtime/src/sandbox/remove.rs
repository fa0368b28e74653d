//! `StopPodSandbox` and `RemovePodSandbox`, and the undoing of a half-made sandbox: the same steps, each of which
//! finds done what was done before. What does not wait for another step is done beside it: the containers with each
//! other, the network with the shim. All steps are tried; the first error is reported.

use std::sync::Arc;
use std::time::Duration;

use cri::v1::ContainerEventType;
use futures::future::join_all;

use crate::container;
use crate::core::{Core, blocking};
use crate::crash::CrashPoint;
use crate::error::{Error, Result};
use crate::process::signal;
use crate::record::{SandboxPhase, SandboxRecord};
use crate::state::{Container, Sandbox};

/// How long the kernel may take to end killed processes (they may be in uninterruptible sleep).
const KILL_PATIENCE: Duration = Duration::from_secs(30);

/// Ends a sandbox's containers, its network and its shim. Unknown or stopped already is success.
pub(crate) async fn stop(core: Arc<Core>, id: String) -> Result<()> {
    let Some(sandbox) = core.table.find_sandbox(&id) else { return Ok(()) };
    let _gate = sandbox.gate.lock().await;
    stop_held(&core, &sandbox).await
}

/// Removes a sandbox and its containers. Unknown is success.
pub(crate) async fn remove(core: Arc<Core>, id: String) -> Result<()> {
    let Some(sandbox) = core.table.find_sandbox(&id) else { return Ok(()) };
    let _gate = sandbox.gate.lock().await;
    stop_held(&core, &sandbox).await?;
    let containers = core.table.containers_of(&id);
    let removals = containers.iter().map(|it| container::remove(Arc::clone(&core), it.id.clone()));
    join_all(removals).await.into_iter().collect::<Result<()>>()?;
    note(&sandbox, |record| record.phase = SandboxPhase::Removing).await?;
    core.config.crash.reached(CrashPoint::SandboxRemoving)?;
    erase(&core, &sandbox).await?;
    core.announce(&id, &id, ContainerEventType::ContainerDeletedEvent);
    core.table.remove_sandbox(&id);
    Ok(())
}

/// Undoes a half-made sandbox. Errors are logged: the verb that failed reports its own, and what can't be
/// undone now is tried again at the next start.
pub(crate) async fn undo(core: &Arc<Core>, sandbox: &Arc<Sandbox>) {
    let steps = async {
        end_shim(core, sandbox).await?;
        detach_network(core, sandbox).await?;
        erase(core, sandbox).await
    };
    match steps.await {
        Ok(()) => core.table.remove_sandbox(&sandbox.id),
        Err(error) => {
            tracing::error!(sandbox = sandbox.id, %error, "cannot undo a half-made sandbox; trying again at the next start");
            core.table.remove_sandbox(&sandbox.id);
        }
    }
}

async fn stop_held(core: &Arc<Core>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let before = sandbox.record();
    if before.is_stopped {
        return end_shim(core, sandbox).await;
    }
    let containers = core.table.containers_of(&sandbox.id);
    let kills = containers.iter().map(|container| kill(core, sandbox, container));
    join_all(kills).await.into_iter().collect::<Result<()>>()?;
    core.config.crash.reached(CrashPoint::SandboxContainersStopped)?;
    // Before the shim goes, so that its end is not taken for an accident.
    note(sandbox, |record| record.phase = SandboxPhase::NotReady).await?;
    let left = leave(core, sandbox).await;
    if before.phase == SandboxPhase::Ready && sandbox.shim().is_none() {
        core.announce(&sandbox.id, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
    }
    left?;
    core.config.crash.reached(CrashPoint::ShimStopped)?;
    note(sandbox, |record| record.is_stopped = true).await
}

/// Gives the network back and ends the shim: both at once, but for plugins, which want to find the Pod's namespace.
async fn leave(core: &Arc<Core>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let detach = async {
        detach_network(core, sandbox).await?;
        core.config.crash.reached(CrashPoint::NetworkDetached)
    };
    if core.config.network.as_ref().is_some_and(|network| !network.is_built_in()) {
        detach.await?;
        return end_shim(core, sandbox).await;
    }
    let (detached, ended) = tokio::join!(detach, end_shim(core, sandbox));
    ended.and(detached)
}

/// Changes the record, which waits for the disk.
async fn note(
    sandbox: &Arc<Sandbox>,
    change: impl FnOnce(&mut SandboxRecord) + Send + 'static,
) -> Result<()> {
    let sandbox = Arc::clone(sandbox);
    blocking(move || sandbox.update(change)).await
}

/// Kills a container and waits until it has ended.
pub(crate) async fn kill(core: &Arc<Core>, sandbox: &Arc<Sandbox>, container: &Arc<Container>) -> Result<()> {
    if !container.is_running() {
        return Ok(());
    }
    let (shim, id) = (sandbox.shim(), container.id.clone());
    let group = container::cgroup_path(core, &sandbox.record(), &id);
    let cgroups = core.cgroups.clone();
    blocking(move || {
        let asked = shim.map(|shim| shim.signal_all(&id, signal::KILL));
        if !matches!(asked, Some(Ok(()))) {
            cgroups.kill(&group)?;
        }
        Ok(())
    })
    .await?;
    tokio::time::timeout(KILL_PATIENCE, container.wait_ended()).await.map_err(|_| {
        Error::Timeout(format!("the container {} did not end within 30 s of SIGKILL", container.id))
    })
}

async fn detach_network(core: &Arc<Core>, sandbox: &Sandbox) -> Result<()> {
    let Some(network) =
        core.config.network.as_ref().filter(|_| super::run::uses_pod_network(&sandbox.record()))
    else {
        return Ok(());
    };
    let detached = network.detach(&sandbox.id).await;
    detached.map_err(|error| Error::failed("detach the sandbox from the Pod network", error))
}

async fn end_shim(core: &Arc<Core>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let place = core.shim_dir(&sandbox.id);
    let shim = sandbox.shim();
    blocking(move || {
        // A daemon that died between the spawn and the record left a shim that only its directory knows.
        let shim = shim.or_else(|| shim::client::connect(&place).ok().map(Arc::new));
        let Some(shim) = shim else { return Ok(()) };
        shim.shutdown().map_err(|error| Error::failed("end the sandbox's shim", error))
    })
    .await?;
    sandbox.set_shim(None);
    Ok(())
}

async fn erase(core: &Arc<Core>, sandbox: &Arc<Sandbox>) -> Result<()> {
    let (core, sandbox) = (Arc::clone(core), Arc::clone(sandbox));
    blocking(move || {
        core.cgroups.remove_own_parent(&sandbox.record());
        core.trash.discard(&core.shim_dir(&sandbox.id))?;
        core.trash.discard(sandbox.directory())
    })
    .await
}
