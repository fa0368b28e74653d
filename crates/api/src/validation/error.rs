//! Field errors as `kubectl` users know them: `spec.containers[0].name: Required value`.
//! Texts follow `k8s.io/apimachinery/pkg/util/validation/field` of Kubernetes 1.36.

use std::fmt::{self, Write as _};

use serde_json::Value;

/// Where a value is, as in `spec.containers[0].ports[1].name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(String);

impl Path {
    /// The first element, such as `spec`.
    pub fn new(root: &str) -> Self {
        Self(root.to_owned())
    }

    /// The path of the document itself; a child of it has no leading dot.
    pub const fn root() -> Self {
        Self(String::new())
    }

    /// A field below this one: `spec` → `spec.name`.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}.{name}", self.0)) }
    }

    /// An element of a list: `containers` → `containers[2]`.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// A key of a map: `limits` → `limits[cpu]`.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a value is refused. The name that API clients see in `causes[].reason` is [`ErrorKind::reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A value that is referred to does not exist.
    NotFound,
    /// A value is missing.
    Required,
    /// A value that must be unique is there twice.
    Duplicate,
    /// A malformed value.
    Invalid,
    /// Not one of the values of an enumeration.
    NotSupported,
    /// A well-formed value that is not permitted here.
    Forbidden,
    /// More bytes or characters than allowed.
    TooLong,
    /// More items than allowed.
    TooMany,
    /// A fault that is not the user's.
    Internal,
    /// A value of another type than the schema says.
    TypeInvalid,
}

impl ErrorKind {
    /// The machine-readable cause, such as `FieldValueInvalid`.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }

    const fn names_value(self) -> bool {
        !matches!(self, Self::Required | Self::Forbidden | Self::TooLong | Self::Internal)
    }
}

/// One refused field.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldError {
    /// The class of the fault.
    pub kind: ErrorKind,
    /// The field, in dotted form.
    pub field: String,
    /// The value that is refused; `None` where the text must not repeat it.
    pub value: Option<Value>,
    /// What the rule wants; may be empty.
    pub detail: String,
}

impl FieldError {
    /// The text without the field's path, as it stands in `causes[].message`.
    pub fn body(&self) -> String {
        let mut text = self.kind.words().to_owned();
        if self.kind.names_value()
            && let Some(value) = &self.value
        {
            text.push_str(": ");
            match value {
                Value::String(s) => text.push_str(&quote(s)),
                other => text.push_str(&other.to_string()),
            }
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// All refused fields of an object, in the order in which the rules were asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    /// No error yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Whether nothing was refused.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many fields were refused.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The errors in order.
    pub fn iter(&self) -> std::slice::Iter<'_, FieldError> {
        self.0.iter()
    }

    /// Adds an error of any kind.
    pub fn push(&mut self, kind: ErrorKind, path: &Path, value: Option<Value>, detail: impl Into<String>) {
        self.0.push(FieldError { kind, field: path.to_string(), value, detail: detail.into() });
    }

    /// Takes over another list, after what is here.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// A missing value.
    pub fn required(&mut self, path: &Path, detail: impl Into<String>) {
        self.push(ErrorKind::Required, path, None, detail);
    }

    /// A malformed value.
    pub fn invalid(&mut self, path: &Path, value: impl Into<Value>, detail: impl Into<String>) {
        self.push(ErrorKind::Invalid, path, Some(value.into()), detail);
    }

    /// A value that is there twice.
    pub fn duplicate(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(ErrorKind::Duplicate, path, Some(value.into()), "");
    }

    /// A reference to something absent.
    pub fn not_found(&mut self, path: &Path, value: impl Into<Value>) {
        self.push(ErrorKind::NotFound, path, Some(value.into()), "");
    }

    /// A well-formed value that is not permitted here.
    pub fn forbidden(&mut self, path: &Path, detail: impl Into<String>) {
        self.push(ErrorKind::Forbidden, path, None, detail);
    }

    /// A value outside an enumeration; the detail lists `supported` in the order given.
    pub fn not_supported(&mut self, path: &Path, value: impl Into<Value>, supported: &[&str]) {
        let listed: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        let detail = if listed.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", listed.join(", "))
        };
        self.push(ErrorKind::NotSupported, path, Some(value.into()), detail);
    }

