//! `PATCH`: the patch is applied to the object as it is served, and the result goes the way of every other write.
//! Server-side apply makes the object if it isn't there.

use api::apply::Operation;
use api::codec::{self, Expected};
use api::patch::{self, ErrorClass, PatchError};
use api::schema::Type;
use api::status::Status;
use api::validation::{FieldErrors, Path};
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::Value;

use crate::body::{self, FieldValidation};
use crate::request::Query;
use crate::write::{Part, Write, Written};
use crate::{meta, ownership, subresource};

const JSON: &str = "application/json-patch+json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

/// How a patch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl Style {
    fn of(headers: &HeaderMap) -> Result<Self, Status> {
        let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        match text.split(';').next().unwrap_or_default().trim() {
            JSON => Ok(Self::Json),
            MERGE => Ok(Self::Merge),
            STRATEGIC => Ok(Self::Strategic),
            APPLY => Ok(Self::Apply),
            _ => Err(Status::unsupported_media_type(&[JSON, MERGE, STRATEGIC, APPLY])),
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
    let style = Style::of(headers)?;
    check_options(style, &write.info.query)?;
    if style == Style::Apply {
        return apply(&Write { operation: Operation::Apply, ..write.clone() }, bytes, part).await;
    }
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
    if Style::of(headers)? == Style::Apply {
        return Err(Status::unsupported_media_type(&[JSON, MERGE, STRATEGIC]));
    }
    let patch = Patch::parse(headers, bytes)?;
    let root = body::type_named("autoscaling.v1.Scale")?;
    let expected = Expected { group: "autoscaling", version: "v1", kind: "Scale", also: &[] };
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
            // Server-side apply is none of these patches and never comes here.
            Style::Strategic | Style::Apply => patch::strategic_merge(root, old, &self.document.patch),
        };
        let patched = patched.map_err(|error| refusal(&error))?;
        body::decode_patched(&patched, root, expected, validation, self.document.complaints.clone())
    }
}

/// Refuses what only goes with another kind of patch.
fn check_options(style: Style, query: &Query) -> Result<(), Status> {
    let mut errors = FieldErrors::new();
    if style == Style::Apply && query.get("fieldManager").is_empty() {
        errors.required(&Path::new("fieldManager"), "is required for apply patch");
    }
    if style != Style::Apply && query.has("force") {
        errors.forbidden(&Path::new("force"), "may not be specified for non-apply patch");
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid_kind("meta.k8s.io", "PatchOptions", "", &errors))
    }
}

/// Server-side apply: makes the object if it isn't there.
async fn apply(write: &Write<'_>, bytes: &Bytes, part: Part) -> Result<Written, Status> {
    let body::Body { object: config, warnings } = decode_applied(write, bytes)?;
    let is_missing = write.table()?.get(&write.key(&write.info.name)).is_none();
    if is_missing && write.info.subresource.is_empty() {
        match create_applied(write, &config, &warnings).await {
            // Somebody else was faster: it is applied over theirs.
            Err(status) if status.reason() == "AlreadyExists" => {}
            done => return done,
        }
    }
    write
        .change(part, |old| {
            let applied = ownership::apply_over(write, Some(old), &config, part)?;
            let mut object = retyped(write, &applied)?;
            if meta::text(&config, "resourceVersion").is_empty() {
                meta::set(&mut object, "resourceVersion", None);
            }
            Ok((object, warnings.clone()))
        })
        .await
}

async fn create_applied(write: &Write<'_>, config: &Value, warnings: &[String]) -> Result<Written, Status> {
    let uid = meta::text(config, "uid");
    if !uid.is_empty() {
        let why = format!(
            "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
        );
        return Err(Status::conflict(write.kind, &write.info.name, &why));
    }
    // A managing part other than the object itself has been sent away.
    let applied = ownership::apply_over(write, None, config, Part::Main)?;
    write.create_named(retyped(write, &applied)?, warnings.to_vec()).await
}

/// The merged object as its type has it, with defaults.
fn retyped(write: &Write<'_>, applied: &Value) -> Result<Value, Status> {
    let root = body::type_named(write.kind.type_name)?;
    let ignore = FieldValidation::Ignore;
    let mut object =
        body::decode_patched(applied, root, body::expected(write.kind), ignore, Vec::new())?.object;
    write.complete(&mut object)?;
    Ok(object)
}

/// The applied object; what its type doesn't have is an error, as nobody could own it.
fn decode_applied(write: &Write<'_>, bytes: &Bytes) -> Result<body::Body, Status> {
    let (kind, info) = (write.kind, write.info);
    let root = body::type_named(kind.type_name)?;
    let decoded = codec::decode_applied(bytes, root, body::expected(kind))
        .map_err(|error| Status::bad_request(error.to_string()))?;
    let unknown = decoded.unknown.iter().find_map(|complaint| complaint.strip_prefix("unknown field \""));
    if let Some(field) = unknown {
        let why = format!(".{}: field not declared in schema", field.trim_end_matches('"'));
        return Err(ownership::misfit(write, &why));
    }
    let mut body = body::judge(decoded, body::expected(kind), write.validation)?;
    if meta::get(&body.object, "managedFields").is_some() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let name = meta::text(&body.object, "name");
    if name.is_empty() {
        meta::set(&mut body.object, "name", Some(info.name.as_str().into()));
    } else if name != info.name {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            info.name
        )));
    }
    Ok(body)
}

fn refusal(error: &PatchError) -> Status {
    match error.class() {
        ErrorClass::BadRequest => Status::bad_request(error.to_string()),
        ErrorClass::TooLarge => Status::too_large(&error.to_string()),
        ErrorClass::Unprocessable => Status::unprocessable(),
        ErrorClass::Internal => Status::internal(error.to_string()),
    }
}
