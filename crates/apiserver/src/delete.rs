//! `DELETE`: at once, after a grace period, or when the last finalizer is gone.

use api::kind::Grace;
use api::status::Status;
use api::validation::{FieldErrors, Path};
use bytes::Bytes;
use http::HeaderMap;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::admission::{self, Act, Ask};
use crate::body::{self, FieldValidation};
use crate::cache::Object;
use crate::list::Filter;
use crate::request::Query;
use crate::write::{Part, Put, Write};
use crate::{meta, view};

/// Keeps dependents: the garbage collector takes it away after it has removed their references.
pub(crate) const ORPHAN: &str = "orphan";
/// Waits for dependents: the garbage collector takes it away when they are gone.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";

/// How often a deletion is tried again when the object changes under it.
const TRIES: usize = 16;

/// What the request says about the deletion.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    grace: Option<i64>,
    uid: Option<String>,
    version: Option<String>,
    propagation: Option<Propagation>,
    pub(crate) dry_run: bool,
}

/// What becomes of the objects that this one owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// How a deletion ended.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// The object is gone; this is what it was.
    Gone(Value),
    /// It stays until its time is over or its finalizers are gone.
    Pending(Value),
}

impl Options {
    /// Reads the options from the body, or without one from the query.
    pub(crate) fn parse(write: &Write<'_>, headers: &HeaderMap, bytes: &Bytes) -> Result<Self, Status> {
        let value = if bytes.is_empty() {
            Self::from_query(&write.info.query)?
        } else {
            Self::decode(write, headers, bytes)?
        };
        Self::from_value(&value, write.dry_run)
    }

    fn decode(write: &Write<'_>, headers: &HeaderMap, bytes: &Bytes) -> Result<Value, Status> {
        let media = body::media_type(headers)?;
        let root = body::type_named("meta.v1.DeleteOptions")?;
        let mut last = Status::bad_request("the body holds no DeleteOptions");
        for (group, version) in [(write.kind.group, write.kind.version), ("", "v1"), ("meta.k8s.io", "v1")] {
            let expected = api::codec::Expected { group, version, kind: "DeleteOptions", also: &[] };
            match body::decode(media, bytes, root, expected, FieldValidation::Ignore) {
                Ok(decoded) => return Ok(decoded.object),
                Err(status) => last = status,
            }
        }
        Err(last)
    }

    fn from_query(query: &Query) -> Result<Value, Status> {
        let mut value = json!({});
        let fields = meta::as_map(&mut value);
        if query.has("gracePeriodSeconds") {
            let text = query.get("gracePeriodSeconds");
            let seconds: i64 = text.parse().map_err(|_| {
                Status::bad_request(format!(
                    "strconv.ParseInt: parsing {}: invalid syntax",
                    api::validation::quote(text)
                ))
            })?;
            fields.insert("gracePeriodSeconds".to_owned(), seconds.into());
        }
        if query.has("propagationPolicy") {
            fields.insert("propagationPolicy".to_owned(), query.get("propagationPolicy").into());
        }
        if query.has("orphanDependents") {
            fields.insert("orphanDependents".to_owned(), query.flag("orphanDependents").into());
        }
        Ok(value)
    }

    /// Reads `DeleteOptions`, which evictions carry too.
    pub(crate) fn from_value(value: &Value, dry_run: bool) -> Result<Self, Status> {
        let mut errors = FieldErrors::new();
        let policy = value.get("propagationPolicy").and_then(Value::as_str);
        let orphan = value.get("orphanDependents").and_then(Value::as_bool);
        let propagation = match (policy, orphan) {
            (Some(policy), Some(_)) => {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                errors.invalid(&Path::new("propagationPolicy"), policy, why);
                None
            }
            (None, Some(true)) | (Some("Orphan"), None) => Some(Propagation::Orphan),
            (None, Some(false)) | (Some("Background"), None) => Some(Propagation::Background),
            (Some("Foreground"), None) => Some(Propagation::Foreground),
            (Some(other), None) => {
                let known = ["Background", "Foreground", "Orphan", "nil"];
                errors.not_supported(&Path::new("propagationPolicy"), other, &known);
                None
            }
            (None, None) => None,
        };
        for other in value
            .get("dryRun")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter(|value| *value != "All")
        {
            errors.not_supported(&Path::new("dryRun"), other.clone(), &["All"]);
        }
        if !errors.is_empty() {
            return Err(Status::invalid_kind("meta.k8s.io", "DeleteOptions", "", &errors));
        }
        let precondition = |name: &str| {
            value.pointer(&format!("/preconditions/{name}")).and_then(Value::as_str).map(str::to_owned)
        };
        let grace = value.get("gracePeriodSeconds").and_then(Value::as_i64);
        Ok(Self {
            grace: grace.map(|seconds| if seconds < 0 { 1 } else { seconds }),
            uid: precondition("uid"),
            version: precondition("resourceVersion"),
            propagation,
            dry_run: dry_run
                || value.get("dryRun").and_then(Value::as_array).is_some_and(|list| !list.is_empty()),
        })
    }
}

/// What is to be done with the object.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Remove,
    /// Mark it, and remove it if nothing holds it.
    Mark {
        grace: i64,
    },
    /// It is being deleted already, and not sooner than asked.
    Leave,
}

fn plan(write: &Write<'_>, object: &Value, options: &Options) -> Plan {
    let pending = meta::get(object, "deletionTimestamp").is_some();
    let current = meta::number(object, "deletionGracePeriodSeconds");
    match (pending, current, options.grace) {
        (true, None, _) => Plan::Remove,
        (true, Some(current), Some(asked)) if asked < current => Plan::Mark { grace: asked },
        (true, Some(_), _) => Plan::Leave,
        (false, ..) => match (write.kind.grace)(object, options.grace) {
            Grace::None => Plan::Remove,
            Grace::Seconds(grace) => Plan::Mark { grace },
        },
    }
}

