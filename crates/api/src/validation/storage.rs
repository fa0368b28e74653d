//! Rules for volumes, claims, classes and drivers.

use serde_json::Value;

use super::meta::{object_meta, object_meta_update};
use super::resource::{quantity, quantity_value};
use super::rule::{immutables, one_of, required};
use super::volume::label_selector;
use super::{FieldErrors, Path, semantically_equal};
use crate::access::{Access, carry_over, spec, status};
use crate::kind::Ctx;
use crate::name::{dns_subdomain_faults, qualified_name_faults};
use crate::quantity::Quantity;

const MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
/// Fields of a volume's spec that are no source.
const NO_SOURCE: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

static NULL: Value = Value::Null;

fn field<'a>(object: &'a Value, name: &str) -> &'a Value {
    object.field(name).unwrap_or(&NULL)
}

fn access_modes(modes: &[Value], path: &Path, errors: &mut FieldErrors) {
    let path = path.child("accessModes");
    if modes.is_empty() {
        errors.required(&path, "at least 1 access mode is required");
    }
    for mode in modes.iter().filter(|mode| !MODES.contains(&mode.as_str().unwrap_or_default())) {
        errors.not_supported(&path, mode.clone(), MODES);
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        errors.forbidden(&path, "may not use ReadWriteOncePod with other access modes");
    }
}

/// Rules for a new `PersistentVolumeClaim`.
pub fn claim(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    claim_spec(spec(object), &Path::new("spec"), &mut errors);
    errors
}

fn claim_spec(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    access_modes(spec.list("accessModes"), path, errors);
    if let Some(selector) = spec.field("selector") {
        label_selector(selector, &path.child("selector"), errors);
    }
    let storage = path.child("resources").key("storage");
    match spec.pointer("/resources/requests/storage") {
        None => errors.required(&storage, ""),
        Some(amount) if quantity(amount).is_none_or(|amount| amount <= Quantity::ZERO) => {
            let path = path.child("resources").child("requests").key("storage");
            errors.invalid(&path, amount.clone(), "must be greater than zero");
        }
        Some(_) => {}
    }
    if let Some(class) =
        spec.field("storageClassName").and_then(Value::as_str).filter(|class| !class.is_empty())
    {
        for fault in dns_subdomain_faults(class) {
            errors.invalid(&path.child("storageClassName"), class, fault);
        }
    }
    if !matches!(spec.text("volumeMode"), "" | "Block" | "Filesystem") {
        errors.not_supported(&path.child("volumeMode"), spec.text("volumeMode"), &["Block", "Filesystem"]);
    }
}

/// Rules for a changed claim: it may grow once it is bound, and it is bound once.
pub fn claim_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(claim(new, ctx));
    let (wanted, before) = (spec(new), spec(old));
    let mut munged = wanted.clone();
    carry_over(&mut munged, before, "volumeAttributesClassName");
    if before.text("volumeName").is_empty() {
        carry_over(&mut munged, before, "volumeName");
    }
    if before.field("storageClassName").is_none() {
        carry_over(&mut munged, before, "storageClassName");
    }
    let amount = |spec: &Value| spec.pointer("/resources/requests/storage").and_then(quantity);
    let is_bound = status(old).text("phase") == "Bound";
    if is_bound && let Some(resources) = munged.get_mut("resources") {
        carry_over(resources, field(before, "resources"), "requests");
    }
    let path = Path::new("spec");
    if !semantically_equal(&munged, before) {
        let changes = super::diff::unified(before, &munged);
        let detail = format!(
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{changes}"
        );
        errors.forbidden(&path, detail);
    } else if is_bound && amount(wanted) < amount(before) && amount(wanted) < status_capacity(old) {
        let path = path.child("resources").child("requests").child("storage");
        errors.forbidden(&path, "field can not be less than status.capacity");
    }
    errors
}

fn status_capacity(claim: &Value) -> Option<Quantity> {
    status(claim).pointer("/capacity/storage").and_then(quantity)
}

