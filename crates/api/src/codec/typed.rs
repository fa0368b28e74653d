//! Gives a parsed document its type: prunes what the type does not have, refuses wrong kinds of values,
//! and leaves the object as Go would write it back (no nulls, no empty optional members, canonical scalars).

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::node::{Node, number};
use super::scalar;
use crate::quantity;
use crate::schema::{Field, FieldKind, Type, type_named};

/// So many complaints are kept; the rest of such a document is not worth more.
const MAX_COMPLAINTS: usize = 100;

/// A typed object with what strict decoding complains about.
pub(super) struct Typed {
    pub(super) object: Map<String, Value>,
    pub(super) complaints: Vec<String>,
}

/// What becomes of members that Go would leave out: nulls, and optional ones with their zero values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Empty {
    #[default]
    Dropped,
    Kept,
}

/// Types a whole object. The error is Go's message for the first value of a wrong kind.
pub(super) fn decode(node: Node, root: &'static Type, empty: Empty) -> Result<Typed, String> {
    let mut walker = Walker { empty, ..Walker::default() };
    let kind = node.go_kind();
    let Node::Object(members) = node else {
        return Err(format!("json: cannot unmarshal {kind} into Go value of type {}", root.go_type()));
    };
    let object = walker.object(members, root);
    match walker.error {
        Some(error) => Err(error),
        None => Ok(Typed { object, complaints: walker.strict }),
    }
}

/// A document of no type, with the complaints about repeated members.
pub(super) fn free(node: Node) -> (Value, Vec<String>) {
    let mut walker = Walker::default();
    let value = walker.free(node);
    (value, walker.strict)
}

/// Whether Go would leave the value out: an optional member with its zero value.
pub(super) fn is_omitted(field: &Field, value: &Value) -> bool {
    let empty = match value {
        Value::Null => return true,
        Value::Array(items) => return items.is_empty() && !field.required,
        Value::Object(members) => {
            return members.is_empty() && matches!(field.kind, FieldKind::Map(_)) && !field.required;
        }
        Value::String(text) => text.is_empty(),
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
    };
    let scalar = matches!(
        field.kind,
        FieldKind::Str
            | FieldKind::Int32
            | FieldKind::Int64
            | FieldKind::Float
            | FieldKind::Bool
            | FieldKind::Bytes
    );
    empty && scalar && !field.required && !field.nullable
}

#[derive(Default)]
struct Walker {
    empty: Empty,
    strict: Vec<String>,
    /// Path with indices, as complaints print it.
    place: String,
    /// Path without indices, as type errors print it.
    path: Vec<&'static str>,
    /// The struct whose field is being read.
    owner: &'static str,
    error: Option<String>,
}

impl Walker {
    fn fail(&mut self, message: String) {
        self.error.get_or_insert(message);
    }

    /// The value has a kind that the Go type cannot hold.
    fn mismatch(&mut self, value: &str, wanted: &str) {
        let path = self.path.join(".");
        let owner = self.owner;
        self.fail(format!(
            "json: cannot unmarshal {value} into Go struct field {owner}.{path} of type {wanted}"
        ));
    }

    fn complain(&mut self, what: &str, key: &str) {
        let dot = if self.place.is_empty() { "" } else { "." };
        let complaint = format!("{what} field \"{}{dot}{key}\"", self.place);
        if self.strict.len() < MAX_COMPLAINTS && !self.strict.contains(&complaint) {
            self.strict.push(complaint);
        }
    }

