//! Field ownership: server-side apply, and who owns what after any other write. Pure walks over the schema table; the
//! rules and texts are those of Kubernetes (KEP-555), so that `kubectl apply --server-side` works as its users know it.
//!
//! Refused is what cannot be merged item by item: two items for one place, or an item without its keys.

use std::fmt::Write as _;
use std::sync::LazyLock;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::codec::{self, Expected};
use crate::schema::{FieldKind, Type};

mod field_manager;
mod merge;
mod own;
mod path;
mod set;
mod shape;

pub use field_manager::{Manager, Managers, Operation, manager_name, same_but_for_times};
pub use path::PathElement;
pub use set::FieldSet;

use field_manager::Entry;
use own::Comparison;
use shape::Shape;

/// The annotation in which client-side apply keeps what it applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The manager whose conflicts with client-side apply are its own.
const KUBECTL: &str = "kubectl";
/// Who owns what was there before an object without managers is first applied to.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The most bytes of all annotations.
const ANNOTATIONS: usize = 256 * 1024;

/// Nobody owns these: they are the object's identity, or the server's own.
static UNOWNED: LazyLock<FieldSet> = LazyLock::new(|| FieldSet::of(UNOWNED_PATHS));
const UNOWNED_PATHS: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// An object at another API version: its type and itself; `None` for versions that are not served.
pub type Convert<'a> = dyn Fn(&str, &Value) -> Option<(&'static Type, Value)> + 'a;

/// One write, as ownership sees it.
#[allow(missing_debug_implementations, reason = "it holds a function")]
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// The object's type.
    pub root: &'static Type,
    /// What the version and kind of the object must be.
    pub expected: Expected<'a>,
    /// Who writes.
    pub manager: &'a Manager,
    /// When.
    pub now: Timestamp,
    /// Fields that this write does not reach, such as `status` of a write to the object itself.
    pub ignored: &'a FieldSet,
    /// For managers that wrote at another version.
    pub convert: &'a Convert<'a>,
}

/// A field that another manager owns and the applied object would change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The other manager: `"kubectl-edit" using v1`.
    pub manager: String,
    path: Vec<PathElement>,
}

impl Conflict {
    /// The field, such as `.data.a`.
    pub fn field(&self) -> String {
        path::print(&self.path)
    }
}

/// Why an object is not applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The applied object can't be merged by its type.
    #[error("{0}")]
    Misfit(String),
    /// Others own fields that it would change.
    #[error("{}", conflict_text(.0))]
    Conflict(Vec<Conflict>),
}

fn conflict_text(conflicts: &[Conflict]) -> String {
    if let [only] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", only.manager, only.field());
    }
    let mut text = format!("Apply failed with {} conflicts:", conflicts.len());
    let mut manager = "";
    for conflict in conflicts {
        if conflict.manager != manager {
            manager = &conflict.manager;
            let gap = if text.ends_with(':') { ' ' } else { '\n' };
            // Writing to a String cannot fail.
            write!(text, "{gap}conflicts with {manager}:").ok();
        }
        write!(text, "\n- {}", conflict.field()).ok();
    }
    text
}

/// What applying an object gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The merged object, without `managedFields`.
    pub object: Value,
    /// Who owns what of it.
    pub managers: Managers,
}

/// An object of a type before anybody wrote it: what Go's zero value looks like in JSON.
pub fn nothing(root: &'static Type, expected: Expected<'_>) -> Value {
    let mut object = zero(root);
    object.insert("apiVersion".to_owned(), expected.api_version().into());
    object.insert("kind".to_owned(), expected.kind.into());
    Value::Object(object)
}

fn zero(ty: &'static Type) -> Map<String, Value> {
    let members = ty.fields.iter().filter_map(|field| {
        let value = match field.kind {
            FieldKind::Ref(inner) if field.embedded => Value::Object(zero(inner.get())),
            FieldKind::List(_) | FieldKind::Map(_) if field.required => Value::Null,
            _ => return None,
        };
        Some((field.json.to_owned(), value))
    });
    members.collect()
}

/// The managers that an update leaves: those in the new object if it names any (a client may write them), else those
/// of the live one. A list with one empty entry takes all of them away.
pub fn managers_of_update(live: &Value, new: &Value) -> Managers {
    let written = crate::access::metadata(new).get("managedFields").and_then(Value::as_array);
    match written.map(Vec::as_slice) {
        Some([only]) if only.as_object().is_some_and(Map::is_empty) => Managers::default(),
        Some(entries) => Managers::read(entries)
            .filter(|managers| !managers.is_empty())
            .unwrap_or_else(|| Managers::of(live)),
        None => Managers::of(live),
    }
}