/// Rules for a write to a claim's status.
pub fn claim_status(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    for (name, amount) in status(new).map("capacity").into_iter().flatten() {
        let path = Path::new("status").child("capacity").key(name);
        quantity_value(name, amount, &path, &mut errors);
    }
    errors
}

/// Rules for a new `PersistentVolume`.
pub fn volume(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, dns_subdomain_faults);
    let (path, spec) = (Path::new("spec"), spec(object));
    access_modes(spec.list("accessModes"), &path, &mut errors);
    let capacity = spec.map("capacity");
    if capacity.is_none_or(serde_json::Map::is_empty) {
        errors.required(&path.child("capacity"), "");
    } else if capacity.is_some_and(|amounts| amounts.len() > 1 || !amounts.contains_key("storage")) {
        let shown = field(spec, "capacity").clone();
        errors.not_supported(&path.child("capacity"), shown, &["storage"]);
    }
    for (name, amount) in capacity.into_iter().flatten() {
        let path = path.child("capacity").key(name);
        quantity_value(name, amount, &path, &mut errors);
        if quantity(amount).is_some_and(|amount| amount <= Quantity::ZERO) {
            errors.invalid(&path, amount.clone(), "must be greater than zero");
        }
    }
    sources(spec, &path, &mut errors);
    one_of(spec, "persistentVolumeReclaimPolicy", &["Delete", "Recycle", "Retain"], &path, &mut errors);
    if spec.pointer("/hostPath/path").is_some_and(|at| at == "/")
        && spec.text("persistentVolumeReclaimPolicy") == "Recycle"
    {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        errors.forbidden(&path.child("persistentVolumeReclaimPolicy"), detail);
    }
    if !matches!(spec.text("volumeMode"), "" | "Block" | "Filesystem") {
        errors.not_supported(&path.child("volumeMode"), spec.text("volumeMode"), &["Block", "Filesystem"]);
    }
    if spec.field("local").is_some() && spec.field("nodeAffinity").is_none() {
        errors.required(&path.child("nodeAffinity"), "Local volume requires node affinity");
    }
    errors
}

fn sources(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let fields = spec.as_object().into_iter().flatten();
    let named: Vec<&String> = fields
        .filter(|(name, value)| value.is_object() && !NO_SOURCE.contains(&name.as_str()))
        .map(|(name, _)| name)
        .collect();
    if named.is_empty() {
        errors.required(path, "must specify a volume type");
    }
    for name in named.iter().skip(1) {
        errors.forbidden(&path.child(name), "may not specify more than 1 volume type");
    }
    if let Some(host) = spec.field("hostPath") {
        required(host, "path", &path.child("hostPath"), errors);
        super::volume::no_backsteps(host.text("path"), &path.child("hostPath").child("path"), errors);
    }
    if let Some(local) = spec.field("local") {
        required(local, "path", &path.child("local"), errors);
    }
    if let Some(driver) = spec.field("csi") {
        for name in ["driver", "volumeHandle"] {
            required(driver, name, &path.child("csi"), errors);
        }
    }
}

/// Rules for a changed `PersistentVolume`: where its data is stays.
pub fn volume_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(volume(new, ctx));
    let source = |object: &Value| -> Value {
        let fields = spec(object).as_object().into_iter().flatten();
        fields
            .filter(|(name, value)| value.is_object() && !NO_SOURCE.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    };
    let path = Path::new("spec").child("persistentvolumesource");
    if !semantically_equal(&source(new), &source(old)) {
        let changes = super::diff::unified(&source(old), &source(new));
        let detail = format!("spec.persistentvolumesource is immutable after creation\n{changes}");
        errors.forbidden(&path, detail);
    }
    immutables(spec(new), spec(old), &["volumeMode"], &Path::new("spec"), &mut errors);
    errors
}

