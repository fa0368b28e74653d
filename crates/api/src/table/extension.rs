//! Rows of admission webhooks and policies, aggregated APIs and flow control.

use jiff::Timestamp;
use serde_json::Value;

use super::text::{self, NONE, UNSET, number};
use super::{Column, age_cell, name_cell};
use crate::access::{Access, spec, status};

/// The columns of both webhook configurations.
pub(crate) const WEBHOOKS: &[Column] =
    &[Column::NAME, Column::integer("Webhooks", "How many webhooks there are."), Column::AGE];

const PARAM_KIND: Column = Column::text("ParamKind", "The kind of its parameters.");

/// The columns of a `ValidatingAdmissionPolicy`.
pub(crate) const VALIDATING_POLICY: &[Column] =
    &[Column::NAME, Column::integer("Validations", "How many rules there are."), PARAM_KIND, Column::AGE];

/// The columns of a `MutatingAdmissionPolicy`.
pub(crate) const MUTATING_POLICY: &[Column] =
    &[Column::NAME, Column::integer("Mutations", "How many mutations there are."), PARAM_KIND, Column::AGE];

/// The columns of both policy bindings.
pub(crate) const POLICY_BINDING: &[Column] = &[
    Column::NAME,
    Column::text("PolicyName", "The policy that is bound."),
    Column::text("ParamRef", "Its parameters."),
    Column::AGE,
];

/// The columns of an `APIService`.
pub(crate) const API_SERVICE: &[Column] = &[
    Column::NAME,
    Column::text("Service", "Who serves it."),
    Column::text("Available", "Whether it is served now."),
    Column::AGE,
];

/// The columns of a `FlowSchema`.
pub(crate) const FLOW_SCHEMA: &[Column] = &[
    Column::NAME,
    Column::text("PriorityLevel", "The level that its requests have."),
    Column::text("MatchingPrecedence", "Which schema is asked first."),
    Column::text("DistinguisherMethod", "What keeps its flows apart."),
    Column::AGE,
    Column::text("MissingPL", "Whether the level is missing."),
];

/// The columns of a `PriorityLevelConfiguration`.
pub(crate) const PRIORITY_LEVEL: &[Column] = &[
    Column::NAME,
    Column::text("Type", "Limited or Exempt."),
    Column::text("NominalConcurrencyShares", "Its share of the requests at a time."),
    Column::text("Queues", "How many queues it has."),
    Column::text("HandSize", "Among how many queues a flow is dealt."),
    Column::text("QueueLengthLimit", "How long a queue may be."),
    Column::AGE,
];

pub(crate) fn webhooks(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name_cell(object), object.list("webhooks").len().into(), age_cell(object, now)]
}

fn policy(object: &Value, now: Timestamp, rules: &str) -> Vec<Value> {
    let parameters = spec(object).field("paramKind");
    let parameters = parameters.map(|of| format!("{}/{}", of.text("apiVersion"), of.text("kind")));
    vec![
        name_cell(object),
        spec(object).list(rules).len().into(),
        parameters.unwrap_or_else(|| UNSET.to_owned()).into(),
        age_cell(object, now),
    ]
}

pub(crate) fn validating_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    policy(object, now, "validations")
}

pub(crate) fn mutating_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    policy(object, now, "mutations")
}

pub(crate) fn policy_binding(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = spec(object).field("paramRef").map(|reference| match reference.text("name") {
        "" => text::selector(reference.field("selector")),
        // Whether the parameters live in a namespace is not known here.
        name => format!("{}/{name}", text::or(reference.text("namespace"), "*")),
    });
    vec![
        name_cell(object),
        spec(object).text("policyName").into(),
        parameters.unwrap_or_else(|| UNSET.to_owned()).into(),
        age_cell(object, now),
    ]
}

pub(crate) fn api_service(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = spec(object).field("service");
    let service = service.map(|of| format!("{}/{}", of.text("namespace"), of.text("name")));
    let available = status(object).list("conditions").iter().find(|c| c.text("type") == "Available");
    let available = available.map_or_else(
        || "Unknown".to_owned(),
        |condition| match condition.text("status") {
            "True" => "True".to_owned(),
            other => format!("{other} ({})", condition.text("reason")),
        },
    );
    vec![
        name_cell(object),
        service.unwrap_or_else(|| "Local".to_owned()).into(),
        available.into(),
        age_cell(object, now),
    ]
}

pub(crate) fn flow_schema(object: &Value, now: Timestamp) -> Vec<Value> {
    let none = Value::Null;
    let level = spec(object).field("priorityLevelConfiguration").unwrap_or(&none);
    let distinguisher = spec(object).field("distinguisherMethod").map_or(NONE, |method| method.text("type"));
    let dangling = status(object).list("conditions").iter().find(|c| c.text("type") == "Dangling");
    vec![
        name_cell(object),
        level.text("name").into(),
        number(spec(object), "matchingPrecedence").into(),
        distinguisher.into(),
        age_cell(object, now),
        dangling.map_or("?", |condition| condition.text("status")).into(),
    ]
}

pub(crate) fn priority_level(object: &Value, now: Timestamp) -> Vec<Value> {
    let limited = spec(object).field("limited");
    let queuing = limited.and_then(|limited| limited.pointer("/limitResponse/queuing"));
    let queue = |name: &str| queuing.map_or_else(|| NONE.into(), |queuing| number(queuing, name).into());
    let shares = limited.map(|limited| number(limited, "nominalConcurrencyShares").into());
    vec![
        name_cell(object),
        spec(object).text("type").into(),
        shares.unwrap_or_else(|| NONE.into()),
        queue("queues"),
        queue("handSize"),
        queue("queueLengthLimit"),
        age_cell(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn a_binding_names_its_parameters() {
        let of = |reference: Value| {
            policy_binding(&json!({"spec": {"policyName": "p", "paramRef": reference}}), NOW)[2].clone()
        };
        assert_eq!(of(json!({"name": "a"})), "*/a");
        assert_eq!(of(json!({"name": "a", "namespace": "n"})), "n/a");
        assert_eq!(of(json!({"selector": {"matchLabels": {"x": "y"}}})), "x=y");
        assert_eq!(of(Value::Null), "<unset>");
    }

    #[test]
    fn an_exempt_level_has_no_numbers() {
        assert_eq!(
            priority_level(&json!({"spec": {"type": "Exempt"}}), NOW)[1..6],
            ["Exempt", "<none>", "<none>", "<none>", "<none>"].map(Value::from)
        );
        let limited = json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 30,
            "limitResponse": {"queuing": {"queues": 64, "handSize": 6, "queueLengthLimit": 50}}}}});
        assert_eq!(priority_level(&limited, NOW)[2..6], [json!(30), json!(64), json!(6), json!(50)]);
    }

    #[test]
    fn an_api_says_why_it_is_not_served() {
        let object = json!({"spec": {"service": {"namespace": "n", "name": "s"}}, "status": {"conditions":
            [{"type": "Available", "status": "False", "reason": "MissingEndpoints"}]}});
        assert_eq!(api_service(&object, NOW)[1..3], [json!("n/s"), json!("False (MissingEndpoints)")]);
    }
}
