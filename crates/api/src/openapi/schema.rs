//! Schemas of types, with the extensions that clients read: merge keys, list types, group-version-kind.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Descriptions;
use crate::schema::{Field, FieldKind, ListKind, Type, type_named};

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
const FIELDS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1";
const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const RAW_EXTENSION: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";
const JSON: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";
const SCHEMA_UNION: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOr";

/// The schemas of a document, grown by every reference.
pub(super) struct Schemas<'a> {
    done: BTreeMap<String, Value>,
    texts: &'a Descriptions,
}

impl<'a> Schemas<'a> {
    /// No schema yet.
    pub(super) fn new(texts: &'a Descriptions) -> Self {
        Self { done: BTreeMap::new(), texts }
    }

    /// All schemas, by name.
    pub(super) fn finish(self) -> Map<String, Value> {
        self.done.into_iter().collect()
    }

    /// A reference to a type; the type and all that it reaches become part of the document.
    pub(super) fn reference(&mut self, ty: &'static Type) -> Value {
        let name = ty.definition();
        if !self.done.contains_key(&name) {
            self.done.insert(name.clone(), Value::Null);
            let schema = self.object(ty);
            self.done.insert(name.clone(), schema);
        }
        link(&name)
    }

    /// A reference to the type of this short name; anything when there is none.
    pub(super) fn reference_named(&mut self, name: &str) -> Value {
        type_named(name).map_or_else(|| json!({}), |ty| self.reference(ty))
    }

    /// A reference to the schema of patches.
    pub(super) fn patch(&mut self) -> Value {
        self.named(PATCH, || json!({"type": "object"}))
    }

