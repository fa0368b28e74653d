//! Connections over the wire: TLS with a client certificate or without, and HTTP/2 on top of it.

use std::sync::Arc;

use apiserver::KeyAndCertificate;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::World;

/// The certificate of the admin.
pub(crate) fn admin(world: &World) -> KeyAndCertificate {
    world.server.issue_client_certificate("admin", &["system:masters"]).unwrap()
}

/// A connection, as whoever the certificate names, or as nobody.
pub(crate) async fn connect(world: &World, pair: Option<&KeyAndCertificate>) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(world.server.ca_pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match pair {
        Some(pair) => {
            let chain = CertificateDer::pem_slice_iter(pair.certificate_pem.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap();
            config.with_client_auth_cert(chain.map(Result::unwrap).collect(), key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    let stream = TcpStream::connect(world.server.address()).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

/// A client of HTTP/2.
pub(crate) struct Http2(SendRequest<Full<Bytes>>);

impl Http2 {
    pub(crate) async fn new(world: &World, pair: Option<&KeyAndCertificate>) -> Self {
        let stream = TokioIo::new(connect(world, pair).await);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        // It ends when the sender is dropped.
        tokio::spawn(connection);
        Self(sender)
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(&mut self, mut request: Request<&'static str>) -> Response<Bytes> {
        let uri = format!("https://localhost{}", request.uri());
        *request.uri_mut() = uri.parse().unwrap();
        let response = self.0.send_request(request.map(Full::from)).await.unwrap();
        let (parts, body) = response.into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    }
}
