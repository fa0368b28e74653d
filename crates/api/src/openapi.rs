//! `OpenAPI` documents, v3 and v2, made from the schema table and the table of kinds. What types and fields are for is
//! told by the caller: no descriptions are kept here.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::kind::Kind;

mod path;
mod schema;
pub mod v2;

/// What a type and its fields are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Description {
    /// About the type.
    pub text: String,
    /// About each field, by JSON name.
    pub fields: HashMap<String, String>,
}

/// Descriptions by the name of the definition, such as `io.k8s.api.core.v1.Pod`.
#[derive(Clone, Debug, Default)]
pub struct Descriptions(HashMap<String, Description>);

impl Descriptions {
    /// The description of a definition.
    pub fn of(&self, definition: &str) -> Option<&Description> {
        self.0.get(definition)
    }
}

impl FromIterator<(String, Description)> for Descriptions {
    fn from_iter<I: IntoIterator<Item = (String, Description)>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

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
pub fn v3_document(group: &str, version: &str, kinds: &[&Kind], texts: &Descriptions) -> Value {
    let mut schemas = schema::Schemas::new(texts);
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
