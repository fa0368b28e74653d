//! Elements of paths into an object, in the notation of `FieldsV1`: `f:name`, `k:{"name":"x"}`, `v:"x"`, `i:0`.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value};

/// One step below an object. Keys and values are canonical JSON text, so that equal ones compare equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathElement {
    /// The field of a struct, or a key of a map.
    Field(String),
    /// The item of a keyed list, by the JSON object of its keys.
    Key(String),
    /// The item of a set, by its JSON.
    Value(String),
    /// The item of another list, by its place.
    Index(u64),
}

impl PathElement {
    /// A field.
    pub fn field(name: &str) -> Self {
        Self::Field(name.to_owned())
    }

    /// The item of a keyed list.
    pub(super) fn key(mut keys: Vec<(String, Value)>) -> Self {
        keys.sort_by(|one, other| one.0.cmp(&other.0));
        Self::Key(Value::Object(keys.into_iter().collect()).to_string())
    }

    /// The item of a set.
    pub(super) fn value(value: &Value) -> Self {
        Self::Value(value.to_string())
    }

    /// Reads the notation of `FieldsV1`; `None` for what is not in it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (head, rest) = text.split_once(':')?;
        match head {
            "f" => Some(Self::Field(rest.to_owned())),
            "k" => {
                let keys: Map<String, Value> = serde_json::from_str(rest).ok()?;
                Some(Self::key(keys.into_iter().collect()))
            }
            "v" => Some(Self::value(&serde_json::from_str(rest).ok()?)),
            "i" => Some(Self::Index(rest.parse().ok()?)),
            _ => None,
        }
    }

    /// The notation of `FieldsV1`.
    pub(super) fn to_text(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => format!("k:{keys}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(at) => format!("i:{at}"),
        }
    }
}

impl fmt::Display for PathElement {
    /// As conflicts print it: `.name`, `[name="x"]`, `[="x"]`, `[0]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(keys) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let pairs: Vec<String> = keys.iter().map(|(name, value)| format!("{name}={value}")).collect();
                write!(f, "[{}]", pairs.join(","))
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(at) => write!(f, "[{at}]"),
        }
    }
}

/// A path as conflicts print it, such as `.spec.containers[name="web"].image`.
pub(super) fn print(path: &[PathElement]) -> String {
    path.iter().fold(String::new(), |mut text, element| {
        // Writing to a String cannot fail.
        write!(text, "{element}").ok();
        text
    })
}
