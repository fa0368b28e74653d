//! Rows of volumes, claims, classes and drivers.

use jiff::Timestamp;
use serde_json::Value;

use super::text::{self, NONE, UNSET};
use super::{Column, age_cell, name_cell};
use crate::access::{Access, metadata, spec, status};

/// The columns of a `PersistentVolume`.
pub(crate) const VOLUME: &[Column] = &[
    Column::NAME,
    Column::text("Capacity", "How much it holds."),
    Column::text("Access Modes", "How it can be mounted."),
    Column::text("Reclaim Policy", "What becomes of it when its claim is gone."),
    Column::text("Status", "How it stands."),
    Column::text("Claim", "The claim that it is bound to."),
    Column::text("StorageClass", "Its class."),
    Column::text("VolumeAttributesClass", "The class of its attributes."),
    Column::text("Reason", "Why it stands so."),
    Column::AGE,
    Column::wide("VolumeMode", "A file system or a block device."),
];

/// The columns of a `PersistentVolumeClaim`.
pub(crate) const CLAIM: &[Column] = &[
    Column::NAME,
    Column::text("Status", "How it stands."),
    Column::text("Volume", "The volume that it is bound to."),
    Column::text("Capacity", "How much the volume holds."),
    Column::text("Access Modes", "How the volume can be mounted."),
    Column::text("StorageClass", "The class that is asked for."),
    Column::text("VolumeAttributesClass", "The class of its attributes."),
    Column::AGE,
    Column::wide("VolumeMode", "A file system or a block device."),
];

/// The columns of a `StorageClass`.
pub(crate) const CLASS: &[Column] = &[
    Column::NAME,
    Column::text("Provisioner", "Who makes the volumes."),
    Column::text("ReclaimPolicy", "What becomes of a volume when its claim is gone."),
    Column::text("VolumeBindingMode", "When a volume is made and bound."),
    Column::text("AllowVolumeExpansion", "Whether volumes can grow."),
    Column::AGE,
];

/// The columns of a `VolumeAttributesClass`.
pub(crate) const ATTRIBUTES_CLASS: &[Column] =
    &[Column::NAME, Column::text("DriverName", "The driver that knows the attributes."), Column::AGE];

/// The columns of a `VolumeAttachment`.
pub(crate) const ATTACHMENT: &[Column] = &[
    Column::NAME,
    Column { format: "name", ..Column::text("Attacher", "The driver that attaches it.") },
    Column::text("PV", "The volume."),
    Column::text("Node", "The node."),
    Column::boolean("Attached", "Whether it is attached."),
    Column::AGE,
];

/// The columns of a `CSIDriver`.
pub(crate) const DRIVER: &[Column] = &[
    Column::NAME,
    Column::boolean("AttachRequired", "Whether volumes are attached before they are mounted."),
    Column::boolean("PodInfoOnMount", "Whether the driver is told the Pod."),
    Column::boolean("StorageCapacity", "Whether the scheduler asks how much is left."),
    Column::text("TokenRequests", "The audiences of the tokens that the driver gets."),
    Column::boolean("RequiresRepublish", "Whether the driver is asked again and again."),
    Column::text("Modes", "Which volumes it serves."),
    Column::AGE,
];

/// The columns of a `CSINode`.
pub(crate) const NODE: &[Column] =
    &[Column::NAME, Column::integer("Drivers", "How many drivers the node has."), Column::AGE];

/// The columns of a `CSIStorageCapacity`.
pub(crate) const CAPACITY: &[Column] = &[
    Column::NAME,
    Column::text("StorageClassName", "The class."),
    Column::text("Capacity", "How much is left."),
];

/// The annotation by which a class was named once.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// The name of the storage class of a volume or a claim.
fn class_of(object: &Value) -> &str {
    let annotations = metadata(object).entries("annotations");
    let named = annotations.into_iter().find(|(key, _)| *key == CLASS_ANNOTATION);
    named.map_or_else(|| spec(object).text("storageClassName"), |(_, value)| value)
}

/// The short names of access modes, each once, in a fixed order.
fn access_modes(modes: &[Value]) -> String {
    let known = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let named = known.iter().filter(|(mode, _)| modes.iter().any(|m| m == mode)).map(|(_, short)| *short);
    named.collect::<Vec<_>>().join(",")
}

fn phase(object: &Value) -> &str {
    let is_deleted = metadata(object).field("deletionTimestamp").is_some();
    if is_deleted { "Terminating" } else { status(object).text("phase") }
}

fn capacity_of(object: &Value) -> String {
    object.pointer("/capacity/storage").map_or_else(|| "0".to_owned(), text::scalar)
}

