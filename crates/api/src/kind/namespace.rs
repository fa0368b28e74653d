//! What is a Namespace's own: its finalizer, its phase and the label that carries its name.

use serde_json::{Value, json};

use super::{Ctx, FieldReader};
use crate::access::{Access, carry_over, metadata, object_at, set, spec, status};

/// The finalizer that the namespace controller takes away when the namespace is empty.
pub const FINALIZER: &str = "kubernetes";
/// The label that lets selectors name a namespace.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

pub(super) const SELECTABLE: &[(&str, FieldReader)] =
    &[("status.phase", |o| status(o).text("phase").to_owned())];

/// The label with the name.
pub(super) fn default(namespace: &mut Value) {
    let name = metadata(namespace).text("name").to_owned();
    if name.is_empty() {
        return;
    }
    object_at(namespace, "metadata");
    if let Some(meta) = namespace.get_mut("metadata") {
        object_at(meta, "labels").insert(NAME_LABEL.into(), name.into());
    }
}

pub(super) fn prepare_create(namespace: &mut Value, _ctx: &Ctx) {
    default(namespace);
    let finalizers = object_at(namespace, "spec").entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|f| f == FINALIZER)
    {
        list.push(FINALIZER.into());
    }
    set(namespace, "status", json!({"phase": "Active"}));
}

pub(super) fn prepare_update(namespace: &mut Value, old: &Value, _ctx: &Ctx) {
    default(namespace);
    carry_over(namespace, old, "status");
    object_at(namespace, "spec");
    if let Some(new_spec) = namespace.get_mut("spec") {
        carry_over(new_spec, spec(old), "finalizers");
    }
}

pub(super) fn prepare_status(namespace: &mut Value, old: &Value, _ctx: &Ctx) {
    carry_over(namespace, old, "spec");
}

/// For a write to `/finalize`: only the finalizers change.
pub(super) fn prepare_finalize(namespace: &mut Value, old: &Value, _ctx: &Ctx) {
    carry_over(namespace, old, "status");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Gates;
    use jiff::Timestamp;

    #[test]
    fn a_new_namespace_is_active_labelled_and_has_its_finalizer() {
        let ctx = Ctx { now: Timestamp::UNIX_EPOCH, gates: Gates::default() };
        let mut namespace = json!({"metadata": {"name": "team"}});
        prepare_create(&mut namespace, &ctx);
        assert_eq!(
            namespace,
            json!({"metadata": {"name": "team", "labels": {"kubernetes.io/metadata.name": "team"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
        let mut changed = json!({"metadata": {"name": "team"}, "spec": {"finalizers": []}});
        prepare_update(&mut changed, &namespace, &ctx);
        assert_eq!(changed, namespace);
    }
}
