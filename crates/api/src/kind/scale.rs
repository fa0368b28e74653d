//! The `Scale` view of a workload: how many there shall be, how many there are, and what is counted.

use serde_json::{Map, Value, json};

use super::{Kind, Scale};
use crate::access::{Access, metadata, object_at};
use crate::table::text;
use crate::validation::{FieldErrors, Path};

/// The object as `autoscaling/v1` `Scale`; `None` for kinds without that subresource.
pub fn of(kind: &Kind, object: &Value) -> Option<Value> {
    let Scale { wanted, current, selector } = kind.scale?;
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default();
    let meta = metadata(object);
    let own: Map<String, Value> = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), meta.field(name)?.clone())))
        .collect();
    let mut spec = Map::new();
    if number(wanted) != 0 {
        spec.insert("replicas".into(), number(wanted).into());
    }
    let mut status = Map::new();
    status.insert("replicas".into(), number(current).into());
    let selector = selector_text(object.pointer(selector));
    if !selector.is_empty() {
        status.insert("selector".into(), selector.into());
    }
    Some(
        json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": own, "spec": spec, "status": status}),
    )
}

/// A label selector, or a plain map of labels, as text.
fn selector_text(selector: Option<&Value>) -> String {
    let Some(selector) = selector else { return String::new() };
    let is_object = ["matchLabels", "matchExpressions"].iter().any(|name| selector.field(name).is_some());
    let text = if is_object {
        text::selector(Some(selector))
    } else {
        text::selector(Some(&json!({"matchLabels": selector})))
    };
    if text == text::NONE { String::new() } else { text }
}

/// Rules for a Scale that is written.
pub fn validate(scale: &Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    let path = Path::new("spec").child("replicas");
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64);
    crate::validation::meta::non_negative(replicas, &path, &mut errors);
    errors
}

/// Writes what a Scale wishes for into the object.
pub fn write(kind: &Kind, object: &mut Value, scale: &Value) {
    let path = kind.scale.and_then(|scale| scale.wanted.trim_start_matches('/').split_once('/'));
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or_default();
    if let Some((outer, inner)) = path {
        object_at(object, outer).insert(inner.to_owned(), replicas.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::find;

    #[test]
    fn a_scale_shows_and_writes_the_number_of_pods() {
        let kind = find("apps", "v1", "deployments").unwrap();
        let mut object = json!({"metadata": {"name": "d", "namespace": "n", "uid": "u", "resourceVersion": "7"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "d"}}}, "status": {"replicas": 2}});
        let mut scale = of(kind, &object).unwrap();
        assert_eq!(
            scale["metadata"],
            json!({"name": "d", "namespace": "n", "uid": "u", "resourceVersion": "7"})
        );
        assert_eq!(
            (&scale["spec"], &scale["status"]),
            (&json!({"replicas": 3}), &json!({"replicas": 2, "selector": "app=d"}))
        );
        scale["spec"]["replicas"] = 5.into();
        write(kind, &mut object, &scale);
        assert_eq!(object["spec"]["replicas"], 5);
        assert!(of(find("", "v1", "pods").unwrap(), &object).is_none());
    }

    #[test]
    fn the_selector_of_a_replication_controller_is_a_map() {
        let kind = find("", "v1", "replicationcontrollers").unwrap();
        let object = json!({"spec": {"replicas": 0, "selector": {"b": "1", "a": "2"}}});
        let scale = of(kind, &object).unwrap();
        assert_eq!((&scale["spec"], &scale["status"]["selector"]), (&json!({}), &json!("a=2,b=1")));
    }

    #[test]
    fn there_are_no_negative_scales() {
        let text = validate(&json!({"spec": {"replicas": -1}})).to_string();
        assert_eq!(text, "spec.replicas: Invalid value: -1: must be greater than or equal to 0");
    }
}
