//! What is the own of workloads: defaults that look at the whole object, the selector of a Job, and the count of a
//! `DaemonSet`'s templates.

use serde_json::{Map, Value, json};

use super::{Ctx, strategy};
use crate::access::{Access, metadata, object_at, set, spec};
use crate::validation::semantically_equal;

/// How often the template of a `DaemonSet` has changed.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

fn set_absent(fields: &mut Map<String, Value>, name: &str, value: impl Into<Value>) {
    if fields.get(name).is_none_or(Value::is_null) {
        fields.insert(name.to_owned(), value.into());
    }
}

fn template_labels(object: &Value) -> Option<Map<String, Value>> {
    let labels = metadata(spec(object).field("template")?).map("labels")?;
    (!labels.is_empty()).then(|| labels.clone())
}

/// An object without labels takes those of its Pods.
fn label_as_template(object: &mut Value) {
    if let Some(labels) = template_labels(object)
        && metadata(object).map("labels").is_none_or(Map::is_empty)
    {
        object_at(object, "metadata").insert("labels".into(), labels.into());
    }
}

/// A replication controller selects its template's Pods unless it says otherwise.
pub(super) fn default_replication_controller(object: &mut Value) {
    if let Some(labels) = template_labels(object)
        && spec(object).map("selector").is_none_or(Map::is_empty)
    {
        object_at(object, "spec").insert("selector".into(), labels.into());
    }
    label_as_template(object);
}

/// The numbers of a Job; those of a `CronJob`'s template stay as written until a Job is made of it.
pub(super) fn default_job(job: &mut Value) {
    label_as_template(job);
    let has = |name: &str| spec(job).field(name).is_some();
    let (limits_index, has_policy) = (has("backoffLimitPerIndex"), has("podFailurePolicy"));
    let is_single = !has("completions") && !has("parallelism");
    let spec = object_at(job, "spec");
    if is_single {
        set_absent(spec, "completions", 1);
    }
    set_absent(spec, "parallelism", 1);
    set_absent(spec, "backoffLimit", if limits_index { i32::MAX } else { 6 });
    set_absent(spec, "completionMode", "NonIndexed");
    set_absent(spec, "suspend", false);
    set_absent(spec, "podReplacementPolicy", if has_policy { "Failed" } else { "TerminatingOrFailed" });
    set_absent(spec, "manualSelector", false);
}

/// A new Job selects the Pods that carry its UID.
pub(super) fn create_job(job: &mut Value, ctx: &Ctx) {
    strategy::controlled_create(job, ctx);
    if spec(job).is_true("manualSelector") {
        return;
    }
    let (name, uid) = (metadata(job).text("name").to_owned(), metadata(job).text("uid").to_owned());
    object_at(job, "spec");
    let Some(spec) = job.get_mut("spec") else { return };
    object_at(spec, "template");
    if let Some(template) = spec.get_mut("template") {
        object_at(template, "metadata");
        if let Some(meta) = template.get_mut("metadata") {
            let labels = object_at(meta, "labels");
            for (key, value) in [
                ("job-name", &name),
                ("batch.kubernetes.io/job-name", &name),
                ("controller-uid", &uid),
                ("batch.kubernetes.io/controller-uid", &uid),
            ] {
                set_absent(labels, key, value.as_str());
            }
        }
    }
    object_at(spec, "selector");
    if let Some(selector) = spec.get_mut("selector") {
        set_absent(object_at(selector, "matchLabels"), "batch.kubernetes.io/controller-uid", uid);
    }
}

/// A new `DaemonSet` has its first template.
pub(super) fn create_daemon_set(object: &mut Value, ctx: &Ctx) {
    strategy::controlled_create(object, ctx);
    count_templates(object, 1);
}

/// A changed template counts.
pub(super) fn update_daemon_set(object: &mut Value, old: &Value, ctx: &Ctx) {
    strategy::controlled_update(object, old, ctx);
    let null = Value::Null;
    let template = |object: &Value| spec(object).field("template").unwrap_or(&null).clone();
    let annotations = metadata(old).entries("annotations");
    let counted = annotations.iter().find(|(key, _)| *key == TEMPLATE_GENERATION);
    let count: i64 = counted.and_then(|(_, count)| count.parse().ok()).unwrap_or_default();
    count_templates(object, count + i64::from(!semantically_equal(&template(object), &template(old))));
}

