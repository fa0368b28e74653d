//! SPDY/3.1 frames to bytes and back, without I/O. Data frames are decoded in the pieces in which they arrive,
//! so that a frame of 16 MiB costs no memory; control frames are limited.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::header::{HeaderDecoder, HeaderEncoder, Headers};

const VERSION: u16 = 3;
const HEADER: usize = 8;
const CONTROL: u32 = 0x8000_0000;
const ID: u32 = 0x7fff_ffff;
const LENGTH: u32 = 0x00ff_ffff;
const FIN: u8 = 0x01;
const UNIDIRECTIONAL: u8 = 0x02;

/// The largest control frame taken, in bytes.
const MAX_CONTROL: usize = 64 * 1024;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Bytes that are no SPDY/3.1 frame. The connection cannot go on: the header compression is out of step.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A control frame of another SPDY version.
    #[error("the peer speaks SPDY version {version}, not 3")]
    Version {
        /// The version in the frame.
        version: u16,
    },
    /// A frame's length does not fit its type.
    #[error("a SPDY frame of type {kind} cannot be {length} bytes long")]
    Length {
        /// The frame's type number.
        kind: u16,
        /// Its payload's length in bytes.
        length: usize,
    },
    /// A control frame, or the headers in it, over the limit.
    #[error("a SPDY control frame with {length} bytes is over the limit of {MAX_CONTROL}")]
    TooLarge {
        /// Its length in bytes, as far as it was read.
        length: usize,
    },
    /// A header block that does not inflate or does not parse.
    #[error("a SPDY header block is malformed")]
    Headers,
    /// A stream identifier of zero where a stream is meant.
    #[error("a SPDY frame names stream 0")]
    StreamZero,
}

/// Why a stream was reset (`RST_STREAM`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResetStatus(pub u32);

impl ResetStatus {
    /// A frame that the protocol does not allow here.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// A frame for a stream that is not open.
    pub const INVALID_STREAM: Self = Self(2);
    /// The stream was not taken; nothing of it was acted on.
    pub const REFUSED_STREAM: Self = Self(3);
    /// The stream is no longer wanted.
    pub const CANCEL: Self = Self(5);
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// The new stream.
        id: u32,
        /// The opener sends no data.
        fin: bool,
        /// The receiver must send no data.
        unidirectional: bool,
        /// What the stream is for.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// The stream.
        id: u32,
        /// The accepter sends no data.
        fin: bool,
        /// The answer's headers.
        headers: Headers,
    },
    /// Ends a stream at once, in both directions.
    Reset {
        /// The stream.
        id: u32,
        /// Why.
        status: ResetStatus,
    },
    /// Connection settings as (identifier, value).
    Settings(Vec<(u32, u32)>),
    /// To be sent back as it is.
    Ping(u32),
    /// No more streams will be taken.
    GoAway {
        /// The last stream that was acted on.
        last: u32,
        /// 0 is an orderly end.
        status: u32,
    },
    /// More headers for an open stream.
    Headers {
        /// The stream.
        id: u32,
        /// The sender sends no more data.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// More data may be sent.
    WindowUpdate {
        /// The stream, or 0 for the connection.
        id: u32,
        /// Bytes more.
        delta: u32,
    },
    /// Data of a stream: a whole frame, or a piece of one.
    Data {
        /// The stream.
        id: u32,
        /// The sender sends no more data.
        fin: bool,
        /// The bytes.
        bytes: Bytes,
    },
}

/// Bytes to frames.
#[derive(Debug)]
pub struct Decoder {
    headers: HeaderDecoder,
    data: Option<Partial>,
}

/// The part of a data frame that has not arrived yet.
#[derive(Debug)]
struct Partial {
    id: u32,
    fin: bool,
    left: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { headers: HeaderDecoder::new(), data: None }
    }
}

