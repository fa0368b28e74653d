//! Autoscalers: one stored object (in the form of `autoscaling/v2`), two views of it. What `v1` has no field for it
//! carries in annotations, as upstream's conversion does.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::Ctx;
use crate::access::{Access, object_at, remove, set};
use crate::table::small;
use crate::validation::{FieldErrors, policy};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
/// The utilization that v1 aims at when it names none, in per cent.
const DEFAULT_UTILIZATION: i64 = 80;

/// Where a metric's field is in v1 and in v2: pointers below the metric's source.
type Pair = (&'static str, &'static str);

const RESOURCE: &[Pair] = &[
    ("/name", "/name"),
    ("/container", "/container"),
    ("/targetAverageUtilization", "/target/averageUtilization"),
    ("/targetAverageValue", "/target/averageValue"),
    ("/currentAverageUtilization", "/current/averageUtilization"),
    ("/currentAverageValue", "/current/averageValue"),
];
const PODS: &[Pair] = &[
    ("/metricName", "/metric/name"),
    ("/selector", "/metric/selector"),
    ("/targetAverageValue", "/target/averageValue"),
    ("/currentAverageValue", "/current/averageValue"),
];
const OBJECT: &[Pair] = &[
    ("/metricName", "/metric/name"),
    ("/selector", "/metric/selector"),
    ("/target", "/describedObject"),
    ("/targetValue", "/target/value"),
    ("/averageValue", "/target/averageValue"),
];
const OBJECT_STATUS: &[Pair] = &[
    ("/metricName", "/metric/name"),
    ("/selector", "/metric/selector"),
    ("/target", "/describedObject"),
    ("/currentValue", "/current/value"),
    ("/averageValue", "/current/averageValue"),
];
const EXTERNAL: &[Pair] = &[
    ("/metricName", "/metric/name"),
    ("/metricSelector", "/metric/selector"),
    ("/targetValue", "/target/value"),
    ("/targetAverageValue", "/target/averageValue"),
    ("/currentValue", "/current/value"),
    ("/currentAverageValue", "/current/averageValue"),
];

/// What a list of metrics says: what is aimed at, or what there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Target,
    Current,
}

/// The source's field of a metric of this type, and its pairs.
fn source_of(metric: &Value, side: Side) -> Option<(&'static str, &'static [Pair])> {
    Some(match (metric.text("type"), side) {
        ("Resource", _) => ("resource", RESOURCE),
        ("ContainerResource", _) => ("containerResource", RESOURCE),
        ("Pods", _) => ("pods", PODS),
        ("Object", Side::Target) => ("object", OBJECT),
        ("Object", Side::Current) => ("object", OBJECT_STATUS),
        ("External", _) => ("external", EXTERNAL),
        _ => return None,
    })
}

fn put(object: &mut Value, pointer: &str, value: Value) {
    let mut parts = pointer.trim_start_matches('/').split('/');
    match (parts.next(), parts.next()) {
        (Some(outer), Some(inner)) => {
            object_at(object, outer).insert(inner.to_owned(), value);
        }
        (Some(name), None) => set(object, name, value),
        (None, _) => {}
    }
}

fn metric_to_v1(metric: &Value, side: Side) -> Value {
    let Some((name, pairs)) = source_of(metric, side) else { return metric.clone() };
    let mut source = json!({});
    for (v1, v2) in pairs {
        if let Some(value) = metric.field(name).and_then(|old| old.pointer(v2)) {
            put(&mut source, v1, value.clone());
        }
    }
    let mut out = json!({"type": metric.text("type")});
    set(&mut out, name, source);
    out
}

fn metric_to_v2(metric: &Value, side: Side) -> Value {
    let Some((name, pairs)) = source_of(metric, side) else { return metric.clone() };
    let mut source = json!({});
    for (v1, v2) in pairs {
        if let Some(value) = metric.field(name).and_then(|old| old.pointer(v1)) {
            put(&mut source, v2, value.clone());
        }
    }
    if side == Side::Target {
        let target = source.get("target").cloned().unwrap_or_default();
        let kind = match () {
            () if target.field("averageUtilization").is_some() => "Utilization",
            () if target.field("averageValue").is_some() => "AverageValue",
            () if target.field("value").is_some() => "Value",
            () => "AverageValue",
        };
        put(&mut source, "/target/type", kind.into());
    }
    let mut out = json!({"type": metric.text("type")});
    set(&mut out, name, source);
    out
}