/// Deletes the object that the request names.
pub(crate) async fn delete(write: &Write<'_>, options: &Options) -> Result<Deleted, Status> {
    for _ in 0..TRIES {
        let current = write.current()?;
        match delete_once(write, &current, options).await {
            Ok(deleted) => return Ok(deleted),
            Err(Put::Failed(status)) => return Err(status),
            Err(Put::Conflict(_)) => {}
        }
    }
    Err(Status::server_timeout(write.kind, "delete", 1))
}

/// Deletes an object in the state in which it was read.
async fn delete_once(write: &Write<'_>, current: &Object, options: &Options) -> Result<Deleted, Put> {
    let mut object = view::value(write.kind, current);
    check_preconditions(write, &object, options).map_err(Put::Failed)?;
    let ask = Ask { write, act: Act::Delete, part: Part::Main, object: &object, old: None };
    admission::check(ask).map_err(Put::Failed)?;
    let name = meta::text(&object, "name").to_owned();
    let expect = store::Expect::Revision(current.revision());
    let plan = plan(write, &object, options);
    if plan == Plan::Leave {
        return Ok(Deleted::Pending(object));
    }
    set_finalizers(&mut object, options.propagation);
    let is_held = hold(write, &mut object);
    match plan {
        Plan::Mark { grace } => {
            mark(&mut object, write.now, grace);
            if is_held || grace > 0 {
                return Ok(Deleted::Pending(write.put(&name, object, expect).await?));
            }
        }
        Plan::Remove if is_held => {
            mark(&mut object, write.now, 0);
            return Ok(Deleted::Pending(write.put(&name, object, expect).await?));
        }
        Plan::Remove | Plan::Leave => {}
    }
    let revision = write.remove(current).await?;
    meta::set(&mut object, "resourceVersion", Some(revision.to_string().into()));
    Ok(Deleted::Gone(object))
}

fn check_preconditions(write: &Write<'_>, object: &Value, options: &Options) -> Result<(), Status> {
    for (what, field, wanted) in
        [("UID", "uid", &options.uid), ("ResourceVersion", "resourceVersion", &options.version)]
    {
        let found = meta::text(object, field);
        if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != found) {
            let name = meta::text(object, "name");
            return Err(Status::precondition_failed(write.kind, name, what, wanted, found));
        }
    }
    Ok(())
}

/// Adds or removes the garbage collector's finalizers.
fn set_finalizers(object: &mut Value, propagation: Option<Propagation>) {
    let Some(propagation) = propagation else { return };
    let wanted = match propagation {
        Propagation::Orphan => Some(ORPHAN),
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Background => None,
    };
    let before: Vec<String> = meta::texts(object, "finalizers").into_iter().map(str::to_owned).collect();
    let kept = before.iter().map(String::as_str).filter(|one| !matches!(*one, ORPHAN | FOREGROUND));
    let after: Vec<&str> = kept.chain(wanted).collect();
    meta::set_texts(object, "finalizers", &after);
}

/// Whether something holds the object; a namespace that is held begins to terminate.
fn hold(write: &Write<'_>, object: &mut Value) -> bool {
    let is_held = !meta::texts(object, "finalizers").is_empty();
    let has_contents = write.kind.kind == "Namespace"
        && object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    if has_contents {
        meta::map_at(object, "status").insert("phase".to_owned(), "Terminating".into());
    }
    is_held || has_contents
}

/// Writes when the object goes. The first time counts as a new generation.
fn mark(object: &mut Value, now: Timestamp, grace: i64) {
    let first = meta::time(object, "deletionTimestamp").is_none();
    let before = meta::number(object, "deletionGracePeriodSeconds").unwrap_or_default();
    let begun = meta::time(object, "deletionTimestamp")
        .map_or(now, |at| at.checked_sub(SignedDuration::from_secs(before)).unwrap_or(now));
    // As late as a time can be written, for whoever asks for more.
    let at = begun.checked_add(SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX);
    meta::set(object, "deletionTimestamp", Some(api::time::format_seconds(at).into()));
    meta::set(object, "deletionGracePeriodSeconds", Some(grace.into()));
    if let Some(generation) = meta::number(object, "generation").filter(|_| first) {
        meta::set(object, "generation", Some((generation + 1).into()));
    }
}

/// Deletes everything that the request's selectors mean, and gives back what was there.
pub(crate) async fn delete_collection(write: &Write<'_>, options: &Options) -> Result<Value, Status> {
    let filter = Filter::parse(write.kind, write.info)?;
    let snapshot = write.server.cache.snapshot(write.table()?);
    let mut items = Vec::new();
    for object in snapshot.range(filter.prefix(), None).filter(|object| filter.matches(object)) {
        let Some(current) = write.table()?.get(object.key()) else { continue };
        let mut last = Err(Put::Conflict(Some(current)));
        for _ in 0..TRIES {
            let Err(Put::Conflict(Some(current))) = last else { break };
            last = delete_once(write, &current, options).await;
        }
        match last {
            Ok(Deleted::Gone(mut object) | Deleted::Pending(mut object)) => {
                let fields = meta::as_map(&mut object);
                fields.shift_remove("kind");
                fields.shift_remove("apiVersion");
                items.push(object);
            }
            Err(Put::Failed(status)) if status.code() != 404 => return Err(status),
            Err(_) => {}
        }
    }
    Ok(json!({
        "kind": write.kind.list_kind(),
        "apiVersion": write.kind.api_version(),
        "metadata": {"resourceVersion": snapshot.revision.to_string()},
        "items": items,
    }))
}
