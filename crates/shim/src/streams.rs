//! A container's standard streams: read once, written to the log and to every client that is attached.
//!
//! The container waits only for the shim. A client that reads too slowly is cut off when [`CLIENT_BUFFER`] is full; it
//! never holds up the log or the other clients. Input is taken from clients only as fast as the container reads it.

use crate::launch::Stdio;
use crate::log::{Log, Stream};
use crate::protocol::Stdin;
use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::SystemTime;

/// What a client may lag behind, besides the 64 KiB in its pipe.
const CLIENT_BUFFER: usize = 1 << 20;
const READ: usize = 16 << 10;
/// Bytes of an OCI runtime's words that are kept.
const EARLY: usize = 4 << 10;
/// Reads that are enough for a full pipe of the largest size that a container can set (1 MiB). Somebody outside the
/// container may hold its pipe and write for ever.
const LAST_READS: usize = 80;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Output(usize),
    Input,
    ClientInput(usize),
    ClientOutput(usize, usize),
}

/// The streams of one container.
#[derive(Debug)]
pub(crate) struct Streams {
    /// Standard output and error; with a terminal its master and nothing.
    outputs: [Option<OwnedFd>; 2],
    pub(crate) log: Log,
    input: Option<Input>,
    policy: Stdin,
    terminal: Option<OwnedFd>,
    clients: Vec<Client>,
    /// What came on standard error before the program ran: the words of an OCI runtime.
    early: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Input {
    fd: OwnedFd,
    pending: Vec<u8>,
    /// Close when everything is written.
    closing: bool,
}

#[derive(Debug, Default)]
struct Client {
    input: Option<OwnedFd>,
    outputs: [Option<ClientOutput>; 2],
}

#[derive(Debug)]
struct ClientOutput {
    fd: OwnedFd,
    pending: Vec<u8>,
}

impl Streams {
    /// Makes the pipes (none with a terminal). The container's ends belong to `owner`, so that it can open
    /// `/dev/stdout` again.
    pub(crate) fn new(
        log: Log,
        policy: Stdin,
        terminal: bool,
        owner: (u32, u32),
    ) -> io::Result<(Self, Stdio)> {
        let mut streams = Streams {
            outputs: [None, None],
            log,
            input: None,
            policy,
            terminal: None,
            clients: Vec::new(),
            early: None,
        };
        let mut stdio = Stdio::default();
        if terminal {
            return Ok((streams, stdio));
        }
        let output = || -> io::Result<(Option<OwnedFd>, Option<OwnedFd>)> {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            give(&theirs, owner)?;
            set_nonblocking(&ours)?;
            Ok((Some(ours), Some(theirs)))
        };
        let (stdout, theirs) = output()?;
        stdio.stdout = theirs;
        let (stderr, theirs) = output()?;
        stdio.stderr = theirs;
        streams.outputs = [stdout, stderr];
        if policy != Stdin::Null {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            give(&theirs, owner)?;
            set_nonblocking(&ours)?;
            stdio.stdin = Some(theirs);
            streams.input = Some(Input { fd: ours, pending: Vec::new(), closing: false });
        }
        Ok((streams, stdio))
    }

    /// Keeps what comes on standard error from now on, the beginning of it, until [`Streams::forget_early`].
    pub(crate) fn keep_early(&mut self) {
        self.early = Some(Vec::new());
    }

    pub(crate) fn forget_early(&mut self) {
        self.early = None;
    }

    /// What came on standard error before the program ran.
    pub(crate) fn early(&self) -> Option<String> {
        let text = String::from_utf8_lossy(self.early.as_deref()?).trim().to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// The master of the container's terminal has arrived.
    pub(crate) fn set_terminal(&mut self, master: OwnedFd) -> io::Result<()> {
        set_nonblocking(&master)?;
        if self.policy != Stdin::Null {
            self.input = Some(Input { fd: master.try_clone()?, pending: Vec::new(), closing: false });
        }
        self.terminal = Some(master.try_clone()?);
        self.outputs = [Some(master), None];
        Ok(())
    }

    pub(crate) fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd)
    }

    /// Connects a client; answers its ends in the order stdin, stdout, stderr, those that it wants and can have.
    pub(crate) fn attach(&mut self, wants: [bool; 3]) -> io::Result<Vec<OwnedFd>> {
        let [stdin, stdout, stderr] = wants;
        let (mut client, mut theirs) = (Client::default(), Vec::new());
        if stdin {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
            set_nonblocking(&read)?;
            if self.input.is_some() {
                client.input = Some(read);
            }
            theirs.push(write); // Without input the client sees a closed pipe, not a hang.
        }
        for (wanted, place) in [stdout, stderr].into_iter().zip(&mut client.outputs) {
            if wanted {
                let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
                set_nonblocking(&write)?;
                *place = Some(ClientOutput { fd: write, pending: Vec::new() });
                theirs.push(read);
            }
        }
        if self.terminal.is_some() {
            client.outputs[1] = None;
        }
        self.clients.push(client);
        Ok(theirs)
    }

