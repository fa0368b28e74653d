//! Every resource × every verb × every form of body and answer, from the table of kinds. A kind that is added there is
//! tested here as soon as `sample` has an object of it.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test ends at its first surprise"
)]
#![allow(
    clippy::too_many_lines,
    clippy::match_same_arms,
    clippy::similar_names,
    reason = "the samples are one table with an arm for each kind"
)]

mod common;
#[path = "matrix/protobuf.rs"]
mod protobuf;
#[path = "matrix/sample.rs"]
mod sample;

use std::sync::Arc;

use api::kind::{Kind, kinds};
use apiserver::{ApiServer, ApiService, Identity};
use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";
/// The three patches and a document of each that adds the label `x`.
const PATCHES: &[(&str, &str)] = &[
    (MERGE, r#"{"metadata": {"labels": {"x": "merge"}}}"#),
    ("application/strategic-merge-patch+json", r#"{"metadata": {"labels": {"x": "strategic"}}}"#),
    ("application/json-patch+json", r#"[{"op": "add", "path": "/metadata/labels/x", "value": "json"}]"#),
];

struct Client {
    service: ApiService,
    _server: ApiServer,
    _directory: tempfile::TempDir,
}

struct Answer {
    code: StatusCode,
    body: Value,
}

impl Client {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = common::config(directory.path().to_owned());
        let server = apiserver::start(config, CancellationToken::new()).await.unwrap();
        let client =
            Self { service: server.service_for(Identity::admin()), _server: server, _directory: directory };
        let account = json!({"metadata": {"name": "default"}});
        let path = "/api/v1/namespaces/default/serviceaccounts";
        client.send(Method::POST, path, (JSON, JSON), account.to_string()).await.is(StatusCode::CREATED);
        client
    }

    async fn send(&self, method: Method, path: &str, media: (&str, &str), body: impl Into<Bytes>) -> Answer {
        let context = format!("{method} {path}");
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(CONTENT_TYPE, media.0)
            .header(ACCEPT, media.1)
            .body(Full::new(body.into()))
            .unwrap();
        let response = self.service.clone().oneshot(request).await.unwrap();
        let code = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| panic!("{context}: {bytes:?}"));
        Answer { code, body }
    }

    async fn get(&self, path: &str, accept: &str) -> Value {
        self.send(Method::GET, path, (JSON, accept), "").await.is(StatusCode::OK)
    }

    /// The first event of a watch.
    async fn first_event(&self, path: &str) -> Value {
        let request = Request::get(path).body(Full::new(Bytes::new())).unwrap();
        let response = self.service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        let frame = response.into_body().frame().await.unwrap().unwrap();
        serde_json::from_slice(frame.data_ref().unwrap()).unwrap()
    }
}

impl Answer {
    #[track_caller]
    fn is(self, code: StatusCode) -> Value {
        assert_eq!(self.code, code, "{}", self.body);
        self.body
    }
}

/// The path of a kind's objects.
fn collection(kind: &Kind) -> String {
    let root =
        if kind.group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}", kind.api_version()) };
    let scope = if kind.namespaced { "/namespaces/default" } else { "" };
    format!("{root}{scope}/{}", kind.plural)
}

fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| text(item, "/metadata/name")).collect()
}

/// Column headings of a Table.
fn headings(table: &Value) -> Vec<&str> {
    assert_eq!(table["kind"], "Table", "{table}");
    table["columnDefinitions"].as_array().unwrap().iter().map(|column| text(column, "/name")).collect()
}

