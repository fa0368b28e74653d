//! Remote command and port-forward protocols: WebSocket v4 and v5, SPDY/3.1, client and server side.
//!
//! [`remotecommand`] serves `exec` and `attach`, [`portforward`] serves `port-forward`; both hand out plain
//! `AsyncRead`/`AsyncWrite` streams and know nothing of containers. [`feed`] sends messages one way. [`proxy`] passes an upgrade request on to
//! another server and then copies bytes, which is all that the API server and the kubelet do with these.
//! Nothing here opens a connection or listens: the caller brings the request and the transport.

pub mod feed;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod portforward;
pub mod proxy;
pub mod remotecommand;
pub mod spdy;

mod pipe;
mod status;
mod upgrade;
mod websocket;

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use pipe::{Input, Output};
pub use status::ExitStatus;
pub use upgrade::Refusal;

/// The owner of the tasks that move bytes once a connection has been upgraded.
///
/// Clones share one owner. [`Sessions::close`] ends every session and waits for the tasks.
#[derive(Clone, Debug, Default)]
pub struct Sessions {
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

impl Sessions {
    /// An owner whose sessions end when `shutdown` is cancelled.
    pub fn new(shutdown: CancellationToken) -> Self {
        Self { tracker: TaskTracker::new(), shutdown }
    }

    /// How many sessions are running.
    pub fn count(&self) -> usize {
        self.tracker.len()
    }

    /// Ends all sessions and waits until their tasks have returned.
    pub async fn close(&self) {
        self.shutdown.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// Runs `session` until it returns; it watches [`Sessions::shutdown`] itself when it has a farewell to say.
    pub(crate) fn spawn(&self, session: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(session);
    }

    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }
}
