//! What the conformance document says of steps M1 (the API's machinery) and M2 (the controllers that belong to it), over
//! the API server with the controllers and without a node. A case has the document's name of it, or several names where
//! one case shows them all.
//!
//! Left out: what needs containers (mounted tokens) or workload controllers that make Pods. Lists that go on after a
//! compaction are a test of `apiserver` (`churn`), for that takes 32 MiB of changes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test ends at its first surprise"
)]

mod cluster;
#[path = "conformance/control.rs"]
mod control;
#[path = "conformance/machinery.rs"]
mod machinery;
#[path = "conformance/operations.rs"]
mod operations;
#[path = "conformance/steps.rs"]
mod steps;

use std::sync::Arc;

use cluster::Cluster;
use futures::future::BoxFuture;
use steps::World;

/// The name of a case, and what it does.
type Case = (&'static str, fn(World) -> BoxFuture<'static, ()>);

/// A table of cases from names and functions.
macro_rules! cases {
    ($($name:literal => $function:path,)*) => {
        &[$(($name, |world| Box::pin(async move { $function(&world).await }))),*]
    };
}

const MACHINERY: &[Case] = cases! {
    "API Chunking, server should return chunks of results for list calls" => machinery::lists_come_in_chunks,
    "API metadata HTTP return" => machinery::a_review_is_no_table,
    "Aggregated Discovery Endpoint Accept Headers" => machinery::discovery_is_aggregated,
    "CertificateSigningRequest API" => machinery::a_request_for_a_certificate_is_approved,
    "ConfigMap, with empty-key; Secret, with empty-key" => machinery::empty_keys_are_refused,
    "Confirm a server version" => machinery::the_version_is_numbers,
    "Discovery, confirm the PreferredVersion for each api group" => machinery::each_group_prefers_a_version,
    "Discovery, confirm the groupVersion and a resource from each apiGroup" => machinery::each_group_has_resources,
    "Secrets Volume, immutability" => machinery::what_is_immutable_stays,
    "Server side field validation, typed object" => machinery::unknown_and_repeated_fields_are_named,
    "Server side field validation, typed unknown metadata" => machinery::unknown_metadata_is_named,
    "SubjectReview, API Operations" => machinery::reviews_say_what_requests_are_answered,
    "watch-configmaps-closed-and-restarted" => machinery::a_watch_is_restarted,
    "watch-configmaps-from-resource-version" => machinery::a_watch_starts_at_a_version,
    "watch-configmaps-label-changed" => machinery::a_changed_label_is_a_deletion,
    "watch-configmaps-with-multiple-watchers" => machinery::watchers_see_what_they_select,
    "watch-consistency" => machinery::watches_agree_on_the_order,
};

const CONTROL: &[Case] = cases! {
    "CSIInlineVolumes, CSIVolumeSource in Pod API" => control::a_pods_csi_volume_is_kept,
    "EndpointSlice API: create and delete for a Service with a selector" => control::endpoints_follow_a_service,
    "EndpointSlice Mirroring" => control::endpoints_are_mirrored,
    "Find Kubernetes Service in default Namespace; Kubernetes Service" => control::the_api_has_a_service,
    "Garbage Collector, delete replication controller, each propagation policy" => control::dependents_follow_the_policy,
    "Garbage Collector, dependency cycle" => control::a_circle_of_owners_blocks_nothing,
    "Garbage Collector, multiple owners" => control::what_another_one_owns_stays,
    "LimitRange, defaults" => control::a_limit_range_has_defaults,
    "Namespace, apply changes to a namespace status; update; patching" => control::a_namespace_and_its_status_change,
    "Namespace, apply finalizer to a namespace" => control::a_namespace_takes_a_finalizer,
    "OIDC Discovery (ServiceAccountIssuerDiscovery)" => control::the_issuer_is_discovered,
    "PersistentVolumes(Claims), lifecycle; apply changes to a pv/pvc status" => control::volumes_and_claims_live,
    "PodDisruptionBudget: block an eviction until the PDB is updated to allow it" => control::a_budget_blocks_an_eviction,
    "ResourceQuota, apply changes to a ResourceQuota status; update and delete" => control::a_quota_changes,
    "ResourceQuota, object count quota, configmap" => control::a_quota_counts_configmaps,
    "ResourceQuota, object count quota, pod" => control::a_quota_follows_a_pods_life,
    "ResourceQuota, object count quota, resourcequotas" => control::a_quota_is_calculated,
    "ResourceQuota, object count quota, secret, service, replicationController, replicaSet" => control::a_quota_counts_objects,
    "ResourceQuota, quota scope, BestEffort, NotBestEffort, Terminating, NotTerminating" => control::quotas_have_scopes,
    "RootCA ConfigMap test" => control::the_root_certificate_is_in_every_namespace,
    "Service account tokens auto mount optionally" => control::tokens_are_mounted_unless_refused,
    "namespace-deletion-removes-pods; namespace-deletion-removes-services" => control::a_namespace_goes_with_its_contents,
};

/// A server that others can reach, as the endpoints of its own Service say, with its controllers.
async fn start() -> Arc<Cluster> {
    let mut cluster = Cluster::advertising("192.0.2.1").await;
    cluster.start_controllers(|_| {});
    Arc::new(cluster)
}

/// Runs each case in a namespace of its own; all of them are run before the failed ones are named.
async fn run_all(cases: impl IntoIterator<Item = Case>) {
    let cluster = start().await;
    let mut failed = Vec::new();
    for (number, (name, case)) in cases.into_iter().enumerate() {
        let world = World::new(cluster.clone(), number).await;
        if tokio::spawn(case(world)).await.is_err() {
            failed.push(name);
        }
    }
    assert_eq!(failed, Vec::<&str>::new(), "each has said above what is wrong");
    Arc::into_inner(cluster).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m1_the_machinery_of_the_api_behaves_as_conformance_says() {
    run_all(MACHINERY.iter().copied()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m2_the_apis_controllers_behave_as_conformance_says() {
    run_all(CONTROL.iter().copied()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn m1_each_kinds_operations_are_as_conformance_says() {
    let cluster = start().await;
    let mut failed = Vec::new();
    for (number, case) in operations::CASES.iter().enumerate() {
        let world = World::new(cluster.clone(), number).await;
        if tokio::spawn(async move { operations::run(case, &world).await }).await.is_err() {
            failed.push(case.name);
        }
    }
    assert_eq!(failed, Vec::<&str>::new(), "each has said above what is wrong");
    Arc::into_inner(cluster).unwrap().stop().await;
}
