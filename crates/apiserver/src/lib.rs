//! The Kubernetes API over HTTP: discovery, authentication, authorisation, admission, watch, subresources.
//!
//! [`start`] opens the store, the certificates and the listener; [`ApiServer::service_for`] is the same API for roles in
//! this process. A request goes through [`server`] to one pipeline for writes ([`write`]) and one cache for reads
//! ([`cache`]); what is a kind's own stands in `api::kind`. Nothing here knows containers: logs, exec and port-forward
//! are passed on to the Pod's kubelet.

mod admission;
mod allocation;
mod audit;
mod authn;
mod authz;
mod body;
mod bootstrap;
mod cache;
mod component;
mod compress;
mod delete;
#[cfg(feature = "descriptions")]
mod description;
#[cfg(not(feature = "descriptions"))]
#[path = "description/absent.rs"]
mod description;
mod document;
mod fence;
mod file;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod health;
mod housekeeping;
mod identity;
mod impersonate;
mod items;
mod kubelet;
mod limit;
mod list;
mod listener;
mod meta;
mod metrics;
mod ownership;
mod patch;
mod pki;
mod pod_security;
mod proxy;
mod request;
mod response;
mod review;
mod server;
mod service;
mod snapshot;
mod stall;
mod subresource;
mod tls;
mod token;
mod view;
mod watch;
mod write;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::feature::Gates;
use store::{Store, StoreError, StoreOptions};
use stream::Sessions;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use userns::policy::Policy;

use cache::{Cache, CacheError};
use kubelet::Kubelets;
use pki::{Authority, Purpose};
use server::Server;
use tls::ServerCertificate;
use token::Signer;

pub use audit::AuditError;
pub use authn::TokenFileError;
pub use document::KUBERNETES as KUBERNETES_VERSION;
pub use identity::Identity;
pub use pki::{KeyAndCertificate, PkiError};
pub use response::ResponseBody;
pub use service::ApiService;
pub use snapshot::PATH as SNAPSHOT_PATH;

/// An error of a body or a connection.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The issuer of service account tokens, and their audience unless they name another.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// The store's file in [`ApiServerConfig::state_dir`].
pub const STORE_FILE: &str = "store.redb";

/// What a server needs to start.
#[derive(Debug, Clone)]
pub struct ApiServerConfig {
    /// Where the store and the keys are kept, for example `/var/lib/kakoi`. Made if it isn't there.
    pub state_dir: PathBuf,
    /// Where to listen; port 0 takes any free port.
    pub secure_listen: SocketAddr,
    /// The addresses at which others reach the server; the first one is told to clients.
    pub advertise: Vec<IpAddr>,
    /// Further names in the server's certificate, such as the node's.
    pub names: Vec<String>,
    /// The address that Pods use (`KUBERNETES_SERVICE_HOST`).
    pub service_ip: IpAddr,
    /// The feature gates.
    pub feature_gates: Gates,
    /// What absent `hostUsers` means on this cluster's nodes, unless a namespace's label says otherwise.
    pub userns_policy: Policy,
    /// The length of a Pod's ID range on them.
    pub ids_per_pod: u32,
    /// Where the admin's kubeconfig is written (mode 0600).
    pub admin_kubeconfig: PathBuf,
    /// Who else may come in, and what is recorded.
    pub access: AccessConfig,
}

/// Settings that most clusters leave as they are.
#[derive(Debug, Clone, Default)]
pub struct AccessConfig {
    /// A file of static tokens: `token,user,uid,"group1,group2"` a line (`--token-auth-file`).
    pub token_file: Option<PathBuf>,
    /// Where each request is recorded as a JSON line (`--audit-log-path`); nowhere without it.
    pub audit_log: Option<PathBuf>,
    /// The directory for the kubeconfigs of controllers and scheduler (`controller-manager.kubeconfig`,
    /// `scheduler.kubeconfig`), where those are programs of their own; none are written without it.
    pub role_kubeconfigs: Option<PathBuf>,
}

