//! What is measured through the API, inside the node's namespaces: each function is a run of its own.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

use crate::report;

/// Pods of each kind that are started one after another.
const PODS: usize = 30;
/// Pods that are started at once, and how many of them at a time.
const MANY: (usize, usize) = (100, 8);
/// A node that is not Ready after this has failed.
const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until the node is Ready.
pub(crate) async fn until_ready() {
    let ready = tokio::time::timeout(PATIENCE, async {
        while !is_ready().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    ready.await.expect("the node gets Ready within a minute");
}

async fn is_ready() -> bool {
    let kubeconfig = std::env::var_os("KUBECONFIG").map(PathBuf::from).unwrap_or_default();
    if !kubeconfig.exists() {
        return false;
    }
    let Ok(client) = kube::Client::try_default().await else { return false };
    let Ok(nodes) = Api::<Node>::all(client).list(&ListParams::default()).await else { return false };
    nodes.iter().any(|node| {
        let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
    })
}

/// A Pod of one small container whose image is there.
pub(crate) fn pod(name: &str, host_users: bool) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "hostUsers": host_users,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "busybox", "command": ["sleep", "infinity"], "imagePullPolicy": "IfNotPresent"}],
        },
    })
}

async fn pods() -> Api<Pod> {
    Api::default_namespaced(kube::Client::try_default().await.expect("the node's kubeconfig works"))
}

/// Create to Running, with and without a user namespace in turn.
pub(crate) async fn one_by_one() {
    let pods = pods().await;
    start_and_end(&pods, "warm", false).await;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for round in 0..PODS {
        with.push(start_and_end(&pods, &format!("with-{round}"), false).await);
        without.push(start_and_end(&pods, &format!("without-{round}"), true).await);
    }
    report("create to Running, user namespace", "100 ms", &mut with);
    report("create to Running, the node's IDs", "at most 10 ms less", &mut without);
}

/// Many Pods, some at a time.
pub(crate) async fn many() {
    let pods = pods().await;
    let (count, at_once) = MANY;
    let begin = Instant::now();
    let starts = stream::iter((0..count).map(|n| format!("many-{n}"))).map(|name| {
        let pods = pods.clone();
        async move { start(&pods, &name, false).await }
    });
    let mut each: Vec<Duration> = starts.buffer_unordered(at_once).collect().await;
    let rate = f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / begin.elapsed().as_secs_f64();
    println!("{:<55} {rate:>8.1} Pods/s", format!("{count} Pods, {at_once} at a time"));
    report("  each of them, create to Running", "none", &mut each);
    let (now, all) = (DeleteParams::default().grace_period(0), ListParams::default());
    pods.delete_collection(&now, &all).await.expect("the Pods can be deleted");
}

/// The Pod is gone before the next one starts, so that nothing but its own start is in the times.
async fn start_and_end(pods: &Api<Pod>, name: &str, host_users: bool) -> Duration {
    let took = start(pods, name, host_users).await;
    let one = WatchParams::default().fields(&format!("metadata.name={name}"));
    let now = DeleteParams::default().grace_period(0);
    let mut events = pods.watch(&one, "0").await.expect("Pods can be watched").boxed();
    pods.delete(name, &now).await.expect("the Pod can be deleted");
    while let Some(event) = events.next().await {
        if let WatchEvent::Deleted(_) = event.expect("the watch goes on") {
            break;
        }
    }
    took
}

/// From the request to the watch event that says Running.
async fn start(pods: &Api<Pod>, name: &str, host_users: bool) -> Duration {
    let object = serde_json::from_value(pod(name, host_users)).expect("it is a Pod");
    let begin = Instant::now();
    let created = pods.create(&PostParams::default(), &object).await.expect("the Pod can be created");
    let version = created.metadata.resource_version.expect("objects have a version");
    let one = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = pods.watch(&one, &version).await.expect("Pods can be watched").boxed();
    while let Some(event) = events.next().await {
        if let WatchEvent::Modified(pod) = event.expect("the watch goes on")
            && pod.status.and_then(|status| status.phase).as_deref() == Some("Running")
        {
            return begin.elapsed();
        }
    }
    panic!("the watch of {name} has ended")
}
