//! `kakoi down`: ends the daemon, then every Pod, then the network. It works when the daemon is dead, too: what runs
//! is found from disk. What is stored stays, so that the next `up` starts the same Pods with the same IDs.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConfigError, Flags};
use crate::ids;
use crate::instance::{self, LockError};
use crate::node::{self, NodeError};
use crate::output;
use crate::places::Places;

/// Why a node can't be taken down.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DownError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("can't end the daemon (PID {pid}): {cause}")]
    Daemon { pid: u32, cause: io::Error },
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Stop(#[from] runtime::StopError),
    #[error("the Pods have ended, but their volumes are still mounted: {0}")]
    Volumes(#[source] io::Error),
    #[error("the Pods have ended, but the instance's claims of host IDs are not removed: {0}")]
    Claims(#[source] io::Error),
    #[error("the Pods have ended, but the network is not down: {0}")]
    Network(#[from] network::NetworkError),
}

/// Takes the instance down; containers have `grace` to end by themselves.
pub(crate) async fn down(places: &Places, grace: Duration) -> Result<(), DownError> {
    instance::require_root()?;
    if !places.state().exists() {
        output::note(format!("nothing of kakoi is on the root {}", places.root().display()));
        return Ok(());
    }
    if let Some(pid) = instance::holder(&places.run()) {
        end(pid).await.map_err(|cause| DownError::Daemon { pid, cause })?;
    }
    let _lock = instance::take(places.root(), &places.run())?;
    let config = Config::load(places, &Flags::default())?;
    stop_pods(places, &config, grace).await
}

/// Asks the daemon to end and waits until it has; one that is gone has.
async fn end(pid: u32) -> io::Result<()> {
    let raw =
        i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no such PID"))?;
    let asked = pidfd_open(raw, PidfdFlags::empty())
        .and_then(|daemon| pidfd_send_signal(&daemon, Signal::TERM).map(|()| daemon));
    let daemon = match asked {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        asked => asked?,
    };
    // A pidfd becomes readable when its process has ended.
    let waited = tokio::task::spawn_blocking(move || poll(&mut [PollFd::new(&daemon, PollFlags::IN)], None));
    waited.await.map_err(io::Error::other)??;
    Ok(())
}

async fn stop_pods(places: &Places, config: &Config, grace: Duration) -> Result<(), DownError> {
    let images = node::open_images(places).map_err(NodeError::from)?;
    let network = node::reopen_network(places, config.pod_cidrs).await?;
    let shutdown = CancellationToken::new();
    // One whose program is gone can't help to end its containers; they end with their cgroups.
    let handlers = node::handlers(config).unwrap_or_default();
    let parts = (images, network.clone(), handlers);
    let runtime =
        node::start_runtime(places, parts, config.cgroup_driver, shutdown).await.map_err(NodeError::from)?;
    let stopped = runtime.stop_all(grace).await;
    runtime.shutdown().await;
    stopped?;
    kubelet::unmount_volumes(&places.kubelet()).map_err(DownError::Volumes)?;
    kubelet::idspace::remove_unused_claims(&ids::space(places, config.ids_per_pod, config.max_pods))
        .map_err(DownError::Claims)?;
    Ok(network.teardown().await?)
}