/// Rules for a new `StorageClass`.
pub fn class(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, dns_subdomain_faults);
    let root = Path::root();
    let provisioner = object.text("provisioner");
    required(object, "provisioner", &root, &mut errors);
    for fault in
        qualified_name_faults(&provisioner.to_lowercase()).into_iter().filter(|_| !provisioner.is_empty())
    {
        errors.invalid(&Path::new("provisioner"), provisioner, fault);
    }
    for (key, _) in object.entries("parameters").into_iter().filter(|(key, _)| key.is_empty()) {
        errors.invalid(&Path::new("parameters"), key, "field cannot be empty.");
    }
    super::rule::absent_or_one_of(object, "reclaimPolicy", &["Delete", "Retain"], &root, &mut errors);
    one_of(object, "volumeBindingMode", &["Immediate", "WaitForFirstConsumer"], &root, &mut errors);
    errors
}

/// Rules for a changed `StorageClass`: how volumes are made stays.
pub fn class_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    let kept = |name: &str| semantically_equal(field(new, name), field(old, name));
    for name in ["parameters", "provisioner", "reclaimPolicy"] {
        if !kept(name) {
            errors.forbidden(&Path::new(name), format!("updates to {name} are forbidden."));
        }
    }
    immutables(new, old, &["volumeBindingMode"], &Path::root(), &mut errors);
    errors
}

/// Rules for a new `VolumeAttributesClass`.
pub fn attributes_class(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, dns_subdomain_faults);
    required(object, "driverName", &Path::root(), &mut errors);
    if object.map("parameters").is_none_or(serde_json::Map::is_empty) {
        errors.required(&Path::new("parameters"), "must contain at least one key/value pair");
    }
    errors
}

/// Rules for a changed `VolumeAttributesClass`: it stays what it is.
pub fn attributes_class_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    for name in ["driverName", "parameters"] {
        if !semantically_equal(field(new, name), field(old, name)) {
            errors.forbidden(&Path::new(name), format!("updates to {name} are forbidden."));
        }
    }
    errors
}

/// Rules for a new `CSIDriver`.
pub fn driver(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, dns_subdomain_faults);
    let (path, spec) = (Path::new("spec"), spec(object));
    for mode in spec.list("volumeLifecycleModes") {
        if mode != "Persistent" && mode != "Ephemeral" {
            let path = path.child("volumeLifecycleModes");
            errors.not_supported(&path, mode.clone(), &["Ephemeral", "Persistent"]);
        }
    }
    one_of(spec, "fsGroupPolicy", &["File", "None", "ReadWriteOnceWithFSType"], &path, &mut errors);
    errors
}

/// Rules for a changed `CSIDriver`: how volumes are attached stays.
pub fn driver_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(driver(new, ctx));
    immutables(
        spec(new),
        spec(old),
        &["attachRequired", "volumeLifecycleModes"],
        &Path::new("spec"),
        &mut errors,
    );
    errors
}

/// Rules for a new `CSINode`.
pub fn csi_node(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, dns_subdomain_faults);
    let drivers = spec(object).list("drivers");
    for (i, driver) in drivers.iter().enumerate() {
        let path = Path::new("spec").child("drivers").index(i);
        for name in ["name", "nodeID"] {
            required(driver, name, &path, &mut errors);
        }
        let name = driver.text("name");
        if drivers.iter().take(i).any(|earlier| earlier.text("name") == name) {
            errors.duplicate(&path.child("name"), name);
        }
    }
    errors
}

/// Rules for a changed `CSINode`: a driver that stays is the same.
pub fn csi_node_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(csi_node(new, ctx));
    for (i, driver) in spec(new).list("drivers").iter().enumerate() {
        let before = spec(old).list("drivers").iter().find(|one| one.text("name") == driver.text("name"));
        if let Some(before) = before.filter(|before| before.text("nodeID") != driver.text("nodeID")) {
            let path = Path::new("spec").child("drivers").index(i);
            immutables(driver, before, &["nodeID"], &path, &mut errors);
        }
    }
    errors
}