/// The server could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is taken.
    #[error(
        "the API server cannot listen on {address}: port {} is in use by another program; stop that program or choose another port with --secure-port", address.port()
    )]
    PortInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address can't be listened on.
    #[error(
        "the API server cannot listen on {address}: {source}; choose another address with --bind-address or another port with --secure-port"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Keys or certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The file of static tokens.
    #[error(transparent)]
    TokenFile(#[from] TokenFileError),
    /// The audit log.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The objects in the store.
    #[error("reading the stored objects: {0}")]
    Cache(#[from] CacheError),
    /// The first objects could not be made.
    #[error("making the namespaces, the Service and the roles that every cluster has: {0}")]
    Bootstrap(api::status::Status),
}

/// A running server.
#[derive(Debug)]
pub struct ApiServer {
    server: Arc<Server>,
    authority: Arc<Authority>,
    address: SocketAddr,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// Starts a server; it runs until `shutdown` is cancelled.
///
/// # Errors
/// What could not be opened, read or listened on, with what to do about it.
pub async fn start(config: ApiServerConfig, shutdown: CancellationToken) -> Result<ApiServer, StartError> {
    let listener = listen(config.secure_listen).await?;
    let address = listener
        .local_addr()
        .map_err(|source| StartError::Listen { address: config.secure_listen, source })?;
    file::make_directory(&config.state_dir).map_err(PkiError::from)?;
    // The store comes first: it keeps a second server away from the keys, too.
    let store = Store::open(&config.state_dir.join(STORE_FILE), &StoreOptions::default())?;
    let keys = Arc::new(Keys::open(&config, address)?);
    let shutdown = shutdown.child_token();
    let sessions = Sessions::new(shutdown.child_token());
    let server = Arc::new(Server {
        cache: Cache::open(store).await?,
        signer: Signer::open(keys.authority.directory(), ISSUER)?,
        static_tokens: config
            .access
            .token_file
            .as_deref()
            .map(authn::StaticTokens::read)
            .transpose()?
            .unwrap_or_default(),
        authorizer: authz::Authorizer::default(),
        audiences: vec![ISSUER.to_owned()],
        gates: config.feature_gates,
        userns_policy: config.userns_policy,
        ids_per_pod: config.ids_per_pod,
        public_address: keys.public_address.clone(),
        allocator: allocation::Allocator::new(config.service_ip),
        documents: document::Documents::default(),
        kubelets: Kubelets::new(keys.kubelet_client()?, sessions.clone()),
        sessions,
        limits: limit::Limits::default(),
        quota_locks: admission::quota::Locks::default(),
        audit: config.access.audit_log.as_deref().map(audit::AuditLog::open).transpose()?.unwrap_or_default(),
        metrics: metrics::Metrics::default(),
        snapshots: Arc::new(tokio::sync::Semaphore::new(1)),
        shutdown: shutdown.clone(),
    });
    bootstrap::make_namespaces(&server).await.map_err(StartError::Bootstrap)?;
    allocation::repair(&server).await;
    bootstrap::make_service(&server, config.service_ip, &keys.public_address)
        .await
        .map_err(StartError::Bootstrap)?;
    bootstrap::reconcile_objects(&server).await.map_err(StartError::Bootstrap)?;
    let tls = tls::server_config(&keys.authority, keys.certificate.clone())?;
    let tasks = TaskTracker::new();
    tasks.spawn(listener::run(listener, tls, server.clone(), shutdown.clone()));
    tasks.spawn(authz::aggregate(server.clone()));
    let renewing = keys.clone();
    tasks.spawn(housekeeping::run(server.clone(), move || renewing.renew()));
    tasks.close();
    tracing::info!(%address, revision = server.cache.revision(), "the API server is ready");
    Ok(ApiServer { server, authority: keys.authority.clone(), address, tasks, shutdown })
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => StartError::PortInUse { address },
        _ => StartError::Listen { address, source },
    })
}

/// The server's keys and where they are used.
#[derive(Debug)]
struct Keys {
    authority: Arc<Authority>,
    certificate: Arc<ServerCertificate>,
    serving: Purpose,
    public_address: String,
    kubeconfig: PathBuf,
    role_kubeconfigs: Option<PathBuf>,
    local_url: String,
}

const SERVING: (&str, &str) = ("apiserver", "kube-apiserver");

