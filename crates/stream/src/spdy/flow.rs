//! SPDY/3.1 flow control of the sending side. Go's `spdystream`, which `kubectl`, `crictl` and every Kubernetes
//! server use, neither keeps windows nor opens them; so a window counts only once the peer has shown that it
//! keeps one, by `WINDOW_UPDATE` or `SETTINGS`. Until then the connection's own back-pressure is all there is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::connection::Shared;

/// The window with which a stream and the connection begin, in bytes.
pub(super) const INITIAL_WINDOW: u32 = 64 * 1024;

/// How much may be sent on a stream, or on the connection.
#[derive(Debug)]
pub(super) struct Window(Mutex<State>);

#[derive(Debug)]
struct State {
    sent: u64,
    /// All that may ever be sent, in bytes from the beginning.
    limit: u64,
    is_kept: bool,
    is_closed: bool,
    waiting: Vec<Waker>,
}

impl Window {
    /// A window of `initial` bytes; `is_kept` when the peer is known to keep windows.
    pub(super) fn new(initial: u32, is_kept: bool) -> Self {
        let state = State { sent: 0, limit: initial.into(), is_kept, is_closed: false, waiting: Vec::new() };
        Self(Mutex::new(state))
    }

    /// The peer takes `delta` bytes more, and so keeps windows.
    pub(super) fn open(&self, delta: u32) {
        self.change(|state| {
            state.limit = state.limit.saturating_add(delta.into());
            state.is_kept = true;
        });
    }

    /// The peer has changed the window with which streams begin from `former` to `initial` bytes.
    pub(super) fn begin_with(&self, former: u32, initial: u32) {
        self.change(|state| {
            state.limit = state.limit.saturating_add(initial.into()).saturating_sub(former.into());
            state.is_kept = true;
        });
    }

    /// Nothing may be sent any more.
    pub(super) fn close(&self) {
        self.change(|state| state.is_closed = true);
    }

    /// The same; returns how much has been sent.
    pub(super) fn close_at(&self) -> u64 {
        self.close();
        self.sent()
    }

    /// How many of `wanted` bytes may be sent now, at least one; `Err` when the window is closed.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Closed>> {
        let mut state = self.lock();
        if state.is_closed {
            return Poll::Ready(Err(Closed));
        }
        let room = usize::try_from(state.limit.saturating_sub(state.sent)).unwrap_or(usize::MAX);
        match room {
            _ if !state.is_kept => Poll::Ready(Ok(wanted)),
            0 => {
                state.waiting.push(cx.waker().clone());
                Poll::Pending
            }
            room => Poll::Ready(Ok(room.min(wanted))),
        }
    }

    /// Bytes sent so far.
    fn sent(&self) -> u64 {
        self.lock().sent
    }

    /// `length` bytes have been sent.
    pub(super) fn spend(&self, length: usize) {
        self.lock().sent += u64::try_from(length).unwrap_or(u64::MAX);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let waiting = {
            let mut state = self.lock();
            change(&mut state);
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The stream was reset or the connection has ended.
#[derive(Debug)]
pub(crate) struct Closed;

/// What an output of a SPDY stream must ask before it sends.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(super) id: u32,
    pub(super) stream: Arc<Window>,
    pub(super) shared: Arc<Shared>,
}

impl Flow {
    /// How many of `wanted` bytes the stream and the connection let through now.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>, wanted: usize) -> Poll<Result<usize, Closed>> {
        let room = std::task::ready!(self.stream.poll_room(cx, wanted))?;
        self.shared.window.poll_room(cx, room)
    }

    /// `length` bytes have been handed to the connection.
    pub(crate) fn spend(&self, length: usize) {
        self.stream.spend(length);
        self.shared.window.spend(length);
    }

    /// Nothing more is wanted in either direction.
    pub(crate) fn cancel(&self) {
        self.shared.cancel(self.id);
    }

    /// No more will be handed over: the stream ends on this side when all of it has been written.
    pub(crate) fn finish(&self) {
        self.shared.finish(self.id, self.stream.sent());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(window: &Window, wanted: usize) -> Option<usize> {
        match window.poll_room(&mut Context::from_waker(Waker::noop()), wanted) {
            Poll::Ready(room) => room.ok(),
            Poll::Pending => Some(0),
        }
    }

    #[test]
    fn a_peer_that_keeps_no_window_is_sent_all() {
        let window = Window::new(10, false);
        window.spend(1000);
        assert_eq!(room(&window, 500), Some(500));
    }

    #[test]
    fn the_first_update_counts_what_was_sent_before() {
        let window = Window::new(10, false);
        window.spend(25);
        window.open(20);
        assert_eq!(room(&window, 500), Some(5));
        window.spend(5);
        assert_eq!(room(&window, 500), Some(0));
        window.begin_with(10, 17);
        assert_eq!(room(&window, 500), Some(7));
    }

    #[test]
    fn a_closed_window_lets_nothing_through() {
        let window = Window::new(10, false);
        window.close();
        assert_eq!(room(&window, 1), None);
    }
}
