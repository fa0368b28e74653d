//! WebSocket frames of a client's, through a whole `exec` session: masks, fragments, channels, terminal sizes, closes.
//!
//! The first byte chooses the version of the protocol.

#![no_main]

use fuzz::session;
use libfuzzer_sys::fuzz_target;
use stream::fuzz::Protocol;

fuzz_target!(|bytes: &[u8]| {
    let Some((version, frames)) = bytes.split_first() else { return };
    let protocol = if version & 1 == 0 { Protocol::WebSocketV5 } else { Protocol::WebSocketV4 };
    let received = session::run(protocol, frames);
    assert!(received <= frames.len(), "{received} bytes of input came out of {} bytes", frames.len());
});
