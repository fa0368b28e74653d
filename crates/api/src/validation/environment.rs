//! Rules for environment variables and for references to fields and resources (downward API).

use serde_json::Value;

use super::volume::no_backsteps;
use super::{FieldErrors, Path};
use crate::access::Access;
use crate::name::{
    config_key_faults, dns_label_faults, dns_subdomain_faults, env_name_faults, qualified_name_faults,
};
use crate::quantity::Quantity;

/// Fields that an environment variable may refer to, in alphabetical order.
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// Fields that exist for the downward API at all.
const KNOWN_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
const BYTE_DIVISORS: &[&str] =
    &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// Rules for `env`.
pub(crate) fn env(container: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, variable) in container.list("env").iter().enumerate() {
        let path = path.index(i);
        let name = variable.text("name");
        if name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            for fault in env_name_faults(name) {
                errors.invalid(&path.child("name"), name, fault);
            }
        }
        if let Some(from) = variable.field("valueFrom") {
            value_from(from, variable.text("value"), &path.child("valueFrom"), errors);
        }
    }
}

fn value_from(from: &Value, value: &str, path: &Path, errors: &mut FieldErrors) {
    let mut count = 0;
    for name in ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"] {
        let Some(source) = from.field(name) else { continue };
        count += 1;
        let path = path.child(name);
        match name {
            "fieldRef" => field_ref(source, ENV_FIELDS, &path, errors),
            "resourceFieldRef" => resource_field_ref(source, false, &path, errors),
            "fileKeyRef" => file_key_ref(source, &path, errors),
            _ => key_ref(source, &path, errors),
        }
    }
    let detail = match count {
        0 => {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
        }
        _ if !value.is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.invalid(path, "", detail);
}

fn key_ref(source: &Value, path: &Path, errors: &mut FieldErrors) {
    let (name, key) = (source.text("name"), source.text("key"));
    for fault in dns_subdomain_faults(name) {
        errors.invalid(&path.child("name"), name, fault);
    }
    if key.is_empty() {
        errors.required(&path.child("key"), "");
    } else {
        for fault in config_key_faults(key) {
            errors.invalid(&path.child("key"), key, fault);
        }
    }
}

fn file_key_ref(source: &Value, path: &Path, errors: &mut FieldErrors) {
    for name in ["key", "volumeName", "path"] {
        let value = source.text(name);
        let path = path.child(name);
        if value.is_empty() {
            errors.required(&path, "");
            continue;
        }
        let faults = match name {
            "key" => env_name_faults(value),
            "volumeName" => dns_label_faults(value),
            _ => {
                no_backsteps(value, &path, errors);
                Vec::new()
            }
        };
        for fault in faults {
            errors.invalid(&path, value, fault);
        }
    }
}

/// Rules for `envFrom`.
pub(crate) fn env_from(container: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, source) in container.list("envFrom").iter().enumerate() {
        let at = path.index(i);
        let prefix = source.text("prefix");
        if !prefix.is_empty() {
            for fault in env_name_faults(prefix) {
                errors.invalid(&at.child("prefix"), prefix, fault);
            }
        }
        let mut count = 0;
        for name in ["configMapRef", "secretRef"] {
            let Some(reference) = source.field(name) else { continue };
            count += 1;
            let (name_path, name) = (at.child(name).child("name"), reference.text("name"));
            if name.is_empty() {
                errors.required(&name_path, "");
            } else {
                for fault in dns_subdomain_faults(name) {
                    errors.invalid(&name_path, name, fault);
                }
            }
        }
        match count {
            0 => errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(path, "", "may not have more than one field specified at a time"),
        }
    }
}

/// Splits `metadata.labels['key']` into the field and the key.
pub fn subscripted(field: &str) -> Option<(&str, &str)> {
    let (path, rest) = field.strip_suffix("']")?.split_once("['")?;
    (!path.is_empty()).then_some((path, rest))
}

