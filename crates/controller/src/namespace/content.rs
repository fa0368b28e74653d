//! The deletion of one namespace, round by round: delete, count what is left, tell it, wait until that changes.

use futures::future::{join_all, select_all};
use informer::Target;
use jiff::Timestamp;
use kube::Client;
use kube::api::DeleteParams;
use serde_json::Value;

use super::FINALIZER;
use super::condition::{Findings, Summary, name_of};
use crate::discovery::{Resource, discover};
use crate::metadata::Object;
use crate::rest::{Collection, Forgive, RestError};
use crate::source::Source;

/// Why a namespace is not deleted yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeleteError {
    #[error(transparent)]
    Rest(#[from] RestError),
    #[error("deleting the contents of the namespace: {0}")]
    Content(String),
}

/// Deletes a namespace: returns when it is gone, or when it isn't being deleted (any more).
pub(super) async fn delete(client: &Client, name: &str) -> Result<(), DeleteError> {
    let namespaces = Collection::new(client, "/api/v1/namespaces");
    loop {
        let Some(namespace) = namespaces.get::<Value>(name).await? else { return Ok(()) };
        if !is_terminating(&namespace) {
            return Ok(());
        }
        let round = Round::run(client, name).await?;
        let namespace = match tell(&namespaces, name, namespace, &round.findings).await {
            // Somebody else changed it: look again.
            Err(error) if error.code() == Some(409) => continue,
            told => told?,
        };
        let errors: Vec<_> =
            round.findings.discovery_errors.iter().chain(&round.findings.content_errors).collect();
        if let Some(first) = errors.first() {
            return Err(DeleteError::Content((*first).clone()));
        }
        if round.left.is_empty() {
            return finalize(&namespaces, name, namespace).await;
        }
        wait_for_change(client, name, &round.left).await;
    }
}

fn is_terminating(namespace: &Value) -> bool {
    let finalizers = namespace.pointer("/spec/finalizers").and_then(Value::as_array);
    namespace.pointer("/metadata/deletionTimestamp").is_some()
        && finalizers.is_some_and(|finalizers| finalizers.iter().any(|one| one == FINALIZER))
}

/// What one round did.
#[derive(Debug, Default)]
struct Round {
    findings: Findings,
    /// The kinds that are left.
    left: Vec<(Resource, Summary)>,
}

impl Round {
    async fn run(client: &Client, namespace: &str) -> Result<Self, RestError> {
        let discovered = discover(client).await?;
        let mut round = Self::default();
        round.findings.discovery_errors = discovered.errors;
        let deletable = |resource: &Resource| resource.is_namespaced && resource.can(&["delete", "list"]);
        let (pods, others): (Vec<_>, Vec<_>) =
            discovered.resources.into_iter().filter(deletable).partition(is_pods);
        // Pods first: they may need what they run with until they have ended.
        for resources in [pods, others] {
            let emptied = resources.iter().map(|resource| empty(client, namespace, resource));
            let results = join_all(emptied).await;
            for (resource, result) in resources.into_iter().zip(results) {
                round.add(namespace, resource, result);
            }
            if !round.left.is_empty() || !round.findings.content_errors.is_empty() {
                break;
            }
        }
        Ok(round)
    }

    fn add(&mut self, namespace: &str, resource: Resource, result: Result<Summary, RestError>) {
        match result {
            Ok(left) if left.count == 0 => {}
            Ok(left) => {
                if left.finalizers.is_empty() && !is_pods(&resource) {
                    self.findings.content_errors.push(format!(
                        "unexpected items still remain in namespace: {namespace} for gvr: {}/{}, Resource={}",
                        resource.group, resource.version, resource.plural
                    ));
                }
                self.findings.remaining.insert(name_of(&resource), left.clone());
                self.left.push((resource, left));
            }
            Err(error) => self.findings.content_errors.push(error.to_string()),
        }
    }
}

fn is_pods(resource: &Resource) -> bool {
    resource.group.is_empty() && resource.plural == "pods"
}

/// Deletes all objects of a kind in the namespace, and counts what is left.
async fn empty(client: &Client, namespace: &str, resource: &Resource) -> Result<Summary, RestError> {
    let collection = Collection::new(client, resource.path(namespace));
    if resource.can(&["deletecollection"]) {
        collection.delete_all().await.forgive(&[404])?;
    } else {
        for object in collection.list().await? {
            let deleted = collection.delete(&object.metadata.name, &DeleteParams::background()).await;
            deleted.forgive(&[404])?;
        }
    }
    let left = collection.list().await?;
    Ok(Summary::of(left.iter().map(|object| object.metadata.as_ref())))
}

/// Writes into the namespace's status what was found; gives the namespace as it is then.
async fn tell(
    namespaces: &Collection<'_>,
    name: &str,
    mut namespace: Value,
    findings: &Findings,
) -> Result<Value, RestError> {
    let has_phase = namespace.pointer("/status/phase").is_some_and(|phase| phase == "Terminating");
    if !findings.apply(&mut namespace, Timestamp::now()) && has_phase {
        return Ok(namespace);
    }
    if let Some(status) = namespace.get_mut("status").and_then(Value::as_object_mut) {
        status.insert("phase".to_owned(), "Terminating".into());
    }
    namespaces.replace_part("status", name, &namespace).await
}

/// Takes this controller's finalizer away; the last one lets the namespace go.
async fn finalize(namespaces: &Collection<'_>, name: &str, mut namespace: Value) -> Result<(), DeleteError> {
    if let Some(finalizers) = namespace.pointer_mut("/spec/finalizers").and_then(Value::as_array_mut) {
        finalizers.retain(|one| one != FINALIZER);
    }
    namespaces.replace_part("finalize", name, &namespace).await.forgive(&[404])?;
    tracing::info!(namespace = name, "deleted the namespace");
    Ok(())
}

/// Waits until less, more or something else is left of a kind, or until the namespace itself changes.
async fn wait_for_change(client: &Client, namespace: &str, left: &[(Resource, Summary)]) {
    let mut sources: Vec<_> = left
        .iter()
        .map(|(resource, seen)| (Source::<Object>::new(client, Target::all(resource.path(namespace))), seen))
        .collect();
    let own = Target::all("/api/v1/namespaces").with_fields(format!("metadata.name={namespace}"));
    let mut own: Source<Object> = Source::new(client, own);
    let contents = sources.iter_mut().map(|(source, seen)| Box::pin(until_other(source, seen)));
    tokio::select! {
        _ = select_all(contents) => {}
        () = until_gone(&mut own, namespace) => {}
    }
}

async fn until_other(source: &mut Source<Object>, seen: &Summary) {
    loop {
        source.changed().await;
        let objects = source.store().iter().map(|object| object.metadata.as_ref());
        if source.is_synced() && Summary::of(objects) != *seen {
            return;
        }
    }
}

/// Somebody else may finalize the namespace.
async fn until_gone(own: &mut Source<Object>, name: &str) {
    loop {
        own.changed().await;
        if own.is_synced() && own.store().get(name).is_none() {
            return;
        }
    }
}
