//! Rows of what makes Pods: Deployments and their kin, Jobs, and the templates and revisions they keep.

use jiff::Timestamp;
use serde_json::Value;

use super::text::{self, NONE, UNSET, number};
use super::{Column, age_cell, name_cell};
use crate::access::{Access, metadata, spec, status};
use crate::time;

const CONTAINERS: Column = Column::wide("Containers", "The names of the containers.");
const IMAGES: Column = Column::wide("Images", "The images of the containers.");
const SELECTOR: Column = Column::wide("Selector", "Which Pods belong to it.");

/// The columns of a Deployment.
pub(crate) const DEPLOYMENT: &[Column] = &[
    Column::NAME,
    Column::text("Ready", "How many Pods are ready, of how many."),
    Column::text("Up-to-date", "How many Pods are made from the newest template."),
    Column::text("Available", "How many Pods have been ready for long enough."),
    Column::AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The columns of a `ReplicaSet` and a `ReplicationController`.
pub(crate) const REPLICAS: &[Column] = &[
    Column::NAME,
    Column::integer("Desired", "How many Pods there shall be."),
    Column::integer("Current", "How many Pods there are."),
    Column::integer("Ready", "How many Pods are ready."),
    Column::AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The columns of a `DaemonSet`.
pub(crate) const DAEMON_SET: &[Column] = &[
    Column::NAME,
    Column::integer("Desired", "On how many nodes a Pod shall run."),
    Column::integer("Current", "On how many of those nodes a Pod is."),
    Column::integer("Ready", "On how many nodes the Pod is ready."),
    Column::integer("Up-to-date", "On how many nodes the Pod is made from the newest template."),
    Column::integer("Available", "On how many nodes the Pod has been ready for long enough."),
    Column::text("Node Selector", "Which nodes are meant."),
    Column::AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The columns of a `StatefulSet`.
pub(crate) const STATEFUL_SET: &[Column] = &[
    Column::NAME,
    Column::text("Ready", "How many Pods are ready, of how many."),
    Column::AGE,
    CONTAINERS,
    IMAGES,
];

/// The columns of a Job.
pub(crate) const JOB: &[Column] = &[
    Column::NAME,
    Column::text("Status", "How the Job stands."),
    Column::text("Completions", "How many Pods have succeeded, of how many."),
    Column::text("Duration", "How long the Job has run."),
    Column::AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The columns of a `CronJob`.
pub(crate) const CRON_JOB: &[Column] = &[
    Column::NAME,
    Column::text("Schedule", "When it runs."),
    Column::text("Timezone", "The time zone of the schedule."),
    Column::boolean("Suspend", "Whether no further run is started."),
    Column::integer("Active", "How many runs there are now."),
    Column::text("Last Schedule", "The time since the last run was started."),
    Column::AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

/// The columns of a `PodTemplate`.
pub(crate) const POD_TEMPLATE: &[Column] = &[
    Column::NAME,
    Column::text("Containers", "The names of the containers."),
    Column::text("Images", "The images of the containers."),
    Column::text("Pod Labels", "The labels that Pods get."),
];

/// The columns of a `ControllerRevision`.
pub(crate) const REVISION: &[Column] = &[
    Column::NAME,
    Column::text("Controller", "What it is a state of."),
    Column::text("Revision", "The number of the state."),
    Column::AGE,
];

fn template(object: &Value) -> &Value {
    spec(object).field("template").unwrap_or(&Value::Null)
}

fn with_pods(mut row: Vec<Value>, template: &Value, selector: Option<String>) -> Vec<Value> {
    row.extend(text::containers(template));
    row.extend(selector.map(Value::from));
    row
}

fn selector_of(object: &Value) -> String {
    text::selector(spec(object).field("selector"))
}

fn ready(object: &Value) -> String {
    format!("{}/{}", number(status(object), "readyReplicas"), number(spec(object), "replicas"))
}

pub(crate) fn deployment(object: &Value, now: Timestamp) -> Vec<Value> {
    let row = vec![
        name_cell(object),
        ready(object).into(),
        number(status(object), "updatedReplicas").into(),
        number(status(object), "availableReplicas").into(),
        age_cell(object, now),
    ];
    with_pods(row, template(object), Some(selector_of(object)))
}

fn replicas(object: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    let row = vec![
        name_cell(object),
        number(spec(object), "replicas").into(),
        number(status(object), "replicas").into(),
        number(status(object), "readyReplicas").into(),
        age_cell(object, now),
    ];
    with_pods(row, template(object), Some(selector))
}

pub(crate) fn replica_set(object: &Value, now: Timestamp) -> Vec<Value> {
    replicas(object, now, selector_of(object))
}

pub(crate) fn replication_controller(object: &Value, now: Timestamp) -> Vec<Value> {
    replicas(object, now, text::labels(spec(object), "selector"))
}

pub(crate) fn daemon_set(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = |name: &str| Value::from(number(status(object), name));
    let row = vec![
        name_cell(object),
        count("desiredNumberScheduled"),
        count("currentNumberScheduled"),
        count("numberReady"),
        count("updatedNumberScheduled"),
        count("numberAvailable"),
        text::labels(spec(template(object)), "nodeSelector").into(),
        age_cell(object, now),
    ];
    with_pods(row, template(object), Some(selector_of(object)))
}

pub(crate) fn stateful_set(object: &Value, now: Timestamp) -> Vec<Value> {
    with_pods(vec![name_cell(object), ready(object).into(), age_cell(object, now)], template(object), None)
}

pub(crate) fn job(object: &Value, now: Timestamp) -> Vec<Value> {
    let row = vec![
        name_cell(object),
        job_state(object).into(),
        completions(object).into(),
        job_duration(object, now).into(),
        age_cell(object, now),
    ];
    with_pods(row, template(object), Some(selector_of(object)))
}

fn job_state(job: &Value) -> &'static str {
    let has = |wanted: &str| {
        let conditions = status(job).list("conditions");
        conditions.iter().any(|c| c.text("type") == wanted && c.text("status") == "True")
    };
    let is_deleted = metadata(job).field("deletionTimestamp").is_some();
    match () {
        () if has("Complete") => "Complete",
        () if has("Failed") => "Failed",
        () if is_deleted => "Terminating",
        () if has("Suspended") => "Suspended",
        () if has("FailureTarget") => "FailureTarget",
        () if has("SuccessCriteriaMet") => "SuccessCriteriaMet",
        () => "Running",
    }
}

fn completions(job: &Value) -> String {
    let succeeded = number(status(job), "succeeded");
    match (spec(job).int("completions"), number(spec(job), "parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let Some(begun) = time::of(status(job).field("startTime")) else { return String::new() };
    let ended = time::of(status(job).field("completionTime")).unwrap_or(now);
    time::human_duration(ended.duration_since(begun))
}

pub(crate) fn cron_job(object: &Value, now: Timestamp) -> Vec<Value> {
    let none = Value::Null;
    let job = spec(object).field("jobTemplate").unwrap_or(&none);
    let suspend = match spec(object).flag("suspend") {
        Some(true) => "True",
        Some(false) => "False",
        None => UNSET,
    };
    let last = status(object).field("lastScheduleTime");
    let last = last.map_or_else(|| NONE.to_owned(), |at| time::age(time::of(Some(at)), now));
    let row = vec![
        name_cell(object),
        spec(object).text("schedule").into(),
        text::field_or(spec(object), "timeZone", NONE).into(),
        suspend.into(),
        status(object).list("active").len().into(),
        last.into(),
        age_cell(object, now),
    ];
    with_pods(row, template(job), Some(selector_of(job)))
}

pub(crate) fn pod_template(object: &Value, _now: Timestamp) -> Vec<Value> {
    let none = Value::Null;
    let template = object.field("template").unwrap_or(&none);
    let labels = text::labels(metadata(template), "labels");
    [vec![name_cell(object)], text::containers(template).into(), vec![labels.into()]].concat()
}

pub(crate) fn revision(object: &Value, now: Timestamp) -> Vec<Value> {
    let owner = metadata(object).list("ownerReferences").iter().find(|owner| owner.is_true("controller"));
    let controller = owner.map_or_else(
        || NONE.to_owned(),
        |owner| {
            let group = owner.text("apiVersion").rsplit_once('/').map_or("", |(group, _)| group);
            let dot = if group.is_empty() { "" } else { "." };
            format!("{}{dot}{group}/{}", owner.text("kind"), owner.text("name")).to_lowercase()
        },
    );
    vec![name_cell(object), controller.into(), number(object, "revision").into(), age_cell(object, now)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    fn meta() -> Value {
        json!({"name": "a", "creationTimestamp": "2026-11-23T11:59:00Z"})
    }

    fn pods() -> Value {
        json!({"metadata": {"labels": {"app": "a"}}, "spec": {"nodeSelector": {"disk": "ssd"},
            "containers": [{"name": "x", "image": "nginx"}, {"name": "y", "image": "debian:12"}]}})
    }

    #[test]
    fn a_deployment_shows_its_numbers_and_its_containers() {
        let object = json!({"metadata": meta(),
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "a"}}, "template": pods()},
            "status": {"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1}});
        assert_eq!(
            deployment(&object, now()),
            ["a", "1/3"]
                .into_iter()
                .map(Value::from)
                .chain([
                    2.into(),
                    1.into(),
                    "60s".into(),
                    "x,y".into(),
                    "nginx,debian:12".into(),
                    "app=a".into()
                ])
                .collect::<Vec<Value>>()
        );
    }

    #[test]
    fn a_daemon_set_names_its_nodes() {
        let object = json!({"metadata": meta(), "spec": {"template": pods()}, "status": {"numberReady": 2}});
        let row = daemon_set(&object, now());
        assert_eq!((&row[3], &row[6]), (&json!(2), &json!("disk=ssd")));
    }

    #[test]
    fn a_job_counts_what_succeeded() {
        let job_of = |spec: Value| {
            json!({"metadata": meta(), "spec": spec, "status": {"succeeded": 1,
            "startTime": "2026-11-23T11:50:00Z", "completionTime": "2026-11-23T11:52:30Z",
            "conditions": [{"type": "Complete", "status": "True"}]}})
        };
        let row = job(&job_of(json!({"completions": 3, "template": pods()})), now());
        assert_eq!(row[1..4], [json!("Complete"), json!("1/3"), json!("2m30s")]);
        assert_eq!(completions(&job_of(json!({"parallelism": 4}))), "1/1 of 4");
        assert_eq!(completions(&job_of(json!({}))), "1/1");
    }

    #[test]
    fn a_cron_job_that_never_ran_says_none() {
        let object = json!({"metadata": meta(), "spec": {"schedule": "*/5 * * * *", "suspend": false}});
        let row = cron_job(&object, now());
        assert_eq!(
            row[1..6],
            [json!("*/5 * * * *"), json!("<none>"), json!("False"), json!(0), json!("<none>")]
        );
    }

    #[test]
    fn a_revision_names_its_controller() {
        let object = json!({"metadata": {"name": "r", "ownerReferences":
            [{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "controller": true}]}, "revision": 7});
        assert_eq!(revision(&object, now())[1..3], [json!("daemonset.apps/d"), json!(7)]);
    }
}
