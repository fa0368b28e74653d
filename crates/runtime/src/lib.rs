//! The container runtime: the CRI services over images, the Pod network and one shim per Pod.
//!
//! [`Runtime::start`] finds what an earlier daemon left and takes it over; [`Runtime::connect`] and [`Runtime::listen`]
//! serve CRI. Requests are worked out as plans first (pure functions), then carried out in short steps, each of which is
//! recorded so that the daemon may die between any two. Containers belong to their shims, so [`Runtime::shutdown`]
//! leaves them running; [`Runtime::stop_all`] ends them.

mod cdi;
mod cgroup;
mod config;
mod container;
mod core;
mod crash;
mod error;
mod features;
mod files;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod handler;
mod id;
mod mapping;
mod metrics;
pub mod probe;
mod process;
mod record;
mod recover;
mod sandbox;
mod scope;
mod seccomp;
mod service;
mod state;
mod stats;
mod streaming;
mod trash;

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cri::kakoi::images_server::ImagesServer;
use shim::client::Launcher;
use tokio::net::TcpListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;

use crate::core::{Core, containers_dir, make_dir, sandboxes_dir, shims_dir};
use crate::features::{Features, Probe};
use crate::handler::Handlers;
use crate::service::{ImageServer, RuntimeServer};
use crate::state::Table;
use crate::streaming::Streaming;
pub use config::{CgroupDriver, RuntimeConfig};
pub use crash::{CrashHook, CrashPoint};
pub use handler::{HandlerConfig, HandlerError, describe, handlers};

/// The static `kakoi-shim` program that this crate was built with, for [`RuntimeConfig::shim`].
pub const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kakoi-shim"));

/// Why a runtime can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A directory, a cgroup or the shims' launcher could not be made, or records could not be read.
    #[error("start the container runtime: {0}")]
    Prepare(String),
    /// The streaming server has no port.
    #[error("start the container runtime: listen on 127.0.0.1 for exec, attach and port-forward: {0}")]
    Listen(std::io::Error),
}

/// Why the containers could not all be ended.
#[derive(Debug, thiserror::Error)]
#[error("stop all Pods: {0}")]
pub struct StopError(String);

/// A running container runtime.
#[derive(Debug)]
pub struct Runtime {
    core: Arc<Core>,
}

impl Runtime {
    /// Starts the runtime and takes over what an earlier one left. Ends when `shutdown` is cancelled; then call
    /// [`Runtime::shutdown`] to join its tasks.
    ///
    /// # Errors
    /// When its directories, its cgroup, its launcher or its streaming server can't be made.
    pub async fn start(config: RuntimeConfig, shutdown: CancellationToken) -> Result<Self, StartError> {
        let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
            .await
            .map_err(StartError::Listen)?;
        let address = listener.local_addr().map_err(StartError::Listen)?;
        let prepared =
            tokio::task::spawn_blocking(move || prepare(config, Streaming::new(address), shutdown)).await;
        let core = prepared.unwrap_or_else(|error| Err(StartError::Prepare(error.to_string())))?;
        handler::probe_all(&core);
        recover::recover(&core).await.map_err(|error| StartError::Prepare(error.to_string()))?;
        reconcile(&core).await;
        core.tasks.spawn(streaming::serve(Arc::clone(&core), listener));
        core.tasks.spawn(trash::serve(Arc::clone(&core)));
        Ok(Self { core })
    }

    /// The two CRI services of this runtime, and ours beside them.
    fn routes(&self) -> Routes {
        let images = ImagesServer::new(ImageServer(Arc::clone(&self.core)));
        let (runtime, image) = (Arc::clone(&self.core), Arc::clone(&self.core));
        cri::routes(RuntimeServer(runtime), ImageServer(image)).add_service(images)
    }

    /// CRI for clients in this process.
    pub fn connect(&self) -> cri::Connection {
        self.routes().into()
    }

