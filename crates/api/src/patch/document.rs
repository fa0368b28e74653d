//! The two patches that know nothing of types.

use json_patch::{Patch, PatchErrorKind, PatchOperation, patch_unsafe};
use serde::Deserialize as _;
use serde_json::Value;

use super::{MAX_COPIED, MAX_OPERATIONS, PatchError};

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
    let mut copied = 0;
    for operation in operations.iter() {
        if let PatchOperation::Copy(copy) = operation {
            copied += changed.pointer(copy.from.as_str()).map_or(0, size_of);
            if copied > MAX_COPIED {
                return Err(PatchError::TooMuchCopied { size: copied });
            }
        }
        patch_unsafe(&mut changed, std::slice::from_ref(operation))
            .map_err(|error| failure(operation, &error))?;
    }
    Ok(changed)
}

fn failure(operation: &PatchOperation, error: &json_patch::PatchError) -> PatchError {
    let name = operation_name(operation);
    let place = error.path.as_str();
    let reason = match error.kind {
        PatchErrorKind::TestFailed => format!("testing value {place} failed: test failed"),
        PatchErrorKind::CannotMoveInsideItself => {
            format!("{name} operation: {place} lies inside the moved value")
        }
        _ => format!("{name} operation does not apply: doc is missing path: {place}: missing value"),
    };
    PatchError::Failed { reason }
}

/// About how many bytes a value is in JSON.
fn size_of(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| size_of(item) + 1).sum::<usize>() + 2,
        Value::Object(members) => {
            members.iter().map(|(key, value)| key.len() + size_of(value) + 4).sum::<usize>() + 2
        }
        _ => 4,
    }
}

fn operation_name(operation: &PatchOperation) -> &'static str {
    use PatchOperation as Operation;
    match operation {
        Operation::Add(_) => "add",
        Operation::Remove(_) => "remove",
        Operation::Replace(_) => "replace",
        Operation::Move(_) => "move",
        Operation::Copy(_) => "copy",
        Operation::Test(_) => "test",
    }
}
