//! Patches: strategic merge by the schema table, JSON merge patch (RFC 7386) and JSON patch (RFC 6902).
//! Server-side apply is `crate::apply`. Nothing here knows of HTTP: `PatchError::class` tells the answer's code.

use serde_json::Value;
use thiserror::Error;

use crate::codec;
use crate::schema::Type;

mod document;
mod order;
mod strategic;

/// More operations in one JSON patch are refused.
pub const MAX_OPERATIONS: usize = 10_000;

/// More bytes than these are not copied by the `copy` operations of one JSON patch together: a few of them can double a
/// document again and again.
pub const MAX_COPIED: usize = 3 * 1024 * 1024;

/// Which answer a refused patch gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// 400 `BadRequest` with the error's text.
    BadRequest,
    /// 413 `RequestEntityTooLarge` with the error's text.
    TooLarge,
    /// 422 `Invalid` with the generic text of a rejected request; the error's text is the cause.
    Unprocessable,
    /// 500 `InternalError` with the error's text, as upstream answers.
    Internal,
}

/// Why a patch cannot be applied. The texts are upstream's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PatchError {
    /// The body is not a document of the patch's kind.
    #[error("error decoding patch: {reason}")]
    Undecodable {
        /// The decoder's message.
        reason: String,
    },
    /// A merge patch or an object is not a JSON object.
    #[error("invalid JSON document")]
    NotAnObject,
    /// A JSON patch is not a list of operations.
    #[error("invalid JSON patch: {reason}")]
    BadOperations {
        /// What is wrong.
        reason: String,
    },
    /// `$deleteFromPrimitiveList` has no field name.
    #[error("invalid patch format of primitive list")]
    BadPrimitiveList,
    /// `$retainKeys` is no list, or the patch has a member that it does not name.
    #[error("invalid patch format of retainKeys")]
    BadRetainKeys,
    /// `$setElementOrder` has no field name or is no list.
    #[error("invalid patch format of setElementOrder list")]
    BadElementOrder,
    /// Lists in a merged list.
    #[error("lists of lists are not supported")]
    ListOfLists,
    /// A JSON patch with too many operations.
    #[error("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {found}")]
    TooManyOperations {
        /// How many there are.
        found: usize,
    },
    /// A JSON patch that copies too much.
    #[error(
        "Unable to complete the copy, the accumulated size increase of copy is {size}, exceeding the limit {MAX_COPIED}"
    )]
    TooMuchCopied {
        /// How many bytes.
        size: usize,
    },
    /// An operation of a JSON patch fails.
    #[error("{reason}")]
    Failed {
        /// Which operation, where and why.
        reason: String,
    },
    /// The patch does not fit the object's type.
    #[error("{reason}")]
    Unfit {
        /// What does not fit.
        reason: String,
    },
}

impl PatchError {
    /// Which answer the error gets.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Undecodable { .. }
            | Self::NotAnObject
            | Self::BadOperations { .. }
            | Self::BadPrimitiveList
            | Self::BadRetainKeys
            | Self::BadElementOrder => ErrorClass::BadRequest,
            Self::TooManyOperations { .. } | Self::TooMuchCopied { .. } => ErrorClass::TooLarge,
            Self::ListOfLists | Self::Failed { .. } => ErrorClass::Unprocessable,
            Self::Unfit { .. } => ErrorClass::Internal,
        }
    }
}

/// A patch's body as a value, with what strict reading complains about (`duplicate field "spec.a"`).
#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    /// The document.
    pub patch: Value,
    /// Repeated members.
    pub complaints: Vec<String>,
}

/// Reads a patch's body, which is JSON.
///
/// # Errors
/// [`PatchError::Undecodable`] with Go's message.
pub fn read_body(body: &[u8]) -> Result<Body, PatchError> {
    let (patch, complaints) = codec::free_json(body).map_err(|reason| PatchError::Undecodable { reason })?;
    Ok(Body { patch, complaints })
}

/// Applies a strategic merge patch (`application/strategic-merge-patch+json`) to an object of type `root`.
///
/// # Errors
/// [`PatchError`]; `current` is never half patched.
pub fn strategic_merge(root: &'static Type, current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let (Value::Object(current), Value::Object(patch)) = (current, patch) else {
        return Err(PatchError::NotAnObject);
    };
    strategic::merge(current.clone(), patch.clone(), strategic::Shape::of(root)).map(Value::Object)
}

/// Applies a JSON merge patch (`application/merge-patch+json`).
///
/// # Errors
/// [`PatchError::NotAnObject`] when the patch is not an object.
pub fn merge(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    document::merge(current, patch)
}

/// Applies a JSON patch (`application/json-patch+json`).
///
/// # Errors
/// [`PatchError`]; `current` is never half patched.
pub fn json_patch(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    document::json_patch(current, patch)
}

/// A value as Go prints maps and lists in messages: `map[a:1 b:[x y]]`.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(members) => {
            let mut pairs: Vec<String> =
                members.iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            pairs.sort();
            format!("map[{}]", pairs.join(" "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
