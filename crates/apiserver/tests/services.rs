//! Addresses and node ports of Services: nobody shares one, and a restart gives back what nobody has.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;

use std::collections::HashSet;
use std::path::Path;

use apiserver::{ApiServer, ApiService, Identity};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

async fn start(directory: &Path, shutdown: &CancellationToken) -> ApiServer {
    apiserver::start(common::config(directory.to_owned()), shutdown.clone()).await.unwrap()
}

async fn ask(service: &ApiService, method: Method, uri: &str, body: Value) -> (StatusCode, Value) {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request = Request::builder().method(method).uri(uri).body(Full::new(body)).unwrap();
    let response = service.clone().oneshot(request).await.unwrap();
    let code = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

fn a_service(name: &str, kind: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"type": kind, "ports": [{"port": 80}]}})
}

fn names(list: &Value) -> HashSet<String> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn services_made_at_once_share_no_address_and_no_port() {
    const MANY: usize = 64;
    let directory = tempfile::tempdir().unwrap();
    let server = start(directory.path(), &CancellationToken::new()).await;
    let service = server.service_for(Identity::admin());
    let made = (0..MANY).map(|i| {
        let service = service.clone();
        tokio::spawn(async move {
            ask(&service, Method::POST, SERVICES, a_service(&format!("s{i}"), "NodePort")).await
        })
    });
    let (mut addresses, mut ports) = (HashSet::new(), HashSet::new());
    for made in made.collect::<Vec<_>>() {
        let (code, made) = made.await.unwrap();
        assert_eq!(code, StatusCode::CREATED, "{made}");
        addresses.insert(made["spec"]["clusterIP"].as_str().unwrap().to_owned());
        ports.insert(made["spec"]["ports"][0]["nodePort"].as_i64().unwrap());
    }
    assert_eq!((addresses.len(), ports.len()), (MANY, MANY));
    let (_, taken) = ask(&service, Method::GET, ADDRESSES, Value::Null).await;
    addresses.insert("10.96.0.1".to_owned());
    assert_eq!(names(&taken), addresses);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_service_loses_another_can_have() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(directory.path(), &CancellationToken::new()).await;
    let service = server.service_for(Identity::admin());
    let mut wanted = a_service("a", "NodePort");
    wanted["spec"]["clusterIP"] = "10.96.7.7".into();
    wanted["spec"]["ports"][0]["nodePort"] = 31_234.into();
    ask(&service, Method::POST, SERVICES, wanted.clone()).await;
    wanted["metadata"]["name"] = "b".into();
    let (code, refused) = ask(&service, Method::POST, SERVICES, wanted.clone()).await;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(refused["message"].as_str().unwrap().contains("provided port is already allocated"), "{refused}");
    let one = format!("{SERVICES}/a");
    let (_, mut a) = ask(&service, Method::GET, &one, Value::Null).await;
    a["spec"]["type"] = "ExternalName".into();
    a["spec"]["externalName"] = "example.org".into();
    let (code, a) = ask(&service, Method::PUT, &one, a).await;
    assert_eq!((code, a["spec"].get("clusterIP")), (StatusCode::OK, None), "{a}");
    let (code, b) = ask(&service, Method::POST, SERVICES, wanted).await;
    assert_eq!((code, b["spec"]["clusterIP"].as_str()), (StatusCode::CREATED, Some("10.96.7.7")), "{b}");
    ask(&service, Method::DELETE, &format!("{SERVICES}/b"), Value::Null).await;
    let (code, _) = ask(&service, Method::GET, &format!("{ADDRESSES}/10.96.7.7"), Value::Null).await;
    assert_eq!(code, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_keeps_what_is_used_and_gives_back_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let server = start(directory.path(), &shutdown).await;
    let service = server.service_for(Identity::admin());
    let (_, made) = ask(&service, Method::POST, SERVICES, a_service("a", "ClusterIP")).await;
    let address = made["spec"]["clusterIP"].as_str().unwrap().to_owned();
    // What a server leaves behind that dies between taking an address and storing its Service.
    let left = json!({"metadata": {"name": "10.96.9.9", "labels": {"ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
        "spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "ghost"}}});
    assert_eq!(ask(&service, Method::POST, ADDRESSES, left).await.0, StatusCode::CREATED);
    drop(service);
    shutdown.cancel();
    server.join().await;
    let server = start(directory.path(), &CancellationToken::new()).await;
    let service = server.service_for(Identity::admin());
    let (_, taken) = ask(&service, Method::GET, ADDRESSES, Value::Null).await;
    assert_eq!(names(&taken), HashSet::from([address, "10.96.0.1".to_owned()]));
}
