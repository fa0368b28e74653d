//! What the scheduler writes: bindings, events and the condition `PodScheduled`.

use http::{Method, Request};
use jiff::Timestamp;
use kube::{Client, Error};
use serde_json::{Value, json};

use crate::model::{Pod, SCHEDULER_NAME};

async fn send(
    client: &Client,
    method: Method,
    path: &str,
    content_type: &str,
    body: &Value,
) -> Result<(), Error> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type)
        .body(body.to_string().into_bytes())
        .map_err(Error::HttpError)?;
    client.request::<Value>(request).await.map(|_| ())
}

fn pod_path(pod: &Pod, subresource: &str) -> String {
    format!("/api/v1/namespaces/{}/pods/{}/{subresource}", pod.meta.namespace, pod.meta.name)
}

/// Assigns the Pod, if it still is the same one, to a node.
pub(crate) async fn bind(client: &Client, pod: &Pod, node: &str) -> Result<(), Error> {
    let binding = json!({"apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": pod.meta.name, "namespace": pod.meta.namespace, "uid": pod.meta.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node}});
    send(client, Method::POST, &pod_path(pod, "binding"), "application/json", &binding).await
}

/// The event that a Pod has a node.
pub(crate) fn scheduled(pod: &Pod, note: &str) -> Value {
    new_event(pod, "Normal", ("Scheduled", "Binding"), note)
}

/// The event that a Pod got no node.
pub(crate) fn failed(pod: &Pod, note: &str) -> Value {
    new_event(pod, "Warning", ("FailedScheduling", "Scheduling"), note)
}

/// Most characters that the note of an event may have.
const NOTE_MAX: usize = 1024;

fn new_event(pod: &Pod, kind: &str, (reason, action): (&str, &str), note: &str) -> Value {
    let now = Timestamp::now();
    let end =
        (0..=note.len().min(NOTE_MAX)).rev().find(|end| note.is_char_boundary(*end)).unwrap_or_default();
    json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": {"name": event_name(&pod.meta.name, now), "namespace": pod.meta.namespace},
        "eventTime": api::time::format_micros(now),
        "reportingController": SCHEDULER_NAME,
        "reportingInstance": SCHEDULER_NAME,
        "action": action,
        "reason": reason,
        "regarding": {"kind": "Pod", "namespace": pod.meta.namespace, "name": pod.meta.name, "uid": pod.meta.uid,
            "apiVersion": "v1", "resourceVersion": pod.meta.revision},
        "note": note.get(..end).unwrap_or_default(),
        "type": kind})
}

/// The Pod's name and the time: unique, and never longer than a name may be.
fn event_name(pod: &str, now: Timestamp) -> String {
    const POD_NAME_MAX: usize = 220;
    format!("{}.{:x}", pod.get(..pod.len().min(POD_NAME_MAX)).unwrap_or(pod), now.as_nanosecond())
}

/// Writes an event.
pub(crate) async fn event(client: &Client, pod: &Pod, event: &Value) -> Result<(), Error> {
    let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", pod.meta.namespace);
    send(client, Method::POST, &path, "application/json", event).await
}

/// Writes the condition `PodScheduled` with status `False`.
pub(crate) async fn condition(client: &Client, pod: &Pod, message: &str) -> Result<(), Error> {
    let condition = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
        "lastTransitionTime": api::time::format_seconds(Timestamp::now())});
    let patch = json!({"metadata": {"uid": pod.meta.uid}, "status": {"conditions": [condition]}});
    send(client, Method::PATCH, &pod_path(pod, "status"), "application/strategic-merge-patch+json", &patch)
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_names_its_pod_and_is_never_too_long() {
        let pod = Pod::from(json!({"metadata": {"name": "p", "namespace": "d", "uid": "u"}}));
        let event = scheduled(&pod, "Successfully assigned d/p to n");
        assert_eq!(
            (&event["reason"], &event["action"], &event["type"]),
            (&json!("Scheduled"), &json!("Binding"), &json!("Normal"))
        );
        assert_eq!(event["regarding"]["uid"], "u");
        let long = failed(&pod, &"é".repeat(2000));
        assert!(long["note"].as_str().unwrap().len() <= 1024);
        let kind = api::kind::find("events.k8s.io", "v1", "events").unwrap();
        let ctx = api::kind::Ctx { now: Timestamp::UNIX_EPOCH, gates: api::feature::Gates::default() };
        let errors = (kind.validate)(&event, &ctx);
        assert!(errors.is_empty(), "{errors}");
    }
}
