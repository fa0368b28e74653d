//! Who owns whom, as the cache tells it. Pure: nothing here reads or writes an object.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use serde_json::Value;

use crate::delete::{FOREGROUND, ORPHAN};
use crate::meta;

/// A stored object: the index of its table, and its key.
pub(super) type Place = (usize, Arc<str>);

/// One entry of `ownerReferences`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// Whether the owner's foreground deletion waits for this object.
    pub(super) blocks: bool,
}

/// The owners that an object names.
pub(super) fn owners(object: &Value) -> Vec<Owner> {
    let references = meta::get(object, "ownerReferences").and_then(Value::as_array).into_iter().flatten();
    let of = |reference: &Value| {
        let text = |name: &str| reference.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let api_version = text("apiVersion");
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        Owner {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: text("kind"),
            name: text("name"),
            uid: text("uid"),
            blocks: reference.get("blockOwnerDeletion").and_then(Value::as_bool).unwrap_or_default(),
        }
    };
    references.map(of).collect()
}

/// Whether an object is being deleted and waits for the collector.
pub(super) fn waits(object: &Value) -> bool {
    let finalizers = meta::texts(object, "finalizers");
    meta::get(object, "deletionTimestamp").is_some()
        && (finalizers.contains(&ORPHAN) || finalizers.contains(&FOREGROUND))
}

/// What is known.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// The objects that name an owner, by its UID.
    dependents: HashMap<String, BTreeSet<Place>>,
    owners: HashMap<Place, Vec<Owner>>,
    waiting: BTreeSet<Place>,
    /// What must be looked at.
    due: BTreeSet<Place>,
}

impl Graph {
    /// Learns the state of an object.
    pub(super) fn learn(&mut self, place: Place, object: &Value) {
        let owners = owners(object);
        if self.owners.get(&place).map_or(!owners.is_empty(), |known| *known != owners) {
            self.due.insert(place.clone());
        }
        self.unlink(&place);
        if waits(object) {
            self.waiting.insert(place.clone());
        }
        for owner in &owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(place.clone());
        }
        if !owners.is_empty() {
            self.owners.insert(place, owners);
        }
    }

    /// Learns that an object is gone: what it owned must be looked at.
    pub(super) fn forget(&mut self, place: &Place, uid: &str) {
        self.unlink(place);
        self.due.remove(place);
        self.due.extend(self.dependents_of(uid));
    }

    fn unlink(&mut self, place: &Place) {
        self.waiting.remove(place);
        for owner in self.owners.remove(place).unwrap_or_default() {
            if let Some(places) = self.dependents.get_mut(&owner.uid) {
                places.remove(place);
                if places.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    /// Forgets all objects of a table, which will be learnt again.
    pub(super) fn forget_table(&mut self, table: usize) {
        let places: Vec<Place> =
            self.owners.keys().chain(&self.waiting).filter(|(one, _)| *one == table).cloned().collect();
        for place in &places {
            self.unlink(place);
        }
    }

    /// The objects that name an owner of that UID.
    pub(super) fn dependents_of(&self, uid: &str) -> Vec<Place> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    /// The dependents for which the owner's foreground deletion waits.
    pub(super) fn blocking(&self, uid: &str) -> Vec<Place> {
        let blocks = |place: &Place| {
            self.owners
                .get(place)
                .is_some_and(|owners| owners.iter().any(|owner| owner.uid == uid && owner.blocks))
        };
        self.dependents_of(uid).into_iter().filter(blocks).collect()
    }

    /// Owners that are being deleted and wait for the collector.
    pub(super) fn waiting(&self) -> Vec<Place> {
        self.waiting.iter().cloned().collect()
    }

    /// Marks objects to be looked at.
    pub(super) fn mark(&mut self, places: impl IntoIterator<Item = Place>) {
        self.due.extend(places);
    }

    /// Takes what must be looked at.
    pub(super) fn take_due(&mut self) -> BTreeSet<Place> {
        std::mem::take(&mut self.due)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn owned(uid: &str, blocks: bool) -> Value {
        json!({"metadata": {"ownerReferences": [
            {"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": uid, "blockOwnerDeletion": blocks}]}})
    }

    #[test]
    fn what_an_owner_leaves_behind_is_due() {
        let place = |name: &str| (0, Arc::from(name));
        let mut graph = Graph::default();
        graph.learn(place("a"), &owned("1", true));
        graph.learn(place("b"), &owned("1", false));
        graph.learn(place("c"), &json!({"metadata": {}}));
        assert_eq!(graph.take_due(), BTreeSet::from([place("a"), place("b")]));
        graph.learn(place("a"), &owned("1", true));
        assert_eq!(graph.take_due(), BTreeSet::new(), "nothing that matters has changed");
        assert_eq!(graph.blocking("1"), [place("a")]);
        graph.forget(&place("o"), "1");
        assert_eq!(graph.take_due(), BTreeSet::from([place("a"), place("b")]));
        graph.learn(place("a"), &owned("2", false));
        graph.forget(&place("b"), "u");
        assert_eq!(graph.dependents_of("1"), []);
    }

    #[test]
    fn owners_in_deletion_wait() {
        let place: Place = (3, Arc::from("o"));
        let mut graph = Graph::default();
        let held = json!({"metadata": {"deletionTimestamp": "t", "finalizers": ["orphan"]}});
        graph.learn(place.clone(), &held);
        assert_eq!(graph.waiting(), std::slice::from_ref(&place));
        graph.learn(place.clone(), &json!({"metadata": {"deletionTimestamp": "t", "finalizers": ["other"]}}));
        assert_eq!(graph.waiting(), []);
        graph.learn(place, &held);
        graph.forget_table(3);
        assert_eq!(graph.waiting(), []);
    }
}
