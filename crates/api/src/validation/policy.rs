//! Rules for what limits and ranks: disruption budgets, autoscalers, quotas, limit ranges, priority and runtime classes.

use serde_json::Value;

use super::meta::{object_meta, object_meta_update};
use super::resource::{quantity, quantity_value};
use super::rule::{absent_or_one_of, at_most_all, immutables, int_or_percent, non_negatives, required};
use super::volume::label_selector;
use super::{FieldErrors, Path};
use crate::access::{Access, metadata, spec, status};
use crate::kind::Ctx;
use crate::name::{dns_label_faults, dns_subdomain_faults, qualified_name_faults};
use crate::quantity::Quantity;

/// The highest priority that users may give; more is the system's.
const HIGHEST_PRIORITY: i64 = 1_000_000_000;

static NULL: Value = Value::Null;

fn field<'a>(object: &'a Value, name: &str) -> &'a Value {
    object.field(name).unwrap_or(&NULL)
}

/// Rules for a new `PodDisruptionBudget`.
pub fn disruption_budget(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    let (path, spec) = (Path::new("spec"), spec(object));
    if spec.field("minAvailable").is_some() && spec.field("maxUnavailable").is_some() {
        errors.invalid(&path, spec.clone(), "minAvailable and maxUnavailable cannot be both set");
    }
    for name in ["minAvailable", "maxUnavailable"] {
        if let Some(amount) = spec.field(name) {
            int_or_percent(amount, &path.child(name), &mut errors);
            at_most_all(amount, &path.child(name), &mut errors);
        }
    }
    label_selector(field(spec, "selector"), &path.child("selector"), &mut errors);
    absent_or_one_of(
        spec,
        "unhealthyPodEvictionPolicy",
        &["AlwaysAllow", "IfHealthyBudget"],
        &path,
        &mut errors,
    );
    errors
}

/// Rules for a changed `PodDisruptionBudget`.
pub fn disruption_budget_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = disruption_budget(new, ctx);
    errors.extend(object_meta_update(new, old));
    errors
}

/// Rules for a write to the status of a `PodDisruptionBudget`.
pub fn disruption_budget_status(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    let counts = ["disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"];
    non_negatives(status(new), &counts, &Path::new("status"), &mut errors);
    errors
}

/// Rules for a new autoscaler, in its v2 form.
pub fn autoscaler(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    autoscaler_spec(spec(object), &mut errors);
    errors
}

fn autoscaler_spec(spec: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    let least = spec.int("minReplicas");
    if let Some(least) = least.filter(|least| *least < 1) {
        errors.invalid(&path.child("minReplicas"), least, "must be greater than or equal to 1");
    }
    let most = spec.int("maxReplicas").unwrap_or_default();
    if most < 1 {
        errors.invalid(&path.child("maxReplicas"), most, "must be greater than 0");
    }
    if least.is_some_and(|least| most < least) {
        let detail = "must be greater than or equal to `minReplicas`";
        errors.invalid(&path.child("maxReplicas"), most, detail);
    }
    let target = field(spec, "scaleTargetRef");
    for name in ["kind", "name"] {
        let path = path.child("scaleTargetRef").child(name);
        if target.text(name).is_empty() {
            errors.required(&path, "");
        }
        for fault in super::rbac::path_segment_faults(target.text(name)) {
            errors.invalid(&path, target.text(name), fault);
        }
    }
    for (i, metric) in spec.list("metrics").iter().enumerate() {
        metric_rules(metric, &path.child("metrics").index(i), errors);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = field(field(spec, "behavior"), direction);
        behavior(rules, &path.child("behavior").child(direction), errors);
    }
}

fn metric_rules(metric: &Value, path: &Path, errors: &mut FieldErrors) {
    const KINDS: &[(&str, &str)] = &[
        ("ContainerResource", "containerResource"),
        ("External", "external"),
        ("Object", "object"),
        ("Pods", "pods"),
        ("Resource", "resource"),
    ];
    let kind = metric.text("type");
    let Some((_, source)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        if kind.is_empty() {
            errors.required(&path.child("type"), "must specify a metric source type");
        } else {
            let names: Vec<&str> = KINDS.iter().map(|(name, _)| *name).collect();
            errors.not_supported(&path.child("type"), kind, &names);
        }
        return;
    };
    if metric.field(source).is_none() {
        errors.required(&path.child(source), "must populate information for the given metric source");
    }
    for (_, other) in KINDS.iter().filter(|(_, other)| other != source && metric.field(other).is_some()) {
        errors.forbidden(&path.child(other), "must populate the given metric source only");
    }
    let below = path.child(source);
    let value = field(metric, source);
    if matches!(*source, "resource" | "containerResource") && value.text("name").is_empty() {
        errors.required(&below.child("name"), "must specify a resource name");
    }
    target(field(value, "target"), &below.child("target"), errors);
}

