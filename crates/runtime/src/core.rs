//! What all verbs share: where things lie, the shims' launcher, what exists, who listens.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use cri::v1::{ContainerEventResponse, ContainerEventType};
use shim::client::Launcher;
use shim::protocol::Exit;
use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::RuntimeConfig;
use crate::error::{Error, Result};
use crate::features::Features;
use crate::state::{Table, lock};
use crate::streaming::Streaming;

/// Events that a slow listener may lag behind before it is cut off.
const EVENT_BACKLOG: usize = 4096;

/// The shared part of a runtime.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: RuntimeConfig,
    pub(crate) table: Table,
    pub(crate) launcher: Launcher,
    /// OCI runtimes beside the built-in handler.
    pub(crate) handlers: crate::handler::Handlers,
    pub(crate) cgroups: crate::cgroup::Cgroups,
    /// Directories that are removed behind the answer.
    pub(crate) trash: crate::trash::Trash,
    /// Compiled seccomp profiles.
    pub(crate) profiles: sys::seccomp::Profiles,
    pub(crate) features: Features,
    pub(crate) streaming: Streaming,
    pub(crate) events: broadcast::Sender<ContainerEventResponse>,
    /// What has been said once.
    pub(crate) warned: Mutex<BTreeSet<String>>,
    /// Who waits for which exec of which sandbox.
    pub(crate) execs: Mutex<HashMap<String, (String, oneshot::Sender<Exit>)>>,
    /// Verbs and followers of shims; joined at shutdown.
    pub(crate) tasks: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

impl Core {
    pub(crate) fn event_channel() -> broadcast::Sender<ContainerEventResponse> {
        broadcast::Sender::new(EVENT_BACKLOG)
    }

    pub(crate) fn sandbox_dir(&self, id: &str) -> PathBuf {
        sandboxes_dir(&self.config.state_dir).join(id)
    }

    pub(crate) fn container_dir(&self, id: &str) -> PathBuf {
        containers_dir(&self.config.state_dir).join(id)
    }

    /// The run directory of a sandbox's shim.
    pub(crate) fn shim_dir(&self, id: &str) -> PathBuf {
        shims_dir(&self.config.run_dir).join(id)
    }

    /// Runs a verb to its end even when the client goes away half-way: a verb is finished or undone, not dropped.
    pub(crate) async fn complete<T: Send + 'static>(
        self: &Arc<Self>,
        verb: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let task = self.tasks.spawn(verb);
        task.await.unwrap_or_else(|error| Err(Error::failed("the verb ended unexpectedly", error)))
    }

    /// Tells the listeners what happened to a container (or a sandbox, by its own ID).
    pub(crate) fn announce(&self, id: &str, sandbox: &str, kind: ContainerEventType) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let _step = tracing::debug_span!(target: "path", "runtime: event").entered();
        let sandbox = self.table.find_sandbox(sandbox);
        let event = ContainerEventResponse {
            container_id: id.to_owned(),
            container_event_type: kind.into(),
            created_at: now(),
            pod_sandbox_status: sandbox
                .as_ref()
                .map(|sandbox| crate::sandbox::status::status(&sandbox.record())),
            containers_statuses: sandbox
                .iter()
                .flat_map(|sandbox| self.table.containers_of(&sandbox.id))
                .map(|container| crate::container::status::status(&container.record(), sandbox.as_deref()))
                .collect(),
        };
        // No receiver is no error: nobody wants to know.
        let _ = self.events.send(event);
    }

    /// Says what a machine could not give in full, once for each text: it is the same for every Pod.
    pub(crate) fn warn_once(&self, id: &str, warnings: &[String]) {
        for warning in warnings {
            if lock(&self.warned).insert(warning.clone()) {
                tracing::warn!(id, warning, "less than was asked for; this is not said again");
            } else {
                tracing::debug!(id, warning, "less than was asked for");
            }
        }
    }

    /// Registers an exec that somebody will wait for.
    pub(crate) fn expect_exec(&self, sandbox: &str, id: &str) -> oneshot::Receiver<Exit> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.execs).insert(id.to_owned(), (sandbox.to_owned(), sender));
        receiver
    }

    /// Tells whoever waits for the exec how it ended.
    pub(crate) fn exec_ended(&self, id: &str, exit: Exit) {
        if let Some((_, waiting)) = lock(&self.execs).remove(id) {
            // Whoever waited may have given up.
            let _ = waiting.send(exit);
        }
    }

    /// Nobody will tell how the sandbox's execs end: whoever waits learns that.
    pub(crate) fn lose_execs(&self, sandbox: &str) {
        lock(&self.execs).retain(|_, (of, _)| of != sandbox);
    }

    /// Forgets an exec that did not start.
    pub(crate) fn forget_exec(&self, id: &str) {
        lock(&self.execs).remove(id);
    }
}

pub(crate) fn sandboxes_dir(state: &Path) -> PathBuf {
    state.join("sandboxes")
}

pub(crate) fn containers_dir(state: &Path) -> PathBuf {
    state.join("containers")
}

pub(crate) fn shims_dir(run: &Path) -> PathBuf {
    run.join("shims")
}

/// Runs blocking work away from the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let result = tokio::task::spawn_blocking(work).await;
    result.unwrap_or_else(|error| Err(Error::failed("the work ended unexpectedly", error)))
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX)
}

/// Removes a directory and all in it; one that is absent is as wanted. Nothing is ever mounted below ours: mounts
/// are detached and live in descriptors, so this can't reach anything else.
pub(crate) fn remove_tree(directory: &Path) -> Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::failed(format!("remove {}", directory.display()), error))
        }
        _ => Ok(()),
    }
}

/// Makes a directory (0700) with its parents.
pub(crate) fn make_dir(directory: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|error| Error::failed(format!("make the directory {}", directory.display()), error))
}
