//! Field selectors: `status.phase!=Failed,spec.nodeName=n`. Only fields that a kind names can be selected.

use thiserror::Error;

use super::Selectable;
use crate::access::{Access, metadata};
use crate::kind::{FieldReader, Kind};

/// Why a field selector is refused; the texts are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FieldSelectorError {
    /// A term without `=`, `==` or `!=`.
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term {
        /// The whole selector.
        selector: String,
        /// The term that is not understood.
        term: String,
    },
    /// A `\` before something that needs none.
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// `,` or `=` without a `\` before it.
    #[error("invalid field selector: unescaped character in value: {0}")]
    Unescaped(u32),
    /// A field that this kind does not offer.
    #[error("field label not supported: {0}")]
    NotSupported(String),
    /// The same for the kinds whose message upstream writes differently.
    #[error("\"{0}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")]
    NotKnown(String),
}

#[derive(Clone, Debug)]
struct Term {
    name: String,
    value: String,
    is_equal: bool,
    /// Which field, in the order of [`fields_of`].
    at: usize,
}

/// A parsed field selector of one kind. No term selects everything.
#[derive(Clone, Debug, Default)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

impl FieldSelector {
    /// Reads a selector for objects of a kind.
    ///
    /// # Errors
    /// A term that is not understood, or a field that the kind does not offer.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, FieldSelectorError> {
        let mut parts = split_terms(text);
        parts.sort_unstable();
        let mut terms = Vec::new();
        for part in parts.into_iter().filter(|p| !p.is_empty()) {
            let (name, is_equal, value) = split_term(part)
                .ok_or_else(|| FieldSelectorError::Term { selector: text.into(), term: part.into() })?;
            let value = unescape(value)?;
            let at = position(kind, name)?;
            terms.push(Term { name: name.to_owned(), value, is_equal, at });
        }
        Ok(Self { terms })
    }

    /// Whether it selects everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that a field must have, where a term says `=`: lets a watch on one name look at one object only.
    pub fn required_value(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.is_equal && t.name == field).map(|t| t.value.as_str())
    }

    /// Whether an object has the values that are asked.
    pub fn matches(&self, object: &Selectable) -> bool {
        self.terms.iter().all(|t| (object.field(t.at) == t.value) == t.is_equal)
    }
}

/// The fields that can be selected of a kind.
pub fn fields_of(kind: &Kind) -> Vec<&'static str> {
    readers_of(kind).map(|(name, _)| name).collect()
}

/// The same, and how each is read.
pub(super) fn readers_of(kind: &Kind) -> impl Iterator<Item = (&'static str, FieldReader)> {
    let name: (&str, FieldReader) = ("metadata.name", |o| metadata(o).text("name").to_owned());
    let namespace: (&str, FieldReader) = ("metadata.namespace", |o| metadata(o).text("namespace").to_owned());
    let namespace = kind.namespaced.then_some(namespace);
    std::iter::once(name).chain(namespace).chain(kind.selectable_fields.iter().copied())
}

fn position(kind: &Kind, name: &str) -> Result<usize, FieldSelectorError> {
    match readers_of(kind).position(|(field, _)| field == name) {
        Some(at) => Ok(at),
        None if kind.selectable_fields.is_empty() => Err(FieldSelectorError::NotKnown(name.to_owned())),
        None => Err(FieldSelectorError::NotSupported(name.to_owned())),
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut is_escaped = false;
    text.split(move |c: char| {
        let is_comma = !is_escaped && c == ',';
        is_escaped = !is_escaped && c == '\\';
        is_comma
    })
    .collect()
}

fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let at = term.char_indices().find(|(i, _)| {
        let rest = term.get(*i..).unwrap_or_default();
        rest.starts_with("!=") || rest.starts_with('=')
    });
    let (name, rest) = term.split_at(at?.0);
    if let Some(value) = rest.strip_prefix("!=") {
        return Some((name, false, value));
    }
    let value = rest.strip_prefix("==").or_else(|| rest.strip_prefix('='))?;
    Some((name, true, value))
}

fn unescape(value: &str) -> Result<String, FieldSelectorError> {
    let mut out = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => out.push(c),
                Some(other) => return Err(FieldSelectorError::Escape(format!("\\{other}"))),
                None => return Err(FieldSelectorError::Escape("\\".to_owned())),
            },
            ',' | '=' => return Err(FieldSelectorError::Unescaped(u32::from(c))),
            c => out.push(c),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::find;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn a_pod_is_selected_by_node_and_phase() {
        let pods = find("", "v1", "pods").unwrap();
        let pod = json!({"metadata": {"name": "a", "namespace": "d"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        let pod = Selectable::of(pods, &pod);
        let matches = |text: &str| FieldSelector::parse(pods, text).unwrap().matches(&pod);
        assert!(matches("spec.nodeName=n,status.phase!=Failed,status.phase!=Succeeded"));
        assert!(matches("metadata.name==a,metadata.namespace=d"));
        assert!(matches(""));
        assert!(!matches("spec.nodeName="));
        assert!(!matches("status.phase!=Running"));
        let selector = FieldSelector::parse(pods, "metadata.name=a").unwrap();
        assert_eq!(selector.required_value("metadata.name"), Some("a"));
    }

    #[test]
    fn unknown_fields_and_terms_are_refused_in_upstreams_words() {
        let pods = find("", "v1", "pods").unwrap();
        let fault = |text: &str| FieldSelector::parse(pods, text).unwrap_err().to_string();
        assert_eq!(fault("spec.foo=1"), "field label not supported: spec.foo");
        assert_eq!(fault("abc"), "invalid selector: 'abc'; can't understand 'abc'");
        assert_eq!(fault("metadata.name=a\\x"), "invalid field selector: invalid escape sequence: \\x");
        let maps = find("", "v1", "configmaps").unwrap();
        assert_eq!(
            FieldSelector::parse(maps, "data.x=1").unwrap_err().to_string(),
            "\"data.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
    }

    proptest! {
        #[test]
        fn any_name_can_be_selected_when_escaped(name in "[a-z,=\\\\]{0,8}") {
            let pods = find("", "v1", "pods").unwrap();
            let escaped: String = name.chars().flat_map(|c| match c {
                '\\' | ',' | '=' => vec!['\\', c],
                c => vec![c],
            }).collect();
            let selector = FieldSelector::parse(pods, &format!("metadata.name={escaped}")).unwrap();
            let pod = json!({"metadata": {"name": name}});
            prop_assert!(selector.matches(&Selectable::of(pods, &pod)));
        }
    }
}