    /// What to wait for now.
    pub(crate) fn interests(&self) -> Vec<(Port, BorrowedFd<'_>, PollFlags)> {
        let mut list = Vec::new();
        for (index, output) in self.outputs.iter().enumerate() {
            list.extend(output.as_ref().map(|fd| (Port::Output(index), fd.as_fd(), PollFlags::IN)));
        }
        let is_waiting = self.input.as_ref().is_some_and(|input| !input.pending.is_empty());
        if let (true, Some(input)) = (is_waiting, &self.input) {
            list.push((Port::Input, input.fd.as_fd(), PollFlags::OUT));
        }
        for (index, client) in self.clients.iter().enumerate() {
            // While the container does not read, its clients wait.
            if let (false, Some(fd)) = (is_waiting, &client.input) {
                list.push((Port::ClientInput(index), fd.as_fd(), PollFlags::IN));
            }
            for (which, output) in client.outputs.iter().enumerate() {
                if let Some(ClientOutput { fd, pending }) = output {
                    let flags = if pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
                    list.push((Port::ClientOutput(index, which), fd.as_fd(), flags));
                }
            }
        }
        list
    }

    /// Something can be done.
    pub(crate) fn handle(&mut self, port: Port, ready: PollFlags) {
        match port {
            Port::Output(index) => drop(self.read_output(index)),
            Port::Input => self.write_input(),
            Port::ClientInput(index) => self.read_client(index),
            Port::ClientOutput(index, which) => self.write_client(index, which, ready),
        }
    }

    /// Forgets clients that are gone. Indices in [`Port`] are valid until then.
    pub(crate) fn tidy(&mut self) {
        self.clients.retain(|client| client.input.is_some() || client.outputs.iter().any(Option::is_some));
    }

    /// Reads one of the outputs once. False: nothing there now, or it has ended.
    fn read_output(&mut self, index: usize) -> bool {
        let Some(Some(fd)) = self.outputs.get(index) else { return false };
        let mut buffer = [0; READ];
        let stream = if index == 0 { Stream::Stdout } else { Stream::Stderr };
        match rustix::io::read(fd, &mut buffer) {
            Ok(length @ 1..) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                self.log.write(stream, bytes, SystemTime::now());
                if let Some(early) = self.early.as_mut().filter(|_| index == 1) {
                    early.extend(bytes.iter().take(EARLY.saturating_sub(early.len())));
                }
                self.send_to_clients(index, bytes);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            // The end; a terminal says EIO when its last user has gone.
            Ok(_) | Err(_) => {
                self.close_output(index);
                false
            }
        }
    }

    fn close_output(&mut self, index: usize) {
        let stream = if index == 0 { Stream::Stdout } else { Stream::Stderr };
        self.log.end(stream, SystemTime::now());
        if let Some(output) = self.outputs.get_mut(index) {
            *output = None;
        }
        for client in &mut self.clients {
            if let Some(output) = client.outputs.get_mut(index) {
                output.take_if(|output| output.pending.is_empty());
            }
        }
    }

    fn send_to_clients(&mut self, which: usize, bytes: &[u8]) {
        for client in &mut self.clients {
            let Some(place) = client.outputs.get_mut(which) else { continue };
            let Some(output) = place else { continue };
            output.pending.extend_from_slice(bytes);
            if !flush(&output.fd, &mut output.pending) || output.pending.len() > CLIENT_BUFFER {
                *place = None;
            }
        }
    }

    fn write_client(&mut self, index: usize, which: usize, ready: PollFlags) {
        let is_over = self.outputs.get(which).is_none_or(Option::is_none);
        let Some(place) = self.clients.get_mut(index).and_then(|client| client.outputs.get_mut(which)) else {
            return;
        };
        let Some(output) = place else { return };
        let is_gone =
            ready.intersects(PollFlags::ERR | PollFlags::HUP) || !flush(&output.fd, &mut output.pending);
        if is_gone || (is_over && output.pending.is_empty()) {
            *place = None;
        }
    }

    fn read_client(&mut self, index: usize) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let Some(fd) = &client.input else { return };
        let mut buffer = [0; READ];
        match rustix::io::read(fd, &mut buffer) {
            Ok(length @ 1..) => {
                if let Some(input) = &mut self.input {
                    input.pending.extend_from_slice(buffer.get(..length).unwrap_or_default());
                }
                self.write_input();
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => {
                client.input = None;
                self.end_of_client_input();
            }
        }
    }

