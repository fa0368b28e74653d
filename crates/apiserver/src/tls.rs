//! The server's side of TLS: one certificate that can be replaced while the server runs, and client certificates that are
//! checked against our CA when there are any.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::{default_provider, sign::any_supported_type};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    SupportedCipherSuite,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::pki::{Authority, KeyAndCertificate, PkiError};

/// The certificate that the listener shows.
#[derive(Debug)]
pub(crate) struct ServerCertificate(RwLock<Arc<CertifiedKey>>);

impl ServerCertificate {
    pub(crate) fn new(authority: &Authority, pair: &KeyAndCertificate) -> Result<Self, PkiError> {
        Ok(Self(RwLock::new(certified(authority, pair)?)))
    }

    /// Shows another certificate from now on.
    pub(crate) fn replace(&self, authority: &Authority, pair: &KeyAndCertificate) -> Result<(), PkiError> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified(authority, pair)?;
        Ok(())
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn unusable(authority: &Authority) -> impl Fn(String) -> PkiError {
    let path = authority.directory().to_owned();
    move |reason| PkiError::Unusable { path: path.clone(), reason }
}

fn parts(
    authority: &Authority,
    pair: &KeyAndCertificate,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
    let bad = unusable(authority);
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pair.certificate_pem.as_bytes()).collect();
    let key =
        PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).map_err(|error| bad(error.to_string()))?;
    Ok((chain.map_err(|error| bad(error.to_string()))?, key))
}

fn certified(authority: &Authority, pair: &KeyAndCertificate) -> Result<Arc<CertifiedKey>, PkiError> {
    let (chain, key) = parts(authority, pair)?;
    let key = any_supported_type(&key).map_err(|error| unusable(authority)(error.to_string()))?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

fn roots(authority: &Authority) -> Result<RootCertStore, PkiError> {
    let bad = unusable(authority);
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes());
    roots.add(ca.map_err(|error| bad(error.to_string()))?).map_err(|error| bad(error.to_string()))?;
    Ok(roots)
}

/// The listener's configuration: HTTP/2 and HTTP/1.1, client certificates of our CA or none.
pub(crate) fn server_config(
    authority: &Authority,
    certificate: Arc<ServerCertificate>,
) -> Result<Arc<ServerConfig>, PkiError> {
    let bad = unusable(authority);
    let provider = Arc::new(provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| bad(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ignore_client_order = true;
    Ok(Arc::new(config))
}

/// The suites in the order that kube-apiserver has: AES with 128 bits, which costs the least and is as good, first.
fn provider() -> CryptoProvider {
    let mut provider = default_provider();
    let rank = |suite: &SupportedCipherSuite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 1,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => 2,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => 3,
        _ => 4,
    };
    provider.cipher_suites.sort_by_key(rank);
    provider
}

/// The configuration with which the server speaks to kubelets.
pub(crate) fn client_config(
    authority: &Authority,
    pair: &KeyAndCertificate,
) -> Result<Arc<ClientConfig>, PkiError> {
    let bad = unusable(authority);
    let (chain, key) = parts(authority, pair)?;
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(error.to_string()))?
        .with_root_certificates(roots(authority)?)
        .with_client_auth_cert(chain, key)
        .map_err(|error| bad(error.to_string()))?;
    Ok(Arc::new(config))
}

/// The configuration with which requests are proxied to Pods and services that speak HTTPS: any certificate will do, as
/// theirs are signed by whom they like.
pub(crate) fn trusting_config() -> ClientConfig {
    let provider = Arc::new(default_provider());
    let verifier = Arc::new(AnyCertificate(provider.clone()));
    let builder = ClientConfig::builder_with_provider(provider);
    #[expect(
        clippy::expect_used,
        reason = "the provider has suites for both of rustls' own default versions"
    )]
    let builder = builder.with_safe_default_protocol_versions().expect("ring has TLS 1.2 and 1.3");
    builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
}

/// Checks that the other side holds its certificate's key, and nothing else.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
