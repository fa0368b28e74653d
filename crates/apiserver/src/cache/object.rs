//! One stored object as bytes, which are the line of a watch that tells of it: the object itself and a list item (without
//! `kind` and `apiVersion`) are parts of the same bytes, so nothing is held twice. The stored form differs from the form
//! on the wire only by the resource version, which is spliced in at a fixed place.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use api::kind::Kind;
use api::selector::Selectable;
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};

use crate::meta;

const METADATA: &str = "\"metadata\":{";

/// Knows how the objects of one kind begin.
#[derive(Debug)]
pub(crate) struct Encoder {
    kind: &'static Kind,
    /// `{"kind":"Pod","apiVersion":"v1",`.
    head: String,
}

impl Encoder {
    pub(crate) fn new(kind: &'static Kind) -> Self {
        let head = format!("{{\"kind\":\"{}\",\"apiVersion\":\"{}\",", kind.kind, kind.api_version());
        Self { kind, head }
    }

    pub(crate) fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// The bytes to store: `kind`, `apiVersion` and `metadata` first, no resource version.
    pub(crate) fn stored(&self, object: &Value) -> Bytes {
        let mut out = BytesMut::with_capacity(1024);
        out.put_slice(self.head.as_bytes());
        out.put_slice(METADATA.as_bytes());
        let empty = Map::new();
        let fields = object.as_object().unwrap_or(&empty);
        let metadata = fields.get("metadata").and_then(Value::as_object).unwrap_or(&empty);
        let mut writer = out.writer();
        put_fields(&mut writer, metadata, &["resourceVersion"]);
        writer.get_mut().put_u8(b'}');
        if fields.keys().any(|name| !is_head(name)) {
            writer.get_mut().put_u8(b',');
            put_fields(&mut writer, fields, &["kind", "apiVersion", "metadata"]);
        }
        let mut out = writer.into_inner();
        out.put_u8(b'}');
        out.freeze()
    }

    /// The object that stored bytes are at a revision, as a watch tells of it under this name; `None` when they don't
    /// begin as ours do.
    pub(crate) fn object(
        &self,
        key: Arc<str>,
        revision: u64,
        stored: &[u8],
        told: &'static str,
    ) -> Option<Object> {
        let rest = stored.strip_prefix(self.head.as_bytes())?.strip_prefix(METADATA.as_bytes())?;
        let comma = if rest.first() == Some(&b'}') { "" } else { "," };
        let version = format!("{METADATA}\"resourceVersion\":\"{revision}\"{comma}");
        let line = line(told, &[self.head.as_bytes(), version.as_bytes(), rest]);
        Some(Object { key, revision, told, line, head: self.head.len(), selectable: OnceLock::new() })
    }
}

fn is_head(name: &str) -> bool {
    matches!(name, "kind" | "apiVersion" | "metadata")
}

fn put_fields(out: &mut bytes::buf::Writer<BytesMut>, fields: &Map<String, Value>, without: &[&str]) {
    let mut first = true;
    for (name, value) in fields.iter().filter(|(name, _)| !without.contains(&name.as_str())) {
        if !std::mem::take(&mut first) {
            out.get_mut().put_u8(b',');
        }
        // Writing JSON values into memory cannot fail: their keys are strings.
        serde_json::to_writer(&mut *out, name).ok();
        out.get_mut().put_u8(b':');
        serde_json::to_writer(&mut *out, value).ok();
    }
}

/// What stands before and after an object in the line of a watch, and between them the name of what happened.
const LINE: (&str, &str, &str) = ("{\"type\":\"", "\",\"object\":", "}\n");

/// One line of a watch, of an object in parts. It is as long as it must be: it may be kept.
pub(super) fn line(name: &str, object: &[&[u8]]) -> Bytes {
    let (before, between, after) = LINE;
    let head = [before.as_bytes(), name.as_bytes(), between.as_bytes()].concat();
    let length = head.len() + object.iter().map(|part| part.len()).sum::<usize>() + after.len();
    let mut line = BytesMut::with_capacity(length);
    line.put_slice(&head);
    for part in object {
        line.put_slice(part);
    }
    line.put_slice(after.as_bytes());
    line.freeze()
}

/// An object at one revision.
#[derive(Debug)]
pub(crate) struct Object {
    key: Arc<str>,
    revision: u64,
    /// What happened, in `line`.
    told: &'static str,
    line: Bytes,
    /// The length of `{"kind":…,"apiVersion":…,`.
    head: usize,
    selectable: OnceLock<Selectable>,
}

impl Object {
    /// `namespace/name`, or the name alone.
    pub(crate) fn key(&self) -> &Arc<str> {
        &self.key
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Where the object stands in the line.
    fn place(&self) -> Range<usize> {
        let (before, between, after) = LINE;
        before.len() + self.told.len() + between.len()..self.line.len() - after.len()
    }

    /// The object as `GET` answers it.
    pub(crate) fn json(&self) -> &[u8] {
        self.line.get(self.place()).unwrap_or_default()
    }

    /// The same bytes, to be sent.
    pub(crate) fn shared_json(&self) -> Bytes {
        self.line.slice(self.place())
    }

    /// What follows the opening brace of the object as a list item.
    pub(crate) fn item(&self) -> &[u8] {
        self.json().get(self.head..).unwrap_or_default()
    }

    /// The line of a watch that says this of the object: the kept one where that is what happened.
    pub(crate) fn line(&self, name: &str) -> Bytes {
        if name == self.told { self.line.clone() } else { line(name, &[self.json()]) }
    }

    /// The object parsed.
    pub(crate) fn value(&self) -> Value {
        // These bytes were made from a `Value` by `Encoder::stored`.
        serde_json::from_slice(self.json()).unwrap_or_default()
    }

    /// Whether the object is being deleted. That most are not is seen without parsing them.
    pub(crate) fn is_going(&self) -> bool {
        let is_named = str::from_utf8(self.json()).is_ok_and(|json| json.contains("\"deletionTimestamp\":"));
        is_named && meta::get(&self.value(), "deletionTimestamp").is_some()
    }

    /// The part of the object that selectors can name, read once; `kind` is the stored one.
    pub(crate) fn selectable(&self, kind: &Kind) -> &Selectable {
        self.selectable.get_or_init(|| Selectable::of(kind, &self.value()))
    }

    /// The same object at the revision that removed it.
    pub(crate) fn removed_at(&self, encoder: &Encoder, revision: u64) -> Option<Object> {
        let before = format!("{METADATA}\"resourceVersion\":\"{}\"", self.revision);
        let rest = self.item().strip_prefix(before.as_bytes())?;
        let rest = rest.strip_prefix(b",").unwrap_or(rest);
        let stored = [encoder.head.as_bytes(), METADATA.as_bytes(), rest].concat();
        encoder.object(self.key.clone(), revision, &stored, "DELETED")
    }
}
