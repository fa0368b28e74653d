//! A server in the test's process, asked without a socket as any identity.

use apiserver::{ApiServer, ApiServerConfig, ApiService, Identity};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// A running server and a client of it.
pub(crate) struct World {
    pub(crate) server: ApiServer,
    pub(crate) directory: tempfile::TempDir,
    pub(crate) admin: Client,
}

/// Somebody who asks.
#[derive(Clone)]
pub(crate) struct Client(ApiService);

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut ApiServerConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = super::config(directory.path().to_owned());
        change(&mut config);
        let server = apiserver::start(config, CancellationToken::new()).await.unwrap();
        let admin = Client(server.service_for(Identity::admin()));
        Self { server, directory, admin }
    }

    pub(crate) fn client(&self, identity: Identity) -> Client {
        Client(self.server.service_for(identity))
    }

    pub(crate) fn user(&self, name: &str) -> Client {
        self.client(Identity::new(name, &[]))
    }
}

impl Client {
    pub(crate) async fn send(
        &self,
        method: Method,
        uri: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Bytes> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let (parts, body) = self.0.clone().oneshot(request).await.unwrap().into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    }

    /// Sends JSON and reads JSON.
    pub(crate) async fn ask(&self, method: Method, uri: &str, body: Value) -> (StatusCode, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = self.send(method, uri, &[], body).await;
        (response.status(), serde_json::from_slice(response.body()).unwrap_or_default())
    }

    pub(crate) async fn get(&self, uri: &str) -> (StatusCode, Value) {
        self.ask(Method::GET, uri, Value::Null).await
    }

    /// Makes an object, which must succeed.
    pub(crate) async fn make(&self, uri: &str, object: Value) -> Value {
        let (code, made) = self.ask(Method::POST, uri, object).await;
        assert_eq!(code, StatusCode::CREATED, "{made}");
        made
    }

    pub(crate) async fn patch(&self, uri: &str, kind: &str, body: &Value) -> (StatusCode, Value) {
        let media = format!("application/{kind}");
        let response =
            self.send(Method::PATCH, uri, &[("content-type", media.as_str())], body.to_string()).await;
        (response.status(), serde_json::from_slice(response.body()).unwrap_or_default())
    }
}

/// The lines of a watch, as they come.
pub(crate) struct Lines {
    body: apiserver::ResponseBody,
    rest: Vec<u8>,
}

impl Lines {
    /// The next event; `None` at the watch's end.
    pub(crate) async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.rest.extend_from_slice(&frame.into_data().unwrap());
        }
    }
}

impl Client {
    /// Opens a watch.
    pub(crate) async fn watch(&self, uri: &str) -> Lines {
        let request = Request::builder().uri(uri).body(Full::new(Bytes::new())).unwrap();
        let response = self.0.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{uri}");
        Lines { body: response.into_body(), rest: Vec::new() }
    }
}