    /// A reference to the list of a kind.
    pub(super) fn list_of(&mut self, ty: &'static Type) -> Value {
        let name = format!("{}List", ty.definition());
        let Some(kind) = ty.kind else { return json!({}) };
        let item = self.reference(ty);
        let metadata = self.reference_named("meta.v1.ListMeta");
        let schema = json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "items": {"type": "array", "items": {"allOf": [item]}},
                "kind": {"type": "string"},
                "metadata": {"allOf": [metadata]},
            },
            "x-kubernetes-group-version-kind":
                [{"group": kind.group, "kind": format!("{}List", kind.kind), "version": kind.version}],
        });
        self.named(&name, || schema)
    }

    fn named(&mut self, name: &str, make: impl FnOnce() -> Value) -> Value {
        self.done.entry(name.to_owned()).or_insert_with(make);
        link(name)
    }

    fn object(&mut self, ty: &'static Type) -> Value {
        let text = self.texts.of(&ty.definition());
        let described = |field: &Field, mut property: Value| {
            let text = text.and_then(|text| text.fields.get(field.json)).filter(|text| !text.is_empty());
            if let (Some(text), Some(members)) = (text, property.as_object_mut()) {
                members.insert("description".to_owned(), text.as_str().into());
            }
            (field.json.to_owned(), property)
        };
        let properties: Map<String, Value> =
            ty.fields.iter().map(|field| described(field, self.property(field))).collect();
        let required: Vec<&str> =
            ty.fields.iter().filter(|field| field.required).map(|field| field.json).collect();
        let mut schema = Map::new();
        schema.insert("type".to_owned(), "object".into());
        if let Some(text) = text.map(|text| text.text.as_str()).filter(|text| !text.is_empty()) {
            schema.insert("description".to_owned(), text.into());
        }
        if !required.is_empty() {
            schema.insert("required".to_owned(), required.into());
        }
        if !properties.is_empty() {
            schema.insert("properties".to_owned(), properties.into());
        }
        if let Some(kind) = ty.kind {
            let kind = json!([{"group": kind.group, "kind": kind.kind, "version": kind.version}]);
            schema.insert("x-kubernetes-group-version-kind".to_owned(), kind);
        }
        Value::Object(schema)
    }

    fn property(&mut self, field: &Field) -> Value {
        let mut property = match self.shape(field.kind) {
            Value::Object(members) if members.contains_key("$ref") => wrap(Value::Object(members)),
            Value::Object(members) => members,
            _ => Map::new(),
        };
        add_extensions(field, &mut property);
        Value::Object(property)
    }

    fn shape(&mut self, kind: FieldKind) -> Value {
        match kind {
            FieldKind::Ref(ty) => self.reference(ty.get()),
            FieldKind::List(item) => json!({"type": "array", "items": self.item(*item)}),
            FieldKind::Map(item) => json!({"type": "object", "additionalProperties": self.item(*item)}),
            FieldKind::Str => json!({"type": "string"}),
            FieldKind::Int32 => json!({"type": "integer", "format": "int32"}),
            FieldKind::Int64 => json!({"type": "integer", "format": "int64"}),
            FieldKind::Float => json!({"type": "number", "format": "double"}),
            FieldKind::Bool => json!({"type": "boolean"}),
            FieldKind::Bytes => json!({"type": "string", "format": "byte"}),
            FieldKind::Quantity => {
                self.named(QUANTITY, || json!({"oneOf": [{"type": "string"}, {"type": "number"}]}))
            }
            FieldKind::IntOrString => self.named(
                INT_OR_STRING,
                || json!({"format": "int-or-string", "x-kubernetes-int-or-string": true, "oneOf": [{"type": "integer"}, {"type": "string"}]}),
            ),
            FieldKind::Time => self.named(TIME, || json!({"type": "string", "format": "date-time"})),
            FieldKind::MicroTime => {
                self.named(MICRO_TIME, || json!({"type": "string", "format": "date-time"}))
            }
            FieldKind::Raw => {
                self.named(RAW_EXTENSION, || json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}))
            },
            FieldKind::Fields => self.named(FIELDS, || json!({"type": "object"})),
            FieldKind::Json => self.named(JSON, || json!({})),
            FieldKind::SchemaOrArray => self.named(&format!("{SCHEMA_UNION}Array"), || json!({})),
            FieldKind::SchemaOrBool => self.named(&format!("{SCHEMA_UNION}Bool"), || json!({})),
            FieldKind::SchemaOrStrings => self.named(&format!("{SCHEMA_UNION}StringArray"), || json!({})),
        }
    }

    fn item(&mut self, kind: FieldKind) -> Value {
        match self.shape(kind) {
            Value::Object(members) if members.contains_key("$ref") => {
                Value::Object(wrap(Value::Object(members)))
            }
            other => other,
        }
    }
}

fn link(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// A reference that can have neighbours.
fn wrap(reference: Value) -> Map<String, Value> {
    let mut members = Map::new();
    members.insert("allOf".to_owned(), vec![reference].into());
    members
}

fn add_extensions(field: &Field, property: &mut Map<String, Value>) {
    let mut add = |name: &str, value: Value| {
        property.insert(format!("x-kubernetes-{name}"), value);
    };
    if matches!(field.kind, FieldKind::List(_)) {
        match field.list {
            ListKind::Map(keys) => {
                add("list-map-keys", keys.into());
                add("list-type", "map".into());
            }
            ListKind::Set => add("list-type", "set".into()),
            ListKind::Atomic => add("list-type", "atomic".into()),
        }
    } else if field.atomic {
        add("map-type", "atomic".into());
    }
    if let Some(key) = field.patch.key {
        add("patch-merge-key", key.into());
    }
    let strategies: Vec<&str> = [
        (field.patch.merge, "merge"),
        (field.patch.replace, "replace"),
        (field.patch.retain_keys, "retainKeys"),
    ]
    .into_iter()
    .filter_map(|(is_set, name)| is_set.then_some(name))
    .collect();
    if !strategies.is_empty() {
        add("patch-strategy", strategies.join(",").into());
    }
}