impl Keys {
    fn open(config: &ApiServerConfig, address: SocketAddr) -> Result<Self, StartError> {
        let authority = Arc::new(Authority::open(&config.state_dir.join("pki"))?);
        let serving = serving(config, address);
        let pair = authority.keep(SERVING.0, SERVING.1, &serving)?;
        let certificate = Arc::new(ServerCertificate::new(&authority, &pair)?);
        let local =
            if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
        let public = config.advertise.first().copied().unwrap_or(local);
        let keys = Self {
            authority,
            certificate,
            serving,
            public_address: SocketAddr::new(public, address.port()).to_string(),
            kubeconfig: config.admin_kubeconfig.clone(),
            role_kubeconfigs: config.access.role_kubeconfigs.clone(),
            local_url: format!("https://{}", SocketAddr::new(local, address.port())),
        };
        keys.write_kubeconfig()?;
        Ok(keys)
    }

    fn write_kubeconfig(&self) -> Result<(), PkiError> {
        let write =
            |path: &Path, client| bootstrap::write_kubeconfig(path, &self.authority, &self.local_url, client);
        write(&self.kubeconfig, bootstrap::Client::ADMIN)?;
        if let Some(directory) = &self.role_kubeconfigs {
            write(&directory.join("controller-manager.kubeconfig"), bootstrap::Client::CONTROLLERS)?;
            write(&directory.join("scheduler.kubeconfig"), bootstrap::Client::SCHEDULER)?;
        }
        Ok(())
    }

    fn kubelet_client(&self) -> Result<Arc<rustls::ClientConfig>, PkiError> {
        let purpose = Purpose::Client { groups: vec![identity::MASTERS.to_owned()] };
        let name = "kube-apiserver-kubelet-client";
        tls::client_config(&self.authority, &self.authority.keep("apiserver-kubelet-client", name, &purpose)?)
    }

    /// Makes what ends soon anew; the listener shows it from then on.
    fn renew(&self) {
        let renewed = self
            .authority
            .keep(SERVING.0, SERVING.1, &self.serving)
            .and_then(|pair| self.certificate.replace(&self.authority, &pair))
            .and_then(|()| self.write_kubeconfig());
        if let Err(error) = renewed {
            tracing::error!(%error, "the API server's certificates could not be renewed");
        }
    }
}

/// The names and addresses in the server's certificate.
fn serving(config: &ApiServerConfig, address: SocketAddr) -> Purpose {
    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .iter()
        .map(|name| (*name).to_owned())
        .collect();
    names.push("kubernetes.default.svc.cluster.local".to_owned());
    names.extend(config.names.iter().cloned());
    let mut addresses =
        vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST), config.service_ip];
    addresses.extend(&config.advertise);
    if !address.ip().is_unspecified() {
        addresses.push(address.ip());
    }
    names.dedup();
    addresses.sort_unstable();
    addresses.dedup();
    Purpose::Server { names, addresses }
}

impl ApiServer {
    /// The API for a role in this process, as this identity.
    pub fn service_for(&self, identity: Identity) -> ApiService {
        ApiService::new(self.server.clone(), identity)
    }

    /// Where the server listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificate of the authority that signs all others, in PEM.
    pub fn ca_pem(&self) -> &str {
        self.authority.certificate_pem()
    }

    /// The certificate and the key of that authority, for the controllers that sign requests.
    ///
    /// # Errors
    /// When the files can't be read.
    pub fn signing_pair(&self) -> Result<KeyAndCertificate, PkiError> {
        self.authority.pair()
    }

    /// A new client certificate: `user` is its common name, `groups` its organisations. Valid for a year.
    ///
    /// # Errors
    /// When it can't be signed.
    pub fn issue_client_certificate(
        &self,
        user: &str,
        groups: &[&str],
    ) -> Result<KeyAndCertificate, PkiError> {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        self.authority.issue(user, &Purpose::Client { groups })
    }

    /// A new server certificate for a kubelet. Valid for a year.
    ///
    /// # Errors
    /// When it can't be signed, for example because a name is no DNS name.
    pub fn issue_serving_certificate(
        &self,
        common_name: &str,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<KeyAndCertificate, PkiError> {
        let purpose = Purpose::Server { names: names.to_vec(), addresses: addresses.to_vec() };
        self.authority.issue(common_name, &purpose)
    }

    /// Waits until the server has stopped: after `shutdown` is cancelled, open requests have some seconds to end.
    pub async fn join(self) {
        self.shutdown.cancelled().await;
        self.server.kubelets.close().await;
        self.tasks.wait().await;
        // Roles may still hold their clients; nothing is lost that they were told is written.
        self.server.cache.store().close().await;
    }
}
