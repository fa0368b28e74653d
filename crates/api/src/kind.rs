//! The kinds that the API serves: one row each, with what is the kind's own as plain functions over JSON.
//! Everything that is the same for all kinds (decoding, storing, patching, watching) is elsewhere and asks this table.

mod autoscaling;
mod config;
pub mod event;
pub mod namespace;
mod node;
mod part;
pub mod pod;
pub mod scale;
pub mod service;
pub(crate) mod strategy;
mod table;
mod volume;
pub(crate) mod workload;

use jiff::Timestamp;
use serde_json::Value;

use crate::feature::Gates;
use crate::table::Column;
use crate::validation::FieldErrors;

pub use table::kinds;

/// What the hooks of a kind may know beside the object.
#[derive(Clone, Copy, Debug)]
pub struct Ctx {
    /// The time of the request.
    pub now: Timestamp,
    /// The feature gates of this server.
    pub gates: Gates,
}

/// A path below an object, such as `pods/log`.
#[derive(Clone, Copy, Debug)]
pub struct Subresource {
    /// The last element of the path, such as `log`.
    pub name: &'static str,
    /// The kind that it takes and answers.
    pub kind: &'static str,
    /// The API group and version of that kind when it is not the resource's own.
    pub group_version: Option<(&'static str, &'static str)>,
    /// Other API versions in which that kind may come; its fields are the same there.
    pub also: &'static [&'static str],
    /// The verbs, sorted.
    pub verbs: &'static [&'static str],
    /// Name of the type of a request's body in the schema table; empty where there is none.
    pub type_name: &'static str,
    /// Set where the body is the object itself, of which a part is written.
    pub part: Option<Part>,
}

/// How a subresource writes a part of its own object, such as a Pod's `ephemeralcontainers`.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Gives the new object (new, old) everything else as it was.
    pub prepare: fn(&mut Value, &Value, &Ctx),
    /// Rules for the change (new, old).
    pub validate: fn(&Value, &Value, &Ctx) -> FieldErrors,
}

/// Where `/scale` finds its numbers in an object: JSON pointers.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// The number that is wished for; writing `/scale` writes it.
    pub wanted: &'static str,
    /// The number that there is.
    pub current: &'static str,
    /// The selector of what is counted.
    pub selector: &'static str,
}

/// What becomes of an object that is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grace {
    /// It goes at once.
    None,
    /// It stays for so many seconds, until its owner (the kubelet) deletes it with 0.
    Seconds(i64),
}

/// A function that reads the value of a field selector's field.
pub type FieldReader = fn(&Value) -> String;

/// A kind of object: its names, and the functions that make it what it is.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent fact of the row")]
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The version, such as `v1`.
    pub version: &'static str,
    /// The kind, such as `Pod`.
    pub kind: &'static str,
    /// The resource's name in paths, such as `pods`.
    pub plural: &'static str,
    /// The singular that `kubectl` accepts.
    pub singular: &'static str,
    /// Short names that `kubectl` accepts, such as `po`.
    pub short_names: &'static [&'static str],
    /// Categories such as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// The verbs, sorted.
    pub verbs: &'static [&'static str],
    /// What is served below an object, sorted by name.
    pub subresources: &'static [Subresource],
    /// Name of the object's type in the schema table.
    pub type_name: &'static str,
    /// Whether there is a `status` that only `/status` writes.
    pub has_status: bool,
    /// How `/scale` shows the object, for kinds that have that subresource.
    pub scale: Option<Scale>,
    /// The directory of the store that holds the objects; empty for kinds that are never stored (reviews, bindings).
    /// Two kinds with the same directory are two views of the same objects.
    pub store_prefix: &'static str,
    /// Whether `PUT` makes an object that isn't there.
    pub creates_on_update: bool,
    /// Whether an update must say which resource version it changes.
    pub needs_version: bool,
    /// Whether objects are given cluster addresses and node ports.
    pub allocates: bool,
    /// Defaults that the schema table cannot say.
    pub default: fn(&mut Value),
    /// Texts for `Warning` headers about what `prepare_create` will drop from a new object.
    pub dropped: fn(&Value, &Ctx) -> Vec<String>,
    /// What the server writes into a new object, before validation.
    pub prepare_create: fn(&mut Value, &Ctx),
    /// What the server writes into a changed object (new, old), before validation.
    pub prepare_update: fn(&mut Value, &Value, &Ctx),
    /// The same for a write to `/status`.
    pub prepare_status: fn(&mut Value, &Value, &Ctx),
    /// Rules for a new object, metadata included.
    pub validate: fn(&Value, &Ctx) -> FieldErrors,
    /// Rules for a change (new, old), metadata included.
    pub validate_update: fn(&Value, &Value, &Ctx) -> FieldErrors,
    /// Rules for a write to `/status` (new, old).
    pub validate_status: fn(&Value, &Value, &Ctx) -> FieldErrors,
    /// Texts for `Warning` headers when the object is written (new, old if any).
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    /// How long a deletion of the object takes, given the seconds that the request asks for.
    pub grace: fn(&Value, Option<i64>) -> Grace,
    /// The columns of `kubectl get`.
    pub columns: &'static [Column],
    /// The cells of the object's row, one for each column.
    pub row: fn(&Value, Timestamp) -> Vec<Value>,
    /// Conditions of the row: a Pod that has ended says so to machines that read Tables.
    pub row_conditions: fn(&Value) -> Vec<Value>,
    /// Fields that field selectors may name, beside `metadata.name` and `metadata.namespace`.
    pub selectable_fields: &'static [(&'static str, FieldReader)],
    /// Turns the object as it is served into the object as it is stored.
    pub to_stored: fn(&mut Value),
    /// The reverse of `to_stored`.
    pub from_stored: fn(&mut Value),
}