async fn read(client: &Client, kind: &Kind, made: &Value) {
    let (all, name) = (collection(kind), text(made, "/metadata/name"));
    let one = format!("{all}/{name}");
    assert_eq!(client.get(&one, JSON).await, *made, "{one}");
    let wanted: Vec<&str> = kind.columns.iter().map(|column| column.name).collect();
    let table = client.get(&one, TABLE).await;
    assert_eq!(headings(&table), wanted, "{one}");
    assert_eq!(table["rows"][0]["cells"].as_array().unwrap().len(), wanted.len(), "{one}");
    let list = client.get(&all, JSON).await;
    assert_eq!(list["kind"], kind.list_kind());
    assert!(names(&list).contains(&name), "{list}");
    assert_eq!(list["items"][0].get("kind"), None, "items of lists say no kind");
    assert_eq!(headings(&client.get(&all, TABLE).await), wanted, "{all}");
    let selected = client.get(&format!("{all}?fieldSelector=metadata.name%3D{name}"), JSON).await;
    assert_eq!(names(&selected), [name], "{all}");
    let before: u64 = text(made, "/metadata/resourceVersion").parse().unwrap();
    let watch =
        format!("{all}?watch=true&fieldSelector=metadata.name%3D{name}&resourceVersion={}", before - 1);
    let event = client.first_event(&watch).await;
    assert_eq!((&event["type"], &event["object"]), (&json!("ADDED"), made), "{watch}");
}

async fn change(client: &Client, kind: &Kind, made: &Value) {
    let one = format!("{}/{}", collection(kind), text(made, "/metadata/name"));
    let mut wanted = client.get(&one, JSON).await;
    wanted["metadata"]["labels"]["x"] = "put".into();
    let put = client.send(Method::PUT, &one, (JSON, JSON), wanted.to_string()).await.is(StatusCode::OK);
    assert_eq!(put["metadata"]["labels"]["x"], "put", "{one}");
    assert_ne!(put["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"], "{one}");
    let again = client.send(Method::PUT, &one, (JSON, JSON), put.to_string()).await.is(StatusCode::OK);
    assert_eq!(again, put, "a write that changes nothing makes no version: {one}");
    let old = client.send(Method::PUT, &one, (JSON, JSON), made.to_string()).await.is(StatusCode::CONFLICT);
    assert_eq!(old["reason"], "Conflict", "{one}");
    for (media, patch) in PATCHES {
        let patched = client.send(Method::PATCH, &one, (media, JSON), *patch).await.is(StatusCode::OK);
        let label = text(&patched, "/metadata/labels/x");
        assert!(media.contains(label), "{one}: {label} by {media}");
    }
    let dry = format!("{one}?dryRun=All");
    let patched = client.send(Method::PATCH, &dry, (MERGE, JSON), PATCHES[0].1).await.is(StatusCode::OK);
    assert_eq!(patched["metadata"]["labels"]["x"], "merge");
    assert_eq!(
        client.get(&one, JSON).await["metadata"]["labels"]["x"],
        "json",
        "a dry run writes nothing: {one}"
    );
}

/// The fourth patch: who applies meets what others have written, takes it with force, and owns it from then on.
async fn apply(client: &Client, kind: &Kind, made: &Value) {
    let name = text(made, "/metadata/name");
    let one = format!("{}/{name}", collection(kind));
    let wanted = json!({"apiVersion": kind.api_version(), "kind": kind.kind,
        "metadata": {"name": name, "labels": {"x": "apply"}}})
    .to_string();
    let path = format!("{one}?fieldManager=matrix");
    let refused = client.send(Method::PATCH, &path, (APPLY, JSON), wanted.clone()).await;
    let refused = refused.is(StatusCode::CONFLICT);
    assert_eq!(refused["details"]["causes"][0]["field"], ".metadata.labels.x", "{refused}");
    let path = format!("{path}&force=true");
    let applied = client.send(Method::PATCH, &path, (APPLY, JSON), wanted.clone()).await.is(StatusCode::OK);
    assert_eq!(applied["metadata"]["labels"]["x"], "apply", "{one}");
    let owners = applied["metadata"]["managedFields"].as_array().unwrap();
    let is_ours = |entry: &&Value| entry["manager"] == "matrix" && entry["operation"] == "Apply";
    assert_eq!(owners.iter().filter(is_ours).count(), 1, "{applied}");
    let again = client.send(Method::PATCH, &path, (APPLY, JSON), wanted).await.is(StatusCode::OK);
    assert_eq!(again, applied, "what is applied again makes no version: {one}");
}

