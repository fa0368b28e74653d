//! Protobuf request bodies to documents, by the numbers of the schema table. Only reading is a duty:
//! every client that sends protobuf also accepts JSON. Unknown numbers are skipped, as protobuf demands.

use super::json;
use super::node::Node;
use super::scalar;
use crate::schema::{Field, FieldKind, Type, type_named};

mod wire;

use wire::{Entry, Payload, entries};

/// The four bytes before every body.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// Deepest nesting of messages that is read.
const MAX_DEPTH: usize = 100;

/// A decoded envelope.
pub(super) struct Message {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) object: Node,
}

/// Decodes envelope and object; the object has no `kind` and `apiVersion` of its own.
pub(super) fn decode(body: &[u8], root: &'static Type) -> Result<Message, String> {
    if body.is_empty() {
        return Err("empty data".to_owned());
    }
    let envelope = body.strip_prefix(MAGIC.as_slice()).ok_or_else(|| {
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".to_owned()
    })?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), Vec::new());
    for entry in entries(envelope) {
        let entry = entry?;
        match entry.number {
            1 => {
                for entry in entries(entry.bytes()?) {
                    let entry = entry?;
                    match entry.number {
                        1 => api_version = entry.text()?,
                        2 => kind = entry.text()?,
                        _ => {}
                    }
                }
            }
            2 => raw = entry.bytes()?.to_vec(),
            _ => {}
        }
    }
    Ok(Message { api_version, kind, object: object(&raw, root, MAX_DEPTH)? })
}

type Members = Vec<(String, Node)>;

fn object(bytes: &[u8], ty: &'static Type, depth: usize) -> Result<Node, String> {
    let mut members = Members::new();
    message(bytes, ty, &mut Vec::new(), &mut members, depth)?;
    Ok(Node::Object(members))
}

/// Reads a message into the members of an object. `path` holds the numbers of the inlined messages above.
fn message(
    bytes: &[u8],
    ty: &'static Type,
    path: &mut Vec<u32>,
    members: &mut Members,
    depth: usize,
) -> Result<(), String> {
    let depth = depth.checked_sub(1).ok_or_else(|| "exceeded max depth".to_owned())?;
    for entry in entries(bytes) {
        let entry = entry?;
        path.push(entry.number);
        if let Some(field) = ty.fields.iter().find(|field| field.pb == path.as_slice()) {
            add(&entry, field, members, depth)?;
        } else if ty.fields.iter().any(|field| field.pb.starts_with(path)) {
            message(entry.bytes()?, ty, path, members, depth)?;
        }
        path.pop();
    }
    Ok(())
}

fn add(entry: &Entry<'_>, field: &'static Field, members: &mut Members, depth: usize) -> Result<(), String> {
    let slot = members.iter().position(|(key, _)| key == field.json);
    let mut present = slot.map(|slot| members.swap_remove(slot).1);
    match field.kind {
        FieldKind::List(item) => {
            let mut items = match present.take() {
                Some(Node::Array(items)) => items,
                _ => Vec::new(),
            };
            list_items(entry, *item, &mut items, depth)?;
            members.push((field.json.to_owned(), Node::Array(items)));
        }
        FieldKind::Map(item) => {
            let mut pairs = match present.take() {
                Some(Node::Object(pairs)) => pairs,
                _ => Vec::new(),
            };
            let (key, value) = pair(entry.bytes()?, *item, depth)?;
            pairs.retain(|(other, _)| *other != key);
            pairs.push((key, value));
            members.push((field.json.to_owned(), Node::Object(pairs)));
        }
        kind => members.push((field.json.to_owned(), value(entry, kind, depth)?)),
    }
    Ok(())
}

/// One item, or many where whole numbers are packed.
fn list_items(entry: &Entry<'_>, item: FieldKind, items: &mut Vec<Node>, depth: usize) -> Result<(), String> {
    if let (FieldKind::Int32 | FieldKind::Int64 | FieldKind::Bool, Payload::Bytes(mut packed)) =
        (item, entry.payload)
    {
        while !packed.is_empty() {
            let payload = Payload::Varint(wire::varint(&mut packed)?);
            items.push(value(&Entry { number: entry.number, payload }, item, depth)?);
        }
        return Ok(());
    }
    items.push(value(entry, item, depth)?);
    Ok(())
}

fn pair(bytes: &[u8], item: FieldKind, depth: usize) -> Result<(String, Node), String> {
    let mut key = String::new();
    let mut found = Node::Null;
    for entry in entries(bytes) {
        let entry = entry?;
        match (entry.number, item) {
            (1, _) => key = entry.text()?,
            // A map of lists has each list wrapped in a message.
            (2, FieldKind::List(inner)) => {
                let mut items = Vec::new();
                for entry in entries(entry.bytes()?) {
                    list_items(&entry?, *inner, &mut items, depth)?;
                }
                found = Node::Array(items);
            }
            (2, _) => found = value(&entry, item, depth)?,
            _ => {}
        }
    }
    Ok((key, found))
}

