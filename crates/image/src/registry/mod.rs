//! Registries: where they are configured to be, and the client that speaks to them.

mod auth;
mod client;
pub(crate) mod hosts;
mod http_client;
mod route;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;

pub(crate) use client::Repository;
pub use hosts::HostsError;
pub use route::Proxies;

use crate::pull::RegistryAuth;
use crate::reference::Reference;
use crate::source::{Candidate, Source};
use hosts::{Endpoint, Host, Place, hosts_of};
use http_client::HttpClient;

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
    /// Proxies on the way.
    pub proxies: Proxies,
}

impl NetworkConfig {
    /// The usual limits, and the proxies of the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`).
    pub fn from_env() -> Self {
        Self { proxies: Proxies::from_env(), ..Self::direct() }
    }

    /// The usual limits and no proxy.
    pub fn direct() -> Self {
        Self {
            connect_timeout: Duration::from_secs(15),
            response_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            retries: 4,
            backoff: Duration::from_millis(250),
            proxies: Proxies::default(),
        }
    }
}

/// All registries.
#[derive(Debug)]
pub(crate) struct Registries {
    certs_dir: PathBuf,
    network: NetworkConfig,
    proxies: Arc<Matcher>,
}

impl Registries {
    pub(crate) fn new(certs_dir: PathBuf, network: NetworkConfig) -> Self {
        let proxies = Arc::new(network.proxies.matcher());
        Self { certs_dir, network, proxies }
    }

    /// The places to ask for `reference`, in order. Reads the registry's configuration and certificates anew, so
    /// that a change counts at the next pull.
    pub(crate) fn candidates(
        &self,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
    ) -> Result<Vec<Candidate>, HostsError> {
        let hosts = hosts_of(&self.certs_dir, reference)?;
        hosts.into_iter().map(|host| self.candidate(host, reference, auth)).collect()
    }

    fn candidate(
        &self,
        host: Host,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
    ) -> Result<Candidate, HostsError> {
        let source = match host.place {
            Place::Layouts(dir) => Source::layouts(&dir, reference),
            Place::Registry(endpoint) => Arc::new(self.registry(*endpoint, reference, auth)?),
        };
        Ok(Candidate {
            source,
            can_resolve: host.can_resolve,
            can_pull: host.can_pull,
            is_other_protocol: host.is_other_protocol,
        })
    }

    fn registry(
        &self,
        endpoint: Endpoint,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
    ) -> Result<Source, HostsError> {
        let tls = tls::client_config(&endpoint.tls)?;
        let http = HttpClient::new(tls, Arc::clone(&self.proxies), self.network.connect_timeout);
        let repository = Repository::new(endpoint, reference, auth.cloned(), self.network.clone(), http);
        Ok(Source::Registry(Arc::new(repository)))
    }
}

/// Reads a `hosts.toml` as that of a registry and of Docker's.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_hosts(text: &str) {
    let path = std::path::Path::new("/certs.d/registry/hosts.toml");
    for registry in ["registry.example:5000", crate::reference::DEFAULT_REGISTRY] {
        let hosts = hosts::parse(text, path, registry).unwrap_or_default();
        for host in hosts {
            if let Place::Registry(endpoint) = &host.place {
                assert!(!endpoint.authority.is_empty() && !endpoint.authority.contains('@'));
                assert!(endpoint.origin().parse::<http::Uri>().is_ok(), "{endpoint:?}");
            }
        }
    }
}

/// Plans what a challenge asks for.
#[cfg(feature = "fuzz")]
pub(crate) fn fuzz_challenges(text: &str) {
    let Ok(value) = http::HeaderValue::from_str(text) else { return };
    let headers = http::HeaderMap::from_iter([(http::header::WWW_AUTHENTICATE, value)]);
    let Some(challenge) = auth::challenge_of(&headers) else { return };
    let secret = RegistryAuth::Basic { username: "user".to_owned(), password: "secret".to_owned() };
    if let Ok(request) = auth::plan_token(&challenge, Some(&secret), "library/image", true) {
        let scheme =
            request.uri.parse::<http::Uri>().ok().and_then(|uri| uri.scheme_str().map(str::to_owned));
        assert!(scheme.is_none_or(|scheme| scheme == "https"), "credentials in the clear: {request:?}");
    }
}
