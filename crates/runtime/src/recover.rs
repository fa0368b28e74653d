//! What a daemon does first: finds the sandboxes and containers of the one before, connects to their shims, takes
//! over the ends that happened meanwhile, and finishes or undoes what was half-done.

use std::path::Path;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use shim::client::ShimClient;
use shim::protocol::{Phase, ShimState};

use crate::container;
use crate::core::{Core, containers_dir, remove_tree, sandboxes_dir, shims_dir};
use crate::error::Result;
use crate::id::is_id;
use crate::record::{self, ContainerPhase, ContainerRecord, Exited, SandboxPhase, SandboxRecord};
use crate::sandbox::{self, follow};
use crate::state::{Container, Sandbox};

/// Reads everything back. Errors of one sandbox or container are logged and leave the others alone.
pub(crate) async fn recover(core: &Arc<Core>) -> Result<()> {
    let sandboxes = load::<SandboxRecord>(&sandboxes_dir(&core.config.state_dir))?;
    let containers = load::<ContainerRecord>(&containers_dir(&core.config.state_dir))?;
    for record in sandboxes {
        let sandbox = Arc::new(Sandbox::new(core.sandbox_dir(&record.id), record, None));
        if core.table.add_sandbox(Arc::clone(&sandbox)).is_err() {
            tracing::error!(sandbox = sandbox.id, "two sandboxes have the same name; the second is removed");
            sandbox::undo(core, &sandbox).await;
        }
    }
    for record in containers {
        let container = Arc::new(Container::new(core.container_dir(&record.id), record));
        container.pin(&core.config.images);
        let is_orphan = core.table.find_sandbox(&container.sandbox).is_none();
        if core.table.add_container(Arc::clone(&container)).is_err() || is_orphan {
            tracing::warn!(container = container.id, "the container has no sandbox; removing it");
            container::undo(core, &container).await;
        }
    }
    for sandbox in core.table.sandboxes() {
        resume_sandbox(core, &sandbox).await;
    }
    for container in core.table.containers() {
        resume_container(core, &container).await;
    }
    remove_stray_shims(core);
    Ok(())
}

/// The records of every directory that is named by an ID. One that can't be read is removed with its directory:
/// it was never complete, so nothing outside the directory depends on it.
fn load<T: DeserializeOwned>(parent: &Path) -> Result<Vec<T>> {
    let mut records = Vec::new();
    for id in ids(parent) {
        let directory = parent.join(&id);
        match record::load(&directory) {
            Ok(Some(record)) => records.push(record),
            Ok(None) => remove_tree(&directory)?,
            Err(error) => {
                tracing::error!(%error, "removing what belongs to a record that can't be read");
                remove_tree(&directory)?;
            }
        }
    }
    Ok(records)
}

fn ids(parent: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_id(name)).collect()
}

async fn resume_sandbox(core: &Arc<Core>, sandbox: &Arc<Sandbox>) {
    match sandbox.phase() {
        SandboxPhase::Creating => {
            tracing::info!(sandbox = sandbox.id, "undoing a sandbox that was half made");
            sandbox::undo(core, sandbox).await;
        }
        SandboxPhase::Removing => {
            tracing::info!(sandbox = sandbox.id, "finishing the removal of a sandbox");
            if let Err(error) = sandbox::remove(Arc::clone(core), sandbox.id.clone()).await {
                tracing::error!(sandbox = sandbox.id, %error, "cannot finish the removal");
            }
        }
        SandboxPhase::Ready => reconnect(core, sandbox),
        // A stop that was interrupted is finished; one that was complete finds nothing to do.
        SandboxPhase::NotReady => {
            if let Err(error) = sandbox::stop(Arc::clone(core), sandbox.id.clone()).await {
                tracing::error!(sandbox = sandbox.id, %error, "cannot finish the stop of a sandbox");
            }
        }
    }
}

fn reconnect(core: &Arc<Core>, sandbox: &Arc<Sandbox>) {
    let found = shim::client::connect(&core.shim_dir(&sandbox.id)).map(Arc::new);
    let adopted = match &found {
        Ok(shim) => {
            sandbox.set_shim(Some(Arc::clone(shim)));
            adopt(core, sandbox, shim)
        }
        Err(error) => {
            tracing::warn!(sandbox = sandbox.id, %error, "the sandbox's shim is gone");
            follow::lose_shim(core, sandbox, None)
        }
    };
    if let Err(error) = adopted {
        tracing::error!(sandbox = sandbox.id, %error, "cannot take over the sandbox");
    }
}

