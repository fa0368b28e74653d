//! Who answers for a Service, in `EndpointSlice`s and in `Endpoints`; and what a disruption budget allows.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod cluster;

use cluster::{Cluster, pod};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const ENDPOINTS: &str = "/api/v1/namespaces/default/endpoints";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";

/// A Pod that runs, with an address.
async fn running(cluster: &Cluster, name: &str, ip: &str) {
    let mut object = pod(name, "one");
    object["metadata"]["labels"] = json!({"app": "web"});
    cluster.create(PODS, object).await;
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True"}]}});
    cluster.patch(PODS, &format!("{name}/status"), status).await;
}

fn ready(endpoints: Option<&Value>) -> Vec<String> {
    let addresses = endpoints.and_then(|found| found["subsets"][0]["addresses"].as_array());
    let ips = addresses.into_iter().flatten().map(|address| address["ip"].as_str().unwrap().to_owned());
    ips.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_services_endpoints_follow_its_pods() {
    let cluster = Cluster::start().await;
    cluster.create("/api/v1/nodes", json!({"metadata": {"name": "one"}})).await;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    cluster.create(SERVICES, service).await;
    running(&cluster, "a", "10.1.0.1").await;
    running(&cluster, "b", "10.1.0.2").await;
    let both = |found: Option<&Value>| ready(found) == ["10.1.0.1", "10.1.0.2"];
    cluster.wait("both Pods answer", ENDPOINTS, "web", both).await;
    let slices = cluster.names(SLICES).await;
    assert_eq!(slices.len(), 1, "{slices:?}");
    let filled = |found: Option<&Value>| {
        found.is_some_and(|found| found["endpoints"].as_array().is_some_and(|all| all.len() == 2))
    };
    cluster.wait("the slice has both", SLICES, &slices[0], filled).await;
    let gone = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    cluster.patch(PODS, "a/status", gone).await;
    let one = |found: Option<&Value>| ready(found) == ["10.1.0.2"];
    cluster.wait("one of them answers", ENDPOINTS, "web", one).await;
    cluster.patch(PODS, "b", json!({"metadata": {"labels": {"app": "other"}}})).await;
    cluster.wait("none answers", ENDPOINTS, "web", |found| ready(found).is_empty()).await;
    cluster.delete(SERVICES, "web", json!({})).await;
    cluster.wait("the Endpoints go with the Service", ENDPOINTS, "web", |found| found.is_none()).await;
    cluster.wait("so does the slice", SLICES, &slices[0], |found| found.is_none()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_counts_its_pods() {
    let cluster = Cluster::start().await;
    cluster.create("/api/v1/nodes", json!({"metadata": {"name": "one"}})).await;
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    cluster.create(BUDGETS, budget).await;
    running(&cluster, "a", "10.1.0.1").await;
    running(&cluster, "b", "10.1.0.2").await;
    let allows_one =
        |found: Option<&Value>| found.is_some_and(|found| found["status"]["disruptionsAllowed"] == 1);
    let budget = cluster.wait("one may go", BUDGETS, "web", allows_one).await.unwrap();
    assert_eq!(
        (&budget["status"]["currentHealthy"], &budget["status"]["expectedPods"]),
        (&json!(2), &json!(2))
    );
    assert_eq!(budget["status"]["conditions"][0]["reason"], "SufficientPods");
    cluster.patch(BUDGETS, "web", json!({"spec": {"minAvailable": null, "maxUnavailable": 1}})).await;
    let failed = |found: Option<&Value>| {
        found.is_some_and(|found| found["status"]["conditions"][0]["reason"] == "SyncFailed")
    };
    let budget =
        cluster.wait("Pods without a controller can't be counted so", BUDGETS, "web", failed).await.unwrap();
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    cluster.stop().await;
}
