//! The server side of `exec` and `attach`: the upgrade request becomes standard streams, terminal sizes and a
//! place for the exit status. WebSocket (`v5.channel.k8s.io`, `v4.channel.k8s.io`, `channel.k8s.io`) and SPDY/3.1
//! look the same to the caller.

pub mod client;
mod spdy;
mod websocket;

use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::pipe::{DEPTH, Input, Output, Piece};
use crate::upgrade::{self, Offer};
use crate::{ExitStatus, Refusal, Sessions};

/// Which streams the client asked for (`stdin`, `stdout`, `stderr`, `tty` of the query or of the CRI request).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are the four parameters of the Kubernetes API")]
pub struct Streams {
    /// Bytes from the client go to the command.
    pub stdin: bool,
    /// The command's standard output goes to the client.
    pub stdout: bool,
    /// The command's standard error goes to the client; never together with `tty`.
    pub stderr: bool,
    /// The command has a terminal: its sizes follow, and standard error is part of standard output.
    pub tty: bool,
}

/// The size of the client's terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// A running session. Dropping a stream is not an end of the session; [`Exit::send`] is.
#[derive(Debug)]
pub struct RemoteCommand {
    /// From the client; ends at its half-close or when it is gone. `None` when it was not asked for.
    pub stdin: Option<Input>,
    /// To the client.
    pub stdout: Option<Output>,
    /// To the client.
    pub stderr: Option<Output>,
    /// The sizes of the client's terminal.
    pub resize: Resizes,
    /// Where the exit status goes.
    pub exit: Exit,
}

/// The sizes of the client's terminal; only the newest is kept.
#[derive(Debug)]
pub struct Resizes(watch::Receiver<Option<TerminalSize>>);

impl Resizes {
    /// The next size; `None` once the client is gone or can send none.
    pub async fn next(&mut self) -> Option<TerminalSize> {
        self.0.changed().await.ok()?;
        *self.0.borrow_and_update()
    }
}

/// The end of a session. Dropped without [`Exit::send`], it tells the client that the server failed.
#[derive(Debug)]
pub struct Exit {
    status: oneshot::Sender<ExitStatus>,
    /// Cancelled when the session's task has ended.
    ended: CancellationToken,
}

impl Exit {
    /// Sends what was written so far, then `status`, then closes; returns when that is done or the client is gone.
    ///
    /// Write everything before: what is written after this call is lost.
    pub async fn send(self, status: ExitStatus) {
        // A session that has ended already can tell nobody.
        let _ = self.status.send(status);
        self.ended.cancelled().await;
    }

    /// Resolves when the client has gone away.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        self.ended.clone().cancelled_owned()
    }
}

/// A session could not be established after its upgrade was promised.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EstablishError {
    /// The connection was lost before it was upgraded.
    #[error("the client's connection was lost during its upgrade: {0}")]
    Upgrade(#[from] hyper::Error),
    /// A SPDY client did not open the streams that it asked for.
    #[error("the client did not open its {missing} stream within {} s", CREATION_TIMEOUT.as_secs())]
    MissingStream {
        /// The stream's type.
        missing: &'static str,
    },
}

/// How long a SPDY client may take to open its streams.
pub(crate) const CREATION_TIMEOUT: Duration = Duration::from_secs(30);

/// A session whose `101` answer has still to be written.
#[derive(Debug)]
pub struct Pending {
    connection: OnUpgrade,
    transport: Transport,
    streams: Streams,
    sessions: Sessions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    WebSocket(Version),
    Spdy(Version),
}

/// The version of the remote-command protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    /// The exit status is a text, present only when the command failed.
    V1,
    /// The exit status is a `v1.Status`.
    V4,
    /// And a WebSocket client can close standard input.
    V5,
}

const WEBSOCKET: &[(&str, Version)] = &[
    ("v5.channel.k8s.io", Version::V5),
    ("v4.channel.k8s.io", Version::V4),
    ("channel.k8s.io", Version::V1),
];

/// Version 5 differs from 4 only over WebSocket; version 3 brought terminal sizes, which this server expects.
const SPDY: &[(&str, Version)] = &[
    ("v5.channel.k8s.io", Version::V5),
    ("v4.channel.k8s.io", Version::V4),
    ("v3.channel.k8s.io", Version::V1),
];

/// Reads an `exec` or `attach` request. Write the answer to the client, then call [`Pending::establish`] from
/// another task: the connection is upgraded only after the answer has gone out.
///
/// # Errors
/// With the HTTP answer to give when the request is no upgrade that this server speaks.
pub fn accept<B>(
    request: &mut Request<B>,
    streams: Streams,
    sessions: &Sessions,
) -> Result<(Response<Full<Bytes>>, Pending), Refusal> {
    let offer = Offer::of(request.headers())?;
    let (protocol, transport) = match &offer {
        Offer::WebSocket { .. } => {
            offer.choose(WEBSOCKET).map(|(name, version)| (name, Transport::WebSocket(*version)))
        }
        Offer::Spdy { .. } => offer.choose(SPDY).map(|(name, version)| (name, Transport::Spdy(*version))),
    }?;
    let connection = upgrade::take(request)?;
    let pending = Pending { connection, transport, streams, sessions: sessions.clone() };
    Ok((offer.accepted(protocol), pending))
}

impl Pending {
    /// Waits for the upgrade and starts the session.
    ///
    /// # Errors
    /// When the connection is lost first, or a SPDY client does not open its streams.
    pub async fn establish(self) -> Result<RemoteCommand, EstablishError> {
        let connection = TokioIo::new(self.connection.await?);
        self.transport.establish(connection, self.streams, &self.sessions).await
    }
}

impl Transport {
    async fn establish<S>(
        self,
        connection: S,
        streams: Streams,
        sessions: &Sessions,
    ) -> Result<RemoteCommand, EstablishError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        match self {
            Self::WebSocket(version) => {
                Ok(websocket::establish(connection, version, streams, sessions).await)
            }
            Self::Spdy(version) => spdy::establish(connection, version, streams, sessions).await,
        }
    }
}

/// A session over a connection that needs no handshake any more, with all streams but standard error.
#[cfg(feature = "fuzz")]
pub(crate) async fn serve<S>(
    protocol: crate::fuzz::Protocol,
    connection: S,
    sessions: &Sessions,
) -> Result<RemoteCommand, EstablishError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    use crate::fuzz::Protocol;
    let transport = match protocol {
        Protocol::WebSocketV4 => Transport::WebSocket(Version::V4),
        Protocol::WebSocketV5 => Transport::WebSocket(Version::V5),
        Protocol::Spdy => Transport::Spdy(Version::V4),
    };
    let streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };
    transport.establish(connection, streams, sessions).await
}

/// The session's side of a [`RemoteCommand`].
struct Ends {
    resize: watch::Sender<Option<TerminalSize>>,
    status: oneshot::Receiver<ExitStatus>,
    ended: CancellationToken,
}

fn ends() -> (Resizes, Exit, Ends) {
    let (resize, resizes) = watch::channel(None);
    let (sender, status) = oneshot::channel();
    let ended = CancellationToken::new();
    (Resizes(resizes), Exit { status: sender, ended: ended.clone() }, Ends { resize, status, ended })
}

/// What the client is told when the server drops a session without a status.
fn dropped() -> ExitStatus {
    ExitStatus::Failed("the server ended the session without an exit status".to_owned())
}

/// A queue for standard output and error.
fn output_queue() -> (mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
    mpsc::channel(DEPTH)
}
