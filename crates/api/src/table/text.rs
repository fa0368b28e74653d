//! Pieces of cells that many kinds share: containers and images, labels, selectors, lists that end with `+ 2 more...`.

use serde_json::Value;

use crate::access::{Access, metadata, spec};

/// What a cell shows where there is nothing.
pub(crate) const NONE: &str = "<none>";
/// What a cell shows where nothing was said.
pub(crate) const UNSET: &str = "<unset>";

/// A text, or what stands for an empty one.
pub(crate) fn or<'a>(text: &'a str, absent: &'a str) -> &'a str {
    if text.is_empty() { absent } else { text }
}

/// A text field, or what stands for an absent one.
pub(crate) fn field_or<'a>(object: &'a Value, name: &str, absent: &'a str) -> &'a str {
    object.field(name).and_then(Value::as_str).unwrap_or(absent)
}

/// A number of a struct; absent counts as 0.
pub(crate) fn number(object: &Value, name: &str) -> i64 {
    object.int(name).unwrap_or_default()
}

/// The containers' names and their images, each in one cell.
pub(crate) fn containers(template: &Value) -> [Value; 2] {
    let containers = spec(template).list("containers");
    let join = |field: &str| containers.iter().map(|c| c.text(field)).collect::<Vec<_>>().join(",");
    [join("name").into(), join("image").into()]
}

/// A map of labels, sorted: `a=b,c=d`.
pub(crate) fn labels(object: &Value, field: &str) -> String {
    let mut pairs = object.entries(field);
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    or(&pairs.join(","), NONE).to_owned()
}

/// A `metav1.LabelSelector` in its text form, conditions sorted by key.
pub(crate) fn selector(selector: Option<&Value>) -> String {
    let Some(selector) = selector else { return NONE.to_owned() };
    let mut terms: Vec<(&str, String)> = selector
        .entries("matchLabels")
        .into_iter()
        .map(|(key, value)| (key, format!("{key}={value}")))
        .collect();
    for expression in selector.list("matchExpressions") {
        let key = expression.text("key");
        let mut values: Vec<&str> = expression.list("values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let term = match expression.text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return "<error>".to_owned(),
        };
        terms.push((key, term));
    }
    terms.sort_by_key(|(key, _)| *key);
    let text = terms.into_iter().map(|(_, term)| term).collect::<Vec<_>>().join(",");
    or(&text, NONE).to_owned()
}

/// The first three of a list, and how many more there are.
pub(crate) fn first_three(items: &[String], absent: &str) -> String {
    const SHOWN: usize = 3;
    let shown = items.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(",");
    match items.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown} + {more} more..."),
        _ => or(&shown, absent).to_owned(),
    }
}

/// A number or a text (`IntOrString`), a quantity or another scalar as text.
pub(crate) fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The object's name, marked when an annotation makes it the default of its kind.
pub(crate) fn name_with_default(object: &Value, annotations: &[&str]) -> String {
    let meta = metadata(object);
    let is_default =
        meta.entries("annotations").iter().any(|(key, value)| annotations.contains(key) && *value == "true");
    format!("{}{}", meta.text("name"), if is_default { " (default)" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_are_sorted_by_key() {
        let object = json!({"matchLabels": {"b": "1"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["y", "x"]}, {"key": "a", "operator": "DoesNotExist"},
            {"key": "d", "operator": "Exists"}, {"key": "e", "operator": "NotIn", "values": ["z"]}]});
        assert_eq!(selector(Some(&object)), "!a,b=1,c in (x,y),d,e notin (z)");
        assert_eq!(selector(Some(&json!({}))), "<none>");
        assert_eq!(labels(&json!({"l": {"b": "2", "a": "1"}}), "l"), "a=1,b=2");
    }

    #[test]
    fn long_lists_are_cut() {
        let items: Vec<String> = (1..=5).map(|i: i32| i.to_string()).collect();
        assert_eq!(first_three(&items, NONE), "1,2,3 + 2 more...");
        assert_eq!(first_three(&items[..3], NONE), "1,2,3");
        assert_eq!(first_three(&[], UNSET), "<unset>");
    }
}
