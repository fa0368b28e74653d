//! A parsed document before anything is known of its type: member order and repeated members are kept,
//! numbers keep their text. JSON and YAML both end here.

use serde_json::{Map, Number, Value};

/// One value of a document.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    /// The literal as written; always valid JSON.
    Number(String),
    String(String),
    Array(Vec<Node>),
    /// Members in order, repeated ones too.
    Object(Vec<(String, Node)>),
}

impl Node {
    /// What Go's decoder calls this kind of value.
    pub(super) fn go_kind(&self) -> &'static str {
        match self {
            Node::Null => "null",
            Node::Bool(_) => "bool",
            Node::Number(_) => "number",
            Node::String(_) => "string",
            Node::Array(_) => "array",
            Node::Object(_) => "object",
        }
    }

    /// The last member of this name.
    pub(super) fn member(&self, name: &str) -> Option<&Node> {
        let Node::Object(members) = self else { return None };
        members.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value)
    }
}

/// The number of a literal; whole numbers stay whole.
pub(super) fn number(literal: &str) -> Number {
    let whole =
        literal.parse::<i64>().map(Number::from).or_else(|_| literal.parse::<u64>().map(Number::from));
    whole
        .ok()
        .or_else(|| Number::from_f64(literal.parse().unwrap_or_default()))
        .unwrap_or_else(|| Number::from(0))
}

/// A float as Go writes it: whole ones have no fraction.
pub(super) fn go_float(value: f64) -> String {
    let text =
        if value.fract() == 0.0 && value.abs() < 1e21 { format!("{value:.0}") } else { format!("{value}") };
    if text == "-0" { "0".to_owned() } else { text }
}

/// The plain value: the last of repeated members wins.
impl From<Node> for Value {
    fn from(node: Node) -> Self {
        match node {
            Node::Null => Value::Null,
            Node::Bool(value) => Value::Bool(value),
            Node::Number(literal) => Value::Number(number(&literal)),
            Node::String(text) => Value::String(text),
            Node::Array(items) => Value::Array(items.into_iter().map(Value::from).collect()),
            Node::Object(members) => Value::Object(
                members.into_iter().map(|(key, value)| (key, Value::from(value))).collect::<Map<_, _>>(),
            ),
        }
    }
}

impl From<&Value> for Node {
    fn from(value: &Value) -> Self {
        match value {
            Value::Null => Node::Null,
            Value::Bool(value) => Node::Bool(*value),
            Value::Number(number) => {
                let float = number.as_f64().filter(|_| number.is_f64());
                Node::Number(float.map_or_else(|| number.to_string(), go_float))
            }
            Value::String(text) => Node::String(text.clone()),
            Value::Array(items) => Node::Array(items.iter().map(Node::from).collect()),
            Value::Object(members) => {
                Node::Object(members.iter().map(|(key, value)| (key.clone(), Node::from(value))).collect())
            }
        }
    }
}
