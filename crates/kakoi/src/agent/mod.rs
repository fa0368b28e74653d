//! `kakoi kubelet`: the node agent alone, under any API server and over any runtime that serves CRI.

mod eviction;
mod file;
mod identity;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::feature::{Feature, GateError, Gates};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use kubelet::{ApiService, Clock, ClusterDns, KubeletConfig, RunError, ServerTls, ServingCertificate};
use network::Family;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{ConfigError, node_name};
use crate::instance::{self, LockError};
use crate::notify::notify;
use crate::places::Places;
use crate::roles::{KernelProbe, node_addresses};
use crate::{cli, ids, machine, signal};
use file::{File, FileError};
use identity::{Identity, IdentityError};

/// All addresses of the node.
const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
/// The port of the kubelet's HTTPS server.
const PORT: u16 = 10_250;

/// Why the kubelet can't run alone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AgentError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("`{0}` is not a socket; write unix:///path (--container-runtime-endpoint)")]
    Endpoint(String),
    #[error(transparent)]
    Gates(#[from] GateError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the label `{0}` is not of the form key=value (--node-labels)")]
    Label(String),
    #[error("make the serving certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("{action} {}: {cause}", .path.display())]
    Io { action: &'static str, path: PathBuf, cause: io::Error },
    #[error("make a user namespace to probe volumes with: {0}")]
    Probe(io::Error),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("can't wait for signals: {0}")]
    Signals(#[from] io::Error),
}

/// Runs the node agent until SIGTERM or SIGINT. The Pods run on.
pub(crate) async fn run(places: &Places, command: &cli::Kubelet) -> Result<(), AgentError> {
    instance::require_root()?;
    let file = command.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
    for field in &file.ignored {
        tracing::warn!("KubeletConfiguration.{field} is ignored: this kubelet does not follow it");
    }
    let _lock = instance::take(places.root(), &places.run().join("kubelet"))?;
    let mut ended = std::pin::pin!(signal::ended()?);
    let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
    // A first certificate may be long in coming.
    let config = tokio::select! {
        () = &mut ended => Ok(None),
        config = Box::pin(configure(places, command, file, (&tasks, &shutdown))) => config.map(Some),
    };
    let result = match config {
        Ok(Some(config)) => serve(config, ended, &shutdown).await,
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    shutdown.cancel();
    tasks.close();
    tasks.wait().await;
    result
}

/// Runs the node agent until it ends by itself or is asked to.
async fn serve(
    config: KubeletConfig,
    ended: impl Future<Output = ()>,
    shutdown: &CancellationToken,
) -> Result<(), AgentError> {
    tracing::info!(node = config.node_name, "the kubelet runs");
    let mut kubelet = std::pin::pin!(kubelet::run(config, None, shutdown.clone()));
    notify("READY=1");
    let early = tokio::select! {
        () = ended => None,
        result = &mut kubelet => Some(result),
    };
    notify("STOPPING=1");
    shutdown.cancel();
    match early {
        Some(result) => Ok(result?),
        None => Ok(kubelet.await?),
    }
}

async fn configure(
    places: &Places,
    command: &cli::Kubelet,
    file: File,
    (tasks, shutdown): (&TaskTracker, &CancellationToken),
) -> Result<KubeletConfig, AgentError> {
    let settings = file.settings;
    let name = node_name(command.hostname_override.clone())?;
    let directory = command.cert_dir.clone().unwrap_or_else(|| places.kubelet().join("pki"));
    let identity = Identity {
        node: &name,
        kubeconfig: &command.kubeconfig,
        bootstrap: command.bootstrap_kubeconfig.as_deref(),
        directory: &directory,
        is_rotating: settings.rotate_certificates.unwrap_or(false),
        tasks,
        shutdown,
    };
    let addresses = addresses(&command.node_ip);
    let max_pods = settings.max_pods.unwrap_or(110);
    let ids_per_pod =
        settings.user_namespaces.ids_per_pod.unwrap_or_else(|| userns::DEFAULT_IDS_PER_POD.into());
    let listen: SocketAddr = (settings.address.unwrap_or(ANY), settings.port.unwrap_or(PORT)).into();
    let gates = gates(command, &settings.feature_gates)?;
    let endpoint =
        command.container_runtime_endpoint.clone().or_else(|| settings.container_runtime_endpoint.clone());
    let socket = socket(places, endpoint.as_deref())?;
    let labels = labels(&command.node_labels)?;
    let listener = kubelet::listen(listen).await?;
    // What is wrong with the settings is said before anybody is asked for a certificate.
    let client = identity.client().await?;
    Ok(KubeletConfig {
        api_service: api_service(&client).await,
        tls: tls(&identity, &client, &settings, &addresses)?,
        client,
        // A runtime that is not there yet, or no more, is waited for.
        cri: ::cri::connect_unix_lazily(&socket).into(),
        node_name: name.clone(),
        addresses: node_addresses(&addresses, &name),
        labels,
        pod_cidrs: pod_cidrs(settings.pod_cidr.as_deref().unwrap_or_default()),
        max_pods,
        kubelet_version: apiserver::KUBERNETES_VERSION.to_owned(),
        kubelet_dir: places.kubelet(),
        static_pod_path: settings.static_pod_path.clone(),
        pod_logs_dir: settings.pod_logs_dir.clone().unwrap_or_else(|| places.pod_logs()),
        cgroups: settings.cgroup_driver.unwrap_or_default().roots(places),
        listener,
        cluster_dns: ClusterDns {
            servers: settings.cluster_dns.clone(),
            domain: settings.cluster_domain.clone().unwrap_or_else(|| "cluster.local".to_owned()),
        },
        resolv_conf: settings.resolv_conf.clone().unwrap_or_else(machine::resolver),
        userns_policy: command.user_namespaces.unwrap_or_default(),
        is_userns_on: gates.is_enabled(Feature::UserNamespacesSupport),
        is_seccomp_default: settings.seccomp_default.unwrap_or(false),
        allowed_sysctls: settings.allowed_unsafe_sysctls.clone(),
        ids: ids::space(places, ids_per_pod, max_pods),
        probe: Arc::new(KernelProbe::new().map_err(AgentError::Probe)?),
        configz: file.whole,
        eviction: file.eviction,
        shutdown: crate::shutdown::on_this_machine(file.shutdown, systemd::Bus::system()),
        log_limits: file.logs,
        clock: Clock::system(),
    })
}

/// Where Pods reach the API: the cluster's own Service, or its usual address while the API does not say.
async fn api_service(client: &Client) -> ApiService {
    let usual = ApiService { host: "10.96.0.1".to_owned(), port: 443 };
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let found = match services.get("kubernetes").await {
        Ok(service) => service.spec,
        Err(error) => {
            tracing::warn!(%error, "the Service `kubernetes` is not known; Pods are told {}", usual.host);
            None
        }
    };
    let port = found.as_ref().and_then(|spec| u16::try_from(spec.ports.as_ref()?.first()?.port).ok());
    let host = found.and_then(|spec| spec.cluster_ip);
    match (host, port) {
        (Some(host), Some(port)) => ApiService { host, port },
        _ => usual,
    }
}

/// The file's gates, then the flag's, which win.
fn gates(command: &cli::Kubelet, file: &BTreeMap<String, bool>) -> Result<Gates, GateError> {
    let from_file = file.iter().map(|(name, value)| format!("{name}={value}"));
    let text: Vec<String> = from_file.chain(command.feature_gates.clone()).collect();
    let (gates, warnings) = Gates::parse(&text.join(","))?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(gates)
}

fn socket(places: &Places, endpoint: Option<&str>) -> Result<PathBuf, AgentError> {
    let Some(endpoint) = endpoint else { return Ok(places.cri_socket()) };
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if path.starts_with('/') { Ok(path.into()) } else { Err(AgentError::Endpoint(endpoint.to_owned())) }
}

fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, AgentError> {
    let pairs = texts.iter().filter(|text| !text.is_empty()).map(|text| {
        let pair = text.split_once('=').ok_or_else(|| AgentError::Label(text.clone()))?;
        Ok((pair.0.to_owned(), pair.1.to_owned()))
    });
    pairs.collect()
}

/// The certificate that the configuration names; one of the cluster's signer, where that is wished; or the one in the
/// certificates' directory, made if it is missing.
fn tls(
    identity: &Identity<'_>,
    client: &Client,
    settings: &file::Settings,
    addresses: &[IpAddr],
) -> Result<ServerTls, AgentError> {
    let read = |path: &Path| {
        fs::read(path).map_err(|cause| AgentError::Io { action: "read", path: path.to_owned(), cause })
    };
    let names: Vec<String> =
        std::iter::once(identity.node.to_owned()).chain(addresses.iter().map(IpAddr::to_string)).collect();
    let serving = match (&settings.tls_cert_file, &settings.tls_private_key_file) {
        (Some(certificate), Some(key)) => {
            ServingCertificate::Fixed { certificate: read(certificate)?, key: read(key)? }
        }
        _ if settings.server_tls_bootstrap.unwrap_or(false) => identity.serving(client, names),
        _ => {
            let (certificate, key) =
                (identity.directory.join("kubelet.crt"), identity.directory.join("kubelet.key"));
            if !(certificate.exists() && key.exists()) {
                make_certificate((&certificate, &key), names)?;
            }
            ServingCertificate::Fixed { certificate: read(&certificate)?, key: read(&key)? }
        }
    };
    let client_ca = settings.authentication.x509.client_ca_file.as_deref();
    Ok(ServerTls { serving, client_ca: client_ca.map(read).transpose()?.unwrap_or_default() })
}

/// The node's addresses: those that are given, else the one that leads out, IPv4's before IPv6's.
fn addresses(given: &[IpAddr]) -> Vec<IpAddr> {
    if !given.is_empty() {
        return given.to_vec();
    }
    let found = [Family::V4, Family::V6].into_iter().find_map(machine::address);
    vec![found.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))]
}

