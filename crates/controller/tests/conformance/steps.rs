//! What cases do: requests with their answers, watches, and names.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use kube::api::WatchEvent;
use serde_json::{Value, json};

use crate::cluster::{Cluster, within};

/// A cluster with its controllers, and a namespace of a case's own.
pub(crate) struct World {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) namespace: String,
}

/// What the server answered.
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: Value,
}

impl Answer {
    /// The body, after a look at the code.
    #[track_caller]
    pub(crate) fn is(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.body);
        self.body
    }
}

/// The events of a watch.
pub(crate) type Asked = Pin<Box<dyn Stream<Item = kube::Result<WatchEvent<Value>>> + Send>>;

impl World {
    pub(crate) async fn new(cluster: Arc<Cluster>, number: usize) -> Self {
        let namespace = format!("case-{number}");
        cluster.create("/api/v1/namespaces", json!({"metadata": {"name": namespace}})).await;
        Self { cluster, namespace }
    }

    /// The path of a collection of the core group in the case's namespace.
    pub(crate) fn core(&self, plural: &str) -> String {
        format!("/api/v1/namespaces/{}/{plural}", self.namespace)
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: Value) -> Answer {
        self.send(method, path, ("application/json", "application/json"), &body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.ask("GET", path, Value::Null).await.is(200)
    }

    pub(crate) async fn make(&self, path: &str, object: Value) -> Value {
        self.ask("POST", path, object).await.is(201)
    }

    /// A merge patch.
    pub(crate) async fn merge(&self, path: &str, change: Value) -> Answer {
        self.send("PATCH", path, ("application/merge-patch+json", "application/json"), &change).await
    }

    /// Any request; the media types of its body and of the answer.
    pub(crate) async fn send(&self, method: &str, path: &str, media: (&str, &str), body: &Value) -> Answer {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = http::Request::builder().method(method).uri(path);
        let request = request.header("content-type", media.0).header("accept", media.1).body(body).unwrap();
        let response =
            within(path, self.cluster.admin.send(request.map(kube::client::Body::from))).await.unwrap();
        let code = response.status().as_u16();
        let bytes = response.into_body().collect_bytes().await.unwrap();
        Answer { code, body: serde_json::from_slice(&bytes).unwrap_or_default() }
    }

    pub(crate) async fn watch(&self, path: &str) -> Asked {
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        Box::pin(self.cluster.admin.request_events::<Value>(request).await.unwrap())
    }
}

/// The name of an object.
pub(crate) fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

/// A case's name as the value of a label, and as the beginning of a name.
pub(crate) fn label(case: &str) -> String {
    let plain: String = case
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_ascii_alphanumeric() => Some(c.to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    plain.chars().take(40).collect::<String>().trim_matches('-').to_owned()
}
