//! Rules for roles and their bindings.

use serde_json::Value;

use super::meta::{object_meta, object_meta_update};
use super::volume::label_selector;
use super::{FieldErrors, Path, semantically_equal};
use crate::access::Access;
use crate::kind::Ctx;
use crate::name::dns_subdomain_faults;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Faults of a name that only has to fit into a path.
pub(crate) fn path_segment_faults(name: &str) -> Vec<String> {
    if matches!(name, "." | "..") {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"]
        .into_iter()
        .filter(|part| name.contains(part))
        .map(|part| format!("may not contain '{part}'"))
        .collect()
}

/// Rules for a new Role.
pub fn role(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, path_segment_faults);
    rules(object, true, &mut errors);
    errors
}

/// Rules for a changed Role.
pub fn role_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = role(new, ctx);
    errors.extend(object_meta_update(new, old));
    errors
}

/// Rules for a new `ClusterRole`.
pub fn cluster_role(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, path_segment_faults);
    rules(object, false, &mut errors);
    if let Some(aggregation) = object.field("aggregationRule") {
        let path = Path::new("aggregationRule").child("clusterRoleSelectors");
        let selectors = aggregation.list("clusterRoleSelectors");
        if selectors.is_empty() {
            let detail = "at least one clusterRoleSelector required if aggregationRule is non-nil";
            errors.required(&path, detail);
        }
        for (i, selector) in selectors.iter().enumerate() {
            label_selector(selector, &path.index(i), &mut errors);
        }
    }
    errors
}

/// Rules for a changed `ClusterRole`.
pub fn cluster_role_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = cluster_role(new, ctx);
    errors.extend(object_meta_update(new, old));
    errors
}

fn rules(object: &Value, is_namespaced: bool, errors: &mut FieldErrors) {
    for (i, rule) in object.list("rules").iter().enumerate() {
        let path = Path::new("rules").index(i);
        if rule.list("verbs").is_empty() {
            errors.required(&path.child("verbs"), "verbs must contain at least one value");
        }
        let urls = rule.list("nonResourceURLs");
        if !urls.is_empty() {
            let path = path.child("nonResourceURLs");
            if is_namespaced {
                errors.invalid(&path, urls, "namespaced rules cannot apply to non-resource URLs");
            }
            if ["apiGroups", "resources", "resourceNames"].iter().any(|name| !rule.list(name).is_empty()) {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.invalid(&path, urls, detail);
            }
            continue;
        }
        for (name, what) in [("apiGroups", "api group"), ("resources", "resource")] {
            if rule.list(name).is_empty() {
                errors.required(&path.child(name), format!("resource rules must supply at least one {what}"));
            }
        }
    }
}

/// Rules for a new `RoleBinding`.
pub fn role_binding(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, path_segment_faults);
    binding(object, true, &mut errors);
    errors
}

/// Rules for a new `ClusterRoleBinding`.
pub fn cluster_role_binding(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, path_segment_faults);
    binding(object, false, &mut errors);
    errors
}

fn binding(object: &Value, is_namespaced: bool, errors: &mut FieldErrors) {
    let null = Value::Null;
    let role = object.field("roleRef").unwrap_or(&null);
    let path = Path::new("roleRef");
    if role.text("apiGroup") != GROUP {
        errors.not_supported(&path.child("apiGroup"), role.text("apiGroup"), &[GROUP]);
    }
    let kinds: &[&str] = if is_namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&role.text("kind")) {
        errors.not_supported(&path.child("kind"), role.text("kind"), kinds);
    }
    if role.text("name").is_empty() {
        errors.required(&path.child("name"), "");
    }
    for fault in path_segment_faults(role.text("name")) {
        errors.invalid(&path.child("name"), role.text("name"), fault);
    }
    for (i, subject) in object.list("subjects").iter().enumerate() {
        subject_rules(subject, is_namespaced, &Path::new("subjects").index(i), errors);
    }
}

fn subject_rules(subject: &Value, is_namespaced: bool, path: &Path, errors: &mut FieldErrors) {
    let (name, group) = (subject.text("name"), subject.text("apiGroup"));
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    }
    match subject.text("kind") {
        "ServiceAccount" => {
            for fault in dns_subdomain_faults(name).into_iter().filter(|_| !name.is_empty()) {
                errors.invalid(&path.child("name"), name, fault);
            }
            if !group.is_empty() {
                errors.not_supported(&path.child("apiGroup"), group, &[""]);
            }
            if !is_namespaced && subject.text("namespace").is_empty() {
                errors.required(&path.child("namespace"), "");
            }
        }
        "User" | "Group" if group != GROUP => {
            errors.not_supported(&path.child("apiGroup"), group, &[GROUP]);
        }
        "User" | "Group" => {}
        other => errors.not_supported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"]),
    }
}

fn same_role(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let role = |object: &Value| object.field("roleRef").cloned().unwrap_or_default();
    if !semantically_equal(&role(new), &role(old)) {
        errors.invalid(&Path::new("roleRef"), role(new), "cannot change roleRef");
    }
    errors.extend(object_meta_update(new, old));
}

/// Rules for a changed `RoleBinding`: it gives the same role.
pub fn role_binding_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = role_binding(new, ctx);
    same_role(new, old, &mut errors);
    errors
}

/// Rules for a changed `ClusterRoleBinding`: it gives the same role.
pub fn cluster_role_binding_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = cluster_role_binding(new, ctx);
    same_role(new, old, &mut errors);
    errors
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
    fn a_rule_says_who_may_do_what_to_what() {
        let check = |rule: Value| {
            role(&json!({"metadata": {"name": "system:r", "namespace": "d"}, "rules": [rule]}), &ctx())
                .to_string()
        };
        assert_eq!(check(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]})), "[]");
        assert_eq!(
            check(json!({"verbs": ["get"]})),
            "[rules[0].apiGroups: Required value: resource rules must supply at least one api group, rules[0].resources: Required value: resource rules must supply at least one resource]"
        );
        assert_eq!(
            check(json!({"verbs": ["get"], "nonResourceURLs": ["/x"]})),
            "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs"
        );
    }

    #[test]
    fn a_binding_keeps_its_role() {
        let binding = |role: &str| {
            json!({"metadata": {"name": "b", "namespace": "d", "resourceVersion": "1"},
                "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": role},
                "subjects": [{"kind": "User", "name": "u", "apiGroup": GROUP}]})
        };
        assert_eq!(role_binding(&binding("r"), &ctx()).to_string(), "[]");
        assert!(
            role_binding_update(&binding("s"), &binding("r"), &ctx())
                .to_string()
                .ends_with("cannot change roleRef")
        );
        let bad = json!({"metadata": {"name": "b", "namespace": "d"}, "roleRef": {"apiGroup": GROUP, "kind": "Pod", "name": "a/b"}});
        assert_eq!(
            role_binding(&bad, &ctx()).to_string(),
            "[roleRef.kind: Unsupported value: \"Pod\": supported values: \"Role\", \"ClusterRole\", roleRef.name: Invalid value: \"a/b\": may not contain '/']"
        );
    }
}
