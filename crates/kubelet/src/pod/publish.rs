//! Brings a Pod's status to the API: always the newest one, in order, retried until the API takes it.
//!
//! The worker never waits for the API here, but for one case: before it throws away what a status was made from.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Error};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::status::patch::status_patch;

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What is asked and how far it has come.
#[derive(Debug)]
pub(crate) struct Publisher {
    wanted: watch::Sender<(u64, PodStatus)>,
    done: watch::Receiver<u64>,
}

/// Whose status it is.
struct Target {
    api: Api<Pod>,
    name: String,
    uid: String,
    /// The status as the API has it, as far as is known.
    known: Value,
}

/// How a patch ended.
enum Sent {
    Done(Value),
    /// The Pod is gone, or another one has its name.
    Gone,
    Failed(Error),
}

impl Publisher {
    /// Starts the task that sends the statuses of `pod`.
    pub(crate) fn start(client: Client, pod: &Pod, tasks: &TaskTracker, shutdown: CancellationToken) -> Self {
        let meta = &pod.metadata;
        let target = Target {
            api: Api::namespaced(client, meta.namespace.as_deref().unwrap_or_default()),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            known: value_of(pod.status.as_ref()),
        };
        let (wanted, requests) = watch::channel((0, PodStatus::default()));
        let (progress, done) = watch::channel(0);
        tasks.spawn(async move {
            shutdown.run_until_cancelled(send_all(target, requests, progress)).await;
        });
        Self { wanted, done }
    }

    /// Asks for `status` to be sent; one that was asked before and not sent yet is skipped.
    pub(crate) fn publish(&self, status: PodStatus) {
        self.wanted.send_if_modified(|(number, wanted)| {
            if *number > 0 && *wanted == status {
                return false;
            }
            *number += 1;
            *wanted = status;
            true
        });
    }

    /// Waits until the API has the newest status, or the Pod is gone from it.
    pub(crate) async fn flush(&mut self) {
        let number = self.wanted.borrow().0;
        // An error means that the task has ended: the Pod is gone.
        let _ = self.done.wait_for(|done| *done >= number).await;
    }
}

fn value_of(status: Option<&PodStatus>) -> Value {
    status
        .and_then(|status| serde_json::to_value(status).ok())
        .unwrap_or_else(|| Value::Object(serde_json::Map::default()))
}

async fn send_all(
    mut target: Target,
    mut requests: watch::Receiver<(u64, PodStatus)>,
    progress: watch::Sender<u64>,
) {
    let mut wait = FIRST_WAIT;
    while requests.changed().await.is_ok() {
        loop {
            let (number, status) = requests.borrow_and_update().clone();
            match send(&target, &status).await {
                Sent::Done(known) => {
                    target.known = known;
                    wait = FIRST_WAIT;
                    progress.send_replace(number);
                    break;
                }
                Sent::Gone => return,
                Sent::Failed(error) => {
                    tracing::warn!(pod = target.name, %error, ?wait, "status not taken by the API; it is sent again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }
}

async fn send(target: &Target, status: &PodStatus) -> Sent {
    let new = value_of(Some(status));
    let Some(patch) = status_patch(&target.uid, &target.known, &new) else { return Sent::Done(new) };
    let step = tracing::debug_span!(target: "path", "kubelet: status patch", pod = target.uid);
    let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
    match target.api.patch_status(&target.name, &params, &patch).instrument(step).await {
        Ok(pod) => Sent::Done(value_of(pod.status.as_ref())),
        Err(Error::Api(answer)) if answer.code == 404 => Sent::Gone,
        // The UID does not fit, or the API finds the status itself wrong: the object tells which.
        Err(Error::Api(answer)) if matches!(answer.code, 409 | 422) => {
            match target.api.get_opt(&target.name).await {
                Ok(Some(pod)) if pod.metadata.uid.as_ref() == Some(&target.uid) => {
                    Sent::Failed(Error::Api(answer))
                }
                Ok(_) => Sent::Gone,
                Err(error) => Sent::Failed(error),
            }
        }
        Err(error) => Sent::Failed(error),
    }
}
