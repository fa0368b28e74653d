//! Rules for resource requests and limits.

use serde_json::Value;

use super::{FieldErrors, Path};
use crate::access::Access;
use crate::name::qualified_name_faults;
use crate::quantity::Quantity;

const NATIVE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
const HUGE_PAGES: &str = "hugepages-";

/// Rules for the `resources` of a container.
pub(crate) fn container_resources(resources: &Value, path: &Path, errors: &mut FieldErrors) {
    let (limits, requests) = (path.child("limits"), path.child("requests"));
    let mut seen = Seen::default();
    for (name, value) in resources.map("limits").into_iter().flatten() {
        check(name, value, &limits.key(name), errors);
        seen.note(name);
    }
    for (name, value) in resources.map("requests").into_iter().flatten() {
        check(name, value, &requests.key(name), errors);
        seen.note(name);
        let limit = resources.map("limits").and_then(|l| l.get(name)).and_then(quantity);
        request_against_limit(name, value, limit, (&requests, &limits), errors);
    }
    if seen.has_huge_pages && !seen.has_cpu_or_memory {
        errors.forbidden(path, "HugePages require cpu or memory");
    }
}

#[derive(Default)]
struct Seen {
    has_cpu_or_memory: bool,
    has_huge_pages: bool,
}

impl Seen {
    fn note(&mut self, name: &str) {
        self.has_cpu_or_memory |= matches!(name, "cpu" | "memory");
        self.has_huge_pages |= name.starts_with(HUGE_PAGES);
    }
}

fn request_against_limit(
    name: &str,
    value: &Value,
    limit: Option<Quantity>,
    paths: (&Path, &Path),
    errors: &mut FieldErrors,
) {
    let Some(request) = quantity(value) else { return };
    let (requests, limits) = paths;
    match limit {
        Some(limit) if !is_overcommit_allowed(name) && request != limit => {
            errors.invalid(
                requests,
                request.to_string(),
                format!("must be equal to {name} limit of {limit}"),
            );
        }
        Some(limit) if request > limit => {
            let detail = format!("must be less than or equal to {name} limit of {limit}");
            errors.invalid(requests, request.to_string(), detail);
        }
        None if !is_overcommit_allowed(name) => {
            errors.required(limits, "Limit must be set for non overcommitable resources");
        }
        _ => {}
    }
}

fn check(name: &str, value: &Value, path: &Path, errors: &mut FieldErrors) {
    resource_name(name, path, errors);
    quantity_value(name, value, path, errors);
}

/// A quantity that is not negative, and whole where only whole things exist.
pub(crate) fn quantity_value(name: &str, value: &Value, path: &Path, errors: &mut FieldErrors) {
    let Some(amount) = quantity(value) else {
        let detail = value.as_str().and_then(|v| v.parse::<Quantity>().err()).map(|e| e.to_string());
        errors.invalid(path, value.clone(), detail.unwrap_or_default());
        return;
    };
    if amount.is_negative() {
        errors.invalid(path, amount.to_string(), "must be greater than or equal to 0");
    }
    if is_whole_only(name) && !amount.is_whole() {
        errors.invalid(path, value.clone(), "must be an integer");
    }
    if let Some(size) = name.strip_prefix(HUGE_PAGES).and_then(|s| s.parse::<Quantity>().ok())
        && (size.is_zero() || amount.units() % size.units().max(1) != 0)
    {
        errors.invalid(
            path,
            amount.to_string(),
            format!("{amount} is not positive integer multiple of {name}"),
        );
    }
}

fn resource_name(name: &str, path: &Path, errors: &mut FieldErrors) {
    let faults = qualified_name_faults(name);
    if !faults.is_empty() {
        for fault in faults {
            errors.invalid(path, name, fault);
        }
        return;
    }
    if !name.contains('/') {
        if !is_standard(name) {
            errors.invalid(path, name, "must be a standard resource type or fully qualified");
        }
        if !NATIVE.contains(&name) && !name.starts_with(HUGE_PAGES) {
            errors.invalid(path, name, "must be a standard resource for containers");
        }
    } else if !is_native(name) && !is_extended(name) {
        errors.invalid(path, name, "doesn't follow extended resource name standard");
    }
}

fn is_standard(name: &str) -> bool {
    NATIVE.contains(&name)
        || name.starts_with(HUGE_PAGES)
        || name.starts_with("requests.")
        || name.starts_with("limits.")
        || matches!(
            name,
            "pods"
                | "services"
                | "replicationcontrollers"
                | "resourcequotas"
                | "secrets"
                | "configmaps"
                | "persistentvolumeclaims"
                | "storage"
        )
}

fn is_native(name: &str) -> bool {
    !name.contains('/') || name.contains("kubernetes.io/")
}

fn is_extended(name: &str) -> bool {
    !is_native(name)
        && !name.starts_with("requests.")
        && qualified_name_faults(&format!("requests.{name}")).is_empty()
}

fn is_overcommit_allowed(name: &str) -> bool {
    is_native(name) && !name.starts_with(HUGE_PAGES)
}

fn is_whole_only(name: &str) -> bool {
    is_extended(name)
        || matches!(name, "pods" | "services" | "replicationcontrollers" | "secrets" | "configmaps")
}

/// The amount in a JSON value.
pub(crate) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(resources: &Value) -> String {
        let mut errors = FieldErrors::new();
        container_resources(resources, &Path::new("r"), &mut errors);
        if errors.is_empty() { String::new() } else { errors.to_string() }
    }

    #[test]
    fn requests_are_at_most_limits() {
        assert_eq!(check(&json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "");
        assert_eq!(
            check(&json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1500m"}})),
            "r.requests: Invalid value: \"1500m\": must be less than or equal to cpu limit of 1"
        );
        assert_eq!(
            check(&json!({"requests": {"example.com/gpu": "1"}})),
            "r.limits: Required value: Limit must be set for non overcommitable resources"
        );
        assert_eq!(
            check(&json!({"limits": {"example.com/gpu": "2"}, "requests": {"example.com/gpu": "1"}})),
            "r.requests: Invalid value: \"1\": must be equal to example.com/gpu limit of 2"
        );
    }

    #[test]
    fn names_and_amounts_are_checked() {
        assert_eq!(
            check(&json!({"limits": {"memory": "-1"}})),
            "r.limits[memory]: Invalid value: \"-1\": must be greater than or equal to 0"
        );
        assert_eq!(
            check(&json!({"limits": {"gpu": "1"}})),
            "[r.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified, r.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers]"
        );
        assert_eq!(
            check(&json!({"limits": {"example.com/gpu": "500m"}})),
            "r.limits[example.com/gpu]: Invalid value: \"500m\": must be an integer"
        );
        assert_eq!(
            check(&json!({"limits": {"hugepages-2Mi": "4Mi"}})),
            "r: Forbidden: HugePages require cpu or memory"
        );
    }
}
