//! Who owns whom: every object that can be collected, by UID, and its dependents. Pure: it takes over what watches
//! tell and says which objects must be looked at again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::metadata::{Metadata, OwnerReference};

/// Keeps dependents: they lose the reference before the owner goes.
pub(super) const ORPHAN: &str = "orphan";
/// Waits for dependents: the owner goes after them.
pub(super) const FOREGROUND: &str = "foregroundDeletion";

/// An object and what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Which kind, as the number of its watch.
    pub(super) kind: usize,
    pub(super) metadata: Arc<Metadata>,
}

impl Entry {
    fn has(&self, finalizer: &str) -> bool {
        self.metadata.finalizers.iter().any(|one| one == finalizer)
    }

    /// Whether it is being deleted and its dependents shall stay.
    pub(super) fn is_orphaning(&self) -> bool {
        self.metadata.is_deleted() && self.has(ORPHAN)
    }

    /// Whether it is being deleted and waits for its dependents to go first.
    pub(super) fn is_waiting(&self) -> bool {
        self.metadata.is_deleted() && self.has(FOREGROUND)
    }

    /// Whether its deletion shall treat its dependents in a certain way.
    pub(super) fn has_policy(&self, finalizer: &str) -> bool {
        self.has(finalizer)
    }

    /// Whether the deletion of some owner waits for it.
    pub(super) fn blocks_owners(&self) -> bool {
        self.metadata.owner_references.iter().any(|reference| reference.block_owner_deletion == Some(true))
    }

    /// Whether the deletion of this owner waits for it.
    pub(super) fn blocks(&self, owner: &str) -> bool {
        self.metadata
            .owner_references
            .iter()
            .any(|reference| reference.uid == owner && reference.block_owner_deletion == Some(true))
    }
}

/// All objects.
#[derive(Clone, Debug, Default)]
pub(super) struct Graph {
    entries: BTreeMap<String, Entry>,
    dependents: BTreeMap<String, BTreeSet<String>>,
    /// The UID of what a watch knows under a key.
    uids: BTreeMap<(usize, String), String>,
}

impl Graph {
    /// Takes over the state of one object of a watch, `None` when it is gone. Gives the UIDs to look at again.
    pub(super) fn set(
        &mut self,
        kind: usize,
        key: &str,
        metadata: Option<&Arc<Metadata>>,
    ) -> BTreeSet<String> {
        let mut touched = BTreeSet::new();
        let place = (kind, key.to_owned());
        let old = self.uids.get(&place).cloned();
        if let Some(old) = old.filter(|old| metadata.is_none_or(|metadata| metadata.uid != *old)) {
            self.uids.remove(&place);
            self.remove(&old, &mut touched);
        }
        if let Some(metadata) = metadata {
            self.uids.insert(place, metadata.uid.clone());
            self.insert(Entry { kind, metadata: metadata.clone() }, &mut touched);
        }
        touched
    }

    fn insert(&mut self, entry: Entry, touched: &mut BTreeSet<String>) {
        let uid = entry.metadata.uid.clone();
        let begins_to_wait = entry.is_waiting();
        if !entry.metadata.owner_references.is_empty() || entry.is_orphaning() || begins_to_wait {
            touched.insert(uid.clone());
        }
        if begins_to_wait {
            touched.extend(self.dependents(&uid).cloned());
        }
        let owners: Vec<String> = owners(&entry).collect();
        if let Some(old) = self.entries.insert(uid.clone(), entry) {
            self.unlink(&old, touched);
        }
        for owner in owners {
            self.dependents.entry(owner).or_default().insert(uid.clone());
        }
    }

    fn remove(&mut self, uid: &str, touched: &mut BTreeSet<String>) {
        if let Some(old) = self.entries.remove(uid) {
            self.unlink(&old, touched);
        }
        touched.extend(self.dependents(uid).cloned());
    }

