//! The client side of port-forward over WebSocket.

use std::io;

use http::Request;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::TUNNELLED;
use crate::Sessions;
use crate::pipe::{Input, Output};
use crate::remotecommand::client::{ConnectError, open};
use crate::spdy::{self, Connection, Headers, Incoming, Role};
use crate::websocket::Tunnel;

/// A port-forward session as its client sees it.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    _incoming: Incoming,
    next: u32,
}

/// One forwarded connection.
#[derive(Debug)]
pub struct Forwarded {
    /// Bytes from the port.
    pub input: Input,
    /// Bytes to the port; its shutdown is a half-close.
    pub output: Output,
    errors: Input,
}

impl Forwarded {
    /// What the server says went wrong; empty when nothing did. Ends with the connection.
    ///
    /// # Errors
    /// Never in practice: the end of the connection is the end of the text.
    pub async fn error(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.errors.read_to_string(&mut text).await?;
        Ok(text)
    }
}

/// Opens a session over `connection`. `request` names the path, the `Host` and what else the server wants to see.
///
/// # Errors
/// When the server does not answer with `101` and the sub-protocol.
pub async fn connect<S>(
    connection: S,
    request: Request<()>,
    sessions: &Sessions,
) -> Result<Client, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (socket, _) = open(connection, request, TUNNELLED).await?;
    Ok(over(Tunnel::new(socket), sessions))
}

/// A session over a connection that speaks SPDY already.
pub fn over<S>(connection: S, sessions: &Sessions) -> Client
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (connection, incoming) = spdy::start(connection, Role::Client, sessions);
    Client { connection, _incoming: incoming, next: 0 }
}

impl Client {
    /// Opens a connection to `port` in the Pod.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] when the server is gone.
    pub async fn forward(&mut self, port: u16) -> io::Result<Forwarded> {
        let (port, id) = (port.to_string(), self.next.to_string());
        self.next += 1;
        let headers = |kind| Headers::new([("streamType", kind), ("port", &port), ("requestID", &id)]);
        let mut error = self.connection.open(headers("error"))?;
        error.output.shutdown().await?;
        let data = self.connection.open(headers("data"))?;
        Ok(Forwarded { input: data.input, output: data.output, errors: error.input })
    }

    /// Ends the session.
    pub async fn close(self) {
        self.connection.close().await;
    }
}
