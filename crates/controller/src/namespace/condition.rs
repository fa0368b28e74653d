//! The conditions of a namespace that is being deleted: what was tried, and what is left. Types, reasons and messages
//! are those that users and tools know from upstream's namespace controller.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::discovery::Resource;
use crate::event::seconds;
use crate::metadata::Metadata;

/// What a round of deletion found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Groups of the API that did not say what they have.
    pub(crate) discovery_errors: Vec<String>,
    /// Kinds that could not be deleted.
    pub(crate) content_errors: Vec<String>,
    /// What is left, by kind (`pods.`, `deployments.apps`).
    pub(crate) remaining: BTreeMap<String, Summary>,
}

/// How much of a kind is left, and what holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) count: usize,
    pub(crate) finalizers: BTreeMap<String, usize>,
}

impl Summary {
    pub(crate) fn of<'a>(objects: impl Iterator<Item = &'a Metadata>) -> Self {
        let mut summary = Self::default();
        for object in objects {
            summary.count += 1;
            for finalizer in &object.finalizers {
                *summary.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
        }
        summary
    }
}

/// A kind as the messages name it.
pub(crate) fn name_of(resource: &Resource) -> String {
    format!("{}.{}", resource.plural, resource.group)
}

/// One condition: whether there is something to tell, the reason, the message.
#[derive(Debug)]
struct Condition {
    name: &'static str,
    is_true: bool,
    reason: &'static str,
    message: String,
}

impl Findings {
    /// Brings the conditions in a namespace's status up to date, and says whether any changed.
    pub(crate) fn apply(&self, namespace: &mut Value, now: Timestamp) -> bool {
        let mut is_changed = false;
        let wanted = [self.discovery(), parsing(), self.content(), self.left(), self.held()];
        let Some(status) =
            namespace.as_object_mut().map(|fields| fields.entry("status").or_insert(json!({})))
        else {
            return false;
        };
        let Some(status) = status.as_object_mut() else { return false };
        let conditions = status.entry("conditions").or_insert_with(|| json!([]));
        let Some(conditions) = conditions.as_array_mut() else { return false };
        for condition in &wanted {
            is_changed |= condition.apply(conditions, now);
        }
        is_changed
    }

    fn discovery(&self) -> Condition {
        let name = "NamespaceDeletionDiscoveryFailure";
        if self.discovery_errors.is_empty() {
            return Condition::fine(name, "ResourcesDiscovered", "All resources successfully discovered");
        }
        let message = format!(
            "Discovery failed for some groups, {} failing: {}",
            self.discovery_errors.len(),
            self.discovery_errors.join(", ")
        );
        Condition { name, is_true: true, reason: "DiscoveryFailed", message }
    }

    fn content(&self) -> Condition {
        let name = "NamespaceDeletionContentFailure";
        if self.content_errors.is_empty() {
            let message = "All content successfully deleted, may be waiting on finalization";
            return Condition::fine(name, "ContentDeleted", message);
        }
        let message = format!(
            "Failed to delete all resource types, {} remaining: {}",
            self.content_errors.len(),
            self.content_errors.join(", ")
        );
        Condition { name, is_true: true, reason: "ContentDeletionFailed", message }
    }

    fn left(&self) -> Condition {
        let name = "NamespaceContentRemaining";
        if self.remaining.is_empty() {
            return Condition::fine(name, "ContentRemoved", "All content successfully removed");
        }
        let each =
            self.remaining.iter().map(|(kind, left)| format!("{kind} has {} resource instances", left.count));
        let message = format!("Some resources are remaining: {}", joined(each));
        Condition { name, is_true: true, reason: "SomeResourcesRemain", message }
    }

    fn held(&self) -> Condition {
        let name = "NamespaceFinalizersRemaining";
        let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
        for (finalizer, count) in self.remaining.values().flat_map(|left| &left.finalizers) {
            *finalizers.entry(finalizer).or_default() += count;
        }
        if finalizers.is_empty() {
            let message = "All content-preserving finalizers finished";
            return Condition::fine(name, "ContentHasNoFinalizers", message);
        }
        let each =
            finalizers.iter().map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"));
        let message = format!("Some content in the namespace has finalizers remaining: {}", joined(each));
        Condition { name, is_true: true, reason: "SomeFinalizersRemain", message }
    }
}

/// Versions that this controller reads are always well formed.
fn parsing() -> Condition {
    let message = "All legacy kube types successfully parsed";
    Condition::fine("NamespaceDeletionGroupVersionParsingFailure", "ParsedGroupVersions", message)
}

