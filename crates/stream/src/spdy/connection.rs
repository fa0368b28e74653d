//! One SPDY connection: a task that reads and a task that writes, and the streams between them.
//!
//! Every frame goes out through one bounded queue, so that what the application writes stays in order and waits
//! for a slow peer; answers to the peer (replies, pings, resets, window updates) overtake that queue. A stream
//! whose reader is slow stops the reading of the whole connection when its queue is full, as in every
//! implementation without windows.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc};

use super::flow::{Flow, INITIAL_WINDOW, Window};
use super::{Decoder, Encoder, Frame, FrameError, Headers, ResetStatus};
use crate::Sessions;
use crate::pipe::{CHUNK, Input, Output, Piece};

/// Streams that may be open at once.
const MAX_STREAMS: usize = 1024;

/// Answers that may wait for a peer which does not read them.
const MAX_URGENT: usize = 4 * MAX_STREAMS;

/// Pieces that wait for one stream's reader before the connection is no longer read. A piece is what one read
/// of the connection yields, at most [`CHUNK`] bytes.
const STREAM_DEPTH: usize = 16;

/// How long the peer may take to close after the last frame.
const FAREWELL: Duration = Duration::from_secs(5);

/// `SETTINGS_INITIAL_WINDOW_SIZE`.
const SETTINGS_INITIAL_WINDOW: u32 = 7;

/// Which end of the connection this is; it decides the numbers of the streams that it opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens streams 1, 3, 5 …
    Client,
    /// Opens streams 2, 4, 6 …
    Server,
}

/// A stream of a connection.
#[derive(Debug)]
pub struct Stream {
    /// Its number.
    pub id: u32,
    /// The headers with which it was opened.
    pub headers: Headers,
    /// Bytes from the peer.
    pub input: Input,
    /// Bytes to the peer. Dropping it ends this side of the stream, behind what was written.
    pub output: Output,
}

impl Stream {
    /// Refuses the stream or breaks it off: the peer learns at once that nothing more is wanted.
    pub fn reset(self) {
        self.output.reset();
    }
}

/// Streams that the peer opens; the end is the end of the connection.
pub type Incoming = mpsc::Receiver<Stream>;

/// A running connection. The tasks end when the peer closes, when an end is asked for, or on shutdown.
#[derive(Debug, Clone)]
pub struct Connection {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Piece>,
}

/// What the reader, the writer and the streams share.
#[derive(Debug)]
pub(super) struct Shared {
    streams: Mutex<HashMap<u32, Entry>>,
    urgent: Mutex<Vec<Frame>>,
    has_urgent: Notify,
    next_id: Mutex<u32>,
    initial_window: AtomicU32,
    /// The peer has shown that it keeps windows for streams.
    keeps_windows: AtomicBool,
    pub(super) window: Window,
}

#[derive(Debug)]
struct Entry {
    /// `None` once the peer has ended its side.
    feed: Option<mpsc::Sender<Bytes>>,
    /// Bytes received since the last window update.
    received: u32,
    window: Arc<Window>,
    /// Bytes of this stream that the writer has taken.
    written: u64,
    /// How many there will be, once that is known.
    end_at: Option<u64>,
    has_ended: bool,
}

impl Entry {
    /// Whether the writer has just taken the last byte.
    fn is_at_end(&self) -> bool {
        self.end_at == Some(self.written)
    }
}

/// Starts a connection over `io`. `sessions` owns its tasks.
pub fn start<S>(io: S, role: Role, sessions: &Sessions) -> (Connection, Incoming)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let shared = Arc::new(Shared {
        streams: Mutex::default(),
        urgent: Mutex::default(),
        has_urgent: Notify::new(),
        next_id: Mutex::new(if role == Role::Client { 1 } else { 2 }),
        initial_window: AtomicU32::new(INITIAL_WINDOW),
        keeps_windows: AtomicBool::new(false),
        window: Window::new(INITIAL_WINDOW, false),
    });
    let (queue, pieces) = mpsc::channel(STREAM_DEPTH);
    let (opened, incoming) = mpsc::channel(1);
    let (read, write) = tokio::io::split(io);
    let reader =
        Reader { shared: Arc::clone(&shared), queue: queue.downgrade(), opened, role, received: 0, last: 0 };
    let writer =
        Writer { shared: Arc::clone(&shared), pieces, encoder: Encoder::default(), out: BytesMut::new() };
    let (owner, shutdown) = (Arc::clone(&shared), sessions.shutdown().clone());
    sessions.spawn(async move {
        let ended = shutdown.run_until_cancelled(run(reader.run(read), writer.run(write))).await;
        if let Some(Err(error)) = ended {
            tracing::debug!(%error, "a SPDY connection ended");
        }
        owner.end();
    });
    (Connection { shared, queue }, incoming)
}

