//! Rows of the kinds that have little to say: `ConfigMap`, Secret, `ServiceAccount`, Namespace, Lease and Event.

use jiff::Timestamp;
use serde_json::Value;

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
