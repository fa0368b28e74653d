//! The `OpenAPI` v2 document, for clients before v3: the same schemas and paths in the older form, as JSON and as the
//! protobuf message `openapi.v2.Document` that Go's `gnostic` reads.

use serde_json::{Map, Value, json};

use super::{Descriptions, v3_document};
use crate::kind::{Kind, kinds};

/// The whole document. It is large: make it when it is asked for, and keep only its bytes.
pub fn document(release: &str, texts: &Descriptions) -> Value {
    let mut paths = Map::new();
    let mut definitions = Map::new();
    for (group, versions) in crate::discovery::group_versions() {
        for version in versions {
            let own: Vec<&Kind> =
                kinds().iter().filter(|k| k.group == group && k.version == version).collect();
            let Value::Object(mut part) = v3_document(group, version, &own, texts) else { continue };
            if let Some(Value::Object(all)) = part.shift_remove("paths") {
                paths.extend(all.into_iter().map(|(path, item)| (path, path_item(item))));
            }
            let schemas =
                part.shift_remove("components").and_then(|mut of| of.get_mut("schemas").map(Value::take));
            if let Some(Value::Object(all)) = schemas {
                definitions.extend(all.into_iter().map(|(name, schema)| (name, older(schema))));
            }
        }
    }
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": release},
        "paths": paths,
        "definitions": definitions,
    })
}

/// A schema in the older form: references stand alone, and there is no `oneOf`.
fn older(schema: Value) -> Value {
    match schema {
        Value::Object(members) => {
            let mut out = Map::new();
            for (name, value) in members {
                match (name.as_str(), value) {
                    ("$ref", Value::String(to)) => {
                        let to = to.replace("#/components/schemas/", "#/definitions/");
                        out.insert(name, to.into());
                    }
                    ("allOf", Value::Array(all)) => {
                        out.extend(
                            all.into_iter()
                                .filter_map(|one| match older(one) {
                                    Value::Object(members) => Some(members),
                                    _ => None,
                                })
                                .flatten(),
                        );
                    }
                    ("oneOf", _) => {
                        out.insert("type".to_owned(), "string".into());
                    }
                    (_, value) => {
                        out.insert(name, older(value));
                    }
                }
            }
            Value::Object(out)
        }
        Value::Array(items) => items.into_iter().map(older).collect(),
        other => other,
    }
}

fn path_item(item: Value) -> Value {
    let Value::Object(members) = item else { return json!({}) };
    let each = members.into_iter().map(|(name, value)| match (name.as_str(), value) {
        ("parameters", Value::Array(list)) => (name, list.into_iter().map(parameter).collect()),
        (_, operation_value) => (name, operation(operation_value)),
    });
    Value::Object(each.collect())
}

fn operation(operation: Value) -> Value {
    let Value::Object(mut members) = operation else { return json!({}) };
    let mut parameters: Vec<Value> = match members.shift_remove("parameters") {
        Some(Value::Array(list)) => list.into_iter().map(parameter).collect(),
        _ => Vec::new(),
    };
    let mut out = Map::new();
    if let Some(Value::Object(body)) = members.shift_remove("requestBody") {
        let content = body.get("content").and_then(Value::as_object);
        let consumes: Vec<&str> = content.into_iter().flat_map(Map::keys).map(String::as_str).collect();
        let schema = content.and_then(|content| content.values().next()).and_then(|one| one.get("schema"));
        let schema = older(schema.cloned().unwrap_or_default());
        let required = body.get("required").cloned().unwrap_or(Value::Bool(false));
        parameters.push(json!({"in": "body", "name": "body", "required": required, "schema": schema}));
        out.insert("consumes".to_owned(), consumes.into());
    }
    out.insert("produces".to_owned(), json!(["application/json"]));
    if !parameters.is_empty() {
        out.insert("parameters".to_owned(), parameters.into());
    }
    let answer = members.shift_remove("responses").unwrap_or_default();
    let schema = answer.pointer("/200/content/application~1json/schema").cloned().unwrap_or_default();
    out.insert("responses".to_owned(), json!({"200": {"description": "OK", "schema": older(schema)}}));
    out.extend(members.into_iter().filter(|(name, _)| name.starts_with("x-")));
    Value::Object(out)
}

/// A parameter of a path or query: its type stands beside its name.
fn parameter(parameter: Value) -> Value {
    let Value::Object(mut members) = parameter else { return json!({}) };
    if let Some(Value::Object(schema)) = members.shift_remove("schema") {
        members.extend(schema);
    }
    Value::Object(members)
}

