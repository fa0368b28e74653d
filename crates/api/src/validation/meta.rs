//! Rules for `metadata`, the same for every kind.

use serde_json::Value;

use super::{FieldErrors, Path, semantically_equal};
use crate::access::{Access, metadata};
use crate::name::{dns_label_faults, label_value_faults, qualified_name_faults};

/// Most bytes that all annotations of an object may have together.
pub const ANNOTATIONS_MAX: usize = 256 * 1024;

/// A check of names, such as [`crate::name::dns_subdomain_faults`].
pub type NameRule = fn(&str) -> Vec<String>;

/// Rules for the metadata of a new object.
pub fn object_meta(object: &Value, is_namespaced: bool, name_rule: NameRule) -> FieldErrors {
    let meta = metadata(object);
    let path = Path::new("metadata");
    let mut errors = FieldErrors::new();
    let prefix = meta.text("generateName");
    if !prefix.is_empty() {
        let example = mask_trailing_dash(prefix);
        for fault in name_rule(&example) {
            errors.invalid(&path.child("generateName"), prefix, fault);
        }
    }
    let name = meta.text("name");
    if name.is_empty() {
        errors.required(&path.child("name"), "name or generateName is required");
    } else {
        for fault in name_rule(name) {
            errors.invalid(&path.child("name"), name, fault);
        }
    }
    namespace(meta, is_namespaced, &path, &mut errors);
    non_negative(meta.int("generation"), &path.child("generation"), &mut errors);
    labels(meta, "labels", &path.child("labels"), &mut errors);
    annotations_of(meta, &path.child("annotations"), &mut errors);
    owner_references(meta, &path.child("ownerReferences"), &mut errors);
    finalizers(meta, &path.child("finalizers"), &mut errors);
    errors
}

/// A prefix is judged as if a letter stood for its last dash.
fn mask_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => {
            let mut text = rest.to_owned();
            text.pop();
            text.push('a');
            text
        }
        _ => prefix.to_owned(),
    }
}

fn namespace(meta: &Value, is_namespaced: bool, path: &Path, errors: &mut FieldErrors) {
    let namespace = meta.text("namespace");
    let path = path.child("namespace");
    match (is_namespaced, namespace.is_empty()) {
        (true, true) => errors.required(&path, ""),
        (true, false) => {
            for fault in dns_label_faults(namespace) {
                errors.invalid(&path, namespace, fault);
            }
        }
        (false, false) => errors.forbidden(&path, "not allowed on this type"),
        (false, true) => {}
    }
}

/// Rules for a map of labels in a field of an object.
pub(crate) fn labels(object: &Value, field: &str, path: &Path, errors: &mut FieldErrors) {
    for (key, value) in object.entries(field) {
        label_name(key, path, errors);
        for fault in label_value_faults(value) {
            errors.invalid(path, value, fault);
        }
    }
}

/// Rules for a label's key.
pub(crate) fn label_name(key: &str, path: &Path, errors: &mut FieldErrors) {
    for fault in qualified_name_faults(key) {
        errors.invalid(path, key, fault);
    }
}

/// Rules for the annotations of some metadata.
pub(crate) fn annotations_of(meta: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut size = 0;
    for (key, value) in meta.entries("annotations") {
        size += key.len() + value.len();
        for fault in qualified_name_faults(&key.to_lowercase()) {
            errors.invalid(path, key, fault);
        }
    }
    if size > ANNOTATIONS_MAX {
        errors.too_long(path, ANNOTATIONS_MAX);
    }
}

fn owner_references(meta: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut controller: Option<String> = None;
    for owner in meta.list("ownerReferences") {
        let api_version = owner.text("apiVersion");
        if api_version.rsplit('/').next().unwrap_or_default().is_empty() {
            errors.invalid(&path.child("apiVersion"), api_version, "version must not be empty");
        }
        for name in ["kind", "name", "uid"] {
            if owner.text(name).is_empty() {
                errors.invalid(&path.child(name), "", "must not be empty");
            }
        }
        if api_version == "v1" && owner.text("kind") == "Event" {
            errors.invalid(path, owner.clone(), "/v1, Kind=Event is disallowed from being an owner");
        }
        if owner.is_true("controller") {
            let name = format!("{}/{}", owner.text("kind"), owner.text("name"));
            if let Some(first) = &controller {
                let all = meta.list("ownerReferences");
                errors.invalid(path, all, format!("Only one reference can have Controller set to true. Found \"true\" in references for {first} and {name}"));
            } else {
                controller = Some(name);
            }
        }
    }
}

fn finalizers(meta: &Value, path: &Path, errors: &mut FieldErrors) {
    let names: Vec<&str> = meta.list("finalizers").iter().filter_map(Value::as_str).collect();
    for name in &names {
        for fault in qualified_name_faults(name) {
            errors.invalid(path, *name, fault);
        }
    }
    if names.contains(&"orphan") && names.contains(&"foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.invalid(path, meta.list("finalizers"), detail);
    }
    for (i, name) in names.iter().enumerate() {
        kube_finalizer(name, &path.index(i), errors);
    }
}

