//! Adding and deleting elements of nftables sets without starting `nft`: one message to the kernel, some microseconds
//! on a Pod's path. It knows nothing else of nftables; rules go as text (`nft.rs`).
//!
//! The format: `linux/netfilter/nfnetlink.h` and `nf_tables.h`; integers of attributes are big-endian.

use std::io;
use std::sync::{Mutex, PoisonError};

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_ELEMENT: u16 = (SUBSYSTEM << 8) + 12;
const DELETE_ELEMENT: u16 = (SUBSYSTEM << 8) + 14;
const FAMILY_BRIDGE: u8 = 7;

const FLAG_REQUEST: u16 = 1;
const FLAG_ACK: u16 = 4;
const FLAG_CREATE: u16 = 0x400;
const NESTED: u16 = 0x8000;

const ERROR: u16 = 2;
const HEADER: usize = 16;

/// A member of a set of the family `bridge`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element<'a> {
    pub(crate) table: &'a str,
    pub(crate) set: &'a str,
    pub(crate) key: Vec<u8>,
}

/// One socket for all transactions, of the network namespace of the thread that needs it first. The kernel lets the end of
/// such a socket wait until what was deleted last is freed, some 10 ms.
#[derive(Debug, Default)]
pub(crate) struct Nfnetlink(Mutex<Option<Socket>>);

impl Nfnetlink {
    /// Adds elements, all or none; those that are there already stay.
    ///
    /// # Errors
    /// `ENOENT` when the table or the set is not there.
    pub(crate) fn add(&self, elements: &[Element<'_>]) -> io::Result<()> {
        self.transact(&batch(NEW_ELEMENT, FLAG_CREATE, elements), elements.len())
    }

    /// Deletes elements, all or none; that they, the set or the table are not there is fine.
    pub(crate) fn delete(&self, elements: &[Element<'_>]) -> io::Result<()> {
        match self.transact(&batch(DELETE_ELEMENT, 0, elements), elements.len()) {
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => Ok(()),
            other => other,
        }
    }

    fn transact(&self, batch: &[u8], count: usize) -> io::Result<()> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = held.take().map_or_else(open, Ok)?;
        let outcome = send(&socket, batch, count);
        // After an error more answers may come, which the next transaction would take for its own.
        *held = outcome.is_ok().then_some(socket);
        outcome
    }
}

/// One transaction: begin, a message for each element, end. The n-th message has sequence number n, from 0.
fn batch(kind: u16, flags: u16, elements: &[Element<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    message(&mut bytes, BATCH_BEGIN, 0, &boundary());
    for element in elements {
        let mut body = vec![FAMILY_BRIDGE, 0, 0, 0];
        attribute(&mut body, 1, &terminated(element.table));
        attribute(&mut body, 2, &terminated(element.set));
        let value = nested(1, &element.key);
        attribute(&mut body, 3 | NESTED, &nested(1 | NESTED, &nested(1 | NESTED, &value)));
        message(&mut bytes, kind, flags | FLAG_ACK, &body);
    }
    message(&mut bytes, BATCH_END, 0, &boundary());
    number(&mut bytes);
    bytes
}

/// What a batch's first and last message carry: no family, version 0, the subsystem.
fn boundary() -> [u8; 4] {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
}

fn terminated(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    attribute(&mut bytes, kind, value);
    bytes
}

fn attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn message(bytes: &mut Vec<u8>, kind: u16, flags: u16, body: &[u8]) {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((FLAG_REQUEST | flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
}

/// Numbers the messages of a batch, so that an answer tells which it is for.
fn number(bytes: &mut [u8]) {
    let (mut rest, mut sequence) = (bytes, 0_u32);
    while let Some(length) = rest.first_chunk().map(|length| u32::from_ne_bytes(*length)) {
        if let Some(place) = rest.get_mut(8..12) {
            place.copy_from_slice(&sequence.to_ne_bytes());
        }
        sequence += 1;
        rest = rest.get_mut(usize::try_from(length).unwrap_or(usize::MAX)..).unwrap_or_default();
    }
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Sends a batch and waits for the answer to each of its `count` elements, or for the first error.
fn send(socket: &Socket, batch: &[u8], count: usize) -> io::Result<()> {
    socket.send(batch, 0)?;
    let mut answered = 0;
    while answered < count {
        let (answer, _) = socket.recv_from_full()?;
        answered += acknowledged(&answer)?;
    }
    Ok(())
}

/// How many acknowledgements a datagram holds; an error is the kernel's.
fn acknowledged(datagram: &[u8]) -> io::Result<usize> {
    let (mut rest, mut count) = (datagram, 0);
    while let Some(length) = rest.first_chunk().map(|length| u32::from_ne_bytes(*length)) {
        let is_answer = rest.get(4..6) == Some(ERROR.to_ne_bytes().as_slice());
        let code =
            rest.get(HEADER..).and_then(|body| body.first_chunk()).map(|code| i32::from_ne_bytes(*code));
        match code.filter(|_| is_answer) {
            Some(0) => count += 1,
            Some(code) => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
            None => {}
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX).max(HEADER);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that `nft --debug=mnl add element bridge kk pods …` shows.
    #[test]
    #[cfg(target_endian = "little")]
    fn an_element_is_encoded_as_nft_does() {
        let element = Element { table: "kk", set: "pods", key: vec![0x76, 0x39, 0, 0, 10, 1, 0, 9] };
        let bytes = batch(NEW_ELEMENT, FLAG_CREATE, &[element]);
        let begin = [20, 0, 0, 0, 0x10, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10];
        let end = [20, 0, 0, 0, 0x11, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10];
        let middle = [
            64, 0, 0, 0, 12, 10, 5, 4, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 7, 0, 1, 0, b'k', b'k', 0, 0, 9,
            0, 2, 0, b'p', b'o', b'd', b's', 0, 0, 0, 0, 24, 0, 3, 128, 20, 0, 1, 128, 16, 0, 1, 128, 12, 0,
            1, 0, 0x76, 0x39, 0, 0, 10, 1, 0, 9,
        ];
        assert_eq!(bytes, [begin.as_slice(), &middle, &end].concat());
    }

    #[test]
    fn answers_are_counted_and_the_first_error_wins() {
        let answer = |code: i32| {
            let mut bytes = Vec::new();
            message(&mut bytes, ERROR, 0, &[code.to_ne_bytes().as_slice(), &[0; HEADER]].concat());
            bytes
        };
        assert_eq!(acknowledged(&[answer(0), answer(0)].concat()).unwrap(), 2);
        assert_eq!(acknowledged(&[]).unwrap(), 0);
        let error = acknowledged(&[answer(0), answer(-2)].concat()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(acknowledged(&[1, 2, 3, 4, 5]).unwrap(), 0);
    }
}
