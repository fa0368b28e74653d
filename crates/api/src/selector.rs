//! Label and field selectors: parsing with upstream's error texts, and matching.

mod field;
mod label;
mod selectable;

pub use field::{FieldSelector, FieldSelectorError, fields_of};
pub use label::{LabelSelector, LabelSelectorError, Operator, Requirement};
pub use selectable::Selectable;

use serde_json::Value;

use crate::access::Access as _;

/// Whether a `LabelSelector` object matches an object's metadata. An empty one matches everything.
pub fn selects(selector: &Value, metadata: &Value) -> bool {
    let labels = metadata.field("labels").unwrap_or(&Value::Null);
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    let equal = selector.entries("matchLabels").into_iter().all(|(key, value)| label(key) == Some(value));
    let fits = selector.list("matchExpressions").iter().all(|term| {
        let found = label(term.text("key"));
        let is_listed = found.is_some_and(|found| term.list("values").iter().any(|value| value == found));
        match term.text("operator") {
            "In" => is_listed,
            "NotIn" => !is_listed,
            "Exists" => found.is_some(),
            "DoesNotExist" => found.is_none(),
            _ => false,
        }
    });
    equal && fits
}
