//! The HTTP side of the streaming server.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use stream::remotecommand::Streams;
use stream::{Sessions, portforward, remotecommand};
use tokio::net::{TcpListener, TcpStream};

use super::{Ticket, exec, portforward as forward};
use crate::core::Core;

/// Serves until the runtime shuts down, then ends the sessions.
pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener) {
    let sessions = Sessions::new(core.shutdown.child_token());
    loop {
        let accepted = tokio::select! {
            () = core.shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((connection, _)) => {
                core.tasks.spawn(answer(Arc::clone(&core), sessions.clone(), connection));
            }
            Err(error) => {
                tracing::warn!(%error, "the streaming server can't accept a connection");
                tokio::task::yield_now().await;
            }
        }
    }
    sessions.close().await;
}

async fn answer(core: Arc<Core>, sessions: Sessions, connection: TcpStream) {
    let shutdown = core.shutdown.clone();
    let service = service_fn(move |request| {
        let response = redeem(&core, &sessions, request);
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    tokio::select! {
        () = shutdown.cancelled() => {}
        served = serving => {
            if let Err(error) = served {
                tracing::debug!(%error, "a streaming connection broke");
            }
        }
    }
}

fn redeem(core: &Arc<Core>, sessions: &Sessions, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let Some(ticket) = core.streaming.redeem(request.uri().path()) else {
        return refuse("this address is unknown or was used before; ask for a new one");
    };
    match ticket {
        Ticket::Exec { container, command, streams } => {
            let core = Arc::clone(core);
            command_session(&core.clone(), sessions, &mut request, streams, move |client| {
                exec::exec(core, container, command, streams, client)
            })
        }
        Ticket::Attach { container, streams } => {
            let core = Arc::clone(core);
            command_session(&core.clone(), sessions, &mut request, streams, move |client| {
                exec::attach(core, container, streams, client)
            })
        }
        Ticket::PortForward { sandbox } => port_session(core, sessions, &mut request, sandbox),
    }
}

fn command_session<F>(
    core: &Arc<Core>,
    sessions: &Sessions,
    request: &mut Request<Incoming>,
    streams: Streams,
    serve: impl FnOnce(remotecommand::RemoteCommand) -> F + Send + 'static,
) -> Response<Full<Bytes>>
where
    F: Future<Output = ()> + Send + 'static,
{
    match remotecommand::accept(request, streams, sessions) {
        Err(refusal) => refusal.into_response(),
        Ok((response, pending)) => {
            core.tasks.spawn(async move {
                match pending.establish().await {
                    Ok(client) => serve(client).await,
                    Err(error) => tracing::debug!(%error, "a streaming session was not established"),
                }
            });
            response
        }
    }
}

fn port_session(
    core: &Arc<Core>,
    sessions: &Sessions,
    request: &mut Request<Incoming>,
    sandbox: String,
) -> Response<Full<Bytes>> {
    match portforward::accept(request, sessions) {
        Err(refusal) => refusal.into_response(),
        Ok((response, pending)) => {
            let owner = Arc::clone(core);
            core.tasks.spawn(async move {
                match pending.establish().await {
                    Ok(forwards) => forward::serve(owner, sandbox, forwards).await,
                    Err(error) => tracing::debug!(%error, "a port-forward session was not established"),
                }
            });
            response
        }
    }
}

fn refuse(message: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(message.as_bytes())));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}
