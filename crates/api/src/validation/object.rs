//! Rules for the kinds that need few: `ConfigMap`, Secret, Namespace, `ServiceAccount`, Lease, Node, Binding, Eviction.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::meta::{immutable, kube_finalizer, object_meta, object_meta_update};
use super::{FieldErrors, Path, resource, scheduling, semantically_equal};
use crate::access::{Access, metadata, spec, status};
use crate::kind::Ctx;
use crate::name::{config_key_faults, dns_label_faults, dns_subdomain_faults, qualified_name_faults};

/// Most bytes that the values of a `ConfigMap` or Secret may have together.
pub const DATA_MAX: usize = 1024 * 1024;
const IMMUTABLE: &str = "field is immutable when `immutable` is set";

fn with_subdomain_name(object: &Value) -> FieldErrors {
    object_meta(object, true, dns_subdomain_faults)
}

/// A kind of which only the metadata has rules, such as `ServiceAccount`.
pub fn metadata_only(object: &Value, _ctx: &Ctx) -> FieldErrors {
    with_subdomain_name(object)
}

/// The same for a change.
pub fn metadata_only_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(with_subdomain_name(new));
    errors
}

/// As [`metadata_only`] for a kind outside namespaces.
pub fn cluster_metadata_only(object: &Value, _ctx: &Ctx) -> FieldErrors {
    object_meta(object, false, dns_subdomain_faults)
}

/// The same for a change.
pub fn cluster_metadata_only_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(cluster_metadata_only(new, ctx));
    errors
}

/// Rules for the metadata of a changed object, such as in a write to `/status`.
pub fn metadata_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    object_meta_update(new, old)
}

/// Rules for a new `ConfigMap`.
pub fn config_map(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = with_subdomain_name(object);
    let empty = Map::new();
    let binary = object.map("binaryData").unwrap_or(&empty);
    let mut size = 0;
    let path = Path::new("data");
    for (key, value) in object.entries("data") {
        keys(key, &path, &mut errors);
        if binary.contains_key(key) {
            errors.invalid(&path.key(key), key, "duplicate of key present in binaryData");
        }
        size += value.len();
    }
    for (key, value) in binary {
        keys(key, &Path::new("binaryData"), &mut errors);
        size += decoded_length(value);
    }
    if size > DATA_MAX {
        errors.too_long(&Path::root(), DATA_MAX);
    }
    errors
}

fn keys(key: &str, path: &Path, errors: &mut FieldErrors) {
    for fault in config_key_faults(key) {
        errors.invalid(&path.key(key), key, fault);
    }
}

fn decoded_length(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    text.len() / 4 * 3 - text.bytes().rev().take_while(|c| *c == b'=').count().min(text.len() / 4 * 3)
}

/// Rules for a changed `ConfigMap`.
pub fn config_map_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    stays_if_immutable(new, old, &["data", "binaryData"], &mut errors);
    errors.extend(config_map(new, ctx));
    errors
}

fn stays_if_immutable(new: &Value, old: &Value, fields: &[&str], errors: &mut FieldErrors) {
    if !old.is_true("immutable") {
        return;
    }
    if !new.is_true("immutable") {
        errors.forbidden(&Path::new("immutable"), IMMUTABLE);
    }
    let null = Value::Null;
    for field in fields {
        if !semantically_equal(new.get(*field).unwrap_or(&null), old.get(*field).unwrap_or(&null)) {
            errors.forbidden(&Path::new(field), IMMUTABLE);
        }
    }
}

/// Rules for a new Secret.
pub fn secret(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = with_subdomain_name(object);
    let path = Path::new("data");
    let empty = Map::new();
    let data = object.map("data").unwrap_or(&empty);
    let mut size = 0;
    for (key, value) in data {
        keys(key, &path, &mut errors);
        size += decoded_length(value);
    }
    if size > DATA_MAX {
        errors.too_long(&path, DATA_MAX);
    }
    secret_type(object, data, &path, &mut errors);
    errors
}