    /// Runs `read` with the place extended by a member's name.
    fn within<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.place.len();
        if length > 0 {
            self.place.push('.');
        }
        self.place.push_str(key);
        let result = read(self);
        self.place.truncate(length);
        result
    }

    fn object(&mut self, members: Vec<(String, Node)>, ty: &'static Type) -> Map<String, Value> {
        let mut object = Map::new();
        let mut seen: Vec<&'static str> = Vec::new();
        for (key, node) in members {
            let Some(field) = ty.field(&key) else {
                self.complain("unknown", &key);
                continue;
            };
            if seen.contains(&field.json) {
                self.complain("duplicate", &key);
            } else {
                seen.push(field.json);
            }
            if let Some(value) = self.field(node, field, ty) {
                object.insert(key, value);
            }
        }
        object
    }

    fn field(&mut self, node: Node, field: &'static Field, ty: &'static Type) -> Option<Value> {
        let outer = std::mem::replace(&mut self.owner, ty.go_name());
        self.path.push(field.json);
        let null = (node == Node::Null).then_some(Value::Null);
        let value = self.within(field.json, |walker| walker.value(node, field.kind, field.go));
        self.path.pop();
        self.owner = outer;
        match self.empty {
            Empty::Kept => value.or(null),
            Empty::Dropped => value.filter(|value| !is_omitted(field, value)),
        }
    }

    /// Reads a value; `None` stands for Go's nil.
    fn value(&mut self, node: Node, kind: FieldKind, go: Option<&str>) -> Option<Value> {
        if node == Node::Null {
            return (kind == FieldKind::Json).then_some(Value::Null);
        }
        match kind {
            FieldKind::Ref(ty) => match node {
                Node::Object(members) => Some(Value::Object(self.object(members, ty.get()))),
                other => self.wrong(&other, kind, go),
            },
            FieldKind::List(item) => match node {
                Node::Array(items) => Some(self.list(items, *item, go)),
                other => self.wrong(&other, kind, go),
            },
            FieldKind::Map(item) => match node {
                Node::Object(members) => Some(self.map(members, *item, go)),
                other => self.wrong(&other, kind, go),
            },
            FieldKind::Json | FieldKind::Raw | FieldKind::Fields => Some(self.free(node)),
            FieldKind::SchemaOrArray | FieldKind::SchemaOrBool | FieldKind::SchemaOrStrings => {
                self.schema(node, kind)
            }
            _ => self.scalar(node, kind, go),
        }
    }

    fn wrong(&mut self, node: &Node, kind: FieldKind, go: Option<&str>) -> Option<Value> {
        self.mismatch(node.go_kind(), &go_type(kind, go));
        None
    }

    fn list(&mut self, items: Vec<Node>, item: FieldKind, go: Option<&str>) -> Value {
        let go = go.and_then(|go| go.strip_prefix("[]"));
        let length = self.place.len();
        let mut list = Vec::with_capacity(items.len());
        for (index, node) in items.into_iter().enumerate() {
            let _ = write!(self.place, "[{index}]");
            list.push(self.value(node, item, go).unwrap_or_else(|| zero(item)));
            self.place.truncate(length);
        }
        Value::Array(list)
    }

    fn map(&mut self, members: Vec<(String, Node)>, item: FieldKind, go: Option<&str>) -> Value {
        let go = go.and_then(|go| go.strip_prefix("map[string]"));
        let mut map = Map::new();
        for (key, node) in members {
            if map.contains_key(&key) {
                self.complain("duplicate", &key);
            }
            let value = self.within(&key, |walker| walker.value(node, item, go));
            map.insert(key, value.unwrap_or_else(|| zero(item)));
        }
        Value::Object(map)
    }

    /// Any JSON; only repeated members are complained about.
    fn free(&mut self, node: Node) -> Value {
        match node {
            Node::Object(members) => {
                let mut map = Map::new();
                for (key, node) in members {
                    if map.contains_key(&key) {
                        self.complain("duplicate", &key);
                    }
                    let value = self.within(&key, |walker| walker.free(node));
                    map.insert(key, value);
                }
                Value::Object(map)
            }
            Node::Array(items) => Value::Array(items.into_iter().map(|item| self.free(item)).collect()),
            other => other.into(),
        }
    }

    /// The unions of JSON schemas; upstream reads them without complaints.
    fn schema(&mut self, node: Node, kind: FieldKind) -> Option<Value> {
        let ty = type_named("apiextensions.v1.JSONSchemaProps")?;
        let complaints = self.strict.len();
        let value = match (node, kind) {
            (Node::Object(members), _) => Some(Value::Object(self.object(members, ty))),
            (Node::Bool(value), FieldKind::SchemaOrBool) => Some(Value::Bool(value)),
            (Node::Array(items), FieldKind::SchemaOrArray) => Some(Value::Array(
                items.into_iter().filter_map(|item| self.schema(item, FieldKind::SchemaOrArray)).collect(),
            )),
            (Node::Array(items), FieldKind::SchemaOrStrings) => Some(self.list(items, FieldKind::Str, None)),
            (_, FieldKind::SchemaOrBool) => {
                self.fail("boolean or JSON schema expected".to_owned());
                None
            }
            _ => {
                self.fail("unexpected value: a JSON schema or a list is expected".to_owned());
                None
            }
        };
        self.strict.truncate(complaints);
        value
    }

    fn scalar(&mut self, node: Node, kind: FieldKind, go: Option<&str>) -> Option<Value> {
        let result = match (kind, node) {
            (FieldKind::Str | FieldKind::IntOrString, Node::String(text)) => Ok(Value::String(text)),
            (FieldKind::Bool, Node::Bool(value)) => Ok(Value::Bool(value)),
            (FieldKind::Int32, Node::Number(text)) => whole::<i32>(&text),
            (FieldKind::Int64, Node::Number(text)) => whole::<i64>(&text),
            (FieldKind::Float, Node::Number(text)) => Ok(Value::Number(number(&text))),
            (FieldKind::Bytes, Node::String(text)) => scalar::bytes(&text)
                .map(|bytes| Value::String(scalar::base64(&bytes)))
                .map_err(Wrong::Message),
            (FieldKind::Quantity, Node::String(text) | Node::Number(text)) => {
                quantity::canonical(text.trim())
                    .map(Value::String)
                    .map_err(|error| Wrong::Message(error.to_string()))
            }
            (FieldKind::IntOrString, Node::Number(text)) => {
                whole::<i32>(&text).map_err(|_| loose(&format!("number {text}"), "int32"))
            }
            (FieldKind::IntOrString, other) => Err(loose(other.go_kind(), "int32")),
            (FieldKind::Time, Node::String(text)) => scalar::time(&text, scalar::SECONDS)
                .map(|time| scalar::seconds(time).into())
                .map_err(Wrong::Message),
            (FieldKind::MicroTime, Node::String(text)) => scalar::time(&text, scalar::MICROS)
                .map(|time| scalar::micros(time).into())
                .map_err(Wrong::Message),
            (FieldKind::Time | FieldKind::MicroTime, other) => Err(loose(other.go_kind(), "string")),
            (FieldKind::Quantity, _) => Err(Wrong::Message(quantity::QuantityError::Format.to_string())),
            (_, other) => Err(Wrong::Kind(other.go_kind().to_owned())),
        };
        match result {
            Ok(value) => return Some(value),
            Err(Wrong::Kind(value)) => self.mismatch(&value, &go_type(kind, go)),
            Err(Wrong::Message(message)) => self.fail(message),
        }
        None
    }
}

