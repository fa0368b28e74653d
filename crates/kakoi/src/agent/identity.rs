//! Who the node agent is to the API server: the kubeconfig's user, made with a bootstrap token where there is none yet,
//! and a client that shows the newest certificate without a restart.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kubelet::certificate::{
    Bootstrap, BootstrapError, PairStore, Renewal, Template, is_valid_at, write_private,
};
use kubelet::{Clock, ServingCertificate};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Why the node agent has no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("the kubeconfig {}: {cause}", .path.display())]
    Kubeconfig { path: PathBuf, cause: Box<KubeconfigError> },
    #[error("the kubeconfig {} names no cluster in its current context", .0.display())]
    NoCluster(PathBuf),
    #[error("make a client of the API server: {0}")]
    Client(#[from] kube::Error),
    #[error("get the node's client certificate: {0}")]
    Bootstrap(#[from] BootstrapError),
    #[error("write the kubeconfig {}: {cause}", .path.display())]
    Write { path: PathBuf, cause: io::Error },
}

/// What a node agent joins with.
#[derive(Debug)]
pub(super) struct Identity<'a> {
    pub(super) node: &'a str,
    pub(super) kubeconfig: &'a Path,
    pub(super) bootstrap: Option<&'a Path>,
    /// Where certificates are kept.
    pub(super) directory: &'a Path,
    /// `rotateCertificates`
    pub(super) is_rotating: bool,
    pub(super) tasks: &'a TaskTracker,
    pub(super) shutdown: &'a CancellationToken,
}

impl Identity<'_> {
    /// The API, as the node. A first certificate is waited for; later ones are taken over as they come.
    pub(super) async fn client(&self) -> Result<Client, IdentityError> {
        let store = PairStore::client(self.directory);
        if let Some(bootstrap) = self.bootstrap
            && !is_usable(self.kubeconfig, self.is_rotating.then_some(&store))
        {
            self.bootstrap(bootstrap, &store).await?;
        }
        if !self.is_rotating {
            return connect(self.kubeconfig, None).await;
        }
        let (clients, newest) = watch::channel(connect(self.kubeconfig, Some(&store)).await?);
        let client = following(newest);
        let template = Template::client(self.node);
        let renewal =
            Renewal { store: store.clone(), template, client: client.clone(), clock: Clock::system() };
        let (told, mut pairs) = watch::channel(None);
        self.tasks.spawn(renewal.run(told, self.shutdown.clone()));
        let kubeconfig = self.kubeconfig.to_owned();
        self.tasks.spawn(async move {
            while pairs.changed().await.is_ok() {
                match connect(&kubeconfig, Some(&store)).await {
                    Ok(client) => drop(clients.send_replace(client)),
                    Err(error) => tracing::error!(%error, "the new certificate is not used"),
                }
            }
        });
        Ok(client)
    }

    /// A serving certificate of the cluster's signer, for as long as the kubelet runs.
    pub(super) fn serving(&self, client: &Client, hosts: Vec<String>) -> ServingCertificate {
        let renewal = Renewal {
            store: PairStore::serving(self.directory),
            template: Template::serving(self.node, hosts),
            client: client.clone(),
            clock: Clock::system(),
        };
        let (told, pairs) = watch::channel(renewal.current().map(|(pair, _)| Arc::new(pair)));
        self.tasks.spawn(renewal.run(told, self.shutdown.clone()));
        ServingCertificate::Renewed(pairs)
    }

    async fn bootstrap(&self, path: &Path, store: &PairStore) -> Result<(), IdentityError> {
        tracing::info!(bootstrap_kubeconfig = %path.display(), "the node asks for its client certificate");
        let bootstrap = Bootstrap {
            client: connect(path, None).await?,
            template: Template::client(self.node),
            store: store.clone(),
            clock: Clock::system(),
            steps: |_| Ok(()),
        };
        Box::pin(bootstrap.run(self.shutdown)).await?;
        let text = plan_kubeconfig(&read(path)?, &store.current_path());
        let text = text.ok_or_else(|| IdentityError::NoCluster(path.to_owned()))?;
        let wrong = |cause| IdentityError::Write { path: self.kubeconfig.to_owned(), cause };
        write_private(self.kubeconfig, text.as_bytes()).map_err(wrong)
    }
}

fn read(path: &Path) -> Result<Kubeconfig, IdentityError> {
    let wrong = |cause| IdentityError::Kubeconfig { path: path.to_owned(), cause: Box::new(cause) };
    Kubeconfig::read_from(path).map_err(wrong)
}

/// The settings of a kubeconfig; with the newest certificate of `store`, where that is good.
async fn settings(path: &Path, store: Option<&PairStore>) -> Result<kube::Config, IdentityError> {
    let wrong = |cause| IdentityError::Kubeconfig { path: path.to_owned(), cause: Box::new(cause) };
    let mut kubeconfig = read(path)?;
    if let Some(store) = store
        && store.current().is_some_and(|(pair, _)| pair.is_valid_at(Clock::system().now()))
    {
        let current = store.current_path().display().to_string();
        for user in kubeconfig.auth_infos.iter_mut().filter_map(|user| user.auth_info.as_mut()) {
            *user = kube::config::AuthInfo {
                client_certificate: Some(current.clone()),
                client_key: Some(current.clone()),
                ..kube::config::AuthInfo::default()
            };
        }
    }
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(wrong)
}

