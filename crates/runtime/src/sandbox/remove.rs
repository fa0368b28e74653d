//! `StopPodSandbox` and `RemovePodSandbox`, and the undoing of a half-made sandbox: the same steps, each of which
//! finds done what was done before. All steps are tried; the first error is reported.

use std::sync::Arc;
use std::time::Duration;

use cri::v1::ContainerEventType;

use crate::container;
use crate::core::{Core, blocking, remove_tree};
use crate::crash::CrashPoint;
use crate::error::{Error, Result};
use crate::process::signal;
use crate::record::SandboxPhase;
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
    for container in core.table.containers_of(&id) {
        container::remove(Arc::clone(&core), container.id.clone()).await?;
    }
    sandbox.update(|record| record.phase = SandboxPhase::Removing)?;
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
    if !before.is_stopped {
        for container in core.table.containers_of(&sandbox.id) {
            kill(core, sandbox, &container).await?;
        }
        core.config.crash.reached(CrashPoint::SandboxContainersStopped)?;
        detach_network(core, sandbox).await?;
        core.config.crash.reached(CrashPoint::NetworkDetached)?;
        // Before the shim goes, so that its end is not taken for an accident.
        sandbox.update(|record| {
            record.phase = SandboxPhase::NotReady;
            record.is_stopped = true;
        })?;
    }
    end_shim(core, sandbox).await?;
    core.config.crash.reached(CrashPoint::ShimStopped)?;
    if before.phase == SandboxPhase::Ready {
        core.announce(&sandbox.id, &sandbox.id, ContainerEventType::ContainerStoppedEvent);
    }
    Ok(())
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
        remove_tree(&core.shim_dir(&sandbox.id))?;
        remove_tree(sandbox.directory())
    })
    .await
}
