//! Events: what happened to a Pod or the node, for `kubectl describe`. The same event again raises its count.
//!
//! Sending never holds anything up: events queue in order, and are dropped (and counted in a log line) when the API
//! is away for so long that the queue is full.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Error};
use serde_json::json;
use tokio::sync::mpsc;

use crate::clock::{Clock, api_time};

/// An event's reason: one word in CamelCase.
type Reason = Cow<'static, str>;

/// Events that may wait to be sent.
const QUEUE: usize = 1024;
/// Remembered events; the oldest half is forgotten beyond.
const REMEMBERED: usize = 4096;
/// Seconds in which the same event counts up instead of being a new one.
const SAME_WITHIN: i64 = 600;
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

#[derive(Debug)]
struct Report {
    regarding: ObjectReference,
    kind: Kind,
    reason: Reason,
    message: String,
    at: Timestamp,
}

/// Takes events from anywhere in the node agent.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<Report>,
    node: Arc<str>,
    clock: Clock,
}

impl Recorder {
    /// A recorder, and the task that sends what it takes.
    pub(crate) fn new(client: Client, node: &str, clock: Clock) -> (Self, impl Future<Output = ()> + use<>) {
        let (queue, reports) = mpsc::channel(QUEUE);
        let node: Arc<str> = node.into();
        let sender = Sender { client, node: Arc::clone(&node), sent: HashMap::new() };
        (Self { queue, node, clock }, sender.run(reports))
    }

    /// Reports about a Pod.
    pub(crate) fn pod(&self, pod: &Pod, kind: Kind, reason: impl Into<Reason>, message: impl Into<String>) {
        self.report(pod_reference(pod, None), kind, reason.into(), message.into());
    }

    /// Reports about a container of a Pod; `field` is its path in the spec, e.g. `spec.containers{name}`.
    pub(crate) fn container(
        &self,
        pod: &Pod,
        field: String,
        kind: Kind,
        reason: impl Into<Reason>,
        message: String,
    ) {
        self.report(pod_reference(pod, Some(field)), kind, reason.into(), message);
    }

    /// Reports about the node.
    pub(crate) fn node(&self, kind: Kind, reason: impl Into<Reason>, message: impl Into<String>) {
        let name = Some(self.node.to_string());
        let regarding = ObjectReference {
            kind: Some("Node".into()),
            uid: name.clone(),
            name,
            ..ObjectReference::default()
        };
        self.report(regarding, kind, reason.into(), message.into());
    }

    fn report(&self, regarding: ObjectReference, kind: Kind, reason: Reason, message: String) {
        let at = self.clock.now();
        tracing::info!(kind = regarding.kind, name = regarding.name, %reason, message, "event");
        if let Err(error) = self.queue.try_send(Report { regarding, kind, reason, message, at }) {
            let reason = error.into_inner().reason;
            tracing::warn!(%reason, "event dropped: the API has not taken events for a while");
        }
    }
}

fn pod_reference(pod: &Pod, field_path: Option<String>) -> ObjectReference {
    let meta = &pod.metadata;
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path,
    }
}

/// Whether a request failed because nobody answers, and not because of what it asks.
fn is_away(error: &Error) -> bool {
    !matches!(error, Error::Api(_) | Error::SerdeError(_) | Error::BuildRequest(_))
}

/// What makes two events the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    namespace: String,
    uid: String,
    name: String,
    field_path: Option<String>,
    kind: Kind,
    reason: Reason,
    message: String,
}

#[derive(Clone, Debug)]
struct Sent {
    name: String,
    count: i32,
    last: Timestamp,
}

struct Sender {
    client: Client,
    node: Arc<str>,
    sent: HashMap<Identity, Sent>,
}

impl Sender {
    /// Sends until every recorder is gone.
    async fn run(mut self, mut reports: mpsc::Receiver<Report>) {
        while let Some(report) = reports.recv().await {
            let mut wait = FIRST_WAIT;
            loop {
                match self.send(&report).await {
                    // What happens while the API is away is told when it is back; the queue says how much of it.
                    Err(error) if is_away(&error) => {
                        tracing::debug!(%error, ?wait, "event not sent; it is sent again");
                        tokio::time::sleep(wait).await;
                        wait = (wait * 2).min(LONGEST_WAIT);
                    }
                    Err(error) => {
                        tracing::debug!(%error, reason = %report.reason, "event not sent");
                        break;
                    }
                    Ok(()) => break,
                }
            }
        }
    }

    async fn send(&mut self, report: &Report) -> Result<(), Error> {
        let identity = identity(report);
        let api: Api<Event> = Api::namespaced(self.client.clone(), &identity.namespace);
        let recent = |sent: &&Sent| report.at.as_second() - sent.last.as_second() < SAME_WITHIN;
        if let Some(before) = self.sent.get(&identity).filter(recent).cloned() {
            let count = before.count.saturating_add(1);
            let patch =
                json!({"count": count, "lastTimestamp": api_time(report.at), "message": report.message});
            match api.patch(&before.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {
                    self.sent.insert(identity, Sent { count, last: report.at, ..before });
                    return Ok(());
                }
                Err(Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let event = new_event(report, &identity.namespace, &self.node);
        let name = event.metadata.name.clone().unwrap_or_default();
        api.create(&PostParams::default(), &event).await?;
        self.remember(identity, Sent { name, count: 1, last: report.at });
        Ok(())
    }

    fn remember(&mut self, identity: Identity, sent: Sent) {
        if self.sent.len() >= REMEMBERED {
            let mut times: Vec<_> = self.sent.values().map(|sent| sent.last).collect();
            times.sort_unstable();
            let middle = times.get(times.len() / 2).copied().unwrap_or(Timestamp::MIN);
            self.sent.retain(|_, sent| sent.last >= middle);
        }
        self.sent.insert(identity, sent);
    }
}

fn identity(report: &Report) -> Identity {
    let regarding = &report.regarding;
    Identity {
        // Events about cluster objects live in `default`.
        namespace: regarding.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        uid: regarding.uid.clone().unwrap_or_default(),
        name: regarding.name.clone().unwrap_or_default(),
        field_path: regarding.field_path.clone(),
        kind: report.kind,
        reason: report.reason.clone(),
        message: report.message.clone(),
    }
}

/// A new event; its name is the object's and the time in nanoseconds, as upstream makes it.
fn new_event(report: &Report, namespace: &str, node: &str) -> Event {
    let object = report.regarding.name.clone().unwrap_or_default();
    let name = format!("{object}.{:x}{:04x}", report.at.as_nanosecond(), rand::random::<u16>());
    let time = Some(api_time(report.at));
    Event {
        metadata: kube::core::ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.to_owned()),
            ..kube::core::ObjectMeta::default()
        },
        involved_object: report.regarding.clone(),
        reason: Some(report.reason.to_string()),
        message: Some(report.message.clone()),
        type_: Some(report.kind.as_str().to_owned()),
        count: Some(1),
        first_timestamp: time.clone(),
        last_timestamp: time,
        source: Some(EventSource { component: Some("kubelet".into()), host: Some(node.to_owned()) }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}