/// Why a scalar cannot be read.
enum Wrong {
    /// The decoder itself refuses: its text names the field.
    Kind(String),
    /// The type's own reader refuses: its text stands alone.
    Message(String),
}

fn loose(value: &str, wanted: &str) -> Wrong {
    Wrong::Message(format!("json: cannot unmarshal {value} into Go value of type {wanted}"))
}

fn whole<T: std::str::FromStr + Into<i64>>(literal: &str) -> Result<Value, Wrong> {
    literal
        .parse::<T>()
        .map(|value| Value::from(value.into()))
        .map_err(|_| Wrong::Kind(format!("number {literal}")))
}

/// What Go leaves where a list item or a map value is null.
fn zero(kind: FieldKind) -> Value {
    match kind {
        FieldKind::Ref(_) | FieldKind::Map(_) | FieldKind::Raw | FieldKind::Fields => {
            Value::Object(Map::new())
        }
        FieldKind::List(_) => Value::Array(Vec::new()),
        FieldKind::Int32 | FieldKind::Int64 | FieldKind::Float | FieldKind::IntOrString => Value::from(0),
        FieldKind::Bool => Value::Bool(false),
        FieldKind::Quantity => Value::from("0"),
        FieldKind::Str | FieldKind::Bytes => Value::from(""),
        _ => Value::Null,
    }
}

/// The type as Go prints it.
fn go_type(kind: FieldKind, go: Option<&str>) -> String {
    if let Some(go) = go {
        return go.to_owned();
    }
    match kind {
        FieldKind::Ref(ty) => ty.get().go_type().to_owned(),
        FieldKind::List(item) => format!("[]{}", go_type(*item, None)),
        FieldKind::Map(item) => format!("map[string]{}", go_type(*item, None)),
        FieldKind::Int32 => "int32".to_owned(),
        FieldKind::Int64 => "int64".to_owned(),
        FieldKind::Float => "float64".to_owned(),
        FieldKind::Bool => "bool".to_owned(),
        FieldKind::Bytes => "[]uint8".to_owned(),
        _ => "string".to_owned(),
    }
}
