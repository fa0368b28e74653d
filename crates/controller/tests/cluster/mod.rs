//! The real API server in the test's process, the controllers over it, and waiting for what they do.

#![allow(dead_code, reason = "each test uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test ends at its first surprise"
)]

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use apiserver::{ApiServer, ApiServerConfig, Identity};
use controller::{Authority, ControllerConfig};
use kube::Client;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Request;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server with its controllers.
pub(crate) struct Cluster {
    server: ApiServer,
    controllers: Option<JoinHandle<()>>,
    shutdown: CancellationToken,
    stop_controllers: CancellationToken,
    directory: tempfile::TempDir,
    /// A client that may do everything.
    pub(crate) admin: Client,
}

impl Cluster {
    /// A server with controllers as they are by default.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// A server with controllers that were told something else.
    pub(crate) async fn start_with(change: impl FnOnce(&mut ControllerConfig)) -> Self {
        let mut cluster = Self::without_controllers().await;
        cluster.start_controllers(change);
        cluster
    }

    /// The server alone.
    pub(crate) async fn without_controllers() -> Self {
        Self::advertising("127.0.0.1").await
    }

    /// The server alone, which says that it is reached at another address.
    pub(crate) async fn advertising(address: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let shutdown = CancellationToken::new();
        let config = ApiServerConfig {
            secure_listen: "127.0.0.1:0".parse().unwrap(),
            advertise: vec![address.parse().unwrap()],
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
        let stop_controllers = CancellationToken::new();
        Self { server, controllers: None, shutdown, stop_controllers, directory, admin }
    }

    /// Starts the controllers, with the identity and the rights that they have in a node.
    pub(crate) fn start_controllers(&mut self, change: impl FnOnce(&mut ControllerConfig)) {
        let client = Client::new(self.server.service_for(Identity::controller_manager()), "default");
        let pair = self.server.signing_pair().unwrap();
        let authority = Authority::new(&pair.certificate_pem, &pair.key_pem).unwrap();
        let mut config = ControllerConfig::new(self.server.ca_pem());
        config.authority = Some(Arc::new(authority));
        change(&mut config);
        self.stop_controllers = CancellationToken::new();
        self.controllers = Some(tokio::spawn(controller::run(client, config, self.stop_controllers.clone())));
    }

    /// Ends the controllers; they must end by themselves.
    pub(crate) async fn stop_controllers(&mut self) {
        self.stop_controllers.cancel();
        if let Some(controllers) = self.controllers.take() {
            within("the controllers end", controllers).await.unwrap();
        }
    }

    pub(crate) async fn stop(mut self) {
        self.stop_controllers().await;
        self.shutdown.cancel();
        within("the server ends", self.server.join()).await;
    }

    pub(crate) fn ca_pem(&self) -> &str {
        self.server.ca_pem()
    }

    pub(crate) async fn create(&self, collection: &str, object: Value) -> Value {
        let request = Request::new(collection).create(&kube::api::PostParams::default(), bytes(&object));
        self.admin.request(request.unwrap()).await.unwrap_or_else(|error| panic!("{collection}: {error}"))
    }

    pub(crate) async fn get(&self, collection: &str, name: &str) -> Option<Value> {
        let request = Request::new(collection).get(name, &kube::api::GetParams::default()).unwrap();
        match self.admin.request(request).await {
            Ok(found) => Some(found),
            Err(kube::Error::Api(status)) if status.code == 404 => None,
            Err(error) => panic!("{collection}/{name}: {error}"),
        }
    }

    pub(crate) async fn names(&self, collection: &str) -> Vec<String> {
        let request = Request::new(collection).list(&ListParams::default()).unwrap();
        let list: Value = self.admin.request(request).await.unwrap();
        let items = list["items"].as_array().unwrap().iter();
        items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) async fn delete(&self, collection: &str, name: &str, options: Value) {
        let request = http::Request::delete(format!("{collection}/{name}"))
            .header("content-type", "application/json")
            .body(bytes(&options))
            .unwrap();
        self.admin.request_text(request).await.unwrap_or_else(|error| panic!("{collection}/{name}: {error}"));
    }

    /// A merge patch; `name` may end in `/status`.
    pub(crate) async fn patch(&self, collection: &str, name: &str, patch: Value) -> Value {
        let request = http::Request::patch(format!("{collection}/{name}"))
            .header("content-type", "application/merge-patch+json")
            .body(bytes(&patch))
            .unwrap();
        self.admin.request(request).await.unwrap_or_else(|error| panic!("{collection}/{name}: {error}"))
    }

    /// Runs the real `kubectl` with a text on its standard input; it must succeed. Blocks the test's own thread, not
    /// the server's.
    pub(crate) fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        let mut child = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(self.directory.path().join("admin.kubeconfig"))
            .args(arguments)
            .env("HOME", self.directory.path())
            .env("KUBECACHEDIR", self.directory.path().join("cache"))
            .env_remove("KUBECONFIG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("these tests need kubectl on the PATH");
        child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
        let output = child.wait_with_output().unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert!(output.status.success(), "kubectl {arguments:?}: {out}{err}");
        out
    }

    /// Waits by a watch until an object is as wished; `None` means that it isn't there.
    pub(crate) async fn wait(
        &self,
        what: &str,
        collection: &str,
        name: &str,
        is_good: impl Fn(Option<&Value>) -> bool,
    ) -> Option<Value> {
        within(what, self.watch_until(collection, name, is_good)).await
    }

    async fn watch_until(
        &self,
        collection: &str,
        name: &str,
        is_good: impl Fn(Option<&Value>) -> bool,
    ) -> Option<Value> {
        use futures::StreamExt as _;
        let list = ListParams::default().fields(&format!("metadata.name={name}"));
        let list: Value = self.admin.request(Request::new(collection).list(&list).unwrap()).await.unwrap();
        let version = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        let first = list["items"].get(0).cloned();
        if is_good(first.as_ref()) {
            return first;
        }
        let watch = WatchParams::default().fields(&format!("metadata.name={name}"));
        let request = Request::new(collection).watch(&watch, &version).unwrap();
        let events = self.admin.request_events::<Value>(request).await.unwrap();
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            let now = match event.unwrap() {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => Some(object),
                WatchEvent::Deleted(_) => None,
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(status) => panic!("{status:?}"),
            };
            if is_good(now.as_ref()) {
                return now;
            }
        }
        panic!("the watch of {collection}/{name} ended");
    }
}

/// Waits for something that must happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// A Pod on a node, or on none when the name is empty.
pub(crate) fn pod(name: &str, node: &str) -> Value {
    let mut pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    if !node.is_empty() {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

fn bytes(object: &Value) -> Vec<u8> {
    object.to_string().into_bytes()
}
