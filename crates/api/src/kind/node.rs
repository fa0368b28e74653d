//! What is a Node's own: its status is written by the kubelet alone.

use serde_json::Value;

use super::{Ctx, FieldReader};
use crate::access::{Access, carry_over, spec};

pub(super) const SELECTABLE: &[(&str, FieldReader)] =
    &[("spec.unschedulable", |o| spec(o).is_true("unschedulable").to_string())];

pub(super) fn prepare_update(node: &mut Value, old: &Value, _ctx: &Ctx) {
    carry_over(node, old, "status");
}

pub(super) fn prepare_status(node: &mut Value, old: &Value, _ctx: &Ctx) {
    carry_over(node, old, "spec");
}
