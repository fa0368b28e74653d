//! Rules for volumes and their sources.

use serde_json::Value;

use super::environment::{field_ref, resource_field_ref};
use super::resource::quantity;
use super::security::one_of;
use super::{FieldErrors, Path};
use crate::access::Access;
use crate::name::{dns_label_faults, label_value_faults, qualified_name_faults};
use crate::quantity::Quantity;

/// All volume sources, in the order in which upstream looks for them.
const SOURCES: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const HOST_PATH_TYPES: &[&str] =
    &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const DOWNWARD_FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Checks all volumes and returns those that are good: mounts may refer to no others.
pub(crate) fn volumes<'a>(list: &'a [Value], path: &Path, errors: &mut FieldErrors) -> Vec<&'a Value> {
    let mut good: Vec<&Value> = Vec::new();
    for (i, volume) in list.iter().enumerate() {
        let path = path.index(i);
        let name = volume.text("name");
        let mut found = FieldErrors::new();
        source(volume, &path, &mut found);
        if name.is_empty() {
            found.required(&path.child("name"), "");
        } else {
            for fault in dns_label_faults(name) {
                found.invalid(&path.child("name"), name, fault);
            }
        }
        if good.iter().any(|v| v.text("name") == name) {
            found.duplicate(&path.child("name"), name);
        }
        if found.is_empty() {
            good.push(volume);
        } else {
            errors.extend(found);
        }
    }
    good
}

fn source(volume: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut is_first = true;
    for name in SOURCES {
        let Some(value) = volume.field(name) else { continue };
        // The misspelled path is upstream's.
        if !is_first {
            let shown = if name == "downwardAPI" { "downwarAPI" } else { name };
            errors.forbidden(&path.child(shown), "may not specify more than 1 volume type");
            continue;
        }
        is_first = false;
        one_source(name, value, &path.child(name), errors);
    }
    if is_first {
        errors.required(path, "must specify a volume type");
    }
}