fn secret_type(object: &Value, data: &Map<String, Value>, path: &Path, errors: &mut FieldErrors) {
    let mut require = |key: &str| {
        let is_missing = data.get(key).and_then(Value::as_str).is_none();
        if is_missing {
            errors.required(&path.key(key), "");
        }
        !is_missing
    };
    match object.text("type") {
        "kubernetes.io/service-account-token" => {
            const ACCOUNT: &str = "kubernetes.io/service-account.name";
            let is_named =
                metadata(object).entries("annotations").iter().any(|(k, v)| *k == ACCOUNT && !v.is_empty());
            if !is_named {
                errors.required(&Path::new("metadata").child("annotations").key(ACCOUNT), "");
            }
        }
        "kubernetes.io/dockercfg" if require(".dockercfg") => json_text(data, ".dockercfg", path, errors),
        "kubernetes.io/dockerconfigjson" if require(".dockerconfigjson") => {
            json_text(data, ".dockerconfigjson", path, errors);
        }
        "kubernetes.io/basic-auth" if !data.contains_key("username") && !data.contains_key("password") => {
            require("username");
            require("password");
        }
        "kubernetes.io/ssh-auth" => {
            require("ssh-privatekey");
        }
        "kubernetes.io/tls" => {
            require("tls.crt");
            require("tls.key");
        }
        _ => {}
    }
}

fn json_text(data: &Map<String, Value>, key: &str, path: &Path, errors: &mut FieldErrors) {
    let text = data.get(key).and_then(Value::as_str).unwrap_or_default();
    let parsed = STANDARD.decode(text).ok().map(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes));
    let fault = match parsed {
        Some(Ok(_)) => return,
        Some(Err(e)) => e.to_string(),
        None => "not base64".to_owned(),
    };
    errors.invalid(&path.key(key), "<secret contents redacted>", fault);
}

/// Rules for a changed Secret.
pub fn secret_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    let kind = |o: &Value| Value::from(o.text("type"));
    immutable(&kind(new), &kind(old), &Path::new("type"), &mut errors);
    stays_if_immutable(new, old, &["data"], &mut errors);
    errors.extend(secret(new, ctx));
    errors
}

/// Rules for a new Namespace.
pub fn namespace(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, dns_label_faults);
    namespace_finalizers(object, &mut errors);
    errors
}

fn namespace_finalizers(object: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec").child("finalizers");
    for name in spec(object).list("finalizers").iter().filter_map(Value::as_str) {
        for fault in qualified_name_faults(name) {
            errors.invalid(&path, name, fault);
        }
        kube_finalizer(name, &path, errors);
    }
}

/// Rules for a changed Namespace.
pub fn namespace_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    object_meta_update(new, old)
}

/// Rules for a write to a Namespace's status.
pub fn namespace_status(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    let phase = status(new).text("phase");
    let (wanted, detail) = if metadata(new).field("deletionTimestamp").is_none() {
        ("Active", "may only be 'Active' if `deletionTimestamp` is empty")
    } else {
        ("Terminating", "may only be 'Terminating' if `deletionTimestamp` is not empty")
    };
    if phase != wanted {
        errors.invalid(&Path::new("status").child("Phase"), phase, detail);
    }
    errors
}

/// Rules for a write to a Namespace's `/finalize`.
pub fn namespace_finalize(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    namespace_finalizers(new, &mut errors);
    errors
}

/// Rules for a new Lease.
pub fn lease(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = with_subdomain_name(object);
    let path = Path::new("spec");
    let spec = spec(object);
    for (name, least, detail) in [
        ("leaseDurationSeconds", 1, "must be greater than 0"),
        ("leaseTransitions", 0, "must be greater than or equal to 0"),
    ] {
        if let Some(value) = spec.int(name).filter(|v| *v < least) {
            errors.invalid(&path.child(name), value, detail);
        }
    }
    errors
}

/// Rules for a changed Lease.
pub fn lease_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(lease(new, ctx));
    errors
}

/// Rules for a new Node.
pub fn node(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, dns_subdomain_faults);
    let path = Path::new("metadata").child("taints");
    scheduling::taints(spec(object).list("taints"), &path, &mut errors);
    node_resources(object, &mut errors);
    errors
}

fn node_resources(object: &Value, errors: &mut FieldErrors) {
    for list in ["capacity", "allocatable"] {
        for (name, amount) in status(object).map(list).into_iter().flatten() {
            let path = Path::new("status").child(list).child(name);
            resource::quantity_value(name, amount, &path, errors);
        }
    }
}

/// Rules for a changed Node, and for a write to its status.
pub fn node_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    node_resources(new, &mut errors);
    let mut addresses: Vec<&Value> = Vec::new();
    for (i, address) in status(new).list("addresses").iter().enumerate() {
        if addresses.contains(&address) {
            errors.duplicate(&Path::new("status").child("addresses").index(i), address.clone());
        }
        addresses.push(address);
    }
    let path = Path::new("spec");
    for (name, shown) in [("podCIDRs", "podCIDR"), ("providerID", "providerID")] {
        let old = spec(old).field(name);
        if old.is_some() && old != spec(new).field(name) {
            let detail = format!("node updates may not change {shown} except from \"\" to valid");
            errors.forbidden(&path.child(name), detail);
        }
    }
    let taints = spec(new).list("taints");
    scheduling::taints(taints, &Path::new("metadata").child("taints"), &mut errors);
    errors
}

