//! Reading JSON objects the way the rules of the API want it: an absent field is an empty one.

use serde_json::{Map, Value};

static EMPTY: Vec<Value> = Vec::new();

/// Short readers for fields of a JSON object. None of them fails: what is absent or of another type reads as absent.
pub trait Access {
    /// A field that is present and not null.
    fn field(&self, name: &str) -> Option<&Value>;
    /// A text; absent reads as empty.
    fn text(&self, name: &str) -> &str;
    /// A list; absent reads as empty.
    fn list(&self, name: &str) -> &[Value];
    /// A whole number.
    fn int(&self, name: &str) -> Option<i64>;
    /// A boolean.
    fn flag(&self, name: &str) -> Option<bool>;
    /// An object or map.
    fn map(&self, name: &str) -> Option<&Map<String, Value>>;

    /// Whether a boolean is there and true.
    fn is_true(&self, name: &str) -> bool {
        self.flag(name).unwrap_or_default()
    }

    /// The entries of a map of texts; absent reads as empty.
    fn entries(&self, name: &str) -> Vec<(&str, &str)> {
        self.map(name)
            .map(|map| map.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default())).collect())
            .unwrap_or_default()
    }
}

impl Access for Value {
    fn field(&self, name: &str) -> Option<&Value> {
        self.get(name).filter(|v| !v.is_null())
    }

    fn text(&self, name: &str) -> &str {
        self.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    fn list(&self, name: &str) -> &[Value] {
        self.get(name).and_then(Value::as_array).unwrap_or(&EMPTY)
    }

    fn int(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(Value::as_i64)
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(Value::as_bool)
    }

    fn map(&self, name: &str) -> Option<&Map<String, Value>> {
        self.get(name).and_then(Value::as_object)
    }
}

/// The metadata of an object; absent reads as null, of which every field is absent.
pub fn metadata(object: &Value) -> &Value {
    object.get("metadata").unwrap_or(&Value::Null)
}

/// The spec of an object.
pub fn spec(object: &Value) -> &Value {
    object.get("spec").unwrap_or(&Value::Null)
}

/// The status of an object.
pub fn status(object: &Value) -> &Value {
    object.get("status").unwrap_or(&Value::Null)
}

/// The object in a field, made empty if it is absent.
pub(crate) fn object_at<'a>(object: &'a mut Value, name: &str) -> &'a mut Map<String, Value> {
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    let fields = as_map(object);
    let slot = fields.entry(name).or_insert_with(|| Value::Object(Map::new()));
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    as_map(slot)
}

fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object by the caller"),
    }
}

/// Sets a field of an object.
pub(crate) fn set(object: &mut Value, name: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut() {
        map.insert(name.to_owned(), value.into());
    }
}

/// Removes a field of an object.
pub(crate) fn remove(object: &mut Value, name: &str) {
    if let Some(map) = object.as_object_mut() {
        map.shift_remove(name);
    }
}

/// Gives `new` the field as `old` has it, absent if it is absent there.
pub(crate) fn carry_over(new: &mut Value, old: &Value, name: &str) {
    match old.get(name) {
        Some(value) => set(new, name, value.clone()),
        None => remove(new, name),
    }
}