/// What the server keeps while it is in use goes when its finalizers are taken away, as a controller does it.
async fn unprotect(client: &Client, one: &str) {
    let kept = client.send(Method::GET, one, (JSON, JSON), "").await;
    if kept.code == StatusCode::OK && kept.body["metadata"].get("finalizers").is_some() {
        assert!(kept.body["metadata"].get("deletionTimestamp").is_some(), "{one}");
        let free = r#"{"metadata": {"finalizers": null}}"#;
        client.send(Method::PATCH, one, (MERGE, JSON), free).await.is(StatusCode::OK);
    }
}

async fn write_status(client: &Client, kind: &Kind, made: &Value) {
    let one = format!("{}/{}", collection(kind), text(made, "/metadata/name"));
    if !kind.has_status {
        let none = client.send(Method::GET, &format!("{one}/status"), (JSON, JSON), "").await;
        assert_eq!(none.code, StatusCode::NOT_FOUND, "{one}/status");
        return;
    }
    let path = format!("{one}/status");
    let before = client.get(&path, JSON).await;
    let put = client.send(Method::PUT, &path, (JSON, JSON), before.to_string()).await.is(StatusCode::OK);
    assert_eq!(put["spec"], before["spec"], "{path}");
    let patch = r#"{"metadata": {"annotations": {"status": "written"}}}"#;
    let patched = client.send(Method::PATCH, &path, (MERGE, JSON), patch).await.is(StatusCode::OK);
    assert_eq!(patched["spec"], before["spec"], "{path}");
}

