//! The scheduler over the real API server, with the rights that it has in a node.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

use std::time::Duration;

use apiserver::{ApiServer, ApiServerConfig, Identity};
use futures::StreamExt as _;
use http::{Method, Request};
use kube::Client;
use kube::api::{WatchEvent, WatchParams};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PODS: &str = "/api/v1/namespaces/default/pods";
const EVENTS: &str = "/api/v1/namespaces/default/events";

struct Cluster {
    server: ApiServer,
    admin: Client,
    shutdown: CancellationToken,
    scheduler: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let config = ApiServerConfig {
            secure_listen: "127.0.0.1:0".parse().unwrap(),
            advertise: vec!["127.0.0.1".parse().unwrap()],
            names: Vec::new(),
            service_ip: "10.96.0.1".parse().unwrap(),
            feature_gates: api::feature::Gates::default(),
            userns_policy: userns::policy::Policy::OptIn,
            ids_per_pod: 65_536,
            admin_kubeconfig: directory.path().join("admin.kubeconfig"),
            access: apiserver::AccessConfig::default(),
            state_dir: directory.path().to_owned(),
        };
        let server = apiserver::start(config, shutdown.clone()).await.unwrap();
        let admin = Client::new(server.service_for(Identity::admin()), "default");
        let client = Client::new(server.service_for(Identity::scheduler()), "default");
        let scheduler = tokio::spawn(scheduler::run(client, scheduler::Fencing::Some, shutdown.clone()));
        let cluster = Self { server, admin, shutdown, scheduler, _directory: directory };
        let account = json!({"metadata": {"name": "default"}});
        cluster.send(Method::POST, "/api/v1/namespaces/default/serviceaccounts", &account).await;
        cluster
    }

    async fn send(&self, method: Method, path: &str, body: &Value) -> Value {
        let kind = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder().method(method).uri(path).header("content-type", kind);
        let request = request.body(body.to_string().into_bytes()).unwrap();
        self.admin.request(request).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn node(&self, name: &str, cpu: &str) {
        self.send(Method::POST, "/api/v1/nodes", &json!({"metadata": {"name": name}})).await;
        let room = json!({"cpu": cpu, "memory": "8Gi", "pods": "110"});
        let status =
            json!({"status": {"capacity": room, "conditions": [{"type": "Ready", "status": "True"}]}});
        self.send(Method::PATCH, &format!("/api/v1/nodes/{name}/status"), &status).await;
    }

    async fn pod(&self, name: &str, cpu: &str) {
        let container = json!({"name": "a", "image": "nginx", "resources": {"requests": {"cpu": cpu}}});
        let pod = json!({"metadata": {"name": name}, "spec": {"containers": [container]}});
        self.send(Method::POST, PODS, &pod).await;
    }

    /// Watches a collection until one of its objects is as wanted.
    async fn wait(&self, collection: &str, fields: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        let watching = async {
            let params = WatchParams::default().fields(fields);
            let request = kube::core::Request::new(collection).watch(&params, "").unwrap();
            let mut events = std::pin::pin!(self.admin.request_events::<Value>(request).await.unwrap());
            loop {
                match events.next().await.unwrap().unwrap() {
                    WatchEvent::Added(found) | WatchEvent::Modified(found) if is_wanted(&found) => {
                        return found;
                    }
                    _ => {}
                }
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(20), watching).await;
        found.unwrap_or_else(|_| panic!("{collection} {fields}: nothing as wanted"))
    }

    async fn wait_for_pod(&self, name: &str, is_wanted: impl Fn(&Value) -> bool) -> Value {
        self.wait(PODS, &format!("metadata.name={name}"), is_wanted).await
    }

    async fn wait_for_event(&self, pod: &str, reason: &str, message: &str) {
        let fields = format!("involvedObject.name={pod}");
        self.wait(EVENTS, &fields, |e| e["reason"] == reason && e["message"] == message).await;
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.scheduler).await.unwrap().unwrap();
        tokio::time::timeout(Duration::from_secs(20), self.server.join()).await.unwrap();
    }
}

fn scheduled(pod: &Value) -> Value {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == "PodScheduled").unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_wait_for_a_node_and_then_are_bound_with_event_and_condition() {
    let cluster = Cluster::start().await;
    cluster.pod("big", "3").await;
    let waiting = cluster.wait_for_pod("big", |p| scheduled(p)["status"] == "False").await;
    assert_eq!(scheduled(&waiting)["message"], "no nodes available to schedule pods");
    assert_eq!(scheduled(&waiting)["reason"], "Unschedulable");

    cluster.node("one", "2").await;
    let message = "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    cluster.wait_for_pod("big", |p| scheduled(p)["message"] == message).await;
    cluster.wait_for_event("big", "FailedScheduling", message).await;

    cluster.pod("small", "1").await;
    let small = cluster.wait_for_pod("small", |p| p["spec"]["nodeName"] == "one").await;
    assert_eq!(scheduled(&small)["status"], "True");
    cluster.wait_for_event("small", "Scheduled", "Successfully assigned default/small to one").await;

    cluster.node("two", "4").await;
    cluster.wait_for_pod("big", |p| p["spec"]["nodeName"] == "two").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_pods_at_once_are_bound_and_never_beyond_the_room() {
    let cluster = Cluster::start().await;
    cluster.node("one", "2").await;
    for i in 0..30 {
        cluster.pod(&format!("p{i}"), "100m").await;
    }
    let mut bound = 0;
    for i in 0..30 {
        let is_settled = |p: &Value| p["spec"]["nodeName"] == "one" || scheduled(p)["status"] == "False";
        let pod = cluster.wait_for_pod(&format!("p{i}"), is_settled).await;
        bound += usize::from(pod["spec"]["nodeName"] == "one");
    }
    assert_eq!(bound, 20);
    cluster.stop().await;
}
