//! `kakoi runtime`: the container runtime alone, over CRI on a Unix socket, for `crictl` or any kubelet.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::cli;
use crate::config::{Config, ConfigError, Flags};
use crate::instance::{self, LockError};
use crate::node::{self, NodeError};
use crate::notify::notify;
use crate::places::Places;
use crate::signal;

/// Why the runtime can't be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    #[error("`{0}` is not a socket to listen on; write unix:///path (--listen)")]
    Listen(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Bind(#[from] ::cri::BindError),
    #[error("can't wait for signals: {0}")]
    Signals(#[from] std::io::Error),
}

/// Serves CRI until SIGTERM or SIGINT. The Pods run on.
pub(crate) async fn serve(places: &Places, command: &cli::Runtime) -> Result<(), ServeError> {
    instance::require_root()?;
    let socket = socket(places, command.listen.as_deref())?;
    let flags = Flags {
        pod_cidr: command.pod_cidr.clone(),
        runtime_handlers: command.handlers.clone(),
        cgroup_driver: command.cgroup_driver,
        ..Flags::default()
    };
    let config = Config::load(places, &flags)?;
    let _lock = instance::take(places.root(), &places.run())?;
    let shutdown = CancellationToken::new();
    let ended = signal::ended()?;
    let images = node::open_images(places).map_err(NodeError::from)?;
    let plugins = command.cni_conf_dir.as_deref().map(|conf| (conf, command.cni_bin_dir.as_slice()));
    node::note_plugins(places, plugins)?;
    let network = match &command.cni_conf_dir {
        Some(conf) => node::open_plugins(places, conf, &command.cni_bin_dir).await,
        None => node::open_network(places, config.pod_cidrs, None).await,
    };
    let network = network.map_err(NodeError::from)?;
    let handlers = node::handlers(&config).map_err(ConfigError::from)?;
    let parts = (images.clone(), network, handlers);
    let runtime =
        node::start_runtime(places, parts, config.cgroup_driver, shutdown).await.map_err(NodeError::from)?;
    runtime.listen(&socket).await?;
    tracing::info!(socket = %socket.display(), "the container runtime serves CRI");
    notify("READY=1");
    ended.await;
    notify("STOPPING=1");
    runtime.shutdown().await;
    images.close().await;
    Ok(())
}

fn socket(places: &Places, listen: Option<&str>) -> Result<PathBuf, ServeError> {
    let Some(listen) = listen else { return Ok(places.cri_socket()) };
    let path = listen.strip_prefix("unix://").unwrap_or(listen);
    if path.starts_with('/') { Ok(path.into()) } else { Err(ServeError::Listen(listen.to_owned())) }
}