impl Kind {
    /// `v1` or `coordination.k8s.io/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods` or `leases.coordination.k8s.io`, as error texts name a resource.
    pub fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `Pod` or `Lease.coordination.k8s.io`, as error texts name a kind.
    pub fn group_kind(&self) -> String {
        if self.group.is_empty() { self.kind.to_owned() } else { format!("{}.{}", self.kind, self.group) }
    }

    /// The kind of a list of these.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Whether objects are kept; reviews and bindings are only answered.
    pub const fn is_stored(&self) -> bool {
        !self.store_prefix.is_empty()
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether a verb is served on the resource itself.
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }
}

/// The kind that is served at a group, version and plural name.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    kinds().iter().find(|k| k.plural == plural && k.group == group && k.version == version)
}

/// The kind with that group, version and kind name.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Kind> {
    kinds().iter().find(|k| k.kind == kind && k.group == group && k.version == version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_found_by_plural_and_by_name() {
        assert_eq!(find("", "v1", "pods").unwrap().kind, "Pod");
        assert_eq!(find_kind("events.k8s.io", "v1", "Event").unwrap().store_prefix, "events");
        assert!(find("", "v2", "pods").is_none());
    }

    #[test]
    fn verbs_and_subresources_are_sorted_and_names_are_unique() {
        let mut seen = std::collections::BTreeSet::new();
        for kind in kinds() {
            assert!(kind.verbs.is_sorted(), "{}", kind.plural);
            assert!(kind.subresources.is_sorted_by_key(|s| s.name), "{}", kind.plural);
            assert!(seen.insert((kind.group, kind.version, kind.plural)));
            assert_eq!(kind.has_status, kind.subresource("status").is_some(), "{}", kind.plural);
        }
    }

    #[test]
    fn all_resources_of_kubernetes_are_served() {
        assert_eq!(kinds().len(), 68);
        assert_eq!(kinds().iter().map(|k| k.subresources.len()).sum::<usize>(), 45);
    }

    #[test]
    fn every_row_names_its_type() {
        for kind in kinds() {
            let ty =
                crate::schema::type_named(kind.type_name).unwrap_or_else(|| panic!("{}", kind.type_name));
            let own = ty.kind.unwrap();
            assert_eq!((own.group, own.version, own.kind), (kind.group, kind.version, kind.kind));
            for sub in kind.subresources.iter().filter(|sub| !sub.type_name.is_empty()) {
                assert!(crate::schema::type_named(sub.type_name).is_some(), "{}/{}", kind.plural, sub.name);
            }
            assert_eq!(kind.scale.is_some(), kind.subresource("scale").is_some(), "{}", kind.plural);
            assert_eq!(kind.has_status, kind.is_stored() && ty.field("status").is_some(), "{}", kind.plural);
        }
    }

    #[test]
    fn each_row_has_a_cell_for_each_column() {
        let object = serde_json::json!({"metadata": {"name": "x"}});
        for kind in kinds().iter().filter(|k| k.is_stored()) {
            assert_eq!(
                (kind.row)(&object, Timestamp::UNIX_EPOCH).len(),
                kind.columns.len(),
                "{}",
                kind.plural
            );
        }
    }

    #[test]
    fn who_makes_a_workload_that_nothing_acts_on_is_told_once() {
        let object = serde_json::json!({"metadata": {"name": "x"}});
        for (group, version, kind) in [
            ("", "v1", "ReplicationController"),
            ("apps", "v1", "DaemonSet"),
            ("apps", "v1", "Deployment"),
            ("apps", "v1", "ReplicaSet"),
            ("apps", "v1", "StatefulSet"),
            ("batch", "v1", "CronJob"),
            ("batch", "v1", "Job"),
            ("autoscaling", "v1", "HorizontalPodAutoscaler"),
            ("autoscaling", "v2", "HorizontalPodAutoscaler"),
        ] {
            let row = find_kind(group, version, kind).unwrap();
            let told = (row.warnings)(&object, None);
            let expected = format!("kakoi has no controller for {kind}s yet; ");
            assert!(told.len() == 1 && told[0].starts_with(&expected), "{kind}: {told:?}");
            assert!((row.warnings)(&object, Some(&object)).is_empty(), "{kind}");
        }
    }
}
