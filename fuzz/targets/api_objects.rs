//! Objects as clients write them, in JSON and YAML: what is taken reads the same when it is written again, in either
//! language, and has rules, defaults and a row.
//!
//! The first line names the kind (`pods`), the rest is the body.

#![no_main]

use api::codec::{self, MediaType};
use fuzz::object::{self, Input};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some(Input { kind, rest: body, .. }) = Input::read(bytes) else { return };
    let of_json = object::decode(kind, MediaType::Json, body);
    let of_yaml = object::decode(kind, MediaType::Yaml, body);
    if let (Ok(json), Ok(yaml)) = (&of_json, &of_yaml) {
        assert_eq!(json.object, yaml.object, "a body that is one object in JSON and another in YAML");
    }
    if let Ok(taken) = of_json.or(of_yaml) {
        object::check(kind, &taken.object);
    }
    // What is applied keeps its nulls and zeroes.
    if let Ok(applied) = codec::decode_applied(body, object::root(kind), object::expected(kind)) {
        let text = applied.object.to_string();
        let again = codec::decode_applied(text.as_bytes(), object::root(kind), object::expected(kind));
        assert_eq!(again.map(|again| again.object), Ok(applied.object), "applied as another object");
    }
    if let Ok(documents) = codec::documents(body) {
        assert!(documents.iter().all(|document| !document.is_null()));
    }
});
