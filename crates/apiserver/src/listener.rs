//! The HTTPS listener: accepts, shakes hands, and gives each request to the server with the identity of the connection's
//! client certificate. A connection that is silent, too slow or one too many is closed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::audit::Peer;
use crate::identity::RequestIdentity;
use crate::server::Server;
use crate::stall::{Leave, Patient};
use crate::{authn, body};

/// Connections at a time.
const CONNECTIONS: usize = 4096;
/// How long the TLS handshake may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an HTTP/1.1 connection may wait for the head of its next request; upstream's.
const IDLE: Duration = Duration::from_secs(90);
/// How long open requests may go on when the server stops.
const FAREWELL: Duration = Duration::from_secs(5);
/// After an error of `accept` (no descriptors left), the next try.
const BREATHER: Duration = Duration::from_millis(100);
/// The largest head of a request, in bytes.
const HEAD: usize = 64 * 1024;
/// Requests at a time on one HTTP/2 connection; upstream's default.
const STREAMS: u32 = 100;

/// Listens until the shutdown, then lets open requests end.
pub(crate) async fn run(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    server: Arc<Server>,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(config);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the API server could not accept a connection");
                tokio::time::sleep(BREATHER).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(%peer, "the API server has {CONNECTIONS} connections and takes no more");
            continue;
        };
        let (acceptor, server, shutdown) = (acceptor.clone(), server.clone(), shutdown.clone());
        connections.spawn(async move {
            connection(stream, peer, &acceptor, server, shutdown).await;
            drop(place);
        });
    }
    connections.close();
    if tokio::time::timeout(FAREWELL + Duration::from_secs(1), connections.wait()).await.is_err() {
        tracing::warn!("connections to the API server were still open when it stopped");
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: &TlsAcceptor,
    server: Arc<Server>,
    shutdown: CancellationToken,
) {
    stream.set_nodelay(true).ok();
    let leave = Leave::default();
    let stream = Patient::new(stream, leave.clone());
    let handshake = tokio::select! {
        done = tokio::time::timeout(PATIENCE, acceptor.accept(stream)) => done,
        () = shutdown.cancelled() => return,
    };
    match handshake {
        Ok(Ok(stream)) => serve(stream, (peer, leave), server, shutdown).await,
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "a TLS handshake took too long"),
    }
}

async fn serve(
    stream: TlsStream<Patient<TcpStream>>,
    (peer, leave): (SocketAddr, Leave),
    server: Arc<Server>,
    shutdown: CancellationToken,
) {
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
    let identity = certificate.and_then(|certificate| authn::of_certificate(&certificate)).map(Arc::new);
    let spoke = CancellationToken::new();
    let has_spoken = spoke.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        has_spoken.cancel();
        let (server, identity, leave) = (server.clone(), identity.clone(), leave.clone());
        async move {
            let mut request = request.map(body::boxed);
            request.extensions_mut().insert(Peer(peer.ip()));
            request.extensions_mut().insert(leave);
            if let Some(identity) = identity {
                request.extensions_mut().insert(RequestIdentity(identity));
            }
            Ok::<_, std::convert::Infallible>(server.serve(request).await)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(HEAD).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(30));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let done = tokio::select! {
        done = connection.as_mut() => Ok(done),
        () = silence(&spoke) => {
            tracing::debug!(%peer, "a connection asked nothing");
            return;
        }
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(FAREWELL, connection.as_mut()).await
        }
    };
    if let Ok(Err(error)) = done {
        tracing::debug!(%peer, %error, "a connection ended");
    }
}

/// Ends when a connection has asked nothing for as long as it may wait for the head of a request. The server knows the
/// protocol from the first bytes only, so that no protocol's own patience can hold before them.
async fn silence(spoke: &CancellationToken) {
    if tokio::time::timeout(IDLE, spoke.cancelled()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}
