//! Jobs that have ended and say how long they are kept: they are deleted when that time is over, with what they own.

use std::time::Duration;

use informer::{Meta, Target};
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use kube::api::PropagationPolicy;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::metadata::Metadata;
use crate::queue::Queue;
use crate::rest::{Collection, Forgive as _, RestError, only};
use crate::source::Source;

/// The longest wait at a time: the clock may be set meanwhile.
const LONGEST: Duration = Duration::from_hours(1);

/// Runs the controller until `shutdown`.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let jobs = Source::new(&client, Target::all("/apis/batch/v1/jobs"));
    let mut controller = Controller { jobs, queue: Queue::default() };
    shutdown.run_until_cancelled(controller.work(&client)).await;
}

struct Controller {
    jobs: Source<Job>,
    queue: Queue<String>,
}

impl Controller {
    async fn work(&mut self, client: &Client) {
        loop {
            tokio::select! {
                keys = self.jobs.changed() => keys.into_iter().for_each(|key| self.look(key)),
                () = self.queue.ready() => self.delete_due(client).await,
            }
        }
    }

    fn look(&mut self, key: String) {
        let wait = self.jobs.store().get(&key).and_then(|job| job.left(Timestamp::now()));
        if let Some(wait) = wait {
            self.queue.add(key, Instant::now() + wait.min(LONGEST));
        }
    }

    async fn delete_due(&mut self, client: &Client) {
        for key in self.queue.take(Instant::now()) {
            match self.jobs.store().get(&key).map(|job| (job.left(Timestamp::now()), job.key.clone())) {
                Some((Some(Duration::ZERO), job)) => {
                    let deleted = delete(client, &job).await;
                    self.queue.done(key, deleted);
                }
                Some((Some(_), _)) => self.look(key),
                Some((None, _)) | None => {}
            }
        }
    }
}

async fn delete(client: &Client, job: &Meta) -> Result<(), RestError> {
    let jobs = Collection::new(client, format!("/apis/batch/v1/namespaces/{}/jobs", job.namespace));
    let options = only(&job.uid, PropagationPolicy::Background);
    // One that is gone, or another one of the same name, is not ours to delete.
    jobs.delete(&job.name, &options).await.forgive(&[404, 409])
}

/// A Job.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Whole")]
struct Job {
    key: Meta,
    is_deleted: bool,
    /// When it must go.
    end: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Whole {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    ttl_seconds_after_finished: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    last_transition_time: Option<Timestamp>,
}

impl From<Whole> for Job {
    fn from(whole: Whole) -> Self {
        let is_end =
            |one: &&Condition| matches!(one.kind.as_str(), "Complete" | "Failed") && one.status == "True";
        let ended = whole.status.conditions.iter().find(is_end).and_then(|one| one.last_transition_time);
        let kept = whole.spec.ttl_seconds_after_finished.map(SignedDuration::from_secs);
        let end = ended.zip(kept).map(|(ended, kept)| ended.checked_add(kept).unwrap_or(Timestamp::MAX));
        Self { key: whole.metadata.key(), is_deleted: whole.metadata.is_deleted(), end }
    }
}

impl Job {
    /// How long it is still kept; `None` when it is not to be deleted, or is already.
    fn left(&self, now: Timestamp) -> Option<Duration> {
        let end = self.end.filter(|_| !self.is_deleted)?;
        Some(Duration::try_from(end.duration_since(now)).unwrap_or(Duration::ZERO))
    }
}

impl informer::Object for Job {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn left(spec: &Value, condition: &str, deleted: &Value) -> Option<u64> {
        let job: Job = serde_json::from_value(json!({
            "metadata": {"namespace": "n", "name": "j", "deletionTimestamp": deleted},
            "spec": spec,
            "status": {"conditions": [{"type": condition, "status": "True", "lastTransitionTime": "2026-11-23T12:00:00Z"}]},
        }))
        .unwrap();
        job.left("2026-11-23T12:00:40Z".parse().unwrap()).map(|left| left.as_secs())
    }

    #[test]
    fn a_job_is_kept_as_long_as_it_says_after_its_end() {
        let kept = |seconds: i64| json!({"ttlSecondsAfterFinished": seconds});
        for (spec, condition, deleted, expected, why) in [
            (kept(100), "Complete", Value::Null, Some(60), "completed"),
            (kept(100), "Failed", Value::Null, Some(60), "failed"),
            (kept(0), "Complete", Value::Null, Some(0), "not kept at all"),
            (kept(i64::MAX), "Complete", Value::Null, Some(253_401_995_158), "kept for ever"),
            (json!({}), "Complete", Value::Null, None, "it does not say"),
            (kept(100), "Suspended", Value::Null, None, "it has not ended"),
            (kept(0), "Complete", json!("2026-11-23T12:00:10Z"), None, "it is being deleted"),
        ] {
            let found = left(&spec, condition, &deleted);
            match expected {
                Some(seconds) if seconds > 1_000_000 => {
                    assert!(found.is_some_and(|left| left > 1_000_000), "{why}");
                }
                expected => assert_eq!(found, expected, "{why}"),
            }
        }
    }
}
