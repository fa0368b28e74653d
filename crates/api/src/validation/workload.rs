//! Rules for what keeps Pods running: Deployments, `ReplicaSet`s, replication controllers, `DaemonSet`s, `StatefulSet`s,
//! and the templates and revisions they keep.

use serde_json::Value;

use super::meta::{immutable, object_meta, object_meta_update};
use super::rule::{
    self, Owner, at_most_all, immutables, int_or_percent, is_nothing, non_negatives, running_template,
    selects_template,
};
use super::{FieldErrors, Path, semantically_equal};
use crate::access::{Access, carry_over, metadata, remove, set, spec, status};
use crate::kind::Ctx;
use crate::name::{dns_label_faults, dns_subdomain_faults};

static NULL: Value = Value::Null;

fn field<'a>(object: &'a Value, name: &str) -> &'a Value {
    object.field(name).unwrap_or(&NULL)
}

/// Rules for a new Deployment.
pub fn deployment(object: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    deployment_spec(spec(object), ctx, &mut errors);
    errors
}

fn deployment_spec(spec: &Value, ctx: &Ctx, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    rule::non_negatives(spec, &["replicas"], &path, errors);
    selects_template(spec, "deployment", &path, errors);
    let owner = Owner { deadline: "ReplicaSet" };
    running_template(field(spec, "template"), owner, ctx, &path.child("template"), errors);
    deployment_strategy(field(spec, "strategy"), &path.child("strategy"), errors);
    non_negatives(
        spec,
        &["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"],
        &path,
        errors,
    );
    let ready = spec.int("minReadySeconds").unwrap_or_default();
    if let Some(deadline) = spec.int("progressDeadlineSeconds").filter(|seconds| *seconds <= ready) {
        errors.invalid(
            &path.child("progressDeadlineSeconds"),
            deadline,
            "must be greater than minReadySeconds",
        );
    }
}

fn deployment_strategy(strategy: &Value, path: &Path, errors: &mut FieldErrors) {
    let rolling = strategy.field("rollingUpdate");
    let below = path.child("rollingUpdate");
    match (strategy.text("type"), rolling) {
        ("Recreate", Some(_)) => {
            errors.forbidden(&below, "may not be specified when strategy `type` is 'Recreate'");
        }
        ("Recreate", None) => {}
        ("RollingUpdate", None) => errors.required(&below, "this should be defaulted and never be nil"),
        ("RollingUpdate", Some(rolling)) => {
            let (gone, more) = (field(rolling, "maxUnavailable"), field(rolling, "maxSurge"));
            int_or_percent(gone, &below.child("maxUnavailable"), errors);
            int_or_percent(more, &below.child("maxSurge"), errors);
            if is_nothing(gone) && is_nothing(more) {
                let detail = "may not be 0 when `maxSurge` is 0";
                errors.invalid(&below.child("maxUnavailable"), gone.clone(), detail);
            }
            at_most_all(gone, &below.child("maxUnavailable"), errors);
        }
        _ => errors.not_supported(path, strategy.clone(), &["Recreate", "RollingUpdate"]),
    }
}

/// Rules for a changed Deployment.
pub fn deployment_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    deployment_spec(spec(new), ctx, &mut errors);
    immutables(spec(new), spec(old), &["selector"], &Path::new("spec"), &mut errors);
    errors
}

/// Rules for a write to the status of a Deployment, `ReplicaSet`, replication controller or `StatefulSet`.
pub fn replicas_status(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    const COUNTS: &[&str] = &[
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "fullyLabeledReplicas",
        "currentReplicas",
        "unavailableReplicas",
        "terminatingReplicas",
        "collisionCount",
    ];
    let mut errors = object_meta_update(new, old);
    let path = Path::new("status");
    let new = status(new);
    non_negatives(new, COUNTS, &path, &mut errors);
    let count = |name: &str| new.int(name).unwrap_or_default();
    for name in ["updatedReplicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas"] {
        if count(name) > count("replicas") {
            errors.invalid(&path.child(name), count(name), "cannot be greater than status.replicas");
        }
    }
    if count("availableReplicas") > count("readyReplicas") {
        let detail = "cannot be greater than readyReplicas";
        errors.invalid(&path.child("availableReplicas"), count("availableReplicas"), detail);
    }
    errors
}

