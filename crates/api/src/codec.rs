//! Request bodies to typed objects: JSON, YAML and protobuf, each read strictly by the schema table.
//! What the type does not have is dropped and named; the caller decides whether that is an error.

use serde_json::{Map, Value};
use thiserror::Error;

use crate::schema::Type;

mod json;
mod node;
mod protobuf;
mod scalar;
mod typed;
mod yaml;

pub use protobuf::MAGIC as PROTOBUF_MAGIC;

use node::Node;

/// Media types of request bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaType {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

impl MediaType {
    /// The media type of a `Content-Type` value; an empty value means JSON. Parameters are ignored.
    pub fn of(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "" | "application/json" => Some(Self::Json),
            "application/yaml" => Some(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// The kind that the request's path stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected<'a> {
    /// API group; empty for the core group.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Other API versions, such as `policy/v1beta1`, in which bodies may come: their fields are the same.
    pub also: &'a [&'a str],
}

impl Expected<'_> {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// A decoded object.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object, with `kind` and `apiVersion` first.
    pub object: Value,
    /// What strict decoding complains about, in document order: `unknown field "spec.foo"`, `duplicate field "data.a"`.
    pub unknown: Vec<String>,
}

impl Decoded {
    /// Under `fieldValidation=Strict` the answer's message, when there is something to complain about.
    pub fn strict_error(&self, expected: Expected<'_>) -> Option<String> {
        let Expected { version, kind, .. } = expected;
        (!self.unknown.is_empty()).then(|| {
            let complaints = self.unknown.join(", ");
            format!(
                "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding error: {complaints}"
            )
        })
    }
}

/// Why a body is refused. Each text is the answer's whole message; the answer is 400 `BadRequest`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The body is not a document of its media type, or its kind cannot be read.
    #[error("the object provided is unrecognized (must be of type {kind}): {reason} ({summary})")]
    Unrecognized {
        /// Kind that was expected.
        kind: String,
        /// What is wrong.
        reason: String,
        /// The beginning of the body.
        summary: String,
    },
    /// The body has a kind, but not the expected one, or its values have wrong types.
    #[error("{found} in version \"{version}\" cannot be handled as a {kind}: {reason}")]
    Unhandled {
        /// Kind in the body.
        found: String,
        /// Version in the body.
        version: String,
        /// Kind that was expected.
        kind: String,
        /// What is wrong.
        reason: String,
    },
    /// The kind is right, the API version is another.
    #[error("the API version in the data ({found}) does not match the expected API version ({expected})")]
    OtherVersion {
        /// API version in the body.
        found: String,
        /// API version of the path.
        expected: String,
    },
}

/// Decodes a request body as the type `root`.
///
/// Nulls and empty optional members are dropped, quantities and times are made canonical, and absent
/// `kind` and `apiVersion` are filled in from `expected`.
///
/// # Errors
/// [`DecodeError`], with upstream's text.
pub fn decode(
    media: MediaType,
    body: &[u8],
    root: &'static Type,
    expected: Expected<'_>,
) -> Result<Decoded, DecodeError> {
    let unrecognized = |reason: String| DecodeError::Unrecognized {
        kind: expected.kind.to_owned(),
        reason,
        summary: summary(body),
    };
    match media {
        MediaType::Json => {
            let node = json::parse(body).map_err(|error| {
                unrecognized(format!("couldn't get version/kind; json parse error: {error}"))
            })?;
            typed(node, root, expected, Vec::new()).map_err(|refusal| refusal.into_error(expected, body))
        }
        MediaType::Yaml => {
            let document = yaml::parse(body).map_err(unrecognized)?;
            let complaints = yaml_complaints(&document.repeated);
            typed(document.root, root, expected, complaints)
                .map_err(|refusal| refusal.into_error(expected, body))
        }
        MediaType::Protobuf => {
            let message = protobuf::decode(body, root).map_err(unrecognized)?;
            check_kind(&message.api_version, &message.kind, expected)?;
            typed_object(message.object, root, expected, typed::Empty::Dropped)
        }
    }
}

/// Decodes the object of a server-side apply, which is YAML or JSON. Nulls and zero values stay: who names a field
/// owns it.
///
/// # Errors
/// [`DecodeError`], as [`decode`].
pub fn decode_applied(
    body: &[u8],
    root: &'static Type,
    expected: Expected<'_>,
) -> Result<Decoded, DecodeError> {
    let unrecognized = |reason: String| DecodeError::Unrecognized {
        kind: expected.kind.to_owned(),
        reason,
        summary: summary(body),
    };
    let document = yaml::parse(body).map_err(unrecognized)?;
    let complaints = yaml_complaints(&document.repeated);
    typed_with(document.root, root, expected, complaints, typed::Empty::Kept)
        .map_err(|refusal| refusal.into_error(expected, body))
}

/// Types a value that is already parsed, such as the outcome of a patch.
///
/// # Errors
/// [`DecodeError`], as [`decode`].
pub fn decode_value(
    value: &Value,
    root: &'static Type,
    expected: Expected<'_>,
) -> Result<Decoded, DecodeError> {
    typed(Node::from(value), root, expected, Vec::new()).map_err(|refusal| refusal.into_error(expected, b""))
}

/// Reads all documents of a YAML or JSON text as objects of no type, as `kubectl apply -f` reads a file.
///
/// # Errors
/// What is wrong, with its line.
pub fn documents(text: &[u8]) -> Result<Vec<Value>, String> {
    let nodes = yaml::parse_all(text)?;
    Ok(nodes.into_iter().map(|node| typed::free(node).0).filter(|value| !value.is_null()).collect())
}