/// Reads and writes until the peer is gone. After the last frame was written the peer gets a moment to read it:
/// closing while bytes from the peer are unread would make the kernel throw away what it has not sent yet.
async fn run(
    read: impl Future<Output = io::Result<()>>,
    write: impl Future<Output = io::Result<()>>,
) -> io::Result<()> {
    let mut read = pin!(read);
    tokio::select! {
        ended = &mut read => return ended,
        ended = write => ended?,
    }
    tokio::time::timeout(FAREWELL, read).await.unwrap_or(Ok(()))
}

impl Connection {
    /// Opens a stream; the peer's answer is not waited for.
    ///
    /// # Errors
    /// [`io::ErrorKind::BrokenPipe`] when the connection has ended.
    pub fn open(&self, headers: Headers) -> io::Result<Stream> {
        if self.queue.is_closed() {
            return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the SPDY connection has ended"));
        }
        // The numbers of streams must rise on the wire.
        let mut next = lock(&self.shared.next_id);
        let id = *next;
        *next += 2;
        let stream = self.shared.add(id, headers.clone(), &self.queue, false);
        self.shared.answer(Frame::SynStream { id, fin: false, unidirectional: false, headers });
        Ok(stream)
    }

    /// Ends this side of every stream behind what was written to it. What is written later fails.
    pub fn finish(&self) {
        self.shared.finish_all();
    }

    /// Ends the connection once everything written before has been sent. A peer that uses Go's `spdystream` may lose
    /// what it has not handed on yet: let it end the connection where its reading matters.
    pub async fn close(&self) {
        let farewell = Frame::GoAway { last: 0, status: 0 };
        // A connection that has ended already needs no farewell.
        let _ = self.queue.send(Piece::Control(Box::new(farewell))).await;
    }

    /// Resolves when the connection has ended.
    pub async fn ended(&self) {
        self.queue.closed().await;
    }
}

impl Shared {
    fn add(
        self: &Arc<Self>,
        id: u32,
        headers: Headers,
        queue: &mpsc::Sender<Piece>,
        has_fin: bool,
    ) -> Stream {
        let initial = self.initial_window.load(Ordering::Relaxed);
        let window = Arc::new(Window::new(initial, self.keeps_windows.load(Ordering::Relaxed)));
        let (feed, input) = Input::new(STREAM_DEPTH);
        let flow = Flow { id, stream: Arc::clone(&window), shared: Arc::clone(self) };
        let feed = (!has_fin).then_some(feed);
        self.streams()
            .insert(id, Entry { feed, received: 0, window, written: 0, end_at: None, has_ended: false });
        Stream { id, headers, input, output: Output::with_flow(queue.clone(), id, flow) }
    }

    /// Resets a stream that is no longer wanted here.
    pub(super) fn cancel(&self, id: u32) {
        if self.remove(id) {
            self.answer(Frame::Reset { id, status: ResetStatus::CANCEL });
        }
    }

    fn remove(&self, id: u32) -> bool {
        let removed = self.streams().remove(&id);
        removed.inspect(|entry| entry.window.close()).is_some()
    }

    /// The peer has ended its side of the stream.
    fn end_input(&self, id: u32) {
        let mut streams = self.streams();
        if let Some(entry) = streams.get_mut(&id) {
            entry.feed = None;
            if entry.has_ended {
                streams.remove(&id);
            }
        }
    }

    /// This side of the stream ends when `total` bytes have been written.
    pub(super) fn finish(&self, id: u32, total: u64) {
        let mut streams = self.streams();
        let Some(entry) = streams.get_mut(&id).filter(|entry| !entry.has_ended) else { return };
        entry.end_at = Some(total);
        if entry.is_at_end() {
            end_output(&mut streams, id);
            self.answer(Frame::Data { id, fin: true, bytes: Bytes::new() });
        }
    }

    fn finish_all(&self) {
        let all: Vec<(u32, u64)> =
            self.streams().iter().map(|(id, entry)| (*id, entry.window.close_at())).collect();
        for (id, total) in all {
            self.finish(id, total);
        }
    }

