//! The strategic merge patch that turns one Pod status into another.
//!
//! Lists with a merge key (`conditions`, `podIPs`, `hostIPs`) are patched element by element, so that what others
//! wrote between our reads stays; all other lists are replaced whole, as the API's schema says.

use serde_json::{Map, Value, json};

/// Lists of the status with their merge key.
const KEYED: [(&str, &str); 3] = [("conditions", "type"), ("podIPs", "ip"), ("hostIPs", "ip")];

/// The body of a patch of `status`, or nothing when both are equal. `uid` guards against a Pod of the same name.
pub(crate) fn status_patch(uid: &str, old: &Value, new: &Value) -> Option<Value> {
    let changes = object_changes(old, new);
    if changes.is_empty() {
        return None;
    }
    Some(json!({"metadata": {"uid": uid}, "status": changes}))
}

fn object_changes(old: &Value, new: &Value) -> Map<String, Value> {
    let empty = Map::new();
    let (old, new) = (old.as_object().unwrap_or(&empty), new.as_object().unwrap_or(&empty));
    let mut changes = Map::new();
    for (name, value) in new {
        let before = old.get(name).unwrap_or(&Value::Null);
        if before == value {
            continue;
        }
        let change = match KEYED.iter().find(|(list, _)| list == name) {
            Some((_, key)) => {
                let elements = list_changes(key, before, value);
                // Only the order differs, and the API keeps its own: every Pod would be patched at a restart.
                if elements.is_empty() {
                    continue;
                }
                Value::Array(elements)
            }
            None => value.clone(),
        };
        changes.insert(name.clone(), change);
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        changes.insert(name.clone(), Value::Null);
    }
    changes
}

/// Changed elements, then a deletion for each element that is gone.
fn list_changes(key: &str, old: &Value, new: &Value) -> Vec<Value> {
    let none = Vec::new();
    let (old, new) = (old.as_array().unwrap_or(&none), new.as_array().unwrap_or(&none));
    let find = |list: &[Value], element: &Value| {
        list.iter().find(|other| other.get(key) == element.get(key)).cloned()
    };
    let mut changes: Vec<Value> = new
        .iter()
        .filter_map(|element| match find(old, element) {
            Some(before) if before == *element => None,
            Some(before) => Some(element_change(key, &before, element)),
            None => Some(element.clone()),
        })
        .collect();
    let gone = old.iter().filter(|element| find(new, element).is_none());
    changes.extend(gone.map(|element| json!({"$patch": "delete", key: element.get(key)})));
    changes
}

/// The key, the changed fields, and a null for each field that is gone.
fn element_change(key: &str, old: &Value, new: &Value) -> Value {
    let mut change = object_changes(old, new);
    if let Some(identity) = new.get(key) {
        change.insert(key.to_owned(), identity.clone());
    }
    Value::Object(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_statuses_need_no_patch() {
        assert_eq!(status_patch("u", &json!({"phase": "Running"}), &json!({"phase": "Running"})), None);
    }

    #[test]
    fn another_order_of_conditions_needs_no_patch() {
        let status = |types: [&str; 2]| json!({"conditions": types.map(|name| json!({"type": name, "status": "True"}))});
        assert_eq!(status_patch("u", &status(["Ready", "Foreign"]), &status(["Foreign", "Ready"])), None);
    }

    #[test]
    fn keyed_lists_are_patched_by_element_and_others_replaced() {
        let old = json!({"phase": "Pending", "reason": "x",
            "conditions": [{"type": "Ready", "status": "False", "reason": "r"}, {"type": "Foreign", "status": "True"}],
            "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [{"name": "a"}]});
        let new = json!({"phase": "Running",
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "Foreign", "status": "True"}],
            "podIPs": [{"ip": "10.0.0.2"}], "containerStatuses": [{"name": "a", "ready": true}]});
        assert_eq!(
            status_patch("u", &old, &new),
            Some(json!({"metadata": {"uid": "u"}, "status": {
                "phase": "Running", "reason": null,
                "conditions": [{"status": "True", "reason": null, "type": "Ready"}],
                "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "delete", "ip": "10.0.0.1"}],
                "containerStatuses": [{"name": "a", "ready": true}]}}))
        );
    }
}
