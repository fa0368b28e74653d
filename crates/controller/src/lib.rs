//! The controllers that the API needs, over a `kube::Client`: default service accounts and the root CA's `ConfigMap`,
//! the deletion of namespaces, the health of nodes, the endpoints of Services, disruption budgets, quotas, volumes and
//! their claims, certificate requests, Jobs and tokens that are kept for a time, and the collection of what nobody owns
//! any more. They react to watches; a timer runs only where time itself is the cause, as for a node that falls silent.
//!
//! Each controller keeps projections of what it watches, decides in a pure function and then applies the plan. Nothing
//! is kept on disk: after a restart everything is derived from the API again.

mod account;
mod certificate;
mod discovery;
mod disruption;
mod endpoint;
mod event;
mod garbage;
mod metadata;
mod namespace;
mod node;
mod pod;
mod queue;
mod quota;
mod rest;
mod source;
mod token;
mod ttl;
mod volume;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use certificate::{Authority, AuthorityError};

/// What the controllers must be told.
#[derive(Clone, Debug)]
pub struct ControllerConfig {
    /// The certificates with which Pods verify the API server, in PEM; every namespace gets them.
    pub ca_pem: String,
    /// How long a kubelet may be silent before its node counts as unreachable: 40 s, four renewals of its lease.
    pub node_monitor_grace_period: Duration,
    /// The same for a kubelet that has not reported yet: 60 s.
    pub node_startup_grace_period: Duration,
    /// How long a Pod's node must be unknown before the Pod is deleted: 40 s.
    pub pod_quarantine: Duration,
    /// How many Pods that have ended are kept: 12500; 0 keeps all.
    pub terminated_pod_threshold: usize,
    /// What signs certificate requests; none are signed without it.
    pub authority: Option<Arc<Authority>>,
}

impl ControllerConfig {
    /// The times and numbers that are right unless there is a reason for others.
    pub fn new(ca_pem: impl Into<String>) -> Self {
        Self {
            ca_pem: ca_pem.into(),
            node_monitor_grace_period: Duration::from_secs(40),
            node_startup_grace_period: Duration::from_mins(1),
            pod_quarantine: Duration::from_secs(40),
            terminated_pod_threshold: 12_500,
            authority: None,
        }
    }
}

/// Runs all controllers until `shutdown`, and waits until they have ended.
///
/// `client` needs the rights of `system:kube-controller-manager`.
pub async fn run(client: Client, config: ControllerConfig, shutdown: CancellationToken) {
    let mut tasks = JoinSet::new();
    tasks.spawn(account::run(client.clone(), config.ca_pem.clone(), shutdown.clone()));
    tasks.spawn(namespace::run(client.clone(), shutdown.clone()));
    tasks.spawn(garbage::run(client.clone(), shutdown.clone()));
    tasks.spawn(endpoint::run(client.clone(), shutdown.clone()));
    tasks.spawn(disruption::run(client.clone(), shutdown.clone()));
    tasks.spawn(quota::run(client.clone(), shutdown.clone()));
    tasks.spawn(ttl::run(client.clone(), shutdown.clone()));
    tasks.spawn(token::run(client.clone(), shutdown.clone()));
    tasks.spawn(volume::run(client.clone(), shutdown.clone()));
    tasks.spawn(certificate::run(client.clone(), config.authority.clone(), shutdown.clone()));
    tasks.spawn(pod::run(client.clone(), config.clone(), shutdown.clone()));
    tasks.spawn(node::run(client, config, shutdown));
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller ended before its time; restart the program");
        }
    }
}
