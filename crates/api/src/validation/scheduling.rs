//! Rules for what decides where a Pod may run: tolerations, affinity, spread, taints.

use serde_json::Value;

use super::meta::label_name;
use super::volume::label_selector;
use super::{FieldErrors, Path};
use crate::access::Access;
use crate::name::{dns_label_faults, dns_subdomain_faults, label_value_faults, qualified_name_faults};

const EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Rules for tolerations.
pub(crate) fn tolerations(list: &[Value], path: &Path, errors: &mut FieldErrors) {
    for (i, toleration) in list.iter().enumerate() {
        let path = path.index(i);
        let (key, operator) = (toleration.text("key"), toleration.text("operator"));
        let (value, effect) = (toleration.text("value"), toleration.text("effect"));
        let at = path.child("operator");
        if !key.is_empty() {
            label_name(key, &path.child("key"), errors);
        } else if operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.invalid(&at, operator, detail);
        }
        if toleration.field("tolerationSeconds").is_some() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.invalid(&path.child("effect"), effect, detail);
        }
        match operator {
            "Equal" | "" => {
                let faults = label_value_faults(value);
                if !faults.is_empty() {
                    errors.invalid(&at, value, faults.join(";"));
                }
            }
            "Exists" if !value.is_empty() => {
                errors.invalid(&at, value, "value must be empty when `operator` is 'Exists'");
            }
            "Exists" => {}
            "Lt" | "Gt" => errors.not_supported(&at, operator, &["Equal", "Exists", "Lt", "Gt"]),
            other => errors.not_supported(&at, other, &["Equal", "Exists"]),
        }
        if !effect.is_empty() && !EFFECTS.contains(&effect) {
            errors.not_supported(&path.child("effect"), effect, EFFECTS);
        }
    }
}

/// An update may add tolerations and change `tolerationSeconds` of those there are.
pub(crate) fn only_added_tolerations(new: &[Value], old: &[Value], path: &Path, errors: &mut FieldErrors) {
    let is_same =
        |a: &Value, b: &Value| ["key", "operator", "value", "effect"].iter().all(|f| a.text(f) == b.text(f));
    if old.iter().any(|o| !new.iter().any(|n| is_same(n, o))) {
        errors.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
        return;
    }
    tolerations(new, path, errors);
}

/// Rules for the taints of a node.
pub(crate) fn taints(list: &[Value], path: &Path, errors: &mut FieldErrors) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (i, taint) in list.iter().enumerate() {
        let path = path.index(i);
        let (key, effect) = (taint.text("key"), taint.text("effect"));
        label_name(key, &path.child("key"), errors);
        let faults = label_value_faults(taint.text("value"));
        if !faults.is_empty() {
            errors.invalid(&path.child("value"), taint.text("value"), faults.join(";"));
        }
        if effect.is_empty() {
            errors.required(&path.child("effect"), "");
        } else if !EFFECTS.contains(&effect) {
            errors.not_supported(&path.child("effect"), effect, EFFECTS);
        }
        if seen.contains(&(key, effect)) {
            let detail = "taints must be unique by key and effect pair";
            errors.push(super::ErrorKind::Duplicate, &path, Some(taint.clone()), detail);
        }
        seen.push((key, effect));
    }
}

/// Rules for `affinity`.
pub(crate) fn affinity(affinity: &Value, path: &Path, errors: &mut FieldErrors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(node) = affinity.field("nodeAffinity") {
        let path = path.child("nodeAffinity");
        if let Some(required) = node.field(REQUIRED) {
            node_selector(required, &path.child(REQUIRED), errors);
        }
        for (i, term) in node.list(PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(i);
            weight(term, &path, errors);
            if let Some(preference) = term.field("preference") {
                node_selector_term(preference, &path.child("preference"), errors);
            }
        }
    }
    for name in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = affinity.field(name) else { continue };
        let path = path.child(name);
        for (i, term) in pods.list(REQUIRED).iter().enumerate() {
            pod_term(term, &path.child(REQUIRED).index(i), errors);
        }
        for (i, term) in pods.list(PREFERRED).iter().enumerate() {
            let path = path.child(PREFERRED).index(i);
            weight(term, &path, errors);
            if let Some(inner) = term.field("podAffinityTerm") {
                pod_term(inner, &path.child("podAffinityTerm"), errors);
            }
        }
    }
}

fn weight(term: &Value, path: &Path, errors: &mut FieldErrors) {
    let weight = term.int("weight").unwrap_or_default();
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

fn node_selector(selector: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("nodeSelectorTerms");
    let terms = selector.list("nodeSelectorTerms");
    if terms.is_empty() {
        errors.required(&path, "must have at least one node selector term");
    }
    for (i, term) in terms.iter().enumerate() {
        node_selector_term(term, &path.index(i), errors);
    }
}

fn node_selector_term(term: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, requirement) in term.list("matchExpressions").iter().enumerate() {
        node_requirement(requirement, &path.child("matchExpressions").index(i), errors);
    }
    for (i, requirement) in term.list("matchFields").iter().enumerate() {
        node_field(requirement, &path.child("matchFields").index(i), errors);
    }
}