    /// The writer takes `length` bytes of the stream; true when they are the last.
    fn written(&self, id: u32, length: usize) -> bool {
        let mut streams = self.streams();
        let Some(entry) = streams.get_mut(&id) else { return false };
        entry.written += u64::try_from(length).unwrap_or(u64::MAX);
        let is_last = entry.is_at_end();
        if is_last {
            end_output(&mut streams, id);
        }
        is_last
    }

    fn answer(&self, frame: Frame) {
        lock(&self.urgent).push(frame);
        self.has_urgent.notify_one();
    }

    /// The connection has ended: readers see the end, writers a broken pipe.
    fn end(&self) {
        let streams = std::mem::take(&mut *self.streams());
        for entry in streams.values() {
            entry.window.close();
        }
        self.window.close();
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<u32, Entry>> {
        lock(&self.streams)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Whether the connection goes on after a frame.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Read,
    Stop,
}

struct Reader {
    shared: Arc<Shared>,
    /// Weak, so that the queue ends with the connection's handle and its streams.
    queue: mpsc::WeakSender<Piece>,
    opened: mpsc::Sender<Stream>,
    role: Role,
    /// Bytes received on the connection since its last window update.
    received: u32,
    /// The last stream that the peer opened.
    last: u32,
}

impl Reader {
    async fn run<S: AsyncRead>(mut self, mut read: ReadHalf<S>) -> io::Result<()> {
        let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::with_capacity(CHUNK));
        loop {
            while let Some(frame) = decoder.decode(&mut buffer).map_err(invalid)? {
                if self.take(frame).await? == Next::Stop {
                    return Ok(());
                }
            }
            buffer.reserve(CHUNK);
            if read.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> io::Result<Next> {
        if lock(&self.shared.urgent).len() > MAX_URGENT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the peer asks for answers and does not read them",
            ));
        }
        match frame {
            Frame::SynStream { id, fin, headers, .. } => self.opened(id, fin, headers).await,
            Frame::Data { id, fin, bytes } => self.data(id, fin, bytes).await,
            Frame::SynReply { id, fin, .. } | Frame::Headers { id, fin, .. } => {
                if fin {
                    self.shared.end_input(id);
                }
            }
            Frame::Reset { id, .. } => {
                self.shared.remove(id);
            }
            Frame::Ping(id) => {
                // A ping with a number of our own parity is the answer to one of ours.
                if (id % 2 == 1) == (self.role == Role::Server) {
                    self.shared.answer(Frame::Ping(id));
                }
            }
            Frame::GoAway { .. } if self.shared.streams().is_empty() => return Ok(Next::Stop),
            Frame::GoAway { .. } => {}
            Frame::WindowUpdate { id: 0, delta } => self.shared.window.open(delta),
            Frame::WindowUpdate { id, delta } => {
                self.shared.keeps_windows.store(true, Ordering::Relaxed);
                if let Some(entry) = self.shared.streams().get(&id) {
                    entry.window.open(delta);
                }
            }
            Frame::Settings(entries) => self.settings(&entries),
        }
        Ok(Next::Read)
    }

    fn settings(&self, entries: &[(u32, u32)]) {
        for (_, initial) in entries.iter().filter(|(id, _)| *id == SETTINGS_INITIAL_WINDOW) {
            self.shared.keeps_windows.store(true, Ordering::Relaxed);
            let former = self.shared.initial_window.swap(*initial, Ordering::Relaxed);
            self.shared.streams().values().for_each(|entry| entry.window.begin_with(former, *initial));
        }
    }

    async fn opened(&mut self, id: u32, fin: bool, headers: Headers) {
        let is_peers = (id % 2 == 1) == (self.role == Role::Server);
        if !is_peers || id <= self.last {
            return self.shared.answer(Frame::Reset { id, status: ResetStatus::PROTOCOL_ERROR });
        }
        self.last = id;
        let queue = self.queue.upgrade().filter(|_| self.shared.streams().len() < MAX_STREAMS);
        let Some(queue) = queue else {
            return self.shared.answer(Frame::Reset { id, status: ResetStatus::REFUSED_STREAM });
        };
        // The peer drops data that comes before the reply: the writer sends answers before what streams write.
        self.shared.answer(Frame::SynReply { id, fin: false, headers: Headers::default() });
        let stream = self.shared.add(id, headers, &queue, fin);
        drop(queue);
        if let Err(refused) = self.opened.send(stream).await {
            refused.0.reset();
        }
    }