fn target(target: &Value, path: &Path, errors: &mut FieldErrors) {
    match target.text("type") {
        "" => errors.required(&path.child("type"), "must specify a metric target type"),
        "Utilization" | "Value" | "AverageValue" => {}
        other => {
            errors.invalid(&path.child("type"), other, "must be either Utilization, Value, or AverageValue");
        }
    }
    for name in ["value", "averageValue"] {
        let amount = target.field(name).and_then(quantity);
        if amount.is_some_and(|amount| amount <= Quantity::ZERO) {
            errors.invalid(
                &path.child(name),
                target.field(name).cloned().unwrap_or_default(),
                "must be positive",
            );
        }
    }
    if let Some(percent) = target.int("averageUtilization").filter(|percent| *percent < 1) {
        errors.invalid(&path.child("averageUtilization"), percent, "must be greater than 0");
    }
}

fn behavior(rules: &Value, path: &Path, errors: &mut FieldErrors) {
    const LONGEST_WINDOW: i64 = 3600;
    const LONGEST_PERIOD: i64 = 1800;
    non_negatives(rules, &["stabilizationWindowSeconds"], path, errors);
    if let Some(seconds) = rules.int("stabilizationWindowSeconds").filter(|s| *s > LONGEST_WINDOW) {
        let detail = format!("must be less than or equal to {LONGEST_WINDOW}");
        errors.invalid(&path.child("stabilizationWindowSeconds"), seconds, detail);
    }
    absent_or_one_of(rules, "selectPolicy", &["Disabled", "Max", "Min"], path, errors);
    for (i, policy) in rules.list("policies").iter().enumerate() {
        let path = path.child("policies").index(i);
        if !matches!(policy.text("type"), "Pods" | "Percent") {
            errors.not_supported(&path.child("type"), policy.text("type"), &["Percent", "Pods"]);
        }
        for name in ["value", "periodSeconds"] {
            if let Some(number) = policy.int(name).filter(|number| *number <= 0) {
                errors.invalid(&path.child(name), number, "must be greater than zero");
            }
        }
        if let Some(seconds) = policy.int("periodSeconds").filter(|s| *s > LONGEST_PERIOD) {
            let detail = format!("must be less than or equal to {LONGEST_PERIOD}");
            errors.invalid(&path.child("periodSeconds"), seconds, detail);
        }
    }
}

/// Rules for a changed autoscaler.
pub fn autoscaler_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    autoscaler_spec(spec(new), &mut errors);
    errors
}

/// Rules for a new `ResourceQuota`.
pub fn quota(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    let path = Path::new("spec");
    quota_amounts(spec(object), "hard", &path, &mut errors);
    scopes(spec(object), &path.child("scopes"), &mut errors);
    errors
}

fn quota_amounts(object: &Value, name: &str, path: &Path, errors: &mut FieldErrors) {
    for (resource, amount) in object.map(name).into_iter().flatten() {
        let path = path.child(name).key(resource);
        for fault in qualified_name_faults(resource) {
            errors.invalid(&path, resource.as_str(), fault);
        }
        if !resource.contains('/') && !is_quota_resource(resource) {
            errors.invalid(&path, resource.as_str(), "must be a standard resource for quota");
        }
        quantity_value(resource, amount, &path, errors);
    }
}

fn is_quota_resource(name: &str) -> bool {
    let bare = name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
    matches!(bare, "cpu" | "memory" | "ephemeral-storage" | "storage")
        || bare.starts_with("hugepages-")
        || matches!(
            name,
            "pods"
                | "services"
                | "replicationcontrollers"
                | "resourcequotas"
                | "secrets"
                | "configmaps"
                | "persistentvolumeclaims"
                | "services.nodeports"
                | "services.loadbalancers"
        )
}

fn scopes(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    const KNOWN: [&str; 7] = [
        "Terminating",
        "NotTerminating",
        "BestEffort",
        "NotBestEffort",
        "PriorityClass",
        "CrossNamespacePodAffinity",
        "VolumeAttributesClass",
    ];
    let scopes = spec.list("scopes");
    let has = |name: &str| scopes.iter().any(|scope| scope == name);
    for scope in scopes {
        if !KNOWN.contains(&scope.as_str().unwrap_or_default()) {
            errors.invalid(path, scopes, "unsupported scope");
        }
    }
    if (has("BestEffort") && has("NotBestEffort")) || (has("Terminating") && has("NotTerminating")) {
        errors.invalid(path, scopes, "conflicting scopes");
    }
}

