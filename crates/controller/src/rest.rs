//! Requests on one collection of the API. Every error says what was tried and on what; no request waits for ever.

use std::time::Duration;

use kube::api::{DeleteParams, GetParams, ListParams, Patch, PostParams, Preconditions, PropagationPolicy};
use kube::core::{Request, Status};
use kube::{Client, Error};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::metadata::Object;

/// The name under which changes are recorded.
const MANAGER: &str = "kube-controller-manager";
/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(30);

type Built = Result<http::Request<Vec<u8>>, kube::core::request::Error>;

/// A request that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestError {
    #[error("{verb} {path}: {}", said(source))]
    Failed { verb: &'static str, path: String, source: Box<Error> },
    #[error("{verb} {path}: no answer after {PATIENCE:?}")]
    Silent { verb: &'static str, path: String },
}

/// What the server said, or what kept the question from it.
fn said(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

impl RestError {
    fn status(&self) -> Option<&Status> {
        match self {
            Self::Failed { source, .. } => match source.as_ref() {
                Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Silent { .. } => None,
        }
    }

    /// The HTTP status, when there was an answer.
    pub(crate) fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }

    /// Whether nothing new is taken because the namespace is being deleted.
    pub(crate) fn is_namespace_terminating(&self) -> bool {
        let details = self.status().and_then(|status| status.details.as_ref());
        details
            .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
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

#[derive(Deserialize)]
struct List {
    items: Vec<Object>,
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
        found(self.send("get", name, Request::new(&self.path).get(name, &GetParams::default())).await)
    }

    /// A subresource of an object, such as `scale`; `None` when it isn't there.
    pub(crate) async fn get_part<T: DeserializeOwned>(
        &self,
        part: &str,
        name: &str,
    ) -> Result<Option<T>, RestError> {
        let request = Request::new(&self.path).get_subresource(part, name);
        found(self.send("get", &format!("{name}/{part}"), request).await)
    }

    /// A document, such as `/api/v1`: `name` below the path, or the path itself when it is empty.
    pub(crate) async fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T, RestError> {
        let uri = if name.is_empty() { self.path.clone() } else { format!("{}/{name}", self.path) };
        let request = http::Request::get(uri).body(Vec::new());
        self.send("get", name, request.map_err(kube::core::request::Error::BuildRequest)).await
    }

    /// The metadata of an object; `None` when it isn't there.
    pub(crate) async fn get_metadata(&self, name: &str) -> Result<Option<Object>, RestError> {
        found(
            self.send("get", name, Request::new(&self.path).get_metadata(name, &GetParams::default())).await,
        )
    }

    /// The metadata of all objects.
    pub(crate) async fn list(&self) -> Result<Vec<Object>, RestError> {
        let request = Request::new(&self.path).list_metadata(&ListParams::default());
        Ok(self.send::<List>("list", "", request).await?.items)
    }

    /// Whole objects whose fields match a selector.
    pub(crate) async fn select<T: DeserializeOwned>(&self, fields: &str) -> Result<T, RestError> {
        let request = Request::new(&self.path).list(&ListParams::default().fields(fields));
        self.send("list", "", request).await
    }

    pub(crate) async fn create(&self, object: &Value) -> Result<Value, RestError> {
        let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        self.send("create", name, Request::new(&self.path).create(&post(), bytes(object))).await
    }

    pub(crate) async fn replace(&self, name: &str, object: &Value) -> Result<Value, RestError> {
        self.send("update", name, Request::new(&self.path).replace(name, &post(), bytes(object))).await
    }

    /// Replaces a subresource, such as `status`.
    pub(crate) async fn replace_part(
        &self,
        part: &str,
        name: &str,
        object: &Value,
    ) -> Result<Value, RestError> {
        let request = Request::new(&self.path).replace_subresource(part, name, &post(), bytes(object));
        self.send("update", &format!("{name}/{part}"), request).await
    }

    /// Changes fields by a JSON merge patch.
    pub(crate) async fn merge(&self, name: &str, patch: &Value) -> Result<Value, RestError> {
        let request = Request::new(&self.path).patch(name, &patch_params(), &Patch::Merge(patch));
        self.send("patch", name, request).await
    }

    /// Changes fields of a subresource by a strategic merge patch: list items are found by their key.
    pub(crate) async fn merge_part(&self, part: &str, name: &str, patch: &Value) -> Result<Value, RestError> {
        let patch = Patch::Strategic(patch);
        let request = Request::new(&self.path).patch_subresource(part, name, &patch_params(), &patch);
        self.send("patch", &format!("{name}/{part}"), request).await
    }

    pub(crate) async fn delete(&self, name: &str, options: &DeleteParams) -> Result<Value, RestError> {
        self.send("delete", name, Request::new(&self.path).delete(name, options)).await
    }

    /// Deletes all objects of the collection; the garbage collector cares for what they own.
    pub(crate) async fn delete_all(&self) -> Result<Value, RestError> {
        let options = DeleteParams::background();
        let request = Request::new(&self.path).delete_collection(&options, &ListParams::default());
        self.send("deletecollection", "", request).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        verb: &'static str,
        name: &str,
        request: Built,
    ) -> Result<T, RestError> {
        let path = || if name.is_empty() { self.path.clone() } else { format!("{}/{name}", self.path) };
        let sent = async { self.client.request(request.map_err(Error::BuildRequest)?).await };
        match tokio::time::timeout(PATIENCE, sent).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => Err(RestError::Failed { verb, path: path(), source: Box::new(source) }),
            Err(_) => Err(RestError::Silent { verb, path: path() }),
        }
    }
}

/// Options of a deletion that hits this very object, not a later one of the same name.
pub(crate) fn only(uid: &str, propagation: PropagationPolicy) -> DeleteParams {
    let preconditions = Preconditions { resource_version: None, uid: Some(uid.to_owned()) };
    DeleteParams {
        preconditions: Some(preconditions),
        propagation_policy: Some(propagation),
        ..DeleteParams::default()
    }
}

fn found<T>(answer: Result<T, RestError>) -> Result<Option<T>, RestError> {
    match answer {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.code() == Some(404) => Ok(None),
        Err(error) => Err(error),
    }
}

fn post() -> PostParams {
    PostParams { dry_run: false, field_manager: Some(MANAGER.to_owned()) }
}

fn patch_params() -> kube::api::PatchParams {
    kube::api::PatchParams { field_manager: Some(MANAGER.to_owned()), ..kube::api::PatchParams::default() }
}

fn bytes(object: &Value) -> Vec<u8> {
    object.to_string().into_bytes()
}