async fn connect(path: &Path, store: Option<&PairStore>) -> Result<Client, IdentityError> {
    Ok(Client::try_from(settings(path, store).await?)?)
}

/// A client that sends each request with the newest of those told. Connections of older ones end with their requests.
fn following(newest: watch::Receiver<Client>) -> Client {
    let service = tower::service_fn(move |request| {
        let client = newest.borrow().clone();
        async move { client.send(request).await }
    });
    Client::new(service, "default")
}

/// Whether the kubeconfig is there, and its certificate (or that of `store`) is good now. One with another sort of
/// credentials is taken as it is.
fn is_usable(path: &Path, store: Option<&PairStore>) -> bool {
    let Ok(kubeconfig) = Kubeconfig::read_from(path) else { return false };
    let now = Clock::system().now();
    if store.and_then(PairStore::current).is_some_and(|(pair, _)| pair.is_valid_at(now)) {
        return true;
    }
    kubeconfig.auth_infos.iter().filter_map(|user| user.auth_info.as_ref()).all(|user| {
        let pem = match (&user.client_certificate_data, &user.client_certificate) {
            (Some(data), _) => STANDARD.decode(data).ok(),
            (None, Some(file)) => fs::read(file).ok(),
            (None, None) => return true,
        };
        pem.is_some_and(|pem| is_valid_at(&pem, now))
    })
}

/// The kubeconfig of a node whose certificate is at `current`, for the cluster that the bootstrap's leads to; with
/// upstream's names. `None` when it leads to none.
fn plan_kubeconfig(bootstrap: &Kubeconfig, current: &Path) -> Option<String> {
    let context = bootstrap.current_context.as_ref()?;
    let context = bootstrap.contexts.iter().find(|known| known.name == *context)?.context.as_ref()?;
    let cluster = bootstrap.clusters.iter().find(|known| known.name == context.cluster)?.cluster.as_ref()?;
    let fields = serde_json::to_value(cluster).ok()?;
    let fields = fields.as_object()?.iter().filter(|(_, value)| !value.is_null());
    // JSON scalars are YAML.
    let fields: Vec<String> = fields.map(|(name, value)| format!("    {name}: {value}\n")).collect();
    let fields = fields.concat();
    let current = serde_json::Value::from(current.display().to_string());
    Some(format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: default-cluster\n  cluster:\n{fields}contexts:\n\
         - name: default-context\n  context:\n    cluster: default-cluster\n    namespace: default\n    user: default-auth\n\
         current-context: default-context\nusers:\n- name: default-auth\n  user:\n    client-certificate: {current}\n    \
         client-key: {current}\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: &str = "apiVersion: v1\nkind: Config\ncurrent-context: b\n\
        clusters:\n- {name: other, cluster: {server: 'https://other:6443'}}\n\
        - {name: b, cluster: {server: 'https://192.0.2.1:6443', certificate-authority-data: QQ==}}\n\
        users: [{name: b, user: {token: abcdef.0123456789abcdef}}]\n\
        contexts: [{name: b, context: {cluster: b, user: b}}]\n";

    #[test]
    fn the_nodes_kubeconfig_leads_to_the_bootstraps_cluster_with_the_nodes_certificate() {
        let bootstrap = Kubeconfig::from_yaml(BOOTSTRAP).unwrap();
        let text = plan_kubeconfig(&bootstrap, Path::new("/pki/kubelet-client-current.pem")).unwrap();
        assert!(!text.contains("abcdef"), "the token is the bootstrap's alone: {text}");
        let made = Kubeconfig::from_yaml(&text).unwrap();
        let cluster = made.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://192.0.2.1:6443"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("QQ=="));
        let user = made.auth_infos[0].auth_info.as_ref().unwrap();
        assert_eq!(user.client_certificate.as_deref(), Some("/pki/kubelet-client-current.pem"));
        assert_eq!(user.client_key, user.client_certificate);
        let without = Kubeconfig::from_yaml("apiVersion: v1\nkind: Config\n").unwrap();
        assert_eq!(plan_kubeconfig(&without, Path::new("/x")), None);
    }

    #[test]
    fn a_kubeconfig_is_used_unless_its_certificate_is_gone_or_of_no_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubelet.conf");
        assert!(!is_usable(&path, None), "there is none");
        fs::write(&path, BOOTSTRAP).unwrap();
        assert!(is_usable(&path, None), "a token");
        let certificate = dir.path().join("c.pem");
        let text = plan_kubeconfig(&Kubeconfig::from_yaml(BOOTSTRAP).unwrap(), &certificate).unwrap();
        fs::write(&path, text).unwrap();
        assert!(!is_usable(&path, None), "the certificate is gone");
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        for (year, expected) in [(2001, false), (2300, true)] {
            params.not_before = rcgen::date_time_ymd(2000, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            fs::write(&certificate, params.self_signed(&key).unwrap().pem()).unwrap();
            assert_eq!(is_usable(&path, None), expected, "until {year}");
        }
    }
}
