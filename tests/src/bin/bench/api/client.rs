//! A client that costs the machine little: HTTP/2 over TLS with the admin's certificate and bodies made beforehand.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// What client-go lets a server send ahead: of one answer, and of all on a connection.
const WINDOWS: (u32, u32) = (4 << 20, 1 << 30);
/// An answer that has not come after this is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a server is and who asks it.
#[derive(Clone)]
pub(crate) struct Target {
    port: u16,
    tls: Arc<ClientConfig>,
}

impl Target {
    /// The server on this port of the loopback interface, asked as this kubeconfig's user.
    pub(crate) async fn read(kubeconfig: &Path, port: u16) -> Self {
        let file = Kubeconfig::read_from(kubeconfig).expect("the server wrote a kubeconfig");
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
        let tls = config.expect("the kubeconfig has one cluster").rustls_client_config();
        let mut tls = tls.expect("the kubeconfig has keys");
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Self { port, tls: Arc::new(tls) }
    }

    /// A new connection; `None` while nobody answers.
    pub(crate) async fn try_connect(&self) -> Option<Connection> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await.ok()?;
        stream.set_nodelay(true).ok()?;
        let name = ServerName::try_from("localhost").ok()?;
        let stream = TlsConnector::from(self.tls.clone()).connect(name, stream).await.ok()?;
        let mut builder = Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(WINDOWS.0).initial_connection_window_size(WINDOWS.1);
        let (send, connection) = builder.handshake(TokioIo::new(stream)).await.ok()?;
        // It ends when the last sender is gone, and with the runtime.
        tokio::spawn(async move { connection.await.ok() });
        Some(Connection { send, port: self.port })
    }

    pub(crate) async fn connect(&self) -> Connection {
        self.try_connect().await.expect("the server takes connections")
    }
}

/// One connection; a clone is the same one.
#[derive(Clone)]
pub(crate) struct Connection {
    send: SendRequest<Full<Bytes>>,
    port: u16,
}

impl Connection {
    /// The head of the answer, and a body to be read.
    pub(crate) async fn open(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Option<Response<Incoming>> {
        let mut request =
            Request::builder().method(method).uri(format!("https://localhost:{}{path}", self.port));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).expect("the request is well formed");
        self.send.ready().await.ok()?;
        tokio::time::timeout(PATIENCE, self.send.send_request(request)).await.ok()?.ok()
    }

    /// Sends JSON; the answer must be a success.
    pub(crate) async fn ask(&mut self, method: Method, path: &str, media: &str, body: Bytes) -> Bytes {
        let headers = [("content-type", media)];
        let answer = self.open(method, path, &headers, body).await.expect("the server answers");
        let code = answer.status();
        let body = answer.into_body().collect().await.expect("the answer comes to its end").to_bytes();
        assert!(code.is_success(), "{path}: {code}: {}", String::from_utf8_lossy(&body));
        body
    }

    pub(crate) async fn post(&mut self, path: &str, body: Bytes) -> Bytes {
        self.ask(Method::POST, path, "application/json", body).await
    }
}
