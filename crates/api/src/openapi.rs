//! `OpenAPI` v3 documents, made from the schema table and the table of kinds: enough for `kubectl` to apply,
//! create, diff and explain. Descriptions are not kept, so `explain` shows names and types only.

use serde_json::{Map, Value, json};

use crate::kind::Kind;

mod path;
mod schema;

/// The index of the documents: each path (`api/v1`, `apis/apps/v1`) with the hash of its document,
/// under which clients keep it for ever.
pub fn v3_index<'a>(documents: impl IntoIterator<Item = (&'a str, &'a str)>) -> Value {
    let paths: Map<String, Value> = documents
        .into_iter()
        .map(|(path, hash)| {
            (path.to_owned(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}))
        })
        .collect();
    json!({"paths": paths})
}

/// The document of one group and version: the paths of its kinds and every schema that they reach.
pub fn v3_document(group: &str, version: &str, kinds: &[&Kind]) -> Value {
    let mut schemas = schema::Schemas::default();
    let mut paths = Map::new();
    for kind in kinds {
        paths.extend(path::paths(kind, &mut schemas));
    }
    let title = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": title},
        "paths": paths,
        "components": {"schemas": schemas.finish()},
    })
}

#[cfg(test)]
mod tests;