impl Decoder {
    /// The next frame of `buffer`, whose bytes are taken from it; `None` when more must be read first.
    ///
    /// # Errors
    /// When the bytes are no SPDY/3.1 frame; the decoder cannot be used any more then.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(partial) = self.data.take() {
                return Ok(self.piece(partial, buffer));
            }
            let Some(mut header) = buffer.get(..HEADER) else { return Ok(None) };
            let (word, second) = (header.get_u32(), header.get_u32());
            let (flags, length) =
                (second.to_be_bytes()[0], usize::try_from(second & LENGTH).unwrap_or(usize::MAX));
            if word & CONTROL == 0 {
                buffer.advance(HEADER);
                let id = nonzero(word)?;
                if length == 0 {
                    return Ok(Some(Frame::Data { id, fin: flags & FIN != 0, bytes: Bytes::new() }));
                }
                self.data = Some(Partial { id, fin: flags & FIN != 0, left: length });
                continue;
            }
            if length > MAX_CONTROL {
                return Err(FrameError::TooLarge { length });
            }
            if buffer.len() < HEADER + length {
                buffer.reserve(HEADER + length - buffer.len());
                return Ok(None);
            }
            buffer.advance(HEADER);
            let payload = buffer.split_to(length).freeze();
            if let Some(frame) = self.control(word, flags, payload)? {
                return Ok(Some(frame));
            }
        }
    }

    fn piece(&mut self, mut partial: Partial, buffer: &mut BytesMut) -> Option<Frame> {
        let bytes = buffer.split_to(partial.left.min(buffer.len())).freeze();
        partial.left -= bytes.len();
        let (id, is_last) = (partial.id, partial.left == 0);
        let fin = partial.fin && is_last;
        if !is_last {
            self.data = Some(partial);
        }
        (!bytes.is_empty()).then_some(Frame::Data { id, fin, bytes })
    }

    /// A control frame; `None` for a type that is not known, which is to be ignored.
    fn control(&mut self, word: u32, flags: u8, mut payload: Bytes) -> Result<Option<Frame>, FrameError> {
        let [_, _, high, low] = word.to_be_bytes();
        let kind = u16::from_be_bytes([high, low]);
        let version = u16::try_from((word & ID) >> 16).unwrap_or_default();
        if version != VERSION {
            return Err(FrameError::Version { version });
        }
        let length = FrameError::Length { kind, length: payload.len() };
        let fin = flags & FIN != 0;
        let mut word = || payload.try_get_u32().map_err(|_| length.clone());
        let frame = match kind {
            SYN_STREAM => {
                let (id, _associated) = (nonzero(word()?)?, word()?);
                let _priority_and_slot = payload.try_get_u16().map_err(|_| length)?;
                let unidirectional = flags & UNIDIRECTIONAL != 0;
                Frame::SynStream { id, fin, unidirectional, headers: self.headers.decode(&payload)? }
            }
            SYN_REPLY => {
                Frame::SynReply { id: nonzero(word()?)?, fin, headers: self.headers.decode(&payload)? }
            }
            HEADERS => Frame::Headers { id: nonzero(word()?)?, fin, headers: self.headers.decode(&payload)? },
            RST_STREAM => Frame::Reset { id: nonzero(word()?)?, status: ResetStatus(word()?) },
            SETTINGS => Frame::Settings(settings(&mut payload).ok_or(length)?),
            PING => Frame::Ping(word()?),
            GOAWAY => Frame::GoAway { last: word()? & ID, status: word()? },
            WINDOW_UPDATE => Frame::WindowUpdate { id: word()? & ID, delta: word()? & ID },
            _ => return Ok(None),
        };
        Ok(Some(frame))
    }
}

fn nonzero(word: u32) -> Result<u32, FrameError> {
    match word & ID {
        0 => Err(FrameError::StreamZero),
        id => Ok(id),
    }
}

fn settings(payload: &mut Bytes) -> Option<Vec<(u32, u32)>> {
    let count = payload.try_get_u32().ok()?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let (id, value) = (payload.try_get_u32().ok()?, payload.try_get_u32().ok()?);
        entries.push((id & LENGTH, value));
    }
    Some(entries)
}

/// Frames to bytes.
#[derive(Debug)]
pub struct Encoder {
    headers: HeaderEncoder,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { headers: HeaderEncoder::new() }
    }
}