/// Rules for a Binding.
pub fn binding(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let null = Value::Null;
    let target = object.field("target").unwrap_or(&null);
    let path = Path::new("target");
    if !matches!(target.text("kind"), "" | "Node") {
        errors.not_supported(&path.child("kind"), target.text("kind"), &["Node", "<empty>"]);
    }
    if target.text("name").is_empty() {
        errors.required(&path.child("name"), "");
    }
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
        json!({"name": "a", "namespace": "b", "resourceVersion": "1"})
    }

    #[test]
    fn keys_and_sizes_of_config_maps() {
        let map = json!({"metadata": meta(), "data": {"a/b": "x", "k": "y"}, "binaryData": {"k": "eA=="}});
        let text = config_map(&map, &ctx()).to_string();
        assert!(
            text.contains("data[a/b]: Invalid value: \"a/b\": a valid config key must consist of"),
            "{text}"
        );
        assert!(
            text.contains("data[k]: Invalid value: \"k\": duplicate of key present in binaryData"),
            "{text}"
        );
        let big = json!({"metadata": meta(), "data": {"a": "x".repeat(DATA_MAX + 1)}});
        assert_eq!(config_map(&big, &ctx()).to_string(), ": Too long: may not be more than 1048576 bytes");
    }

    #[test]
    fn what_is_immutable_stays() {
        let old = json!({"metadata": meta(), "immutable": true, "data": {"a": "1"}});
        let new = json!({"metadata": meta(), "data": {"a": "2"}});
        assert_eq!(
            config_map_update(&new, &old, &ctx()).to_string(),
            "[immutable: Forbidden: field is immutable when `immutable` is set, data: Forbidden: field is immutable when `immutable` is set]"
        );
        let old = json!({"metadata": meta(), "type": "Opaque"});
        let new = json!({"metadata": meta(), "type": "x/y"});
        assert_eq!(
            secret_update(&new, &old, &ctx()).to_string(),
            "type: Invalid value: \"x/y\": field is immutable"
        );
    }

    #[test]
    fn secrets_hold_what_their_type_says() {
        let check = |kind: &str, data: Value| {
            secret(&json!({"metadata": meta(), "type": kind, "data": data}), &ctx())
        };
        assert!(check("Opaque", json!({"a": "eA=="})).is_empty());
        assert_eq!(
            check("kubernetes.io/tls", json!({})).to_string(),
            "[data[tls.crt]: Required value, data[tls.key]: Required value]"
        );
        assert!(check("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "e30="})).is_empty());
        assert!(
            check("kubernetes.io/dockerconfigjson", json!({".dockerconfigjson": "eA=="}))
                .to_string()
                .contains("<secret contents redacted>")
        );
    }

    #[test]
    fn a_namespace_has_a_label_as_name() {
        let text = namespace(&json!({"metadata": {"name": "a.b"}}), &ctx()).to_string();
        assert_eq!(text, "metadata.name: Invalid value: \"a.b\": must not contain dots");
        let terminating = json!({"metadata": {"name": "a", "resourceVersion": "1", "deletionTimestamp": "t"}, "status": {"phase": "Active"}});
        assert_eq!(
            namespace_status(&terminating, &terminating, &ctx()).to_string(),
            "status.Phase: Invalid value: \"Active\": may only be 'Terminating' if `deletionTimestamp` is not empty"
        );
    }

    #[test]
    fn a_binding_names_a_node() {
        assert!(binding(&json!({"target": {"name": "n"}}), &ctx()).is_empty());
        assert_eq!(
            binding(&json!({"target": {"kind": "Pod"}}), &ctx()).to_string(),
            "[target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\", target.name: Required value]"
        );
    }

    #[test]
    fn a_node_keeps_its_pod_cidrs() {
        let old =
            json!({"metadata": {"name": "n", "resourceVersion": "1"}, "spec": {"podCIDRs": ["10.0.0.0/24"]}});
        let new = json!({"metadata": {"name": "n", "resourceVersion": "1"}, "spec": {}});
        assert_eq!(
            node_update(&new, &old, &ctx()).to_string(),
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"
        );
    }
}
