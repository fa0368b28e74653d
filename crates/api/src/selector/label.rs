//! Label selectors in their text form (`app=web,tier in (a, b),!legacy`) and in their object form (`matchLabels`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use thiserror::Error;

use super::Selectable;
use crate::access::Access;
use crate::name::{label_value_faults, qualified_name_faults};
use crate::validation::quote;

/// Why a selector is refused; the text is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct LabelSelectorError(String);

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The label has one of the values (`=`, `==`, `in`).
    In,
    /// The label has none of the values, or is absent (`!=`, `notin`).
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
    /// The label is a number greater than the value (`>`).
    Gt,
    /// The label is a number less than the value (`<`).
    Lt,
}

/// One condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// The comparison.
    pub operator: Operator,
    /// What it is compared with.
    pub values: Vec<String>,
}

impl Operator {
    /// The operator that a node selector's requirement names so.
    pub fn of_node_selector(name: &str) -> Option<Self> {
        Some(match name {
            "In" => Self::In,
            "NotIn" => Self::NotIn,
            "Exists" => Self::Exists,
            "DoesNotExist" => Self::DoesNotExist,
            "Gt" => Self::Gt,
            "Lt" => Self::Lt,
            _ => return None,
        })
    }
}

impl Requirement {
    /// An entry of `matchExpressions` or `matchFields` of a node selector's term; `None` where its operator is unknown,
    /// which no validated object has.
    pub fn of_node_selector(entry: &Value) -> Option<Self> {
        let operator = Operator::of_node_selector(entry.text("operator"))?;
        let values = entry.list("values").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        Some(Self { key: entry.text("key").to_owned(), operator, values })
    }

    /// Whether a label's value (absent: `None`) satisfies the condition.
    pub fn matches_value(&self, value: Option<&str>) -> bool {
        let is_listed = |v: &str| self.values.iter().any(|w| w == v);
        match self.operator {
            Operator::In => value.is_some_and(is_listed),
            Operator::NotIn => !value.is_some_and(is_listed),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => self.compare(value).is_some_and(|(label, wanted)| label > wanted),
            Operator::Lt => self.compare(value).is_some_and(|(label, wanted)| label < wanted),
        }
    }

    fn compare(&self, value: Option<&str>) -> Option<(i64, i64)> {
        let [wanted] = self.values.as_slice() else { return None };
        Some((value?.parse().ok()?, wanted.parse().ok()?))
    }
}

