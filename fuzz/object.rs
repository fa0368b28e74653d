//! Objects of the API: the kind that an input names in its first line, and what must hold of every object that was
//! taken. An object is decoded and completed here as the API server does it.

use api::codec::{self, DecodeError, Decoded, Expected, MediaType};
use api::feature::Gates;
use api::kind::{self, Ctx, Kind};
use api::schema::{self, Type};
use jiff::Timestamp;
use serde_json::Value;

/// An input: `pods merge` and a newline, then what the target makes of the rest.
#[derive(Debug)]
pub struct Input<'a> {
    /// The kind that the first word names by its plural; one of all when there is none of that name.
    pub kind: &'static Kind,
    /// The other words of the first line.
    pub words: Vec<&'a str>,
    /// What comes after the first line.
    pub rest: &'a [u8],
}

impl<'a> Input<'a> {
    /// Reads an input; `None` when it has no first line of text.
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (line, rest) = split_line(bytes)?;
        let mut words = std::str::from_utf8(line).ok()?.split(' ');
        let plural = words.next().unwrap_or_default();
        let sum: usize = plural.bytes().map(usize::from).sum();
        let kinds = kind::kinds();
        let named = kinds.iter().find(|kind| kind.plural == plural);
        Some(Self { kind: named.unwrap_or(&kinds[sum % kinds.len()]), words: words.collect(), rest })
    }

    /// The other word at a place; empty when it is missing.
    pub fn word(&self, at: usize) -> &'a str {
        self.words.get(at).copied().unwrap_or_default()
    }
}

/// The first line and what comes after it.
pub fn split_line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The type of a kind.
pub fn root(kind: &Kind) -> &'static Type {
    schema::type_named(kind.type_name).expect("every kind has its type in the table")
}

/// What the path of a kind expects.
pub fn expected(kind: &Kind) -> Expected<'_> {
    Expected { group: kind.group, version: kind.version, kind: kind.kind, also: &[] }
}

/// Reads a body of a kind.
pub fn decode(kind: &Kind, media: MediaType, body: &[u8]) -> Result<Decoded, DecodeError> {
    codec::decode(media, body, root(kind), expected(kind))
}

/// The object with its defaults.
pub fn complete(kind: &Kind, mut object: Value) -> Value {
    api::default::apply(root(kind), &mut object);
    (kind.default)(&mut object);
    object
}

/// The object as protobuf.
pub fn protobuf(kind: &Kind, object: &Value) -> Vec<u8> {
    crate::protobuf::body(kind, object)
}

/// What must hold of an object that was taken: it reads the same when it is written again, its defaults are given
/// once, and rules, rows and warnings have an answer to it.
///
/// # Panics
/// When it doesn't hold.
pub fn check(kind: &'static Kind, object: &Value) {
    let read = |value: &Value| {
        let again = decode(kind, MediaType::Json, value.to_string().as_bytes());
        let again = again.unwrap_or_else(|error| panic!("{error}: what was taken is refused: {value}"));
        assert!(again.unknown.is_empty(), "{:?} in what was taken: {value}", again.unknown);
        again.object
    };
    assert_eq!(read(object), *object, "an object that is another one when it is read again");
    let whole = complete(kind, object.clone());
    assert_eq!(complete(kind, whole.clone()), whole, "defaults that are given to defaults");
    assert_eq!(complete(kind, read(&whole)), whole, "an object that an empty patch would change");
    judge(kind, whole);
}

fn judge(kind: &'static Kind, mut object: Value) {
    let now = Timestamp::UNIX_EPOCH;
    let ctx = Ctx { now, gates: Gates::default() };
    // What the caller thinks of its own object is nobody's finding: it only must come to an end.
    let _ = (kind.dropped)(&object, &ctx);
    (kind.prepare_create)(&mut object, &ctx);
    let errors = (kind.validate)(&object, &ctx);
    let _ = (kind.warnings)(&object, None);
    assert_eq!((kind.row)(&object, now).len(), kind.columns.len(), "a row of other columns");
    let _ = (kind.row_conditions)(&object);
    let mut changed = object.clone();
    (kind.prepare_update)(&mut changed, &object, &ctx);
    let _ = (kind.validate_update)(&changed, &object, &ctx);
    let _ = (kind.validate_status)(&changed, &object, &ctx);
    if errors.is_empty() && kind.is_stored() {
        let mut stored = object.clone();
        (kind.to_stored)(&mut stored);
        (kind.from_stored)(&mut stored);
        let _ = (kind.row)(&stored, now);
    }
}