/// The ranges of `podCIDR`, which are one or two.
fn pod_cidrs(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|cidr| !cidr.is_empty()).map(str::to_owned).collect()
}

/// A self-signed certificate, as upstream's kubelet makes one.
fn make_certificate((certificate, key): (&Path, &Path), names: Vec<String>) -> Result<(), AgentError> {
    let made = rcgen::generate_simple_self_signed(names)?;
    write(key, made.signing_key.serialize_pem().as_bytes(), 0o600)?;
    write(certificate, made.cert.pem().as_bytes(), 0o644)
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), AgentError> {
    let wrong = |cause| AgentError::Io { action: "write", path: path.to_owned(), cause };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(wrong)?;
    }
    let mut file = fs::File::options();
    let file = file.write(true).create(true).truncate(true).mode(mode);
    file.open(path).and_then(|mut file| file.write_all(content)).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_and_labels_are_checked() {
        let places = Places::new(Path::new("/r"));
        let path = |endpoint| socket(&places, endpoint).map_err(|error| error.to_string());
        assert_eq!(
            path(Some("unix:///run/containerd/containerd.sock")),
            Ok("/run/containerd/containerd.sock".into())
        );
        assert_eq!(path(None), Ok("/r/run/kakoi/kakoi.sock".into()));
        assert!(path(Some("tcp://1.2.3.4")).unwrap_err().contains("--container-runtime-endpoint"));
        assert_eq!(labels(&["a=b".into()]).unwrap(), BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        assert!(labels(&["a".into()]).unwrap_err().to_string().contains("--node-labels"));
    }

    #[test]
    fn a_certificate_is_made_once_and_its_key_is_roots_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = (dir.path().join("pki/kubelet.crt"), dir.path().join("pki/kubelet.key"));
        make_certificate((&certificate, &key), vec!["node".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        assert!(fs::read_to_string(&certificate).unwrap().contains("BEGIN CERTIFICATE"));
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
