//! Registries behind TLS: authorities from `hosts.toml`, none at all, and client certificates.

use std::path::Path;
use std::sync::Arc;

use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::PrivateKeyDer;

use crate::support::{Image, Node, Tar};

/// Who signs the certificates of a test.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn issue(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap(), key)
    }
}

/// Serves an image over TLS (HTTP/2 if the client wants it); with `clients`, only to those who have a certificate of it.
async fn serve(image: Image, authority: &Authority, clients: Option<&Authority>) -> std::net::SocketAddr {
    let (certificate, key) = authority.issue("localhost");
    let builder = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            roots.add(clients.0.der().clone()).unwrap();
            let provider = Arc::new(ring::default_provider());
            builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap(),
            )
        }
    };
    let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let mut settings = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    settings.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(settings));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let image = Arc::new(image);
    // Ends with the test's runtime.
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let Ok(connection) = acceptor.accept(connection).await else { continue };
            let image = Arc::clone(&image);
            tokio::spawn(async move {
                let answer = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let name = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
                    let blob = name.parse().ok().and_then(|digest| image.blobs.get(&digest));
                    let body = blob.unwrap_or(&image.manifest).clone();
                    async move {
                        Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(bytes::Bytes::from(
                            body,
                        ))))
                    }
                });
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(connection), answer).await;
            });
        }
    });
    address
}

fn write(dir: &Path, name: &str, text: &str) {
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join(name), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_needed_and_is_enough() {
    let node = Node::new();
    let authority = Authority::new();
    let layers: Vec<_> =
        (0..6).map(|n| Tar::new().file("x", &format!("{n}").repeat(100_000)).finish()).collect();
    let address = serve(Image::of(&layers), &authority, None).await;
    let registry = format!("localhost:{}", address.port());
    let reference = format!("{registry}/app");
    let server = format!("server = \"https://{registry}\"\n");
    node.hosts(&registry, &server);
    let error = node.pull(&reference).await.unwrap_err();
    assert!(error.contains("TLS: ") && error.contains("UnknownIssuer"), "{error}");
    assert!(error.contains("give the registry's CA as `ca` in its hosts.toml"), "{error}");

    node.hosts(&registry, &format!("{server}ca = \"ca.crt\"\n"));
    let error = node.pull(&reference).await.unwrap_err();
    assert!(error.contains("ca.crt") && error.contains("No such file"), "{error}");
    write(&node.path().join("certs.d").join(&registry), "ca.crt", &authority.0.pem());
    assert_eq!(node.pull(&reference).await.unwrap().layers.len(), 6);

    node.hosts(&registry, &format!("{server}skip_verify = true\n"));
    node.store.remove(&reference).await.unwrap();
    node.pull(&reference).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_to_those_who_ask() {
    let node = Node::new();
    let (authority, clients) = (Authority::new(), Authority::new());
    let image = Image::of(&[Tar::new().file("x", "x").finish()]);
    let address = serve(image, &authority, Some(&clients)).await;
    let registry = format!("localhost:{}", address.port());
    let reference = format!("{registry}/app");
    let dir = node.path().join("certs.d").join(&registry);
    write(&dir, "ca.crt", &authority.0.pem());
    let error = node.pull(&reference).await.unwrap_err();
    assert!(error.contains("TLS: ") || error.contains("the connection broke"), "{error}");
    // Docker's older layout, without a hosts.toml.
    let (certificate, key) = clients.issue("client");
    write(&dir, "node.cert", &certificate.pem());
    write(&dir, "node.key", &key.serialize_pem());
    node.pull(&reference).await.unwrap();
}
