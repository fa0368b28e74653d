//! What `kubectl` looks for in the documents.

use serde_json::{Value, json};

use super::*;
use crate::kind::kinds;

fn document(group: &str, version: &str) -> Value {
    let kinds: Vec<&Kind> =
        kinds().iter().filter(|kind| (kind.group, kind.version) == (group, version)).collect();
    v3_document(group, version, &kinds, &Descriptions::default())
}

#[test]
fn a_patch_of_each_kind_takes_field_validation() {
    let core = document("", "v1");
    for kind in kinds().iter().filter(|kind| kind.group.is_empty() && kind.has_verb("patch")) {
        let scope = if kind.namespaced { "namespaces/{namespace}/" } else { "" };
        let operation = &core["paths"][&format!("/api/v1/{scope}{}/{{name}}", kind.plural)]["patch"];
        assert_eq!(
            operation["x-kubernetes-group-version-kind"],
            json!({"group": "", "kind": kind.kind, "version": "v1"}),
            "{}",
            kind.kind
        );
        let parameters = operation["parameters"].as_array().unwrap();
        assert!(
            parameters.iter().any(|p| p["name"] == "fieldValidation" && p["in"] == "query"),
            "{}",
            kind.kind
        );
    }
}

#[test]
fn a_pods_schema_has_merge_keys_and_its_kind() {
    let core = document("", "v1");
    let schemas = &core["components"]["schemas"];
    assert_eq!(
        schemas["io.k8s.api.core.v1.Pod"]["x-kubernetes-group-version-kind"],
        json!([{"group": "", "kind": "Pod", "version": "v1"}])
    );
    assert_eq!(
        schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["volumes"],
        json!({"type": "array", "items": {"allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.Volume"}]},
            "x-kubernetes-list-map-keys": ["name"], "x-kubernetes-list-type": "map",
            "x-kubernetes-patch-merge-key": "name", "x-kubernetes-patch-strategy": "merge,retainKeys"})
    );
    assert_eq!(schemas["io.k8s.api.core.v1.PodSpec"]["required"], json!(["containers"]));
}

#[test]
fn every_reference_leads_somewhere() {
    for (group, version) in crate::discovery::group_versions()
        .into_iter()
        .flat_map(|(group, versions)| versions.into_iter().map(move |v| (group, v)))
    {
        let document = document(group, version);
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let mut todo = vec![&document];
        while let Some(value) = todo.pop() {
            match value {
                Value::Object(members) => {
                    if let Some(name) = members.get("$ref").and_then(Value::as_str) {
                        let name = name.strip_prefix("#/components/schemas/").unwrap();
                        assert!(schemas.get(name).is_some_and(Value::is_object), "{name}");
                    }
                    todo.extend(members.values());
                }
                Value::Array(items) => todo.extend(items),
                _ => {}
            }
        }
    }
}

#[test]
fn the_index_names_each_document_with_its_hash() {
    assert_eq!(
        v3_index([("api/v1", "abc")]),
        json!({"paths": {"api/v1": {"serverRelativeURL": "/openapi/v3/api/v1?hash=abc"}}})
    );
}

#[test]
fn lists_are_described() {
    let core = document("", "v1");
    assert_eq!(
        core["components"]["schemas"]["io.k8s.api.core.v1.PodList"]["x-kubernetes-group-version-kind"],
        json!([{"group": "", "kind": "PodList", "version": "v1"}])
    );
    assert_eq!(core["paths"]["/api/v1/pods"]["get"]["x-kubernetes-action"], "list");
}
