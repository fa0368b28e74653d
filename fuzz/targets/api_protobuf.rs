//! Objects as clients in Go write them, in protobuf: what is taken is the same object when it is written again, in
//! protobuf or JSON.
//!
//! The first line names the kind (`pods`). The rest is a body with its envelope, an object's message alone, or JSON,
//! which is how most seeds are written.

#![no_main]

use api::codec::{MediaType, PROTOBUF_MAGIC};
use api::kind::Kind;
use fuzz::object::{self, Input};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(Input { kind, rest, .. }) = Input::read(bytes) else { return };
    let body = match rest.first() {
        Some(b'{') => match object::decode(kind, MediaType::Json, rest) {
            Ok(taken) => object::protobuf(kind, &taken.object),
            Err(_) => return,
        },
        _ if rest.starts_with(PROTOBUF_MAGIC) => rest.to_vec(),
        _ => envelope(rest),
    };
    let Ok(taken) = object::decode(kind, MediaType::Protobuf, &body) else { return };
    assert!(taken.unknown.is_empty(), "{:?}: numbers that the table doesn't have are skipped", taken.unknown);
    check(kind, &taken.object);
});

fn check(kind: &'static Kind, taken: &serde_json::Value) {
    let again = object::decode(kind, MediaType::Protobuf, &object::protobuf(kind, taken));
    assert_eq!(again.map(|again| again.object).as_ref(), Ok(taken), "another object after the wire");
    object::check(kind, taken);
}

/// The message of an object in the envelope that says nothing of its kind.
fn envelope(message: &[u8]) -> Vec<u8> {
    let mut body = PROTOBUF_MAGIC.to_vec();
    body.push(2 << 3 | 2);
    prost::encoding::encode_varint(message.len() as u64, &mut body);
    body.extend_from_slice(message);
    body
}
