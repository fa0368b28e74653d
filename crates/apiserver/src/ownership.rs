//! Who owns which fields of a written object: the request's manager goes into `metadata.managedFields`, and
//! server-side apply is carried out. The rules are `api::apply`'s; this knows the request.

use std::sync::LazyLock;

use api::apply::{self, Applied, ApplyError, FieldSet, Manager, Managers, Operation, Writer};
use api::kind::{self, Kind};
use api::schema::Type;
use api::status::Status;
use api::validation::{FieldErrors, Path};
use serde_json::{Map, Value};

use crate::request::Query;
use crate::write::{Part, Write};
use crate::{body, meta, view};

/// The longest name of a manager, in bytes.
const LONGEST: usize = 128;

/// What a write to the object itself does not reach.
static STATUS: LazyLock<FieldSet> = LazyLock::new(|| FieldSet::of(&[&["status"]]));
/// What a write to the status does not reach.
static ALL_BUT_STATUS: LazyLock<FieldSet> = LazyLock::new(|| {
    FieldSet::of(&[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]])
});
static NOTHING: LazyLock<FieldSet> = LazyLock::new(FieldSet::default);

/// Refuses names of managers that can't be kept.
pub(crate) fn check_manager(query: &Query, errors: &mut FieldErrors) {
    let name = query.get("fieldManager");
    let path = Path::new("fieldManager");
    if name.len() > LONGEST {
        errors.too_long(&path, LONGEST);
    }
    if let Some((at, bad)) = name.chars().enumerate().find(|(_, c)| c.is_control()) {
        errors.invalid(&path, name, format!("invalid character {bad:?} (at position {at})"));
    }
}

fn ignored(kind: &Kind, part: Part) -> &'static FieldSet {
    match part {
        Part::Main if kind.has_status => &STATUS,
        Part::Status => &ALL_BUT_STATUS,
        Part::Main | Part::Below(_) => &NOTHING,
    }
}

/// The object as another version of its kind shows it.
fn convert(kind: &Kind, version: &str, object: &Value) -> Option<(&'static Type, Value)> {
    let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
    let other = kind::kinds().iter().find(|other| {
        other.store_prefix == kind.store_prefix && (other.group, other.version) == (group, version)
    })?;
    let mut stored = object.clone();
    (kind.to_stored)(&mut stored);
    Some((body::type_named(other.type_name).ok()?, view::served(other, stored)))
}

/// Calls `walk` with the request as a writer.
fn with_writer<T>(
    write: &Write<'_>,
    operation: Operation,
    part: Part,
    walk: impl FnOnce(Writer<'_>) -> T,
) -> Result<T, Status> {
    let kind = write.kind;
    let name = apply::manager_name(write.info.query.get("fieldManager"), &write.info.user_agent);
    let manager = Manager::new(&name, operation, &write.info.subresource, &kind.api_version());
    Ok(walk(Writer {
        root: body::type_named(kind.type_name)?,
        expected: body::expected(kind),
        manager: &manager,
        now: write.now,
        ignored: ignored(kind, part),
        convert: &|version, object| convert(kind, version, object),
    }))
}

/// Writes the managers of a new object into it.
pub(crate) fn of_new(write: &Write<'_>, object: &mut Value) -> Result<(), Status> {
    let managers = with_writer(write, Operation::Update, Part::Main, |writer| {
        let nothing = apply::nothing(writer.root, writer.expected);
        apply::update(writer, &nothing, object, apply::managers_of_update(&nothing, object))
    })?;
    set(object, &managers);
    Ok(())
}

/// The managers of a changed object.
pub(crate) fn of_change(write: &Write<'_>, old: &Value, new: &Value, part: Part) -> Result<Managers, Status> {
    // Through a subresource nobody writes the list itself.
    let before = match part {
        Part::Main if write.info.subresource.is_empty() => apply::managers_of_update(old, new),
        _ => Managers::of(old),
    };
    with_writer(write, Operation::Update, part, |writer| apply::update(writer, old, new, before))
}

/// Applies an object over the one that is there, or over none.
pub(crate) fn apply_over(
    write: &Write<'_>,
    live: Option<&Value>,
    config: &Value,
    part: Part,
) -> Result<Value, Status> {
    let force = write.info.query.flag("force");
    let applied = with_writer(write, Operation::Apply, part, |writer| match live {
        Some(live) => apply::apply(writer, live, config, force),
        None => apply::apply(writer, &apply::nothing(writer.root, writer.expected), config, force),
    })?;
    let Applied { mut object, managers } = applied.map_err(|error| refusal(write, &error))?;
    set(&mut object, &managers);
    Ok(object)
}

fn refusal(write: &Write<'_>, error: &ApplyError) -> Status {
    match error {
        ApplyError::Misfit(why) => misfit(write, why),
        ApplyError::Conflict(conflicts) => {
            let status = Status::apply_conflict(error.to_string());
            conflicts.iter().fold(status, |status, conflict| {
                let message = format!("conflict with {}", conflict.manager);
                status.with_cause("FieldManagerConflict", message, &conflict.field())
            })
        }
    }
}

/// The applied object is not of its type; the text is the one that users of apply know.
pub(crate) fn misfit(write: &Write<'_>, why: &str) -> Status {
    let (info, kind) = (write.info, write.kind);
    Status::plain(format!(
        "failed to create typed patch object ({}/{}; {}/{}, Kind={}): {why}",
        info.namespace, info.name, kind.group, kind.version, kind.kind
    ))
}

/// Writes managers into an object.
pub(crate) fn set(object: &mut Value, managers: &Managers) {
    meta::set(object, "managedFields", (!managers.is_empty()).then(|| managers.to_value()));
}

/// Gives a changed object the managers of the old one when nothing but their times differs: such a change is none.
pub(crate) fn keep_times(object: &mut Value, old: &Value) {
    let (new, before) = (meta::get(object, "managedFields"), meta::get(old, "managedFields"));
    if new != before && is_same_but_for_managers(object, old) && apply::same_but_for_times(object, old) {
        meta::copy(object, old, "managedFields");
    }
}

fn is_same_but_for_managers(one: &Value, other: &Value) -> bool {
    let (Some(one), Some(other)) = (one.as_object(), other.as_object()) else { return false };
    let (Some(meta), Some(other_meta)) = (metadata(one), metadata(other)) else { return false };
    is_same_without(meta, other_meta, "managedFields") && is_same_without(one, other, "metadata")
}

fn metadata(object: &Map<String, Value>) -> Option<&Map<String, Value>> {
    object.get("metadata")?.as_object()
}

/// Whether two objects have the same members, but for one.
fn is_same_without(one: &Map<String, Value>, other: &Map<String, Value>, without: &str) -> bool {
    let count = |map: &Map<String, Value>| map.len() - usize::from(map.contains_key(without));
    let mut rest = one.iter().filter(|(name, _)| *name != without);
    count(one) == count(other) && rest.all(|(name, value)| other.get(name) == Some(value))
}
