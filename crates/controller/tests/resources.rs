//! What namespaces use of their quotas, volumes with their claims, and certificates that are asked for, over the real API
//! server with the rights that the controllers have in a node.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod cluster;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cluster::{Cluster, pod};
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const QUOTAS: &str = "/api/v1/namespaces/default/resourcequotas";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_shows_what_is_used_when_it_comes_and_when_something_goes() {
    let cluster = Cluster::start().await;
    let account = |found: Option<&Value>| found.is_some();
    cluster.wait("the account", "/api/v1/namespaces/default/serviceaccounts", "default", account).await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "there-before"}});
    cluster.create("/api/v1/namespaces/default/configmaps", map).await;
    cluster.create(PODS, pod("before", "")).await;
    let hard = json!({"pods": "3", "count/configmaps": "9", "requests.cpu": "2"});
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}});
    cluster.create(QUOTAS, quota).await;
    let uses = |pods: &'static str| {
        move |found: Option<&Value>| {
            let used = found.map(|found| &found["status"]["used"]);
            // The ConfigMap with the authority's certificate is the other one.
            used.is_some_and(|used| used["pods"] == pods && used["count/configmaps"] == "2")
        }
    };
    cluster.wait("what was there counts", QUOTAS, "q", uses("1")).await;
    cluster.delete(PODS, "before", json!({"gracePeriodSeconds": 0})).await;
    cluster.wait("what is gone does not", QUOTAS, "q", uses("0")).await;
    cluster.stop().await;
}

fn in_phase(phase: &'static str) -> impl Fn(Option<&Value>) -> bool {
    move |found| found.is_some_and(|found| found["status"]["phase"] == phase)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_bound_kept_while_a_pod_uses_it_and_released() {
    let cluster = Cluster::start().await;
    let account = |found: Option<&Value>| found.is_some();
    cluster.wait("the account", "/api/v1/namespaces/default/serviceaccounts", "default", account).await;
    cluster.create("/api/v1/nodes", json!({"metadata": {"name": "one"}})).await;
    let storage = |size: &str| json!({"storage": size});
    let volume = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "v"}, "spec": {
        "capacity": storage("2Gi"), "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/srv"},
        "persistentVolumeReclaimPolicy": "Delete"}});
    cluster.create(VOLUMES, volume).await;
    let claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"}, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": storage("1Gi")}}});
    cluster.create(CLAIMS, claim).await;
    cluster.wait("the claim is bound", CLAIMS, "c", in_phase("Bound")).await;
    cluster.wait("the volume is bound", VOLUMES, "v", in_phase("Bound")).await;

    let mut user = pod("p", "one");
    user["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "c"}}]);
    cluster.create(PODS, user).await;
    cluster.delete(CLAIMS, "c", json!({})).await;
    let kept = cluster.get(CLAIMS, "c").await.unwrap();
    assert_eq!(kept["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    cluster.delete(PODS, "p", json!({"gracePeriodSeconds": 0})).await;
    cluster.wait("the claim is gone", CLAIMS, "c", |found| found.is_none()).await;
    let failed = cluster.wait("nobody deletes the data", VOLUMES, "v", in_phase("Failed")).await.unwrap();
    assert!(failed["status"]["message"].as_str().unwrap().contains("by hand"));
    cluster.delete(VOLUMES, "v", json!({})).await;
    cluster.wait("the volume is gone", VOLUMES, "v", |found| found.is_none()).await;
    cluster.stop().await;
}

/// A request for a certificate of a node, in PEM and base64.
fn request() -> String {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, "system:node:one");
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    STANDARD.encode(params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kubelet_gets_its_client_certificate_and_another_waits_for_approval() {
    let cluster = Cluster::start().await;
    let ask = |name: &str, signer: &str| {
        json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {"request": request(), "signerName": signer, "usages": ["digital signature", "client auth"]}})
    };
    cluster.create(REQUESTS, ask("kubelet", "kubernetes.io/kube-apiserver-client-kubelet")).await;
    cluster.create(REQUESTS, ask("user", "kubernetes.io/kube-apiserver-client")).await;
    let is_signed = |found: Option<&Value>| {
        found
            .is_some_and(|found| found["status"]["certificate"].as_str().is_some_and(|text| !text.is_empty()))
    };
    let signed = cluster.wait("it is signed", REQUESTS, "kubelet", is_signed).await.unwrap();
    assert_eq!(signed["status"]["conditions"][0]["reason"], "AutoApproved");
    let waiting = cluster.get(REQUESTS, "user").await.unwrap();
    assert_eq!(waiting.pointer("/status/conditions"), None);
    cluster.kubectl(&["certificate", "approve", "user"], "");
    cluster.wait("an approved one is signed", REQUESTS, "user", is_signed).await;
    cluster.stop().await;
}
