//! A blocking rtnetlink socket: one request, its answers, one error. It belongs to the network namespace of the
//! thread that opened it, whoever uses it later.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Make it; fail when it exists.
pub(crate) const CREATE: u16 = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
/// Make it, or put it in the place of what exists.
pub(crate) const REPLACE: u16 = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
/// Change or remove what exists.
pub(crate) const CHANGE: u16 = NLM_F_ACK;
/// List all.
pub(crate) const LIST: u16 = NLM_F_DUMP;

/// The multicast group for changes of links.
const RTNLGRP_LINK: u32 = 1;

/// A socket, used by one request at a time.
#[derive(Debug)]
pub(crate) struct Netlink(Mutex<State>);

#[derive(Debug)]
struct State {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(Mutex::new(State { socket, sequence: 0 })))
    }

    /// Hears of changes to the links of this socket's namespace from now on.
    pub(crate) fn link_changes(&self) -> io::Result<LinkChanges<'_>> {
        self.state().socket.add_membership(RTNLGRP_LINK)?;
        Ok(LinkChanges(self))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `message` and returns what the kernel answers, without its acknowledgement.
    pub(crate) fn call(&self, message: Message, flags: u16) -> io::Result<Vec<Message>> {
        let mut state = self.state();
        state.sequence = state.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = state.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        state.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        while state.receive(flags, &mut answers)? == Progress::More {}
        Ok(answers)
    }
}

/// A socket that hears of changes to links, until this is dropped.
#[derive(Debug)]
pub(crate) struct LinkChanges<'a>(&'a Netlink);

impl LinkChanges<'_> {
    /// Waits for the next change; false when there was none until `deadline`.
    pub(crate) fn wait(&self, deadline: Instant) -> io::Result<bool> {
        let state = self.0.state();
        let left = Timespec::try_from(deadline.saturating_duration_since(Instant::now()));
        let mut ready = [PollFd::new(&state.socket, PollFlags::IN)];
        if poll(&mut ready, left.ok().as_ref())? == 0 {
            return Ok(false);
        }
        // A full buffer means that there were changes, too.
        let _ = state.socket.recv_from_full();
        Ok(true)
    }
}

impl Drop for LinkChanges<'_> {
    fn drop(&mut self) {
        // Whatever is heard later has no request's number and is passed over.
        let _ = self.0.state().socket.drop_membership(RTNLGRP_LINK);
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    More,
    Done,
}

impl State {
    /// Takes one datagram, which may hold several messages.
    fn receive(&mut self, flags: u16, answers: &mut Vec<Message>) -> io::Result<Progress> {
        let (bytes, _) = self.socket.recv_from_full()?;
        let mut rest = bytes.as_slice();
        while let Some(length) = rest.first_chunk().map(|length| u32::from_ne_bytes(*length)) {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let Some(one) = rest.get(..length).filter(|one| !one.is_empty()) else { break };
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            // A link of a kind that the decoder does not know is none of ours.
            let Ok(message) = NetlinkMessage::<Message>::deserialize(one) else { continue };
            if message.header.sequence_number != self.sequence {
                continue;
            }
            match message.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(Progress::Done),
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                _ => {}
            }
        }
        // A single answer to a request without acknowledgement ends it.
        let is_single = flags & (NLM_F_ACK | NLM_F_DUMP) == 0 && !answers.is_empty();
        Ok(if is_single { Progress::Done } else { Progress::More })
    }
}