    /// Forgets whom an object depends on; owners that wait for dependents may be able to go then.
    fn unlink(&mut self, old: &Entry, touched: &mut BTreeSet<String>) {
        for owner in owners(old) {
            if let Some(dependents) = self.dependents.get_mut(&owner) {
                dependents.remove(&old.metadata.uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner);
                }
            }
            if self.entries.get(&owner).is_some_and(Entry::is_waiting) {
                touched.insert(owner);
            }
        }
    }

    /// The object with a UID.
    pub(super) fn get(&self, uid: &str) -> Option<&Entry> {
        self.entries.get(uid)
    }

    fn dependents(&self, uid: &str) -> impl Iterator<Item = &String> {
        self.dependents.get(uid).into_iter().flatten()
    }

    /// The objects that name a UID as their owner.
    pub(super) fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Entry> {
        self.dependents(uid).filter_map(|uid| self.entries.get(uid))
    }

    /// Whether the deletion of an owner has to wait for a dependent.
    pub(super) fn is_blocked(&self, uid: &str) -> bool {
        self.dependents_of(uid).any(|dependent| dependent.blocks(uid))
    }

    /// The object that a reference means, if it is known and is what the reference says.
    pub(super) fn owner(&self, reference: &OwnerReference, is_it: impl Fn(&Entry) -> bool) -> Option<&Entry> {
        self.entries.get(&reference.uid).filter(|entry| entry.metadata.name == reference.name && is_it(entry))
    }
}

fn owners(entry: &Entry) -> impl Iterator<Item = String> {
    entry.metadata.owner_references.iter().map(|reference| reference.uid.clone())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// An object with owners (`!` marks one that it blocks) and finalizers; it is being deleted when it has some.
    pub(in super::super) fn object(name: &str, owners: &[&str], finalizers: &[&str]) -> Arc<Metadata> {
        let owners: Vec<_> = owners
            .iter()
            .map(|owner| {
                let name = owner.trim_start_matches('!');
                json!({"apiVersion": "v1", "kind": "ConfigMap", "name": name, "uid": name,
                    "blockOwnerDeletion": owner.starts_with('!')})
            })
            .collect();
        let at = (!finalizers.is_empty()).then_some("2026-11-23T12:00:00Z");
        let metadata: Metadata = serde_json::from_value(
            json!({"name": name, "uid": name, "namespace": "team", "resourceVersion": "1",
            "ownerReferences": owners, "finalizers": finalizers, "deletionTimestamp": at}),
        )
        .unwrap();
        metadata.into()
    }

    pub(in super::super) fn graph(objects: &[Arc<Metadata>]) -> Graph {
        let mut graph = Graph::default();
        for object in objects {
            graph.set(0, &object.name, Some(object));
        }
        graph
    }

    fn touched(set: BTreeSet<String>) -> Vec<String> {
        set.into_iter().collect()
    }

    #[test]
    fn an_object_without_owners_needs_no_look() {
        let mut graph = graph(&[]);
        assert_eq!(touched(graph.set(0, "a", Some(&object("a", &[], &[])))), [""; 0]);
        assert_eq!(touched(graph.set(0, "b", Some(&object("b", &["a"], &[])))), ["b"]);
    }

    #[test]
    fn dependents_are_looked_at_when_their_owner_goes() {
        let mut graph = graph(&[object("a", &[], &[]), object("b", &["a"], &[]), object("c", &["a"], &[])]);
        assert_eq!(touched(graph.set(0, "a", None)), ["b", "c"]);
        assert_eq!(graph.get("a"), None);
    }

    #[test]
    fn another_object_of_the_same_name_is_another_one() {
        let mut graph = graph(&[object("a", &[], &[]), object("b", &["a"], &[])]);
        let other = Arc::new(Metadata { uid: "other".into(), ..(*object("a", &[], &[])).clone() });
        assert_eq!(touched(graph.set(0, "a", Some(&other))), ["b"]);
        assert!(graph.get("a").is_none() && graph.get("other").is_some());
    }

    #[test]
    fn an_owner_that_waits_is_looked_at_when_a_dependent_goes_or_leaves_it() {
        let all = [object("a", &[], &[FOREGROUND]), object("b", &["!a"], &[]), object("c", &["!a"], &[])];
        let mut graph = graph(&all);
        assert!(graph.is_blocked("a"));
        assert_eq!(touched(graph.set(0, "b", None)), ["a"]);
        assert!(graph.is_blocked("a"));
        assert_eq!(touched(graph.set(0, "c", Some(&object("c", &[], &[])))), ["a"]);
        assert!(!graph.is_blocked("a"));
    }

    #[test]
    fn an_owner_that_begins_to_wait_sends_its_dependents() {
        let mut graph = graph(&[object("a", &[], &[]), object("b", &["!a"], &[])]);
        assert_eq!(touched(graph.set(0, "a", Some(&object("a", &[], &[FOREGROUND])))), ["a", "b"]);
    }
}
