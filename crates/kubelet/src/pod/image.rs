//! Gets a container's image onto the node as its `imagePullPolicy` says, with back-off and events.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use cri::v1;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;
use tokio::sync::{Semaphore, watch};
use tonic::Code;

use super::backoff::{Backoff, Verdict};
use super::security::ImageUser;
use super::status::Waiting;
use crate::clock::Clock;
use crate::event::Kind;
use crate::object::Snapshot;
use crate::runtime::{Cri, CriError};

/// Images pulled at the same time.
const PARALLEL_PULLS: usize = 4;

/// An image on the node.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LocalImage {
    pub(crate) spec: v1::ImageSpec,
    pub(crate) user: ImageUser,
    /// Bytes.
    pub(crate) size: u64,
}

/// Why the image is not there; `until` is when it is worth trying again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageFailure {
    pub(crate) waiting: Waiting,
    pub(crate) until: Option<Timestamp>,
}

/// Pulls images for all Pods.
#[derive(Debug)]
pub(crate) struct Puller {
    cri: Cri,
    clock: Clock,
    slots: Semaphore,
    failures: Mutex<Failures>,
    pulls: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Failures {
    backoff: Backoff<PullKey>,
    last: HashMap<PullKey, (Timestamp, String)>,
}

/// Pods do not share their back-off: another may have the right credentials.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PullKey {
    pod: String,
    image: String,
}

