//! The roles and bindings in the store, indexed by subject. The index follows the watch cache when it is asked, so an
//! answer knows every write that was acknowledged before the question.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use api::access::Access as _;
use api::kind;
use api::rbac::{Action, GROUP, Rule};
use serde_json::Value;

use crate::cache::{Cache, Object, Table};
use crate::identity::Identity;

/// The four kinds, by their plural names.
const SOURCES: [&str; 4] = ["clusterroles", "clusterrolebindings", "roles", "rolebindings"];

/// Who a binding binds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

/// A role: the namespace is empty for a `ClusterRole`.
type RoleKey = (String, String);
/// A binding, likewise.
type BindingKey = (String, String);

#[derive(Debug)]
struct Binding {
    role: RoleKey,
    subjects: Vec<Subject>,
}

/// What allows something: for the reason in a review.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grant<'a> {
    pub(crate) binding: &'a (String, String),
    pub(crate) role: &'a (String, String),
    user: &'a Identity,
    subject: &'a Subject,
}

impl Grant<'_> {
    /// As upstream words it.
    pub(crate) fn reason(&self) -> String {
        let place = |key: &(String, String)| match key.0.as_str() {
            "" => ("Cluster", api::validation::quote(&key.1)),
            namespace => ("", format!("\"{}/{namespace}\"", key.1)),
        };
        let (scope, binding) = place(self.binding);
        let role_scope = if self.role.0.is_empty() { "Cluster" } else { "" };
        let subject = match self.subject {
            Subject::Group(group) => format!("Group {}", api::validation::quote(group)),
            Subject::User(_) => match service_account(&self.user.user) {
                Some((namespace, name)) => format!("ServiceAccount \"{name}/{namespace}\""),
                None => format!("User {}", api::validation::quote(&self.user.user)),
            },
        };
        let role = api::validation::quote(&self.role.1);
        format!("RBAC: allowed by {scope}RoleBinding {binding} of {role_scope}Role {role} to {subject}")
    }
}

/// The namespace and name of a service account's user.
pub(crate) fn service_account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}

/// The index.
#[derive(Debug, Default)]
pub(crate) struct Index(RwLock<State>);

#[derive(Debug, Default)]
struct State {
    /// How far each source has been read; none before the first question.
    cursors: Option<[u64; SOURCES.len()]>,
    roles: HashMap<RoleKey, Arc<[Rule]>>,
    bindings: HashMap<BindingKey, Binding>,
    by_subject: HashMap<Subject, HashSet<BindingKey>>,
}

fn tables(cache: &Cache) -> [Option<&Table>; SOURCES.len()] {
    SOURCES.map(|plural| cache.table(kind::find(GROUP, "v1", plural)?))
}

impl Index {
    /// Whether somebody is allowed an action in a namespace (or in none), and why.
    pub(crate) fn allows(
        &self,
        cache: &Cache,
        user: &Identity,
        namespace: &str,
        action: Action<'_>,
    ) -> Option<String> {
        self.visit(cache, user, namespace, |grant, rules| {
            rules.iter().any(|rule| rule.allows(action)).then(|| grant.reason())
        })
    }

    /// All rules that somebody has in a namespace.
    pub(crate) fn rules_of(&self, cache: &Cache, user: &Identity, namespace: &str) -> Vec<Rule> {
        let mut all = Vec::new();
        self.visit(cache, user, namespace, |_, rules| {
            all.extend_from_slice(rules);
            None::<()>
        });
        all
    }

    /// The rules of a role; `None` when it isn't there.
    pub(crate) fn rules_of_role(&self, cache: &Cache, namespace: &str, name: &str) -> Option<Arc<[Rule]>> {
        self.caught_up(cache, |state| state.roles.get(&(namespace.to_owned(), name.to_owned())).cloned())
    }

