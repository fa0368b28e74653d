//! What stands in the path and the query of a request: selectors, continue tokens, versions. What is understood means
//! the same when it is written again.
//!
//! A first line `token` makes the rest a continue token before it is encoded; else the input is `GET /api/v1/pods?…`.

#![no_main]

use api::kind;
use api::selector::{FieldSelector, LabelSelector, Operator, Requirement, Selectable};
use fuzz::object::split_line;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

fuzz_target!(|bytes: &[u8]| {
    if let Some((b"token", token)) = split_line(bytes) {
        apiserver::fuzz::continue_token(token);
        return;
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (method, uri) = text.split_once(' ').unwrap_or(("GET", text));
    for selector in apiserver::fuzz::request(method, uri) {
        labels(&selector);
        fields(&selector);
    }
});

fn labels(text: &str) {
    let Ok(selector) = LabelSelector::parse(text) else { return };
    let written: Vec<String> = selector.requirements().iter().map(write).collect();
    let again = LabelSelector::parse(&written.join(","));
    assert_eq!(again.as_ref(), Ok(&selector), "a selector that is another one when it is written again");
    for requirement in selector.requirements() {
        let mut opposite = requirement.clone();
        opposite.operator = match requirement.operator {
            Operator::In => Operator::NotIn,
            Operator::NotIn => Operator::In,
            Operator::Exists => Operator::DoesNotExist,
            Operator::DoesNotExist => Operator::Exists,
            Operator::Gt | Operator::Lt => continue,
        };
        for value in requirement.values.iter().map(String::as_str).chain(["", "x"]).map(Some).chain([None]) {
            assert_ne!(
                requirement.matches_value(value),
                opposite.matches_value(value),
                "{requirement:?} {value:?}"
            );
        }
    }
}

fn write(requirement: &Requirement) -> String {
    let Requirement { key, operator, values } = requirement;
    let one = values.first().map(String::as_str).unwrap_or_default();
    match operator {
        Operator::In => format!("{key} in ({})", values.join(",")),
        Operator::NotIn => format!("{key} notin ({})", values.join(",")),
        Operator::Exists => key.clone(),
        Operator::DoesNotExist => format!("!{key}"),
        Operator::Gt => format!("{key}>{one}"),
        Operator::Lt => format!("{key}<{one}"),
    }
}

fn fields(text: &str) {
    for kind in [kind::find("", "v1", "pods"), kind::find("", "v1", "events")].into_iter().flatten() {
        let Ok(selector) = FieldSelector::parse(kind, text) else { continue };
        let other = json!({"metadata": {"name": "other", "namespace": "other"}});
        let wants_other = |field| selector.required_value(field).is_none_or(|value| value == "other");
        if selector.matches(&Selectable::of(kind, &other)) {
            assert!(wants_other("metadata.name") && wants_other("metadata.namespace"), "{text}");
        }
    }
}