/// The number of a Scale is read and written, and the object has it.
async fn scale(client: &Client, kind: &Kind, made: &Value) {
    if kind.scale.is_none() {
        return;
    }
    let one = format!("{}/{}", collection(kind), text(made, "/metadata/name"));
    let path = format!("{one}/scale");
    let mut scale = client.get(&path, JSON).await;
    assert_eq!((&scale["kind"], &scale["status"]["selector"]), (&json!("Scale"), &json!("app=a")), "{path}");
    scale["spec"]["replicas"] = 2.into();
    client.send(Method::PUT, &path, (JSON, JSON), scale.to_string()).await.is(StatusCode::OK);
    let patch = r#"{"spec": {"replicas": 4}}"#;
    let patched = client.send(Method::PATCH, &path, (MERGE, JSON), patch).await.is(StatusCode::OK);
    assert_eq!(patched["spec"]["replicas"], 4, "{path}");
    assert_eq!(client.get(&one, JSON).await["spec"]["replicas"], 4, "{one}");
    let refused = client.send(Method::PATCH, &path, (MERGE, JSON), r#"{"spec": {"replicas": -1}}"#).await;
    assert_eq!(refused.code, StatusCode::UNPROCESSABLE_ENTITY, "{path}");
}

async fn delete(client: &Client, kind: &Kind, made: &Value) {
    let one = format!("{}/{}", collection(kind), text(made, "/metadata/name"));
    let foreign = json!({"preconditions": {"uid": "another"}}).to_string();
    let kept = client.send(Method::DELETE, &one, (JSON, JSON), foreign).await;
    assert_eq!(kept.code, StatusCode::CONFLICT, "{one}");
    client.send(Method::DELETE, &one, (JSON, JSON), "").await.is(StatusCode::OK);
    unprotect(client, &one).await;
    // A namespace waits for its controller.
    if kind.kind != "Namespace" {
        let gone = client.send(Method::GET, &one, (JSON, JSON), "").await.is(StatusCode::NOT_FOUND);
        assert_eq!(gone["details"]["kind"], kind.plural, "{gone}");
    }
}

/// Objects made from protobuf bodies are the same as those from JSON, and go together.
async fn protobuf_and_collections(client: &Client, kind: &Kind) {
    let all = collection(kind);
    let object = sample::object(kind, 1);
    let body = protobuf::body(kind, &object);
    let made = client.send(
        Method::POST,
        &all,
        (PROTOBUF, "application/vnd.kubernetes.protobuf,application/json"),
        body,
    );
    let made = made.await.is(StatusCode::CREATED);
    assert_eq!(made["kind"], kind.kind, "{all}");
    let spec = |object: &Value| object.get("spec").cloned().unwrap_or_default();
    let mut other = object;
    if !matches!(kind.plural, "customresourcedefinitions" | "apiservices") {
        other["metadata"]["name"] = sample::name(kind, 2).into();
    }
    let dry = format!("{all}?dryRun=All");
    let again = client.send(Method::POST, &dry, (JSON, JSON), other.to_string()).await;
    // Two kinds have only one name that fits their sample, and some fields hold names, UIDs and addresses.
    if again.code == StatusCode::CREATED && !matches!(kind.plural, "jobs" | "pods" | "services") {
        assert_eq!(spec(&made), spec(&again.body), "{all}: from protobuf and from JSON");
    }
    if kind.has_verb("deletecollection") {
        let deleted = client.send(Method::DELETE, &all, (JSON, JSON), "").await.is(StatusCode::OK);
        assert!(names(&deleted).contains(&text(&made, "/metadata/name")), "{all}");
        unprotect(client, &format!("{all}/{}", text(&made, "/metadata/name"))).await;
        let left = client.get(&all, JSON).await;
        assert_eq!(names(&left), Vec::<&str>::new(), "{all}");
    }
}

async fn every_verb(client: &Client, kind: &'static Kind) {
    let object = sample::object(kind, 0).to_string();
    let made =
        client.send(Method::POST, &collection(kind), (JSON, JSON), object).await.is(StatusCode::CREATED);
    assert_eq!((text(&made, "/kind"), text(&made, "/apiVersion")), (kind.kind, &*kind.api_version()));
    assert!(!text(&made, "/metadata/uid").is_empty(), "{made}");
    read(client, kind, &made).await;
    let labelled = json!({"metadata": {"labels": {"y": "z"}}}).to_string();
    let one = format!("{}/{}", collection(kind), text(&made, "/metadata/name"));
    let made = client.send(Method::PATCH, &one, (MERGE, JSON), labelled).await.is(StatusCode::OK);
    change(client, kind, &made).await;
    apply(client, kind, &made).await;
    write_status(client, kind, &made).await;
    scale(client, kind, &made).await;
    delete(client, kind, &made).await;
    protobuf_and_collections(client, kind).await;
}

#[tokio::test]
async fn every_resource_serves_its_verbs_in_every_form() {
    let client = Arc::new(Client::new().await);
    let mut failed = Vec::new();
    for kind in kinds().iter().filter(|kind| kind.is_stored()) {
        let client = client.clone();
        if tokio::spawn(async move { every_verb(&client, kind).await }).await.is_err() {
            failed.push(kind.group_kind());
        }
    }
    assert_eq!(failed, Vec::<String>::new(), "each has said above what is wrong");
}

#[tokio::test]
async fn reviews_are_answered_and_never_as_a_table() {
    let client = Client::new().await;
    let reviews =
        kinds().iter().filter(|kind| !kind.is_stored() && kind.has_verb("create") && kind.kind != "Binding");
    for kind in reviews {
        let object = sample::object(kind, 0);
        for body in [Bytes::from(object.to_string()), protobuf::body(kind, &object).into()] {
            let media = if body.starts_with(b"k8s\0") { PROTOBUF } else { JSON };
            let answer = client.send(Method::POST, &collection(kind), (media, JSON), body).await;
            assert_eq!(answer.is(StatusCode::CREATED)["kind"], kind.kind);
        }
        let refused = client.send(Method::POST, &collection(kind), (JSON, TABLE), object.to_string()).await;
        assert_eq!(refused.code, StatusCode::NOT_ACCEPTABLE, "{}", kind.plural);
    }
    let list = client.get("/api/v1/componentstatuses", JSON).await;
    assert_eq!(names(&list), ["store"]);
    let table = client.get("/api/v1/componentstatuses/store", TABLE).await;
    assert_eq!(table["rows"][0]["cells"], json!(["store", "Healthy", "ok", ""]));
}
