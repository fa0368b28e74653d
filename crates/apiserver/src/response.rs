//! What clients accept and how answers are written: objects, Tables and metadata alone, as JSON or YAML. Protobuf is read
//! but not written: every client that asks for it takes JSON too.

use std::fmt::Write as _;

use api::status::Status;
use api::table::Include;
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, WARNING};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use serde_json::Value;

use crate::BoxError;

/// The body of every answer.
pub type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// The media types of objects.
pub(crate) const ACCEPTED: &[&str] =
    &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// What is made of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Object,
    Table(Include),
    Metadata,
}

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
}

/// What a client accepts first among what can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) form: Form,
    pub(crate) encoding: Encoding,
}

impl Accepted {
    /// The plain object as JSON.
    pub(crate) const JSON: Self = Self { form: Form::Object, encoding: Encoding::Json };
}

/// Which forms a request can be answered in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// Objects, Tables, metadata.
    All,
    /// Objects alone: reviews, bindings and other answers that are not stored.
    Objects,
}

/// Reads the `Accept` headers. `include_object` is the request's parameter for Tables.
pub(crate) fn negotiate(headers: &HeaderMap, include_object: &str, offer: Offer) -> Result<Accepted, Status> {
    let mut seen = false;
    for header in headers.get_all(ACCEPT) {
        for clause in
            header.to_str().unwrap_or_default().split(',').map(str::trim).filter(|clause| !clause.is_empty())
        {
            seen = true;
            if let Some(accepted) = clause_accepts(clause, include_object, offer)? {
                return Ok(accepted);
            }
        }
    }
    if seen { Err(Status::not_acceptable(ACCEPTED)) } else { Ok(Accepted::JSON) }
}

fn clause_accepts(clause: &str, include_object: &str, offer: Offer) -> Result<Option<Accepted>, Status> {
    let mut parts = clause.split(';').map(str::trim);
    let encoding = match parts.next().unwrap_or_default() {
        "application/json" | "application/*" | "*/*" => Encoding::Json,
        "application/yaml" => Encoding::Yaml,
        _ => return Ok(None),
    };
    let (mut target, mut group, mut version) = ("", "", "");
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        match name.trim() {
            "as" => target = value.trim(),
            "g" => group = value.trim(),
            "v" => version = value.trim(),
            _ => {}
        }
    }
    let is_meta = group == "meta.k8s.io" && matches!(version, "v1" | "v1beta1");
    let form = match target {
        "" => Form::Object,
        _ if offer == Offer::Objects || !is_meta => return Ok(None),
        "Table" => Form::Table(Include::parse(include_object).ok_or_else(|| {
            Status::bad_request(format!(
                "invalid include object: unrecognized includeObject value: {include_object}"
            ))
        })?),
        "PartialObjectMetadata" | "PartialObjectMetadataList" => Form::Metadata,
        _ => return Ok(None),
    };
    Ok(Some(Accepted { form, encoding }))
}