/// Rules for a changed `ResourceQuota`: its scopes stay.
pub fn quota_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(quota(new, ctx));
    immutables(spec(new), spec(old), &["scopes"], &Path::new("spec"), &mut errors);
    errors
}

/// Rules for a write to the status of a `ResourceQuota`.
pub fn quota_status(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    for name in ["hard", "used"] {
        quota_amounts(status(new), name, &Path::new("status"), &mut errors);
    }
    errors
}

/// Rules for a new `LimitRange`.
pub fn limit_range(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    let limits = spec(object).list("limits");
    for (i, limit) in limits.iter().enumerate() {
        let path = Path::new("spec").child("limits").index(i);
        let kind = limit.text("type");
        required(limit, "type", &path, &mut errors);
        if limits.iter().take(i).any(|earlier| earlier.text("type") == kind) {
            errors.duplicate(&path.child("type"), kind);
        }
        if kind == "Pod" {
            for name in ["default", "defaultRequest"] {
                if limit.map(name).is_some_and(|amounts| !amounts.is_empty()) {
                    errors.forbidden(&path.child(name), "may not be specified when `type` is 'Pod'");
                }
            }
        }
        let storage = |name: &str| limit.map(name).is_some_and(|amounts| amounts.contains_key("storage"));
        if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            errors.required(&path.child("limits"), detail);
        }
        bounds(limit, &path, &mut errors);
    }
    errors
}

/// That what is less is less: `(lower, its name, higher, its name, the field that is refused)`.
fn bounds(limit: &Value, path: &Path, errors: &mut FieldErrors) {
    const ORDER: [(&str, &str, &str, &str, &str); 6] = [
        ("min", "min value", "max", "max value", "min"),
        ("min", "min value", "defaultRequest", "default request value", "defaultRequest"),
        ("defaultRequest", "default request value", "max", "max value", "defaultRequest"),
        ("defaultRequest", "default request value", "default", "default limit value", "defaultRequest"),
        ("min", "min value", "default", "default value", "default"),
        ("default", "default value", "max", "max value", "default"),
    ];
    let amount = |list: &str, name: &str| limit.map(list).and_then(|all| all.get(name)).and_then(quantity);
    let mut names: Vec<&String> = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"]
        .iter()
        .filter_map(|list| limit.map(list))
        .flat_map(serde_json::Map::keys)
        .collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        for (low, low_name, high, high_name, refused) in ORDER {
            if let (Some(less), Some(more)) = (amount(low, name), amount(high, name))
                && less > more
            {
                let detail = format!("{low_name} {less} is greater than {high_name} {more}");
                let value = amount(refused, name).unwrap_or(less).to_string();
                errors.invalid(&path.child(refused).key(name), value, detail);
            }
        }
        if let Some(ratio) =
            amount("maxLimitRequestRatio", name).filter(|ratio| *ratio < Quantity::from_units(1))
        {
            let path = path.child("maxLimitRequestRatio").key(name);
            errors.invalid(&path, ratio.to_string(), format!("ratio {ratio} is less than 1"));
        }
    }
}

/// Rules for a changed `LimitRange`.
pub fn limit_range_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(limit_range(new, ctx));
    errors
}

/// Rules for a new `PriorityClass`.
pub fn priority_class(object: &Value, _ctx: &Ctx) -> FieldErrors {
    const SYSTEM: [(&str, i64); 2] =
        [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];
    let mut errors = object_meta(object, false, dns_subdomain_faults);
    let name = metadata(object).text("name");
    let value = object.int("value").unwrap_or_default();
    if name.starts_with("system-") {
        if !SYSTEM.contains(&(name, value)) {
            let detail = "priority class names with 'system-' prefix are reserved for system use only. error: only system-node-critical and system-cluster-critical with their own values are known";
            errors.forbidden(&Path::new("metadata").child("name"), detail);
        }
    } else if value > HIGHEST_PRIORITY {
        let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_PRIORITY}");
        errors.forbidden(&Path::new("value"), detail);
    }
    absent_or_one_of(
        object,
        "preemptionPolicy",
        &["Never", "PreemptLowerPriority"],
        &Path::root(),
        &mut errors,
    );
    errors
}

