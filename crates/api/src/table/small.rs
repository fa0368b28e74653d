//! Rows of the kinds that have little to say: `ConfigMap`, Secret, Namespace, Lease, Event, quotas, budgets, classes.

use jiff::Timestamp;
use serde_json::Value;

use super::text::{self, NONE, UNSET, number};
use super::{Column, age_cell, name_cell};
use crate::access::{Access, spec, status};
use crate::time;

/// Name, Age.
pub(crate) const NAME_AGE: &[Column] = &[Column::NAME, Column::AGE];

/// The columns of a `ConfigMap`.
pub(crate) const CONFIG_MAP: &[Column] =
    &[Column::NAME, Column::text("Data", "How many keys there are."), Column::AGE];

/// The columns of a Secret.
pub(crate) const SECRET: &[Column] = &[
    Column::NAME,
    Column::text("Type", "What the Secret is for."),
    Column::text("Data", "How many keys there are."),
    Column::AGE,
];

/// The columns of a Namespace.
pub(crate) const NAMESPACE: &[Column] =
    &[Column::NAME, Column::text("Status", "Active, or Terminating while it is being emptied."), Column::AGE];

/// The columns of a Lease.
pub(crate) const LEASE: &[Column] =
    &[Column::NAME, Column::text("Holder", "Who holds the lease."), Column::AGE];

/// The columns of a `ComponentStatus`.
pub(crate) const COMPONENT_STATUS: &[Column] = &[
    Column::NAME,
    Column::text("Status", "Healthy or Unhealthy."),
    Column::text("Message", "What the component says."),
    Column::text("Error", "What went wrong."),
];

/// The columns of a `ResourceQuota`.
pub(crate) const RESOURCE_QUOTA: &[Column] = &[
    Column::NAME,
    Column::text("Request", "What is used of what may be requested."),
    Column::text("Limit", "What is used of what limits may add up to."),
    Column::AGE,
];

/// The columns of a `PodDisruptionBudget`.
pub(crate) const DISRUPTION_BUDGET: &[Column] = &[
    Column::NAME,
    Column::text("Min Available", "How many Pods must stay."),
    Column::text("Max Unavailable", "How many Pods may be missing."),
    Column::integer("Allowed Disruptions", "How many Pods may be evicted now."),
    Column::AGE,
];

/// The columns of a `HorizontalPodAutoscaler`.
pub(crate) const AUTOSCALER: &[Column] = &[
    Column::NAME,
    Column::text("Reference", "What is scaled."),
    Column::text("Targets", "What is measured, and what is aimed at."),
    Column::text("MinPods", "The fewest Pods."),
    Column::text("MaxPods", "The most Pods."),
    Column::text("Replicas", "How many Pods there are."),
    Column::AGE,
];

/// The columns of a `PriorityClass`.
pub(crate) const PRIORITY_CLASS: &[Column] = &[
    Column::NAME,
    Column::integer("Value", "The priority; more goes first."),
    Column::boolean("Global-Default", "Whether Pods have it that name none."),
    Column::AGE,
    Column::text("PreemptionPolicy", "Whether its Pods push others out."),
];

/// The columns of a `RuntimeClass`.
pub(crate) const RUNTIME_CLASS: &[Column] =
    &[Column::NAME, Column::text("Handler", "The runtime's name for it."), Column::AGE];

/// The columns of an Event.
pub(crate) const EVENT: &[Column] = &[
    Column::text("Last Seen", "The time since it happened last."),
    Column::text("Type", "Normal or Warning."),
    Column::text("Reason", "What happened, in one word for machines."),
    Column::text("Object", "What it happened to."),
    Column::wide("Subobject", "The part of the object."),
    Column::wide("Source", "Who says so."),
    Column::text("Message", "What happened, for people."),
    Column::wide("First Seen", "The time since it happened first."),
    Column::wide("Count", "How often it happened."),
    Column { format: "name", ..Column::wide("Name", "The event's own name.") },
];

pub(crate) fn name_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name_cell(object), age_cell(object, now)]
}

pub(crate) fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    let keys = count(object, "data") + count(object, "binaryData");
    vec![name_cell(object), keys.into(), age_cell(object, now)]
}

pub(crate) fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name_cell(object), object.text("type").into(), count(object, "data").into(), age_cell(object, now)]
}

