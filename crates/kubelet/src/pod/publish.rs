//! Brings a Pod's status to the API: always the newest one, in order, retried until the API takes it.
//!
//! The worker never waits for the API here, but for one case: before it throws away what a status was made from.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Patch, PatchParams};
use kube::{Api, Error};
use serde_json::Value;
use tokio::sync::watch;
use tracing::Instrument as _;

use super::status::condition::is_own;
use super::status::patch::status_patch;
use crate::fault::{CrashPoint, Faults};
use crate::manifest::is_static;
use crate::manifest::mirror::{Mirrors, Name, name_of};
use crate::shared::Shared;

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What is asked and how far it has come.
#[derive(Debug)]
pub(crate) struct Publisher {
    wanted: watch::Sender<(u64, PodStatus)>,
    done: watch::Receiver<u64>,
    /// A static Pod's: nothing may wait for the API because of it.
    is_static: bool,
}

/// Whose status it is.
struct Target {
    api: Api<Pod>,
    name: Name,
    uid: Uid,
    /// The status as the API has it, as far as is known.
    known: Value,
    faults: Arc<dyn Faults>,
}

/// Which object of the name is meant.
enum Uid {
    /// The Pod itself.
    Own(String),
    /// The mirror of a static Pod, which may be another one at any time.
    Mirror(watch::Receiver<Mirrors>),
}

impl Uid {
    /// The object's UID now; waits until there is one. An error means that the node agent ends.
    async fn current(&mut self, name: &Name) -> Result<String, watch::error::RecvError> {
        match self {
            Self::Own(uid) => Ok(uid.clone()),
            Self::Mirror(mirrors) => {
                let found = mirrors.wait_for(|state| state.in_api.contains_key(name)).await?;
                Ok(found.in_api.get(name).map(|mirror| mirror.uid.clone()).unwrap_or_default())
            }
        }
    }

    /// Waits until the name means another object; `false` when it never will.
    async fn changed(&mut self, name: &Name, before: &str) -> bool {
        match self {
            Self::Own(_) => false,
            Self::Mirror(mirrors) => {
                let is_other =
                    |state: &Mirrors| state.in_api.get(name).is_some_and(|mirror| mirror.uid != before);
                mirrors.wait_for(is_other).await.is_ok()
            }
        }
    }
}

/// How a patch ended.
enum Sent {
    Done(Value),
    /// The Pod is gone, or another one has its name.
    Gone,
    Failed(Error),
}

impl Publisher {
    /// Starts the task that sends the statuses of `pod`, those of a static Pod to its mirror.
    pub(crate) fn start(shared: &Shared, pod: &Pod) -> Self {
        let name = name_of(pod);
        let is_static = is_static(pod);
        let target = Target {
            api: Api::namespaced(shared.client.clone(), &name.0),
            name,
            uid: if is_static {
                Uid::Mirror(shared.mirrors.subscribe())
            } else {
                Uid::Own(pod.metadata.uid.clone().unwrap_or_default())
            },
            known: value_of(pod.status.as_ref()),
            faults: Arc::clone(&shared.faults),
        };
        let (wanted, requests) = watch::channel((0, PodStatus::default()));
        let (progress, done) = watch::channel(0);
        let shutdown = shared.shutdown.clone();
        shared.tasks.spawn(async move {
            shutdown.run_until_cancelled(send_all(target, requests, progress)).await;
        });
        Self { wanted, done, is_static }
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

    /// Waits until the API has the newest status, or the Pod is gone from it. Of a static Pod the API may know nothing.
    pub(crate) async fn flush(&mut self) {
        if self.is_static {
            return;
        }
        let number = self.wanted.borrow().0;
        // An error means that the task has ended: the Pod is gone.
        let _ = self.done.wait_for(|done| *done >= number).await;
    }
}

/// The status with the conditions of others as the API is known to have them: those are never written.
fn without_foreign(status: &PodStatus, known: &Value) -> PodStatus {
    let known: PodStatus = serde_json::from_value(known.clone()).unwrap_or_default();
    let mut status = status.clone();
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(is_own);
    let foreign = known.conditions.into_iter().flatten().filter(|condition| !is_own(condition));
    conditions.extend(foreign);
    status
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
    let mut sent_to = String::new();
    loop {
        tokio::select! {
            changed = requests.changed() => if changed.is_err() { return },
            // Another mirror knows nothing yet.
            true = target.uid.changed(&target.name, &sent_to), if !sent_to.is_empty() => {
                target.known = value_of(None);
            }
        }
        loop {
            let (number, status) = requests.borrow_and_update().clone();
            let Ok(uid) = target.uid.current(&target.name).await else { return };
            match send(&target, &uid, &status).await {
                Sent::Done(known) => {
                    sent_to = uid;
                    target.known = known;
                    wait = FIRST_WAIT;
                    target.faults.reached(CrashPoint::StatusWritten);
                    progress.send_replace(number);
                    break;
                }
                Sent::Gone => {
                    if !target.uid.changed(&target.name, &uid).await {
                        return;
                    }
                    target.known = value_of(None);
                }
                Sent::Failed(error) => {
                    tracing::warn!(pod = target.name.1, %error, ?wait, "status not taken by the API; it is sent again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                }
            }
        }
    }
}

async fn send(target: &Target, uid: &str, status: &PodStatus) -> Sent {
    let new = value_of(Some(&without_foreign(status, &target.known)));
    let Some(patch) = status_patch(uid, &target.known, &new) else { return Sent::Done(new) };
    let step = tracing::debug_span!(target: "path", "kubelet: status patch", pod = uid);
    let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
    match target.api.patch_status(&target.name.1, &params, &patch).instrument(step).await {
        Ok(pod) => Sent::Done(value_of(pod.status.as_ref())),
        Err(Error::Api(answer)) if answer.code == 404 => Sent::Gone,
        // The UID does not fit, or the API finds the status itself wrong: the object tells which.
        Err(Error::Api(answer)) if matches!(answer.code, 409 | 422) => {
            match target.api.get_opt(&target.name.1).await {
                Ok(Some(pod)) if pod.metadata.uid.as_deref() == Some(uid) => Sent::Failed(Error::Api(answer)),
                Ok(_) => Sent::Gone,
                Err(error) => Sent::Failed(error),
            }
        }
        Err(error) => Sent::Failed(error),
    }
}
