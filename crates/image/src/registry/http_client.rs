//! HTTP requests to registries, and their failures in words that tell what to do.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, PROXY_AUTHORIZATION, USER_AGENT};
use http::{HeaderValue, Method, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::route::{ProxyError, Route};
use crate::error::AttemptError;

const AGENT: &str = concat!("kakoi/", env!("CARGO_PKG_VERSION"));
/// How much of one blob, and of all together, may be on its way before the unpacking threads take it.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// A request.
pub(super) struct Exchange {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// A client for one host's TLS settings; its connections are used again.
#[derive(Debug, Clone)]
pub(super) struct HttpClient {
    client: Client<HttpsConnector<Route>, Full<Bytes>>,
    proxies: Arc<Matcher>,
}

impl HttpClient {
    pub(super) fn new(tls: rustls::ClientConfig, proxies: Arc<Matcher>, connect_timeout: Duration) -> Self {
        let route = Route::new(Arc::clone(&proxies), connect_timeout);
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
        let connector = builder.enable_http1().enable_http2().wrap_connector(route);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .build(connector);
        Self { client, proxies }
    }

    /// Sends a request. The answer's head must come within `limit` once the connection stands.
    pub(super) async fn send(
        &self,
        exchange: Exchange,
        limit: Duration,
    ) -> Result<http::Response<Incoming>, AttemptError> {
        let address = exchange.uri.authority().map(ToString::to_string).unwrap_or_default();
        let forward_auth = Route::forward_auth(&self.proxies, &exchange.uri);
        let mut request = http::Request::new(Full::new(exchange.body));
        *request.method_mut() = exchange.method;
        *request.uri_mut() = exchange.uri;
        *request.headers_mut() = exchange.headers;
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        request.headers_mut().extend(forward_auth.map(|value| (PROXY_AUTHORIZATION, value)));
        match tokio::time::timeout(limit, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|error| classify(&error, &address, error.is_connect())),
            Err(_) => Err(AttemptError::Timeout(format!(
                "no answer from {address} within {} s",
                limit.as_secs_f64()
            ))),
        }
    }
}

/// An error with all its causes, each said once.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = beneath(error);
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        next = beneath(cause);
    }
    text
}

fn classify(error: &(dyn Error + 'static), address: &str, is_connect: bool) -> AttemptError {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(proxy) = cause.downcast_ref::<ProxyError>() {
            return AttemptError::Unreachable { address: address.to_owned(), cause: proxy.to_string() };
        }
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return AttemptError::Tls(format!("{address}: {tls}"));
        }
        match cause.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => {
                return AttemptError::ConnectionRefused(address.to_owned());
            }
            Some(io::ErrorKind::TimedOut) => {
                return AttemptError::Timeout(format!("{address} does not answer to a connection"));
            }
            _ => next = beneath(cause),
        }
    }
    let cause = chain(error);
    if is_connect {
        return AttemptError::Unreachable { address: address.to_owned(), cause };
    }
    AttemptError::Broken(cause)
}

/// The next cause. An I/O error's own source leaves out the error that it wraps.
fn beneath<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(wrapped) => Some(wrapped),
        None => error.source(),
    }
}
