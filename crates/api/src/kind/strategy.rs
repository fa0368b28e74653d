//! What the server writes into the objects of most kinds: the status belongs to `/status` alone, and a change of what
//! is wished for counts up `metadata.generation`.

use serde_json::{Map, Value};

use super::Ctx;
use crate::access::{Access, carry_over, metadata, object_at, remove, set};
use crate::validation::semantically_equal;

/// A new object has its first generation.
pub(crate) fn count_create(object: &mut Value, _ctx: &Ctx) {
    object_at(object, "metadata").insert("generation".into(), 1.into());
}

/// A change of anything but metadata and status is a new generation.
pub(crate) fn count_update(object: &mut Value, old: &Value, _ctx: &Ctx) {
    let generation = metadata(old).int("generation").unwrap_or_default();
    let next = generation + i64::from(!is_same_wish(object, old));
    if next > 0 {
        object_at(object, "metadata").insert("generation".into(), next.into());
    }
}

/// A new object has no status yet.
pub(crate) fn status_create(object: &mut Value, _ctx: &Ctx) {
    set(object, "status", Map::new());
}

/// The status stays as it was.
pub(crate) fn status_update(object: &mut Value, old: &Value, _ctx: &Ctx) {
    carry_over(object, old, "status");
}

/// Only the status changes, and what metadata a status writer may touch.
pub(crate) fn status_only(object: &mut Value, old: &Value, _ctx: &Ctx) {
    let names: Vec<String> =
        [&*object, old].into_iter().filter_map(Value::as_object).flat_map(|o| o.keys().cloned()).collect();
    for name in names.iter().filter(|name| !is_frame(name)) {
        carry_over(object, old, name);
    }
    object_at(object, "metadata");
    if let Some(meta) = object.get_mut("metadata") {
        for name in ["labels", "ownerReferences", "generation"] {
            carry_over(meta, metadata(old), name);
        }
    }
    if object.get("status").is_some_and(Value::is_null) {
        remove(object, "status");
    }
}

/// [`status_create`] and [`count_create`].
pub(crate) fn controlled_create(object: &mut Value, ctx: &Ctx) {
    status_create(object, ctx);
    count_create(object, ctx);
}

/// [`status_update`] and [`count_update`].
pub(crate) fn controlled_update(object: &mut Value, old: &Value, ctx: &Ctx) {
    status_update(object, old, ctx);
    count_update(object, old, ctx);
}

/// What every object has beside its wishes.
fn is_frame(name: &str) -> bool {
    matches!(name, "kind" | "apiVersion" | "metadata" | "status")
}

/// Whether two objects differ in metadata and status alone.
pub(crate) fn is_same_wish(one: &Value, other: &Value) -> bool {
    let wish = |object: &Value| -> Value {
        let fields = object.as_object().into_iter().flatten();
        fields
            .filter(|(name, _)| !is_frame(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    semantically_equal(&wish(one), &wish(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Gates;
    use jiff::Timestamp;
    use serde_json::json;

    fn ctx() -> Ctx {
        Ctx { now: Timestamp::UNIX_EPOCH, gates: Gates::default() }
    }

    #[test]
    fn a_new_object_has_generation_1_and_no_status() {
        let mut object = json!({"metadata": {"name": "a"}, "spec": {"x": 1}, "status": {"replicas": 3}});
        controlled_create(&mut object, &ctx());
        assert_eq!(
            object,
            json!({"metadata": {"name": "a", "generation": 1}, "spec": {"x": 1}, "status": {}})
        );
    }

    #[test]
    fn a_changed_spec_is_a_new_generation_and_a_label_is_not() {
        let old = json!({"metadata": {"generation": 4}, "spec": {"x": 1}, "status": {"a": 1}});
        let mut labelled = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"x": 1}, "status": {"a": 2}});
        controlled_update(&mut labelled, &old, &ctx());
        assert_eq!(labelled["metadata"]["generation"], 4);
        assert_eq!(labelled["status"], json!({"a": 1}));
        let mut changed = json!({"metadata": {}, "spec": {"x": 2}});
        controlled_update(&mut changed, &old, &ctx());
        assert_eq!(changed["metadata"]["generation"], 5);
        assert_eq!(changed["status"], json!({"a": 1}));
    }

    #[test]
    fn a_status_write_changes_the_status_alone() {
        let old = json!({"metadata": {"labels": {"a": "1"}, "generation": 2}, "spec": {"x": 1}});
        let mut new = json!({"metadata": {"labels": {}, "annotations": {"b": "2"}}, "spec": {"x": 2}, "status": {"y": 1}});
        status_only(&mut new, &old, &ctx());
        assert_eq!(
            new,
            json!({"metadata": {"annotations": {"b": "2"}, "labels": {"a": "1"}, "generation": 2},
                "spec": {"x": 1}, "status": {"y": 1}})
        );
    }
}
