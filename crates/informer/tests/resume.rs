//! A watch against a scripted server: initial objects, a resumed connection, a revision that is too old, and a server
//! that cannot stream lists.
#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use informer::{Meta, Object, Target, Update};
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(from = "Value")]
struct Thing(Meta);

impl From<Value> for Thing {
    fn from(value: Value) -> Self {
        Self(Meta::of(&value))
    }
}

impl Object for Thing {
    fn meta(&self) -> &Meta {
        &self.0
    }
}

fn object(name: &str, revision: u64) -> Value {
    json!({"metadata": {"name": name, "resourceVersion": revision.to_string()}})
}

fn event(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn end_of_initial(revision: u64) -> String {
    let metadata = json!({"resourceVersion": revision.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}});
    event("BOOKMARK", &json!({"kind": "Pod", "apiVersion": "v1", "metadata": metadata}))
}

type Script = Vec<(u16, String)>;

/// Runs a watch against answers given in turn; returns the first `count` updates and the queries that were asked.
async fn run(script: Script, count: usize) -> (Vec<Update<Thing>>, Vec<String>) {
    let queries = Arc::new(Mutex::new(Vec::new()));
    let answers = Arc::new(Mutex::new(script.into_iter()));
    let asked = Arc::clone(&queries);
    let service = tower::service_fn(move |request: Request<Body>| {
        asked.lock().unwrap().push(request.uri().query().unwrap_or_default().to_owned());
        let answer = answers.lock().unwrap().next();
        async move {
            let Some((code, body)) = answer else { return std::future::pending().await };
            let body = Body::from(body.into_bytes());
            Ok::<_, std::convert::Infallible>(Response::builder().status(code).body(body).unwrap())
        }
    });
    let client = Client::new(service, "default");
    let (out, mut updates) = mpsc::channel(8);
    let shutdown = CancellationToken::new();
    let watch =
        tokio::spawn(informer::watch::<Thing>(client, Target::all("/api/v1/pods"), out, shutdown.clone()));
    let mut seen = Vec::new();
    while seen.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(10), updates.recv()).await;
        seen.push(next.unwrap().unwrap());
    }
    shutdown.cancel();
    watch.await.unwrap();
    let queries = queries.lock().unwrap().clone();
    (seen, queries)
}

fn thing(name: &str, revision: u64) -> Thing {
    object(name, revision).into()
}

#[tokio::test]
async fn initial_objects_come_at_once_and_a_closed_watch_goes_on() {
    let first = event("ADDED", &object("a", 1)) + &event("ADDED", &object("b", 2)) + &end_of_initial(3);
    let second = event("MODIFIED", &object("a", 4)) + &event("DELETED", &object("b", 5));
    let (seen, queries) = run(vec![(200, first), (200, second)], 3).await;
    assert_eq!(
        seen,
        [
            Update::Snapshot(vec![thing("a", 1), thing("b", 2)]),
            Update::Applied(thing("a", 4)),
            Update::Deleted(thing("b", 5)),
        ]
    );
    assert!(
        queries[0].contains("sendInitialEvents=true")
            && queries[0].contains("resourceVersionMatch=NotOlderThan")
    );
    assert!(queries[1].contains("resourceVersion=3") && !queries[1].contains("sendInitialEvents"));
}

#[tokio::test]
async fn a_revision_that_is_too_old_starts_over() {
    let gone = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "too old", "reason": "Expired", "code": 410});
    let (seen, queries) = run(
        vec![
            (200, event("ADDED", &object("a", 1)) + &end_of_initial(3)),
            (200, event("ERROR", &gone)),
            (200, event("ADDED", &object("b", 8)) + &end_of_initial(9)),
        ],
        2,
    )
    .await;
    assert_eq!(seen, [Update::Snapshot(vec![thing("a", 1)]), Update::Snapshot(vec![thing("b", 8)])]);
    assert!(queries[2].contains("sendInitialEvents=true"));
}

#[tokio::test]
async fn a_server_that_cannot_stream_lists_is_listed() {
    let refusal = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "no", "reason": "Invalid", "code": 422});
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": [object("a", 1)]});
    let (seen, queries) = run(
        vec![(422, refusal.to_string()), (200, list.to_string()), (200, event("MODIFIED", &object("a", 8)))],
        2,
    )
    .await;
    assert_eq!(seen, [Update::Snapshot(vec![thing("a", 1)]), Update::Applied(thing("a", 8))]);
    assert!(queries[2].contains("resourceVersion=7"));
}