pub(crate) fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name_cell(object), status(object).text("phase").into(), age_cell(object, now)]
}

pub(crate) fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name_cell(object), spec(object).text("holderIdentity").into(), age_cell(object, now)]
}

pub(crate) fn component_status(object: &Value, _now: Timestamp) -> Vec<Value> {
    let healthy = object.list("conditions").iter().find(|c| c.text("type") == "Healthy");
    let state = match healthy.map(|c| c.text("status")) {
        Some("True") => "Healthy",
        Some(_) => "Unhealthy",
        None => "Unknown",
    };
    let said = |field: &str| Value::from(healthy.map_or("", |c| c.text(field)));
    vec![name_cell(object), state.into(), said("message"), said("error")]
}

pub(crate) fn resource_quota(object: &Value, now: Timestamp) -> Vec<Value> {
    let used = |name: &str| status(object).map("used").and_then(|used| used.get(name)).cloned();
    let mut hard: Vec<(&String, &Value)> = status(object).map("hard").into_iter().flatten().collect();
    hard.sort_unstable_by_key(|(name, _)| *name);
    let column = |of_limits: bool| {
        let own = hard.iter().filter(|(name, _)| name.starts_with("limits.") == of_limits);
        let cells = own.map(|(name, hard)| {
            let used = used(name).unwrap_or_else(|| "0".into());
            format!("{name}: {}/{}", text::scalar(&used), text::scalar(hard))
        });
        cells.collect::<Vec<_>>().join(", ")
    };
    vec![name_cell(object), column(false).into(), column(true).into(), age_cell(object, now)]
}

pub(crate) fn disruption_budget(object: &Value, now: Timestamp) -> Vec<Value> {
    let amount = |name: &str| spec(object).field(name).map_or_else(|| "N/A".to_owned(), text::scalar);
    vec![
        name_cell(object),
        amount("minAvailable").into(),
        amount("maxUnavailable").into(),
        number(status(object), "disruptionsAllowed").into(),
        age_cell(object, now),
    ]
}

pub(crate) fn autoscaler(object: &Value, now: Timestamp) -> Vec<Value> {
    let none = Value::Null;
    let target = spec(object).field("scaleTargetRef").unwrap_or(&none);
    let least = spec(object).int("minReplicas");
    vec![
        name_cell(object),
        format!("{}/{}", target.text("kind"), target.text("name")).into(),
        metrics(spec(object).list("metrics"), status(object).list("currentMetrics")).into(),
        least.map_or_else(|| UNSET.to_owned(), |least| least.to_string()).into(),
        number(spec(object), "maxReplicas").into(),
        number(status(object), "currentReplicas").into(),
        age_cell(object, now),
    ]
}

/// The first two metrics, each as what is measured and what is aimed at.
fn metrics(wanted: &[Value], current: &[Value]) -> String {
    const SHOWN: usize = 2;
    let all: Vec<String> =
        wanted.iter().enumerate().map(|(i, metric)| metric_cell(metric, current.get(i))).collect();
    let shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match all.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown} + {more} more..."),
        _ => text::or(&shown, NONE).to_owned(),
    }
}

fn metric_cell(wanted: &Value, current: Option<&Value>) -> String {
    const UNKNOWN: &str = "<unknown>";
    let source = match wanted.text("type") {
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        "Pods" => "pods",
        "Object" => "object",
        "External" => "external",
        _ => return "<unknown type>".to_owned(),
    };
    let aim = |field: &str| wanted.pointer(&format!("/{source}/target/{field}")).filter(|v| !v.is_null());
    let measured = |field: &str| {
        let value = current.and_then(|c| c.pointer(&format!("/{source}/current/{field}")));
        value.map_or_else(|| UNKNOWN.to_owned(), text::scalar)
    };
    let name = wanted.pointer(&format!("/{source}/name")).map_or_else(String::new, text::scalar);
    match (source, aim("averageValue")) {
        ("resource" | "containerResource", Some(aim)) => {
            format!("{name}: {}/{}", measured("averageValue"), text::scalar(aim))
        }
        ("resource" | "containerResource", None) => {
            let percent = |value: &Value| format!("{value}%");
            let now = current.and_then(|c| c.pointer(&format!("/{source}/current/averageUtilization")));
            let now = now.map_or_else(|| UNKNOWN.to_owned(), percent);
            format!(
                "{name}: {now}/{}",
                aim("averageUtilization").map_or_else(|| "<auto>".to_owned(), percent)
            )
        }
        ("pods", aim) => {
            format!("{}/{}", measured("averageValue"), aim.map(text::scalar).unwrap_or_default())
        }
        (_, Some(aim)) => format!("{}/{} (avg)", measured("averageValue"), text::scalar(aim)),
        (_, None) => format!("{}/{}", measured("value"), aim("value").map(text::scalar).unwrap_or_default()),
    }
}