fn one_source(name: &str, value: &Value, path: &Path, errors: &mut FieldErrors) {
    match name {
        "emptyDir" if value.field("sizeLimit").and_then(quantity).is_some_and(Quantity::is_negative) => {
            errors.forbidden(&path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
        }
        "hostPath" => host_path(value, path, errors),
        "secret" => keyed(value, "secretName", path, errors),
        "configMap" => keyed(value, "name", path, errors),
        "downwardAPI" => {
            mode(value, "defaultMode", path, errors);
            for file in value.list("items") {
                downward_file(file, path, errors);
            }
        }
        "projected" => projected(value, path, errors),
        "persistentVolumeClaim" => require(value, &["claimName"], path, errors),
        "nfs" => nfs(value, path, errors),
        "csi" | "flexVolume" => require(value, &["driver"], path, errors),
        "image" => {
            require(value, &["reference"], path, errors);
            one_of(value, "pullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
        }
        "ephemeral" if value.field("volumeClaimTemplate").is_none() => {
            errors.required(&path.child("volumeClaimTemplate"), "");
        }
        "gitRepo" => require(value, &["repository"], path, errors),
        "iscsi" => require(value, &["targetPortal", "iqn"], path, errors),
        _ => {}
    }
}

fn require(value: &Value, names: &[&str], path: &Path, errors: &mut FieldErrors) {
    for name in names {
        if value.text(name).is_empty() {
            errors.required(&path.child(name), "");
        }
    }
}

fn host_path(value: &Value, path: &Path, errors: &mut FieldErrors) {
    let target = value.text("path");
    if target.is_empty() {
        errors.required(&path.child("path"), "");
        return;
    }
    no_backsteps(target, &path.child("path"), errors);
    one_of(value, "type", HOST_PATH_TYPES, path, errors);
}

fn nfs(value: &Value, path: &Path, errors: &mut FieldErrors) {
    require(value, &["server", "path"], path, errors);
    let target = value.text("path");
    if !target.is_empty() && !target.starts_with('/') {
        errors.invalid(&path.child("path"), target, "must be an absolute path");
    }
}

/// A volume of a Secret or `ConfigMap`: its name, mode and chosen keys.
fn keyed(value: &Value, name: &str, path: &Path, errors: &mut FieldErrors) {
    require(value, &[name], path, errors);
    mode(value, "defaultMode", path, errors);
    for (i, item) in value.list("items").iter().enumerate() {
        key_to_path(item, &path.child("items").index(i), errors);
    }
}

fn key_to_path(item: &Value, path: &Path, errors: &mut FieldErrors) {
    require(item, &["key", "path"], path, errors);
    non_reserved_path(item.text("path"), &path.child("path"), errors);
    mode(item, "mode", path, errors);
}

fn mode(value: &Value, name: &str, path: &Path, errors: &mut FieldErrors) {
    if let Some(mode) = value.int(name).filter(|m| !(0..=0o777).contains(m)) {
        errors.invalid(&path.child(name), mode, MODE);
    }
}

fn downward_file(file: &Value, path: &Path, errors: &mut FieldErrors) {
    require(file, &["path"], path, errors);
    non_reserved_path(file.text("path"), &path.child("path"), errors);
    match (file.field("fieldRef"), file.field("resourceFieldRef")) {
        (Some(field), other) => {
            field_ref(field, DOWNWARD_FIELDS, &path.child("fieldRef"), errors);
            if other.is_some() {
                let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.invalid(path, "resource", detail);
            }
        }
        (None, Some(resource)) => resource_field_ref(resource, true, &path.child("resourceFieldRef"), errors),
        (None, None) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    mode(file, "mode", path, errors);
}

fn projected(value: &Value, path: &Path, errors: &mut FieldErrors) {
    mode(value, "defaultMode", path, errors);
    let mut files = Files { path, seen: Vec::new() };
    for (i, source) in value.list("sources").iter().enumerate() {
        let at = path.child("sources").index(i);
        let mut count = 0;
        for name in [
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ] {
            if let Some(value) = source.field(name) {
                count += 1;
                projection(name, value, &at.child(name), &mut files, errors);
            }
        }
        if count > 1 {
            errors.forbidden(&at, "may not specify more than 1 volume type per source");
        }
    }
}

/// The paths of files in a projected volume, which must differ.
struct Files<'a> {
    path: &'a Path,
    seen: Vec<String>,
}

impl Files<'_> {
    fn add(&mut self, file: &str, shown: &str, errors: &mut FieldErrors) {
        if file.is_empty() {
            return;
        }
        if self.seen.iter().any(|f| f == file) {
            errors.invalid(self.path, shown, "conflicting duplicate paths");
        } else {
            self.seen.push(file.to_owned());
        }
    }
}

fn projection(name: &str, value: &Value, path: &Path, files: &mut Files<'_>, errors: &mut FieldErrors) {
    match name {
        "secret" | "configMap" => {
            require(value, &["name"], path, errors);
            for (i, item) in value.list("items").iter().enumerate() {
                key_to_path(item, &path.child("items").index(i), errors);
                files.add(item.text("path"), value.text("name"), errors);
            }
        }
        "downwardAPI" => {
            for file in value.list("items") {
                downward_file(file, path, errors);
                files.add(file.text("path"), file.text("path"), errors);
            }
        }
        "serviceAccountToken" => token(value, path, files.path, errors),
        "clusterTrustBundle" => {
            let chosen = [value.field("name"), value.field("signerName")];
            match chosen.iter().flatten().count() {
                0 => errors.required(path, "either name or signerName must be specified"),
                1 => {}
                _ => errors.invalid(path, value.clone(), "only one of name and signerName may be used"),
            }
            require(value, &["path"], path, errors);
            non_reserved_path(value.text("path"), &path.child("path"), errors);
            files.add(value.text("path"), value.text("path"), errors);
        }
        _ => {
            for name in ["credentialBundlePath", "keyPath", "certificateChainPath"] {
                let file = value.text(name);
                if !file.is_empty() {
                    non_reserved_path(file, &path.child(name), errors);
                    files.add(file, file, errors);
                }
            }
        }
    }
}

fn token(value: &Value, path: &Path, volume: &Path, errors: &mut FieldErrors) {
    let seconds = value.int("expirationSeconds").unwrap_or_default();
    let at = path.child("expirationSeconds");
    if seconds < 600 {
        errors.invalid(&at, seconds, "may not specify a duration less than 10 minutes");
    }
    if seconds > 1 << 32 {
        errors.invalid(&at, seconds, "may not specify a duration larger than 2^32 seconds");
    }
    // Upstream names the volume's path here, not the source's.
    if value.text("path").is_empty() {
        errors.required(&volume.child("path"), "");
    } else {
        non_reserved_path(value.text("path"), &volume.child("path"), errors);
    }
}

/// A relative path without `..`.
pub(crate) fn local_path(target: &str, path: &Path, errors: &mut FieldErrors) {
    if target.starts_with('/') {
        errors.invalid(path, target, "must be a relative path");
    }
    no_backsteps(target, path, errors);
}

fn non_reserved_path(target: &str, path: &Path, errors: &mut FieldErrors) {
    local_path(target, path, errors);
    if target.starts_with("..") && !target.starts_with("../") {
        errors.invalid(path, target, "must not start with '..'");
    }
}

/// A path of which no part is `..`.
pub(crate) fn no_backsteps(target: &str, path: &Path, errors: &mut FieldErrors) {
    if target.split('/').any(|part| part == "..") {
        errors.invalid(path, target, "must not contain '..'");
    }
}

/// A `metav1.LabelSelector`.
pub(crate) fn label_selector(selector: &Value, path: &Path, errors: &mut FieldErrors) {
    super::meta::labels(selector, "matchLabels", &path.child("matchLabels"), errors);
    for (i, expression) in selector.list("matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let values = expression.list("values");
        match expression.text("operator") {
            "In" | "NotIn" if values.is_empty() => {
                errors
                    .required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.forbidden(&path.child("values"), detail);
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        for fault in qualified_name_faults(expression.text("key")) {
            errors.invalid(&path.child("key"), expression.text("key"), fault);
        }
        for (j, value) in values.iter().filter_map(Value::as_str).enumerate() {
            for fault in label_value_faults(value) {
                errors.invalid(&path.child("values").index(j), value, fault);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(list: &Value) -> Vec<String> {
        let mut errors = FieldErrors::new();
        volumes(list.as_array().unwrap(), &Path::new("v"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_volume_has_one_source_and_a_name_of_its_own() {
        assert!(check(&json!([{"name": "a", "emptyDir": {}}])).is_empty());
        assert_eq!(check(&json!([{"name": "a"}])), ["v[0]: Required value: must specify a volume type"]);
        assert_eq!(
            check(&json!([{"name": "a", "emptyDir": {}, "hostPath": {"path": "/x"}}])),
            ["v[0].hostPath: Forbidden: may not specify more than 1 volume type"]
        );
        assert_eq!(
            check(&json!([{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}])),
            ["v[1].name: Duplicate value: \"a\""]
        );
    }

    #[test]
    fn paths_and_modes_are_checked() {
        assert_eq!(
            check(&json!([{"name": "a", "hostPath": {"path": "/a/../b", "type": "Dir"}}])),
            [
                "v[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
                "v[0].hostPath.type: Unsupported value: \"Dir\": supported values: \"\", \"BlockDevice\", \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
            ]
        );
        assert_eq!(
            check(
                &json!([{"name": "a", "secret": {"defaultMode": 512, "items": [{"key": "k", "path": "/abs"}]}}])
            ),
            [
                "v[0].secret.secretName: Required value",
                "v[0].secret.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive",
                "v[0].secret.items[0].path: Invalid value: \"/abs\": must be a relative path",
            ]
        );
        assert_eq!(
            check(
                &json!([{"name": "a", "configMap": {"name": "c", "items": [{"key": "k", "path": "..x"}]}}])
            ),
            ["v[0].configMap.items[0].path: Invalid value: \"..x\": must not start with '..'"]
        );
    }

    #[test]
    fn projected_sources_do_not_overlap() {
        let source = json!({"configMap": {"name": "c", "items": [{"key": "k", "path": "p"}]}});
        assert_eq!(
            check(&json!([{"name": "a", "projected": {"sources": [source, source]}}])),
            ["v[0].projected: Invalid value: \"c\": conflicting duplicate paths"]
        );
        assert_eq!(
            check(
                &json!([{"name": "a", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 60}}]}}])
            ),
            [
                "v[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 60: may not specify a duration less than 10 minutes"
            ]
        );
        let field = json!({"downwardAPI": {"items": [{"path": "l", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.labels"}},
            {"path": "x", "fieldRef": {"apiVersion": "v1", "fieldPath": "spec.x"}}]}});
        let found = check(&json!([{"name": "a", "projected": {"sources": [field]}}]));
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("fieldRef.fieldPath: Invalid value: \"spec.x\": error converting fieldPath: field label not supported: spec.x"), "{found:?}");
    }
}
