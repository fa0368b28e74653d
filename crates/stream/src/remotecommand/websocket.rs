//! Remote command over WebSocket: the first byte of each binary message is its channel.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

use super::{Ends, RemoteCommand, Streams, TerminalSize, Version, dropped, ends, output_queue};
use crate::pipe::{DEPTH, Input, Output, Piece};
use crate::{ExitStatus, Sessions, websocket};

pub(super) const STDIN: u8 = 0;
pub(super) const STDOUT: u8 = 1;
pub(super) const STDERR: u8 = 2;
pub(super) const ERROR: u8 = 3;
pub(super) const RESIZE: u8 = 4;
/// Version 5: the byte after it names the channel that the client closes.
pub(super) const CLOSE: u8 = 255;

/// How often an idle connection is pinged, so that proxies keep it and a dead peer is noticed.
const PING_PERIOD: Duration = Duration::from_secs(30);

/// How long the client may take to answer the close.
const FAREWELL: Duration = Duration::from_secs(5);

type Sink<S> = SplitSink<WebSocketStream<S>, Message>;

/// Starts a session over a connection whose handshake has been answered.
pub(super) async fn establish<S>(
    connection: S,
    version: Version,
    streams: Streams,
    sessions: &Sessions,
) -> RemoteCommand
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sink, source) = websocket::server(connection).await.split();
    let (resize, exit, Ends { resize: sizes, status, ended }) = ends();
    let (queue, pieces) = output_queue();
    let (feed, stdin) = Input::new(DEPTH);
    let output = |channel: u8| Output::new(queue.clone(), channel.into());
    let command = RemoteCommand {
        stdin: streams.stdin.then_some(stdin),
        stdout: streams.stdout.then(|| output(STDOUT)),
        stderr: (streams.stderr && !streams.tty).then(|| output(STDERR)),
        resize,
        exit,
    };
    let reader = Reader { version, stdin: streams.stdin.then_some(feed), sizes };
    let writer = Writer { version, pieces, status, shutdown: sessions.shutdown().clone() };
    let greeting = if streams.stdout { STDOUT } else { ERROR };
    sessions.spawn(async move {
        run(reader.run(source), writer.run(sink, greeting)).await;
        ended.cancel();
    });
    command
}

/// Until the client is gone, or everything was written and the client has answered the close.
async fn run(read: impl Future<Output = ()>, write: impl Future<Output = Result<(), tungstenite::Error>>) {
    let mut read = std::pin::pin!(read);
    let written = tokio::select! {
        () = &mut read => return,
        written = write => written,
    };
    match written {
        // A client that does not answer the close is cut off.
        Ok(()) => tokio::time::timeout(FAREWELL, read).await.unwrap_or_default(),
        Err(error) => tracing::debug!(%error, "the client of a remote command is gone"),
    }
}

struct Reader {
    version: Version,
    stdin: Option<mpsc::Sender<Bytes>>,
    sizes: watch::Sender<Option<TerminalSize>>,
}

impl Reader {
    /// Takes messages until the connection ends. A command that does not read makes the client wait.
    async fn run<S: AsyncRead + AsyncWrite + Unpin>(mut self, mut source: SplitStream<WebSocketStream<S>>) {
        while let Some(Ok(message)) = source.next().await {
            if let Some(mut payload) = websocket::payload(message).filter(|payload| !payload.is_empty()) {
                let channel = payload.split_to(1);
                self.take(channel.first().copied().unwrap_or(STDIN), payload).await;
            }
        }
    }

    async fn take(&mut self, channel: u8, bytes: Bytes) {
        match channel {
            STDIN if !bytes.is_empty() => {
                if let Some(stdin) = &self.stdin
                    && stdin.send(bytes).await.is_err()
                {
                    self.stdin = None;
                }
            }
            RESIZE => {
                if let Ok(size) = serde_json::from_slice(&bytes) {
                    self.sizes.send_replace(Some(size));
                }
            }
            CLOSE if self.version == Version::V5 && bytes.first() == Some(&STDIN) => self.stdin = None,
            _ => {}
        }
    }
}

struct Writer {
    version: Version,
    pieces: mpsc::Receiver<Piece>,
    status: oneshot::Receiver<ExitStatus>,
    shutdown: CancellationToken,
}

impl Writer {
    /// Sends what the command writes until it has ended, then its status, then the close.
    async fn run<S>(mut self, mut sink: Sink<S>, greeting: u8) -> Result<(), tungstenite::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        // An empty message tells clients that wait for one that the streams are there.
        sink.send(message(greeting, b"")).await?;
        let status = self.run_until_exit(&mut sink).await?;
        self.pieces.close();
        while let Some(piece) = self.pieces.recv().await {
            feed(&mut sink, piece).await?;
        }
        let status = match self.version {
            Version::V1 => status.to_text().map(String::into_bytes),
            Version::V4 | Version::V5 => Some(status.to_json()),
        };
        if let Some(status) = status {
            sink.feed(message(ERROR, &status)).await?;
        }
        sink.send(Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))).await
    }

    async fn run_until_exit<S>(&mut self, sink: &mut Sink<S>) -> Result<ExitStatus, tungstenite::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let start = tokio::time::Instant::now() + PING_PERIOD;
        let mut pings = tokio::time::interval_at(start, PING_PERIOD);
        loop {
            tokio::select! {
                Some(piece) = self.pieces.recv() => {
                    feed(sink, piece).await?;
                    while let Ok(piece) = self.pieces.try_recv() {
                        feed(sink, piece).await?;
                    }
                    sink.flush().await?;
                }
                status = &mut self.status => return Ok(status.unwrap_or_else(|_| dropped())),
                _ = pings.tick() => sink.send(Message::Ping(Bytes::new())).await?,
                () = self.shutdown.cancelled() => return Ok(ExitStatus::Failed("the node's software is stopping".into())),
            }
        }
    }
}

async fn feed<S>(sink: &mut Sink<S>, piece: Piece) -> Result<(), tungstenite::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match piece {
        Piece::Data(channel, bytes) => {
            sink.feed(message(u8::try_from(channel).unwrap_or(STDOUT), &bytes)).await
        }
        Piece::End(_) | Piece::Control(_) => Ok(()),
    }
}

/// A binary message for `channel`.
pub(super) fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut payload = BytesMut::with_capacity(1 + bytes.len());
    payload.extend_from_slice(&[channel]);
    payload.extend_from_slice(bytes);
    Message::Binary(payload.freeze())
}
