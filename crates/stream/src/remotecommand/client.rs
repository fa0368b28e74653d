//! The client side of `exec` and `attach` over WebSocket.

use std::io;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use http::header::SEC_WEBSOCKET_PROTOCOL;
use http::{HeaderValue, Request};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::{client_async_with_config, tungstenite};

use super::TerminalSize;
use super::websocket::{CLOSE, ERROR, RESIZE, STDERR, STDIN, STDOUT, message};
use crate::pipe::{DEPTH, Input, Output, Piece};
use crate::{ExitStatus, Sessions, websocket};

/// A WebSocket could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open a WebSocket to {uri}: {source}")]
pub struct ConnectError {
    uri: String,
    #[source]
    source: Box<tungstenite::Error>,
}

/// A remote command as its client sees it.
#[derive(Debug)]
pub struct Client {
    /// To the command. With `v5.channel.k8s.io` its shutdown closes the command's standard input.
    pub stdin: Output,
    /// From the command.
    pub stdout: Input,
    /// From the command.
    pub stderr: Input,
    /// The sub-protocol that the server chose.
    pub protocol: String,
    status: oneshot::Receiver<ExitStatus>,
    sizes: mpsc::Sender<Piece>,
}

impl Client {
    /// Tells the command the size of its terminal.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] when the server is gone.
    pub async fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let json = serde_json::to_vec(&size).unwrap_or_default();
        let sent = self.sizes.send(Piece::Data(RESIZE.into(), json.into())).await;
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the server is gone"))
    }

    /// How the command ended. Read the outputs to their end first, or at the same time: the server waits for it.
    pub async fn wait(self) -> ExitStatus {
        let lost = || ExitStatus::Failed("the connection ended without an exit status".to_owned());
        self.status.await.unwrap_or_else(|_| lost())
    }
}

/// Opens a session over `connection`. `request` names the path, the `Host` and what else the server wants to see.
///
/// # Errors
/// When the server does not answer with `101` and one of `protocols`.
pub async fn connect<S>(
    connection: S,
    request: Request<()>,
    protocols: &'static str,
    sessions: &Sessions,
) -> Result<Client, ConnectError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (socket, protocol) = open(connection, request, protocols).await?;
    let (sink, source) = socket.split();
    let (stdout, stdout_input) = Input::new(DEPTH);
    let (stderr, stderr_input) = Input::new(DEPTH);
    let (queue, pieces) = mpsc::channel(DEPTH);
    let (sender, status) = oneshot::channel();
    let is_v5 = protocol == "v5.channel.k8s.io";
    let shutdown = sessions.shutdown().clone();
    sessions.spawn(async move {
        let mut read = std::pin::pin!(read(source, stdout, stderr, sender));
        let running = async {
            tokio::select! {
                () = &mut read => return,
                () = write(sink, pieces, is_v5) => {}
            }
            read.await;
        };
        shutdown.run_until_cancelled(running).await;
    });
    let stdin = Output::new(queue.clone(), STDIN.into());
    Ok(Client { stdin, stdout: stdout_input, stderr: stderr_input, protocol, status, sizes: queue })
}

/// The WebSocket handshake, and the sub-protocol that the server chose.
pub(crate) async fn open<S>(
    connection: S,
    mut request: Request<()>,
    protocols: &'static str,
) -> Result<(WebSocketStream<S>, String), ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let uri = request.uri().to_string();
    let headers = request.headers_mut();
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
    headers.insert("connection", HeaderValue::from_static("Upgrade"));
    headers.insert("upgrade", HeaderValue::from_static("websocket"));
    headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
    if let Ok(key) = HeaderValue::from_str(&generate_key()) {
        headers.insert("sec-websocket-key", key);
    }
    let opened = client_async_with_config(request, connection, Some(websocket::limits())).await;
    let (socket, response) = opened.map_err(|source| ConnectError { uri, source: Box::new(source) })?;
    let protocol = response.headers().get(SEC_WEBSOCKET_PROTOCOL).and_then(|value| value.to_str().ok());
    Ok((socket, protocol.unwrap_or_default().to_owned()))
}

async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    mut source: SplitStream<WebSocketStream<S>>,
    stdout: mpsc::Sender<Bytes>,
    stderr: mpsc::Sender<Bytes>,
    status: oneshot::Sender<ExitStatus>,
) {
    let mut status = Some(status);
    while let Some(Ok(message)) = source.next().await {
        let Some(mut payload) = websocket::payload(message).filter(|payload| !payload.is_empty()) else {
            continue;
        };
        // An output that is no longer read falls to the ground.
        match payload.split_to(1).first().copied() {
            Some(STDOUT) if !payload.is_empty() => drop(stdout.send(payload).await),
            Some(STDERR) if !payload.is_empty() => drop(stderr.send(payload).await),
            Some(ERROR) if !payload.is_empty() => {
                if let Some(status) = status.take() {
                    drop(status.send(ExitStatus::from_json(&payload)));
                }
            }
            _ => {}
        }
    }
}

async fn write<S: AsyncRead + AsyncWrite + Unpin>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    mut pieces: mpsc::Receiver<Piece>,
    is_v5: bool,
) {
    while let Some(piece) = pieces.recv().await {
        let message = match piece {
            Piece::Data(channel, bytes) => message(u8::try_from(channel).unwrap_or(STDIN), &bytes),
            Piece::End(_) if is_v5 => message(CLOSE, &[STDIN]),
            Piece::End(_) | Piece::Control(_) => continue,
        };
        if sink.send(message).await.is_err() {
            return;
        }
    }
}