fn count_templates(object: &mut Value, count: i64) {
    object_at(object, "metadata");
    if let Some(meta) = object.get_mut("metadata") {
        object_at(meta, "annotations").insert(TEMPLATE_GENERATION.into(), count.to_string().into());
    }
}

/// The claims that a `StatefulSet` makes say what they are.
pub(super) fn default_stateful_set(object: &mut Value) {
    let claims = object.pointer_mut("/spec/volumeClaimTemplates").and_then(Value::as_array_mut);
    for claim in claims.into_iter().flatten() {
        if claim.text("kind").is_empty() {
            set(claim, "kind", "PersistentVolumeClaim");
        }
        if claim.text("apiVersion").is_empty() {
            set(claim, "apiVersion", "v1");
        }
    }
}

/// An autoscaler without a metric looks at the CPU, and rules that are given in part are filled in.
pub(super) fn default_autoscaler(object: &mut Value) {
    let spec = object_at(object, "spec");
    if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        let target = json!({"type": "Utilization", "averageUtilization": 80});
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
        spec.insert("metrics".into(), json!([metric]));
    }
    if let Some(behavior) = spec.get_mut("behavior").filter(|behavior| behavior.is_object()) {
        let policy = |kind: &str, value: i64| json!({"type": kind, "value": value, "periodSeconds": 15});
        let up = object_at(behavior, "scaleUp");
        set_absent(up, "stabilizationWindowSeconds", 0);
        set_absent(up, "selectPolicy", "Max");
        set_absent(up, "policies", json!([policy("Pods", 4), policy("Percent", 100)]));
        let down = object_at(behavior, "scaleDown");
        set_absent(down, "selectPolicy", "Max");
        set_absent(down, "policies", json!([policy("Percent", 100)]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Gates;
    use jiff::Timestamp;

    fn ctx() -> Ctx {
        Ctx { now: Timestamp::UNIX_EPOCH, gates: Gates::default() }
    }

    #[test]
    fn a_job_without_numbers_runs_once() {
        let mut job = json!({"spec": {}});
        default_job(&mut job);
        assert_eq!(
            job["spec"],
            json!({"completions": 1, "parallelism": 1, "backoffLimit": 6, "completionMode": "NonIndexed",
                "suspend": false, "podReplacementPolicy": "TerminatingOrFailed", "manualSelector": false})
        );
        let mut job = json!({"spec": {"parallelism": 2, "backoffLimitPerIndex": 1}});
        default_job(&mut job);
        assert_eq!((job["spec"].get("completions"), &job["spec"]["backoffLimit"]), (None, &json!(i32::MAX)));
    }

    #[test]
    fn a_job_selects_its_own_pods() {
        let mut job = json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"manualSelector": false}});
        create_job(&mut job, &ctx());
        assert_eq!(
            job["spec"]["selector"],
            json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}})
        );
        assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
        assert_eq!(job["metadata"]["generation"], 1);
    }

    #[test]
    fn a_replication_controller_takes_its_templates_labels() {
        let mut object = json!({"metadata": {}, "spec": {"template": {"metadata": {"labels": {"a": "b"}}}}});
        default_replication_controller(&mut object);
        assert_eq!(object["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(object["metadata"]["labels"], json!({"a": "b"}));
    }

    #[test]
    fn a_changed_template_of_a_daemon_set_counts() {
        let mut old = json!({"metadata": {}, "spec": {"template": {"x": 1}}});
        create_daemon_set(&mut old, &ctx());
        assert_eq!(old["metadata"]["annotations"][TEMPLATE_GENERATION], "1");
        let mut new = json!({"metadata": {}, "spec": {"template": {"x": 2}}});
        update_daemon_set(&mut new, &old, &ctx());
        assert_eq!(new["metadata"]["annotations"][TEMPLATE_GENERATION], "2");
        assert_eq!(new["metadata"]["generation"], 2);
    }

    #[test]
    fn rules_given_in_part_are_filled_in() {
        let mut object = json!({"spec": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 5}}}});
        default_autoscaler(&mut object);
        assert_eq!(object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert_eq!(object["spec"]["behavior"]["scaleUp"]["policies"][0]["value"], 4);
        assert_eq!(object["spec"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"], 5);
    }
}
