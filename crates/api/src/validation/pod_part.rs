//! Rules for the subresources that change a part of a Pod: `ephemeralcontainers` and `resize`.

use serde_json::{Map, Value};

use super::meta::object_meta_update;
use super::pod::{metadata_and_spec, rules};
use super::pod_update::annotations;
use super::{FieldErrors, Path, diff, semantically_equal};
use crate::access::{Access, carry_over, metadata, spec};
use crate::admission::MIRROR_ANNOTATION;
use crate::kind::Ctx;
use crate::kind::pod::qos_class;

fn is_mirror(pod: &Value) -> bool {
    metadata(pod).map("annotations").is_some_and(|all| all.contains_key(MIRROR_ANNOTATION))
}

fn refused(detail: &str) -> FieldErrors {
    let mut errors = FieldErrors::new();
    errors.forbidden(&Path::root(), detail);
    errors
}

/// Rules for a write to `/ephemeralcontainers`: they are only added.
pub fn ephemeral_containers(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    if is_mirror(old) {
        return refused("static pods do not support ephemeral containers");
    }
    let mut errors = object_meta_update(new, old);
    errors.extend(metadata_and_spec(new, rules(Some(old), ctx)));
    annotations(new, old, &mut errors);
    let path = Path::new("spec").child("ephemeralContainers");
    let wanted = spec(new).list("ephemeralContainers");
    for container in spec(old).list("ephemeralContainers") {
        let name = super::quote(container.text("name"));
        match wanted.iter().find(|one| one.text("name") == container.text("name")) {
            None => {
                errors.forbidden(&path, format!("existing ephemeral containers {name} may not be removed\n"));
            }
            Some(one) if !semantically_equal(one, container) => {
                let changes = diff::unified(container, one);
                let detail = format!("existing ephemeral containers {name} may not be changed\n{changes}");
                errors.forbidden(&path, detail);
            }
            Some(_) => {}
        }
    }
    errors
}

/// Rules for a write to `/resize`: CPU and memory change, and the class of service does not.
pub fn resize(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    if is_mirror(old) {
        return refused("static pods cannot be resized");
    }
    let mut errors = object_meta_update(new, old);
    errors.extend(metadata_and_spec(new, rules(Some(old), ctx)));
    let path = Path::new("spec");
    let (new, old) = (spec(new), spec(old));
    if qos_class(new) != qos_class(old) {
        errors.invalid(&path, qos_class(old), "Pod QOS Class may not change as a result of resizing");
    }
    let before = errors.len();
    for list in ["containers", "initContainers"] {
        same_containers(new.list(list), old.list(list), list, &mut errors);
    }
    if errors.len() > before {
        return errors;
    }
    let mut munged = new.clone();
    for list in ["containers", "initContainers"] {
        for (i, (new, old)) in new.list(list).iter().zip(old.list(list)).enumerate() {
            kept_resources(new, old, &path.child(list).index(i).child("resources"), &mut errors);
        }
        let containers = munged.get_mut(list).and_then(Value::as_array_mut);
        for (container, old) in containers.into_iter().flatten().zip(old.list(list)) {
            keep_cpu_and_memory(container, old);
        }
    }
    if !semantically_equal(&munged, old) {
        errors.forbidden(&path, "only cpu and memory resources are mutable");
    }
    errors
}

fn same_containers(new: &[Value], old: &[Value], list: &str, errors: &mut FieldErrors) {
    let path = Path::new("spec").child(list);
    if new.len() != old.len() {
        errors.forbidden(&path, format!("{list} may not be added or removed on resize"));
        return;
    }
    for (i, (new, old)) in new.iter().zip(old).enumerate() {
        if new.text("name") != old.text("name") {
            let detail = format!("{list} may not be renamed or reordered on resize");
            errors.forbidden(&path.index(i).child("name"), detail);
        }
    }
}

fn kept_resources(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let null = Value::Null;
    let resources = |container: &'_ Value, list: &str| -> Map<String, Value> {
        container.field("resources").unwrap_or(&null).map(list).cloned().unwrap_or_default()
    };
    for (list, detail) in
        [("requests", "resource requests cannot be removed"), ("limits", "resource limits cannot be removed")]
    {
        let kept = resources(new, list);
        if resources(old, list).keys().any(|name| !kept.contains_key(name)) {
            errors.forbidden(&path.child(list), detail);
        }
    }
}

/// Gives the container the old amounts of what may change.
fn keep_cpu_and_memory(container: &mut Value, old: &Value) {
    for list in ["requests", "limits"] {
        let before = old.pointer(&format!("/resources/{list}")).cloned().unwrap_or_default();
        let Some(resources) = container.get_mut("resources") else { return };
        if let Some(amounts) = resources.get_mut(list) {
            for name in ["cpu", "memory"] {
                carry_over(amounts, &before, name);
            }
            if amounts.as_object().is_some_and(Map::is_empty) && before.is_null() {
                crate::access::remove(resources, list);
            }
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

    fn pod(cpu: &str) -> Value {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "d", "resourceVersion": "1"},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}]}});
        crate::default::apply(crate::schema::type_named("core.v1.Pod").unwrap(), &mut pod);
        pod
    }

    #[test]
    fn cpu_may_change_and_nothing_may_go() {
        assert_eq!(resize(&pod("2"), &pod("1"), &ctx()).to_string(), "[]");
        let mut less = pod("1");
        less["spec"]["containers"][0]["resources"] = json!({});
        let text = resize(&less, &pod("1"), &ctx()).to_string();
        assert!(
            text.contains(
                "spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing"
            ),
            "{text}"
        );
        assert!(
            text.contains(
                "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed"
            ),
            "{text}"
        );
        let mut disk = pod("1");
        disk["spec"]["containers"][0]["resources"]["requests"]["ephemeral-storage"] = "1Gi".into();
        assert_eq!(
            resize(&disk, &pod("1"), &ctx()).to_string(),
            "spec: Forbidden: only cpu and memory resources are mutable"
        );
    }

    #[test]
    fn ephemeral_containers_stay() {
        let with = |image: &str| {
            let mut pod = pod("1");
            pod["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": image,
                "imagePullPolicy": "Always", "terminationMessagePolicy": "File", "terminationMessagePath": "/x"}]);
            pod
        };
        assert_eq!(ephemeral_containers(&with("a"), &pod("1"), &ctx()).to_string(), "[]");
        let text = ephemeral_containers(&pod("1"), &with("a"), &ctx()).to_string();
        assert!(text.contains("existing ephemeral containers \"debug\" may not be removed"), "{text}");
        let text = ephemeral_containers(&with("b"), &with("a"), &ctx()).to_string();
        assert!(text.contains("existing ephemeral containers \"debug\" may not be changed"), "{text}");
    }
}