/// Who owns what after a create, update or patch made `new` of `live`.
///
/// An object that was made without managers stays without; one whose type can't be walked keeps its managers.
pub fn update(writer: Writer<'_>, live: &Value, new: &Value, managers: Managers) -> Managers {
    let is_tracked = !managers.is_empty() || crate::access::metadata(live).get("uid").is_none();
    if !is_tracked {
        return managers;
    }
    let mut updated = managers.clone();
    if writer.update_fields(live, new, &mut updated).is_err() {
        return managers;
    }
    updated.cap();
    updated
}

/// Applies an object over the live one (or over [`nothing`]).
///
/// # Errors
/// [`ApplyError`]; nothing is half applied.
pub fn apply(writer: Writer<'_>, live: &Value, config: &Value, force: bool) -> Result<Applied, ApplyError> {
    let mut managers = Managers::of(live);
    let (live, config) = (bare(live), bare(config));
    let shape = Shape::of_type(writer.root);
    own::check_places(shape, &config).map_err(ApplyError::Misfit)?;
    if managers.is_empty() {
        let version = writer.expected.api_version();
        let manager = Manager::new(BEFORE_FIRST_APPLY, Operation::Update, "", &version);
        let before = Writer { manager: &manager, ..writer };
        before
            .update_fields(&nothing(writer.root, writer.expected), &live, &mut managers)
            .map_err(ApplyError::Misfit)?;
    }
    let applied = writer.apply_fields(&live, &config, managers.clone(), force);
    let mut applied = match applied {
        Err(ApplyError::Conflict(conflicts)) if writer.manager.name == KUBECTL => {
            let others = writer.conflicts_beyond_last_applied(&live, conflicts);
            if !others.is_empty() {
                return Err(ApplyError::Conflict(others));
            }
            writer.apply_fields(&live, &config, managers, true)?
        }
        done => done?,
    };
    if writer.manager.name == KUBECTL {
        set_last_applied(&mut applied.object, &config);
    }
    applied.managers.cap();
    Ok(applied)
}

/// The object without its managers.
fn bare(object: &Value) -> Value {
    let mut bare = object.clone();
    if let Some(metadata) = bare.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    bare
}

fn last_applied(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()
}

/// Keeps the annotation of client-side apply true, where there is one.
fn set_last_applied(object: &mut Value, config: &Value) {
    if last_applied(object).is_none() {
        return;
    }
    let mut config = config.clone();
    let without = |object: &mut Value| {
        let annotations = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut)?;
        annotations.shift_remove(LAST_APPLIED)
    };
    without(&mut config);
    without(object);
    let text = format!("{config}\n");
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        let size: usize = annotations.iter().map(|(name, value)| name.len() + value.to_string().len()).sum();
        if size + LAST_APPLIED.len() + text.len() <= ANNOTATIONS {
            annotations.insert(LAST_APPLIED.to_owned(), text.into());
        }
    }
}