impl Encoder {
    /// Appends `frame` to `out`.
    ///
    /// # Errors
    /// When a payload is too long for a frame's 24-bit length (16 MiB).
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), FrameError> {
        match frame {
            Frame::Data { id, fin, bytes } => {
                out.put_u32(id & ID);
                out.put_u32(flags_and_length(if *fin { FIN } else { 0 }, bytes.len())?);
                out.extend_from_slice(bytes);
                Ok(())
            }
            Frame::SynStream { id, fin, unidirectional, headers } => {
                let flags = if *fin { FIN } else { 0 } | if *unidirectional { UNIDIRECTIONAL } else { 0 };
                let mut payload = words(&[*id, 0]);
                payload.put_u16(0);
                self.headers.encode(headers, &mut payload)?;
                control(SYN_STREAM, flags, &payload, out)
            }
            Frame::SynReply { id, fin, headers } => self.with_headers(SYN_REPLY, *id, *fin, headers, out),
            Frame::Headers { id, fin, headers } => self.with_headers(HEADERS, *id, *fin, headers, out),
            Frame::Reset { id, status } => control(RST_STREAM, 0, &words(&[*id, status.0]), out),
            Frame::Settings(entries) => {
                let mut payload = words(&[u32::try_from(entries.len()).unwrap_or(u32::MAX)]);
                for (id, value) in entries {
                    payload.extend_from_slice(&words(&[id & LENGTH, *value]));
                }
                control(SETTINGS, 0, &payload, out)
            }
            Frame::Ping(id) => control(PING, 0, &words(&[*id]), out),
            Frame::GoAway { last, status } => control(GOAWAY, 0, &words(&[*last, *status]), out),
            Frame::WindowUpdate { id, delta } => control(WINDOW_UPDATE, 0, &words(&[*id, delta & ID]), out),
        }
    }

    fn with_headers(
        &mut self,
        kind: u16,
        id: u32,
        fin: bool,
        headers: &Headers,
        out: &mut BytesMut,
    ) -> Result<(), FrameError> {
        let mut payload = words(&[id]);
        self.headers.encode(headers, &mut payload)?;
        control(kind, if fin { FIN } else { 0 }, &payload, out)
    }
}

