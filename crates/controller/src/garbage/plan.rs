//! What becomes of one object: pure decisions over the graph, as upstream's garbage collector makes them.

use std::collections::BTreeMap;

use kube::api::PropagationPolicy;

use super::graph::{Entry, FOREGROUND, Graph, ORPHAN};
use crate::discovery::Resource;
use crate::metadata::OwnerReference;

/// What is to be done about an object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    Nothing,
    /// The graph doesn't know these owners: ask the API about them and decide again.
    Ask(Vec<OwnerReference>),
    /// Nobody owns it any more, or its owner waits for it to go.
    Delete {
        propagation: PropagationPolicy,
        /// Owners in a circle would wait for each other: it stops to block them first.
        unblock: bool,
    },
    /// It has other owners: drop the references to these.
    Disown(Vec<String>),
    /// Its dependents stay: drop their references to it, then its finalizer.
    Orphan,
    /// All its dependents are gone: drop the finalizer that waited for them.
    Finish,
}

/// An owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Present,
    /// It is being deleted and waits for its dependents.
    Waiting,
    Absent,
}

/// What the API said about owners, by UID.
pub(super) type Answers = BTreeMap<String, Owner>;

/// Decides about the object with a UID.
pub(super) fn plan(graph: &Graph, resources: &[Resource], uid: &str, answers: &Answers) -> Step {
    let Some(entry) = graph.get(uid) else { return Step::Nothing };
    if entry.is_orphaning() {
        return Step::Orphan;
    }
    if entry.is_waiting() && !graph.is_blocked(uid) {
        return Step::Finish;
    }
    if entry.metadata.is_deleted() {
        return Step::Nothing;
    }
    let owners = Owners::of(graph, resources, entry, answers);
    if !owners.unknown.is_empty() {
        return Step::Ask(owners.unknown);
    }
    owners.decide(graph, entry)
}

/// The owners of an object, by what is known of them.
#[derive(Debug, Default)]
struct Owners {
    solid: usize,
    waiting: Vec<String>,
    absent: Vec<String>,
    unknown: Vec<OwnerReference>,
}

impl Owners {
    fn of(graph: &Graph, resources: &[Resource], entry: &Entry, answers: &Answers) -> Self {
        let mut owners = Self::default();
        for reference in &entry.metadata.owner_references {
            let known = graph.owner(reference, |owner| is_owner(resources, owner, entry, reference));
            let state = match known {
                Some(owner) if owner.is_waiting() => Some(Owner::Waiting),
                Some(_) => Some(Owner::Present),
                None => answers.get(&reference.uid).copied(),
            };
            match state {
                Some(Owner::Present) => owners.solid += 1,
                Some(Owner::Waiting) => owners.waiting.push(reference.uid.clone()),
                Some(Owner::Absent) => owners.absent.push(reference.uid.clone()),
                None => owners.unknown.push(reference.clone()),
            }
        }
        owners
    }

    fn decide(self, graph: &Graph, entry: &Entry) -> Step {
        let mut lost = self.absent;
        let has_waiting = !self.waiting.is_empty();
        lost.extend(self.waiting);
        if lost.is_empty() {
            return Step::Nothing;
        }
        if self.solid > 0 {
            return Step::Disown(lost);
        }
        let mut dependents = graph.dependents_of(&entry.metadata.uid).peekable();
        if has_waiting && dependents.peek().is_some() {
            let unblock = entry.blocks_owners() && dependents.any(Entry::is_waiting);
            return Step::Delete { propagation: PropagationPolicy::Foreground, unblock };
        }
        let propagation = match () {
            () if entry.has_policy(ORPHAN) => PropagationPolicy::Orphan,
            () if entry.has_policy(FOREGROUND) => PropagationPolicy::Foreground,
            () => PropagationPolicy::Background,
        };
        Step::Delete { propagation, unblock: false }
    }
}

/// Whether an object is what a reference of a dependent means: an owner with a namespace is in the dependent's.
fn is_owner(resources: &[Resource], owner: &Entry, dependent: &Entry, reference: &OwnerReference) -> bool {
    let Some(resource) = resources.get(owner.kind) else { return false };
    resource.is_named(&reference.api_version, &reference.kind)
        && (!resource.is_namespaced || owner.metadata.namespace == dependent.metadata.namespace)
}