/// Whether a metric is the one that v1 has a field for.
fn is_cpu_utilization(metric: &Value) -> bool {
    metric.text("type") == "Resource"
        && metric.pointer("/resource/name").is_some_and(|name| name == "cpu")
        && metric.pointer("/resource/target/averageUtilization").is_some_and(Value::is_number)
}

fn take_annotation(object: &mut Value, name: &str) -> Option<Value> {
    let annotations = object.pointer_mut("/metadata/annotations")?.as_object_mut()?;
    let text = annotations.shift_remove(name)?;
    serde_json::from_str(text.as_str()?).ok()
}

fn put_annotation(object: &mut Value, name: &str, value: &Value) {
    object_at(object, "metadata");
    if let Some(meta) = object.get_mut("metadata") {
        object_at(meta, "annotations").insert(name.to_owned(), value.to_string().into());
    }
}

fn take(object: &mut Value, part: &str, field: &str) -> Option<Value> {
    object.get_mut(part)?.as_object_mut()?.shift_remove(field).filter(|value| !value.is_null())
}

/// Keys of the annotation with the behaviour begin with capitals.
fn with_first_letters(value: &Value, change: fn(&str) -> String) -> Value {
    match value {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (change(name), with_first_letters(value, change))).collect()
        }
        Value::Array(items) => items.iter().map(|item| with_first_letters(item, change)).collect(),
        other => other.clone(),
    }
}

fn first_letter(name: &str, change: fn(char) -> char) -> String {
    let mut letters = name.chars();
    letters.next().map(change).into_iter().chain(letters).collect()
}

/// Turns an `autoscaling/v1` object into an `autoscaling/v2` one.
pub(crate) fn to_stored(object: &mut Value) {
    set(object, "apiVersion", "autoscaling/v2");
    let each = |list: Option<Value>, side| -> Vec<Value> {
        list.iter().filter_map(Value::as_array).flatten().map(|metric| metric_to_v2(metric, side)).collect()
    };
    let mut metrics = each(take_annotation(object, METRICS), Side::Target);
    if let Some(percent) = take(object, "spec", "targetCPUUtilizationPercentage") {
        metrics.push(cpu_target(&percent));
    }
    if metrics.is_empty() {
        metrics.push(cpu_target(&DEFAULT_UTILIZATION.into()));
    }
    object_at(object, "spec").insert("metrics".into(), metrics.into());
    if let Some(behavior) = take_annotation(object, BEHAVIOR) {
        let behavior = with_first_letters(&behavior, |name| first_letter(name, |c| c.to_ascii_lowercase()));
        object_at(object, "spec").insert("behavior".into(), behavior);
    }
    let percent = take(object, "status", "currentCPUUtilizationPercentage");
    let mut current = each(take_annotation(object, CURRENT_METRICS), Side::Current);
    if let Some(percent) = percent
        && current.is_empty()
    {
        current.push(json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}}));
    }
    if !current.is_empty() {
        object_at(object, "status").insert("currentMetrics".into(), current.into());
    }
    if let Some(conditions) = take_annotation(object, CONDITIONS) {
        object_at(object, "status").insert("conditions".into(), conditions);
    }
    drop_empty_annotations(object);
}

fn cpu_target(percent: &Value) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": percent});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

fn drop_empty_annotations(object: &mut Value) {
    if let Some(meta) = object.get_mut("metadata")
        && meta.map("annotations").is_some_and(Map::is_empty)
    {
        remove(meta, "annotations");
    }
}