pub(crate) fn priority_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name_cell(object),
        number(object, "value").into(),
        object.is_true("globalDefault").into(),
        age_cell(object, now),
        object.text("preemptionPolicy").into(),
    ]
}

pub(crate) fn runtime_class(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name_cell(object), object.text("handler").into(), age_cell(object, now)]
}

fn count(object: &Value, field: &str) -> usize {
    object.map(field).map_or(0, serde_json::Map::len)
}

/// The row of a `v1` Event.
pub(crate) fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let none = Value::Null;
    let involved = event.field("involvedObject").unwrap_or(&none);
    let since = |name: &str| time::of(event.field(name));
    let first = time::age(since("firstTimestamp").or_else(|| since("eventTime")), now);
    let series = event.field("series");
    let last = match (series, since("lastTimestamp")) {
        (Some(series), _) => time::age(time::of(series.field("lastObservedTime")), now),
        (None, Some(last)) => time::age(Some(last), now),
        (None, None) => first.clone(),
    };
    let count = match series {
        Some(series) => series.int("count").unwrap_or_default(),
        None => event.int("count").unwrap_or_default().max(1),
    };
    vec![
        last.into(),
        event.text("type").into(),
        event.text("reason").into(),
        target(involved).into(),
        involved.text("fieldPath").into(),
        source(event).into(),
        event.text("message").trim().into(),
        first.into(),
        count.into(),
        name_cell(event),
    ]
}

fn target(involved: &Value) -> String {
    let kind = involved.text("kind").to_lowercase();
    match involved.text("name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(event: &Value) -> String {
    let none = Value::Null;
    let source = event.field("source").unwrap_or(&none);
    let first = |a: &'_ str, b: &'_ str| if a.is_empty() { b.to_owned() } else { a.to_owned() };
    let component = first(source.text("component"), event.text("reportingComponent"));
    let instance = first(source.text("host"), event.text("reportingInstance"));
    if instance.is_empty() { component } else { format!("{component}, {instance}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_old_event_counts_and_a_new_one_has_a_series() {
        let now: Timestamp = "2026-11-23T12:00:10Z".parse().unwrap();
        let old = json!({"metadata": {"name": "p.1"}, "type": "Warning", "reason": "BackOff",
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec.containers{a}"},
            "source": {"component": "kubelet", "host": "n"}, "message": " Back-off \n", "count": 3,
            "firstTimestamp": "2026-11-23T12:00:00Z", "lastTimestamp": "2026-11-23T12:00:05Z"});
        assert_eq!(
            event(&old, now),
            [
                json!("5s"),
                json!("Warning"),
                json!("BackOff"),
                json!("pod/p"),
                json!("spec.containers{a}"),
                json!("kubelet, n"),
                json!("Back-off"),
                json!("10s"),
                json!(3),
                json!("p.1")
            ]
        );
        let new = json!({"metadata": {"name": "q"}, "eventTime": "2026-11-23T12:00:00.000000Z", "reportingComponent": "x",
            "series": {"count": 4, "lastObservedTime": "2026-11-23T12:00:09.000000Z"}});
        let row = event(&new, now);
        assert_eq!(
            (&row[0], &row[5], &row[7], &row[8]),
            (&json!("1s"), &json!("x"), &json!("10s"), &json!(4))
        );
    }

    #[test]
    fn keys_are_counted() {
        let now = Timestamp::UNIX_EPOCH;
        let map = json!({"metadata": {"name": "c"}, "data": {"a": "1"}, "binaryData": {"b": "eA=="}});
        assert_eq!(config_map(&map, now)[1], 2);
        assert_eq!(
            secret(&json!({"type": "Opaque", "data": {"a": "eA=="}}), now)[1..3],
            [json!("Opaque"), json!(1)]
        );
    }
}