#[cfg(test)]
mod tests {
    use super::super::graph::tests::{graph, object};
    use super::*;
    use PropagationPolicy::{Background, Foreground};

    fn config_maps() -> Vec<Resource> {
        vec![Resource {
            group: String::new(),
            version: "v1".into(),
            kind: "ConfigMap".into(),
            plural: "configmaps".into(),
            is_namespaced: true,
            verbs: ["delete".to_owned()].into(),
        }]
    }

    fn delete(propagation: PropagationPolicy) -> Step {
        Step::Delete { propagation, unblock: false }
    }

    #[test]
    fn each_object_gets_what_its_owners_leave_it() {
        let answers: Answers = [
            ("gone".to_owned(), Owner::Absent),
            ("there".to_owned(), Owner::Present),
            ("leaving".to_owned(), Owner::Waiting),
        ]
        .into();
        for (what, objects, expected) in [
            ("no owner", vec![object("x", &[], &[])], Step::Nothing),
            ("a known owner", vec![object("a", &[], &[]), object("x", &["a"], &[])], Step::Nothing),
            ("an owner that the API knows", vec![object("x", &["there"], &[])], Step::Nothing),
            ("an owner that is gone", vec![object("x", &["gone"], &[])], delete(Background)),
            (
                "one owner of two is gone",
                vec![object("x", &["gone", "there"], &[])],
                Step::Disown(vec!["gone".into()]),
            ),
            (
                "one owner of two waits",
                vec![object("a", &[], &[FOREGROUND]), object("x", &["there", "!a"], &[])],
                Step::Disown(vec!["a".into()]),
            ),
            (
                "the owner waits for it",
                vec![object("a", &[], &[FOREGROUND]), object("x", &["!a"], &[])],
                delete(Background),
            ),
            (
                "the owner waits for it, and it has dependents",
                vec![object("x", &["!leaving"], &[]), object("y", &["!x"], &[])],
                delete(Foreground),
            ),
            (
                "a circle",
                vec![object("x", &["!a"], &[]), object("a", &["!x"], &[FOREGROUND])],
                Step::Delete { propagation: Foreground, unblock: true },
            ),
            (
                "a circle that is open",
                vec![object("x", &["a"], &[]), object("a", &["!x"], &[FOREGROUND])],
                delete(Foreground),
            ),
            ("it is being deleted", vec![object("x", &["gone"], &["example.com/f"])], Step::Nothing),
            ("it orphans", vec![object("x", &[], &[ORPHAN]), object("y", &["x"], &[])], Step::Orphan),
            ("it waits", vec![object("x", &[], &[FOREGROUND]), object("y", &["!x"], &[])], Step::Nothing),
            (
                "it waits for one that does not block",
                vec![object("x", &[], &[FOREGROUND]), object("y", &["x"], &[])],
                Step::Finish,
            ),
            ("it has waited", vec![object("x", &[], &[FOREGROUND])], Step::Finish),
            ("it went", vec![], Step::Nothing),
        ] {
            assert_eq!(plan(&graph(&objects), &config_maps(), "x", &answers), expected, "{what}");
        }
    }

    #[test]
    fn an_owner_that_the_graph_does_not_know_is_asked_for() {
        let mut elsewhere = (*object("a", &[], &[])).clone();
        elsewhere.namespace = "other".into();
        let x = object("x", &["a"], &[]);
        for objects in [vec![x.clone()], vec![x.clone(), elsewhere.into()]] {
            let step = plan(&graph(&objects), &config_maps(), "x", &Answers::new());
            assert_eq!(step, Step::Ask(x.owner_references.clone()));
        }
    }

    #[test]
    fn what_was_deleted_with_a_policy_keeps_it() {
        let mut x = (*object("x", &["gone"], &[])).clone();
        x.finalizers = vec![ORPHAN.into()];
        let answers = [("gone".to_owned(), Owner::Absent)].into();
        assert_eq!(
            plan(&graph(&[x.into()]), &config_maps(), "x", &answers),
            delete(PropagationPolicy::Orphan)
        );
    }
}