/// Turns an `autoscaling/v2` object into an `autoscaling/v1` one.
pub(super) fn from_stored(object: &mut Value) {
    set(object, "apiVersion", "autoscaling/v1");
    let items = |value: Option<Value>| match value {
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    let (cpu, other): (Vec<Value>, Vec<Value>) =
        items(take(object, "spec", "metrics")).into_iter().partition(is_cpu_utilization);
    if let Some(percent) = cpu.first().and_then(|m| m.pointer("/resource/target/averageUtilization")) {
        object_at(object, "spec").insert("targetCPUUtilizationPercentage".into(), percent.clone());
    }
    let annotate = |object: &mut Value, name: &str, list: Vec<Value>, side| {
        if !list.is_empty() {
            let list: Value = list.iter().map(|metric| metric_to_v1(metric, side)).collect();
            put_annotation(object, name, &list);
        }
    };
    annotate(object, METRICS, other, Side::Target);
    let current = items(take(object, "status", "currentMetrics"));
    let is_cpu = |metric: &&Value| metric.pointer("/resource/name").is_some_and(|name| name == "cpu");
    if let Some(percent) =
        current.iter().find(is_cpu).and_then(|m| m.pointer("/resource/current/averageUtilization"))
    {
        object_at(object, "status").insert("currentCPUUtilizationPercentage".into(), percent.clone());
    }
    annotate(object, CURRENT_METRICS, current, Side::Current);
    if let Some(behavior) = take(object, "spec", "behavior") {
        let behavior = with_first_letters(&behavior, |name| first_letter(name, |c| c.to_ascii_uppercase()));
        put_annotation(object, BEHAVIOR, &behavior);
    }
    let conditions = items(take(object, "status", "conditions"));
    if !conditions.is_empty() {
        put_annotation(object, CONDITIONS, &conditions.into());
    }
}

/// Rules for a new `autoscaling/v1` object: those of what it is stored as.
pub(super) fn v1_rules(object: &Value, ctx: &Ctx) -> FieldErrors {
    policy::autoscaler(&stored(object), ctx)
}

/// Rules for a changed `autoscaling/v1` object.
pub(super) fn v1_update_rules(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    policy::autoscaler_update(&stored(new), &stored(old), ctx)
}

fn stored(view: &Value) -> Value {
    let mut stored = view.clone();
    to_stored(&mut stored);
    stored
}

/// The row of an `autoscaling/v1` object.
pub(super) fn v1_row(object: &Value, now: Timestamp) -> Vec<Value> {
    small::autoscaler(&stored(object), now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{metadata, spec, status};

    #[test]
    fn v1_keeps_what_it_has_no_field_for_in_annotations() {
        let stored = json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2",
            "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"},
                "behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 4, "periodSeconds": 60}]}},
                "metrics": [
                    {"type": "Pods", "pods": {"metric": {"name": "qps"}, "target": {"type": "AverageValue", "averageValue": "1k"}}},
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]},
            "status": {"currentReplicas": 1, "conditions": [{"type": "AbleToScale", "status": "True"}],
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 20, "averageValue": "20m"}}}]}});
        let mut view = stored.clone();
        from_stored(&mut view);
        assert_eq!(view["apiVersion"], "autoscaling/v1");
        assert_eq!(view["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(view["status"]["currentCPUUtilizationPercentage"], 20);
        assert_eq!(
            view["metadata"]["annotations"][METRICS],
            r#"[{"type":"Pods","pods":{"metricName":"qps","targetAverageValue":"1k"}}]"#
        );
        assert!(view["metadata"]["annotations"][BEHAVIOR].as_str().unwrap().contains("\"ScaleUp\""));
        to_stored(&mut view);
        assert_eq!(view, stored);
    }

    #[test]
    fn v1_without_a_target_aims_at_80_percent() {
        let mut object = json!({"kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v1",
            "metadata": {"name": "a"}, "spec": {"maxReplicas": 3}});
        to_stored(&mut object);
        assert_eq!(object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert!(spec(&object).field("targetCPUUtilizationPercentage").is_none());
        assert!(status(&object).is_null() && metadata(&object).map("annotations").is_none());
    }
}
