//! Small rules that many kinds share: numbers, percentages, enumerations, fields that stay as they are.

use serde_json::Value;

use super::meta::{annotations_of, immutable, labels, non_negative};
use super::pod::{pod_spec, rules};
use super::volume::label_selector;
use super::{FieldErrors, Path};
use crate::access::{Access, metadata, spec};
use crate::kind::Ctx;
use crate::selector::LabelSelector;

/// Numbers of a struct that must not be below 0.
pub(crate) fn non_negatives(object: &Value, names: &[&str], path: &Path, errors: &mut FieldErrors) {
    for name in names {
        non_negative(object.int(name), &path.child(name), errors);
    }
}

/// Fields of a struct that must stay as they are.
pub(crate) fn immutables(new: &Value, old: &Value, names: &[&str], path: &Path, errors: &mut FieldErrors) {
    let null = Value::Null;
    for name in names {
        let (new, old) = (new.get(*name).unwrap_or(&null), old.get(*name).unwrap_or(&null));
        immutable(new, old, &path.child(name), errors);
    }
}

/// A text that must be there.
pub(crate) fn required(object: &Value, name: &str, path: &Path, errors: &mut FieldErrors) {
    if object.text(name).is_empty() {
        errors.required(&path.child(name), "");
    }
}

/// A text that must be there and one of some values.
pub(crate) fn one_of(object: &Value, name: &str, values: &[&str], path: &Path, errors: &mut FieldErrors) {
    match object.text(name) {
        "" => errors.required(&path.child(name), ""),
        text if !values.contains(&text) => errors.not_supported(&path.child(name), text, values),
        _ => {}
    }
}

/// A text that is absent or one of some values.
pub(crate) fn absent_or_one_of(
    object: &Value,
    name: &str,
    values: &[&str],
    path: &Path,
    errors: &mut FieldErrors,
) {
    if object.field(name).is_some() && !values.contains(&object.text(name)) {
        errors.not_supported(&path.child(name), object.text(name), values);
    }
}

/// A number that is not below 0, or a percentage.
pub(crate) fn int_or_percent(value: &Value, path: &Path, errors: &mut FieldErrors) {
    match value {
        Value::String(text) if percent(text).is_none() => {
            let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
            errors.invalid(path, text.as_str(), detail);
        }
        Value::Number(_) => non_negative(value.as_i64(), path, errors),
        _ => {}
    }
}

/// A percentage of at most 100.
pub(crate) fn at_most_all(value: &Value, path: &Path, errors: &mut FieldErrors) {
    if value.as_str().and_then(percent).is_some_and(|percent| percent > 100) {
        errors.invalid(path, value.clone(), "must not be greater than 100%");
    }
}

/// Whether a number or percentage is nothing.
pub(crate) fn is_nothing(value: &Value) -> bool {
    value.as_i64().or_else(|| value.as_str().and_then(percent)).unwrap_or_default() == 0
}

fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(i64::MAX))
}

/// What a Pod template belongs to, for the texts.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    /// The kind that `activeDeadlineSeconds` is refused for.
    pub(crate) deadline: &'static str,
}

/// Rules for a Pod template.
pub(crate) fn template(template: &Value, ctx: &Ctx, path: &Path, errors: &mut FieldErrors) {
    labels(metadata(template), "labels", &path.child("labels"), errors);
    annotations_of(metadata(template), &path.child("annotations"), errors);
    pod_spec(spec(template), rules(None, ctx), &path.child("spec"), errors);
    if !spec(template).list("ephemeralContainers").is_empty() {
        let path = path.child("spec").child("ephemeralContainers");
        errors.forbidden(&path, "ephemeral containers not allowed in pod template");
    }
}

/// Rules for the template of Pods that are always started again.
pub(crate) fn running_template(
    object: &Value,
    owner: Owner,
    ctx: &Ctx,
    path: &Path,
    errors: &mut FieldErrors,
) {
    template(object, ctx, path, errors);
    let path = path.child("spec");
    if spec(object).text("restartPolicy") != "Always" {
        errors.not_supported(&path.child("restartPolicy"), spec(object).text("restartPolicy"), &["Always"]);
    }
    if spec(object).field("activeDeadlineSeconds").is_some() {
        let detail = format!("activeDeadlineSeconds in {} is not Supported", owner.deadline);
        errors.forbidden(&path.child("activeDeadlineSeconds"), detail);
    }
}

/// Rules for the selector of a workload, and that it selects the template's Pods.
pub(crate) fn selects_template(spec: &Value, what: &str, path: &Path, errors: &mut FieldErrors) {
    let Some(selector) = spec.field("selector") else {
        errors.required(&path.child("selector"), "");
        return;
    };
    label_selector(selector, &path.child("selector"), errors);
    let parsed = LabelSelector::from_object(Some(selector)).unwrap_or_default();
    if parsed.is_empty() {
        let detail = format!("empty selector is invalid for {what}");
        errors.invalid(&path.child("selector"), selector.clone(), detail);
    }
    let labels = spec.field("template").map(metadata).and_then(|meta| meta.map("labels"));
    if !parsed.matches(labels) {
        let value = labels.cloned().map_or(Value::Null, Value::Object);
        let path = path.child("template").child("metadata").child("labels");
        errors.invalid(&path, value, "`selector` does not match template `labels`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn percentages_end_with_their_sign() {
        let check = |value: Value| {
            let mut errors = FieldErrors::new();
            int_or_percent(&value, &Path::new("f"), &mut errors);
            at_most_all(&value, &Path::new("f"), &mut errors);
            errors.to_string()
        };
        assert_eq!(check(json!(3)), "[]");
        assert_eq!(check(json!("100%")), "[]");
        assert_eq!(check(json!("101%")), "f: Invalid value: \"101%\": must not be greater than 100%");
        assert_eq!(check(json!(-1)), "f: Invalid value: -1: must be greater than or equal to 0");
        assert!(check(json!("x%")).starts_with("f: Invalid value: \"x%\": a valid percent string"));
        assert!(is_nothing(&json!("0%")) && is_nothing(&json!(0)) && !is_nothing(&json!("1%")));
    }

    #[test]
    fn a_selector_selects_the_template() {
        let check = |spec: Value| {
            let mut errors = FieldErrors::new();
            selects_template(&spec, "deployment", &Path::new("spec"), &mut errors);
            errors.to_string()
        };
        let template = json!({"metadata": {"labels": {"app": "a"}}});
        assert_eq!(check(json!({"selector": {"matchLabels": {"app": "a"}}, "template": template})), "[]");
        assert_eq!(
            check(json!({"selector": {"matchLabels": {"app": "b"}}, "template": template})),
            "spec.template.metadata.labels: Invalid value: {\"app\":\"a\"}: `selector` does not match template `labels`"
        );
        assert_eq!(
            check(json!({"selector": {}, "template": template})),
            "spec.selector: Invalid value: {}: empty selector is invalid for deployment"
        );
        assert_eq!(check(json!({"template": template})), "spec.selector: Required value");
    }
}
