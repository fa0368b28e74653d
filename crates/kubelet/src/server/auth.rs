//! Who asks the node agent: holders of a certificate of the client CA. Bearer tokens, and who may do what, are the API
//! server's to say ([`super::review`]).

use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::certificate::Pair;

/// The group that may do everything.
const MASTERS: &str = "system:masters";

/// The server's own certificate.
#[derive(Clone)]
pub enum ServingCertificate {
    /// One that stays, as PEM.
    Fixed {
        /// The certificate chain, the server's own first.
        certificate: Vec<u8>,
        /// Its private key.
        key: Vec<u8>,
    },
    /// The one that a [`Renewal`](crate::certificate::Renewal) tells of; nobody is served before there is one.
    Renewed(watch::Receiver<Option<Arc<Pair>>>),
}

impl std::fmt::Debug for ServingCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fixed { .. } => "Fixed",
            Self::Renewed(_) => "Renewed",
        })
    }
}

/// The server's certificate and the CA of its clients.
#[derive(Clone)]
pub struct ServerTls {
    /// What the server shows.
    pub serving: ServingCertificate,
    /// The CA that signs clients' certificates, as PEM; empty for none, so that clients need a token.
    pub client_ca: Vec<u8>,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerTls")
    }
}

/// Why the server's certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file holds something else.
    #[error("read the kubelet's {what}: {source}; it must be PEM")]
    Pem {
        /// Which one.
        what: &'static str,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// The certificate and its key do not fit, or the CA is unusable.
    #[error("use the kubelet's certificates: {0}")]
    Rustls(#[from] rustls::Error),
    /// The CA is unusable.
    #[error("use the kubelet's client CA: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

fn certificates(pem: &[u8], what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    read.map_err(|source| TlsError::Pem { what, source })
}

/// Checks the certificates of clients that show one.
fn verifier(
    client_ca: &[u8],
    provider: Arc<rustls::crypto::CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(client_ca, "client CA")? {
        roots.add(certificate)?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    Ok(builder.allow_unauthenticated().build()?)
}

/// The TLS configuration: clients may show a certificate of the CA, where there is one.
pub(crate) fn server_config(tls: &ServerTls) -> Result<rustls::ServerConfig, TlsError> {
    let provider = Arc::new(default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = if tls.client_ca.is_empty() {
        builder.with_no_client_auth()
    } else {
        builder.with_client_cert_verifier(verifier(&tls.client_ca, provider)?)
    };
    let mut config = match &tls.serving {
        ServingCertificate::Fixed { certificate, key } => {
            let key = PrivateKeyDer::from_pem_slice(key)
                .map_err(|source| TlsError::Pem { what: "private key", source })?;
            builder.with_single_cert(certificates(certificate, "certificate")?, key)?
        }
        ServingCertificate::Renewed(told) => builder.with_cert_resolver(Arc::new(Newest(told.clone()))),
    };
    // Upgrades need HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Shows whatever certificate is the newest.
#[derive(Debug)]
struct Newest(watch::Receiver<Option<Arc<Pair>>>);

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = self.0.borrow().as_ref().map(|pair| pair.certified());
        if found.is_none() {
            tracing::warn!(
                "nobody is served: the kubelet's serving certificate is not approved yet (kubectl get csr)"
            );
        }
        found
    }
}

/// A client, as its certificate names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
}

impl Client {
    /// The subject of a verified certificate: common name and organisations.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let subject = parsed.subject();
        let name = subject.iter_common_name().find_map(|name| name.as_str().ok())?.to_owned();
        let groups = subject.iter_organization().filter_map(|group| group.as_str().ok().map(str::to_owned));
        Some(Self { name, groups: groups.collect() })
    }

    pub(crate) fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == MASTERS)
    }
}