pub(crate) fn volume(object: &Value, now: Timestamp) -> Vec<Value> {
    let claim = spec(object).field("claimRef").map(|c| format!("{}/{}", c.text("namespace"), c.text("name")));
    vec![
        name_cell(object),
        capacity_of(spec(object)).into(),
        access_modes(spec(object).list("accessModes")).into(),
        spec(object).text("persistentVolumeReclaimPolicy").into(),
        phase(object).into(),
        claim.unwrap_or_default().into(),
        class_of(object).into(),
        text::field_or(spec(object), "volumeAttributesClassName", UNSET).into(),
        status(object).text("reason").into(),
        age_cell(object, now),
        text::field_or(spec(object), "volumeMode", UNSET).into(),
    ]
}

pub(crate) fn claim(object: &Value, now: Timestamp) -> Vec<Value> {
    let is_bound = !spec(object).text("volumeName").is_empty();
    let (capacity, modes) = if is_bound {
        (capacity_of(status(object)), access_modes(status(object).list("accessModes")))
    } else {
        Default::default()
    };
    vec![
        name_cell(object),
        phase(object).into(),
        spec(object).text("volumeName").into(),
        capacity.into(),
        modes.into(),
        class_of(object).into(),
        text::field_or(spec(object), "volumeAttributesClassName", UNSET).into(),
        age_cell(object, now),
        text::field_or(spec(object), "volumeMode", UNSET).into(),
    ]
}

pub(crate) fn class(object: &Value, now: Timestamp) -> Vec<Value> {
    const DEFAULT: &[&str] =
        &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    vec![
        text::name_with_default(object, DEFAULT).into(),
        object.text("provisioner").into(),
        text::field_or(object, "reclaimPolicy", "Delete").into(),
        text::field_or(object, "volumeBindingMode", "Immediate").into(),
        object.is_true("allowVolumeExpansion").into(),
        age_cell(object, now),
    ]
}

pub(crate) fn attributes_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name_cell(object), object.text("driverName").into(), age_cell(object, now)]
}

pub(crate) fn attachment(object: &Value, now: Timestamp) -> Vec<Value> {
    let volume = spec(object).field("source").unwrap_or(&Value::Null).text("persistentVolumeName");
    vec![
        name_cell(object),
        spec(object).text("attacher").into(),
        volume.into(),
        spec(object).text("nodeName").into(),
        status(object).is_true("attached").into(),
        age_cell(object, now),
    ]
}

pub(crate) fn driver(object: &Value, now: Timestamp) -> Vec<Value> {
    let spec = spec(object);
    let join = |texts: Vec<&str>| texts.join(",");
    let modes = join(spec.list("volumeLifecycleModes").iter().filter_map(Value::as_str).collect());
    let tokens = match spec.field("tokenRequests") {
        Some(_) => join(spec.list("tokenRequests").iter().map(|t| t.text("audience")).collect()),
        None => UNSET.to_owned(),
    };
    vec![
        name_cell(object),
        spec.flag("attachRequired").unwrap_or(true).into(),
        spec.is_true("podInfoOnMount").into(),
        spec.is_true("storageCapacity").into(),
        tokens.into(),
        spec.is_true("requiresRepublish").into(),
        text::or(&modes, NONE).into(),
        age_cell(object, now),
    ]
}

pub(crate) fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name_cell(object), spec(object).list("drivers").len().into(), age_cell(object, now)]
}

pub(crate) fn capacity(object: &Value, _now: Timestamp) -> Vec<Value> {
    let left = object.field("capacity").map_or_else(|| UNSET.to_owned(), text::scalar);
    vec![name_cell(object), object.text("storageClassName").into(), left.into()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn a_claim_shows_its_volume_once_it_is_bound() {
        let mut object = json!({"metadata": {"name": "c"}, "spec": {"storageClassName": "fast"},
            "status": {"phase": "Pending", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}});
        assert_eq!(claim(&object, NOW)[1..6], ["Pending", "", "", "", "fast"].map(Value::from));
        object["spec"]["volumeName"] = "v".into();
        object["status"]["phase"] = "Bound".into();
        assert_eq!(claim(&object, NOW)[1..6], ["Bound", "v", "1Gi", "RWO", "fast"].map(Value::from));
    }

    #[test]
    fn a_volume_names_its_claim() {
        let object = json!({"metadata": {"name": "v", "deletionTimestamp": "t"}, "spec": {
            "capacity": {"storage": "5Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"],
            "claimRef": {"namespace": "a", "name": "c"}}});
        assert_eq!(
            volume(&object, NOW)[1..8],
            ["5Gi", "RWO,RWX", "", "Terminating", "a/c", "", "<unset>"].map(Value::from)
        );
    }

    #[test]
    fn the_default_class_is_marked() {
        let object = json!({"metadata": {"name": "fast", "annotations":
            {"storageclass.kubernetes.io/is-default-class": "true"}}, "provisioner": "x"});
        assert_eq!(class(&object, NOW)[0], "fast (default)");
        assert_eq!(class(&object, NOW)[4], false);
    }

    #[test]
    fn a_driver_says_nothing_of_tokens_until_asked() {
        assert_eq!(
            driver(&json!({"metadata": {"name": "d"}}), NOW)[1..7],
            [json!(true), json!(false), json!(false), json!("<unset>"), json!(false), json!("<none>")]
        );
    }
}
