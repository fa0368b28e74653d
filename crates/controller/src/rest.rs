//! Requests on one collection of the API. Every error says what was tried and on what.

use kube::api::{GetParams, PostParams};
use kube::core::Request;
use kube::{Client, Error};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The name under which changes are recorded.
const MANAGER: &str = "kube-controller-manager";

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {path}: {source}")]
pub(crate) struct RestError {
    verb: &'static str,
    path: String,
    source: Error,
}

impl RestError {
    /// The HTTP status, when there was an answer.
    pub(crate) fn code(&self) -> Option<u16> {
        match &self.source {
            Error::Api(status) => Some(status.code),
            _ => None,
        }
    }
}

/// Takes an error of a given HTTP status as done.
pub(crate) trait Forgive {
    /// Success also when the answer had one of these codes.
    fn forgive(self, codes: &[u16]) -> Result<(), RestError>;
}

impl<T> Forgive for Result<T, RestError> {
    fn forgive(self, codes: &[u16]) -> Result<(), RestError> {
        match self {
            Err(error) if error.code().is_none_or(|code| !codes.contains(&code)) => Err(error),
            _ => Ok(()),
        }
    }
}

/// One collection, such as `/api/v1/namespaces/default/pods`.
#[derive(Clone)]
pub(crate) struct Collection<'a> {
    client: &'a Client,
    path: String,
}

impl<'a> Collection<'a> {
    pub(crate) fn new(client: &'a Client, path: impl Into<String>) -> Self {
        Self { client, path: path.into() }
    }

    /// A collection of the core group in a namespace.
    pub(crate) fn core(client: &'a Client, namespace: &str, plural: &str) -> Self {
        Self::new(client, format!("/api/v1/namespaces/{namespace}/{plural}"))
    }

    /// An object; `None` when it isn't there.
    pub(crate) async fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, RestError> {
        let request = Request::new(&self.path).get(name, &GetParams::default());
        match self.send("get", name, request).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn create(&self, object: &Value) -> Result<Value, RestError> {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        self.send("create", name, Request::new(&self.path).create(&post(), bytes(object))).await
    }

    pub(crate) async fn replace(&self, name: &str, object: &Value) -> Result<Value, RestError> {
        self.send("update", name, Request::new(&self.path).replace(name, &post(), bytes(object))).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        name: &str,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, RestError> {
        let sent = async { self.client.request(request.map_err(Error::BuildRequest)?).await };
        sent.await.map_err(|source| {
            let path = if name.is_empty() { self.path.clone() } else { format!("{}/{name}", self.path) };
            RestError { verb, path, source }
        })
    }
}

fn post() -> PostParams {
    PostParams { dry_run: false, field_manager: Some(MANAGER.to_owned()) }
}

fn bytes(object: &Value) -> Vec<u8> {
    object.to_string().into_bytes()
}
