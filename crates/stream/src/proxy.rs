//! Passing a request on to another server: its answer comes back, and where that is `101 Switching Protocols`
//! both connections are joined byte for byte, each direction with its own end. It knows no protocol above HTTP.

use bytes::Bytes;
use http::header::{
    CONNECTION, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use http_body::Body as HttpBody;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};

use crate::{Sessions, upgrade};

/// The body of a proxied answer: the other server's, or none after an upgrade.
pub type Body = BoxBody<Bytes, hyper::Error>;

/// Bytes held for each direction of a joined connection.
const RELAY_BUFFER: usize = 32 * 1024;

/// Headers that are about one connection (RFC 9110 §7.6.1) and so are not passed on.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
];

/// Where a request goes, in the words of the server that receives it.
#[derive(Debug, Clone)]
pub struct Destination {
    /// Replaces the request's own path and query.
    pub path_and_query: PathAndQuery,
    /// The `Host` header, for example `10.0.0.4:10250`.
    pub host: HeaderValue,
}

/// A request could not be passed on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// The server was reached but the HTTP exchange failed.
    #[error("cannot pass {method} {path} on to {host}: {source}")]
    Exchange {
        /// The request's method.
        method: http::Method,
        /// The path as it was sent.
        path: String,
        /// The server's name.
        host: String,
        /// What HTTP said.
        source: hyper::Error,
    },
    /// The server switched protocols although the client's connection cannot.
    #[error(
        "{host} switched protocols, but the client's connection cannot be upgraded: the client must use HTTP/1.1"
    )]
    NotUpgradable {
        /// The server's name.
        host: String,
    },
}

/// Sends `request` over `connection` and returns the other server's answer, whatever its status.
///
/// The `Authorization` header is *not* passed on: whoever proxies has checked it, and speaks to the other server
/// with an identity of its own (a client certificate). After a `101` the two connections are joined by a task
/// of `sessions` until both directions have ended.
///
/// # Errors
/// When the other server cannot be spoken to. Connecting, and a limit for the time until it answers, are the caller's.
pub async fn forward<B, C>(
    mut request: Request<B>,
    connection: C,
    destination: &Destination,
    sessions: &Sessions,
) -> Result<Response<Body>, ProxyError>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let client = upgrade::take(&mut request).ok().filter(|_| upgrade::is_asked(request.headers()));
    let (method, host) =
        (request.method().clone(), destination.host.to_str().unwrap_or("the server").to_owned());
    let failed = |source| ProxyError::Exchange {
        method: method.clone(),
        path: destination.path_and_query.path().to_owned(),
        host: host.clone(),
        source,
    };
    let (mut sender, driver) =
        hyper::client::conn::http1::handshake(TokioIo::new(connection)).await.map_err(&failed)?;
    let shutdown = sessions.shutdown().clone();
    sessions.spawn(async move {
        let ended = shutdown.run_until_cancelled(driver.with_upgrades()).await;
        if let Some(Err(error)) = ended {
            tracing::debug!(%error, "a proxied connection ended");
        }
    });
    let response = sender.send_request(rewritten(request, destination)).await.map_err(&failed)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response_of(response));
    }
    let client = client.ok_or(ProxyError::NotUpgradable { host })?;
    Ok(joined(client, response, sessions))
}

fn rewritten<B>(request: Request<B>, destination: &Destination) -> Request<B> {
    let (mut parts, body) = request.into_parts();
    parts.uri = Uri::from(destination.path_and_query.clone());
    parts.version = http::Version::HTTP_11;
    parts.headers = passed_on(&parts.headers);
    parts.headers.remove(http::header::AUTHORIZATION);
    parts.headers.insert(HOST, destination.host.clone());
    parts.extensions.clear();
    Request::from_parts(parts, body)
}

/// `headers` without those about one connection; an upgrade is the exception, since it is what is passed on.
fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let mut passed = headers.clone();
    let upgrade = headers.get(UPGRADE).filter(|_| upgrade::is_asked(headers));
    for name in &HOP_BY_HOP {
        passed.remove(name);
    }
    if let Some(protocol) = upgrade {
        passed.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        passed.insert(UPGRADE, protocol.clone());
    }
    passed
}

fn response_of(response: Response<Incoming>) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    parts.headers = passed_on(&parts.headers);
    parts.extensions.clear();
    Response::from_parts(parts, body.boxed())
}

/// Answers `101` to the client and starts to copy between it and the server.
fn joined(client: OnUpgrade, mut response: Response<Incoming>, sessions: &Sessions) -> Response<Body> {
    let server = hyper::upgrade::on(&mut response);
    let shutdown = sessions.shutdown().clone();
    sessions.spawn(async move {
        shutdown.run_until_cancelled(relay(client, server)).await;
    });
    let (mut parts, _) = response.into_parts();
    parts.headers = passed_on(&parts.headers);
    parts.extensions.clear();
    Response::from_parts(parts, Empty::new().map_err(|never| match never {}).boxed())
}

async fn relay(client: OnUpgrade, server: OnUpgrade) {
    let (client, server) = match tokio::try_join!(client, server) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "an upgraded connection was lost before it was joined"),
    };
    let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
    let copied = copy_bidirectional_with_sizes(&mut client, &mut server, RELAY_BUFFER, RELAY_BUFFER).await;
    if let Err(error) = copied {
        tracing::debug!(%error, "a joined connection ended");
    }
}
