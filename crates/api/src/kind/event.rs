//! Events: one stored object (in the form of `v1`), two views of it (`v1` and `events.k8s.io/v1`).

use jiff::Timestamp;
use serde_json::Value;

use super::FieldReader;
use crate::access::{Access, metadata};
use crate::table::small;

/// Names of a field in `events.k8s.io/v1` and in `v1`.
const RENAMED: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
    ("reportingController", "reportingComponent"),
];

/// Turns an `events.k8s.io/v1` Event into a `v1` Event.
pub(crate) fn to_stored(event: &mut Value) {
    rename(event, "v1", |name| RENAMED.iter().find(|(new, _)| *new == name).map(|(_, old)| *old));
}

/// Turns a `v1` Event into an `events.k8s.io/v1` Event.
pub(super) fn from_stored(event: &mut Value) {
    rename(event, "events.k8s.io/v1", |name| {
        RENAMED.iter().find(|(_, old)| *old == name).map(|(new, _)| *new)
    });
}

fn rename(event: &mut Value, api_version: &str, new_name: impl Fn(&str) -> Option<&'static str>) {
    let Some(fields) = event.as_object_mut() else { return };
    *fields = std::mem::take(fields)
        .into_iter()
        .map(|(name, value)| match name.as_str() {
            "apiVersion" => (name, api_version.into()),
            other => (new_name(other).map_or_else(|| other.to_owned(), str::to_owned), value),
        })
        .collect();
}

fn involved<'a>(event: &'a Value, object: &str, field: &str) -> &'a str {
    event.get(object).unwrap_or(&Value::Null).text(field)
}

macro_rules! reader {
    ($object:literal, $field:literal) => {
        |o| involved(o, $object, $field).to_owned()
    };
}

/// Fields of a `v1` Event that field selectors may name.
pub(super) const SELECTABLE: &[(&str, FieldReader)] = &[
    ("involvedObject.kind", reader!("involvedObject", "kind")),
    ("involvedObject.namespace", reader!("involvedObject", "namespace")),
    ("involvedObject.name", reader!("involvedObject", "name")),
    ("involvedObject.uid", reader!("involvedObject", "uid")),
    ("involvedObject.apiVersion", reader!("involvedObject", "apiVersion")),
    ("involvedObject.resourceVersion", reader!("involvedObject", "resourceVersion")),
    ("involvedObject.fieldPath", reader!("involvedObject", "fieldPath")),
    ("reason", |o| o.text("reason").to_owned()),
    ("reportingComponent", |o| o.text("reportingComponent").to_owned()),
    ("source", source),
    ("type", |o| o.text("type").to_owned()),
];

/// Fields of an `events.k8s.io/v1` Event that field selectors may name.
pub(super) const VIEW_SELECTABLE: &[(&str, FieldReader)] = &[
    ("regarding.kind", reader!("regarding", "kind")),
    ("regarding.namespace", reader!("regarding", "namespace")),
    ("regarding.name", reader!("regarding", "name")),
    ("regarding.uid", reader!("regarding", "uid")),
    ("regarding.apiVersion", reader!("regarding", "apiVersion")),
    ("regarding.resourceVersion", reader!("regarding", "resourceVersion")),
    ("regarding.fieldPath", reader!("regarding", "fieldPath")),
    ("reason", |o| o.text("reason").to_owned()),
    ("reportingController", |o| o.text("reportingController").to_owned()),
    ("type", |o| o.text("type").to_owned()),
];

fn source(event: &Value) -> String {
    match involved(event, "source", "component") {
        "" => event.text("reportingComponent").to_owned(),
        component => component.to_owned(),
    }
}

/// The row of an `events.k8s.io/v1` Event.
pub(super) fn view_row(event: &Value, now: Timestamp) -> Vec<Value> {
    let mut stored = event.clone();
    to_stored(&mut stored);
    small::event(&stored, now)
}

/// The namespace in which an Event about a cluster-wide object stands.
pub fn namespace_of(event: &Value) -> &str {
    match metadata(event).text("namespace") {
        "" => "default",
        namespace => namespace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_two_views_are_one_object() {
        let stored = json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": "e"},
            "involvedObject": {"kind": "Pod", "name": "p"}, "reason": "Started", "message": "m",
            "source": {"component": "kubelet"}, "firstTimestamp": "t", "count": 1, "reportingComponent": "kubelet"});
        let mut view = stored.clone();
        from_stored(&mut view);
        assert_eq!(view["apiVersion"], "events.k8s.io/v1");
        assert_eq!(view["regarding"]["name"], "p");
        assert_eq!(view["note"], "m");
        assert_eq!(view["deprecatedCount"], 1);
        assert_eq!(view["reportingController"], "kubelet");
        to_stored(&mut view);
        assert_eq!(view, stored);
    }
}
