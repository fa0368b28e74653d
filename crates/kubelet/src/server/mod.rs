//! The node agent's HTTPS server: logs, exec, attach and port-forward for the API server, health and metrics.

pub(crate) mod auth;
mod log;
mod query;
mod review;
mod stream;
mod usage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ::stream::Sessions;
use ::stream::proxy::Body;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::shared::Shared;
use auth::Client;
use review::{Reviewer, plan_wish};

/// Prometheus' text form.
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// How long a client may take for its TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a request is answered with when it fails: a status and a sentence.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }
}

impl From<crate::runtime::CriError> for Failure {
    fn from(error: crate::runtime::CriError) -> Self {
        let status =
            if error.is_not_found() { StatusCode::NOT_FOUND } else { StatusCode::INTERNAL_SERVER_ERROR };
        Self::new(status, error.message)
    }
}

type Answer = Result<Response<Body>, Failure>;

/// The server's state.
pub(crate) struct Server {
    shared: Arc<Shared>,
    gauges: Box<dyn Fn() -> Option<crate::idspace::Gauges> + Send + Sync>,
    sessions: Sessions,
    reviewer: Reviewer,
}

impl Server {
    pub(crate) fn new(
        shared: Arc<Shared>,
        gauges: impl Fn() -> Option<crate::idspace::Gauges> + Send + Sync + 'static,
    ) -> Self {
        let sessions = Sessions::new(shared.shutdown.child_token());
        Self { shared, gauges: Box::new(gauges), sessions, reviewer: Reviewer::new() }
    }

    /// Serves connections of `listener` until `shutdown`, then waits for those that are open.
    pub(crate) async fn run(
        self: Arc<Self>,
        listener: TcpListener,
        tls: rustls::ServerConfig,
        shutdown: CancellationToken,
    ) {
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let connections = TaskTracker::new();
        while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((connection, peer)) => {
                    let (server, acceptor, shutdown) =
                        (Arc::clone(&self), acceptor.clone(), shutdown.clone());
                    connections.spawn(async move {
                        shutdown.run_until_cancelled(server.serve(connection, peer, acceptor)).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    // Out of descriptors: give others the time to end.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        connections.close();
        connections.wait().await;
        self.sessions.close().await;
    }

    async fn serve(self: Arc<Self>, connection: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor) {
        let _ = connection.set_nodelay(true);
        let tls = match tokio::time::timeout(HANDSHAKE, acceptor.accept(connection)).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%peer, "TLS handshake took too long"),
        };
        let certificates = tls.get_ref().1.peer_certificates();
        let client = certificates.and_then(|chain| chain.first()).and_then(Client::of);
        let service = service_fn(move |request| {
            let (server, client) = (Arc::clone(&self), client.clone());
            async move { Ok::<_, std::convert::Infallible>(server.answer(request, client).await) }
        });
        let http = hyper::server::conn::http1::Builder::new();
        if let Err(error) = http.serve_connection(TokioIo::new(tls), service).with_upgrades().await {
            tracing::debug!(%peer, %error, "connection ended");
        }
    }

    async fn answer(&self, request: Request<Incoming>, client: Option<Client>) -> Response<Body> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let token = bearer(&request);
        let answer = match self.check_access(&method, &path, client, token).await {
            Ok(()) => self.route(request).await,
            Err(failure) => Err(failure),
        };
        answer.unwrap_or_else(|failure| {
            tracing::debug!(%method, path, status = %failure.status, message = failure.message, "refused");
            text(failure.status, failure.message)
        })
    }

    /// Health is everybody's. Otherwise the client must be known, by certificate or token, and the API server must allow
    /// what it wishes. `system:masters` may do everything, also while the API server is away.
    async fn check_access(
        &self,
        method: &Method,
        path: &str,
        client: Option<Client>,
        token: Option<String>,
    ) -> Result<(), Failure> {
        if path == "/healthz" {
            return Ok(());
        }
        let api = &self.shared.client;
        let failed = |error: kube::Error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
        let client = match (client, token) {
            (Some(client), _) => Some(client),
            (None, Some(token)) => self.reviewer.client_of(api, &token).await.map_err(failed)?,
            (None, None) => None,
        };
        let client = client.ok_or_else(|| Failure::new(StatusCode::UNAUTHORIZED, "Unauthorized"))?;
        if client.is_master() {
            return Ok(());
        }
        let wish = plan_wish(method, path);
        let answer = self.reviewer.allows(api, &self.shared.node_name, &client, &wish).await;
        if answer.map_err(failed)? {
            return Ok(());
        }
        Err(Failure::new(StatusCode::FORBIDDEN, wish.refusal(&client.name)))
    }

    async fn route(&self, request: Request<Incoming>) -> Answer {
        let path = request.uri().path().trim_matches('/').to_owned();
        let parts: Vec<&str> = path.split('/').collect();
        let is_get = request.method() == Method::GET;
        match *parts.as_slice() {
            ["healthz"] if is_get => Ok(text(StatusCode::OK, "ok")),
            ["metrics"] if is_get => {
                let metrics = self.shared.metrics.encode((self.gauges)());
                Ok(with_type(
                    StatusCode::OK,
                    "application/openmetrics-text; version=1.0.0; charset=utf-8",
                    metrics,
                ))
            }
            ["metrics", "resource"] if is_get => {
                Ok(with_type(StatusCode::OK, PROMETHEUS, self.usage().await?.resource_metrics()))
            }
            ["metrics", "cadvisor"] if is_get => {
                Ok(with_type(StatusCode::OK, PROMETHEUS, self.usage().await?.cadvisor_metrics()))
            }
            ["stats", "summary"] if is_get => {
                Ok(with_type(StatusCode::OK, "application/json", self.usage().await?.summary().to_string()))
            }
            ["configz"] if is_get => {
                let config = serde_json::json!({"kubeletconfig": self.shared.configz});
                Ok(with_type(StatusCode::OK, "application/json", config.to_string()))
            }
            ["pods"] if is_get => Ok(self.pods()),
            ["containerLogs", namespace, pod, container] if is_get => {
                self.log(namespace, pod, container, request.uri().query().unwrap_or_default()).await
            }
            ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
                self.exec(namespace, pod, container, request).await
            }
            ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
                self.attach(namespace, pod, container, request).await
            }
            ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
                self.port_forward(namespace, pod, request).await
            }
            _ => Err(Failure::not_found(format!("404 page not found: /{path}"))),
        }
    }

    async fn usage(&self) -> Result<usage::Usage, Failure> {
        Ok(usage::gather(&self.shared).await?)
    }

    /// All Pods of the node as a list.
    fn pods(&self) -> Response<Body> {
        let items = self.shared.registry.pods();
        let items: Vec<_> = items.iter().map(|pod| &**pod).collect();
        let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
        with_type(StatusCode::OK, "application/json", list.to_string())
    }
}

/// The token of a request.
fn bearer(request: &Request<Incoming>) -> Option<String> {
    let header = request.headers().get(http::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    Some(token.trim().to_owned()).filter(|token| scheme.eq_ignore_ascii_case("bearer") && !token.is_empty())
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

fn with_type(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(content));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn text(status: StatusCode, content: impl Into<String>) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", content.into())
}
