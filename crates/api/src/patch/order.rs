//! The order of a merged list: what the patch (or its `$setElementOrder`) names stands in that order,
//! what only the server has keeps its own, and both are interleaved by the order of the live list.

use std::collections::VecDeque;

use serde_json::Value;

use super::{PatchError, go_text};

/// What tells items apart: the merge key of objects, or nothing for scalars.
pub(super) type Key = Option<&'static str>;

/// The value that identifies an item.
pub(super) fn identity(item: &Value, key: Key) -> Option<&Value> {
    match key {
        Some(key) if item.is_object() => item.get(key),
        _ => Some(item),
    }
}

fn index(list: &[Value], item: &Value, key: Key) -> Option<usize> {
    let wanted = identity(item, key);
    list.iter().position(|other| identity(other, key) == wanted)
}

/// Puts `merged` in order: `wanted` leads, `live` decides between its items and all others.
pub(super) fn arrange(
    merged: Vec<Value>,
    wanted: &[Value],
    live: &[Value],
    key: Key,
) -> Result<Vec<Value>, PatchError> {
    for item in merged.iter().chain(wanted) {
        if let (Some(name), Value::Object(_)) = (key, item)
            && item.get(name).is_none()
        {
            return Err(no_merge_key(item, name));
        }
    }
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| index(wanted, item, key).is_some());
    named.sort_by_key(|item| index(wanted, item, key).unwrap_or(usize::MAX));
    others.sort_by_key(|item| index(live, item, key).unwrap_or(usize::MAX));
    Ok(interleave(others.into(), named.into(), live, key))
}

/// Takes from `others` while its head stands before the head of `named` in the live list.
fn interleave(
    mut others: VecDeque<Value>,
    mut named: VecDeque<Value>,
    live: &[Value],
    key: Key,
) -> Vec<Value> {
    let mut all = Vec::with_capacity(others.len() + named.len());
    while let (Some(other), Some(first)) = (others.front(), named.front()) {
        let before = match (index(live, other, key), index(live, first, key)) {
            (Some(other), Some(first)) => other < first,
            _ => false,
        };
        all.extend(if before { others.pop_front() } else { named.pop_front() });
    }
    all.extend(named);
    all.extend(others);
    all
}

/// The list of a patch must stand in the order that its `$setElementOrder` gives, and name nothing else.
pub(super) fn check_patch_order(patch: &[Value], order: &[Value], key: Key) -> Result<(), PatchError> {
    if order.is_empty() {
        return Ok(());
    }
    let mut rest = order.iter();
    for item in patch.iter().filter(|item| item.get("$patch").is_none()) {
        if let (Some(name), None) = (key, item.get(key.unwrap_or_default())) {
            return Err(no_merge_key(item, name));
        }
        if !rest.any(|other| identity(other, key) == identity(item, key)) {
            return Err(PatchError::Unfit {
                reason: format!(
                    "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                    go_text(&Value::Array(patch.to_vec())),
                    go_text(&Value::Array(order.to_vec()))
                ),
            });
        }
    }
    Ok(())
}

/// An item without the member that identifies it.
pub(super) fn no_merge_key(item: &Value, key: &str) -> PatchError {
    PatchError::Unfit { reason: format!("map: {} does not contain declared merge key: {key}", go_text(item)) }
}
