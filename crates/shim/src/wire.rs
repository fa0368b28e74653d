//! Frames on the shim's sockets: a header, the descriptors, a JSON body.
//!
//! Layout: body length and descriptor count (u32, little endian), one marker byte for each [`socket::MAX_FDS`]
//! descriptors (they travel with it), then the body.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use sys::socket;

/// The largest body. A plan carries the whole environment of a container, which the kernel limits to a few MiB.
const MAX_BODY: usize = 16 << 20;
/// The most descriptors in one frame.
const MAX_FRAME_FDS: usize = 4096;
const HEADER: usize = 8;

/// A received frame.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Frame {
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> io::Result<T> {
        serde_json::from_slice(&self.body).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Header and body of a frame; the markers go in between.
fn encode(message: &impl Serialize, fds: usize) -> io::Result<([u8; HEADER], Vec<u8>)> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "message to the shim is too large");
    if body.len() > MAX_BODY || fds > MAX_FRAME_FDS {
        return Err(too_large());
    }
    let length = u32::try_from(body.len()).map_err(|_| too_large())?;
    let count = u32::try_from(fds).map_err(|_| too_large())?;
    let header = (u64::from(count) << 32 | u64::from(length)).to_le_bytes();
    Ok((header, body))
}

/// Sends a frame on a blocking socket.
pub(crate) fn send(
    stream: &mut UnixStream,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let (header, body) = encode(message, fds.len())?;
    stream.write_all(&header)?;
    for chunk in fds.chunks(socket::MAX_FDS) {
        while socket::send(&*stream, b"+", chunk)? == 0 {}
    }
    stream.write_all(&body)
}

/// Receives a frame from a blocking socket; `None` if the peer closed before it began.
pub(crate) fn receive(stream: &UnixStream, reader: &mut Reader) -> io::Result<Option<Frame>> {
    loop {
        if let Some(frame) = reader.next()? {
            return Ok(Some(frame));
        }
        if !reader.fill(stream)? {
            return if reader.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

/// Collects bytes and descriptors until frames are complete; works for blocking and non-blocking sockets.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Reader {
    /// Reads once. False: the peer has closed.
    pub(crate) fn fill(&mut self, socket: impl AsFd) -> io::Result<bool> {
        let mut buffer = [0; 16 << 10];
        let received = loop {
            match socket::receive(socket.as_fd(), &mut buffer, &mut self.fds) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        self.bytes.extend_from_slice(buffer.get(..received).unwrap_or_default());
        Ok(received > 0)
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes a complete frame.
    pub(crate) fn next(&mut self) -> io::Result<Option<Frame>> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let header = u64::from_le_bytes(*header);
        let length = usize::try_from(header & 0xffff_ffff).unwrap_or(usize::MAX);
        let count = usize::try_from(header >> 32).unwrap_or(usize::MAX);
        if length > MAX_BODY || count > MAX_FRAME_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "frame is too large"));
        }
        let start = HEADER + count.div_ceil(socket::MAX_FDS);
        if self.bytes.len() < start + length {
            return Ok(None);
        }
        if self.fds.len() < count {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "frame announces more descriptors than it brought",
            ));
        }
        let rest = self.bytes.split_off(start + length);
        let body = std::mem::replace(&mut self.bytes, rest).split_off(start);
        let fds = self.fds.drain(..count).collect();
        Ok(Some(Frame { body, fds }))
    }
}

/// A frame that is written as the peer takes it (non-blocking sockets).
#[derive(Debug)]
pub(crate) struct Outgoing {
    parts: std::collections::VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    offset: usize,
}

impl Outgoing {
    pub(crate) fn new(message: &impl Serialize, mut fds: Vec<OwnedFd>) -> io::Result<Self> {
        let (header, body) = encode(message, fds.len())?;
        let mut parts = std::collections::VecDeque::from([(header.to_vec(), Vec::new())]);
        while !fds.is_empty() {
            let rest = fds.split_off(fds.len().min(socket::MAX_FDS));
            parts.push_back((b"+".to_vec(), std::mem::replace(&mut fds, rest)));
        }
        parts.push_back((body, Vec::new()));
        Ok(Outgoing { parts, offset: 0 })
    }

    /// Writes what the socket takes. True: all is written.
    pub(crate) fn write(&mut self, socket: impl AsFd) -> io::Result<bool> {
        while let Some((bytes, fds)) = self.parts.front() {
            let rest = bytes.get(self.offset..).unwrap_or_default();
            let borrowed: Vec<BorrowedFd<'_>> =
                if self.offset == 0 { fds.iter().map(AsFd::as_fd).collect() } else { Vec::new() };
            match socket::send(socket.as_fd(), rest, &borrowed) {
                Ok(sent) if sent < rest.len() => self.offset += sent,
                Ok(_) => {
                    self.parts.pop_front();
                    self.offset = 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_with_many_descriptors_arrives_whole() {
        let (mut left, right) = UnixStream::pair().unwrap();
        let files: Vec<OwnedFd> =
            (0..300).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        send(&mut left, &"first", &borrowed).unwrap();
        send(&mut left, &"second", &[]).unwrap();
        let mut reader = Reader::default();
        let first = receive(&right, &mut reader).unwrap().unwrap();
        assert_eq!((first.parse::<String>().unwrap().as_str(), first.fds.len()), ("first", 300));
        let second = receive(&right, &mut reader).unwrap().unwrap();
        assert_eq!((second.parse::<String>().unwrap().as_str(), second.fds.len()), ("second", 0));
        drop(left);
        assert!(receive(&right, &mut reader).unwrap().is_none());
    }

    #[test]
    fn an_outgoing_frame_is_what_a_reader_reads() {
        let (left, right) = UnixStream::pair().unwrap();
        let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let mut outgoing = Outgoing::new(&vec![1, 2, 3], vec![file]).unwrap();
        assert!(outgoing.write(&left).unwrap());
        let frame = receive(&right, &mut Reader::default()).unwrap().unwrap();
        assert_eq!((frame.parse::<Vec<u8>>().unwrap(), frame.fds.len()), (vec![1, 2, 3], 1));
    }

    #[test]
    fn a_frame_that_lies_about_its_size_is_refused() {
        let (mut left, right) = UnixStream::pair().unwrap();
        left.write_all(&[0xff; 8]).unwrap();
        let error = receive(&right, &mut Reader::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
