//! For any object of any type: what is encoded by the table's numbers is decoded to the object that JSON gives.

use serde_json::Map;

use super::*;
use crate::schema::types;

/// A stream of numbers that a seed determines.
struct Source(u64);

impl Source {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A value without zeros: zeros may be absence.
fn any_value(kind: FieldKind, depth: u32, source: &mut Source) -> Value {
    match kind {
        FieldKind::Ref(ty) => any_object(ty.get(), depth, source),
        FieldKind::List(item) => (0..=source.below(2)).map(|_| any_value(*item, depth, source)).collect(),
        FieldKind::Map(item) => {
            let pairs =
                (0..=source.below(2)).map(|index| (format!("k{index}"), any_value(*item, depth, source)));
            Value::Object(pairs.collect())
        }
        FieldKind::Str => format!("s{}", source.below(9)).into(),
        FieldKind::Int32 | FieldKind::Int64 => {
            let number = i64::try_from(source.below(1000)).unwrap() + 1;
            if source.below(2) == 0 { number.into() } else { (-number).into() }
        }
        FieldKind::Float => 1.5.into(),
        FieldKind::Bool | FieldKind::SchemaOrBool => true.into(),
        FieldKind::Bytes => "YWJj".into(),
        FieldKind::Quantity => "1500m".into(),
        FieldKind::IntOrString => {
            if source.below(2) == 0 {
                "http".into()
            } else {
                80.into()
            }
        }
        FieldKind::Time => "2026-11-23T12:00:00Z".into(),
        FieldKind::MicroTime => "2026-11-23T12:00:00.000123Z".into(),
        FieldKind::Raw | FieldKind::Fields => json!({"a": [1, "b"]}),
        FieldKind::Json => json!([1, {"b": null}]),
        FieldKind::SchemaOrArray => json!([{"type": "string"}]),
        FieldKind::SchemaOrStrings => json!(["a", "b"]),
    }
}

fn any_object(ty: &'static Type, depth: u32, source: &mut Source) -> Value {
    let mut members = Map::new();
    for field in ty.fields.iter().filter(|field| !field.pb.is_empty()) {
        let nested = matches!(
            field.kind,
            FieldKind::Ref(_) | FieldKind::List(FieldKind::Ref(_)) | FieldKind::Map(FieldKind::Ref(_))
        );
        if (!nested || depth > 0) && source.below(3) > 0 {
            members.insert(field.json.to_owned(), any_value(field.kind, depth.saturating_sub(1), source));
        }
    }
    Value::Object(members)
}

fn encode_object(ty: &'static Type, object: &Value) -> Vec<u8> {
    let members = object.as_object().unwrap();
    members
        .iter()
        .flat_map(|(json, value)| {
            let field = ty.field(json).unwrap();
            let (last, outer) = field.pb.split_last().unwrap();
            let encoded = encode_field(u64::from(*last), field.kind, value);
            outer.iter().rev().fold(encoded, |inner, tag| bytes(u64::from(*tag), inner))
        })
        .collect()
}

fn encode_field(tag: u64, kind: FieldKind, value: &Value) -> Vec<u8> {
    let integer = || value.as_i64().unwrap().cast_unsigned();
    let text = || value.as_str().unwrap();
    match kind {
        FieldKind::List(item) => {
            value.as_array().unwrap().iter().flat_map(|value| encode_field(tag, *item, value)).collect()
        }
        FieldKind::Map(item) => value
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(key, value)| {
                let second = match *item {
                    inner @ FieldKind::List(_) => bytes(2, encode_field(1, inner, value)),
                    inner => encode_field(2, inner, value),
                };
                bytes(tag, [bytes(1, key), second].concat())
            })
            .collect(),
        FieldKind::Ref(ty) => bytes(tag, encode_object(ty.get(), value)),
        FieldKind::Str => bytes(tag, text()),
        FieldKind::Int32 | FieldKind::Int64 => number(tag, integer()),
        FieldKind::Bool => number(tag, 1),
        FieldKind::Float => [varint((tag << 3) | 1), value.as_f64().unwrap().to_le_bytes().to_vec()].concat(),
        FieldKind::Bytes => bytes(tag, scalar::bytes(text()).unwrap()),
        FieldKind::Quantity => bytes(tag, bytes(1, text())),
        FieldKind::IntOrString if value.is_string() => bytes(tag, [number(1, 1), bytes(3, text())].concat()),
        FieldKind::IntOrString => bytes(tag, number(2, integer())),
        FieldKind::Time | FieldKind::MicroTime => {
            let time: jiff::Timestamp = text().parse().unwrap();
            let nanos = u64::try_from(time.subsec_nanosecond()).unwrap();
            bytes(tag, [number(1, time.as_second().cast_unsigned()), number(2, nanos)].concat())
        }
        FieldKind::Raw | FieldKind::Fields | FieldKind::Json => bytes(tag, bytes(1, value.to_string())),
        FieldKind::SchemaOrBool => bytes(tag, number(1, 1)),
        FieldKind::SchemaOrArray => {
            let ty = type_named("apiextensions.v1.JSONSchemaProps").unwrap();
            bytes(tag, bytes(2, encode_object(ty, &value[0])))
        }
        FieldKind::SchemaOrStrings => bytes(tag, encode_field(2, FieldKind::List(&FieldKind::Str), value)),
    }
}

/// Every field that can be reached from a served kind has a number, but for what protobuf does not carry.
#[test]
fn every_field_of_every_type_has_a_number() {
    let missing: Vec<String> = types()
        .iter()
        .flat_map(|ty| ty.fields.iter().map(move |field| (ty, field)))
        .filter(|(ty, field)| {
            // The envelope carries kind and version.
            let has_envelope = ty.kind.is_some() || ty.name == "meta.v1.DeleteOptions";
            field.pb.is_empty() && !(has_envelope && matches!(field.json, "kind" | "apiVersion"))
        })
        .map(|(ty, field)| format!("{}.{}", ty.name, field.json))
        .collect();
    assert_eq!(missing, Vec::<String>::new());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn protobuf_and_json_give_the_same_object(seed: u64) {
        for ty in types().iter().filter(|ty| ty.kind.is_some()) {
            let kind = ty.kind.unwrap();
            let expected = Expected { group: kind.group, version: kind.version, kind: kind.kind, also: &[] };
            let object = any_object(ty, 5, &mut Source(seed));
            let from_json = crate::codec::decode_value(&object, ty, expected).unwrap();
            prop_assert_eq!(&from_json.unknown, &Vec::<String>::new());
            let envelope = body(&expected.api_version(), kind.kind, &encode_object(ty, &object));
            let from_protobuf = crate::codec::decode(MediaType::Protobuf, &envelope, ty, expected).unwrap();
            prop_assert_eq!(&from_protobuf.object, &from_json.object, "{}", ty.name);
            let again = crate::codec::decode_value(&from_json.object, ty, expected).unwrap();
            prop_assert_eq!(&again.object, &from_json.object, "{}", ty.name);
        }
    }
}
