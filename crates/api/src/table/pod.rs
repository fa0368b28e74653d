//! The row of a Pod: the STATUS column as `kubectl` users know it.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, age_cell, name_cell};
use crate::access::{Access, metadata, spec, status};
use crate::time;

/// The condition in which the kubelet says what became of the Pod's user namespace.
const USER_NAMESPACE: &str = "kakoi.dev/UserNamespace";

/// The columns of a Pod.
pub(crate) const COLUMNS: &[Column] = &[
    Column::NAME,
    Column::text("Ready", "How many containers are ready, of how many."),
    Column::text("Status", "What the containers do, in one word."),
    Column::text("Restarts", "How often containers were started again, and when last."),
    Column::AGE,
    Column::wide("IP", "The Pod's first IP address."),
    Column::wide("Node", "The node that runs the Pod."),
    Column::wide("Nominated Node", "The node on which room is being made for the Pod."),
    Column::wide("Readiness Gates", "How many extra conditions of readiness hold, of how many."),
    Column::wide("Host-UIDs", "The node's IDs that are the Pod's own, or why it has the node's."),
];

/// The cells of [`COLUMNS`].
pub(crate) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let or_none = |text: &str| -> Value { if text.is_empty() { "<none>".into() } else { text.into() } };
    let ip = status(pod).list("podIPs").first().map_or("", |ip| ip.text("ip"));
    vec![
        name_cell(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.clone().into(),
        summary.restarts_cell(now).into(),
        age_cell(pod, now),
        or_none(ip),
        or_none(spec(pod).text("nodeName")),
        or_none(status(pod).text("nominatedNodeName")),
        readiness_gates(pod).into(),
        or_none(&host_uids(pod)),
    ]
}

/// The Pod's range, which begins the message of its condition, or `node` and why it has none.
fn host_uids(pod: &Value) -> String {
    let mut conditions = status(pod).list("conditions").iter();
    let Some(condition) = conditions.find(|c| c.text("type") == USER_NAMESPACE) else { return String::new() };
    match condition.text("status") {
        "True" => condition.text("message").split(' ').next().unwrap_or_default().to_owned(),
        _ => format!("node ({})", condition.text("reason")),
    }
}

/// A Pod that has ended says so beside the cells.
pub(crate) fn row_conditions(pod: &Value) -> Vec<Value> {
    let (reason, message) = match status(pod).text("phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return Vec::new(),
    };
    vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
}

#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<Timestamp>,
}

impl Restarts {
    fn add(&mut self, container: &Value) {
        self.count += container.int("restartCount").unwrap_or_default();
        let finished = time::of(container.pointer("/lastState/terminated/finishedAt"));
        self.last = self.last.max(finished);
    }
}

