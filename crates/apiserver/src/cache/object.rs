//! One stored object as bytes. The stored form and the form on the wire differ only by the resource version, which is
//! spliced in at a fixed place; a list item is the same bytes without `kind` and `apiVersion`.

use std::sync::{Arc, OnceLock};

use api::kind::Kind;
use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};

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

    /// The object that stored bytes are at a revision; `None` when they don't begin as ours do.
    pub(crate) fn object(&self, key: Arc<str>, revision: u64, stored: &[u8]) -> Option<Object> {
        let rest = stored.strip_prefix(self.head.as_bytes())?.strip_prefix(METADATA.as_bytes())?;
        let comma = if rest.first() == Some(&b'}') { "" } else { "," };
        let version = format!("{METADATA}\"resourceVersion\":\"{revision}\"{comma}");
        let mut json = BytesMut::with_capacity(self.head.len() + version.len() + rest.len());
        json.put_slice(self.head.as_bytes());
        json.put_slice(version.as_bytes());
        json.put_slice(rest);
        Some(Object { key, revision, json: json.freeze(), item_at: self.head.len(), slim: OnceLock::new() })
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

/// An object at one revision.
#[derive(Debug)]
pub(crate) struct Object {
    key: Arc<str>,
    revision: u64,
    json: Bytes,
    item_at: usize,
    slim: OnceLock<Value>,
}

impl Object {
    /// `namespace/name`, or the name alone.
    pub(crate) fn key(&self) -> &Arc<str> {
        &self.key
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The object as `GET` answers it.
    pub(crate) fn json(&self) -> &Bytes {
        &self.json
    }

    /// What follows the opening brace of the object as a list item.
    pub(crate) fn item(&self) -> &[u8] {
        self.json.get(self.item_at..).unwrap_or_default()
    }

    /// The object parsed.
    pub(crate) fn value(&self) -> Value {
        // These bytes were made from a `Value` by `Encoder::stored`.
        serde_json::from_slice(&self.json).unwrap_or_default()
    }

    /// The part of the object that selectors can name, parsed once.
    pub(crate) fn slim(&self) -> &Value {
        self.slim.get_or_init(|| slim(&self.value()))
    }

    /// The same object at the revision that removed it.
    pub(crate) fn removed_at(&self, encoder: &Encoder, revision: u64) -> Option<Object> {
        let before = format!("{METADATA}\"resourceVersion\":\"{}\"", self.revision);
        let rest = self.item().strip_prefix(before.as_bytes())?;
        let rest = rest.strip_prefix(b",").unwrap_or(rest);
        let stored = [encoder.head.as_bytes(), METADATA.as_bytes(), rest].concat();
        encoder.object(self.key.clone(), revision, &stored)
    }
}

/// Texts longer than this are no names, labels or phases.
const SLIM_TEXT: usize = 512;

/// Labels, the texts and numbers of the first two levels, and `status.podIPs`: no selector names anything else.
fn slim(object: &Value) -> Value {
    let fields = object.as_object().into_iter().flatten();
    let kept = fields.filter_map(|(name, value)| match value {
        Value::Object(inner) => {
            let kept = inner
                .iter()
                .filter(|(name, value)| is_small(value) || matches!(name.as_str(), "labels" | "podIPs"));
            Some((
                name.clone(),
                Value::Object(kept.map(|(name, value)| (name.clone(), value.clone())).collect()),
            ))
        }
        value => is_small(value).then(|| (name.clone(), value.clone())),
    });
    Value::Object(kept.collect())
}

fn is_small(value: &Value) -> bool {
    match value {
        Value::String(text) => text.len() <= SLIM_TEXT,
        Value::Array(_) | Value::Object(_) => false,
        _ => true,
    }
}