/// Reads JSON of no type: the value, and the complaints about repeated members. For patches.
pub(crate) fn free_json(body: &[u8]) -> Result<(Value, Vec<String>), String> {
    json::parse(body).map(typed::free)
}

enum Refusal {
    /// The kind itself cannot be read.
    Unreadable(String),
    Error(DecodeError),
}

impl Refusal {
    fn into_error(self, expected: Expected<'_>, body: &[u8]) -> DecodeError {
        match self {
            Refusal::Error(error) => error,
            Refusal::Unreadable(reason) => DecodeError::Unrecognized {
                kind: expected.kind.to_owned(),
                reason: format!("couldn't get version/kind; json parse error: {reason}"),
                summary: summary(body),
            },
        }
    }
}

fn typed(
    node: Node,
    root: &'static Type,
    expected: Expected<'_>,
    unknown: Vec<String>,
) -> Result<Decoded, Refusal> {
    typed_with(node, root, expected, unknown, typed::Empty::Dropped)
}

fn typed_with(
    node: Node,
    root: &'static Type,
    expected: Expected<'_>,
    mut unknown: Vec<String>,
    empty: typed::Empty,
) -> Result<Decoded, Refusal> {
    let api_version = head_text(&node, "apiVersion")?;
    let kind = head_text(&node, "kind")?;
    check_kind(&api_version, &kind, expected).map_err(Refusal::Error)?;
    let decoded = typed_object(node, root, expected, empty).map_err(Refusal::Error)?;
    unknown.extend(decoded.unknown);
    Ok(Decoded { object: decoded.object, unknown })
}

fn typed_object(
    node: Node,
    root: &'static Type,
    expected: Expected<'_>,
    empty: typed::Empty,
) -> Result<Decoded, DecodeError> {
    let typed = typed::decode(node, root, empty).map_err(|reason| DecodeError::Unhandled {
        found: expected.kind.to_owned(),
        version: expected.version.to_owned(),
        kind: expected.kind.to_owned(),
        reason,
    })?;
    Ok(Decoded { object: with_kind(typed.object, expected), unknown: typed.complaints })
}

/// A text member of the head, empty when absent.
fn head_text(node: &Node, name: &str) -> Result<String, Refusal> {
    let Node::Object(_) = node else {
        let target = r#"struct { APIVersion string "json:\"apiVersion,omitempty\""; Kind string "json:\"kind,omitempty\"" }"#;
        let kind = node.go_kind();
        return match node {
            Node::Null => Ok(String::new()),
            _ => Err(Refusal::Unreadable(format!(
                "json: cannot unmarshal {kind} into Go value of type {target}"
            ))),
        };
    };
    match node.member(name) {
        None | Some(Node::Null) => Ok(String::new()),
        Some(Node::String(text)) => Ok(text.clone()),
        Some(other) => Err(Refusal::Unreadable(format!(
            "json: cannot unmarshal {} into Go struct field .{name} of type string",
            other.go_kind()
        ))),
    }
}

fn check_kind(api_version: &str, kind: &str, expected: Expected<'_>) -> Result<(), DecodeError> {
    let wanted = expected.api_version();
    let api_version = if api_version.is_empty() { wanted.as_str() } else { api_version };
    let kind = if kind.is_empty() { expected.kind } else { kind };
    let version = api_version.rsplit('/').next().unwrap_or(api_version);
    if kind != expected.kind {
        return Err(DecodeError::Unhandled {
            found: kind.to_owned(),
            version: version.to_owned(),
            kind: expected.kind.to_owned(),
            reason: foreign_kind(api_version, kind, expected.kind),
        });
    }
    // Options belong to every group: clients name the group of the object that they delete.
    if api_version != wanted && !expected.also.contains(&api_version) && kind != "DeleteOptions" {
        return Err(DecodeError::OtherVersion { found: api_version.to_owned(), expected: wanted });
    }
    Ok(())
}

fn foreign_kind(api_version: &str, kind: &str, wanted: &str) -> String {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let known = crate::schema::types()
        .iter()
        .filter_map(|ty| ty.kind)
        .any(|known| (known.group, known.version, known.kind) == (group, version, kind));
    if known {
        format!("converting ({version}.{kind}) to ({wanted}): unknown conversion")
    } else {
        format!("no kind \"{kind}\" is registered for version \"{api_version}\"")
    }
}

/// `kind` and `apiVersion` lead, as in every answer.
fn with_kind(object: Map<String, Value>, expected: Expected<'_>) -> Value {
    let mut whole = Map::with_capacity(object.len() + 2);
    whole.insert("kind".to_owned(), expected.kind.into());
    whole.insert("apiVersion".to_owned(), expected.api_version().into());
    whole.extend(object.into_iter().filter(|(key, _)| key != "kind" && key != "apiVersion"));
    Value::Object(whole)
}

fn yaml_complaints(repeated: &[String]) -> Vec<String> {
    if repeated.is_empty() {
        Vec::new()
    } else {
        vec![format!("yaml: unmarshal errors:\n  {}", repeated.join("\n  "))]
    }
}

/// The beginning of a body, for an error: text when it looks like JSON, else hexadecimal.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let head = body.get(..SHOWN).unwrap_or(body);
    let more = if body.len() > SHOWN { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => head.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")) + more,
    }
}

#[cfg(test)]
mod tests;
