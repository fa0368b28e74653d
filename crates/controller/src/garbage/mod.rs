//! Deletes what nobody owns any more: objects whose owners (`metadata.ownerReferences`) are gone. An owner that is
//! deleted in the foreground waits for its dependents; one that orphans them leaves them behind.
//!
//! The kinds are those that the API has when the controller starts. An owner that no watch has told of is asked for
//! before anything is deleted, and every deletion names the UID and the version that the decision was made by.

mod apply;
mod graph;
mod plan;

use std::time::Duration;

use futures::future::select_all;
use informer::Target;
use kube::Client;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::discovery::{Resource, discover};
use crate::metadata::Object;
use crate::queue::{Queue, apply_all};
use crate::source::Source;

use graph::Graph;

/// The wait after a failed discovery.
const RETRY: Duration = Duration::from_secs(1);

/// Runs the controller until `shutdown`.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    shutdown.run_until_cancelled(work(&client)).await;
}

async fn work(client: &Client) {
    let resources = collectable(client).await;
    let mut sources: Vec<Source<Object>> =
        resources.iter().map(|resource| Source::new(client, Target::all(resource.path("")))).collect();
    let mut graph = Graph::default();
    let mut queue: Queue<String> = Queue::default();
    loop {
        // Who has no dependents is known only when all have been told.
        let is_synced = sources.iter().all(Source::is_synced);
        tokio::select! {
            (kind, keys) = next_change(&mut sources) => {
                let Some(store) = sources.get(kind).map(Source::store) else { continue };
                let now = Instant::now();
                for key in keys {
                    for uid in graph.set(kind, &key, store.get(&key).map(|object| &object.metadata)) {
                        queue.add(uid, now);
                    }
                }
            }
            () = queue.ready(), if is_synced => {
                let due = queue.take(Instant::now()).into_iter().map(|uid| (uid.clone(), uid)).collect();
                let (graph, resources) = (&graph, &resources);
                let apply = |uid: String| async move { apply::look(client, graph, resources, &uid).await };
                apply_all(&mut queue, due, apply).await;
            }
        }
    }
}

async fn next_change(sources: &mut [Source<Object>]) -> (usize, Vec<String>) {
    if sources.is_empty() {
        return std::future::pending().await;
    }
    let changes = sources.iter_mut().map(|source| Box::pin(source.changed()));
    let (keys, kind, _) = select_all(changes).await;
    (kind, keys)
}

/// The kinds that can be watched and deleted. Events own nothing and end by themselves.
async fn collectable(client: &Client) -> Vec<Resource> {
    loop {
        match discover(client).await {
            Ok(found) if found.errors.is_empty() => {
                let is_collectable = |resource: &Resource| {
                    resource.can(&["delete", "get", "list", "patch", "watch"]) && resource.kind != "Event"
                };
                return found.resources.into_iter().filter(is_collectable).collect();
            }
            Ok(found) => {
                tracing::warn!(errors = ?found.errors, "not all kinds of objects are known; asking again");
            }
            Err(error) => tracing::warn!(%error, "the kinds of objects are not known; asking again"),
        }
        tokio::time::sleep(RETRY).await;
    }
}