    /// Serves CRI on a Unix socket until the runtime shuts down.
    ///
    /// # Errors
    /// When the socket can't be listened on.
    pub async fn listen(&self, socket: &std::path::Path) -> Result<(), cri::BindError> {
        let listener = cri::bind_unix(socket).await?;
        let incoming = UnixListenerStream::new(listener);
        let serving = cri::serve(self.routes(), incoming, self.core.shutdown.clone());
        self.core.tasks.spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(%error, "the CRI server ended");
            }
        });
        Ok(())
    }

    /// Ends every Pod, as `kakoi down` does, and removes the instance's cgroup: all containers get their stop signal
    /// at once, those that still run after `grace` get SIGKILL. All Pods are tried. The runtime can make no more
    /// sandboxes after.
    ///
    /// # Errors
    /// The first of what went wrong.
    pub async fn stop_all(&self, grace: Duration) -> Result<(), StopError> {
        let seconds = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let containers = self.core.table.containers();
        let ends = containers.iter().map(|c| container::stop(Arc::clone(&self.core), c.id.clone(), seconds));
        // What can't be signalled is killed with its sandbox, and reported there.
        drop(futures::future::join_all(ends).await);
        let mut first = None;
        let sandboxes = self.core.table.sandboxes();
        let records: Vec<_> = sandboxes.iter().map(|sandbox| sandbox.record()).collect();
        for sandbox in sandboxes {
            let removed =
                self.core.complete(sandbox::remove(Arc::clone(&self.core), sandbox.id.clone())).await;
            if let Err(error) = removed {
                tracing::error!(sandbox = sandbox.id, %error, "cannot end a Pod");
                first.get_or_insert_with(|| error.to_string());
            }
        }
        let core = Arc::clone(&self.core);
        let slices = core::blocking(move || {
            core.cgroups.stop_empty_slices(&records);
            core.trash.empty();
            Ok(())
        });
        // It says itself what it could not do.
        drop(slices.await);
        if first.is_none()
            && let Err(error) = self.core.cgroups.remove_instance()
        {
            first = Some(error.to_string());
        }
        first.map_or(Ok(()), |error| Err(StopError(error)))
    }

    /// Stops serving and joins all tasks. The Pods run on.
    pub async fn shutdown(self) {
        self.core.shutdown.cancel();
        self.core.tasks.close();
        self.core.tasks.wait().await;
    }
}

fn prepare(
    config: RuntimeConfig,
    streaming: Streaming,
    shutdown: CancellationToken,
) -> Result<Arc<Core>, StartError> {
    let failed = |error: &dyn std::fmt::Display| StartError::Prepare(error.to_string());
    let directories: [PathBuf; 3] =
        [sandboxes_dir(&config.state_dir), containers_dir(&config.state_dir), shims_dir(&config.run_dir)];
    for directory in directories {
        make_dir(&directory).map_err(|error| failed(&error))?;
    }
    let trash = trash::Trash::open(&[&config.state_dir, &config.run_dir]).map_err(|error| failed(&error))?;
    let features = Features::probe(&Probe {
        state_dir: &config.state_dir,
        layers_dir: &config.images.layers_dir(),
        volume_dirs: &config.probe_dirs,
        etc: &config.etc,
    });
    let handlers = Handlers::open(&config.handlers, &config.run_dir, &config.stage_dir)
        .map_err(|error| failed(&error))?;
    let launcher = Launcher::new(&config.shim)
        .map_err(|error| StartError::Prepare(format!("make the shims' launcher: {error}")))?;
    let scopes = scope::Scopes::new(&config);
    let cgroups = cgroup::Cgroups::open(&config.cgroup_parent, scopes).map_err(|error| failed(&error))?;
    Ok(Arc::new(Core {
        config,
        table: Table::default(),
        launcher,
        handlers,
        cgroups,
        trash,
        profiles: sys::seccomp::Profiles::new(),
        features,
        streaming,
        events: Core::event_channel(),
        warned: Mutex::new(BTreeSet::new()),
        execs: Mutex::new(HashMap::new()),
        tasks: TaskTracker::new(),
        shutdown,
    }))
}

/// What depends on which sandboxes are left: the network forgets the others, and layers that nobody needs go.
async fn reconcile(core: &Core) {
    if let Some(network) = &core.config.network {
        let live: Vec<String> = core.table.sandboxes().iter().map(|sandbox| sandbox.id.clone()).collect();
        if let Err(error) = network.reconcile(&live).await {
            tracing::error!(%error, "cannot put the Pod network in order");
        }
    }
    if let Err(error) = core.config.images.collect().await {
        tracing::warn!(%error, "cannot remove layers that nobody needs");
    }
}