fn words(words: &[u32]) -> BytesMut {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn flags_and_length(flags: u8, length: usize) -> Result<u32, FrameError> {
    match u32::try_from(length) {
        Ok(short) if short <= LENGTH => Ok(u32::from(flags) << 24 | short),
        _ => Err(FrameError::TooLarge { length }),
    }
}

fn control(kind: u16, flags: u8, payload: &[u8], out: &mut BytesMut) -> Result<(), FrameError> {
    out.put_u32(CONTROL | u32::from(VERSION) << 16 | u32::from(kind));
    out.put_u32(flags_and_length(flags, payload.len())?);
    out.extend_from_slice(payload);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode_all(decoder: &mut Decoder, buffer: &mut BytesMut) -> Result<Vec<Frame>, FrameError> {
        std::iter::from_fn(|| decoder.decode(buffer).transpose()).collect()
    }

    /// Joins the pieces of data frames, so that what was sent can be compared with what arrived.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut all: Vec<Frame> = Vec::new();
        for frame in frames {
            match (all.last_mut(), frame) {
                (Some(Frame::Data { id, fin, bytes }), Frame::Data { id: next, fin: end, bytes: more })
                    if *id == next && !*fin =>
                {
                    *bytes = [bytes.as_ref(), more.as_ref()].concat().into();
                    *fin = end;
                }
                (_, frame) => all.push(frame),
            }
        }
        all
    }

    fn any_headers() -> impl Strategy<Value = Headers> {
        proptest::collection::vec(("[a-z]{1,12}", ".{0,40}"), 0..4).prop_map(|pairs| {
            let mut headers = Headers::default();
            for (name, value) in pairs {
                headers = headers.with(&name, &value);
            }
            headers
        })
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let id = 1..=ID;
        let bytes = proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        prop_oneof![
            (id.clone(), any::<bool>(), any::<bool>(), any_headers()).prop_map(
                |(id, fin, unidirectional, headers)| Frame::SynStream { id, fin, unidirectional, headers }
            ),
            (id.clone(), any::<bool>(), any_headers()).prop_map(|(id, fin, headers)| Frame::SynReply {
                id,
                fin,
                headers
            }),
            (id.clone(), any::<bool>(), any_headers()).prop_map(|(id, fin, headers)| Frame::Headers {
                id,
                fin,
                headers
            }),
            (id.clone(), any::<u32>())
                .prop_map(|(id, status)| Frame::Reset { id, status: ResetStatus(status) }),
            proptest::collection::vec((0..=LENGTH, any::<u32>()), 0..5).prop_map(Frame::Settings),
            any::<u32>().prop_map(Frame::Ping),
            (0..=ID, any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
            (0..=ID, 0..=ID).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
            (id, bytes).prop_map(|(id, bytes)| Frame::Data { id, fin: true, bytes }),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_the_round_trip_however_they_are_cut(
            frames in proptest::collection::vec(any_frame(), 1..12),
            cuts in proptest::collection::vec(1usize..97, 1..20),
        ) {
            let (mut encoder, mut decoder) = (Encoder::default(), Decoder::default());
            let mut bytes = BytesMut::new();
            for frame in &frames {
                encoder.encode(frame, &mut bytes).unwrap();
            }
            let (mut buffer, mut seen) = (BytesMut::new(), Vec::new());
            for cut in cuts.iter().cycle() {
                buffer.extend_from_slice(&bytes.split_to((*cut).min(bytes.len())));
                seen.extend(decode_all(&mut decoder, &mut buffer).unwrap());
                if bytes.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(joined(seen), frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn random_bytes_never_panic(noise in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = decode_all(&mut Decoder::default(), &mut BytesMut::from(noise.as_slice()));
        }

        #[test]
        fn a_control_frame_with_random_payload_never_panics(
            kind in 0u16..12, flags in any::<u8>(), payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut buffer = BytesMut::new();
            control(kind, flags, &payload, &mut buffer).unwrap();
            let _ = decode_all(&mut Decoder::default(), &mut buffer);
        }
    }

    #[test]
    fn a_truncated_frame_waits_for_more() {
        let mut bytes = BytesMut::new();
        Encoder::default().encode(&Frame::Ping(9), &mut bytes).unwrap();
        for length in 0..bytes.len() {
            let mut cut = BytesMut::from(&bytes[..length]);
            assert_eq!(Decoder::default().decode(&mut cut), Ok(None), "{length} bytes");
        }
    }

    #[test]
    fn a_ping_is_these_bytes() {
        let mut bytes = BytesMut::new();
        Encoder::default().encode(&Frame::Ping(1), &mut bytes).unwrap();
        assert_eq!(&bytes[..], [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]);
    }

    #[test]
    fn what_cannot_be_a_frame_is_refused_by_name() {
        let refused = |bytes: &[u8]| Decoder::default().decode(&mut BytesMut::from(bytes)).unwrap_err();
        assert_eq!(refused(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]), FrameError::Version { version: 2 });
        assert_eq!(refused(&[0, 0, 0, 0, 0, 0, 0, 1, 0]), FrameError::StreamZero);
        assert_eq!(refused(&[0x80, 3, 0, 3, 0, 0, 0, 2, 0, 0]), FrameError::Length { kind: 3, length: 2 });
        assert_eq!(
            refused(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
            FrameError::TooLarge { length: 0xff_ffff }
        );
    }

    #[test]
    fn an_unknown_control_frame_is_passed_over() {
        let mut bytes = BytesMut::from(&[0x80, 3, 0, 11, 0, 0, 0, 2, 7, 7][..]);
        Encoder::default().encode(&Frame::Ping(5), &mut bytes).unwrap();
        assert_eq!(Decoder::default().decode(&mut bytes), Ok(Some(Frame::Ping(5))));
    }
}
