//! Every namespace has its default service account and the root CA, and keeps them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod cluster;

use cluster::Cluster;
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_namespace_gets_its_account_and_the_root_ca_and_keeps_them() {
    let cluster = Cluster::start().await;
    cluster.create("/api/v1/namespaces", json!({"metadata": {"name": "team"}})).await;
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease", "team"] {
        let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
        let configs = format!("/api/v1/namespaces/{namespace}/configmaps");
        cluster.wait("an account", &accounts, "default", |found| found.is_some()).await;
        let config = cluster.wait("the root CA", &configs, "kube-root-ca.crt", |found| found.is_some()).await;
        assert_eq!(config.unwrap()["data"], json!({"ca.crt": cluster.ca_pem()}));
    }

    let accounts = "/api/v1/namespaces/team/serviceaccounts";
    let before = cluster.get(accounts, "default").await.unwrap();
    cluster.delete(accounts, "default", json!({})).await;
    cluster
        .wait("the account is back", accounts, "default", |found| {
            found.is_some_and(|found| found["metadata"]["uid"] != before["metadata"]["uid"])
        })
        .await;

    let configs = "/api/v1/namespaces/team/configmaps";
    let change = json!({"metadata": {"labels": {"mine": "yes"}}, "data": {"ca.crt": "wrong", "more": "x"}});
    cluster.patch(configs, "kube-root-ca.crt", change).await;
    let restored = cluster
        .wait("the root CA is restored", configs, "kube-root-ca.crt", |found| {
            found.is_some_and(|found| found["data"] == json!({"ca.crt": cluster.ca_pem()}))
        })
        .await;
    assert_eq!(restored.unwrap()["metadata"]["labels"], json!({"mine": "yes"}));
    cluster.delete(configs, "kube-root-ca.crt", json!({})).await;
    cluster.wait("the root CA is back", configs, "kube-root-ca.crt", |found| found.is_some()).await;
    cluster.stop().await;
}
