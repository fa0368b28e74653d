//! The part of an object's metadata that controllers decide by.

use std::sync::Arc;

use informer::Meta;
use serde::{Deserialize, Serialize};

/// What is read of `metadata`; the rest is dropped while it is read.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) resource_version: String,
    pub(crate) creation_timestamp: Option<String>,
    pub(crate) deletion_timestamp: Option<String>,
    pub(crate) finalizers: Vec<String>,
    pub(crate) owner_references: Vec<OwnerReference>,
}

/// An owner, as its dependent names it; whole, because it is written back when another one is taken away.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct OwnerReference {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) controller: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) block_owner_deletion: Option<bool>,
}

impl Metadata {
    /// What the informer keeps an object by.
    pub(crate) fn key(&self) -> Meta {
        Meta {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            uid: self.uid.clone(),
            revision: self.resource_version.clone(),
        }
    }

    /// Whether somebody asked to delete the object.
    pub(crate) const fn is_deleted(&self) -> bool {
        self.deletion_timestamp.is_some()
    }
}

/// An object of any kind, of which only the metadata counts.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Whole")]
pub(crate) struct Object {
    key: Meta,
    pub(crate) metadata: Arc<Metadata>,
}

#[derive(Deserialize)]
struct Whole {
    metadata: Metadata,
}

impl From<Whole> for Object {
    fn from(whole: Whole) -> Self {
        Self { key: whole.metadata.key(), metadata: Arc::new(whole.metadata) }
    }
}

impl informer::Object for Object {
    fn meta(&self) -> &Meta {
        &self.key
    }
}