/// Rules for a new `CSIStorageCapacity`.
pub fn capacity(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    required(object, "storageClassName", &Path::root(), &mut errors);
    for name in ["capacity", "maximumVolumeSize"] {
        if object.field(name).and_then(quantity).is_some_and(Quantity::is_negative) {
            let detail = "must be greater than or equal to 0";
            errors.invalid(&Path::new(name), field(object, name).clone(), detail);
        }
    }
    errors
}

/// Rules for a changed `CSIStorageCapacity`: what it is about stays.
pub fn capacity_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = capacity(new, ctx);
    errors.extend(object_meta_update(new, old));
    immutables(new, old, &["nodeTopology", "storageClassName"], &Path::root(), &mut errors);
    errors
}

/// Rules for a new `VolumeAttachment`.
pub fn attachment(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, dns_subdomain_faults);
    let path = Path::new("spec");
    for name in ["attacher", "nodeName"] {
        required(spec(object), name, &path, &mut errors);
    }
    let source = field(spec(object), "source");
    match (source.field("inlineVolumeSpec").is_some(), source.field("persistentVolumeName").is_some()) {
        (false, false) => {
            errors.required(
                &path.child("source"),
                "must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            );
        }
        (true, true) => {
            let detail = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
            errors.forbidden(&path.child("source"), detail);
        }
        _ => {}
    }
    errors
}

/// Rules for a changed `VolumeAttachment`: what is attached where stays.
pub fn attachment_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = attachment(new, ctx);
    errors.extend(object_meta_update(new, old));
    if !semantically_equal(spec(new), spec(old)) {
        errors.invalid(&Path::new("spec"), spec(new).clone(), "field is immutable");
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

    fn a_claim(storage: &str, phase: &str) -> Value {
        json!({"metadata": {"name": "c", "namespace": "d", "resourceVersion": "1"}, "status": {"phase": phase},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage}}, "volumeMode": "Filesystem"}})
    }

    #[test]
    fn a_claim_asks_for_storage_and_grows_when_it_is_bound() {
        assert_eq!(claim(&a_claim("1Gi", ""), &ctx()).to_string(), "[]");
        assert_eq!(
            claim(&json!({"metadata": {"name": "c", "namespace": "d"}, "spec": {}}), &ctx()).to_string(),
            "[spec.accessModes: Required value: at least 1 access mode is required, spec.resources[storage]: Required value]"
        );
        assert_eq!(claim_update(&a_claim("2Gi", ""), &a_claim("1Gi", "Bound"), &ctx()).to_string(), "[]");
        let text = claim_update(&a_claim("2Gi", ""), &a_claim("1Gi", "Pending"), &ctx()).to_string();
        assert!(
            text.starts_with("spec: Forbidden: spec is immutable after creation except resources.requests"),
            "{text}"
        );
    }

    #[test]
    fn a_volume_has_one_source_that_stays() {
        let of = |more: Value| {
            let mut object = json!({"metadata": {"name": "v", "resourceVersion": "1"}, "spec": {"capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain"}});
            for (name, value) in more.as_object().unwrap() {
                object["spec"][name] = value.clone();
            }
            object
        };
        let here = of(json!({"hostPath": {"path": "/data"}}));
        assert_eq!(volume(&here, &ctx()).to_string(), "[]");
        assert_eq!(
            volume(&of(json!({})), &ctx()).to_string(),
            "spec: Required value: must specify a volume type"
        );
        let there = of(json!({"hostPath": {"path": "/other"}}));
        assert!(
            volume_update(&there, &here, &ctx())
                .to_string()
                .contains("spec.persistentvolumesource is immutable after creation")
        );
    }

    #[test]
    fn a_class_stays() {
        let of = |reclaim: &str| {
            json!({"metadata": {"name": "c", "resourceVersion": "1"}, "provisioner": "example.com/p",
                "reclaimPolicy": reclaim, "volumeBindingMode": "Immediate"})
        };
        assert_eq!(class(&of("Delete"), &ctx()).to_string(), "[]");
        assert_eq!(
            class_update(&of("Retain"), &of("Delete"), &ctx()).to_string(),
            "reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden."
        );
    }
}
