//! Rows of `resource.k8s.io`: claims of devices and the slices in which drivers offer them.

use jiff::Timestamp;
use serde_json::Value;

use super::{Column, age_cell, name_cell};
use crate::access::{Access, metadata, spec, status};

/// The columns of a `ResourceClaim`.
pub(crate) const CLAIM: &[Column] =
    &[Column::NAME, Column::text("State", "Whether devices are given to it, and to whom."), Column::AGE];

/// The columns of a `ResourceSlice`.
pub(crate) const SLICE: &[Column] = &[
    Column::NAME,
    Column::text("Node", "The node that has the devices."),
    Column::text("Driver", "The driver that offers them."),
    Column::text("Pool", "The pool that the slice is a part of."),
    Column::AGE,
];

pub(crate) fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let is_deleted = metadata(object).field("deletionTimestamp").is_some();
    let is_allocated = status(object).field("allocation").is_some();
    let is_reserved = is_allocated && !status(object).list("reservedFor").is_empty();
    let states = [
        (is_deleted, "deleted"),
        (!is_deleted && !is_allocated, "pending"),
        (is_allocated, "allocated"),
        (is_reserved, "reserved"),
    ];
    let states: Vec<&str> = states.into_iter().filter_map(|(holds, name)| holds.then_some(name)).collect();
    vec![name_cell(object), states.join(",").into(), age_cell(object, now)]
}

pub(crate) fn slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let pool = spec(object).field("pool").unwrap_or(&Value::Null).text("name");
    vec![
        name_cell(object),
        spec(object).text("nodeName").into(),
        spec(object).text("driver").into(),
        pool.into(),
        age_cell(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_shows_its_state() {
        let state = |object: Value| claim(&object, Timestamp::UNIX_EPOCH)[1].clone();
        assert_eq!(state(json!({})), "pending");
        assert_eq!(state(json!({"status": {"allocation": {}, "reservedFor": [{}]}})), "allocated,reserved");
        assert_eq!(state(json!({"metadata": {"deletionTimestamp": "t"}})), "deleted");
    }
}
