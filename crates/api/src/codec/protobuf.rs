//! Protobuf request bodies to objects, by the numbers of the schema table.

use serde_json::{Map, Value};

use super::Expected;
use crate::schema::Type;

/// The four bytes before every body.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// A decoded envelope.
pub(super) struct Message {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) object: Map<String, Value>,
}

/// Decodes envelope and object.
pub(super) fn decode(_body: &[u8], _root: &'static Type, _expected: Expected<'_>) -> Result<Message, String> {
    Err("protobuf bodies are not read yet".to_owned())
}
