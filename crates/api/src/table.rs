//! `meta.k8s.io/v1` Tables: what `kubectl get` prints. The server makes every cell; `kubectl` only aligns them.

pub(crate) mod authority;
pub(crate) mod device;
pub(crate) mod extension;
pub(crate) mod network;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod small;
pub(crate) mod storage;
pub(crate) mod text;
pub(crate) mod workload;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kind::Kind;
use crate::time;

/// A column of a Table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The heading, such as `Ready`; `kubectl` prints it in capitals.
    pub name: &'static str,
    /// `string`, `integer` …
    pub type_: &'static str,
    /// `name` for the column that names the object, else empty.
    pub format: &'static str,
    /// One sentence for machines that show help.
    pub description: &'static str,
    /// 0 is always shown, more only with `-o wide`.
    pub priority: i32,
}

impl Column {
    /// The first column of nearly every kind.
    pub const NAME: Self = Self {
        name: "Name",
        type_: "string",
        format: "name",
        description: "The object's name, unique within its namespace.",
        priority: 0,
    };
    /// Time since creation.
    pub const AGE: Self = Self::text("Age", "The time since the object was created.");

    /// A column of text that is always shown.
    pub const fn text(name: &'static str, description: &'static str) -> Self {
        Self { name, type_: "string", format: "", description, priority: 0 }
    }

    /// A column of text that is shown with `-o wide`.
    pub const fn wide(name: &'static str, description: &'static str) -> Self {
        Self { name, type_: "string", format: "", description, priority: 1 }
    }

    /// A column of whole numbers.
    pub const fn integer(name: &'static str, description: &'static str) -> Self {
        Self { name, type_: "integer", format: "", description, priority: 0 }
    }

    /// A column of truth values.
    pub const fn boolean(name: &'static str, description: &'static str) -> Self {
        Self { name, type_: "boolean", format: "", description, priority: 0 }
    }

    fn to_value(self) -> Value {
        json!({"name": self.name, "type": self.type_, "format": self.format,
            "description": self.description, "priority": self.priority})
    }
}

/// The columns of a kind that has no printer of its own.
pub const PLAIN_COLUMNS: &[Column] = &[
    Column::NAME,
    Column {
        name: "Created At",
        type_: "date",
        format: "",
        description: "When the object was created.",
        priority: 0,
    },
];

/// The cells of [`PLAIN_COLUMNS`].
pub fn plain_row(object: &Value, _now: Timestamp) -> Vec<Value> {
    let meta = |key: &str| object.pointer(&format!("/metadata/{key}")).cloned();
    vec![meta("name").unwrap_or_else(|| "".into()), meta("creationTimestamp").unwrap_or(Value::Null)]
}

/// What a row carries beside its cells (`includeObject` of the request).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// The object's metadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

impl Include {
    /// Reads the request parameter; empty means metadata.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// The row of one object.
pub fn row(kind: &Kind, object: &Value, include: Include, now: Timestamp) -> Value {
    let mut row = Map::new();
    row.insert("cells".into(), (kind.row)(object, now).into());
    let conditions = (kind.row_conditions)(object);
    if !conditions.is_empty() {
        row.insert("conditions".into(), conditions.into());
    }
    match include {
        Include::None => {}
        Include::Metadata => {
            row.insert("object".into(), partial_object_metadata(object));
        }
        Include::Object => {
            row.insert("object".into(), with_type(kind, object));
        }
    }
    Value::Object(row)
}

/// A Table of rows made by [`row`]. `metadata` is a list's `ListMeta`, or holds the resource version of one object.
/// In a watch only the first Table needs the column definitions.
pub fn table(kind: &Kind, metadata: Value, rows: Vec<Value>, has_columns: bool) -> Value {
    let columns: Vec<Value> =
        if has_columns { kind.columns.iter().map(|c| c.to_value()).collect() } else { vec![] };
    let mut object = Map::new();
    object.insert("kind".into(), "Table".into());
    object.insert("apiVersion".into(), "meta.k8s.io/v1".into());
    object.insert("metadata".into(), metadata);
    object.insert("columnDefinitions".into(), columns.into());
    object.insert("rows".into(), rows.into());
    Value::Object(object)
}

/// `PartialObjectMetadata` of `meta.k8s.io/v1` of an object.
pub fn partial_object_metadata(object: &Value) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| json!({}));
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

fn with_type(kind: &Kind, object: &Value) -> Value {
    let mut whole = Map::new();
    whole.insert("kind".into(), kind.kind.into());
    whole.insert("apiVersion".into(), kind.api_version().into());
    if let Some(fields) = object.as_object() {
        whole.extend(fields.iter().map(|(k, v)| (k.clone(), v.clone())));
    }
    Value::Object(whole)
}

/// The age cell of an object.
pub(crate) fn age_cell(object: &Value, now: Timestamp) -> Value {
    time::age(time::of(object.pointer("/metadata/creationTimestamp")), now).into()
}

/// The name cell of an object.
pub(crate) fn name_cell(object: &Value) -> Value {
    object.pointer("/metadata/name").cloned().unwrap_or_else(|| "".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::find;

    #[test]
    fn a_table_has_columns_and_rows_with_metadata() {
        let leases = find("authentication.k8s.io", "v1", "tokenreviews").unwrap();
        let object = json!({"metadata": {"name": "x", "creationTimestamp": "2026-11-23T12:00:00Z"}});
        let row = row(leases, &object, Include::Metadata, Timestamp::UNIX_EPOCH);
        assert_eq!(row["cells"], json!(["x", "2026-11-23T12:00:00Z"]));
        assert_eq!(row["object"]["kind"], "PartialObjectMetadata");
        let table = table(leases, json!({"resourceVersion": "7"}), vec![row], true);
        assert_eq!(table["columnDefinitions"][0]["format"], "name");
        assert_eq!(table["metadata"]["resourceVersion"], "7");
    }
}