/// Tells what happens to an image, as an event of the container.
pub(crate) type Tell<'a> = &'a (dyn Fn(Kind, &'static str, String) + Send + Sync);

/// What is pulled, and for whom.
#[derive(Clone, Copy)]
pub(crate) struct PullInput<'a> {
    pub(crate) pod_uid: &'a str,
    pub(crate) container: &'a Container,
    pub(crate) objects: &'a Snapshot,
    pub(crate) pull_secrets: &'a [String],
    pub(crate) sandbox: &'a v1::PodSandboxConfig,
    pub(crate) tell: Tell<'a>,
}

impl Puller {
    pub(crate) fn new(cri: Cri, clock: Clock) -> Self {
        Self {
            cri,
            clock,
            slots: Semaphore::new(PARALLEL_PULLS),
            failures: Mutex::default(),
            pulls: watch::channel(0).0,
        }
    }

    /// Changes with each image that was pulled.
    pub(crate) fn pulls(&self) -> watch::Receiver<u64> {
        self.pulls.subscribe()
    }

    /// Makes sure that the image is on the node.
    pub(crate) async fn ensure(&self, input: PullInput<'_>) -> Result<LocalImage, ImageFailure> {
        let image = input.container.image.clone().unwrap_or_default();
        let spec =
            v1::ImageSpec { image: image.clone(), user_specified_image: image.clone(), ..Default::default() };
        let policy = input.container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        let present = self.look_up(&spec).await.map_err(|error| {
            let (reason, tried) = match error.code {
                Code::InvalidArgument => ("InvalidImageName", "apply default image tag"),
                _ => ("ImageInspectError", "inspect image"),
            };
            let text = format!("Failed to {tried} {image:?}: {error}");
            (input.tell)(Kind::Warning, "InspectFailed", text.clone());
            failure(reason, text, None)
        })?;
        match present {
            Some(found) if policy != "Always" => {
                let text = format!("Container image {image:?} already present on machine");
                (input.tell)(Kind::Normal, "Pulled", text);
                Ok(found)
            }
            None if policy == "Never" => {
                let text = format!("Container image {image:?} is not present with pull policy of Never");
                (input.tell)(Kind::Warning, "ErrImageNeverPull", text.clone());
                Err(failure("ErrImageNeverPull", text, None))
            }
            _ => self.pull(input, spec).await,
        }
    }

    /// The container's image, if it is on the node.
    pub(crate) async fn find(&self, container: &Container) -> Result<Option<LocalImage>, CriError> {
        let image = container.image.clone().unwrap_or_default();
        self.look_up(&v1::ImageSpec { image, ..Default::default() }).await
    }

    async fn look_up(&self, spec: &v1::ImageSpec) -> Result<Option<LocalImage>, CriError> {
        let request = v1::ImageStatusRequest { image: Some(spec.clone()), verbose: false };
        let found = match self.cri.image_status(request).await {
            Ok(answer) => answer.image,
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        Ok(found.map(|image| LocalImage {
            size: image.size,
            spec: v1::ImageSpec { image: image.id, ..spec.clone() },
            user: ImageUser { uid: image.uid.map(|uid| uid.value), name: image.username },
        }))
    }

    async fn pull(&self, input: PullInput<'_>, spec: v1::ImageSpec) -> Result<LocalImage, ImageFailure> {
        let image = spec.user_specified_image.clone();
        let key = PullKey { pod: input.pod_uid.to_owned(), image: image.clone() };
        if let Some(waits) = self.backs_off(&key) {
            (input.tell)(Kind::Normal, "BackOff", format!("Back-off pulling image {image:?}"));
            return Err(waits);
        }
        let asked = self.clock.now();
        let slot = self.slots.acquire().await;
        let begun = self.clock.now();
        (input.tell)(Kind::Normal, "Pulling", format!("Pulling image {image:?}"));
        let result = self.pull_with_credentials(input, &spec).await;
        drop(slot);
        let result = match result {
            Ok(_) => self.look_up(&spec).await.and_then(|found| {
                found.ok_or_else(|| CriError {
                    code: Code::NotFound,
                    message: "the image was pulled, but the runtime does not list it".to_owned(),
                })
            }),
            Err(error) => Err(error),
        };
        match result {
            Ok(found) => {
                self.forget(&key);
                self.pulls.send_modify(|pulls| *pulls += 1);
                let now = self.clock.now();
                let (own, all) = (now.duration_since(begun), now.duration_since(asked));
                let (own, all) = (seconds(own), seconds(all));
                let size = found.size;
                let text = format!(
                    "Successfully pulled image {image:?} in {own} ({all} including waiting). Image size: {size} bytes."
                );
                (input.tell)(Kind::Normal, "Pulled", text);
                Ok(found)
            }
            Err(error) => {
                let text = format!("Failed to pull image {image:?}: {error}");
                (input.tell)(Kind::Warning, "Failed", text);
                Err(self.note_failure(key, &error))
            }
        }
    }

    /// Tries each matching credential, or none; the last refusal counts.
    async fn pull_with_credentials(
        &self,
        input: PullInput<'_>,
        spec: &v1::ImageSpec,
    ) -> Result<String, CriError> {
        let found = super::credential::credentials(input.objects, input.pull_secrets, &spec.image);
        let mut auths: Vec<Option<v1::AuthConfig>> = found.into_iter().map(Some).collect();
        if auths.is_empty() {
            auths.push(None);
        }
        let mut result = Err(CriError { code: Code::Unknown, message: String::new() });
        for auth in auths {
            let request = v1::PullImageRequest {
                image: Some(spec.clone()),
                auth,
                sandbox_config: Some(input.sandbox.clone()),
            };
            result = self.cri.pull_image(request).await;
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn backs_off(&self, key: &PullKey) -> Option<ImageFailure> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let (failed_at, message) = failures.last.get(key)?;
        match failures.backoff.check(key, *failed_at, self.clock.now()) {
            Verdict::Go => None,
            Verdict::Wait { until, .. } => {
                let text = format!("Back-off pulling image {:?}: {message}", key.image);
                Some(failure("ImagePullBackOff", text, Some(until)))
            }
        }
    }

    fn note_failure(&self, key: PullKey, error: &CriError) -> ImageFailure {
        let now = self.clock.now();
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.backoff.lengthen(&key, now, now);
        let until = match failures.backoff.check(&key, now, now) {
            Verdict::Wait { until, .. } => Some(until),
            Verdict::Go => None,
        };
        let reason = match error.code {
            Code::InvalidArgument => "InvalidImageName",
            Code::Unavailable => "RegistryUnavailable",
            _ => "ErrImagePull",
        };
        failures.last.insert(key, (now, format!("{reason}: {}", error.message)));
        failure(reason, error.message.clone(), until)
    }

    fn forget(&self, key: &PullKey) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.backoff.forget(key);
        failures.last.remove(key);
    }

    /// Forgets the failures of a Pod that is gone.
    pub(crate) fn forget_pod(&self, uid: &str) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let keys: Vec<_> = failures.last.keys().filter(|key| key.pod == uid).cloned().collect();
        for key in keys {
            failures.backoff.forget(&key);
            failures.last.remove(&key);
        }
    }
}

fn failure(reason: &str, message: String, until: Option<Timestamp>) -> ImageFailure {
    ImageFailure { waiting: Waiting { reason: reason.to_owned(), message }, until }
}

fn seconds(duration: SignedDuration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds < 1000 {
        format!("{milliseconds}ms")
    } else {
        format!("{}.{:03}s", milliseconds / 1000, milliseconds % 1000)
    }
}
