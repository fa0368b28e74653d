//! Carries out what was decided about one object.

use kube::Client;
use kube::api::{DeleteParams, Preconditions, PropagationPolicy};
use serde_json::{Value, json};

use super::graph::{Entry, FOREGROUND, Graph, ORPHAN};
use super::plan::{Answers, Owner, Step, plan};
use crate::discovery::Resource;
use crate::metadata::OwnerReference;
use crate::rest::{Collection, Forgive, RestError};

/// Looks at an object: decides, asks the API for owners that the graph doesn't know, and does what is to be done.
pub(super) async fn look(
    client: &Client,
    graph: &Graph,
    resources: &[Resource],
    uid: &str,
) -> Result<(), RestError> {
    let Some(entry) = graph.get(uid) else { return Ok(()) };
    let collector = Collector { client, resources };
    let mut step = plan(graph, resources, uid, &Answers::new());
    if let Step::Ask(owners) = step {
        let answers = collector.ask(entry, &owners).await?;
        step = plan(graph, resources, uid, &answers);
    }
    collector.apply(entry, step).await
}

struct Collector<'a> {
    client: &'a Client,
    resources: &'a [Resource],
}

impl Collector<'_> {
    async fn apply(&self, entry: &Entry, step: Step) -> Result<(), RestError> {
        match step {
            Step::Nothing | Step::Ask(_) => Ok(()),
            Step::Delete { propagation, unblock } => {
                if unblock {
                    // The deletion follows when the watch has told the change.
                    return self.set_owners(entry, unblocked(entry)).await.forgive(&[409]);
                }
                self.delete(entry, propagation).await
            }
            // 409, here and below: the object changed, and the watch will tell how.
            Step::Disown(lost) => self.disown(entry, &lost).await.forgive(&[409]),
            Step::Orphan => {
                for dependent in self.dependents(entry).await? {
                    self.disown(&dependent, std::slice::from_ref(&entry.metadata.uid)).await?;
                }
                self.drop_finalizer(entry, ORPHAN).await.forgive(&[409])
            }
            Step::Finish => {
                let uid = &entry.metadata.uid;
                if self.dependents(entry).await?.iter().any(|dependent| dependent.blocks(uid)) {
                    // Its watch has not told it yet; when it goes, this owner is looked at again.
                    return Ok(());
                }
                self.drop_finalizer(entry, FOREGROUND).await.forgive(&[409])
            }
        }
    }

    /// Asks the API whether owners are there.
    async fn ask(&self, dependent: &Entry, owners: &[OwnerReference]) -> Result<Answers, RestError> {
        let mut answers = Answers::new();
        for reference in owners {
            answers.insert(reference.uid.clone(), self.ask_one(dependent, reference).await?);
        }
        Ok(answers)
    }

    async fn ask_one(&self, dependent: &Entry, reference: &OwnerReference) -> Result<Owner, RestError> {
        let named = |resource: &&Resource| resource.is_named(&reference.api_version, &reference.kind);
        let Some(resource) = self.resources.iter().find(named) else {
            tracing::debug!(kind = reference.kind, "an owner is of an unknown kind; its dependents are kept");
            return Ok(Owner::Present);
        };
        if resource.is_namespaced && dependent.metadata.namespace.is_empty() {
            tracing::warn!(
                owner = reference.name,
                dependent = dependent.metadata.name,
                "an object without a namespace cannot be owned by one in a namespace; it is kept"
            );
            return Ok(Owner::Present);
        }
        let owners = Collection::new(self.client, resource.path(&dependent.metadata.namespace));
        Ok(match owners.get_metadata(&reference.name).await? {
            Some(owner) if owner.metadata.uid == reference.uid => {
                let owner = Entry { kind: 0, metadata: owner.metadata };
                if owner.is_waiting() { Owner::Waiting } else { Owner::Present }
            }
            _ => Owner::Absent,
        })
    }

    /// Asks the API for the dependents of an object: each kind has a watch of its own, and one of them may be behind.
    async fn dependents(&self, owner: &Entry) -> Result<Vec<Entry>, RestError> {
        let uid = &owner.metadata.uid;
        let mut dependents = Vec::new();
        for (kind, resource) in self.resources.iter().enumerate() {
            let objects =
                Collection::new(self.client, resource.path(&owner.metadata.namespace)).list().await?;
            let all = objects.into_iter().map(|object| Entry { kind, metadata: object.metadata });
            dependents
                .extend(all.filter(|entry| entry.metadata.owner_references.iter().any(|r| r.uid == *uid)));
        }
        Ok(dependents)
    }

    fn collection(&self, entry: &Entry) -> Option<Collection<'_>> {
        let resource = self.resources.get(entry.kind)?;
        Some(Collection::new(self.client, resource.path(&entry.metadata.namespace)))
    }

    async fn delete(&self, entry: &Entry, propagation: PropagationPolicy) -> Result<(), RestError> {
        let Some(collection) = self.collection(entry) else { return Ok(()) };
        let preconditions = Preconditions {
            resource_version: Some(entry.metadata.resource_version.clone()),
            uid: Some(entry.metadata.uid.clone()),
        };
        let options = DeleteParams {
            preconditions: Some(preconditions),
            propagation_policy: Some(propagation),
            ..DeleteParams::default()
        };
        tracing::info!(
            namespace = entry.metadata.namespace,
            name = entry.metadata.name,
            "deleting an object whose owners are gone"
        );
        collection.delete(&entry.metadata.name, &options).await.forgive(&[404, 409])
    }

    async fn disown(&self, entry: &Entry, lost: &[String]) -> Result<(), RestError> {
        let all = entry.metadata.owner_references.iter();
        let kept = all.filter(|reference| !lost.contains(&reference.uid)).cloned().collect();
        self.set_owners(entry, kept).await
    }

    async fn set_owners(&self, entry: &Entry, owners: Vec<OwnerReference>) -> Result<(), RestError> {
        self.patch(entry, "ownerReferences", json!(owners)).await
    }

    async fn drop_finalizer(&self, entry: &Entry, finalizer: &str) -> Result<(), RestError> {
        let kept: Vec<_> = entry.metadata.finalizers.iter().filter(|one| *one != finalizer).collect();
        self.patch(entry, "finalizers", json!(kept)).await
    }

    /// Changes a list of the metadata, if the object is still as it was when that was decided.
    async fn patch(&self, entry: &Entry, field: &str, list: Value) -> Result<(), RestError> {
        let Some(collection) = self.collection(entry) else { return Ok(()) };
        let is_empty = list.as_array().is_some_and(Vec::is_empty);
        let mut metadata =
            json!({"uid": entry.metadata.uid, "resourceVersion": entry.metadata.resource_version});
        if let Some(fields) = metadata.as_object_mut() {
            fields.insert(field.to_owned(), if is_empty { Value::Null } else { list });
        }
        let patch = json!({ "metadata": metadata });
        collection.merge(&entry.metadata.name, &patch).await.forgive(&[404])
    }
}

fn unblocked(entry: &Entry) -> Vec<OwnerReference> {
    let all = entry.metadata.owner_references.iter().cloned();
    all.map(|reference| OwnerReference { block_owner_deletion: Some(false), ..reference }).collect()
}
