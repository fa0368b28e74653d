//! Starting, stopping, starting again; and the API as a service for `kube::Client` in the same process.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;

use std::time::{Duration, Instant};

use apiserver::{ApiServer, Identity, StartError};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;
use tokio_util::sync::CancellationToken;

async fn start(directory: &std::path::Path) -> (ApiServer, CancellationToken) {
    let shutdown = CancellationToken::new();
    let server = apiserver::start(common::config(directory.to_owned()), shutdown.clone()).await.unwrap();
    (server, shutdown)
}

fn client(server: &ApiServer, identity: Identity) -> kube::Client {
    kube::Client::new(server.service_for(identity), "default")
}

#[tokio::test]
async fn a_kube_client_in_this_process_speaks_to_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _shutdown) = start(directory.path()).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server, Identity::admin()));
    let map =
        |name: &str| serde_json::from_value(json!({"metadata": {"name": name}, "data": {"a": "1"}})).unwrap();
    let made = maps.create(&PostParams::default(), &map("one")).await.unwrap();
    let version = made.metadata.resource_version.unwrap();
    let mut watch = maps.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    let patch = Patch::Merge(json!({"data": {"a": "2"}}));
    maps.patch("one", &PatchParams::default(), &patch).await.unwrap();
    maps.delete("one", &DeleteParams::default()).await.unwrap();
    let Some(WatchEvent::Modified(seen)) = watch.try_next().await.unwrap() else { panic!("no change") };
    assert_eq!(seen.data.unwrap()["a"], "2");
    assert!(matches!(watch.try_next().await.unwrap(), Some(WatchEvent::Deleted(_))));
    assert_eq!(maps.list(&ListParams::default()).await.unwrap().items.len(), 0);
    let streaming = WatchParams::default().initial_events();
    let mut listed = maps.watch(&streaming, "0").await.unwrap().boxed();
    let Some(WatchEvent::Bookmark(end)) = listed.try_next().await.unwrap() else { panic!("no bookmark") };
    assert_eq!(end.metadata.annotations["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn a_role_in_this_process_may_do_no_more_than_its_identity() {
    let directory = tempfile::tempdir().unwrap();
    let (server, _shutdown) = start(directory.path()).await;
    let node = client(&server, Identity::node("one"));
    let nodes: Api<Node> = Api::all(node.clone());
    let object = |name: &str| serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    nodes.create(&PostParams::default(), &object("one")).await.unwrap();
    let patch = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    nodes.patch("one", &PatchParams::default(), &patch).await.unwrap();
    let refused = nodes.patch("two", &PatchParams::default(), &patch).await.unwrap_err();
    assert!(
        refused.to_string().contains("User \"system:node:one\" cannot patch resource \"nodes\""),
        "{refused}"
    );
    let scheduler: Api<Namespace> = Api::all(client(&server, Identity::scheduler()));
    assert_eq!(scheduler.list(&ListParams::default()).await.unwrap().items.len(), 4);
    scheduler.create(&PostParams::default(), &object2("x")).await.unwrap_err();
}

fn object2(name: &str) -> Namespace {
    serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
}

#[tokio::test]
async fn everything_is_there_again_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (server, shutdown) = start(directory.path()).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server, Identity::admin()));
    let map = serde_json::from_value(json!({"metadata": {"name": "kept"}, "data": {"a": "1"}})).unwrap();
    let made = maps.create(&PostParams::default(), &map).await.unwrap();
    let ca = server.ca_pem().to_owned();
    drop(maps);
    shutdown.cancel();
    server.join().await;

    let begun = Instant::now();
    let (server, shutdown) = start(directory.path()).await;
    assert!(begun.elapsed() < Duration::from_secs(1), "the second start took {:?}", begun.elapsed());
    assert_eq!(server.ca_pem(), ca);
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server, Identity::admin()));
    let kept = maps.get("kept").await.unwrap();
    assert_eq!(kept.metadata.resource_version, made.metadata.resource_version);
    assert_eq!(kept.metadata.uid, made.metadata.uid);
    // A watch goes on where it was: the history is on disk.
    let mut watch = maps.watch(&WatchParams::default(), "1").await.unwrap().boxed();
    assert!(matches!(watch.try_next().await.unwrap(), Some(WatchEvent::Added(_))));
    shutdown.cancel();
    assert!(watch.try_next().await.unwrap().is_none(), "a watch ends when the server stops");
    drop(maps);
    server.join().await;
}

#[tokio::test]
async fn a_port_in_use_names_the_port_and_the_flag() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = common::config(directory.path().to_owned());
    config.secure_listen = taken.local_addr().unwrap();
    let port = config.secure_listen.port();
    let error = apiserver::start(config, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, StartError::PortInUse { .. }));
    let said = error.to_string();
    assert!(said.contains(&format!("port {port} is in use")) && said.contains("--secure-port"), "{said}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing half-done is left");
}

#[tokio::test]
async fn a_second_server_on_the_same_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_server, _shutdown) = start(directory.path()).await;
    let error = apiserver::start(common::config(directory.path().to_owned()), CancellationToken::new())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("another process has it open"), "{error}");
}

#[tokio::test]
async fn the_certificate_follows_the_addresses_and_the_kubeconfig_stays() {
    let directory = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
    let mut config = common::config(directory.path().to_owned());
    let (server, shutdown) = start(directory.path()).await;
    config.secure_listen = server.address();
    let (certificate, kubeconfig) = (read("pki/apiserver.crt"), read("admin.kubeconfig"));
    shutdown.cancel();
    server.join().await;
    for (address, changes) in [("127.0.0.1", false), ("10.9.8.7", true)] {
        config.advertise = vec![address.parse().unwrap()];
        let shutdown = CancellationToken::new();
        let server = apiserver::start(config.clone(), shutdown.clone()).await.unwrap();
        shutdown.cancel();
        server.join().await;
        assert_eq!(read("pki/apiserver.crt") != certificate, changes, "{address}");
        assert_eq!(read("admin.kubeconfig"), kubeconfig, "{address}");
    }
}
