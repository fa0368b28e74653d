//! What goes over the wire, asked in process: pages, resource versions, forms, limits, headers.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;

use apiserver::{ApiServer, ApiService, Identity};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

struct Client {
    service: ApiService,
    _server: ApiServer,
    _directory: tempfile::TempDir,
}

impl Client {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = common::config(directory.path().to_owned());
        let server = apiserver::start(config, CancellationToken::new()).await.unwrap();
        Self { service: server.service_for(Identity::admin()), _server: server, _directory: directory }
    }

    async fn send(
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
        let response = self.service.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Response::from_parts(parts, body.collect().await.unwrap().to_bytes())
    }

    async fn ask(&self, method: Method, uri: &str, body: Value) -> (StatusCode, Value) {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let response = self.send(method, uri, &[], body).await;
        let value = serde_json::from_slice(response.body()).unwrap_or_default();
        (response.status(), value)
    }

    async fn get(&self, uri: &str) -> (StatusCode, Value) {
        self.ask(Method::GET, uri, Value::Null).await
    }

    async fn make(&self, name: &str) -> Value {
        let object = json!({"metadata": {"name": name}, "data": {"k": "v"}});
        let (code, made) = self.ask(Method::POST, MAPS, object).await;
        assert_eq!(code, StatusCode::CREATED, "{made}");
        made
    }

    /// The lines of a watch that ends by itself.
    async fn lines(&self, uri: &str) -> Vec<Value> {
        let response = self.send(Method::GET, uri, &[], "").await;
        assert_eq!(response.status(), StatusCode::OK, "{:?}", response.body());
        let lines = response.body().split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn pages_come_from_the_state_of_the_first_page() {
    let client = Client::new().await;
    for name in ["a", "b", "c", "d", "e"] {
        client.make(name).await;
    }
    let (_, first) = client.get(&format!("{MAPS}?limit=2")).await;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    assert_eq!(first["items"][0].get("kind"), None);
    client.make("aa").await;
    client.make("cc").await;
    client.ask(Method::DELETE, &format!("{MAPS}/d"), Value::Null).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = client.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert_eq!(second["metadata"]["remainingItemCount"], 1);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let (_, third) = client.get(&format!("{MAPS}?limit=2&continue={token}")).await;
    assert_eq!(names(&third), ["e"]);
    assert_eq!(third["metadata"].get("continue"), None);
    let (code, refused) = client.get(&format!("{MAPS}?continue=nonsense")).await;
    assert_eq!((code, refused["reason"].as_str()), (StatusCode::BAD_REQUEST, Some("BadRequest")));
    let (_, counted) = client.get(&format!("{MAPS}?limit=1&labelSelector=!x")).await;
    assert_eq!(counted["metadata"].get("remainingItemCount"), None, "no count under a selector");
}

#[tokio::test]
async fn resource_versions_mean_what_they_say() {
    let client = Client::new().await;
    let made = client.make("a").await;
    let version = made["metadata"]["resourceVersion"].as_str().unwrap();
    client.make("b").await;
    let (_, exact) =
        client.get(&format!("{MAPS}?resourceVersion={version}&resourceVersionMatch=Exact")).await;
    assert_eq!(names(&exact), ["a"]);
    assert_eq!(exact["metadata"]["resourceVersion"], version);
    let (_, newer) =
        client.get(&format!("{MAPS}?resourceVersion={version}&resourceVersionMatch=NotOlderThan")).await;
    assert_eq!(names(&newer), ["a", "b"]);
    let (code, future) = client.get(&format!("{MAPS}?resourceVersion=99999999")).await;
    assert_eq!(code, StatusCode::GATEWAY_TIMEOUT);
    assert!(
        future["message"].as_str().unwrap().contains("Too large resource version: 99999999, current: "),
        "{future}"
    );
    assert_eq!(future["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    let (code, refused) = client.get(&format!("{MAPS}?resourceVersionMatch=Exact")).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("resourceVersionMatch is forbidden unless resourceVersion is provided")
    );
    let (code, _) = client.get(&format!("{MAPS}?resourceVersion=x")).await;
    assert!(code.is_client_error());
}

#[tokio::test]
async fn a_watch_list_ends_its_beginning_with_a_bookmark() {
    let client = Client::new().await;
    client.make("a").await;
    let uri = format!(
        "{MAPS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    );
    let lines = client.lines(&uri).await;
    let kinds: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["ADDED", "BOOKMARK", "BOOKMARK"]);
    let bookmark = &lines[1]["object"];
    assert_eq!((&bookmark["kind"], &bookmark["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
    assert_eq!(bookmark["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let (code, refused) = client.get(&format!("{MAPS}?watch=true&sendInitialEvents=true")).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"),
        "{refused}"
    );
    let empty = client.lines(&format!("{MAPS}?watch=true&resourceVersion=99999999&timeoutSeconds=1")).await;
    assert_eq!(empty, Vec::<Value>::new(), "a watch from the future waits");
}

#[tokio::test]
async fn objects_are_answered_in_the_form_that_is_asked() {
    let client = Client::new().await;
    client.make("a").await;
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let response = client.send(Method::GET, MAPS, &table, "").await;
    let value: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!(value["kind"], "Table");
    assert_eq!(value["rows"][0]["cells"][0], "a");
    assert_eq!(value["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let only_table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let refused = client.send(Method::POST, review, &only_table, "{}").await;
    assert_eq!(refused.status(), StatusCode::NOT_ACCEPTABLE);
    let partial = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let response = client.send(Method::GET, MAPS, &partial, "").await;
    let value: Value = serde_json::from_slice(response.body()).unwrap();
    assert_eq!((&value["kind"], value["items"][0].get("data")), (&json!("PartialObjectMetadataList"), None));
    let yaml = client.send(Method::GET, &format!("{MAPS}/a"), &[("accept", "application/yaml")], "").await;
    assert!(String::from_utf8_lossy(yaml.body()).contains("kind: ConfigMap\n"), "{:?}", yaml.body());
    let unknown = client.send(Method::POST, MAPS, &[("content-type", "text/plain")], "x").await;
    assert_eq!(unknown.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let made = client
        .send(
            Method::POST,
            MAPS,
            &[("content-type", "application/yaml")],
            "metadata: {name: written}\ndata: {k: v}\n",
        )
        .await;
    assert_eq!(made.status(), StatusCode::CREATED, "{:?}", made.body());
}

#[tokio::test]
async fn documents_have_tags_and_answers_have_headers() {
    let client = Client::new().await;
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let first = client.send(Method::GET, "/api", &[("accept", aggregated)], "").await;
    assert_eq!(
        first.headers()["content-type"],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    let tag = first.headers()["etag"].to_str().unwrap();
    let again = client.send(Method::GET, "/api", &[("accept", aggregated), ("if-none-match", tag)], "").await;
    assert_eq!((again.status(), again.body().len()), (StatusCode::NOT_MODIFIED, 0));
    let plain = client.send(Method::GET, "/apis", &[("accept", "application/json")], "").await;
    assert_eq!(serde_json::from_slice::<Value>(plain.body()).unwrap()["kind"], "APIGroupList");
    let large = json!({"metadata": {"name": "large"}, "data": {"k": "x".repeat(200 * 1024)}});
    client.ask(Method::POST, MAPS, large).await;
    let large = client.send(Method::GET, MAPS, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(large.headers()["content-encoding"], "gzip");
    assert!(large.body().len() < 10 * 1024);
    let index = client.get("/openapi/v3").await.1;
    let url = index["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap();
    assert!(url.starts_with("/openapi/v3/api/v1?hash="), "{url}");
    let answer = client.send(Method::GET, MAPS, &[], "").await;
    for name in
        ["audit-id", "cache-control", "x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"]
    {
        assert!(answer.headers().contains_key(name), "{name}");
    }
    assert_eq!(answer.headers()["cache-control"], "no-cache, private");
}

/// Lists are made in pieces: whatever their length, and wherever a piece ends, they are the same list, packed or not.
#[tokio::test]
async fn a_list_of_many_pieces_is_one_list() {
    use std::io::Read as _;

    let client = Client::new().await;
    let sizes = [60_000, 5_400, 100, 130_000, 1, 65_536, 64_000];
    for (number, size) in sizes.into_iter().enumerate() {
        let object = json!({"metadata": {"name": format!("c{number}")}, "data": {"k": "x".repeat(size)}});
        assert_eq!(client.ask(Method::POST, MAPS, object).await.0, StatusCode::CREATED);
        let plain = client.send(Method::GET, MAPS, &[], "").await;
        let list: Value = serde_json::from_slice(plain.body()).unwrap();
        let lengths: Vec<usize> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|item| Some(item["data"]["k"].as_str()?.len()))
            .collect();
        assert_eq!(lengths, sizes[..=number]);
        let packed = client.send(Method::GET, MAPS, &[("accept-encoding", "gzip")], "").await;
        let mut read = Vec::new();
        if packed.headers().contains_key("content-encoding") {
            flate2::read::GzDecoder::new(&packed.body()[..]).read_to_end(&mut read).unwrap();
        } else {
            read.extend_from_slice(packed.body());
        }
        assert!(read == plain.body()[..], "{number}");
        let yaml = client.send(Method::GET, MAPS, &[("accept", "application/yaml")], "").await;
        let yaml = std::str::from_utf8(yaml.body()).unwrap();
        assert!(
            yaml.contains("kind: ConfigMapList\n") && yaml.matches("\n    k: ").count() == number + 1,
            "{number}"
        );
    }
}

#[tokio::test]
async fn paths_and_methods_that_are_not_served_are_said_to_be_so() {
    let client = Client::new().await;
    for (method, uri, code) in [
        (Method::GET, "/nothing", 404),
        (Method::GET, "/apis/apps/v1/fishes", 404),
        (Method::GET, "/api/v1/namespaces/default/nodes", 404),
        (Method::GET, "/api/v1/namespaces/default/pods/p/nothing", 404),
        (Method::POST, "/api/v1/configmaps", 405),
        (Method::POST, "/api/v1/namespaces/default/configmaps/a", 405),
        (Method::DELETE, "/api/v1/namespaces", 405),
        (Method::PUT, "/version", 405),
        (Method::GET, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", 405),
    ] {
        let (found, body) = client.ask(method.clone(), uri, Value::Null).await;
        assert_eq!(found.as_u16(), code, "{method} {uri}: {body}");
        assert_eq!(body["kind"], "Status", "{method} {uri}");
    }
}

#[tokio::test]
async fn too_large_a_body_is_refused() {
    let client = Client::new().await;
    let object = json!({"metadata": {"name": "big"}, "data": {"k": "x".repeat(3 * 1024 * 1024)}});
    let (code, refused) = client.ask(Method::POST, MAPS, object).await;
    assert_eq!(
        (code, refused["reason"].as_str()),
        (StatusCode::PAYLOAD_TOO_LARGE, Some("RequestEntityTooLarge"))
    );
}

#[tokio::test]
async fn names_are_generated_and_a_write_that_changes_nothing_takes_no_version() {
    let client = Client::new().await;
    let (code, made) = client.ask(Method::POST, MAPS, json!({"metadata": {"generateName": "web-"}})).await;
    assert_eq!(code, StatusCode::CREATED);
    let name = made["metadata"]["name"].as_str().unwrap();
    assert!(name.strip_prefix("web-").is_some_and(|rest| rest.len() == 5), "{name}");
    let uri = format!("{MAPS}/{name}");
    let (code, same) = client.ask(Method::PUT, &uri, made.clone()).await;
    assert_eq!((code, &same), (StatusCode::OK, &made));
    let mut wrong = made.clone();
    wrong["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000".into();
    let (code, refused) = client.ask(Method::PUT, &uri, wrong).await;
    assert_eq!(code, StatusCode::CONFLICT, "{refused}");
    let options = json!({"preconditions": {"uid": "other"}});
    let (code, refused) = client.ask(Method::DELETE, &uri, options).await;
    assert_eq!(
        (code, refused["details"]["kind"].as_str()),
        (StatusCode::CONFLICT, Some("ConfigMap")),
        "{refused}"
    );
    let (code, gone) = client.ask(Method::DELETE, &uri, Value::Null).await;
    assert_eq!((code, gone["status"].as_str()), (StatusCode::OK, Some("Success")));
    assert_eq!(gone["details"]["uid"], made["metadata"]["uid"]);
}

#[tokio::test]
async fn finalizers_hold_an_object_and_a_collection_is_deleted_by_selector() {
    let client = Client::new().await;
    let held =
        json!({"metadata": {"name": "held", "labels": {"x": "y"}, "finalizers": ["example.com/hold"]}});
    client.ask(Method::POST, MAPS, held).await;
    client.make("free").await;
    let (code, deleted) = client.ask(Method::DELETE, &format!("{MAPS}?labelSelector=x"), Value::Null).await;
    assert_eq!((code, names(&deleted)), (StatusCode::OK, vec!["held"]));
    let (_, held) = client.get(&format!("{MAPS}/held")).await;
    assert!(held["metadata"]["deletionTimestamp"].is_string(), "{held}");
    assert_eq!(held["metadata"]["deletionGracePeriodSeconds"], 0);
    let (code, taken) = client.ask(Method::POST, MAPS, json!({"metadata": {"name": "held"}})).await;
    assert_eq!(code, StatusCode::CONFLICT);
    assert_eq!(taken["message"], "object is being deleted: configmaps \"held\" already exists");
    let patch = client
        .send(
            Method::PATCH,
            &format!("{MAPS}/held"),
            &[("content-type", "application/merge-patch+json")],
            r#"{"metadata":{"finalizers":null}}"#,
        )
        .await;
    assert_eq!(patch.status(), StatusCode::OK);
    assert_eq!(names(&client.get(MAPS).await.1), ["free"]);
}

#[tokio::test]
async fn both_views_of_an_event_show_the_same_object() {
    let client = Client::new().await;
    let event = json!({"metadata": {"name": "e", "namespace": "default"}, "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
        "reason": "Started", "note": "hello", "action": "Start", "type": "Normal", "reportingController": "kubelet",
        "reportingInstance": "node", "eventTime": "2026-11-23T12:00:00.000000Z"});
    let (code, made) =
        client.ask(Method::POST, "/apis/events.k8s.io/v1/namespaces/default/events", event).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    assert_eq!((&made["apiVersion"], &made["note"]), (&json!("events.k8s.io/v1"), &json!("hello")));
    let (_, stored) = client.get("/api/v1/namespaces/default/events/e").await;
    assert_eq!((&stored["apiVersion"], &stored["message"]), (&json!("v1"), &json!("hello")));
    assert_eq!(stored["involvedObject"]["name"], "p");
    let (_, list) = client.get("/apis/events.k8s.io/v1/events?fieldSelector=regarding.name%3Dp").await;
    assert_eq!((names(&list), &list["items"][0]["note"]), (vec!["e"], &json!("hello")));
    let (_, list) = client.get("/api/v1/events?fieldSelector=involvedObject.name%3Dq").await;
    assert_eq!(names(&list), Vec::<&str>::new());
}

#[tokio::test]
async fn a_lease_is_made_by_put_and_needs_its_version_later() {
    let client = Client::new().await;
    let uri = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node";
    let lease =
        json!({"metadata": {"name": "node"}, "spec": {"holderIdentity": "node", "leaseDurationSeconds": 40}});
    let (code, made) = client.ask(Method::PUT, uri, lease.clone()).await;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    let (code, refused) = client.ask(Method::PUT, uri, lease).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        refused["message"]
            .as_str()
            .unwrap()
            .contains("metadata.resourceVersion: Invalid value: 0: must be specified for an update"),
        "{refused}"
    );
    let (code, _) = client.ask(Method::PUT, uri, made).await;
    assert_eq!(code, StatusCode::OK);
}