/// A body that is all there.
pub(crate) fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer of JSON bytes, as the client wants them encoded.
pub(crate) fn json_bytes(code: StatusCode, accepted: Accepted, bytes: Bytes) -> Response<ResponseBody> {
    let (content_type, bytes) = match accepted.encoding {
        Encoding::Json => ("application/json", bytes),
        Encoding::Yaml => ("application/yaml", yaml(&bytes)),
    };
    let mut response = Response::new(full(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Marks an answer that is made in pieces and comes to an end, unlike a watch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InPieces;

/// An answer of JSON that is made while the client takes it; one of a single piece is sent whole.
pub(crate) fn json_pieces(
    code: StatusCode,
    accepted: Accepted,
    pieces: impl Iterator<Item = Bytes> + Send + 'static,
) -> Response<ResponseBody> {
    let mut pieces = pieces.peekable();
    let first = pieces.next().unwrap_or_default();
    if pieces.peek().is_none() {
        return json_bytes(code, accepted, first);
    }
    let pieces = std::iter::once(first).chain(pieces);
    if accepted.encoding == Encoding::Yaml {
        let whole = pieces.fold(BytesMut::new(), |mut whole, piece| {
            whole.extend_from_slice(&piece);
            whole
        });
        return json_bytes(code, accepted, whole.freeze());
    }
    let mut response = json_bytes(code, accepted, Bytes::new());
    let frames = pieces.flat_map(records).map(|piece| Ok::<_, BoxError>(Frame::data(piece)));
    *response.body_mut() = StreamBody::new(futures::stream::iter(frames)).boxed_unsync();
    response.extensions_mut().insert(InPieces);
    response
}

/// A piece in parts that fill a record of TLS each, together with the head of their frame of HTTP/2. Of longer ones each
/// frame would need a second record for its last bytes.
fn records(mut piece: Bytes) -> impl Iterator<Item = Bytes> {
    const RECORD: usize = 16 * 1024 - 9;
    std::iter::from_fn(move || (!piece.is_empty()).then(|| piece.split_to(piece.len().min(RECORD))))
}

/// An answer of one JSON value.
pub(crate) fn json(code: StatusCode, accepted: Accepted, value: &Value) -> Response<ResponseBody> {
    json_bytes(code, accepted, to_bytes(value))
}

/// A value as the bytes that go over the wire.
pub(crate) fn to_bytes(value: &Value) -> Bytes {
    // Writing a JSON value into memory cannot fail: its keys are strings.
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}

fn yaml(json: &Bytes) -> Bytes {
    let value: Value = serde_json::from_slice(json).unwrap_or_default();
    serde_saphyr::to_string(&value).map_or_else(|_| json.clone(), Bytes::from)
}

/// An answer of plain text.
pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<ResponseBody> {
    let mut response = Response::new(full(text));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// An answer that says what went wrong, or only that it went well.
pub(crate) fn status(status: &Status) -> Response<ResponseBody> {
    let code = StatusCode::from_u16(status.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, Accepted::JSON, &status.to_value());
    if let Some(seconds) = status.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds `Warning` headers. A text that repeats is sent once.
pub(crate) fn warn(response: &mut Response<ResponseBody>, warnings: &[String]) {
    for (at, warning) in warnings.iter().enumerate() {
        if warnings.iter().take(at).any(|earlier| earlier == warning) {
            continue;
        }
        let escaped = warning.replace('\\', "\\\\").replace('"', "\\\"");
        let text: String = escaped.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(text: &'static str, offer: Offer) -> Result<Accepted, u16> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(text));
        negotiate(&headers, "", offer).map_err(|status| status.code())
    }

    #[test]
    fn the_first_form_that_can_be_made_is_taken() {
        let table = Accepted { form: Form::Table(Include::Metadata), encoding: Encoding::Json };
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(accept(kubectl, Offer::All), Ok(table));
        assert_eq!(accept(kubectl, Offer::Objects), Ok(Accepted::JSON));
        assert_eq!(accept("application/json;as=Table;v=v1;g=meta.k8s.io", Offer::Objects), Err(406));
        assert_eq!(
            accept("application/vnd.kubernetes.protobuf,application/json", Offer::All),
            Ok(Accepted::JSON)
        );
        assert_eq!(accept("application/vnd.kubernetes.protobuf, */*", Offer::All), Ok(Accepted::JSON));
        assert_eq!(accept("application/vnd.kubernetes.protobuf", Offer::All), Err(406));
        assert_eq!(accept("text/html", Offer::All), Err(406));
        assert_eq!(accept("application/json;as=Table;v=v1;g=example.com", Offer::All), Err(406));
        assert_eq!(negotiate(&HeaderMap::new(), "", Offer::All).unwrap(), Accepted::JSON);
        let metadata = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        assert_eq!(accept(metadata, Offer::All).unwrap().form, Form::Metadata);
    }

    #[test]
    fn warnings_are_quoted_and_sent_once() {
        let mut response = text(StatusCode::OK, "");
        warn(&mut response, &["unknown field \"a\"".to_owned(), "b".to_owned(), "b".to_owned()]);
        let sent: Vec<_> =
            response.headers().get_all(WARNING).iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(sent, ["299 - \"unknown field \\\"a\\\"\"", "299 - \"b\""]);
    }
}