/// Brings the containers' records up to what the shim says, then listens to it.
fn adopt(core: &Arc<Core>, sandbox: &Arc<Sandbox>, shim: &Arc<ShimClient>) -> Result<()> {
    let state = shim.state().map_err(|error| crate::error::Error::failed("ask the sandbox's shim", error))?;
    for container in core.table.containers_of(&sandbox.id) {
        adopt_container(&container, &state)?;
    }
    follow::follow(core, sandbox, Arc::clone(shim))
}

fn adopt_container(container: &Container, state: &ShimState) -> Result<()> {
    let Some(known) = state.containers.iter().find(|known| known.id == container.id) else {
        forget_unknown(container);
        return Ok(());
    };
    let started_at = known.started_at.and_then(|at| i64::try_from(at).ok()).unwrap_or_default();
    match (known.phase, &known.exit) {
        // All others are recorded as what they are: a restart with many containers writes nothing.
        (Phase::Running, _) if container.phase() == ContainerPhase::Starting => container.update(|record| {
            record.phase = ContainerPhase::Running { pid: known.pid.unwrap_or_default(), started_at };
        }),
        (Phase::Exited, Some(exit)) => {
            container.set_exited(container::status::exited(started_at, exit));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A container that ran by its record and is unknown to its shim has ended, nobody knows how.
fn forget_unknown(container: &Container) {
    if let ContainerPhase::Running { started_at, .. } = container.phase() {
        container.set_exited(Exited {
            started_at,
            finished_at: crate::core::now(),
            code: 137,
            reason: "Error".to_owned(),
            message: "the Pod's shim does not know the container; how it ended is lost".to_owned(),
        });
    }
}

async fn resume_container(core: &Arc<Core>, container: &Arc<Container>) {
    match container.phase() {
        ContainerPhase::Creating => {
            tracing::info!(container = container.id, "undoing a container that was half made");
            container::undo(core, container).await;
        }
        ContainerPhase::Removing => {
            if let Err(error) = container::remove(Arc::clone(core), container.id.clone()).await {
                tracing::error!(container = container.id, %error, "cannot finish the removal");
            }
        }
        ContainerPhase::Starting => end_unstarted(core, container).await,
        ContainerPhase::Created | ContainerPhase::Running { .. } | ContainerPhase::Exited(_) => {}
    }
}

/// The daemon died between `Starting` and the launch: the container never ran, or nobody knows that it did. The
/// kubelet sees a failed start and makes another.
async fn end_unstarted(core: &Arc<Core>, container: &Arc<Container>) {
    let Some(sandbox) = core.table.find_sandbox(&container.sandbox) else { return };
    let record = sandbox.record();
    let group = container::cgroup_path(core, &record, &container.id);
    let ended = crate::core::blocking({
        let (core, container, shim) = (Arc::clone(core), Arc::clone(container), sandbox.shim());
        move || {
            // An OCI runtime may be at it still.
            if let Some(Err(error)) = shim.as_ref().map(|shim| shim.abort(&container.id)) {
                tracing::debug!(container = container.id, %error, "the shim did not end the launch");
            }
            core.cgroups.kill(&group)?;
            crate::handler::forget(&core, &record.handler, &container.id)?;
            if let Some(shim) = shim
                && let Err(error) = shim.remove_container(&container.id)
            {
                tracing::debug!(container = container.id, %error, "the shim did not hold the container");
            }
            core.cgroups.remove(&group)?;
            container.set_exited(Exited {
                started_at: 0,
                finished_at: crate::core::now(),
                code: 128,
                reason: "StartError".to_owned(),
                message: "the runtime was restarted while it started the container".to_owned(),
            });
            Ok(())
        }
    });
    if let Err(error) = ended.await {
        tracing::error!(container = container.id, %error, "cannot clean up after a start that was interrupted");
    }
}

/// Ends shims that belong to no sandbox: those of a record that was lost.
fn remove_stray_shims(core: &Arc<Core>) {
    let parent = shims_dir(&core.config.run_dir);
    for id in ids(&parent).into_iter().filter(|id| core.table.find_sandbox(id).is_none()) {
        let directory = parent.join(&id);
        if let Ok(shim) = shim::client::connect(&directory)
            && let Err(error) = shim.shutdown()
        {
            tracing::error!(sandbox = id, %error, "cannot end a shim that belongs to no sandbox");
            continue;
        }
        if let Err(error) = remove_tree(&directory) {
            tracing::error!(sandbox = id, %error, "cannot remove the directory of a shim that has ended");
        }
    }
}