/// Rules for a changed `PriorityClass`: its value stays.
pub fn priority_class_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    if new.int("value") != old.int("value") {
        errors.forbidden(&Path::new("value"), "may not be changed in an update.");
    }
    immutables(new, old, &["preemptionPolicy"], &Path::root(), &mut errors);
    errors
}

/// Rules for a new `RuntimeClass`.
pub fn runtime_class(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, dns_subdomain_faults);
    let handler = object.text("handler");
    if handler.is_empty() {
        errors.required(&Path::new("handler"), "");
    } else {
        for fault in dns_label_faults(handler) {
            errors.invalid(&Path::new("handler"), handler, fault);
        }
    }
    let path = Path::new("overhead").child("podFixed");
    for (name, amount) in field(object, "overhead").map("podFixed").into_iter().flatten() {
        quantity_value(name, amount, &path.key(name), &mut errors);
    }
    errors
}

/// Rules for a changed `RuntimeClass`: its handler stays.
pub fn runtime_class_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    immutables(new, old, &["handler"], &Path::root(), &mut errors);
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

    fn meta() -> Value {
        json!({"name": "a", "namespace": "d", "resourceVersion": "1"})
    }

    #[test]
    fn a_budget_says_one_thing() {
        let check =
            |spec: Value| disruption_budget(&json!({"metadata": meta(), "spec": spec}), &ctx()).to_string();
        assert_eq!(check(json!({"minAvailable": "50%"})), "[]");
        assert!(
            check(json!({"minAvailable": 1, "maxUnavailable": 1}))
                .ends_with("minAvailable and maxUnavailable cannot be both set")
        );
        assert_eq!(
            check(json!({"maxUnavailable": "200%"})),
            "spec.maxUnavailable: Invalid value: \"200%\": must not be greater than 100%"
        );
    }

    #[test]
    fn an_autoscaler_has_bounds_and_a_target() {
        let check = |spec: Value| autoscaler(&json!({"metadata": meta(), "spec": spec}), &ctx()).to_string();
        let target = json!({"kind": "Deployment", "name": "d"});
        assert_eq!(check(json!({"minReplicas": 1, "maxReplicas": 3, "scaleTargetRef": target})), "[]");
        assert_eq!(
            check(json!({"minReplicas": 4, "maxReplicas": 3, "scaleTargetRef": target})),
            "spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"
        );
        assert_eq!(
            check(json!({"maxReplicas": 3, "scaleTargetRef": target, "metrics": [{"type": "Resource"}]})),
            "[spec.metrics[0].resource: Required value: must populate information for the given metric source, spec.metrics[0].resource.name: Required value: must specify a resource name, spec.metrics[0].resource.target.type: Required value: must specify a metric target type]"
        );
    }

    #[test]
    fn quotas_are_of_known_resources() {
        let check = |spec: Value| quota(&json!({"metadata": meta(), "spec": spec}), &ctx()).to_string();
        assert_eq!(
            check(
                json!({"hard": {"pods": "3", "requests.cpu": "1", "count/jobs.batch": "2", "limits.memory": "1Gi"}})
            ),
            "[]"
        );
        assert_eq!(
            check(json!({"hard": {"fish": "3"}})),
            "spec.hard[fish]: Invalid value: \"fish\": must be a standard resource for quota"
        );
        assert!(check(json!({"scopes": ["BestEffort", "NotBestEffort"]})).contains("conflicting scopes"));
    }

    #[test]
    fn limits_are_in_order() {
        let check = |limit: Value| {
            limit_range(&json!({"metadata": meta(), "spec": {"limits": [limit]}}), &ctx()).to_string()
        };
        assert_eq!(check(json!({"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}})), "[]");
        assert_eq!(
            check(json!({"type": "Container", "min": {"cpu": "3"}, "max": {"cpu": "2"}})),
            "spec.limits[0].min[cpu]: Invalid value: \"3\": min value 3 is greater than max value 2"
        );
        assert!(
            check(json!({"type": "Pod", "default": {"cpu": "1"}}))
                .contains("may not be specified when `type` is 'Pod'")
        );
    }

    #[test]
    fn a_priority_stays() {
        let class =
            |value: i64| json!({"metadata": {"name": "high", "resourceVersion": "1"}, "value": value});
        assert_eq!(priority_class(&class(5), &ctx()).to_string(), "[]");
        assert_eq!(
            priority_class_update(&class(6), &class(5), &ctx()).to_string(),
            "value: Forbidden: may not be changed in an update."
        );
        assert!(
            priority_class(&class(2_000_000_000), &ctx())
                .to_string()
                .contains("maximum allowed value of a user defined priority is 1000000000")
        );
    }
}
