//! Remote command over SPDY/3.1: one stream for each of error, stdin, stdout, stderr and resize, all opened by
//! the client and told apart by the header `streamType`.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::{
    CREATION_TIMEOUT, Ends, EstablishError, RemoteCommand, Streams, TerminalSize, Version, dropped, ends,
};
use crate::pipe::{Input, Output};
use crate::spdy::{self, Connection, Incoming, Role, Stream};
use crate::{ExitStatus, Sessions};

/// How long the client may take to read the rest and to end the connection.
const FAREWELL: Duration = Duration::from_secs(30);

/// The longest text without an end that is taken for a terminal size, in bytes.
const MAX_SIZE_TEXT: usize = 1024;

/// Starts a session once the client has opened all its streams.
pub(super) async fn establish<S>(
    connection: S,
    version: Version,
    streams: Streams,
    sessions: &Sessions,
) -> Result<RemoteCommand, EstablishError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (connection, mut incoming) = spdy::start(connection, Role::Server, sessions);
    let mut expected = Expected::of(streams);
    let opened = tokio::time::timeout(CREATION_TIMEOUT, expected.fill(&mut incoming)).await;
    if let Some(missing) = expected.missing().filter(|_| opened.is_err() || !expected.is_complete()) {
        connection.close().await;
        return Err(EstablishError::MissingStream { missing });
    }
    let (resize, exit, Ends { resize: sizes, status, ended }) = ends();
    let [error, stdin, stdout, stderr, terminal] = expected.slots.map(|(_, slot)| slot.stream());
    let command = RemoteCommand {
        stdin: stdin.map(|stream| stream.input.holding(stream.output)),
        stdout: stdout.map(|stream| stream.output),
        stderr: stderr.map(|stream| stream.output),
        resize,
        exit,
    };
    let session =
        Session { connection, _incoming: incoming, version, error: error.map(|stream| stream.output) };
    sessions.spawn(async move {
        tokio::select! {
            () = session.connection.ended() => {}
            () = resizes(terminal.map(|stream| stream.input.holding(stream.output)), sizes) => {}
            status = status => session.finish(status.unwrap_or_else(|_| dropped())).await,
        }
        ended.cancel();
    });
    Ok(command)
}

struct Session {
    connection: Connection,
    /// Kept so that a stream which the client opens later is not taken for the end of the connection.
    _incoming: Incoming,
    version: Version,
    error: Option<Output>,
}

impl Session {
    /// Sends the status behind all that was written, and closes.
    async fn finish(mut self, status: ExitStatus) {
        let text = match self.version {
            Version::V1 => status.to_text().map(String::into_bytes),
            Version::V4 | Version::V5 => Some(status.to_json()),
        };
        if let Some(error) = &mut self.error {
            // A client that is gone needs no status.
            let _ = error.write_all(&text.unwrap_or_default()).await;
            let _ = error.shutdown().await;
        }
        // The client ends the connection: its library drops what it has not handed on when the server does.
        self.connection.finish();
        let _ = tokio::time::timeout(FAREWELL, self.connection.ended()).await;
    }
}

/// Reads JSON sizes, one after another; never ends before the session does.
async fn resizes(input: Option<Input>, sizes: watch::Sender<Option<TerminalSize>>) {
    if let Some(mut input) = input {
        let mut text = Vec::new();
        while text.len() < MAX_SIZE_TEXT && input.read_buf(&mut text).await.is_ok_and(|length| length > 0) {
            let mut objects = serde_json::Deserializer::from_slice(&text).into_iter::<TerminalSize>();
            while let Some(Ok(size)) = objects.next() {
                sizes.send_replace(Some(size));
            }
            let read = objects.byte_offset();
            text.drain(..read);
        }
    }
    std::future::pending::<()>().await;
}

/// The streams that the client has to open.
struct Expected {
    slots: [(&'static str, Slot); 5],
}

enum Slot {
    Unwanted,
    Awaited,
    Opened(Stream),
}

impl Slot {
    fn of(is_wanted: bool) -> Self {
        if is_wanted { Self::Awaited } else { Self::Unwanted }
    }

    fn stream(self) -> Option<Stream> {
        match self {
            Self::Opened(stream) => Some(stream),
            _ => None,
        }
    }
}

impl Expected {
    fn of(streams: Streams) -> Self {
        Self {
            slots: [
                ("error", Slot::Awaited),
                ("stdin", Slot::of(streams.stdin)),
                ("stdout", Slot::of(streams.stdout)),
                ("stderr", Slot::of(streams.stderr && !streams.tty)),
                ("resize", Slot::of(streams.tty)),
            ],
        }
    }

    fn missing(&self) -> Option<&'static str> {
        self.slots.iter().find(|(_, slot)| matches!(slot, Slot::Awaited)).map(|(name, _)| *name)
    }

    fn is_complete(&self) -> bool {
        self.missing().is_none()
    }

    async fn fill(&mut self, incoming: &mut Incoming) {
        while !self.is_complete() {
            let Some(stream) = incoming.recv().await else { return };
            let kind = stream.headers.get("streamtype").unwrap_or_default();
            let slot =
                self.slots.iter_mut().find(|(name, slot)| *name == kind && matches!(slot, Slot::Awaited));
            match slot {
                Some((_, slot)) => *slot = Slot::Opened(stream),
                None => stream.reset(),
            }
        }
    }
}