/// How a member of a JSON object is written in a message.
#[derive(Clone, Copy)]
enum Shape {
    Text,
    Flag,
    Texts,
    Message(&'static Message),
    Messages(&'static Message),
    /// Every member of the object, as messages `{name = 1, value = 2}` in field 1.
    Named(&'static Message),
    /// A message that holds another in its only field of that number.
    Boxed(u32, &'static Message),
    /// Texts in field 1 of a message of their own.
    BoxedTexts,
}

/// The number and the message of what an object is written as.
type Choice = fn(&Value) -> (u32, &'static Message);

/// A message of `openapi.v2`: its fields, and the field for members that begin with `x-`.
struct Message {
    fields: &'static [(&'static str, u32, Shape)],
    extensions: u32,
    /// Picks another message by what the object says, such as a body parameter.
    choice: Option<Choice>,
}

static DOCUMENT: Message = Message {
    fields: &[
        ("swagger", 1, Shape::Text),
        ("info", 2, Shape::Message(&INFO)),
        ("paths", 8, Shape::Message(&PATHS)),
        ("definitions", 9, Shape::Named(&SCHEMA)),
    ],
    extensions: 16,
    choice: None,
};
static INFO: Message = Message {
    fields: &[("title", 1, Shape::Text), ("version", 2, Shape::Text)],
    extensions: 7,
    choice: None,
};
/// Its members are paths: see [`encode_paths`].
static PATHS: Message = Message { fields: &[], extensions: 1, choice: None };
static PATH_ITEM: Message = Message {
    fields: &[
        ("get", 2, Shape::Message(&OPERATION)),
        ("put", 3, Shape::Message(&OPERATION)),
        ("post", 4, Shape::Message(&OPERATION)),
        ("delete", 5, Shape::Message(&OPERATION)),
        ("patch", 8, Shape::Message(&OPERATION)),
        ("parameters", 9, Shape::Messages(&PARAMETER_ITEM)),
    ],
    extensions: 10,
    choice: None,
};
static OPERATION: Message = Message {
    fields: &[
        ("produces", 6, Shape::Texts),
        ("consumes", 7, Shape::Texts),
        ("parameters", 8, Shape::Messages(&PARAMETER_ITEM)),
        ("responses", 9, Shape::Named(&RESPONSE_VALUE)),
    ],
    extensions: 13,
    choice: None,
};
static RESPONSE_VALUE: Message = Message { fields: &[], extensions: 0, choice: Some(|_| (1, &RESPONSE)) };
static RESPONSE: Message = Message {
    fields: &[("description", 1, Shape::Text), ("schema", 2, Shape::Boxed(1, &SCHEMA))],
    extensions: 5,
    choice: None,
};
static PARAMETER_ITEM: Message = Message { fields: &[], extensions: 0, choice: Some(|_| (1, &PARAMETER)) };
static PARAMETER: Message = Message {
    fields: &[],
    extensions: 0,
    choice: Some(|value| if is_in(value, "body") { (1, &BODY) } else { (2, &NON_BODY) }),
};
static BODY: Message = Message {
    fields: &[
        ("name", 2, Shape::Text),
        ("in", 3, Shape::Text),
        ("required", 4, Shape::Flag),
        ("schema", 5, Shape::Message(&SCHEMA)),
    ],
    extensions: 6,
    choice: None,
};
static NON_BODY: Message = Message {
    fields: &[],
    extensions: 0,
    choice: Some(|value| if is_in(value, "path") { (4, &PATH_PARAMETER) } else { (3, &QUERY_PARAMETER) }),
};
static QUERY_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Shape::Flag),
        ("in", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("name", 4, Shape::Text),
        ("type", 6, Shape::Text),
        ("uniqueItems", 19, Shape::Flag),
    ],
    extensions: 22,
    choice: None,
};
static PATH_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Shape::Flag),
        ("in", 2, Shape::Text),
        ("description", 3, Shape::Text),
        ("name", 4, Shape::Text),
        ("type", 5, Shape::Text),
    ],
    extensions: 21,
    choice: None,
};
static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Shape::Text),
        ("format", 2, Shape::Text),
        ("description", 4, Shape::Text),
        ("required", 19, Shape::Texts),
        ("additionalProperties", 21, Shape::Boxed(1, &SCHEMA)),
        ("type", 22, Shape::BoxedTexts),
        ("items", 23, Shape::Boxed(1, &SCHEMA)),
        ("properties", 25, Shape::Named(&SCHEMA)),
    ],
    extensions: 31,
    choice: None,
};

fn is_in(parameter: &Value, place: &str) -> bool {
    parameter.get("in").is_some_and(|is| is == place)
}

/// The document as the protobuf message `openapi.v2.Document`.
pub fn encode(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put_message(document, &DOCUMENT, &mut out);
    out
}