    /// `stdinOnce`: the first client's end of input is the container's. A terminal gets the character that means it.
    fn end_of_client_input(&mut self) {
        if self.policy != Stdin::Once {
            return;
        }
        let is_terminal = self.terminal.is_some();
        if let Some(input) = &mut self.input {
            if is_terminal {
                input.pending.push(4); // EOT, control-D
            }
            input.closing = true;
        }
        self.write_input();
    }

    fn write_input(&mut self) {
        let Some(input) = &mut self.input else { return };
        let is_open = flush(&input.fd, &mut input.pending);
        if !is_open || (input.closing && input.pending.is_empty()) {
            self.input = None;
            for client in &mut self.clients {
                client.input = None;
            }
        }
    }

    /// The container has ended: takes what is still in the pipes, ends the log and the clients that have everything.
    pub(crate) fn finish(&mut self) {
        for index in 0..self.outputs.len() {
            for _ in 0..LAST_READS {
                if !self.read_output(index) {
                    break;
                }
            }
            self.close_output(index);
        }
        self.input = None;
        self.terminal = None;
        for client in &mut self.clients {
            client.input = None;
        }
        self.tidy();
    }
}

/// Writes what the descriptor takes. False: the reader is gone.
fn flush(fd: &OwnedFd, pending: &mut Vec<u8>) -> bool {
    while !pending.is_empty() {
        match rustix::io::write(fd, pending) {
            Ok(written) => drop(pending.drain(..written)),
            Err(Errno::AGAIN) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}

pub(crate) fn give(fd: &OwnedFd, (uid, gid): (u32, u32)) -> io::Result<()> {
    use rustix::fs::{Gid, Uid, fchown};
    Ok(fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};

    fn own() -> (u32, u32) {
        (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw())
    }

    /// Lets the streams work until nothing is ready.
    fn settle(streams: &mut Streams) {
        loop {
            let ports: Vec<Port> = {
                let interests = streams.interests();
                let mut polled: Vec<_> = interests
                    .iter()
                    .map(|(_, fd, flags)| rustix::event::PollFd::from_borrowed_fd(*fd, *flags))
                    .collect();
                let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
                rustix::event::poll(&mut polled, Some(&now)).unwrap();
                let ready = polled.iter().zip(&interests).filter(|(fd, _)| !fd.revents().is_empty());
                ready.map(|(_, (port, ..))| *port).collect()
            };
            if ports.is_empty() {
                return;
            }
            for port in ports {
                streams.handle(port, PollFlags::empty());
            }
            streams.tidy();
        }
    }

    #[test]
    fn a_client_that_does_not_read_is_cut_off_and_the_log_is_whole() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let (mut streams, stdio) =
            Streams::new(Log::new(Some(log.reopen().unwrap())), Stdin::Null, false, own()).unwrap();
        let slow = streams.attach([false, true, false]).unwrap();
        let mut container = File::from(stdio.stdout.unwrap());
        for _ in 0..2_000 {
            container.write_all(&[b'x'; 999]).unwrap();
            container.write_all(b"\n").unwrap();
            settle(&mut streams);
        }
        assert!(streams.clients.is_empty(), "the slow client is gone");
        assert_eq!(std::fs::read_to_string(log.path()).unwrap().lines().count(), 2_000);
        let mut rest = Vec::new();
        File::from(slow.into_iter().next().unwrap()).read_to_end(&mut rest).unwrap();
        assert!(!rest.is_empty());
    }

    #[test]
    fn stdin_once_ends_with_its_first_client() {
        let (mut streams, stdio) = Streams::new(Log::new(None), Stdin::Once, false, own()).unwrap();
        let mut client = File::from(streams.attach([true, false, false]).unwrap().remove(0));
        client.write_all(b"hello").unwrap();
        settle(&mut streams);
        drop(client);
        settle(&mut streams);
        let mut text = String::new();
        File::from(stdio.stdin.unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
    }

    #[test]
    fn open_stdin_outlives_its_clients() {
        let (mut streams, stdio) = Streams::new(Log::new(None), Stdin::Open, false, own()).unwrap();
        for word in [b"one ", b"two "] {
            let mut client = File::from(streams.attach([true, false, false]).unwrap().remove(0));
            client.write_all(word).unwrap();
            drop(client);
            settle(&mut streams);
        }
        let mut buffer = [0; 8];
        File::from(stdio.stdin.unwrap()).read_exact(&mut buffer).unwrap();
        assert_eq!(&buffer, b"one two ");
        assert!(streams.input.is_some());
    }
}