/// Rules for a new `ReplicaSet`.
pub fn replica_set(object: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    replica_set_spec(spec(object), ctx, &mut errors);
    errors
}

fn replica_set_spec(spec: &Value, ctx: &Ctx, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    non_negatives(spec, &["replicas", "minReadySeconds"], &path, errors);
    selects_template(spec, "deployment", &path, errors);
    let owner = Owner { deadline: "ReplicaSet" };
    running_template(field(spec, "template"), owner, ctx, &path.child("template"), errors);
}

/// Rules for a changed `ReplicaSet`.
pub fn replica_set_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    replica_set_spec(spec(new), ctx, &mut errors);
    immutables(spec(new), spec(old), &["selector"], &Path::new("spec"), &mut errors);
    errors
}

/// Rules for a new `ReplicationController`.
pub fn replication_controller(object: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    replication_spec(spec(object), ctx, &mut errors);
    errors
}

fn replication_spec(spec: &Value, ctx: &Ctx, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    non_negatives(spec, &["replicas", "minReadySeconds"], &path, errors);
    let selector = spec.entries("selector");
    if selector.is_empty() {
        errors.required(&path.child("selector"), "");
    }
    let below = path.child("template");
    let Some(template) = spec.field("template") else {
        errors.required(&below, "");
        return;
    };
    let labels = metadata(template).entries("labels");
    if !selector.iter().all(|pair| labels.contains(pair)) {
        let value = field(metadata(template), "labels").clone();
        let path = below.child("metadata").child("labels");
        errors.invalid(&path, value, "`selector` does not match template `labels`");
    }
    running_template(template, Owner { deadline: "ReplicationController" }, ctx, &below, errors);
}

/// Rules for a changed `ReplicationController`.
pub fn replication_controller_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    replication_spec(spec(new), ctx, &mut errors);
    errors
}

/// Rules for a new `DaemonSet`.
pub fn daemon_set(object: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    daemon_set_spec(spec(object), ctx, &mut errors);
    errors
}

fn daemon_set_spec(spec: &Value, ctx: &Ctx, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    selects_template(spec, "daemonset", &path, errors);
    let owner = Owner { deadline: "DaemonSet" };
    running_template(field(spec, "template"), owner, ctx, &path.child("template"), errors);
    non_negatives(spec, &["minReadySeconds", "revisionHistoryLimit"], &path, errors);
    let strategy = field(spec, "updateStrategy");
    let below = path.child("updateStrategy");
    match (strategy.text("type"), strategy.field("rollingUpdate")) {
        ("OnDelete", _) => {}
        ("RollingUpdate", None) => errors.required(&below.child("rollingUpdate"), ""),
        ("RollingUpdate", Some(rolling)) => daemon_roll(rolling, &below.child("rollingUpdate"), errors),
        _ => errors.not_supported(&below, strategy.clone(), &["RollingUpdate", "OnDelete"]),
    }
}

fn daemon_roll(rolling: &Value, path: &Path, errors: &mut FieldErrors) {
    let (gone, more) = (field(rolling, "maxUnavailable"), field(rolling, "maxSurge"));
    for (value, name) in [(gone, "maxUnavailable"), (more, "maxSurge")] {
        int_or_percent(value, &path.child(name), errors);
        at_most_all(value, &path.child(name), errors);
    }
    match (is_nothing(gone), is_nothing(more)) {
        (false, false) => {
            let detail = "may not be set when maxUnavailable is non-zero";
            errors.invalid(&path.child("maxSurge"), more.clone(), detail);
        }
        (true, true) => errors.required(&path.child("maxUnavailable"), "cannot be 0 when maxSurge is 0"),
        _ => {}
    }
}

/// Rules for a changed `DaemonSet`.
pub fn daemon_set_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    immutables(spec(new), spec(old), &["selector"], &Path::new("spec"), &mut errors);
    daemon_set_spec(spec(new), ctx, &mut errors);
    errors
}

/// Rules for a new `StatefulSet`.
pub fn stateful_set(object: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_label_faults);
    let service = spec(object).text("serviceName");
    stateful_set_spec(spec(object), ctx, &mut errors);
    if !service.is_empty() {
        for fault in dns_label_faults(service) {
            errors.invalid(&Path::new("spec").child("serviceName"), service, fault);
        }
    }
    errors
}

