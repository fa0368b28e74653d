//! What selectors can name of one object, apart from the object: small enough to be kept beside each object of a cache.

use serde_json::Value;

use super::field::readers_of;
use crate::access::Access as _;
use crate::kind::Kind;

/// An object's labels, and the fields by which objects of its kind can be selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectable {
    labels: Box<[(Box<str>, Box<str>)]>,
    /// In the order of [`super::fields_of`].
    fields: Box<[Box<str>]>,
}

impl Selectable {
    /// Of an object of this kind. A label that is no text, which no validated object has, counts as absent.
    pub fn of(kind: &Kind, object: &Value) -> Self {
        let labels = crate::access::metadata(object).map("labels").into_iter().flatten();
        let labels = labels.filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into())));
        let fields = readers_of(kind).map(|(_, read)| read(object).into());
        Self { labels: labels.collect(), fields: fields.collect() }
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| **label == *key).map(|(_, value)| &**value)
    }

    pub(super) fn field(&self, at: usize) -> &str {
        self.fields.get(at).map(|field| &**field).unwrap_or_default()
    }
}