    fn visit<T>(
        &self,
        cache: &Cache,
        user: &Identity,
        namespace: &str,
        mut visit: impl FnMut(Grant<'_>, &[Rule]) -> Option<T>,
    ) -> Option<T> {
        let groups = user.groups.iter().cloned().map(Subject::Group);
        let subjects: Vec<Subject> =
            std::iter::once(Subject::User(user.user.clone())).chain(groups).collect();
        self.caught_up(cache, |state| {
            let bound = subjects.iter().flat_map(|subject| {
                state.by_subject.get(subject).into_iter().flatten().map(move |key| (subject, key))
            });
            let here = |key: &BindingKey| key.0.is_empty() || key.0 == namespace;
            bound.filter(|(_, key)| here(key)).find_map(|(subject, key)| {
                let role = &state.bindings.get(key)?.role;
                let rules = state.roles.get(role)?;
                visit(Grant { binding: key, role, user, subject }, rules)
            })
        })
    }

    /// Reads the index as of now.
    fn caught_up<T>(&self, cache: &Cache, read: impl FnOnce(&State) -> T) -> T {
        let tables = tables(cache);
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if state.is_current(&tables) {
            return read(&state);
        }
        drop(state);
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        state.catch_up(cache, &tables);
        read(&state)
    }
}

impl State {
    fn is_current(&self, tables: &[Option<&Table>; SOURCES.len()]) -> bool {
        self.cursors.is_some_and(|cursors| {
            let pairs = tables.iter().zip(cursors);
            pairs.into_iter().all(|(table, cursor)| table.is_none_or(|table| table.newest() <= cursor))
        })
    }

    fn catch_up(&mut self, cache: &Cache, tables: &[Option<&Table>; SOURCES.len()]) {
        let followed = self.cursors.is_some_and(|cursors| self.follow(cache, tables, cursors));
        if followed {
            return;
        }
        *self = Self { cursors: Some([0; SOURCES.len()]), ..Self::default() };
        for (at, table) in tables.iter().enumerate() {
            let Some(table) = table else { continue };
            let snapshot = cache.snapshot(table);
            for object in snapshot.objects.values() {
                self.take(at, object, false);
            }
            self.set_cursor(at, snapshot.revision);
        }
    }

    /// Takes the changes since the last question; false when they are no longer all there.
    fn follow(
        &mut self,
        cache: &Cache,
        tables: &[Option<&Table>; SOURCES.len()],
        cursors: [u64; SOURCES.len()],
    ) -> bool {
        for (at, (table, cursor)) in tables.iter().zip(cursors).enumerate() {
            let Some(table) = table else { continue };
            let Ok((events, upto)) = table.changes_after(cursor, usize::MAX, || cache.revision()) else {
                return false;
            };
            for event in &events {
                self.take(at, &event.object, event.removed);
            }
            self.set_cursor(at, upto);
        }
        true
    }

    fn set_cursor(&mut self, at: usize, revision: u64) {
        if let Some(cursor) = self.cursors.as_mut().and_then(|cursors| cursors.get_mut(at)) {
            *cursor = revision;
        }
    }

    fn take(&mut self, source: usize, object: &Object, removed: bool) {
        let (namespace, name) = object.key().split_once('/').unwrap_or(("", object.key()));
        let key = (namespace.to_owned(), name.to_owned());
        let is_role = source.is_multiple_of(2);
        if is_role {
            if removed {
                self.roles.remove(&key);
            } else {
                self.roles.insert(key, Rule::of_role(&object.value()).into());
            }
            return;
        }
        if let Some(before) = self.bindings.remove(&key) {
            for subject in before.subjects {
                if let Some(keys) = self.by_subject.get_mut(&subject) {
                    keys.remove(&key);
                }
            }
        }
        if !removed {
            let binding = read_binding(&object.value(), namespace);
            for subject in &binding.subjects {
                self.by_subject.entry(subject.clone()).or_default().insert(key.clone());
            }
            self.bindings.insert(key, binding);
        }
    }
}

fn read_binding(binding: &Value, namespace: &str) -> Binding {
    let reference = binding.field("roleRef").unwrap_or(&Value::Null);
    let of = if reference.text("kind") == "Role" { namespace } else { "" };
    let subjects = binding.list("subjects").iter().filter_map(|subject| {
        let name = subject.text("name");
        match subject.text("kind") {
            "User" => Some(Subject::User(name.to_owned())),
            "Group" => Some(Subject::Group(name.to_owned())),
            "ServiceAccount" => {
                let said = subject.text("namespace");
                let namespace = if said.is_empty() { namespace } else { said };
                Some(Subject::User(format!("system:serviceaccount:{namespace}:{name}")))
            }
            _ => None,
        }
    });
    Binding { role: (of.to_owned(), reference.text("name").to_owned()), subjects: subjects.collect() }
}