/// A finalizer without a prefix must be one of the three that Kubernetes knows.
pub(crate) fn kube_finalizer(name: &str, path: &Path, errors: &mut FieldErrors) {
    if !name.contains('/') && !matches!(name, "kubernetes" | "orphan" | "foregroundDeletion") {
        errors.invalid(path, name, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

/// Rules for the metadata of a changed object.
pub fn object_meta_update(new: &Value, old: &Value) -> FieldErrors {
    let (new, old) = (metadata(new), metadata(old));
    let path = Path::new("metadata");
    let mut errors = FieldErrors::new();
    if old.field("deletionTimestamp").is_some() {
        no_new_finalizers(new, old, &path.child("finalizers"), &mut errors);
    }
    if new.text("resourceVersion").is_empty() {
        errors.invalid(&path.child("resourceVersion"), "", "must be specified for an update");
    }
    if new.int("generation").unwrap_or_default() < old.int("generation").unwrap_or_default() {
        let value = new.int("generation").unwrap_or_default();
        errors.invalid(&path.child("generation"), value, "must not be decremented");
    }
    for name in
        ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"]
    {
        // What a client leaves out the server fills in.
        if let Some(value) = new.field(name) {
            immutable(value, old.field(name).unwrap_or(&Value::Null), &path.child(name), &mut errors);
        }
    }
    labels(new, "labels", &path.child("labels"), &mut errors);
    annotations_of(new, &path.child("annotations"), &mut errors);
    owner_references(new, &path.child("ownerReferences"), &mut errors);
    for (i, name) in new.list("finalizers").iter().filter_map(Value::as_str).enumerate() {
        kube_finalizer(name, &path.child("finalizers").index(i), &mut errors);
    }
    errors
}

fn no_new_finalizers(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let known = old.list("finalizers");
    let mut extra: Vec<String> = new
        .list("finalizers")
        .iter()
        .filter(|f| !known.contains(f))
        .filter_map(Value::as_str)
        .map(super::quote)
        .collect();
    if !extra.is_empty() {
        extra.sort_unstable();
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            extra.join(", ")
        );
        errors.forbidden(path, detail);
    }
}

/// A field that must stay as it is.
pub(crate) fn immutable(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    if !semantically_equal(new, old) {
        errors.invalid(path, new.clone(), "field is immutable");
    }
}

/// A number that must not be below 0.
pub(crate) fn non_negative(value: Option<i64>, path: &Path, errors: &mut FieldErrors) {
    if let Some(value) = value.filter(|v| *v < 0) {
        errors.invalid(path, value, "must be greater than or equal to 0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::dns_subdomain_faults;
    use serde_json::json;

    fn check(meta: &Value) -> String {
        object_meta(&json!({"metadata": meta}), true, dns_subdomain_faults).to_string()
    }

    #[test]
    fn a_name_and_a_namespace_are_required() {
        assert_eq!(
            check(&json!({})),
            "[metadata.name: Required value: name or generateName is required, metadata.namespace: Required value]"
        );
        assert!(
            object_meta(&json!({"metadata": {"name": "a", "namespace": "b"}}), true, dns_subdomain_faults)
                .is_empty()
        );
        assert!(
            object_meta(
                &json!({"metadata": {"generateName": "a-", "name": "a-bcdfg", "namespace": "b"}}),
                true,
                dns_subdomain_faults
            )
            .is_empty()
        );
        let cluster_wide = json!({"metadata": {"name": "a", "namespace": "b"}});
        assert_eq!(
            object_meta(&cluster_wide, false, dns_subdomain_faults).to_string(),
            "metadata.namespace: Forbidden: not allowed on this type"
        );
    }

    #[test]
    fn labels_annotations_and_finalizers_are_checked() {
        let text =
            check(&json!({"name": "a", "namespace": "b", "labels": {"a b": "-"}, "finalizers": ["x"]}));
        assert!(text.contains("metadata.labels: Invalid value: \"a b\": name part must consist"), "{text}");
        assert!(text.contains("metadata.labels: Invalid value: \"-\": a valid label must be"), "{text}");
        assert!(text.ends_with("metadata.finalizers[0]: Invalid value: \"x\": name is neither a standard finalizer name nor is it fully qualified]"), "{text}");
        let big =
            check(&json!({"name": "a", "namespace": "b", "annotations": {"a": "x".repeat(ANNOTATIONS_MAX)}}));
        assert_eq!(big, "metadata.annotations: Too long: may not be more than 262144 bytes");
    }

    #[test]
    fn only_one_owner_controls() {
        let owner = |name: &str| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": "u", "controller": true});
        let text =
            check(&json!({"name": "a", "namespace": "b", "ownerReferences": [owner("x"), owner("y")]}));
        assert!(text.contains("Found \"true\" in references for Pod/x and Pod/y"), "{text}");
        let text = check(
            &json!({"name": "a", "namespace": "b", "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "x"}]}),
        );
        assert_eq!(text, "metadata.ownerReferences.uid: Invalid value: \"\": must not be empty");
    }

    #[test]
    fn identity_does_not_change() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "1"}});
        let new = json!({"metadata": {"name": "a", "uid": "2", "resourceVersion": "1"}});
        assert_eq!(
            object_meta_update(&new, &old).to_string(),
            "metadata.uid: Invalid value: \"2\": field is immutable"
        );
        let old = json!({"metadata": {"deletionTimestamp": "t", "finalizers": ["a/b"]}});
        let new = json!({"metadata": {"resourceVersion": "1", "finalizers": ["a/b", "c/d"]}});
        assert_eq!(
            object_meta_update(&new, &old).to_string(),
            "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{\"c/d\"}"
        );
    }
}