impl Writer<'_> {
    fn shape(&self) -> Shape {
        Shape::of_type(self.root)
    }

    /// The difference between two objects in the terms of a version.
    fn compare(&self, version: &str, old: &Value, new: &Value) -> Option<Result<Comparison, String>> {
        if version == self.expected.api_version() {
            return Some(own::compare(self.shape(), old, new));
        }
        let (root, old) = (self.convert)(version, old)?;
        let (_, new) = (self.convert)(version, new)?;
        Some(own::compare(Shape::of_type(root), &old, &new))
    }

    /// Takes from the other managers what changed or went, and says what they lost against their will. `own` is the
    /// difference in the terms of this writer's version.
    fn take_from_others(
        &self,
        (old, new): (&Value, &Value),
        own: Comparison,
        managers: &mut Managers,
        spared: Option<&Manager>,
    ) -> Result<Vec<(Manager, FieldSet)>, String> {
        let mut compared = vec![(self.expected.api_version(), own)];
        let mut lost = Vec::new();
        let mut kept = Vec::new();
        for mut entry in std::mem::take(&mut managers.entries) {
            if spared == Some(&entry.manager) {
                kept.push(entry);
                continue;
            }
            if !compared.iter().any(|(version, _)| *version == entry.api_version) {
                // What a version that is gone owned is nobody's.
                let Some(comparison) = self.compare(&entry.api_version, old, new) else { continue };
                compared.push((entry.api_version.clone(), comparison?.without(self.ignored)));
            }
            let Some((_, comparison)) = compared.iter().find(|(version, _)| *version == entry.api_version)
            else {
                continue;
            };
            let taken = entry.fields.intersection(&comparison.changed());
            if !taken.is_empty() {
                lost.push((entry.manager.clone(), taken.clone()));
            }
            entry.fields = entry.fields.difference(&taken).difference(&comparison.removed);
            if !entry.fields.is_empty() {
                kept.push(entry);
            }
        }
        managers.entries = kept;
        Ok(lost)
    }

    fn update_fields(&self, live: &Value, new: &Value, managers: &mut Managers) -> Result<(), String> {
        // The managers themselves are compared too, and are nobody's.
        let comparison = self.own_comparison(live, new)?;
        let taken = comparison.changed().difference(&UNOWNED);
        let before = managers.get(self.manager).cloned();
        self.take_from_others((live, new), comparison, managers, None)?;
        if taken.is_empty() {
            return Ok(());
        }
        let fields = managers.fields_of(self.manager).union(&taken);
        let time = match before {
            Some(before) if before.fields == fields => before.time,
            _ => Some(self.now),
        };
        managers.put(self.entry(fields, time));
        Ok(())
    }

    fn own_comparison(&self, old: &Value, new: &Value) -> Result<Comparison, String> {
        Ok(own::compare(self.shape(), old, new)?.without(self.ignored))
    }

    fn entry(&self, fields: FieldSet, time: Option<Timestamp>) -> Entry {
        let api_version = self.expected.api_version();
        Entry { manager: self.manager.clone(), api_version, fields, time }
    }

    fn apply_fields(
        &self,
        live: &Value,
        config: &Value,
        mut managers: Managers,
        force: bool,
    ) -> Result<Applied, ApplyError> {
        let shape = self.shape();
        let misfit = ApplyError::Misfit;
        let merged = merge::merge(shape, live, config).map_err(misfit)?;
        let fields = own::fields_of(shape, config).map_err(misfit)?.recursive_difference(self.ignored);
        let last = managers.get(self.manager).cloned();
        managers.put(self.entry(fields.clone(), None));
        let object = self.prune(merged, &managers, last.as_ref()).map_err(misfit)?;
        let comparison = self.own_comparison(live, &object).map_err(misfit)?;
        let taken = self
            .take_from_others((live, &object), comparison, &mut managers, Some(self.manager))
            .map_err(misfit)?;
        if !force && !taken.is_empty() {
            return Err(ApplyError::Conflict(conflicts(taken)));
        }
        let time = match last {
            Some(last) if *live == object => last.time,
            _ => Some(self.now),
        };
        managers.entries.retain(|entry| entry.manager != *self.manager);
        managers.put(self.entry(fields.difference(&UNOWNED), time));
        Ok(Applied { object, managers })
    }

    /// Takes out what the manager applied last time, does not apply now, and nobody else owns.
    fn prune(&self, merged: Value, managers: &Managers, last: Option<&Entry>) -> Result<Value, String> {
        let version = self.expected.api_version();
        let Some(last) = last.filter(|last| last.api_version == version) else { return Ok(merged) };
        let shape = self.shape();
        let named = |set: &FieldSet| set.with_named_fields(shape);
        let fields_of = |value: &Value| own::fields_of(shape, value).map(|set| named(&set));
        let without = |set: &FieldSet| {
            merge::remove(shape, &merged, set).map(|left| left.unwrap_or_else(|| bare(&Value::Null)))
        };
        let all = fields_of(&merged)?;
        let owned =
            managers.entries.iter().fold(FieldSet::default(), |owned, entry| owned.union(&entry.fields));
        // First without everything of the last time, then with what somebody owns, then with what was never the
        // manager's: an item goes only when it was applied itself, not because one of its fields was.
        let left = fields_of(&without(&named(&last.fields))?)?;
        let left = fields_of(&without(&all.difference(&left.union(&named(&owned))))?)?;
        without(&all.difference(&left).intersection(&named(&last.fields)))
    }

    /// The conflicts that client-side apply of the same user did not make.
    fn conflicts_beyond_last_applied(&self, live: &Value, conflicts: Vec<Conflict>) -> Vec<Conflict> {
        let Some(allowed) = self.last_applied_fields(live) else { return conflicts };
        let is_allowed = |conflict: &Conflict| {
            let mut set = FieldSet::default();
            set.insert(&conflict.path);
            set.difference(&allowed).is_empty()
        };
        conflicts.into_iter().filter(|conflict| !is_allowed(conflict)).collect()
    }

    /// The fields that client-side apply set last and that are still as it set them.
    fn last_applied_fields(&self, live: &Value) -> Option<FieldSet> {
        let applied: Value = serde_json::from_str(last_applied(live)?).ok()?;
        let applied = codec::decode_value(&applied, self.root, self.expected).ok()?.object;
        let fields = own::fields_of(self.shape(), &applied).ok()?;
        let since = own::compare(self.shape(), &applied, live).ok()?;
        Some(fields.difference(&since.changed()).difference(&since.removed))
    }
}

/// Conflicts in the order in which they are told: by manager, then by field.
fn conflicts(mut lost: Vec<(Manager, FieldSet)>) -> Vec<Conflict> {
    lost.sort_by(|one, other| one.0.cmp(&other.0));
    let of = |(manager, fields): (Manager, FieldSet)| {
        let manager = manager.describe();
        fields.paths().into_iter().map(move |path| Conflict { manager: manager.clone(), path })
    };
    lost.into_iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests;