fn stateful_set_spec(spec: &Value, ctx: &Ctx, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    let management = spec.text("podManagementPolicy");
    if !matches!(management, "OrderedReady" | "Parallel") {
        let detail = "must be 'OrderedReady' or 'Parallel'";
        errors.invalid(&path.child("podManagementPolicy"), management, detail);
    }
    stateful_strategy(field(spec, "updateStrategy"), &path.child("updateStrategy"), errors);
    let retention = path.child("persistentVolumeClaimRetentionPolicy");
    for name in ["whenDeleted", "whenScaled"] {
        let value = field(spec, "persistentVolumeClaimRetentionPolicy").text(name);
        if !matches!(value, "Retain" | "Delete" | "") {
            errors.not_supported(&retention.child(name), value, &["Delete", "Retain"]);
        }
    }
    non_negatives(spec, &["replicas", "minReadySeconds"], &path, errors);
    non_negatives(field(spec, "ordinals"), &["start"], &path.child("ordinals"), errors);
    selects_template(spec, "statefulset", &path, errors);
    let owner = Owner { deadline: "StatefulSet" };
    running_template(&with_claims(spec), owner, ctx, &path.child("template"), errors);
}

/// The template as its Pods will be: claims become volumes, and the controller names host and subdomain.
fn with_claims(spec: &Value) -> Value {
    let mut template = field(spec, "template").clone();
    let claims = spec.list("volumeClaimTemplates");
    let Some(pod) = template.get_mut("spec") else { return template };
    remove(pod, "hostname");
    remove(pod, "subdomain");
    let names: Vec<&str> = claims.iter().map(|claim| metadata(claim).text("name")).collect();
    let volumes = names
        .iter()
        .map(|name| serde_json::json!({"name": name, "persistentVolumeClaim": {"claimName": name}}));
    let own = pod.list("volumes").iter().filter(|volume| !names.contains(&volume.text("name"))).cloned();
    let all: Vec<Value> = volumes.chain(own).collect();
    if !all.is_empty() {
        set(pod, "volumes", all);
    }
    template
}

fn stateful_strategy(strategy: &Value, path: &Path, errors: &mut FieldErrors) {
    let below = path.child("rollingUpdate");
    match (strategy.text("type"), strategy.field("rollingUpdate")) {
        ("OnDelete", Some(rolling)) => {
            errors.invalid(&below, rolling.clone(), "only allowed for updateStrategy 'RollingUpdate'");
        }
        ("RollingUpdate", Some(rolling)) => {
            non_negatives(rolling, &["partition"], &below, errors);
            if let Some(gone) = rolling.field("maxUnavailable") {
                let path = below.child("maxUnavailable");
                int_or_percent(gone, &path, errors);
                if is_nothing(gone) {
                    errors.invalid(&path, gone.clone(), "cannot be 0");
                }
                at_most_all(gone, &path, errors);
            }
        }
        ("OnDelete" | "RollingUpdate", None) => {}
        ("", _) => errors.required(path, ""),
        _ => errors.invalid(path, strategy.clone(), "must be 'RollingUpdate' or 'OnDelete'"),
    }
}

/// Rules for a changed `StatefulSet`: only some fields change.
pub fn stateful_set_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    const CHANGEABLE: &[&str] = &[
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let mut errors = object_meta_update(new, old);
    stateful_set_spec(spec(new), ctx, &mut errors);
    let mut munged = spec(new).clone();
    for name in CHANGEABLE {
        carry_over(&mut munged, spec(old), name);
    }
    if !semantically_equal(&munged, spec(old)) {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        errors.forbidden(&Path::new("spec"), detail);
    }
    errors
}

/// Rules for a new `ControllerRevision`.
pub fn revision(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    non_negatives(object, &["revision"], &Path::root(), &mut errors);
    match object.field("data") {
        None => errors.required(&Path::new("data"), "data is mandatory"),
        Some(Value::Object(_)) => {}
        Some(_) => errors.required(&Path::new("data"), "data must be a valid JSON object"),
    }
    errors
}