    async fn data(&mut self, id: u32, fin: bool, bytes: Bytes) {
        let known = self.shared.streams().get(&id).map(|entry| entry.feed.clone());
        let Some(feed) = known else { return self.unknown(id, &bytes) };
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if let Some(feed) = feed.filter(|_| length > 0) {
            // A reader that is gone lets the rest of its stream fall to the ground.
            let _ = feed.send(bytes).await;
        }
        self.credit_connection(length);
        if fin {
            self.shared.end_input(id);
        } else {
            self.credit_stream(id, length);
        }
    }

    fn unknown(&mut self, id: u32, bytes: &Bytes) {
        // Data may still be under way for a stream that was just reset here; one that never was is an error.
        self.credit_connection(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        if id > self.last {
            self.shared.answer(Frame::Reset { id, status: ResetStatus::INVALID_STREAM });
        }
    }

    fn credit_connection(&mut self, length: u32) {
        self.received = self.received.saturating_add(length);
        if self.received >= INITIAL_WINDOW / 2 {
            self.shared.answer(Frame::WindowUpdate { id: 0, delta: std::mem::take(&mut self.received) });
        }
    }

    fn credit_stream(&self, id: u32, length: u32) {
        let delta = self.shared.streams().get_mut(&id).and_then(|entry| {
            entry.received = entry.received.saturating_add(length);
            (entry.received >= INITIAL_WINDOW / 2).then(|| std::mem::take(&mut entry.received))
        });
        if let Some(delta) = delta {
            self.shared.answer(Frame::WindowUpdate { id, delta });
        }
    }
}

struct Writer {
    shared: Arc<Shared>,
    pieces: mpsc::Receiver<Piece>,
    encoder: Encoder,
    out: BytesMut,
}

impl Writer {
    /// Writes until the queue ends, which is when the handle and all streams are gone, or a `GOAWAY` was sent.
    async fn run<S: AsyncWrite>(mut self, mut write: WriteHalf<S>) -> io::Result<()> {
        let mut next = Next::Read;
        while next == Next::Read {
            let shared = Arc::clone(&self.shared);
            next = tokio::select! {
                piece = self.pieces.recv() => self.gather(piece).map_err(invalid)?,
                () = shared.has_urgent.notified() => self.answers().map(|()| Next::Read).map_err(invalid)?,
            };
            write.write_all_buf(&mut self.out).await?;
            write.flush().await?;
        }
        write.shutdown().await
    }

    /// Encodes `piece` and what waits behind it, up to about one [`CHUNK`].
    fn gather(&mut self, piece: Option<Piece>) -> Result<Next, FrameError> {
        let mut next = piece;
        while let Some(piece) = next {
            self.answers()?;
            let frame = frame_of(piece, &self.shared);
            self.encoder.encode(&frame, &mut self.out)?;
            if matches!(frame, Frame::GoAway { .. }) {
                return Ok(Next::Stop);
            }
            if self.out.len() >= CHUNK {
                return Ok(Next::Read);
            }
            next = match self.pieces.try_recv() {
                Ok(piece) => Some(piece),
                Err(mpsc::error::TryRecvError::Empty) => return Ok(Next::Read),
                Err(mpsc::error::TryRecvError::Disconnected) => None,
            };
        }
        Ok(Next::Stop)
    }

    /// Encodes the answers that wait. A reply to a stream is among them before the stream can write.
    fn answers(&mut self) -> Result<(), FrameError> {
        let frames = std::mem::take(&mut *lock(&self.shared.urgent));
        frames.iter().try_for_each(|frame| self.encoder.encode(frame, &mut self.out))
    }
}

fn frame_of(piece: Piece, shared: &Shared) -> Frame {
    match piece {
        Piece::Data(id, bytes) => Frame::Data { id, fin: shared.written(id, bytes.len()), bytes },
        Piece::End(id) => Frame::Data { id, fin: true, bytes: Bytes::new() },
        Piece::Control(frame) => *frame,
    }
}

/// This side of the stream has ended; the other may have before.
fn end_output(streams: &mut HashMap<u32, Entry>, id: u32) {
    if let Some(entry) = streams.get_mut(&id) {
        entry.has_ended = true;
        if entry.feed.is_none() {
            streams.remove(&id);
        }
    }
}
