//! Events about what the controllers did, for `kubectl describe`. They are news, not state: one that can't be written
//! is only logged.

use jiff::Timestamp;
use kube::Client;
use serde_json::json;

use crate::rest::Collection;

/// What an event is about, and which controller tells it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) component: &'a str,
    pub(crate) kind: &'a str,
    /// Empty for objects without one; their events are in `default`.
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) uid: &'a str,
}

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Normal,
    Warning,
}

/// Writes an event.
pub(crate) async fn post(client: &Client, subject: Subject<'_>, tone: Tone, reason: &str, message: &str) {
    let namespace = if subject.namespace.is_empty() { "default" } else { subject.namespace };
    let now = Timestamp::now();
    let at = seconds(now);
    let tone = match tone {
        Tone::Normal => "Normal",
        Tone::Warning => "Warning",
    };
    let event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": format!("{}.{:x}", subject.name, now.as_nanosecond()), "namespace": namespace},
        "involvedObject": {"apiVersion": "v1", "kind": subject.kind, "namespace": subject.namespace,
            "name": subject.name, "uid": subject.uid},
        "type": tone,
        "reason": reason,
        "message": message,
        "count": 1,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "source": {"component": subject.component},
        "reportingComponent": subject.component,
    });
    if let Err(error) = Collection::core(client, namespace, "events").create(&event).await {
        tracing::debug!(%error, reason, "an event could not be written");
    }
}

/// A time as API objects carry it, in whole seconds.
pub(crate) fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
