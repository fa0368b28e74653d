//! The scheduler against a scripted API server: it binds what fits, says why the rest does not, and tries again when a
//! node comes.
use std::convert::Infallible;
use std::time::Duration;

use futures::StreamExt as _;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

type Answer = UnsyncBoxBody<bytes::Bytes, Infallible>;
type Frame = Result<http_body::Frame<bytes::Bytes>, Infallible>;

/// A watch answer: the initial events, then whatever is sent later.
fn stream(initial: String, later: broadcast::Receiver<String>) -> Answer {
    let later = futures::stream::unfold(later, |mut later| async move {
        let text = later.recv().await.ok()?;
        Some((text, later))
    });
    let frames = futures::stream::iter([initial]).chain(later);
    StreamBody::new(frames.map(|text| -> Frame { Ok(http_body::Frame::data(text.into())) })).boxed_unsync()
}

fn event(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn initial(objects: &[Value]) -> String {
    let end = json!({"kind": "X", "apiVersion": "v1", "metadata": {"resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"}}});
    objects.iter().map(|o| event("ADDED", o)).collect::<String>() + &event("BOOKMARK", &end)
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1"},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"resources": {"requests": {"cpu": cpu}}}]},
        "status": {"phase": "Pending"}})
}

fn node(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "resourceVersion": "2"}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
        "allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}})
}

#[tokio::test]
async fn pods_are_bound_and_those_that_do_not_fit_wait_for_a_node() {
    let (writes, mut written) = mpsc::unbounded_channel::<(String, Value)>();
    let (nodes, _) = broadcast::channel(8);
    let (pods, _) = broadcast::channel(8);
    let (namespaces, _) = broadcast::channel(8);
    let namespaces_of_server = namespaces.clone();
    let (pods_of_server, nodes_of_server) = (pods.clone(), nodes.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        let (writes, pods, nodes) = (writes.clone(), pods_of_server.clone(), nodes_of_server.clone());
        let namespaces = namespaces_of_server.clone();
        async move {
            let path = request.uri().path().to_owned();
            let body = if request.method() == Method::GET {
                match path.as_str() {
                    "/api/v1/pods" => {
                        stream(initial(&[pod("big", "3"), pod("small", "1")]), pods.subscribe())
                    }
                    "/api/v1/namespaces" => {
                        let default = json!({"metadata": {"name": "default", "resourceVersion": "1"}});
                        stream(initial(&[default]), namespaces.subscribe())
                    }
                    _ => stream(initial(&[node("one", "2")]), nodes.subscribe()),
                }
            } else {
                let bytes = request.into_body().collect().await.unwrap().to_bytes();
                writes.send((path, serde_json::from_slice(&bytes).unwrap())).unwrap();
                Full::from("{}").boxed_unsync()
            };
            Ok::<_, Infallible>(Response::new(body))
        }
    });
    let shutdown = CancellationToken::new();
    let scheduler = tokio::spawn(scheduler::run(
        Client::new(service, "default"),
        scheduler::Fencing::Some,
        shutdown.clone(),
    ));
    let mut seen: Vec<(String, Value)> = Vec::new();
    let mut wait_for = async |count: usize| {
        while seen.len() < count {
            seen.push(tokio::time::timeout(Duration::from_secs(10), written.recv()).await.unwrap().unwrap());
        }
        seen.clone()
    };

    let first = wait_for(4).await;
    let find = |all: &[(String, Value)], path: &str| {
        all.iter().filter(|(p, _)| p == path).map(|(_, v)| v.clone()).collect::<Vec<_>>()
    };
    let bound = find(&first, "/api/v1/namespaces/default/pods/small/binding");
    assert_eq!((&bound[0]["target"]["name"], &bound[0]["metadata"]["uid"]), (&json!("one"), &json!("small")));
    let condition = find(&first, "/api/v1/namespaces/default/pods/big/status");
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    assert_eq!(condition[0]["status"]["conditions"][0]["message"], message);
    let told: Vec<Value> = find(&first, "/apis/events.k8s.io/v1/namespaces/default/events")
        .iter()
        .map(|e| e["note"].clone())
        .collect();
    assert!(
        told.contains(&json!(message)) && told.contains(&json!("Successfully assigned default/small to one"))
    );

    nodes.send(event("ADDED", &node("two", "4"))).unwrap();
    let all = wait_for(6).await;
    assert_eq!(find(&all, "/api/v1/namespaces/default/pods/big/binding")[0]["target"]["name"], "two");
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(10), scheduler).await.unwrap().unwrap();
}
