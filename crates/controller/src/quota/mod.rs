//! What namespaces use of their `ResourceQuota`s, counted anew from all objects whenever one comes, goes or changes: the
//! status that `kubectl describe quota` shows. Admission, which refuses what would be too much, counts for itself.
//!
//! Only kinds that some quota limits are watched: a cluster without quotas pays for the watch of quotas alone.

mod model;
mod watched;

use std::collections::BTreeSet;
use std::time::Duration;

use api::kind::{Kind, kinds};
use api::quota::{self, Usage};
use futures::future::select_all;
use informer::Target;
use jiff::Timestamp;
use kube::Client;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::queue::Queue;
use crate::rest::{Collection, Forgive as _, RestError};
use crate::source::Source;

use model::Quota;
use watched::Watched;

/// How long changes are gathered before a quota is counted: many come at a time.
const GATHER: Duration = Duration::from_millis(100);

/// Runs the controller until `shutdown`.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let quotas = Source::new(&client, Target::all("/api/v1/resourcequotas"));
    let mut controller = Controller { quotas, watched: Vec::new(), queue: Queue::default() };
    shutdown.run_until_cancelled(controller.work(&client)).await;
}

struct Controller {
    quotas: Source<Quota>,
    watched: Vec<Watched>,
    queue: Queue<String>,
}

/// What a round of waiting brought.
enum Change {
    Quotas(Vec<String>),
    Namespaces(BTreeSet<String>),
    Due,
}

impl Controller {
    async fn work(&mut self, client: &Client) {
        loop {
            let is_synced = self.quotas.is_synced() && self.watched.iter().all(Watched::is_synced);
            let change = tokio::select! {
                keys = self.quotas.changed() => Change::Quotas(keys),
                namespaces = any_changed(&mut self.watched) => Change::Namespaces(namespaces),
                () = self.queue.ready(), if is_synced => Change::Due,
            };
            match change {
                Change::Quotas(keys) => {
                    self.watch_what_is_limited(client);
                    self.add(keys);
                }
                Change::Namespaces(namespaces) => {
                    let quotas = self.quotas.store().iter();
                    let meant = quotas.filter(|quota| namespaces.contains(&quota.key.namespace));
                    let keys: Vec<String> = meant.map(|quota| quota.key.key()).collect();
                    self.add(keys);
                }
                Change::Due => self.count_due(client).await,
            }
        }
    }

    fn add(&mut self, keys: Vec<String>) {
        let at = Instant::now() + GATHER;
        for key in keys {
            self.queue.add(key, at);
        }
    }

    /// Begins to watch kinds that are limited now, and ends to watch those that no longer are.
    fn watch_what_is_limited(&mut self, client: &Client) {
        let hard: Usage = self.quotas.store().iter().flat_map(|quota| quota::hard(&quota.object)).collect();
        let is_limited = |kind: &Kind| quota::is_limited(kind, &hard);
        self.watched.retain(|watched| is_limited(watched.kind()));
        let missing = countable().filter(|kind| is_limited(kind));
        let missing: Vec<_> =
            missing.filter(|kind| !self.watched.iter().any(|one| one.counts(kind))).collect();
        self.watched.extend(missing.into_iter().map(|kind| Watched::new(client, kind)));
    }

    async fn count_due(&mut self, client: &Client) {
        for key in self.queue.take(Instant::now()) {
            // A copy: the watch must not be borrowed while it is written.
            let quota = self.quotas.store().get(&key).filter(|quota| !quota.is_deleted).cloned();
            let Some(quota) = quota else { continue };
            let (used, again) = tally(&self.watched, &quota, Timestamp::now());
            let written = write(client, &quota, &used).await;
            if let Some(wait) = again {
                self.queue.add(key.clone(), Instant::now() + wait);
            }
            self.queue.done(key, written);
        }
    }
}

/// Kinds whose objects live in namespaces; of two views of the same objects, the first.
fn countable() -> impl Iterator<Item = &'static Kind> {
    kinds().iter().enumerate().filter_map(|(at, kind)| {
        let is_same = |other: &Kind| (other.group, other.plural) == (kind.group, kind.plural);
        let is_first = kinds().iter().position(is_same) == Some(at);
        (kind.namespaced && kind.has_verb("watch") && is_first).then_some(kind)
    })
}

/// Waits until objects of a watched kind change what they use; gives their namespaces.
async fn any_changed(watched: &mut [Watched]) -> BTreeSet<String> {
    if watched.is_empty() {
        return std::future::pending().await;
    }
    select_all(watched.iter_mut().map(|one| Box::pin(one.changed()))).await.0
}

/// What is used of a quota, and when to count again though nothing changes.
fn tally(watched: &[Watched], quota: &Quota, now: Timestamp) -> (Usage, Option<Duration>) {
    let mut used = Usage::new();
    let again = watched.iter().filter_map(|one| one.tally(quota, now, &mut used)).min();
    (used, again)
}

/// Writes the status, if it is another one. A quota that changed meanwhile is counted again, as its change is told.
async fn write(client: &Client, quota: &Quota, used: &Usage) -> Result<(), RestError> {
    let status = quota::status_of(&quota.object, used);
    if quota.object.get("status") == Some(&status) {
        return Ok(());
    }
    let key = &quota.key;
    let object = json!({
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"namespace": key.namespace, "name": key.name, "uid": key.uid, "resourceVersion": key.revision},
        "status": status,
    });
    let quotas = Collection::core(client, &key.namespace, "resourcequotas");
    quotas.replace_part("status", &key.name, &object).await.forgive(&[404, 409])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_object_is_counted_once() {
        let names: Vec<String> = countable().map(quota::count_name).collect();
        let unique: BTreeSet<&String> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
        assert!(names.contains(&"count/horizontalpodautoscalers.autoscaling".to_owned()));
        for other in ["count/nodes", "count/bindings"] {
            assert!(!names.iter().any(|name| name == other), "{names:?}");
        }
    }
}
