//! How many Pods of a budget may be evicted now: the number that the eviction of a Pod takes from. Evictions are
//! counted by the API server; here the count is made anew whenever a budget or a Pod changes.

mod model;
mod plan;
mod scale;

use std::collections::BTreeSet;

use informer::Target;
use jiff::Timestamp;
use kube::Client;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::{Subject, Tone, post};
use crate::queue::Queue;
use crate::rest::{Collection, Forgive, RestError};
use crate::source::Source;

use model::{Budget, Pod, Status};

/// Runs the controller until `shutdown`.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let mut controller = Controller {
        budgets: Source::new(&client, Target::all("/apis/policy/v1/poddisruptionbudgets")),
        pods: Source::new(&client, Target::all("/api/v1/pods")),
        queue: Queue::default(),
    };
    shutdown.run_until_cancelled(controller.work(&client)).await;
}

struct Controller {
    budgets: Source<Budget>,
    pods: Source<Pod>,
    queue: Queue<String>,
}

impl Controller {
    async fn work(&mut self, client: &Client) {
        loop {
            let is_synced = self.budgets.is_synced() && self.pods.is_synced();
            tokio::select! {
                keys = self.budgets.changed() => self.add(keys),
                keys = self.pods.changed() => self.look_at_pods(&keys),
                () = self.queue.ready(), if is_synced => self.work_off(client).await,
            }
        }
    }

    fn add(&mut self, budgets: impl IntoIterator<Item = String>) {
        let now = Instant::now();
        budgets.into_iter().for_each(|budget| self.queue.add(budget, now));
    }

    /// A Pod whose labels changed, or that is gone, may have been any budget's of its namespace.
    fn look_at_pods(&mut self, keys: &[String]) {
        let namespaces: BTreeSet<&str> =
            keys.iter().filter_map(|key| key.split_once('/')).map(|(namespace, _)| namespace).collect();
        let budgets = self.budgets.store().iter();
        let meant = budgets.filter(|budget| namespaces.contains(budget.key.namespace.as_str()));
        let keys: Vec<String> = meant.map(|budget| budget.key.key()).collect();
        self.add(keys);
    }

    async fn work_off(&mut self, client: &Client) {
        for key in self.queue.take(Instant::now()) {
            let Some(budget) = self.budgets.store().get(&key).filter(|budget| !budget.is_deleted).cloned()
            else {
                continue;
            };
            let pods: Vec<Pod> = self.pods_of(&budget).cloned().collect();
            let outcome = self.settle(client, &budget, &pods).await;
            self.queue.done(key, outcome);
        }
    }

    fn pods_of<'a>(&'a self, budget: &'a Budget) -> impl Iterator<Item = &'a Pod> {
        let selector = budget.spec.selector.as_ref();
        let pods = self.pods.store().iter().filter(|pod| pod.key.namespace == budget.key.namespace);
        pods.filter(move |pod| selector.is_some_and(|selector| selector.matches_labels(&pod.labels)))
    }

    /// Counts, and writes what changed. When it is not known how many Pods there should be, the budget says so and
    /// allows nothing; the next change counts again.
    async fn settle(&mut self, client: &Client, budget: &Budget, pods: &[Pod]) -> Result<(), RestError> {
        let now = Timestamp::now();
        let scale = if plan::needs_scale(&budget.spec) {
            scale::expected(client, &budget.key.namespace, pods).await
        } else {
            Ok(0)
        };
        let status = match scale {
            Err(scale::ScaleError::Rest(error)) => return Err(error),
            Err(error) => {
                let subject = subject(budget);
                let text = format!("Failed to calculate the number of expected pods: {error}");
                post(client, subject, Tone::Warning, "CalculateExpectedPodCountFailed", &text).await;
                plan::failed(budget, &error.to_string(), now)
            }
            Ok(scale) => {
                let pods: Vec<&Pod> = pods.iter().collect();
                let verdict = plan::plan(budget, &pods, scale, now);
                if let Some(wait) = verdict.again {
                    self.queue.add(budget.key.key(), Instant::now() + wait);
                }
                verdict.status
            }
        };
        write(client, budget, &status).await
    }
}

/// Writes a status, if it is another one. A budget that changed meanwhile is counted again.
async fn write(client: &Client, budget: &Budget, status: &Status) -> Result<(), RestError> {
    if *status == budget.status {
        return Ok(());
    }
    let key = &budget.key;
    let object = json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"namespace": key.namespace, "name": key.name, "uid": key.uid, "resourceVersion": key.revision},
        "status": status,
    });
    let path = format!("/apis/policy/v1/namespaces/{}/poddisruptionbudgets", key.namespace);
    Collection::new(client, path).replace_part("status", &key.name, &object).await.forgive(&[404])
}

fn subject(budget: &Budget) -> Subject<'_> {
    let key = &budget.key;
    Subject {
        component: "controllermanager",
        kind: "PodDisruptionBudget",
        namespace: &key.namespace,
        name: &key.name,
        uid: &key.uid,
    }
}
