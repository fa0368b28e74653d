//! Request bodies: read up to a limit, then decoded strictly by the schema table. What the body says of its kind must
//! agree with the path.

use api::codec::{self, Decoded, Expected, MediaType};
use api::kind::Kind;
use api::schema::{self, Type};
use api::status::Status;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use crate::BoxError;
use crate::request::Query;
use crate::response::ACCEPTED;

/// The body of a request, wherever it comes from.
pub(crate) type RequestBody = UnsyncBoxBody<Bytes, BodyError>;

/// The client's body could not be read to its end.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BodyError(BoxError);

/// The body of a request with its error boxed.
pub(crate) fn boxed<B>(body: B) -> RequestBody
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(|error| BodyError(error.into())).boxed_unsync()
}

/// The largest body that is read, in bytes; upstream's.
pub(crate) const LIMIT: usize = 3 * 1024 * 1024;

/// Reads a whole body.
pub(crate) async fn read(body: RequestBody) -> Result<Bytes, Status> {
    match Limited::new(body, LIMIT).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::too_large(&format!("limit is {LIMIT}"))),
        Err(error) => Err(Status::bad_request(format!("reading the request's body: {error}"))),
    }
}

/// What becomes of fields that a type does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    /// Reads the parameter `fieldValidation`, which has been checked.
    pub(crate) fn of(query: &Query) -> Self {
        match query.get("fieldValidation") {
            "Ignore" => Self::Ignore,
            "Strict" => Self::Strict,
            _ => Self::Warn,
        }
    }
}

/// A decoded body and what there is to warn of.
#[derive(Debug)]
pub(crate) struct Body {
    pub(crate) object: Value,
    pub(crate) warnings: Vec<String>,
}

/// The media type of a request's body.
pub(crate) fn media_type(headers: &HeaderMap) -> Result<MediaType, Status> {
    let content_type = headers.get(CONTENT_TYPE).map_or("", |value| value.to_str().unwrap_or("?"));
    MediaType::of(content_type).ok_or_else(|| Status::unsupported_media_type(ACCEPTED))
}

/// The type of a name in the schema table, with or without the prefix of its `OpenAPI` definition.
pub(crate) fn type_named(name: &str) -> Result<&'static Type, Status> {
    let short = name
        .strip_prefix("io.k8s.api.")
        .or_else(|| name.strip_prefix("io.k8s.apimachinery.pkg.apis."))
        .unwrap_or(name);
    schema::type_named(short).ok_or_else(|| Status::internal(format!("the schema table has no type {name}")))
}

/// What the path of a kind expects.
pub(crate) fn expected(kind: &Kind) -> Expected<'_> {
    Expected { group: kind.group, version: kind.version, kind: kind.kind, also: &[] }
}

/// Decodes a body of the given type.
pub(crate) fn decode(
    media: MediaType,
    bytes: &[u8],
    root: &'static Type,
    expected: Expected<'_>,
    validation: FieldValidation,
) -> Result<Body, Status> {
    let decoded = codec::decode(media, bytes, root, expected)
        .map_err(|error| Status::bad_request(error.to_string()))?;
    judge(decoded, expected, validation)
}

/// Types a value that a patch made. `complaints` are those about the patch itself.
pub(crate) fn decode_patched(
    value: &Value,
    root: &'static Type,
    expected: Expected<'_>,
    validation: FieldValidation,
    complaints: Vec<String>,
) -> Result<Body, Status> {
    let mut decoded =
        codec::decode_value(value, root, expected).map_err(|error| Status::bad_request(error.to_string()))?;
    decoded.unknown.splice(0..0, complaints);
    judge(decoded, expected, validation)
}

/// Warns of what a type does not have, or refuses it.
pub(crate) fn judge(
    decoded: Decoded,
    expected: Expected<'_>,
    validation: FieldValidation,
) -> Result<Body, Status> {
    if validation == FieldValidation::Strict
        && let Some(message) = decoded.strict_error(expected)
    {
        return Err(Status::bad_request(message));
    }
    let warnings = if validation == FieldValidation::Warn { decoded.unknown } else { Vec::new() };
    Ok(Body { object: decoded.object, warnings })
}