/// A set of conditions, all of which must hold. No condition selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// A selector of ready-made conditions.
    pub const fn new(requirements: Vec<Requirement>) -> Self {
        Self { requirements }
    }

    /// Reads the text form, as in `?labelSelector=`.
    ///
    /// # Errors
    /// With upstream's text, such as `unable to parse requirement: found '', expected: ',' or ')'`.
    pub fn parse(text: &str) -> Result<Self, LabelSelectorError> {
        Parser { tokens: scan(text), position: 0 }.selector()
    }

    /// The selector of a `metav1.LabelSelector` object; `None` (an absent one) selects nothing.
    pub fn from_object(object: Option<&Value>) -> Option<Self> {
        let object = object?;
        let mut requirements: Vec<Requirement> = object
            .entries("matchLabels")
            .into_iter()
            .map(|(k, v)| Requirement { key: k.into(), operator: Operator::In, values: vec![v.into()] })
            .collect();
        for expression in object.list("matchExpressions") {
            let operator = match expression.text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return None,
            };
            let values = expression.list("values").iter().filter_map(Value::as_str).map(Into::into).collect();
            requirements.push(Requirement { key: expression.text("key").into(), operator, values });
        }
        Some(Self { requirements })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The conditions.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether labels satisfy all conditions; absent labels are none.
    pub fn matches(&self, labels: Option<&Map<String, Value>>) -> bool {
        self.requirements
            .iter()
            .all(|r| r.matches_value(labels.and_then(|l| l.get(&r.key)).and_then(Value::as_str)))
    }

    /// Whether labels satisfy all conditions.
    pub fn matches_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|r| r.matches_value(labels.get(&r.key).map(String::as_str)))
    }

    /// Whether an object's labels satisfy all conditions.
    pub fn matches_object(&self, object: &Selectable) -> bool {
        self.requirements.iter().all(|r| r.matches_value(object.label(&r.key)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Symbol(&'static str),
    End,
}

impl Token {
    fn literal(&self) -> &str {
        match self {
            Self::Word(word) => word,
            Self::Symbol(symbol) => symbol,
            Self::End => "",
        }
    }
}

const SYMBOLS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];

fn scan(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if rest.is_empty() {
            return tokens;
        }
        if let Some((symbol, after)) =
            SYMBOLS.iter().find_map(|s| rest.strip_prefix(s).map(|after| (*s, after)))
        {
            tokens.push(Token::Symbol(symbol));
            rest = after;
        } else {
            let is_end = |c: char| " \t\r\n=!(),><".contains(c);
            let (word, after) = rest.split_at(rest.find(is_end).unwrap_or(rest.len()));
            tokens.push(Token::Word(word.to_owned()));
            rest = after;
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    position: usize,
}

fn found(token: &Token, expected: &str) -> LabelSelectorError {
    LabelSelectorError(format!("found '{}', expected: {expected}", token.literal()))
}

impl Parser {
    fn peek(&self) -> Token {
        self.tokens.get(self.position).cloned().unwrap_or(Token::End)
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        self.position += 1;
        token
    }

    fn selector(mut self) -> Result<LabelSelector, LabelSelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Symbol("!") => {}
                Token::End => return Ok(LabelSelector { requirements }),
                other @ Token::Symbol(_) => return Err(found(&other, "!, identifier, or 'end of string'")),
            }
            let requirement = self
                .requirement()
                .map_err(|e| LabelSelectorError(format!("unable to parse requirement: {e}")))?;
            requirements.push(requirement);
            match self.next() {
                Token::End => return Ok(LabelSelector { requirements }),
                Token::Symbol(",") => {
                    let after = self.peek();
                    if !matches!(after, Token::Word(_) | Token::Symbol("!")) {
                        return Err(found(&after, "identifier after ','"));
                    }
                }
                other => return Err(found(&other, "',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, LabelSelectorError> {
        let mut token = self.next();
        let is_negated = token == Token::Symbol("!");
        if is_negated {
            token = self.next();
        }
        let Token::Word(key) = token else { return Err(found(&token, "identifier")) };
        check_key(&key)?;
        if is_negated {
            return Ok(Requirement { key, operator: Operator::DoesNotExist, values: Vec::new() });
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(Requirement { key, operator: Operator::Exists, values: Vec::new() });
        }
        let operator = self.operator()?;
        let mut values = match operator {
            Comparison::Set(_) => self.values()?,
            Comparison::Single(_) => vec![self.exact_value()?],
        };
        values.sort_unstable();
        values.dedup();
        let requirement = Requirement { key, operator: operator.operator(), values };
        check_values(&requirement)?;
        Ok(requirement)
    }

    fn operator(&mut self) -> Result<Comparison, LabelSelectorError> {
        let token = self.next();
        match token.literal() {
            "in" => Ok(Comparison::Set(Operator::In)),
            "notin" => Ok(Comparison::Set(Operator::NotIn)),
            "=" | "==" => Ok(Comparison::Single(Operator::In)),
            "!=" => Ok(Comparison::Single(Operator::NotIn)),
            ">" => Ok(Comparison::Single(Operator::Gt)),
            "<" => Ok(Comparison::Single(Operator::Lt)),
            _ => Err(found(&token, "in, notin, =, ==, !=, gt, lt")),
        }
    }

    fn values(&mut self) -> Result<Vec<String>, LabelSelectorError> {
        let open = self.next();
        if open != Token::Symbol("(") {
            return Err(LabelSelectorError(format!("found '{}' expected: '('", open.literal())));
        }
        match self.peek() {
            Token::Word(_) | Token::Symbol(",") => self.value_list(),
            Token::Symbol(")") => {
                self.position += 1;
                Ok(vec![String::new()])
            }
            other => Err(found(&other, "',', ')' or identifier")),
        }
    }

    /// The values up to and with the closing parenthesis; an empty place between commas is an empty value.
    fn value_list(&mut self) -> Result<Vec<String>, LabelSelectorError> {
        let mut values = Vec::new();
        loop {
            match self.next() {
                Token::Word(word) => {
                    values.push(word);
                    match self.peek() {
                        Token::Symbol(",") => {}
                        Token::Symbol(")") => break,
                        other => return Err(found(&other, "',' or ')'")),
                    }
                }
                Token::Symbol(",") => {
                    if values.is_empty() || self.peek() == Token::Symbol(",") {
                        values.push(String::new());
                    }
                    if self.peek() == Token::Symbol(")") {
                        values.push(String::new());
                        break;
                    }
                }
                other => return Err(found(&other, "',', or identifier")),
            }
        }
        self.position += 1;
        Ok(values)
    }

    fn exact_value(&mut self) -> Result<String, LabelSelectorError> {
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(word) => Ok(word),
            other => Err(found(&other, "identifier")),
        }
    }
}

#[derive(Clone, Copy)]
enum Comparison {
    Set(Operator),
    Single(Operator),
}

impl Comparison {
    const fn operator(self) -> Operator {
        match self {
            Self::Set(operator) | Self::Single(operator) => operator,
        }
    }
}

fn check_key(key: &str) -> Result<(), LabelSelectorError> {
    let faults = qualified_name_faults(key);
    if faults.is_empty() {
        return Ok(());
    }
    // The missing path is upstream's.
    Err(LabelSelectorError(format!("<nil>: Invalid value: {}: {}", quote(key), faults.join("; "))))
}

fn check_values(requirement: &Requirement) -> Result<(), LabelSelectorError> {
    let is_numeric = matches!(requirement.operator, Operator::Gt | Operator::Lt);
    for (i, value) in requirement.values.iter().enumerate() {
        let fault = if is_numeric && value.parse::<i64>().is_err() {
            "for 'Gt', 'Lt' operators, the value must be an integer".to_owned()
        } else {
            label_value_faults(value).join("; ")
        };
        if !fault.is_empty() {
            let value = quote(value);
            return Err(LabelSelectorError(format!("values[{i}]: Invalid value: {value}: {fault}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn matches(selector: &str, labels: &Value) -> bool {
        LabelSelector::parse(selector).unwrap().matches(labels.as_object())
    }

    #[test]
    fn each_operator_selects_as_it_says() {
        let labels = json!({"app": "web", "tier": "front", "n": "5"});
        for yes in [
            "",
            "app",
            "app=web",
            "app==web",
            "app!=db",
            "other!=x",
            "app in (web,db)",
            "app in (web, db)",
            "tier notin (back)",
            "!other",
            "n>4",
            "n<6",
            "app=web,tier=front,!x",
            " app = web ",
            "other notin (a)",
        ] {
            assert!(matches(yes, &labels), "{yes}");
        }
        for no in [
            "other",
            "app=db",
            "app!=web",
            "app in (db)",
            "app in ()",
            "!app",
            "n>5",
            "app>1",
            "other=x",
            "app=",
        ] {
            assert!(!matches(no, &labels), "{no}");
        }
    }

    #[test]
    fn faults_are_told_in_upstreams_words() {
        for (selector, text) in [
            ("app in (a", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("app in a", "unable to parse requirement: found 'a' expected: '('"),
            ("app,,b", "found ',', expected: identifier after ','"),
            ("app a", "unable to parse requirement: found 'a', expected: in, notin, =, ==, !=, gt, lt"),
            ("=a", "found '=', expected: !, identifier, or 'end of string'"),
            ("a=b=c", "found '=', expected: ',' or 'end of string'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap_err().to_string(), text, "{selector}");
        }
        let bad_key = LabelSelector::parse("-a=b").unwrap_err().to_string();
        assert!(
            bad_key.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must")
        );
    }

    #[test]
    fn an_object_selector_selects_by_labels_and_expressions() {
        let selector = json!({"matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]});
        let selector = LabelSelector::from_object(Some(&selector)).unwrap();
        assert!(selector.matches(json!({"app": "web", "tier": "b"}).as_object()));
        assert!(!selector.matches(json!({"app": "web"}).as_object()));
        assert!(LabelSelector::from_object(None).is_none());
        assert!(LabelSelector::from_object(Some(&json!({}))).unwrap().matches(None));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z0-9=!(),<> /.-]{0,30}") {
            let _ = LabelSelector::parse(&text);
        }

        #[test]
        fn a_selector_and_its_negation_never_agree(key in "[a-c]", value in "[a-c]", label in "[a-c]", has in any::<bool>()) {
            let labels = if has { json!({&key: label}) } else { json!({}) };
            let is = matches(&format!("{key}={value}"), &labels);
            let is_not = matches(&format!("{key}!={value}"), &labels);
            prop_assert_ne!(is, is_not);
            prop_assert_ne!(matches(&key, &labels), matches(&format!("!{key}"), &labels));
        }
    }
}