fn node_requirement(requirement: &Value, path: &Path, errors: &mut FieldErrors) {
    let values = requirement.list("values");
    let at = path.child("values");
    match requirement.text("operator") {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(&at, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            errors.forbidden(&at, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "Gt" | "Lt" if values.len() != 1 => {
            errors.required(&at, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    label_name(requirement.text("key"), &path.child("key"), errors);
    for (i, value) in values.iter().filter_map(Value::as_str).enumerate() {
        for fault in label_value_faults(value) {
            errors.invalid(&at.index(i), value, fault);
        }
    }
}

fn node_field(requirement: &Value, path: &Path, errors: &mut FieldErrors) {
    let values = requirement.list("values");
    match requirement.text("operator") {
        "In" | "NotIn" if values.len() != 1 => {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.required(&path.child("values"), detail);
        }
        "In" | "NotIn" => {}
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    if requirement.text("key") != "metadata.name" {
        errors.invalid(&path.child("key"), requirement.text("key"), "not a valid field selector key");
        return;
    }
    for (i, value) in values.iter().filter_map(Value::as_str).enumerate() {
        for fault in dns_subdomain_faults(value) {
            errors.invalid(&path.child("values").index(i), value, fault);
        }
    }
}

fn pod_term(term: &Value, path: &Path, errors: &mut FieldErrors) {
    for name in ["labelSelector", "namespaceSelector"] {
        if let Some(selector) = term.field(name) {
            label_selector(selector, &path.child(name), errors);
        }
    }
    for namespace in term.list("namespaces").iter().filter_map(Value::as_str) {
        for fault in dns_label_faults(namespace) {
            errors.invalid(&path.child("namespace"), namespace, fault);
        }
    }
    let key = term.text("topologyKey");
    if key.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    }
    label_name(key, &path.child("topologyKey"), errors);
}

/// Rules for topology spread constraints.
pub(crate) fn topology_spread(list: &[Value], path: &Path, errors: &mut FieldErrors) {
    for (i, constraint) in list.iter().enumerate() {
        let path = path.index(i);
        let skew = constraint.int("maxSkew").unwrap_or_default();
        if skew <= 0 {
            errors.invalid(&path.child("maxSkew"), skew, "must be greater than zero");
        }
        if constraint.text("topologyKey").is_empty() {
            errors.required(&path.child("topologyKey"), "can not be empty");
        }
        let action = constraint.text("whenUnsatisfiable");
        if !matches!(action, "DoNotSchedule" | "ScheduleAnyway") {
            let supported = &["DoNotSchedule", "ScheduleAnyway"];
            errors.not_supported(&path.child("whenUnsatisfiable"), action, supported);
        }
        if let Some(selector) = constraint.field("labelSelector") {
            label_selector(selector, &path.child("labelSelector"), errors);
        }
    }
}

/// Rules for readiness gates.
pub(crate) fn readiness_gates(list: &[Value], path: &Path, errors: &mut FieldErrors) {
    for (i, gate) in list.iter().enumerate() {
        for fault in qualified_name_faults(gate.text("conditionType")) {
            errors.invalid(&path.index(i).child("conditionType"), gate.text("conditionType"), fault);
        }
    }
}

/// Rules for scheduling gates.
pub(crate) fn scheduling_gates(list: &[Value], path: &Path, errors: &mut FieldErrors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, gate) in list.iter().enumerate() {
        let name = gate.text("name");
        for fault in qualified_name_faults(name) {
            errors.invalid(&path.index(i), name, fault);
        }
        if seen.contains(&name) {
            errors.duplicate(&path.index(i), name);
        }
        seen.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(f: impl Fn(&mut FieldErrors)) -> Vec<String> {
        let mut errors = FieldErrors::new();
        f(&mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tolerations_say_what_they_tolerate() {
        let check = |t: Value| texts(|e| tolerations(std::slice::from_ref(&t), &Path::new("t"), e));
        assert!(
            check(json!({"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"})).is_empty()
        );
        assert!(check(json!({"operator": "Exists"})).is_empty());
        assert_eq!(
            check(json!({"value": "b"})),
            [
                "t[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\""
            ]
        );
        assert_eq!(
            check(json!({"key": "a", "operator": "Exists", "tolerationSeconds": 5})),
            ["t[0].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set"]
        );
    }

    #[test]
    fn tolerations_can_only_be_added() {
        let old =
            [json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})];
        let longer = [
            json!({"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}),
            json!({"operator": "Exists"}),
        ];
        assert!(texts(|e| only_added_tolerations(&longer, &old, &Path::new("t"), e)).is_empty());
        assert_eq!(
            texts(|e| only_added_tolerations(&[], &old, &Path::new("t"), e)),
            ["t: Forbidden: existing toleration can not be modified except its tolerationSeconds"]
        );
    }

    #[test]
    fn affinity_has_terms_and_weights() {
        let bad = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []},
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "preference": {"matchExpressions": [{"key": "a", "operator": "In"}]}}]}});
        assert_eq!(
            texts(|e| affinity(&bad, &Path::new("a"), e)),
            [
                "a.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term",
                "a.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be in the range 1-100",
                "a.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].preference.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
            ]
        );
    }

    #[test]
    fn taints_are_unique_by_key_and_effect() {
        let list = [json!({"key": "a", "effect": "NoSchedule"}), json!({"key": "a", "effect": "NoSchedule"})];
        assert_eq!(
            texts(|e| taints(&list, &Path::new("t"), e)),
            [
                "t[1]: Duplicate value: {\"key\":\"a\",\"effect\":\"NoSchedule\"}: taints must be unique by key and effect pair"
            ]
        );
    }
}