/// Rules for a reference to a field of the Pod; `allowed` is in alphabetical order.
pub(crate) fn field_ref(reference: &Value, allowed: &[&str], path: &Path, errors: &mut FieldErrors) {
    let (version, field) = (reference.text("apiVersion"), reference.text("fieldPath"));
    let field_path = path.child("fieldPath");
    if version.is_empty() {
        return errors.required(&path.child("apiVersion"), "");
    }
    if field.is_empty() {
        return errors.required(&field_path, "");
    }
    let split = subscripted(field);
    let unknown = match split {
        _ if version != "v1" => Some(format!("unsupported pod version: {version}")),
        Some(("metadata.annotations" | "metadata.labels", _)) => None,
        Some(_) => Some(format!("field label does not support subscript: {field}")),
        None if KNOWN_FIELDS.contains(&field) => None,
        None => Some(format!("field label not supported: {field}")),
    };
    if let Some(why) = unknown {
        return errors.invalid(&field_path, field, format!("error converting fieldPath: {why}"));
    }
    match split {
        Some((of, key)) => {
            let key = if of == "metadata.annotations" { key.to_lowercase() } else { key.to_owned() };
            for fault in qualified_name_faults(&key) {
                errors.invalid(path, key.as_str(), fault);
            }
        }
        None if !allowed.contains(&field) => errors.not_supported(&field_path, field, allowed),
        None => {}
    }
}

/// Rules for a reference to a resource of a container; a volume must name the container.
pub(crate) fn resource_field_ref(reference: &Value, is_volume: bool, path: &Path, errors: &mut FieldErrors) {
    let resource = reference.text("resource");
    let is_huge_page =
        resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if is_volume && reference.text("containerName").is_empty() {
        errors.required(&path.child("containerName"), "");
    } else if resource.is_empty() {
        errors.required(&path.child("resource"), "");
    } else if !RESOURCES.contains(&resource) && !is_huge_page {
        errors.not_supported(&path.child("resource"), resource, RESOURCES);
    }
    let divisor = reference.field("divisor").and_then(super::resource::quantity).unwrap_or(Quantity::ZERO);
    if divisor.is_zero() {
        return;
    }
    let divisor = divisor.to_string();
    let divisor = divisor.as_str();
    let detail = match resource.split_once('.').map(|(_, name)| name) {
        Some("cpu") if !matches!(divisor, "1m" | "1") => {
            "only divisor's values 1m and 1 are supported with the cpu resource".to_owned()
        }
        Some("memory") if !BYTE_DIVISORS.contains(&divisor) => byte_divisors("memory resource"),
        Some("ephemeral-storage") if !BYTE_DIVISORS.contains(&divisor) => {
            byte_divisors("local ephemeral storage resource")
        }
        Some(_) if is_huge_page && !BYTE_DIVISORS.contains(&divisor) => byte_divisors("hugepages resource"),
        _ => return,
    };
    errors.invalid(&path.child("divisor"), resource, detail);
}

fn byte_divisors(what: &str) -> String {
    format!("only divisor's values {} are supported with the {what}", BYTE_DIVISORS.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(variable: &Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        env(&json!({"env": [variable]}), &Path::new("env"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_value_comes_from_one_place() {
        assert!(check(&json!({"name": "A", "value": "b"})).is_empty());
        let key = json!({"name": "c", "key": "k"});
        assert!(check(&json!({"name": "A", "valueFrom": {"configMapKeyRef": key}})).is_empty());
        assert_eq!(
            check(&json!({"name": "A", "value": "b", "valueFrom": {"configMapKeyRef": key}})),
            ["env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"]
        );
        assert_eq!(
            check(&json!({"name": "A", "valueFrom": {"configMapKeyRef": key, "secretKeyRef": key}})),
            ["env[0].valueFrom: Invalid value: \"\": may not have more than one field specified at a time"]
        );
        assert_eq!(check(&json!({"value": "b"})), ["env[0].name: Required value"]);
    }

    #[test]
    fn fields_of_the_pod() {
        let field = |path: &str| {
            check(&json!({"name": "A", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}))
        };
        assert!(field("status.podIP").is_empty());
        assert!(field("metadata.labels['app']").is_empty());
        assert_eq!(
            field("spec.restartPolicy"),
            [
                "env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.restartPolicy\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\""
            ]
        );
        assert_eq!(
            field("spec.foo"),
            [
                "env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.foo\": error converting fieldPath: field label not supported: spec.foo"
            ]
        );
    }

    #[test]
    fn resources_of_a_container() {
        let resource = |r: &str, d: &str| {
            check(&json!({"name": "A", "valueFrom": {"resourceFieldRef": {"resource": r, "divisor": d}}}))
        };
        assert!(resource("limits.cpu", "1m").is_empty());
        assert!(resource("limits.memory", "1Mi").is_empty());
        assert!(resource("limits.cpu", "0").is_empty());
        assert_eq!(
            resource("limits.cpu", "10m"),
            [
                "env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are supported with the cpu resource"
            ]
        );
    }
}
