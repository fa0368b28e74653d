//! The two patches that know nothing of types.

use json_patch::{Patch, PatchErrorKind, patch_unsafe};
use serde::Deserialize as _;
use serde_json::Value;

use super::{MAX_OPERATIONS, PatchError};

/// RFC 7386 on objects.
pub(super) fn merge(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::NotAnObject);
    }
    let mut merged = current.clone();
    merge_into(&mut merged, patch);
    Ok(merged)
}

/// As `json_patch::merge`, but members keep their order when one is removed.
fn merge_into(target: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(object) = target else { return };
    for (key, value) in members {
        if value.is_null() {
            object.shift_remove(key);
        } else {
            merge_into(object.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

/// RFC 6902.
pub(super) fn json_patch(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Array(operations) = patch else {
        return Err(PatchError::BadOperations { reason: "a list of operations is expected".to_owned() });
    };
    if operations.len() > MAX_OPERATIONS {
        return Err(PatchError::TooManyOperations { found: operations.len() });
    }
    let operations =
        Patch::deserialize(patch).map_err(|error| PatchError::BadOperations { reason: error.to_string() })?;
    // The copy is thrown away on failure, so nothing needs to be undone.
    let mut changed = current.clone();
    patch_unsafe(&mut changed, &operations).map_err(|error| {
        let name = operations.get(error.operation).map_or("", operation_name);
        let place = error.path.as_str();
        let reason = match error.kind {
            PatchErrorKind::TestFailed => format!("testing value {place} failed: test failed"),
            PatchErrorKind::CannotMoveInsideItself => {
                format!("{name} operation: {place} lies inside the moved value")
            }
            _ => format!("{name} operation does not apply: doc is missing path: {place}: missing value"),
        };
        PatchError::Failed { reason }
    })?;
    Ok(changed)
}

fn operation_name(operation: &json_patch::PatchOperation) -> &'static str {
    use json_patch::PatchOperation as Operation;
    match operation {
        Operation::Add(_) => "add",
        Operation::Remove(_) => "remove",
        Operation::Replace(_) => "replace",
        Operation::Move(_) => "move",
        Operation::Copy(_) => "copy",
        Operation::Test(_) => "test",
    }
}
