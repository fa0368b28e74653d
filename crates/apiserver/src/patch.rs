//! `PATCH`: the patch is applied to the object as it is served, and the result goes the way of every other write.

use api::codec::Expected;
use api::patch::{self, ErrorClass, PatchError};
use api::schema::Type;
use api::status::Status;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::Value;

use crate::body::{self, FieldValidation};
use crate::write::{Part, Write, Written};
use crate::{meta, subresource};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// How a patch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Json,
    Merge,
    Strategic,
}

impl Style {
    fn of(headers: &HeaderMap) -> Result<Self, Status> {
        let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match text.split(';').next().unwrap_or_default().trim() {
            JSON => Ok(Self::Json),
            MERGE => Ok(Self::Merge),
            STRATEGIC => Ok(Self::Strategic),
            _ => Err(Status::unsupported_media_type(&[JSON, MERGE, STRATEGIC])),
        }
    }
}

/// Patches the object that the request names, or its Scale.
pub(crate) async fn patch(
    write: &Write<'_>,
    headers: &HeaderMap,
    bytes: &Bytes,
    part: Part,
) -> Result<Written, Status> {
    let patch = Patch::parse(headers, bytes)?;
    let root = body::type_named(write.kind.type_name)?;
    write
        .change(part, |old| {
            let decoded = patch.apply(old, root, body::expected(write.kind), write.validation)?;
            let mut object = decoded.object;
            write.complete(&mut object)?;
            Ok((versionless(object, old), decoded.warnings))
        })
        .await
}

/// Patches the Scale of the object that the request names.
pub(crate) async fn patch_scale(
    write: &Write<'_>,
    headers: &HeaderMap,
    bytes: &Bytes,
) -> Result<Written, Status> {
    let patch = Patch::parse(headers, bytes)?;
    let root = body::type_named("autoscaling.v1.Scale")?;
    let expected = Expected { group: "autoscaling", version: "v1", kind: "Scale" };
    subresource::rescale(write, |old| {
        let decoded = patch.apply(old, root, expected, write.validation)?;
        Ok((versionless(decoded.object, old), decoded.warnings))
    })
    .await
}

/// A patch that says nothing of the version applies to whatever version there is.
fn versionless(mut object: Value, old: &Value) -> Value {
    if meta::text(&object, "resourceVersion") == meta::text(old, "resourceVersion") {
        meta::set(&mut object, "resourceVersion", None);
    }
    object
}

/// A patch as it was sent.
struct Patch {
    style: Style,
    document: patch::Body,
}

impl Patch {
    fn parse(headers: &HeaderMap, bytes: &Bytes) -> Result<Self, Status> {
        let style = Style::of(headers)?;
        Ok(Self { style, document: patch::read_body(bytes).map_err(|error| refusal(&error))? })
    }

    /// The patched object, typed.
    fn apply(
        &self,
        old: &Value,
        root: &'static Type,
        expected: Expected<'_>,
        validation: FieldValidation,
    ) -> Result<body::Body, Status> {
        let patched = match self.style {
            Style::Json => patch::json_patch(old, &self.document.patch),
            Style::Merge => patch::merge(old, &self.document.patch),
            Style::Strategic => patch::strategic_merge(root, old, &self.document.patch),
        };
        let patched = patched.map_err(|error| refusal(&error))?;
        body::decode_patched(&patched, root, expected, validation, self.document.complaints.clone())
    }
}

fn refusal(error: &PatchError) -> Status {
    match error.class() {
        ErrorClass::BadRequest => Status::bad_request(error.to_string()),
        ErrorClass::TooLarge => Status::too_large(&error.to_string()),
        ErrorClass::Unprocessable => Status::unprocessable(),
        ErrorClass::Internal => Status::internal(error.to_string()),
    }
}
