//! Rules for Events, for both of their views.

use serde_json::Value;

use super::meta::{immutable, object_meta, object_meta_update};
use super::{FieldErrors, Path};
use crate::access::{Access, metadata};
use crate::kind::Ctx;
use crate::name::{dns_subdomain_faults, qualified_name_faults};

/// Rules for a new `v1` Event.
pub fn event(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = FieldErrors::new();
    common(object, "reportingComponent", &mut errors);
    errors
}

/// Rules for a changed `v1` Event.
pub fn event_update(new: &Value, _old: &Value, ctx: &Ctx) -> FieldErrors {
    event(new, ctx)
}

/// Rules for a new `events.k8s.io/v1` Event, given in that form.
pub fn event_view(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let stored = stored(object);
    let mut errors = FieldErrors::new();
    common(&stored, "reportingController", &mut errors);
    errors.extend(object_meta(&stored, true, dns_subdomain_faults));
    series(&stored, &mut errors);
    if stored.field("eventTime").is_none() {
        errors.required(&Path::new("eventTime"), "");
    }
    if !matches!(stored.text("type"), "Normal" | "Warning") {
        errors.invalid(&Path::new("type"), "", format!("has invalid value: {}", stored.text("type")));
    }
    for name in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        let is_set =
            stored.field(name).is_some_and(|v| v != 0 && v.as_object().is_none_or(|o| !o.is_empty()));
        if is_set {
            errors.invalid(&Path::new(name), "", "needs to be unset");
        }
    }
    errors
}

/// Rules for a changed `events.k8s.io/v1` Event: only its series grows.
pub fn event_view_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let (new, old) = (stored(new), stored(old));
    let mut errors = FieldErrors::new();
    common(&new, "reportingController", &mut errors);
    errors.extend(object_meta_update(&new, &old));
    if new.field("series") != old.field("series") {
        series(&new, &mut errors);
    }
    let null = Value::Null;
    for (name, shown) in [
        ("involvedObject", "involvedObject"),
        ("reason", "reason"),
        ("message", "message"),
        ("source", "source"),
        ("firstTimestamp", "firstTimestamp"),
        ("lastTimestamp", "lastTimestamp"),
        ("count", "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ] {
        let (new, old) = (new.get(name).unwrap_or(&null), old.get(name).unwrap_or(&null));
        immutable(new, old, &Path::new(shown), &mut errors);
    }
    errors
}

fn stored(view: &Value) -> Value {
    let mut stored = view.clone();
    crate::kind::event::to_stored(&mut stored);
    stored
}

fn common(event: &Value, controller_field: &str, errors: &mut FieldErrors) {
    let null = Value::Null;
    let namespace = metadata(event).text("namespace");
    let involved = event.field("involvedObject").unwrap_or(&null).text("namespace");
    let is_new_form = event.field("eventTime").is_some();
    let is_wrong = match (is_new_form, involved.is_empty()) {
        (false, true) => !matches!(namespace, "" | "default"),
        (false, false) => namespace != involved,
        (true, true) => !matches!(namespace, "default" | "kube-system"),
        (true, false) => false,
    };
    if is_wrong {
        let path = Path::new("involvedObject").child("namespace");
        errors.invalid(&path, involved, "does not match event.namespace");
    }
    if is_new_form {
        new_form(event, controller_field, errors);
    }
    for fault in dns_subdomain_faults(namespace) {
        errors.invalid(&Path::new("namespace"), namespace, fault);
    }
}

fn new_form(event: &Value, controller_field: &str, errors: &mut FieldErrors) {
    let controller = event.text("reportingComponent");
    let path = Path::new(controller_field);
    if controller.is_empty() {
        errors.required(&path, "");
    }
    for fault in qualified_name_faults(controller) {
        errors.invalid(&path, controller, fault);
    }
    for (name, max) in [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)] {
        let value = event.text(name);
        if value.is_empty() && name != "message" {
            errors.required(&Path::new(name), "");
        }
        if value.len() > max {
            errors.invalid(&Path::new(name), "", format!("can have at most {max} characters"));
        }
    }
}

fn series(event: &Value, errors: &mut FieldErrors) {
    let Some(series) = event.field("series") else { return };
    if series.int("count").unwrap_or_default() < 2 {
        errors.invalid(&Path::new("series.count"), "", "should be at least 2");
    }
    if series.field("lastObservedTime").is_none() {
        errors.required(&Path::new("series.lastObservedTime"), "");
    }
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

    #[test]
    fn an_event_stands_where_its_object_is() {
        let old_form =
            json!({"metadata": {"name": "e", "namespace": "a"}, "involvedObject": {"namespace": "b"}});
        assert_eq!(
            event(&old_form, &ctx()).to_string(),
            "involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"
        );
        let cluster_wide =
            json!({"metadata": {"name": "e", "namespace": "default"}, "involvedObject": {"kind": "Node"}});
        assert!(event(&cluster_wide, &ctx()).is_empty());
    }

    #[test]
    fn the_new_form_needs_its_reporter() {
        let view = json!({"metadata": {"name": "e", "namespace": "a"}, "eventTime": "2026-11-23T12:00:00.000000Z", "type": "Normal",
            "regarding": {"namespace": "a"}, "reason": "r", "action": "a", "reportingInstance": "i", "reportingController": "x/y"});
        assert!(event_view(&view, &ctx()).is_empty(), "{}", event_view(&view, &ctx()));
        let bare = json!({"metadata": {"name": "e", "namespace": "a"}, "regarding": {"namespace": "a"}});
        assert_eq!(
            event_view(&bare, &ctx()).to_string(),
            "[eventTime: Required value, type: Invalid value: \"\": has invalid value: ]"
        );
        let mut changed = view.clone();
        changed["metadata"]["resourceVersion"] = json!("1");
        changed["reason"] = json!("other");
        assert_eq!(
            event_view_update(&changed, &view, &ctx()).to_string(),
            "reason: Invalid value: \"other\": field is immutable"
        );
    }
}
