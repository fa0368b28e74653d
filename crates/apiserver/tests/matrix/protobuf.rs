//! Bodies as clients in Go send them: the envelope `k8s\0` and the object's message, written by the schema table.

use api::kind::Kind;
use api::schema::{Field, FieldKind, Type, type_named};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// The body of an object.
pub(crate) fn body(kind: &Kind, object: &Value) -> Vec<u8> {
    let ty = type_named(kind.type_name).unwrap();
    let kinds = [bytes(1, kind.api_version().into_bytes()), bytes(2, kind.kind.as_bytes().to_vec())].concat();
    let unknown = [bytes(1, kinds), bytes(2, message(ty, object))].concat();
    [b"k8s\0".to_vec(), unknown].concat()
}

fn message(ty: &'static Type, object: &Value) -> Vec<u8> {
    let fields =
        object.as_object().unwrap().iter().filter_map(|(name, value)| Some((ty.field(name)?, value)));
    fields.filter(|(field, _)| !field.pb.is_empty()).flat_map(|(field, value)| member(field, value)).collect()
}

fn member(field: &'static Field, value: &Value) -> Vec<u8> {
    let (last, outer) = field.pb.split_last().unwrap();
    let encoded = value_of(*last, field.kind, value);
    outer.iter().rev().fold(encoded, |inner, number| bytes(*number, inner))
}

fn value_of(number: u32, kind: FieldKind, value: &Value) -> Vec<u8> {
    match kind {
        FieldKind::Ref(ty) => bytes(number, message(ty.get(), value)),
        FieldKind::List(item) => {
            value.as_array().unwrap().iter().flat_map(|one| value_of(number, *item, one)).collect()
        }
        FieldKind::Map(item) => {
            let pairs = value.as_object().unwrap().iter();
            pairs
                .flat_map(|(key, one)| {
                    bytes(number, [bytes(1, key.as_bytes().to_vec()), map_value(*item, one)].concat())
                })
                .collect()
        }
        FieldKind::Int32 | FieldKind::Int64 => {
            [varint(u64::from(number) << 3), varint(value.as_i64().unwrap().cast_unsigned())].concat()
        }
        FieldKind::Bool => [varint(u64::from(number) << 3), varint(u64::from(value == true))].concat(),
        FieldKind::Bytes => bytes(number, STANDARD.decode(value.as_str().unwrap()).unwrap()),
        FieldKind::Quantity => bytes(number, bytes(1, text(value))),
        FieldKind::IntOrString => match value.as_i64() {
            Some(n) => {
                bytes(number, [varint(1 << 3), varint(0), varint(2 << 3), varint(n.cast_unsigned())].concat())
            }
            None => bytes(number, [varint(1 << 3), varint(1), bytes(3, text(value))].concat()),
        },
        FieldKind::Time | FieldKind::MicroTime => {
            let time: jiff::Timestamp = value.as_str().unwrap().parse().unwrap();
            let seconds = [varint(1 << 3), varint(time.as_second().cast_unsigned())].concat();
            let nanos = i64::from(time.subsec_nanosecond()).cast_unsigned();
            bytes(number, [seconds, varint(2 << 3), varint(nanos)].concat())
        }
        FieldKind::Float => {
            let bits = value.as_f64().unwrap().to_le_bytes().to_vec();
            [varint((u64::from(number) << 3) | 1), bits].concat()
        }
        FieldKind::Raw | FieldKind::Json | FieldKind::Fields => {
            bytes(number, bytes(1, value.to_string().into_bytes()))
        }
        FieldKind::Str => bytes(number, text(value)),
        FieldKind::SchemaOrArray | FieldKind::SchemaOrBool | FieldKind::SchemaOrStrings => {
            bytes(number, schema(kind, value))
        }
    }
}

/// The value of a map's pair: a list has a message of its own there.
fn map_value(kind: FieldKind, value: &Value) -> Vec<u8> {
    match kind {
        FieldKind::List(item) => {
            let items = value.as_array().unwrap().iter().flat_map(|one| value_of(1, *item, one));
            bytes(2, items.collect())
        }
        _ => value_of(2, kind, value),
    }
}

/// The unions of JSON schemas.
fn schema(kind: FieldKind, value: &Value) -> Vec<u8> {
    let ty = type_named("apiextensions.v1.JSONSchemaProps").unwrap();
    match (value, kind) {
        (Value::Bool(allows), _) => [varint(1 << 3), varint(u64::from(*allows))].concat(),
        (Value::Array(items), FieldKind::SchemaOrStrings) => {
            items.iter().flat_map(|item| bytes(2, text(item))).collect()
        }
        (Value::Array(items), _) => items.iter().flat_map(|item| bytes(2, message(ty, item))).collect(),
        (_, FieldKind::SchemaOrBool) => [varint(1 << 3), varint(1), bytes(2, message(ty, value))].concat(),
        _ => bytes(1, message(ty, value)),
    }
}

fn text(value: &Value) -> Vec<u8> {
    value.as_str().map_or_else(|| json!(value).to_string(), str::to_owned).into_bytes()
}

fn bytes(number: u32, contents: Vec<u8>) -> Vec<u8> {
    [varint((u64::from(number) << 3) | 2), varint(contents.len() as u64), contents].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
    out
}
