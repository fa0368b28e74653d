//! `CertificateSigningRequest`s: those of kubelets for their client certificates are approved where their makers may ask
//! for that, approved ones of Kubernetes' signers are signed with the cluster's authority, and old ones are removed.
//! Serving certificates and those of users are approved by people alone.

mod request;
mod sign;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use informer::Target;
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::seconds;
use crate::queue::Queue;
use crate::rest::{Collection, Forgive as _, RestError, only};
use crate::source::Source;

use request::{Request, Subject};

pub use sign::{Authority, AuthorityError};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// When it is asked again whether a request's maker may have it approved: roles change.
const ASK_AGAIN: Duration = Duration::from_mins(1);
/// The longest wait at a time: the clock may be set meanwhile.
const LONGEST: Duration = Duration::from_hours(1);

/// Runs the controller until `shutdown`. Without an authority nothing is signed.
pub(crate) async fn run(client: Client, authority: Option<Arc<Authority>>, shutdown: CancellationToken) {
    let requests = Source::new(&client, Target::all(REQUESTS));
    let mut controller = Controller { requests, authority, queue: Queue::default() };
    shutdown.run_until_cancelled(controller.work(&client)).await;
}

struct Controller {
    requests: Source<Request>,
    authority: Option<Arc<Authority>>,
    queue: Queue<String>,
}

impl Controller {
    async fn work(&mut self, client: &Client) {
        loop {
            tokio::select! {
                keys = self.requests.changed() => {
                    let now = Instant::now();
                    for key in keys {
                        self.queue.add(key, now);
                    }
                }
                () = self.queue.ready() => self.settle_due(client).await,
            }
        }
    }

    async fn settle_due(&mut self, client: &Client) {
        for key in self.queue.take(Instant::now()) {
            let Some(request) = self.requests.store().get(&key).cloned() else { continue };
            let settled = settle(client, &request, self.authority.as_deref()).await;
            if let Ok(wait) = &settled {
                self.queue.add(key.clone(), Instant::now() + (*wait).min(LONGEST));
            }
            self.queue.done(key, settled.map(drop));
        }
    }
}

/// Does what is next for a request; says when to look again.
async fn settle(
    client: &Client,
    request: &Request,
    authority: Option<&Authority>,
) -> Result<Duration, RestError> {
    let left = request.left(Timestamp::now());
    if left.is_zero() {
        let requests = Collection::new(client, REQUESTS);
        let options = only(&request.key.uid, kube::api::PropagationPolicy::Background);
        requests.delete(&request.key.name, &options).await.forgive(&[404, 409])?;
        return Ok(LONGEST);
    }
    if request.is_signed() || request.has("Denied") || request.has("Failed") {
        return Ok(left);
    }
    if !request.has("Approved") {
        return approve(client, request)
            .await
            .map(|is_done| if is_done { left } else { left.min(ASK_AGAIN) });
    }
    if let Some(authority) = authority {
        issue(client, request, authority).await?;
    }
    Ok(left)
}

/// Approves a kubelet's request for its client certificate, where its maker may have that; false when it may not (yet).
async fn approve(client: &Client, request: &Request) -> Result<bool, RestError> {
    let Ok(subject) = request.subject() else { return Ok(true) };
    if request.signer() != request::KUBELET_CLIENT
        || request::check_kubelet_client(request, &subject).is_err()
    {
        return Ok(true);
    }
    for (subresource, text) in recognised(request, &subject) {
        if may(client, request, subresource).await? {
            let condition = condition("Approved", "AutoApproved", text);
            return write(client, request, "approval", |object| add_condition(object, condition))
                .await
                .map(|()| true);
        }
    }
    Ok(false)
}

/// The rights that let a request be approved, the maker's own renewal first.
fn recognised(request: &Request, subject: &Subject) -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = "Auto approving self kubelet client certificate after SubjectAccessReview.";
    let first = "Auto approving kubelet client certificate after SubjectAccessReview.";
    let is_own = request.maker() == subject.common_name;
    is_own.then_some(("selfnodeclient", own)).into_iter().chain([("nodeclient", first)])
}

/// Whether the request's maker may make requests of that sort.
async fn may(client: &Client, request: &Request, subresource: &str) -> Result<bool, RestError> {
    let attributes = json!({"group": "certificates.k8s.io", "resource": "certificatesigningrequests",
        "verb": "create", "subresource": subresource, "version": "*"});
    let mut spec = request.identity();
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("resourceAttributes".to_owned(), attributes);
    }
    let review =
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
    let reviews = Collection::new(client, "/apis/authorization.k8s.io/v1/subjectaccessreviews");
    let answer = reviews.create(&review).await?;
    Ok(answer.pointer("/status/allowed").and_then(Value::as_bool).unwrap_or_default())
}

/// Signs an approved request of a signer that is ours, or says on it why not.
async fn issue(client: &Client, request: &Request, authority: &Authority) -> Result<(), RestError> {
    if !request::SIGNERS.contains(&request.signer()) {
        return Ok(());
    }
    let checked = request.subject().and_then(|subject| request::check(request, &subject));
    let signed = checked.and_then(|()| authority.sign(request, Timestamp::now()));
    match signed {
        Ok(certificate) => {
            let encoded = STANDARD.encode(certificate);
            write(client, request, "status", |object| set_certificate(object, encoded)).await
        }
        Err(why) => {
            let condition = condition("Failed", "SignerValidationFailure", &why);
            write(client, request, "status", |object| add_condition(object, condition)).await
        }
    }
}

fn condition(kind: &str, reason: &str, message: &str) -> Value {
    let now = seconds(Timestamp::now());
    json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastUpdateTime": now,
        "lastTransitionTime": now})
}

fn status_of(object: &mut Value) -> Option<&mut serde_json::Map<String, Value>> {
    let status = object.as_object_mut()?.entry("status").or_insert_with(|| json!({}));
    status.as_object_mut()
}

fn add_condition(object: &mut Value, condition: Value) {
    let Some(status) = status_of(object) else { return };
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.push(condition);
    }
}

fn set_certificate(object: &mut Value, encoded: String) {
    if let Some(status) = status_of(object) {
        status.insert("certificate".to_owned(), encoded.into());
    }
}

/// Writes a part of a request. One that changed meanwhile is looked at again, as its change is told.
async fn write(
    client: &Client,
    request: &Request,
    part: &str,
    change: impl FnOnce(&mut Value),
) -> Result<(), RestError> {
    let mut object = request.object.clone();
    change(&mut object);
    Collection::new(client, REQUESTS)
        .replace_part(part, &request.key.name, &object)
        .await
        .forgive(&[404, 409])
}