    /// A text with more than `max` bytes.
    pub fn too_long(&mut self, path: &Path, max: usize) {
        let unit = if max == 1 { "byte" } else { "bytes" };
        self.push(ErrorKind::TooLong, path, None, format!("may not be more than {max} {unit}"));
    }

    /// A list with `actual` items where `max` are allowed.
    pub fn too_many(&mut self, path: &Path, actual: usize, max: usize) {
        let unit = if max == 1 { "item" } else { "items" };
        self.push(ErrorKind::TooMany, path, Some(actual.into()), format!("must have at most {max} {unit}"));
    }
}

impl<'a> IntoIterator for &'a FieldErrors {
    type Item = &'a FieldError;
    type IntoIter = std::slice::Iter<'a, FieldError>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// One error stands alone, several as `[a, b]`; a text that repeats is written once.
impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut texts: Vec<String> = Vec::with_capacity(self.0.len());
        for error in &self.0 {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        match texts.as_slice() {
            [one] => f.write_str(one),
            many => write!(f, "[{}]", many.join(", ")),
        }
    }
}

/// A string in double quotes with Go's escapes, as `%q` prints it.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{b}' => out.push_str("\\v"),
            c if c.is_ascii_control() => push_escape(&mut out, "x", 2, c),
            c if c.is_control() || is_unprintable(c) => {
                if u32::from(c) < 0x1_0000 {
                    push_escape(&mut out, "u", 4, c);
                } else {
                    push_escape(&mut out, "U", 8, c);
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn push_escape(out: &mut String, letter: &str, width: usize, c: char) {
    // Writing to a String cannot fail.
    let _ = write!(out, "\\{letter}{:0width$x}", u32::from(c));
}

/// Spaces other than U+0020, format characters and private use: what Go's `strconv.IsPrint` refuses.
fn is_unprintable(c: char) -> bool {
    (c != ' ' && c.is_whitespace())
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e000}'..='\u{f8ff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_error_stands_alone_and_several_in_brackets() {
        let mut errors = FieldErrors::new();
        errors.invalid(&Path::new("metadata").child("name"), "P_0", "bad");
        assert_eq!(errors.to_string(), r#"metadata.name: Invalid value: "P_0": bad"#);
        errors.required(&Path::new("spec").child("containers"), "");
        errors.required(&Path::new("spec").child("containers"), "");
        assert_eq!(
            errors.to_string(),
            r#"[metadata.name: Invalid value: "P_0": bad, spec.containers: Required value]"#
        );
    }

    #[test]
    fn a_path_is_written_with_dots_brackets_and_keys() {
        let path = Path::new("spec").child("containers").index(1).child("resources").key("cpu");
        assert_eq!(path.as_str(), "spec.containers[1].resources[cpu]");
        assert_eq!(Path::root().child("data").as_str(), "data");
    }

    #[test]
    fn each_kind_has_its_words() {
        let path = Path::new("f");
        let mut errors = FieldErrors::new();
        errors.too_long(&path, 63);
        errors.too_many(&path, 4, 3);
        errors.not_supported(&path, "x", &["A", "B"]);
        errors.forbidden(&path, "not now");
        errors.duplicate(&path, "d");
        errors.not_found(&path, "n");
        errors.invalid(&path, -1, "must be greater than or equal to 0");
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "f: Too long: may not be more than 63 bytes",
                "f: Too many: 4: must have at most 3 items",
                r#"f: Unsupported value: "x": supported values: "A", "B""#,
                "f: Forbidden: not now",
                r#"f: Duplicate value: "d""#,
                r#"f: Not found: "n""#,
                "f: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
    }

    #[test]
    fn quotes_escape_as_go_does() {
        assert_eq!(quote("a\"b\\\n\u{1}é"), r#""a\"b\\\n\x01é""#);
        assert_eq!(quote("\u{200b}"), r#""\u200b""#);
    }
}
