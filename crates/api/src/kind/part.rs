//! Subresources that write a part of their own object: what stays as it was, and which rules hold.

use serde_json::Value;

use super::{Ctx, Part, namespace, strategy};
use crate::access::{Access, carry_over, metadata, object_at, spec, status};
use crate::time;
use crate::validation::{certificate, object, pod_part, semantically_equal};

/// `namespaces/finalize`.
pub(super) const FINALIZE: Part =
    Part { prepare: namespace::prepare_finalize, validate: object::namespace_finalize };

/// `pods/ephemeralcontainers`.
pub(super) const EPHEMERAL_CONTAINERS: Part =
    Part { prepare: ephemeral_containers, validate: pod_part::ephemeral_containers };

/// `pods/resize`.
pub(super) const RESIZE: Part = Part { prepare: resize, validate: pod_part::resize };

/// `certificatesigningrequests/approval`.
pub(super) const APPROVAL: Part = Part { prepare: approval, validate: certificate::approval };

/// Only the ephemeral containers change.
fn ephemeral_containers(pod: &mut Value, old: &Value, _ctx: &Ctx) {
    let wanted = spec(pod).field("ephemeralContainers").cloned();
    keep_frame(pod, old);
    carry_over(pod, old, "spec");
    let fields = object_at(pod, "spec");
    match wanted {
        Some(wanted) => fields.insert("ephemeralContainers".into(), wanted),
        None => fields.shift_remove("ephemeralContainers"),
    };
    count(pod, old);
}

/// Only the resources of containers change. When containers are not those of the old Pod, the rules say so.
fn resize(pod: &mut Value, old: &Value, _ctx: &Ctx) {
    let is_same_set = |list: &str| {
        let names = |pod: &Value| -> Vec<String> {
            spec(pod).list(list).iter().map(|c| c.text("name").to_owned()).collect()
        };
        names(pod) == names(old)
    };
    if !is_same_set("containers") || !is_same_set("initContainers") {
        return;
    }
    let wanted = spec(pod).clone();
    keep_frame(pod, old);
    carry_over(pod, old, "spec");
    for list in ["containers", "initContainers"] {
        let containers = pod.pointer_mut(&format!("/spec/{list}")).and_then(Value::as_array_mut);
        for (container, wanted) in containers.into_iter().flatten().zip(wanted.list(list)) {
            carry_over(container, wanted, "resources");
            carry_over(container, wanted, "resizePolicy");
        }
    }
    if let Some(new_spec) = pod.get_mut("spec") {
        carry_over(new_spec, &wanted, "resources");
    }
    count(pod, old);
}

/// Status and metadata as they were, but for what a writer of a part may change.
fn keep_frame(pod: &mut Value, old: &Value) {
    carry_over(pod, old, "status");
    object_at(pod, "metadata");
    if let Some(meta) = pod.get_mut("metadata") {
        for name in ["labels", "annotations", "finalizers", "ownerReferences", "generation"] {
            carry_over(meta, metadata(old), name);
        }
    }
}

fn count(pod: &mut Value, old: &Value) {
    let generation = metadata(old).int("generation").unwrap_or_default();
    let is_changed = !semantically_equal(spec(pod), spec(old));
    object_at(pod, "metadata").insert("generation".into(), (generation + i64::from(is_changed)).into());
}

/// Only the conditions change.
fn approval(request: &mut Value, old: &Value, ctx: &Ctx) {
    let wanted = status(request).field("conditions").cloned();
    strategy::status_only(request, old, ctx);
    carry_over(request, old, "status");
    if let Some(mut wanted) = wanted {
        stamp(&mut wanted, old, ctx);
        object_at(request, "status").insert("conditions".into(), wanted);
    }
}

/// A write to the status of a certificate request: the decision stays as it is.
pub(super) fn certify(request: &mut Value, old: &Value, ctx: &Ctx) {
    strategy::status_only(request, old, ctx);
    let known = status(old).list("conditions");
    if let Some(conditions) = request.pointer_mut("/status/conditions") {
        for condition in conditions.as_array_mut().into_iter().flatten() {
            let kind = condition.text("type").to_owned();
            let kept = known.iter().find(|c| c.text("type") == kind);
            if let Some(kept) = kept.filter(|_| matches!(kind.as_str(), "Approved" | "Denied")) {
                *condition = kept.clone();
            }
        }
        stamp(conditions, old, ctx);
    }
}

/// Times of conditions that the writer left out.
fn stamp(conditions: &mut Value, old: &Value, ctx: &Ctx) {
    let known = status(old).list("conditions");
    for condition in conditions.as_array_mut().into_iter().flatten() {
        let same = known.iter().find(|c| {
            c.text("type") == condition.text("type") && c.text("status") == condition.text("status")
        });
        let since = same.and_then(|c| c.field("lastTransitionTime").cloned());
        let now = || Value::from(time::format_seconds(ctx.now));
        if let Some(fields) = condition.as_object_mut() {
            fields.entry("lastUpdateTime").or_insert_with(now);
            fields.entry("lastTransitionTime").or_insert_with(|| since.unwrap_or_else(now));
        }
    }
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

    fn pod() -> Value {
        json!({"metadata": {"name": "p", "generation": 1, "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": "Running"}})
    }

    #[test]
    fn ephemeral_containers_change_nothing_else() {
        let mut new = json!({"metadata": {"name": "p"}, "spec": {"containers": [],
            "ephemeralContainers": [{"name": "debug"}]}});
        (EPHEMERAL_CONTAINERS.prepare)(&mut new, &pod(), &ctx());
        let mut wanted = pod();
        wanted["spec"]["ephemeralContainers"] = json!([{"name": "debug"}]);
        wanted["metadata"]["generation"] = 2.into();
        assert_eq!(new, wanted);
    }

    #[test]
    fn a_resize_changes_resources_alone() {
        let mut new = pod();
        new["spec"]["containers"][0]["image"] = "other".into();
        new["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "2".into();
        (RESIZE.prepare)(&mut new, &pod(), &ctx());
        let mut wanted = pod();
        wanted["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "2".into();
        wanted["metadata"]["generation"] = 2.into();
        assert_eq!(new, wanted);
    }

    #[test]
    fn an_approval_writes_conditions_with_their_times() {
        let old = json!({"metadata": {"name": "r"}, "spec": {"signerName": "a/b"}, "status": {}});
        let mut new = json!({"metadata": {"name": "r"}, "spec": {}, "status": {"certificate": "eA==",
            "conditions": [{"type": "Approved", "status": "True"}]}});
        (APPROVAL.prepare)(&mut new, &old, &ctx());
        assert_eq!(new["spec"], old["spec"]);
        assert_eq!(
            new["status"],
            json!({"conditions": [{"type": "Approved", "status": "True",
            "lastUpdateTime": "1970-01-01T00:00:00Z", "lastTransitionTime": "1970-01-01T00:00:00Z"}]})
        );
    }
}
