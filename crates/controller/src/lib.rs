//! The controllers that the API needs, over a `kube::Client`: default service accounts and the root CA's `ConfigMap`,
//! the deletion of namespaces, the health of nodes, and the collection of what nobody owns any more. They react to
//! watches; a timer runs only where time itself is the cause, as for a node that falls silent.
//!
//! Each controller keeps projections of what it watches, decides in a pure function and then applies the plan. Nothing
//! is kept on disk: after a restart everything is derived from the API again.

mod account;
mod discovery;
mod garbage;
mod metadata;
mod namespace;
mod queue;
mod rest;
mod source;

use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What the controllers must be told.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// The certificates with which Pods verify the API server, in PEM; every namespace gets them.
    pub ca_pem: String,
}

impl ControllerConfig {
    /// Everything as upstream has it.
    pub fn new(ca_pem: impl Into<String>) -> Self {
        Self { ca_pem: ca_pem.into() }
    }
}

/// Runs all controllers until `shutdown`, and waits until they have ended.
///
/// `client` needs the rights of `system:kube-controller-manager`.
pub async fn run(client: Client, config: ControllerConfig, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    tasks.spawn(account::run(client.clone(), config.ca_pem, shutdown.clone()));
    tasks.spawn(namespace::run(client.clone(), shutdown.clone()));
    tasks.spawn(garbage::run(client, shutdown));
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller ended before its time; restart the program");
        }
    }
}