/// What the row says about the containers.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: Restarts,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let (spec, status) = (spec(pod), status(pod));
        let sidecars: Vec<&str> =
            spec.list("initContainers").iter().filter(|c| is_sidecar(c)).map(|c| c.text("name")).collect();
        let mut summary = Self {
            ready: 0,
            total: spec.list("containers").len() + sidecars.len(),
            reason: first_reason(status),
            restarts: Restarts::default(),
        };
        let sidecar_restarts = summary.read_init_containers(spec, status, &sidecars);
        if let Some(restarts) = sidecar_restarts {
            summary.restarts = restarts;
            summary.read_containers(status);
        }
        summary.read_deletion(pod);
        summary
    }

    /// Reads the init containers; gives the sidecars' restarts if the Pod is through with initialization.
    fn read_init_containers(&mut self, spec: &Value, status: &Value, sidecars: &[&str]) -> Option<Restarts> {
        let mut sidecar_restarts = Restarts::default();
        let mut is_initializing = false;
        for (i, container) in status.list("initContainerStatuses").iter().enumerate() {
            self.restarts.add(container);
            let is_sidecar = sidecars.contains(&container.text("name"));
            if is_sidecar {
                sidecar_restarts.add(container);
            }
            let terminated = container.pointer("/state/terminated");
            if terminated.is_some_and(|t| t.int("exitCode") == Some(0)) {
                continue;
            }
            if is_sidecar && container.is_true("started") {
                self.ready += usize::from(container.is_true("ready"));
                continue;
            }
            let waiting = container.pointer("/state/waiting").map_or("", |w| w.text("reason"));
            self.reason = match terminated {
                Some(terminated) => format!("Init:{}", termination(terminated)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
                None => format!("Init:{i}/{}", spec.list("initContainers").len()),
            };
            is_initializing = true;
            break;
        }
        (!is_initializing || has_condition(status, "Initialized")).then_some(sidecar_restarts)
    }

    fn read_containers(&mut self, status: &Value) {
        let mut has_running = false;
        let mut error_reason = String::new();
        for container in status.list("containerStatuses").iter().rev() {
            self.restarts.add(container);
            let waiting = container.pointer("/state/waiting").map_or("", |w| w.text("reason"));
            if !waiting.is_empty() {
                waiting.clone_into(&mut self.reason);
            } else if let Some(terminated) = container.pointer("/state/terminated") {
                self.reason = termination(terminated);
                if terminated.int("exitCode").unwrap_or_default() != 0 {
                    self.reason.clone_into(&mut error_reason);
                }
            } else if container.is_true("ready") && container.pointer("/state/running").is_some() {
                has_running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" {
            if has_running && has_condition(status, "Ready") {
                "Running".clone_into(&mut self.reason);
            } else if !error_reason.is_empty() {
                self.reason = error_reason;
            } else if has_running {
                "NotReady".clone_into(&mut self.reason);
            }
        }
    }

    fn read_deletion(&mut self, pod: &Value) {
        if metadata(pod).field("deletionTimestamp").is_none() {
            return;
        }
        let is_over = matches!(status(pod).text("phase"), "Failed" | "Succeeded");
        if status(pod).text("reason") == "NodeLost" {
            "Unknown".clone_into(&mut self.reason);
        } else if !is_over {
            "Terminating".clone_into(&mut self.reason);
        }
    }

    fn restarts_cell(&self, now: Timestamp) -> String {
        let count = self.restarts.count;
        match self.restarts.last {
            Some(last) if count != 0 => format!("{count} ({} ago)", time::age(Some(last), now)),
            _ => count.to_string(),
        }
    }
}

fn first_reason(status: &Value) -> String {
    let is_gated = status
        .list("conditions")
        .iter()
        .any(|c| c.text("type") == "PodScheduled" && c.text("reason") == "SchedulingGated");
    match (is_gated, status.text("reason")) {
        (true, _) => "SchedulingGated",
        (false, "") => status.text("phase"),
        (false, reason) => reason,
    }
    .to_owned()
}

fn termination(terminated: &Value) -> String {
    let signal = terminated.int("signal").unwrap_or_default();
    match terminated.text("reason") {
        "" if signal != 0 => format!("Signal:{signal}"),
        "" => format!("ExitCode:{}", terminated.int("exitCode").unwrap_or_default()),
        reason => reason.to_owned(),
    }
}

fn is_sidecar(container: &Value) -> bool {
    container.text("restartPolicy") == "Always"
}

fn has_condition(status: &Value, kind: &str) -> bool {
    status.list("conditions").iter().any(|c| c.text("type") == kind && c.text("status") == "True")
}

fn readiness_gates(pod: &Value) -> String {
    let gates = spec(pod).list("readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let held = gates.iter().filter(|g| has_condition(status(pod), g.text("conditionType"))).count();
    format!("{held}/{}", gates.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells(pod: &Value) -> (String, String, String) {
        let row = row(pod, "2026-11-23T12:00:05Z".parse().unwrap());
        let cell = |i: usize| row[i].as_str().unwrap().to_owned();
        (cell(1), cell(2), cell(3))
    }

    #[expect(clippy::needless_pass_by_value, reason = "the tests read better with literals")]
    fn expect(spec: Value, status: Value, ready: &str, reason: &str, restarts: &str) {
        let (a, b, c) = cells(&json!({"metadata": {"name": "p"}, "spec": spec, "status": status}));
        assert_eq!((a.as_str(), b.as_str(), c.as_str()), (ready, reason, restarts));
    }

    fn one() -> Value {
        json!({"containers": [{"name": "a"}]})
    }

    #[test]
    fn a_running_pod_and_one_that_waits() {
        let running = json!([{"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}}]);
        expect(one(), json!({"phase": "Running", "containerStatuses": running}), "1/1", "Running", "0");
        expect(one(), json!({"phase": "Pending"}), "0/1", "Pending", "0");
        let creating =
            json!([{"name": "a", "ready": false, "state": {"waiting": {"reason": "ContainerCreating"}}}]);
        expect(
            one(),
            json!({"phase": "Pending", "containerStatuses": creating}),
            "0/1",
            "ContainerCreating",
            "0",
        );
    }

    #[test]
    fn a_crash_loop_says_when_it_restarted_last() {
        let status = json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": false, "restartCount": 1,
            "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "finishedAt": "2026-11-23T12:00:00Z"}}}]});
        expect(one(), status, "0/1", "CrashLoopBackOff", "1 (5s ago)");
    }

    #[test]
    fn ended_containers_tell_how() {
        let ended = |terminated: Value| json!({"phase": "Failed", "containerStatuses": [{"name": "a", "state": {"terminated": terminated}}]});
        expect(one(), ended(json!({"exitCode": 0, "reason": "Completed"})), "0/1", "Completed", "0");
        expect(one(), ended(json!({"exitCode": 1, "reason": "Error"})), "0/1", "Error", "0");
        expect(one(), ended(json!({"exitCode": 3})), "0/1", "ExitCode:3", "0");
        expect(one(), ended(json!({"exitCode": 137, "signal": 9})), "0/1", "Signal:9", "0");
        expect(one(), ended(json!({"exitCode": 137, "reason": "OOMKilled"})), "0/1", "OOMKilled", "0");
    }

    #[test]
    fn one_completed_container_beside_a_running_one_is_not_ready() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let containers = json!([{"name": "a", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}},
            {"name": "b", "ready": true, "state": {"running": {}}}]);
        expect(
            spec.clone(),
            json!({"phase": "Running", "containerStatuses": containers}),
            "1/2",
            "NotReady",
            "0",
        );
        let ready = json!([{"type": "Ready", "status": "True"}]);
        expect(
            spec,
            json!({"phase": "Running", "containerStatuses": containers, "conditions": ready}),
            "1/2",
            "Running",
            "0",
        );
    }

    #[test]
    fn init_containers_count_up() {
        let spec = json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
        let init = |statuses: Value| json!({"phase": "Pending", "initContainerStatuses": statuses});
        expect(spec.clone(), init(json!([{"name": "i", "state": {"running": {}}}])), "0/1", "Init:0/2", "0");
        let done = json!({"name": "i", "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}});
        expect(
            spec.clone(),
            init(json!([done, {"name": "j", "state": {"waiting": {"reason": "PodInitializing"}}}])),
            "0/1",
            "Init:1/2",
            "0",
        );
        expect(
            spec.clone(),
            init(
                json!([{"name": "i", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
            ),
            "0/1",
            "Init:CrashLoopBackOff",
            "2",
        );
        expect(
            spec.clone(),
            init(json!([{"name": "i", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}])),
            "0/1",
            "Init:Error",
            "0",
        );
        expect(
            spec,
            init(json!([{"name": "i", "state": {"terminated": {"exitCode": 7}}}])),
            "0/1",
            "Init:ExitCode:7",
            "0",
        );
    }

    #[test]
    fn a_sidecar_is_one_of_the_containers() {
        let spec = json!({"initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}]});
        let status = json!({"phase": "Running",
            "initContainerStatuses": [{"name": "s", "ready": true, "started": true, "restartCount": 1, "state": {"running": {}}}],
            "containerStatuses": [{"name": "a", "ready": true, "state": {"running": {}}}]});
        expect(spec, status, "2/2", "Running", "1");
    }

    #[test]
    fn deletion_gates_and_eviction_show() {
        let pod = json!({"metadata": {"name": "p", "deletionTimestamp": "2026-11-23T12:00:00Z"}, "spec": one(), "status": {"phase": "Running"}});
        assert_eq!(row(&pod, Timestamp::UNIX_EPOCH)[2], "Terminating");
        expect(one(), json!({"phase": "Failed", "reason": "Evicted"}), "0/1", "Evicted", "0");
        let gated = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]});
        expect(one(), gated, "0/1", "SchedulingGated", "0");
    }

    #[test]
    fn the_wide_columns() {
        let pod = json!({"metadata": {"name": "p", "creationTimestamp": "2026-11-23T11:59:12Z"},
            "spec": {"nodeName": "n", "containers": [{}], "readinessGates": [{"conditionType": "a/b"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.88.0.2"}]}});
        let row = row(&pod, "2026-11-23T12:00:05Z".parse().unwrap());
        assert_eq!(
            row[4..],
            [json!("53s"), json!("10.88.0.2"), json!("n"), json!("<none>"), json!("0/1"), json!("<none>")]
        );
    }

    #[test]
    fn the_column_of_host_ids_comes_from_the_condition() {
        let cell = |status: &str, reason: &str, message: &str| {
            let condition =
                json!({"type": USER_NAMESPACE, "status": status, "reason": reason, "message": message});
            let pod = json!({"metadata": {"name": "p"}, "status": {"conditions": [condition]}});
            row(&pod, Timestamp::UNIX_EPOCH).last().cloned()
        };
        let fenced = cell("True", "Requested", "131072-196607 of the node are its 0-65535: it says so");
        assert_eq!(fenced, Some(json!("131072-196607")));
        assert_eq!(cell("False", "HostNetwork", "the node's IDs: …"), Some(json!("node (HostNetwork)")));
    }
}