fn value(entry: &Entry<'_>, kind: FieldKind, depth: usize) -> Result<Node, String> {
    Ok(match kind {
        FieldKind::Str => Node::String(entry.text()?),
        FieldKind::Bool => Node::Bool(entry.varint()? != 0),
        FieldKind::Int32 => Node::Number(entry.int32()?.to_string()),
        FieldKind::Int64 => Node::Number(entry.int64()?.to_string()),
        FieldKind::Float => Node::Number(float(entry.double()?)?),
        FieldKind::Bytes => Node::String(scalar::base64(entry.bytes()?)),
        FieldKind::Ref(ty) => object(entry.bytes()?, ty.get(), depth)?,
        FieldKind::Quantity => quantity(entry.bytes()?)?,
        FieldKind::IntOrString => int_or_string(entry.bytes()?)?,
        FieldKind::Time => time(entry.bytes()?, scalar::seconds)?,
        FieldKind::MicroTime => time(entry.bytes()?, scalar::micros)?,
        FieldKind::Raw | FieldKind::Json | FieldKind::Fields => embedded(entry.bytes()?)?,
        FieldKind::SchemaOrArray | FieldKind::SchemaOrBool | FieldKind::SchemaOrStrings => {
            schema(entry.bytes()?, kind, depth)?
        }
        FieldKind::List(_) | FieldKind::Map(_) => {
            return Err("proto: lists of lists are not supported".to_owned());
        }
    })
}

fn float(number: f64) -> Result<String, String> {
    serde_json::Number::from_f64(number)
        .map(|number| number.to_string())
        .ok_or_else(|| format!("json: unsupported value: {number}"))
}

/// An absent text is zero: Go writes a zero quantity so.
fn quantity(bytes: &[u8]) -> Result<Node, String> {
    let mut text = String::new();
    for entry in entries(bytes) {
        let entry = entry?;
        if entry.number == 1 {
            text = entry.text()?;
        }
    }
    Ok(Node::String(if text.is_empty() { "0".to_owned() } else { text }))
}

fn int_or_string(bytes: &[u8]) -> Result<Node, String> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for entry in entries(bytes) {
        let entry = entry?;
        match entry.number {
            1 => is_text = entry.varint()? == 1,
            2 => number = entry.int32()?,
            3 => text = entry.text()?,
            _ => {}
        }
    }
    Ok(if is_text { Node::String(text) } else { Node::Number(number.to_string()) })
}

/// An empty message is the zero time, which is absence.
fn time(bytes: &[u8], format: fn(jiff::Timestamp) -> String) -> Result<Node, String> {
    if bytes.is_empty() {
        return Ok(Node::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for entry in entries(bytes) {
        let entry = entry?;
        match entry.number {
            1 => seconds = entry.int64()?,
            2 => nanos = entry.int32()?,
            _ => {}
        }
    }
    let time = jiff::Timestamp::new(seconds, nanos)
        .map_err(|_| format!("time {seconds}s {nanos}ns is out of the range of RFC 3339"))?;
    Ok(Node::String(format(time)))
}

/// JSON inside a message; nothing is null.
fn embedded(bytes: &[u8]) -> Result<Node, String> {
    for entry in entries(bytes) {
        let entry = entry?;
        if entry.number == 1 && !entry.bytes()?.is_empty() {
            return json::parse(entry.bytes()?);
        }
    }
    Ok(Node::Null)
}

/// The unions of JSON schemas.
fn schema(bytes: &[u8], kind: FieldKind, depth: usize) -> Result<Node, String> {
    let ty =
        type_named("apiextensions.v1.JSONSchemaProps").ok_or_else(|| "no schema of schemas".to_owned())?;
    let (mut single, mut items, mut allows) = (None, Vec::new(), false);
    for entry in entries(bytes) {
        let entry = entry?;
        match (entry.number, kind) {
            (1, FieldKind::SchemaOrBool) => allows = entry.varint()? != 0,
            (2, FieldKind::SchemaOrArray) => items.push(object(entry.bytes()?, ty, depth)?),
            (2, FieldKind::SchemaOrStrings) => items.push(Node::String(entry.text()?)),
            (1 | 2, _) => single = Some(object(entry.bytes()?, ty, depth)?),
            _ => {}
        }
    }
    Ok(match (single, kind) {
        (Some(schema), _) => schema,
        (None, FieldKind::SchemaOrBool) => Node::Bool(allows),
        (None, _) => Node::Array(items),
    })
}

#[cfg(test)]
mod tests;
