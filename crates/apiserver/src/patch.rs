//! `PATCH`: the patch is applied to the object as it is served, and the result goes the way of every other write.

use api::patch::{self, ErrorClass, PatchError};
use api::status::Status;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;

use crate::body;
use crate::meta;
use crate::write::{Part, Write, Written};

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

/// Patches the object that the request names.
pub(crate) async fn patch(
    write: &Write<'_>,
    headers: &HeaderMap,
    bytes: &Bytes,
    part: Part,
) -> Result<Written, Status> {
    let style = Style::of(headers)?;
    let document = patch::read_body(bytes).map_err(|error| refusal(&error))?;
    let root = body::type_named(write.kind.type_name)?;
    write
        .change(part, |old| {
            let patched = match style {
                Style::Json => patch::json_patch(old, &document.patch),
                Style::Merge => patch::merge(old, &document.patch),
                Style::Strategic => patch::strategic_merge(root, old, &document.patch),
            };
            let patched = patched.map_err(|error| refusal(&error))?;
            let complaints = document.complaints.clone();
            let decoded = body::decode_patched(
                &patched,
                root,
                body::expected(write.kind),
                write.validation,
                complaints,
            )?;
            let mut object = decoded.object;
            write.complete(&mut object)?;
            // A patch that says nothing of the version applies to whatever version there is.
            if meta::text(&object, "resourceVersion") == meta::text(old, "resourceVersion") {
                meta::set(&mut object, "resourceVersion", None);
            }
            Ok((object, decoded.warnings))
        })
        .await
}

fn refusal(error: &PatchError) -> Status {
    match error.class() {
        ErrorClass::BadRequest => Status::bad_request(error.to_string()),
        ErrorClass::TooLarge => Status::too_large(&error.to_string()),
        ErrorClass::Unprocessable => Status::unprocessable(),
        ErrorClass::Internal => Status::internal(error.to_string()),
    }
}