fn joined(texts: impl Iterator<Item = String>) -> String {
    texts.collect::<Vec<_>>().join(", ")
}

impl Condition {
    fn fine(name: &'static str, reason: &'static str, message: &str) -> Self {
        Self { name, is_true: false, reason, message: message.to_owned() }
    }

    fn apply(&self, conditions: &mut Vec<Value>, now: Timestamp) -> bool {
        let status = if self.is_true { "True" } else { "False" };
        let at = seconds(now);
        let new = json!({"lastTransitionTime": at, "message": self.message, "reason": self.reason,
            "status": status, "type": self.name});
        let Some(old) = conditions.iter_mut().find(|old| old.get("type").is_some_and(|t| t == self.name))
        else {
            conditions.push(new);
            return true;
        };
        let is_same = |field: &str| old.get(field) == new.get(field);
        if is_same("status") && is_same("reason") && is_same("message") {
            return false;
        }
        let since = if is_same("status") { old.get("lastTransitionTime").cloned() } else { None };
        *old = new;
        if let (Some(fields), Some(since)) = (old.as_object_mut(), since) {
            fields.insert("lastTransitionTime".to_owned(), since);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_795_435_200 + second).unwrap()
    }

    fn told(namespace: &Value) -> Vec<String> {
        let conditions = namespace["status"]["conditions"].as_array().unwrap().iter();
        let text = |condition: &Value, field: &str| condition[field].as_str().unwrap().to_owned();
        conditions
            .map(|c| {
                format!(
                    "{}={} {}: {}",
                    text(c, "type"),
                    text(c, "status"),
                    text(c, "reason"),
                    text(c, "message")
                )
            })
            .collect()
    }

    #[test]
    fn all_is_well_or_said() {
        let mut namespace = json!({"metadata": {"name": "team"}});
        assert!(Findings::default().apply(&mut namespace, at(0)));
        assert_eq!(
            told(&namespace),
            [
                "NamespaceDeletionDiscoveryFailure=False ResourcesDiscovered: All resources successfully discovered",
                "NamespaceDeletionGroupVersionParsingFailure=False ParsedGroupVersions: All legacy kube types successfully parsed",
                "NamespaceDeletionContentFailure=False ContentDeleted: All content successfully deleted, may be waiting on finalization",
                "NamespaceContentRemaining=False ContentRemoved: All content successfully removed",
                "NamespaceFinalizersRemaining=False ContentHasNoFinalizers: All content-preserving finalizers finished",
            ]
        );
        assert!(!Findings::default().apply(&mut namespace, at(1)));

        let pods = [vec!["a/x"], vec!["a/x", "a/y"], vec![]].map(|finalizers| Metadata {
            finalizers: finalizers.into_iter().map(str::to_owned).collect(),
            ..Metadata::default()
        });
        let findings = Findings {
            discovery_errors: vec!["metrics is away".into()],
            content_errors: vec!["no".into()],
            remaining: [
                ("pods.".to_owned(), Summary::of(pods.iter())),
                ("jobs.batch".to_owned(), Summary { count: 1, ..Summary::default() }),
            ]
            .into(),
        };
        assert!(findings.apply(&mut namespace, at(2)));
        assert_eq!(
            told(&namespace),
            [
                "NamespaceDeletionDiscoveryFailure=True DiscoveryFailed: Discovery failed for some groups, 1 failing: metrics is away",
                "NamespaceDeletionGroupVersionParsingFailure=False ParsedGroupVersions: All legacy kube types successfully parsed",
                "NamespaceDeletionContentFailure=True ContentDeletionFailed: Failed to delete all resource types, 1 remaining: no",
                "NamespaceContentRemaining=True SomeResourcesRemain: Some resources are remaining: jobs.batch has 1 resource instances, pods. has 3 resource instances",
                "NamespaceFinalizersRemaining=True SomeFinalizersRemain: Some content in the namespace has finalizers remaining: a/x in 2 resource instances, a/y in 1 resource instances",
            ]
        );
    }

    #[test]
    fn the_time_of_a_transition_changes_with_the_status_alone() {
        let left = |count| Findings {
            remaining: [("pods.".to_owned(), Summary { count, ..Summary::default() })].into(),
            ..Findings::default()
        };
        let mut namespace = json!({});
        let since = |namespace: &Value| namespace["status"]["conditions"][3]["lastTransitionTime"].clone();
        left(3).apply(&mut namespace, at(0));
        let first = since(&namespace);
        assert!(left(2).apply(&mut namespace, at(1)));
        assert_eq!(since(&namespace), first);
        Findings::default().apply(&mut namespace, at(2));
        assert_ne!(since(&namespace), first);
    }
}