/// Rules for a changed `ControllerRevision`: its data stays.
pub fn revision_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    non_negatives(new, &["revision"], &Path::root(), &mut errors);
    immutable(field(new, "data"), field(old, "data"), &Path::new("data"), &mut errors);
    errors
}

/// Rules for a new `PodTemplate`.
pub fn pod_template(object: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    rule::template(field(object, "template"), ctx, &Path::new("template"), &mut errors);
    errors
}

/// Rules for a changed `PodTemplate`.
pub fn pod_template_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(pod_template(new, ctx));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Gates;
    use jiff::Timestamp;
    use serde_json::json;

    fn ctx() -> Ctx {
        Ctx { now: Timestamp::UNIX_EPOCH, gates: Gates::default() }
    }

    /// An object of a kind, with its defaults.
    fn made(type_name: &str, more: &Value) -> Value {
        let mut object = json!({"metadata": {"name": "a", "namespace": "d", "resourceVersion": "1"}, "spec": {
            "selector": {"matchLabels": {"app": "a"}}, "template": {"metadata": {"labels": {"app": "a"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
        for (name, value) in more.as_object().unwrap() {
            object["spec"][name] = value.clone();
        }
        crate::default::apply(crate::schema::type_named(type_name).unwrap(), &mut object);
        object
    }

    #[test]
    fn a_deployment_rolls_within_bounds_and_keeps_its_selector() {
        let check = |more: Value| deployment(&made("apps.v1.Deployment", &more), &ctx()).to_string();
        assert_eq!(check(json!({})), "[]");
        assert_eq!(
            check(json!({"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 0}}})),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"
        );
        assert_eq!(
            check(json!({"strategy": {"type": "Recreate", "rollingUpdate": {}}})),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"
        );
        assert_eq!(
            check(json!({"minReadySeconds": 700})),
            "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"
        );
        let old = made("apps.v1.Deployment", &json!({}));
        let mut new = old.clone();
        new["spec"]["selector"]["matchLabels"] = json!({"app": "a", "x": "y"});
        new["spec"]["template"]["metadata"]["labels"] = json!({"app": "a", "x": "y"});
        assert_eq!(
            deployment_update(&new, &old, &ctx()).to_string(),
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"a\",\"x\":\"y\"}}: field is immutable"
        );
    }

    #[test]
    fn pods_of_workloads_are_started_again() {
        let mut object = made("apps.v1.ReplicaSet", &json!({}));
        object["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
        assert_eq!(
            replica_set(&object, &ctx()).to_string(),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""
        );
    }

    #[test]
    fn a_stateful_set_changes_in_some_fields_alone() {
        let old = made("apps.v1.StatefulSet", &json!({"serviceName": "s"}));
        assert_eq!(stateful_set(&old, &ctx()).to_string(), "[]");
        let mut new = old.clone();
        new["spec"]["replicas"] = 3.into();
        assert_eq!(stateful_set_update(&new, &old, &ctx()).to_string(), "[]");
        new["spec"]["serviceName"] = "t".into();
        assert!(
            stateful_set_update(&new, &old, &ctx())
                .to_string()
                .starts_with("spec: Forbidden: updates to statefulset spec for fields other than 'replicas'")
        );
    }

    #[test]
    fn the_claims_of_a_stateful_set_can_be_mounted() {
        let mut object = made(
            "apps.v1.StatefulSet",
            &json!({
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]}),
        );
        object["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/data"}]);
        assert_eq!(stateful_set(&object, &ctx()).to_string(), "[]");
    }

    #[test]
    fn a_daemon_set_rolls_or_surges() {
        let check = |rolling: Value| {
            let strategy = json!({"updateStrategy": {"rollingUpdate": rolling}});
            daemon_set(&made("apps.v1.DaemonSet", &strategy), &ctx()).to_string()
        };
        assert_eq!(check(json!({})), "[]");
        assert_eq!(
            check(json!({"maxUnavailable": 1, "maxSurge": 1})),
            "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero"
        );
    }

    #[test]
    fn counts_of_a_status_add_up() {
        let old = made("apps.v1.Deployment", &json!({}));
        let mut new = old.clone();
        new["status"] = json!({"replicas": 1, "readyReplicas": 2});
        assert_eq!(
            replicas_status(&new, &old, &ctx()).to_string(),
            "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"
        );
    }
}
