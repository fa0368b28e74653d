//! The way to a registry: directly, through an HTTP proxy's tunnel, or by asking the proxy for the whole URL.
//! As everywhere, loopback addresses are never reached through a proxy.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use super::hosts::is_loopback;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The proxies to use, as the environment names them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// `HTTPS_PROXY`: the proxy for `https` URLs. Empty: none.
    pub https: String,
    /// `HTTP_PROXY`: the proxy for `http` URLs. Empty: none.
    pub http: String,
    /// `NO_PROXY`: comma-separated names, addresses and networks that are reached directly.
    pub none_for: String,
}

/// Proxies' addresses may hold passwords; they are not shown.
impl std::fmt::Debug for Proxies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |address: &str| address.rsplit('@').next().unwrap_or_default().to_owned();
        f.debug_struct("Proxies")
            .field("https", &shown(&self.https))
            .field("http", &shown(&self.http))
            .field("none_for", &self.none_for)
            .finish()
    }
}

impl Proxies {
    /// What the environment says; capital letters first, then small ones.
    pub fn from_env() -> Self {
        let first =
            |names: [&str; 3]| names.iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default();
        Self {
            https: first(["HTTPS_PROXY", "https_proxy", "ALL_PROXY"]),
            http: first(["HTTP_PROXY", "http_proxy", "ALL_PROXY"]),
            none_for: first(["NO_PROXY", "no_proxy", "NO_PROXY"]),
        }
    }

    pub(super) fn matcher(&self) -> Matcher {
        let builder = Matcher::builder().https(self.https.clone()).http(self.http.clone());
        builder.no(self.none_for.clone()).build()
    }
}

/// Connects to where a URL's host is, or to the proxy before it.
#[derive(Debug, Clone)]
pub(super) struct Route {
    direct: HttpConnector,
    proxies: Arc<Matcher>,
}

impl Route {
    pub(super) fn new(proxies: Arc<Matcher>, connect_timeout: std::time::Duration) -> Self {
        let mut direct = HttpConnector::new();
        direct.enforce_http(false);
        direct.set_nodelay(true);
        direct.set_connect_timeout(Some(connect_timeout));
        Self { direct, proxies }
    }

    /// The proxy that a plain HTTP request goes through, and what it wants to know.
    pub(super) fn forward_auth(proxies: &Matcher, uri: &Uri) -> Option<HeaderValue> {
        let is_plain = uri.scheme_str() == Some("http") && !is_local(uri);
        proxies.intercept(uri).filter(|_| is_plain)?.basic_auth().cloned()
    }
}

fn is_local(uri: &Uri) -> bool {
    uri.authority().is_some_and(|authority| is_loopback(authority.as_str()))
}

impl Service<Uri> for Route {
    type Response = Routed;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Routed, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let mut direct = self.direct.clone();
        let proxy = self.proxies.intercept(&to).filter(|_| !is_local(&to));
        let Some(proxy) = proxy else {
            return Box::pin(async move { Ok(Routed { io: direct.call(to).await?, is_forwarded: false }) });
        };
        if to.scheme_str() == Some("https") {
            let mut tunnel = Tunnel::new(proxy.uri().clone(), direct);
            if let Some(auth) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(auth.clone());
            }
            return Box::pin(async move {
                let io = tunnel.call(to).await.map_err(|error| through(&proxy, &error))?;
                Ok(Routed { io, is_forwarded: false })
            });
        }
        Box::pin(async move {
            let io = direct.call(proxy.uri().clone()).await.map_err(|error| through(&proxy, &error))?;
            Ok(Routed { io, is_forwarded: true })
        })
    }
}

/// An error on the way to or in a proxy.
#[derive(Debug, thiserror::Error)]
#[error("through the proxy {proxy}: {cause}")]
pub(super) struct ProxyError {
    proxy: String,
    cause: String,
}

fn through(
    proxy: &hyper_util::client::proxy::matcher::Intercept,
    error: &(dyn std::error::Error + 'static),
) -> BoxError {
    let mut cause = error.to_string();
    let mut next = error.source();
    while let Some(inner) = next {
        cause = format!("{cause}: {inner}");
        next = inner.source();
    }
    Box::new(ProxyError { proxy: proxy.uri().to_string(), cause })
}

/// A connection, and whether requests on it must name the whole URL.
#[derive(Debug)]
pub(super) struct Routed {
    io: TokioIo<TcpStream>,
    is_forwarded: bool,
}

impl Connection for Routed {
    fn connected(&self) -> Connected {
        self.io.inner().connected().proxy(self.is_forwarded)
    }
}

impl Read for Routed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Routed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
