//! Deletes namespaces: first their Pods, gracefully, then everything else that the API has, then the namespace's own
//! finalizer. While something is left it waits for a watch to say that it changed, and the namespace's conditions tell
//! the user what it is.

mod condition;
mod content;

use std::collections::BTreeSet;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use informer::{Meta, Target};
use kube::Client;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metadata::Metadata;
use crate::queue::Queue;
use crate::source::Source;

/// The finalizer in a namespace's spec that this controller answers for.
const FINALIZER: &str = "kubernetes";
/// How many namespaces are deleted at a time, as upstream.
const WORKERS: usize = 10;

/// A namespace, as far as its deletion is concerned.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Whole")]
struct Namespace {
    key: Meta,
    is_terminating: bool,
}

#[derive(Deserialize)]
struct Whole {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Spec {
    finalizers: Vec<String>,
}

impl From<Whole> for Namespace {
    fn from(whole: Whole) -> Self {
        let is_terminating =
            whole.metadata.is_deleted() && whole.spec.finalizers.iter().any(|one| one == FINALIZER);
        Self { key: whole.metadata.key(), is_terminating }
    }
}

impl informer::Object for Namespace {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

/// Runs the controller until `shutdown`.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    shutdown.run_until_cancelled(work(&client)).await;
}

async fn work(client: &Client) {
    let mut namespaces: Source<Namespace> = Source::new(client, Target::all("/api/v1/namespaces"));
    let mut queue = Queue::default();
    let mut running = FuturesUnordered::new();
    // Those that are being deleted, and those of them that changed since.
    let (mut active, mut again) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let is_free = running.len() < WORKERS;
        tokio::select! {
            names = namespaces.changed() => {
                let store = namespaces.store();
                for name in names.into_iter().filter(|name| store.get(name).is_some_and(|n| n.is_terminating)) {
                    if active.contains(&name) {
                        again.insert(name);
                    } else {
                        queue.add(name, Instant::now());
                    }
                }
            }
            () = queue.ready(), if is_free => {
                for name in queue.take(Instant::now()) {
                    active.insert(name.clone());
                    running.push(async move { (content::delete(client, &name).await, name) });
                }
            }
            Some((result, name)) = running.next(), if !running.is_empty() => {
                active.remove(&name);
                if again.remove(&name) {
                    queue.add(name.clone(), Instant::now());
                }
                queue.done(name, result);
            }
        }
    }
}
