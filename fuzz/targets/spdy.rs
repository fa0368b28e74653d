//! SPDY/3.1: frames in whatever pieces they arrive, frames that are written again, and whole sessions.
//!
//! The first byte says in how large pieces the rest arrives.

#![no_main]

use bytes::BytesMut;
use fuzz::session;
use libfuzzer_sys::fuzz_target;
use stream::fuzz::Protocol;
use stream::spdy::{Decoder, Encoder, Frame, FrameError};

fuzz_target!(|bytes: &[u8]| {
    let Some((size, bytes)) = bytes.split_first() else { return };
    let whole = frames(bytes, bytes.len().max(1));
    let pieces = frames(bytes, usize::from(*size) + 1);
    assert_eq!(whole, pieces, "what a frame means depends on how it arrives");
    if let (frames, None) = &whole {
        rewrite(frames);
    }
    session::run(Protocol::Spdy, bytes);
});

/// The frames in `bytes` that arrive `size` at a time; pieces of data of one stream are one.
fn frames(bytes: &[u8], size: usize) -> (Vec<Frame>, Option<FrameError>) {
    let (mut decoder, mut buffer, mut found) = (Decoder::default(), BytesMut::new(), Vec::new());
    for piece in bytes.chunks(size) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => join(&mut found, frame),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fn join(found: &mut Vec<Frame>, frame: Frame) {
    if let (Some(Frame::Data { id, fin, bytes }), Frame::Data { id: next, fin: ends, bytes: more }) =
        (found.last_mut(), &frame)
        && id == next
        && !*fin
    {
        *bytes = [bytes.as_ref(), more.as_ref()].concat().into();
        *fin = *ends;
        return;
    }
    found.push(frame);
}

/// What was understood, written and read again, is the same.
fn rewrite(frames: &[Frame]) {
    let (mut encoder, mut buffer) = (Encoder::default(), BytesMut::new());
    for frame in frames {
        if encoder.encode(frame, &mut buffer).is_err() {
            // Headers that are packed tighter than we pack them can be too many for one frame of ours.
            return;
        }
    }
    let mut again = Vec::new();
    let mut decoder = Decoder::default();
    while let Some(frame) = decoder.decode(&mut buffer).expect("our own frames are well formed") {
        join(&mut again, frame);
    }
    assert_eq!(again, frames, "a frame that is another one after the wire");
}
