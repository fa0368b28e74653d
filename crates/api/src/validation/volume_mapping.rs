//! The annotation `kakoi.dev/volume-mapping.<volume>: none`: a hostPath volume of a Pod with a user namespace is
//! mounted without an ID mapping, so that its files belong to nobody inside the Pod.

use serde_json::Value;

use super::{FieldErrors, Path};
use crate::access::{Access, metadata, spec};

/// What stands before the volume's name in the annotation's key.
pub const PREFIX: &str = "kakoi.dev/volume-mapping.";
/// The only value there is.
pub const NONE: &str = "none";

/// Whether a volume is mounted as the node sees it, without an ID mapping.
pub fn is_unmapped(pod: &Value, volume: &str) -> bool {
    let key = format!("{PREFIX}{volume}");
    metadata(pod).map("annotations").and_then(|a| a.get(&key)).is_some_and(|v| v == NONE)
}

/// The annotation names hostPath volumes of its Pod and has the value `none`; anything else would be dropped in
/// silence, so it is refused.
pub(super) fn validate(pod: &Value, path: &Path, errors: &mut FieldErrors) {
    for (key, value) in metadata(pod).entries("annotations") {
        let Some(volume) = key.strip_prefix(PREFIX) else { continue };
        let path = path.key(key);
        if value != NONE {
            errors.not_supported(&path, value, &[NONE]);
        }
        match spec(pod).list("volumes").iter().find(|v| v.text("name") == volume) {
            None => errors.not_found(&path, volume),
            Some(found) if found.field("hostPath").is_none() => {
                let detail = "only a hostPath volume can be mounted without an ID mapping; every other volume is the Pod's own: remove the annotation";
                errors.invalid(&path, volume, detail);
            }
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(key: &str, value: &str) -> Vec<String> {
        let pod = json!({"metadata": {"annotations": {key: value}},
            "spec": {"volumes": [{"name": "h", "hostPath": {"path": "/x"}}, {"name": "e", "emptyDir": {}}]}});
        let mut errors = FieldErrors::new();
        validate(&pod, &Path::new("metadata").child("annotations"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_annotation_names_a_host_path_volume_and_says_none() {
        assert!(check("kakoi.dev/volume-mapping.h", "none").is_empty());
        assert!(check("example.com/x", "y").is_empty());
        assert_eq!(
            check("kakoi.dev/volume-mapping.h", "idmap"),
            [
                "metadata.annotations[kakoi.dev/volume-mapping.h]: Unsupported value: \"idmap\": supported values: \"none\""
            ]
        );
        assert_eq!(
            check("kakoi.dev/volume-mapping.x", "none"),
            ["metadata.annotations[kakoi.dev/volume-mapping.x]: Not found: \"x\""]
        );
        assert!(check("kakoi.dev/volume-mapping.e", "none")[0].contains("only a hostPath volume"));
    }

    #[test]
    fn only_the_named_volume_is_unmapped() {
        let pod = json!({"metadata": {"annotations": {"kakoi.dev/volume-mapping.h": "none"}}});
        assert!(is_unmapped(&pod, "h") && !is_unmapped(&pod, "i"));
        assert!(!is_unmapped(&json!({}), "h"));
    }
}
