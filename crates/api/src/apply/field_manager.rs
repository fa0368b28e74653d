//! `metadata.managedFields`: who owns which fields, read from an object and written back in upstream's order.

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::set::FieldSet;
use crate::access::Access as _;
use crate::time;

/// More `Update` entries than this are joined, the oldest first.
const MAX_UPDATERS: usize = 10;
/// The manager of entries that were joined.
const ANCIENT: &str = "ancient-changes";

/// How a manager came to own fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// By server-side apply.
    Apply,
    /// By any other write.
    Update,
}

impl Operation {
    fn text(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Who writes: entries with equal managers are one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Manager {
    /// The name from `fieldManager` or the user agent.
    pub name: String,
    /// How it writes.
    pub operation: Operation,
    /// Through which subresource; empty for the object itself.
    pub subresource: String,
    /// The API version of its writes; an applier has one entry whatever version it applies.
    api_version: String,
}

impl Manager {
    /// A manager that writes at an API version.
    pub fn new(name: &str, operation: Operation, subresource: &str, api_version: &str) -> Self {
        let api_version = if operation == Operation::Apply { "" } else { api_version };
        Self {
            name: name.to_owned(),
            operation,
            subresource: subresource.to_owned(),
            api_version: api_version.to_owned(),
        }
    }

    /// As conflicts name it: `"kubectl-edit" using v1 at 2026-01-02T03:04:05Z`.
    pub(super) fn describe(&self) -> String {
        let mut text = crate::validation::quote(&self.name);
        if !self.subresource.is_empty() {
            text.push_str(" with subresource ");
            text.push_str(&crate::validation::quote(&self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(" using ");
            text.push_str(&self.api_version);
        }
        text
    }
}

/// What a manager owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) manager: Manager,
    /// The version in whose terms the fields are.
    pub(super) api_version: String,
    pub(super) fields: FieldSet,
    pub(super) time: Option<Timestamp>,
}

/// All managers of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Managers {
    pub(super) entries: Vec<Entry>,
}

impl Managers {
    /// Reads an object's managers; what is not in the form counts as none.
    pub fn of(object: &Value) -> Self {
        Self::read(crate::access::metadata(object).list("managedFields")).unwrap_or_default()
    }

    /// Reads entries; `None` when one is not in the form.
    pub(super) fn read(entries: &[Value]) -> Option<Self> {
        entries.iter().map(read_entry).collect::<Option<_>>().map(|entries| Self { entries })
    }

    /// Whether nobody owns anything.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn get(&self, manager: &Manager) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.manager == *manager)
    }

    /// What a manager owns; nothing when it is unknown.
    pub fn fields_of(&self, manager: &Manager) -> FieldSet {
        self.get(manager).map(|entry| entry.fields.clone()).unwrap_or_default()
    }

    /// Puts an entry in the place of the one with its manager; an entry without fields is dropped.
    pub(super) fn put(&mut self, entry: Entry) {
        self.entries.retain(|one| one.manager != entry.manager);
        if !entry.fields.is_empty() {
            self.entries.push(entry);
        }
    }

    /// Joins the oldest `Update` entries when there are too many.
    pub(super) fn cap(&mut self) {
        let mut updaters: Vec<Entry> = self
            .entries
            .iter()
            .filter(|entry| entry.manager.operation == Operation::Update)
            .cloned()
            .collect();
        let mut excess = updaters.len().saturating_sub(MAX_UPDATERS);
        if excess == 0 {
            return;
        }
        updaters.sort_by(|one, other| (one.time, &one.manager).cmp(&(other.time, &other.manager)));
        let mut first: Vec<Entry> = Vec::new();
        for entry in updaters {
            if excess == 0 {
                break;
            }
            let Some(bucket) = first.iter_mut().find(|one| one.api_version == entry.api_version) else {
                first.push(entry);
                continue;
            };
            self.entries.retain(|one| one.manager != entry.manager && one.manager != bucket.manager);
            bucket.manager = Manager::new(ANCIENT, Operation::Update, "", &entry.api_version);
            bucket.fields = bucket.fields.union(&entry.fields);
            bucket.time = entry.time;
            self.put(bucket.clone());
            excess -= 1;
        }
    }

    /// The entries as the object shows them: appliers first, then by time.
    pub fn to_value(&self) -> Value {
        let mut entries: Vec<&Entry> = self.entries.iter().collect();
        entries.sort_by_key(|entry| {
            let manager = &entry.manager;
            (manager.operation, entry.time, &manager.name, &entry.api_version, &manager.subresource)
        });
        entries.into_iter().map(write_entry).collect()
    }
}

fn read_entry(entry: &Value) -> Option<Entry> {
    let operation = match entry.text("operation") {
        "Apply" => Operation::Apply,
        "Update" => Operation::Update,
        _ => return None,
    };
    let api_version = entry.text("apiVersion");
    let fields = match entry.field("fieldsV1") {
        Some(fields) => FieldSet::from_json(fields)?,
        None => FieldSet::default(),
    };
    Some(Entry {
        manager: Manager::new(entry.text("manager"), operation, entry.text("subresource"), api_version),
        api_version: api_version.to_owned(),
        fields,
        time: time::of(entry.field("time")),
    })
}

fn write_entry(entry: &Entry) -> Value {
    let mut written = Map::new();
    let mut put = |name: &str, value: Value| written.insert(name.to_owned(), value);
    put("manager", entry.manager.name.as_str().into());
    put("operation", entry.manager.operation.text().into());
    put("apiVersion", entry.api_version.as_str().into());
    if let Some(at) = entry.time {
        put("time", time::format_seconds(at).into());
    }
    put("fieldsType", "FieldsV1".into());
    put("fieldsV1", entry.fields.to_json());
    if !entry.manager.subresource.is_empty() {
        put("subresource", entry.manager.subresource.as_str().into());
    }
    Value::Object(written)
}

/// Whether two lists of entries say the same but for their times.
pub fn same_but_for_times(one: &Value, other: &Value) -> bool {
    let strip = |object: &Value| -> Vec<Entry> {
        let managers = Managers::of(object);
        let mut entries: Vec<Entry> =
            managers.entries.into_iter().map(|entry| Entry { time: None, ..entry }).collect();
        entries.sort_by(|one, other| one.manager.cmp(&other.manager));
        entries
    };
    strip(one) == strip(other)
}

/// The name of a writer: what it calls itself, or the first word of its user agent.
pub fn manager_name(field_manager: &str, user_agent: &str) -> String {
    const LONGEST: usize = 128;
    if !field_manager.is_empty() {
        return field_manager.to_owned();
    }
    let first = user_agent.split('/').next().unwrap_or_default();
    let mut name = String::new();
    for c in first.chars().filter(|c| !c.is_control() && *c != '\u{fffd}') {
        if name.len() + c.len_utf8() > LONGEST {
            break;
        }
        name.push(c);
    }
    if name.is_empty() { "unknown".to_owned() } else { name }
}
