//! Workloads and what guards and scales them: `apps`, `batch`, `autoscaling` and `policy`.

use super::core::REPLICAS_SELECTABLE;
use super::{CONTROLLED, PLAIN, SCALE, SCALED, STATUS, status, without_controller};
use crate::access::{Access, status as status_of};
use crate::kind::{FieldReader, Kind, autoscaling, workload as workload_of};
use crate::table::{small, workload};
use crate::validation::{job as job_rules, policy as policy_rules, workload as workload_rules};

pub(super) const APPS: &[Kind] = &[
    Kind {
        group: "apps",
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        type_name: "apps.v1.ControllerRevision",
        store_prefix: "controllerrevisions",
        columns: workload::REVISION,
        row: workload::revision,
        validate: workload_rules::revision,
        validate_update: workload_rules::revision_update,
        ..PLAIN
    },
    Kind {
        group: "apps",
        kind: "DaemonSet",
        plural: "daemonsets",
        singular: "daemonset",
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[status("DaemonSet", "apps.v1.DaemonSet")],
        type_name: "apps.v1.DaemonSet",
        store_prefix: "daemonsets",
        columns: workload::DAEMON_SET,
        row: workload::daemon_set,
        prepare_create: workload_of::create_daemon_set,
        prepare_update: workload_of::update_daemon_set,
        validate: workload_rules::daemon_set,
        validate_update: workload_rules::daemon_set_update,
        warnings: |_, old| without_controller(old, "DaemonSets"),
        ..CONTROLLED
    },
    Kind {
        group: "apps",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[SCALE, status("Deployment", "apps.v1.Deployment")],
        type_name: "apps.v1.Deployment",
        store_prefix: "deployments",
        columns: workload::DEPLOYMENT,
        row: workload::deployment,
        scale: SCALED,
        validate: workload_rules::deployment,
        validate_update: workload_rules::deployment_update,
        warnings: |_, old| without_controller(old, "Deployments"),
        validate_status: workload_rules::replicas_status,
        ..CONTROLLED
    },
    Kind {
        group: "apps",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[SCALE, status("ReplicaSet", "apps.v1.ReplicaSet")],
        type_name: "apps.v1.ReplicaSet",
        store_prefix: "replicasets",
        columns: workload::REPLICAS,
        row: workload::replica_set,
        selectable_fields: REPLICAS_SELECTABLE,
        scale: SCALED,
        validate: workload_rules::replica_set,
        validate_update: workload_rules::replica_set_update,
        warnings: |_, old| without_controller(old, "ReplicaSets"),
        validate_status: workload_rules::replicas_status,
        ..CONTROLLED
    },
    Kind {
        group: "apps",
        kind: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        categories: &["all"],
        subresources: &[SCALE, status("StatefulSet", "apps.v1.StatefulSet")],
        type_name: "apps.v1.StatefulSet",
        store_prefix: "statefulsets",
        columns: workload::STATEFUL_SET,
        row: workload::stateful_set,
        scale: SCALED,
        default: workload_of::default_stateful_set,
        validate: workload_rules::stateful_set,
        validate_update: workload_rules::stateful_set_update,
        warnings: |_, old| without_controller(old, "StatefulSets"),
        validate_status: workload_rules::replicas_status,
        ..CONTROLLED
    },
];

pub(super) const BATCH: &[Kind] = &[
    Kind {
        group: "batch",
        kind: "CronJob",
        plural: "cronjobs",
        singular: "cronjob",
        short_names: &["cj"],
        categories: &["all"],
        subresources: &[status("CronJob", "batch.v1.CronJob")],
        type_name: "batch.v1.CronJob",
        store_prefix: "cronjobs",
        columns: workload::CRON_JOB,
        row: workload::cron_job,
        validate: job_rules::cron_job,
        validate_update: job_rules::cron_job_update,
        warnings: |_, old| without_controller(old, "CronJobs"),
        ..CONTROLLED
    },
    Kind {
        group: "batch",
        kind: "Job",
        plural: "jobs",
        singular: "job",
        categories: &["all"],
        subresources: &[status("Job", "batch.v1.Job")],
        type_name: "batch.v1.Job",
        store_prefix: "jobs",
        columns: workload::JOB,
        row: workload::job,
        selectable_fields: JOB_SELECTABLE,
        default: workload_of::default_job,
        prepare_create: workload_of::create_job,
        validate: job_rules::job,
        validate_update: job_rules::job_update,
        warnings: |_, old| without_controller(old, "Jobs"),
        ..CONTROLLED
    },
];

/// Two views of one object, which is stored as v2.
pub(super) const AUTOSCALING: &[Kind] = &[
    Kind {
        group: "autoscaling",
        version: "v2",
        kind: "HorizontalPodAutoscaler",
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[status("HorizontalPodAutoscaler", "autoscaling.v2.HorizontalPodAutoscaler")],
        type_name: "autoscaling.v2.HorizontalPodAutoscaler",
        store_prefix: "horizontalpodautoscalers",
        columns: small::AUTOSCALER,
        row: small::autoscaler,
        default: workload_of::default_autoscaler,
        validate: policy_rules::autoscaler,
        validate_update: policy_rules::autoscaler_update,
        warnings: |_, old| without_controller(old, "HorizontalPodAutoscalers"),
        ..STATUS
    },
    Kind {
        group: "autoscaling",
        version: "v1",
        kind: "HorizontalPodAutoscaler",
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[status("HorizontalPodAutoscaler", "autoscaling.v1.HorizontalPodAutoscaler")],
        type_name: "autoscaling.v1.HorizontalPodAutoscaler",
        store_prefix: "horizontalpodautoscalers",
        columns: small::AUTOSCALER,
        row: autoscaling::v1_row,
        validate: autoscaling::v1_rules,
        validate_update: autoscaling::v1_update_rules,
        warnings: |_, old| without_controller(old, "HorizontalPodAutoscalers"),
        to_stored: autoscaling::to_stored,
        from_stored: autoscaling::from_stored,
        ..STATUS
    },
];

pub(super) const POLICY: &[Kind] = &[Kind {
    group: "policy",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    short_names: &["pdb"],
    subresources: &[status("PodDisruptionBudget", "policy.v1.PodDisruptionBudget")],
    type_name: "policy.v1.PodDisruptionBudget",
    store_prefix: "poddisruptionbudgets",
    columns: small::DISRUPTION_BUDGET,
    row: small::disruption_budget,
    validate: policy_rules::disruption_budget,
    validate_update: policy_rules::disruption_budget_update,
    validate_status: policy_rules::disruption_budget_status,
    needs_version: true,
    ..CONTROLLED
}];

const JOB_SELECTABLE: &[(&str, FieldReader)] =
    &[("status.successful", |o| status_of(o).int("succeeded").unwrap_or_default().to_string())];
