//! The byte streams that sessions hand out: bounded queues between the task that owns the connection and the
//! code that reads or writes. A full queue makes the writer wait, so that memory stays bounded for slow readers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use crate::spdy::{Flow, Frame};

/// The largest piece that one write hands on, in bytes.
pub(crate) const CHUNK: usize = 32 * 1024;

/// Pieces that may wait in one queue.
pub(crate) const DEPTH: usize = 4;

/// Bytes from the client. The end of the stream is the client's half-close, or the end of the connection.
#[derive(Debug)]
pub struct Input {
    receiver: mpsc::Receiver<Bytes>,
    rest: Bytes,
    /// The other direction of a SPDY stream that is used in one direction only.
    other: Option<Box<Output>>,
}

impl Input {
    /// An input and the queue that feeds it.
    pub(crate) fn new(depth: usize) -> (mpsc::Sender<Bytes>, Self) {
        let (sender, receiver) = mpsc::channel(depth);
        (sender, Self { receiver, rest: Bytes::new(), other: None })
    }
}

impl Input {
    /// Keeps the other direction open for as long as this is read: its end tells the peer that nobody reads.
    pub(crate) fn holding(mut self, other: Output) -> Self {
        self.other = Some(Box::new(other));
        self
    }
}

impl AsyncRead for Input {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.receiver.poll_recv(cx)) {
                Some(bytes) => self.rest = bytes,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.rest.len().min(buffer.remaining());
        buffer.put_slice(self.rest.get(..length).unwrap_or_default());
        self.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

/// What goes from an [`Output`] to the task that owns the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes for a channel or stream.
    Data(u32, Bytes),
    /// No more bytes will come for it (WebSocket only).
    End(u32),
    /// A frame of the connection itself (SPDY only).
    Control(Box<Frame>),
}

/// Bytes to the client. Dropping it ends a SPDY stream in order, behind what was written. Writing fails with [`io::ErrorKind::BrokenPipe`] once the client is gone.
#[derive(Debug)]
pub struct Output {
    sender: PollSender<Piece>,
    id: u32,
    ended: bool,
    flow: Option<Flow>,
}

impl Output {
    /// An output whose pieces carry `id`.
    pub(crate) fn new(sender: mpsc::Sender<Piece>, id: u32) -> Self {
        Self { sender: PollSender::new(sender), id, ended: false, flow: None }
    }

    /// An output of a SPDY stream.
    pub(crate) fn with_flow(sender: mpsc::Sender<Piece>, id: u32, flow: Flow) -> Self {
        let mut output = Self::new(sender, id);
        output.flow = Some(flow);
        output
    }

    /// Breaks a SPDY stream off.
    pub(crate) fn reset(mut self) {
        self.ended = true;
        if let Some(flow) = &self.flow {
            flow.cancel();
        }
    }

    /// How many of `wanted` bytes may be sent now.
    fn poll_room(&self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let Some(flow) = &self.flow else { return Poll::Ready(Ok(wanted)) };
        flow.poll_room(cx, wanted)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the stream was reset"))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, piece: impl FnOnce(u32) -> Piece) -> Poll<io::Result<()>> {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the client is gone");
        ready!(self.sender.poll_reserve(cx)).map_err(gone)?;
        Poll::Ready(self.sender.send_item(piece(self.id)).map_err(gone))
    }
}

impl AsyncWrite for Output {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.ended {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, "written after shutdown")));
        }
        let room = ready!(self.poll_room(cx, bytes.len().min(CHUNK)))?;
        let piece = bytes.get(..room).unwrap_or(bytes);
        ready!(self.poll_send(cx, |id| Piece::Data(id, Bytes::copy_from_slice(piece))))?;
        if let Some(flow) = &self.flow {
            flow.spend(piece.len());
        }
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            match &self.flow {
                Some(flow) => flow.finish(),
                // A client that has gone away needs no farewell.
                None => drop(ready!(self.poll_send(cx, Piece::End))),
            }
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(flow) = self.flow.as_ref().filter(|_| !self.ended) {
            flow.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn an_input_ends_when_its_queue_is_dropped() {
        let (sender, mut input) = Input::new(2);
        sender.send(Bytes::from_static(b"ab")).await.unwrap();
        sender.send(Bytes::from_static(b"cde")).await.unwrap();
        drop(sender);
        let mut text = String::new();
        input.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "abcde");
    }

    #[tokio::test]
    async fn a_full_queue_makes_the_writer_wait() {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut output = Output::new(sender, 7);
        output.write_all(b"one").await.unwrap();
        let mut second = Box::pin(output.write_all(b"two"));
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(receiver.recv().await, Some(Piece::Data(7, Bytes::from_static(b"one"))));
        second.await.unwrap();
    }

    #[tokio::test]
    async fn writing_to_a_client_that_is_gone_is_a_broken_pipe() {
        let (sender, receiver) = mpsc::channel(1);
        let mut output = Output::new(sender, 1);
        drop(receiver);
        assert_eq!(output.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        output.shutdown().await.unwrap();
    }
}