fn put_message(value: &Value, message: &Message, out: &mut Vec<u8>) {
    if let Some(choose) = message.choice {
        let (number, inner) = choose(value);
        put_bytes(number, &nested(value, inner), out);
        return;
    }
    if std::ptr::eq(message, &raw const PATHS) {
        return encode_paths(value, out);
    }
    for (name, number, shape) in message.fields {
        if let Some(member) = value.get(*name).filter(|member| !member.is_null()) {
            put_member(member, *number, *shape, out);
        }
    }
    for (name, extension) in
        value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-"))
    {
        // `NamedAny`: the value is YAML, of which JSON is a part.
        let mut any = Vec::new();
        put_bytes(2, extension.to_string().as_bytes(), &mut any);
        put_bytes(message.extensions, &named(name, &any), out);
    }
}

fn encode_paths(paths: &Value, out: &mut Vec<u8>) {
    for (path, item) in paths.as_object().into_iter().flatten() {
        put_bytes(2, &named(path, &nested(item, &PATH_ITEM)), out);
    }
}

fn put_member(member: &Value, number: u32, shape: Shape, out: &mut Vec<u8>) {
    let texts = |value: &Value| -> Vec<String> {
        match value {
            Value::Array(items) => items.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Value::String(one) => vec![one.clone()],
            _ => Vec::new(),
        }
    };
    match shape {
        Shape::Text => put_bytes(number, member.as_str().unwrap_or_default().as_bytes(), out),
        Shape::Flag => {
            put_varint(u64::from(number) << 3, out);
            put_varint(u64::from(member == true), out);
        }
        Shape::Texts => {
            for text in texts(member) {
                put_bytes(number, text.as_bytes(), out);
            }
        }
        Shape::Message(message) => put_bytes(number, &nested(member, message), out),
        Shape::Messages(message) => {
            for item in member.as_array().into_iter().flatten() {
                put_bytes(number, &nested(item, message), out);
            }
        }
        Shape::Named(message) => {
            let mut all = Vec::new();
            for (name, value) in member.as_object().into_iter().flatten() {
                put_bytes(1, &named(name, &nested(value, message)), &mut all);
            }
            put_bytes(number, &all, out);
        }
        Shape::Boxed(inner, message) => {
            let mut boxed = Vec::new();
            put_bytes(inner, &nested(member, message), &mut boxed);
            put_bytes(number, &boxed, out);
        }
        Shape::BoxedTexts => {
            let mut boxed = Vec::new();
            for text in texts(member) {
                put_bytes(1, text.as_bytes(), &mut boxed);
            }
            put_bytes(number, &boxed, out);
        }
    }
}

fn nested(value: &Value, message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    put_message(value, message, &mut out);
    out
}

/// A message `{name = 1, value = 2}`.
fn named(name: &str, value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_bytes(1, name.as_bytes(), &mut out);
    put_bytes(2, value, &mut out);
    out
}

fn put_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    const LENGTH_DELIMITED: u64 = 2;
    put_varint((u64::from(number) << 3) | LENGTH_DELIMITED, out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or_default();
        value >>= 7;
        if value == 0 {
            out.push(low);
            return;
        }
        out.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_stand_alone_in_the_older_form() {
        let new = json!({"allOf": [{"$ref": "#/components/schemas/a.B"}], "description": "d"});
        assert_eq!(older(new), json!({"$ref": "#/definitions/a.B", "description": "d"}));
        let either = json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]});
        assert_eq!(older(either), json!({"format": "int-or-string", "type": "string"}));
    }

    #[test]
    fn the_document_knows_every_kind_and_how_it_is_patched() {
        let document = document("v1.36.2", &Descriptions::default());
        for kind in kinds().iter().filter(|kind| kind.has_verb("patch")) {
            let ty = crate::schema::type_named(kind.type_name).unwrap();
            let definition = &document["definitions"][ty.definition()];
            assert_eq!(definition["x-kubernetes-group-version-kind"][0]["kind"], kind.kind);
        }
        let volumes = &document["definitions"]["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"];
        assert_eq!(volumes["items"], json!({"$ref": "#/definitions/io.k8s.api.core.v1.Volume"}));
        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        assert!(
            patch["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .any(|p| p["name"] == "dryRun" && p["type"] == "string")
        );
    }

    #[test]
    fn messages_are_written_as_gnostic_reads_them() {
        let document = json!({"swagger": "2.0", "info": {"title": "K"},
            "definitions": {"A": {"type": "object", "x-y": 1}}});
        // Definitions (9) hold named schemas (1): name (1), and value (2) with type (22) and an extension (31).
        let expected = [
            &b"\x0a\x032.0\x12\x03\x0a\x01K"[..],
            b"\x4a\x1f\x0a\x1d\x0a\x01A\x12\x18",
            b"\xb2\x01\x08\x0a\x06object",
            b"\xfa\x01\x0a\x0a\x03x-y\x12\x03\x12\x011",
        ];
        assert_eq!(encode(&document), expected.concat());
    }
}
