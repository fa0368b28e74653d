//! `kakoi apiserver`, `controller-manager` and `scheduler`: the roles of the control plane as programs of their own.
//! They speak over TLS what they speak in one process in `kakoi up`; none of them needs to be root.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use apiserver::ApiServerConfig;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use controller::{Authority, AuthorityError, ControllerConfig};
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use network::Family;
use tokio_util::sync::CancellationToken;

use crate::cli;
use crate::config::{Config, ConfigError};
use crate::instance::{self, LockError};
use crate::node::SERVICE;
use crate::notify::notify;
use crate::places::Places;
use crate::{machine, output, roles, signal};

/// Why a role can't run alone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Api(#[from] apiserver::StartError),
    #[error("the kubeconfig {}: {cause}", .path.display())]
    Kubeconfig { path: PathBuf, cause: Box<KubeconfigError> },
    #[error("make a client of the API server: {0}")]
    Client(#[from] kube::Error),
    #[error("read {}: {cause}", .path.display())]
    Read { path: PathBuf, cause: io::Error },
    #[error(
        "the kubeconfig {} names no certificate authority, which every namespace's `kube-root-ca.crt` shall hold; name \
         its file with --root-ca-file", .0.display()
    )]
    NoAuthority(PathBuf),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("can't wait for signals: {0}")]
    Signals(#[from] io::Error),
}

/// Runs the API server until SIGTERM or SIGINT.
pub(crate) async fn apiserver(places: &Places, command: &cli::Apiserver) -> Result<(), ControlError> {
    let config = Config::load(places, &command.flags())?;
    let _lock = instance::take(places.root(), &places.run().join("apiserver"))?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let ended = signal::ended()?;
    let shutdown = CancellationToken::new();
    let api = apiserver::start(server_config(places, command, config), shutdown.clone()).await?;
    output::note(format!("export KUBECONFIG={}", places.admin_kubeconfig().display()));
    notify("READY=1");
    ended.await;
    notify("STOPPING=1");
    shutdown.cancel();
    api.join().await;
    Ok(())
}

fn server_config(places: &Places, command: &cli::Apiserver, config: Config) -> ApiServerConfig {
    let access = apiserver::AccessConfig {
        token_file: command.token_auth_file.clone().or(config.access.token_file),
        audit_log: command.audit_log_path.clone().or(config.access.audit_log),
        role_kubeconfigs: Some(places.state()),
    };
    let advertise: Option<IpAddr> = command.advertise_address.or_else(|| machine::address(Family::V4));
    ApiServerConfig {
        state_dir: places.state(),
        secure_listen: config.secure_listen,
        advertise: advertise.into_iter().collect(),
        names: vec![config.node_name],
        service_ip: IpAddr::V4(*SERVICE.ip()),
        feature_gates: config.gates,
        userns_policy: config.userns_policy,
        ids_per_pod: u32::try_from(config.ids_per_pod).unwrap_or(u32::MAX),
        admin_kubeconfig: places.admin_kubeconfig(),
        access,
    }
}

/// Runs the controllers until SIGTERM or SIGINT.
pub(crate) async fn controller_manager(command: &cli::ControllerManager) -> Result<(), ControlError> {
    let ended = signal::ended()?;
    let kubeconfig = read(&command.kubeconfig)?;
    let authority = match &command.root_ca_file {
        Some(path) => read_text(path)?,
        None => {
            authority(&kubeconfig).ok_or_else(|| ControlError::NoAuthority(command.kubeconfig.clone()))?
        }
    };
    let client = client(&command.kubeconfig, kubeconfig).await?;
    let shutdown = CancellationToken::new();
    let signer = match (&command.cluster_signing_cert_file, &command.cluster_signing_key_file) {
        (Some(certificate), Some(key)) => {
            let authority = Authority::new(&read_text(certificate)?, &read_text(key)?)?;
            Some(Arc::new(authority.with_duration(command.cluster_signing_duration)))
        }
        _ => None,
    };
    let config = ControllerConfig { authority: signer, ..ControllerConfig::new(authority) };
    let running = controller::run(client, config, shutdown.clone());
    tracing::info!("the controllers run");
    until(ended, running, &shutdown).await;
    Ok(())
}

/// Runs the scheduler until SIGTERM or SIGINT.
pub(crate) async fn scheduler(command: &cli::Scheduler) -> Result<(), ControlError> {
    let ended = signal::ended()?;
    let kubeconfig = read(&command.kubeconfig)?;
    let client = client(&command.kubeconfig, kubeconfig).await?;
    let shutdown = CancellationToken::new();
    let fencing = roles::fencing(command.user_namespaces.unwrap_or_default());
    tracing::info!("the scheduler runs");
    let role = Box::pin(scheduler::run(client, fencing, shutdown.clone()));
    until(ended, role, &shutdown).await;
    Ok(())
}

/// Runs a role until it is asked to end, and then to its end.
async fn until(
    ended: impl Future<Output = ()>,
    role: impl Future<Output = ()>,
    shutdown: &CancellationToken,
) {
    let mut role = std::pin::pin!(role);
    notify("READY=1");
    tokio::select! {
        () = ended => {}
        () = &mut role => return,
    }
    notify("STOPPING=1");
    shutdown.cancel();
    role.await;
}

fn read(path: &Path) -> Result<Kubeconfig, ControlError> {
    Kubeconfig::read_from(path).map_err(|cause| wrong(path, cause))
}

fn wrong(path: &Path, cause: KubeconfigError) -> ControlError {
    ControlError::Kubeconfig { path: path.to_owned(), cause: Box::new(cause) }
}

async fn client(path: &Path, kubeconfig: Kubeconfig) -> Result<Client, ControlError> {
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Ok(Client::try_from(config.map_err(|cause| wrong(path, cause))?)?)
}

fn read_text(path: &Path) -> Result<String, ControlError> {
    fs::read_to_string(path).map_err(|cause| ControlError::Read { path: path.to_owned(), cause })
}

/// The certificates with which the kubeconfig's first cluster is verified, in PEM.
fn authority(kubeconfig: &Kubeconfig) -> Option<String> {
    let cluster = kubeconfig.clusters.iter().find_map(|cluster| cluster.cluster.as_ref())?;
    match &cluster.certificate_authority_data {
        Some(data) => String::from_utf8(STANDARD.decode(data).ok()?).ok(),
        None => fs::read_to_string(cluster.certificate_authority.as_ref()?).ok(),
    }
}
