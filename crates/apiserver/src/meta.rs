//! Reading and writing the metadata of objects. An absent field reads as empty; writing an empty text removes it.

use jiff::Timestamp;
use serde_json::{Map, Value};

/// A text of the metadata.
pub(crate) fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    get(object, name).and_then(Value::as_str).unwrap_or_default()
}

/// A field of the metadata.
pub(crate) fn get<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    object.get("metadata")?.get(name).filter(|value| !value.is_null())
}

/// A number of the metadata.
pub(crate) fn number(object: &Value, name: &str) -> Option<i64> {
    get(object, name).and_then(Value::as_i64)
}

/// A list of texts of the metadata.
pub(crate) fn texts<'a>(object: &'a Value, name: &str) -> Vec<&'a str> {
    get(object, name).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

/// A time of the metadata.
pub(crate) fn time(object: &Value, name: &str) -> Option<Timestamp> {
    api::time::of(get(object, name))
}

/// The metadata, made if there is none.
pub(crate) fn of(object: &mut Value) -> &mut Map<String, Value> {
    map_at(object, "metadata")
}

/// The map in a field, made if there is none.
pub(crate) fn map_at<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    as_map(as_map(object).entry(name).or_insert_with(|| Value::Object(Map::new())))
}

/// A map of the metadata, such as its labels, made if there is none.
pub(crate) fn map_in_metadata<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    as_map(of(object).entry(name).or_insert_with(|| Value::Object(Map::new())))
}

/// The list in a field, made if there is none.
pub(crate) fn list_at<'a>(object: &'a mut Value, name: &str) -> &'a mut Vec<Value> {
    let slot = as_map(object).entry(name).or_insert_with(|| Value::Array(Vec::new()));
    if !slot.is_array() {
        *slot = Value::Array(Vec::new());
    }
    match slot {
        Value::Array(list) => list,
        _ => unreachable!("the value was made a list above"),
    }
}

/// The value as a map; what is no map becomes an empty one.
pub(crate) fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("the value was made a map above"),
    }
}

/// Sets a field of the metadata, or removes it.
pub(crate) fn set(object: &mut Value, name: &str, value: Option<Value>) {
    let metadata = of(object);
    match value {
        Some(value) => {
            metadata.insert(name.to_owned(), value);
        }
        None => {
            metadata.shift_remove(name);
        }
    }
}

/// Sets a list of texts, or removes it when it is empty.
pub(crate) fn set_texts(object: &mut Value, name: &str, texts: &[&str]) {
    set(object, name, (!texts.is_empty()).then(|| texts.into()));
}

/// A field of the metadata of another object, copied.
pub(crate) fn copy(object: &mut Value, from: &Value, name: &str) {
    set(object, name, get(from, name).cloned());
}

/// `namespace/name`, or the name alone.
pub(crate) fn key(namespaced: bool, namespace: &str, name: &str) -> String {
    if namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
}
