//! What is a Pod's own: computed defaults, what the server writes into it, its deletion, binding and quality of service.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Ctx, FieldReader, Grace};
use crate::access::{Access, carry_over, metadata, object_at, remove, set, spec, status};
use crate::feature::Feature;
use crate::quantity::Quantity;
use crate::time;

/// Fields that field selectors may name.
pub(super) const SELECTABLE: &[(&str, FieldReader)] = &[
    ("spec.nodeName", |o| spec(o).text("nodeName").to_owned()),
    ("spec.restartPolicy", |o| spec(o).text("restartPolicy").to_owned()),
    ("spec.schedulerName", |o| spec(o).text("schedulerName").to_owned()),
    ("spec.serviceAccountName", |o| spec(o).text("serviceAccountName").to_owned()),
    ("spec.hostNetwork", |o| spec(o).is_true("hostNetwork").to_string()),
    ("status.phase", |o| status(o).text("phase").to_owned()),
    ("status.podIP", |o| first_ip(o).to_owned()),
    ("status.podIPs", |o| first_ip(o).to_owned()),
    ("status.nominatedNodeName", |o| status(o).text("nominatedNodeName").to_owned()),
];

/// The Pod's first IP address; empty when it has none.
fn first_ip(pod: &Value) -> &str {
    status(pod).list("podIPs").first().map_or_else(|| status(pod).text("podIP"), |ip| ip.text("ip"))
}

/// Defaults that only a whole Pod has; those of one field or one struct are in the schema table.
pub(super) fn default(pod: &mut Value) {
    let spec = pod.as_object_mut().and_then(|p| p.get_mut("spec"));
    if let Some(spec @ Value::Object(_)) = spec {
        default_spec(spec);
    }
}

/// As [`default`] for a Pod's spec wherever it stands.
pub(crate) fn default_spec(spec: &mut Value) {
    if spec.field("enableServiceLinks").is_none() {
        set(spec, "enableServiceLinks", true);
    }
    mirror_service_account(spec);
    let is_host_network = spec.is_true("hostNetwork");
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items_mut(spec, list) {
            default_container(container, is_host_network && list != "ephemeralContainers");
        }
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are kept equal.
pub(crate) fn mirror_service_account(spec: &mut Value) {
    let name = match spec.text("serviceAccountName") {
        "" => spec.text("serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !name.is_empty() {
        set(spec, "serviceAccountName", name.clone());
        set(spec, "serviceAccount", name);
    }
}

fn default_container(container: &mut Value, is_host_network: bool) {
    let limits = container.pointer("/resources/limits").and_then(Value::as_object).cloned();
    if let (Some(limits), Some(resources)) = (limits, container.get_mut("resources")) {
        let requests = object_at(resources, "requests");
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
    if is_host_network {
        for port in items_mut(container, "ports") {
            if port.int("hostPort").unwrap_or_default() == 0
                && let Some(number) = port.field("containerPort").cloned()
            {
                set(port, "hostPort", number);
            }
        }
    }
}

/// `Always` for the tag `latest`, written or meant, else `IfNotPresent`.
pub fn default_pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.rsplit_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

/// Status, generation and gated fields of a new Pod.
pub(super) fn prepare_create(pod: &mut Value, ctx: &Ctx) {
    object_at(pod, "metadata").insert("generation".into(), 1.into());
    drop_disabled_fields(pod, None, ctx);
    let mut fresh = Map::new();
    fresh.insert("phase".into(), "Pending".into());
    if !spec(pod).list("schedulingGates").is_empty() {
        let gated = json!({"type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates"});
        fresh.insert("conditions".into(), json!([gated]));
    }
    fresh.insert("qosClass".into(), qos_class(spec(pod)).into());
    set(pod, "status", Value::Object(fresh));
}

/// Only `/status` writes the status; a change of the spec counts up the generation.
pub(super) fn prepare_update(pod: &mut Value, old: &Value, ctx: &Ctx) {
    carry_over(pod, old, "status");
    drop_disabled_fields(pod, Some(old), ctx);
    let generation = metadata(old).int("generation").unwrap_or_default();
    let is_changed = !crate::validation::semantically_equal(spec(pod), spec(old));
    object_at(pod, "metadata").insert("generation".into(), (generation + i64::from(is_changed)).into());
}

/// `/status` writes no spec, owner or deletion.
pub(super) fn prepare_status(pod: &mut Value, old: &Value, _ctx: &Ctx) {
    carry_over(pod, old, "spec");
    object_at(pod, "status");
    let meta = metadata(old).clone();
    if let Some(new_meta) = pod.get_mut("metadata") {
        for name in ["deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences", "generation"] {
            carry_over(new_meta, &meta, name);
        }
    }
    if let Some(new_status) = pod.get_mut("status")
        && new_status.text("qosClass").is_empty()
    {
        carry_over(new_status, status(old), "qosClass");
    }
}

/// With `UserNamespacesSupport` off, `hostUsers` is dropped unless the stored Pod has it (userns A14, A15).
fn drop_disabled_fields(pod: &mut Value, old: Option<&Value>, ctx: &Ctx) {
    let is_in_use = old.is_some_and(|o| spec(o).field("hostUsers").is_some());
    if !ctx.gates.is_enabled(Feature::UserNamespacesSupport)
        && !is_in_use
        && let Some(spec) = pod.get_mut("spec")
    {
        remove(spec, "hostUsers");
    }
}

/// How long a deletion takes: the seconds asked or the Pod's own; at once where there is no node or nothing runs.
pub(super) fn grace(pod: &Value, asked: Option<i64>) -> Grace {
    let own = spec(pod).int("terminationGracePeriodSeconds").unwrap_or_default();
    let is_over = matches!(status(pod).text("phase"), "Failed" | "Succeeded");
    match asked.unwrap_or(own) {
        _ if is_over || spec(pod).text("nodeName").is_empty() => Grace::None,
        0 => Grace::None,
        seconds => Grace::Seconds(seconds.max(1)),
    }
}

/// The quality-of-service class: `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(spec: &Value) -> &'static str {
    let mut is_empty = true;
    let mut is_guaranteed = true;
    let pod_level =
        spec.field("resources").filter(|r| r.map("limits").is_some() || r.map("requests").is_some());
    let each: Vec<Option<&Value>> = pod_level.map_or_else(
        || {
            spec.list("containers")
                .iter()
                .chain(spec.list("initContainers"))
                .map(|c| c.field("resources"))
                .collect()
        },
        |resources| vec![Some(resources)],
    );
    for resources in each {
        for name in ["cpu", "memory"] {
            let request = positive(resources, "requests", name);
            let limit = positive(resources, "limits", name);
            is_empty &= request.is_none() && limit.is_none();
            is_guaranteed &= limit.is_some() && (request.is_none() || request == limit);
        }
    }
    match (is_empty, is_guaranteed) {
        (true, _) => "BestEffort",
        (false, true) => "Guaranteed",
        (false, false) => "Burstable",
    }
}

fn positive(resources: Option<&Value>, list: &str, name: &str) -> Option<Quantity> {
    let amount: Quantity = resources?.map(list)?.get(name)?.as_str()?.parse().ok()?;
    (amount > Quantity::ZERO).then_some(amount)
}

/// Assigns a Pod to the node of a Binding, merges the Binding's annotations and sets the condition `PodScheduled`.
///
/// # Errors
/// A reason for a 409 on `pods/binding`: the Pod is being deleted, has a node already, or has scheduling gates.
pub fn bind(pod: &mut Value, binding: &Value, now: Timestamp) -> Result<(), String> {
    let name = metadata(pod).text("name").to_owned();
    if metadata(pod).field("deletionTimestamp").is_some() {
        return Err(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let node = spec(pod).text("nodeName");
    if !node.is_empty() {
        return Err(format!("pod {name} is already assigned to node \"{node}\""));
    }
    if !spec(pod).list("schedulingGates").is_empty() {
        return Err(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let target = binding.get("target").unwrap_or(&Value::Null).text("name").to_owned();
    object_at(pod, "spec").insert("nodeName".into(), target.into());
    if let Some(annotations) = metadata(binding).map("annotations").filter(|a| !a.is_empty()) {
        object_at(pod, "metadata");
        if let Some(meta) = pod.get_mut("metadata") {
            object_at(meta, "annotations").extend(annotations.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
    }
    object_at(pod, "status").shift_remove("nominatedNodeName");
    let condition = json!({"type": "PodScheduled", "status": "True"});
    if let Some(status) = pod.get_mut("status") {
        set_condition(status, condition, now);
    }
    Ok(())
}

/// Replaces the condition of the same type, or adds it. The transition time moves only when the status changes.
pub fn set_condition(status: &mut Value, mut condition: Value, now: Timestamp) {
    let list = match status.as_object_mut() {
        Some(fields) => fields.entry("conditions").or_insert_with(|| json!([])),
        None => return,
    };
    let Some(list) = list.as_array_mut() else { return };
    let kind = condition.text("type").to_owned();
    let old = list.iter_mut().find(|c| c.text("type") == kind);
    let unchanged = old.as_ref().filter(|o| o.text("status") == condition.text("status"));
    let since = unchanged
        .and_then(|o| o.field("lastTransitionTime").cloned())
        .unwrap_or_else(|| time::format_seconds(now).into());
    set(&mut condition, "lastTransitionTime", since);
    match old {
        Some(old) => *old = condition,
        None => list.push(condition),
    }
}

fn items_mut<'a>(object: &'a mut Value, name: &str) -> std::slice::IterMut<'a, Value> {
    object.get_mut(name).and_then(Value::as_array_mut).map(|list| list.iter_mut()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Gates;

    fn ctx(user_namespaces: bool) -> Ctx {
        let gates = Gates::default().with(Feature::UserNamespacesSupport, user_namespaces);
        Ctx { now: Timestamp::UNIX_EPOCH, gates }
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(default_pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn defaults_fill_requests_and_host_ports() {
        let mut pod = json!({"spec": {"hostNetwork": true, "serviceAccount": "robot",
            "containers": [{"name": "a", "image": "b", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}}}],
            "volumes": []}});
        default(&mut pod);
        let spec = &pod["spec"];
        assert_eq!(spec["enableServiceLinks"], true);
        assert_eq!(spec["serviceAccountName"], "robot");
        assert_eq!(spec["containers"][0]["resources"]["requests"]["cpu"], "1");
        assert_eq!(spec["containers"][0]["ports"][0]["hostPort"], 80);
    }

    #[test]
    fn a_new_pod_is_pending_with_its_qos_class() {
        let mut pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"resources":
            {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}}]}, "status": {"phase": "Running"}});
        prepare_create(&mut pod, &ctx(true));
        assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Guaranteed"}));
        assert_eq!(pod["metadata"]["generation"], 1);
        assert_eq!(qos_class(&json!({"containers": [{}]})), "BestEffort");
        assert_eq!(
            qos_class(&json!({"containers": [{"resources": {"requests": {"cpu": "1m"}}}]})),
            "Burstable"
        );
    }

    #[test]
    fn a14_with_the_gate_off_a_new_pod_loses_host_users() {
        let mut pod = json!({"spec": {"hostUsers": false, "containers": []}});
        prepare_create(&mut pod, &ctx(false));
        assert!(pod["spec"].get("hostUsers").is_none());
        let mut pod = json!({"spec": {"hostUsers": false, "containers": []}});
        prepare_create(&mut pod, &ctx(true));
        assert_eq!(pod["spec"]["hostUsers"], false);
    }

    #[test]
    fn a15_with_the_gate_off_a_stored_pod_keeps_host_users() {
        let old = json!({"metadata": {"generation": 1}, "spec": {"hostUsers": false}});
        let mut pod = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"hostUsers": false}});
        prepare_update(&mut pod, &old, &ctx(false));
        assert_eq!(pod["spec"]["hostUsers"], false);
        assert_eq!(pod["metadata"]["generation"], 1);
    }

    #[test]
    fn only_a_changed_spec_counts_up_the_generation_and_the_status_stays() {
        let old = json!({"metadata": {"generation": 3}, "spec": {"containers": [{"image": "a"}]}, "status": {"phase": "Running"}});
        let mut pod =
            json!({"metadata": {}, "spec": {"containers": [{"image": "b"}]}, "status": {"phase": "Failed"}});
        prepare_update(&mut pod, &old, &ctx(true));
        assert_eq!((&pod["metadata"]["generation"], &pod["status"]["phase"]), (&json!(4), &json!("Running")));
        let mut pod = json!({"metadata": {}, "spec": {"x": 1}, "status": {"phase": "Failed"}});
        prepare_status(&mut pod, &old, &ctx(true));
        assert_eq!((&pod["spec"], &pod["status"]["phase"]), (&old["spec"], &json!("Failed")));
    }

    #[test]
    fn a_pod_without_a_node_or_after_its_end_is_deleted_at_once() {
        let pod = |node: &str, phase: &str| json!({"spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": phase}});
        assert_eq!(grace(&pod("", "Pending"), None), Grace::None);
        assert_eq!(grace(&pod("n", "Succeeded"), Some(5)), Grace::None);
        assert_eq!(grace(&pod("n", "Running"), None), Grace::Seconds(30));
        assert_eq!(grace(&pod("n", "Running"), Some(0)), Grace::None);
        assert_eq!(grace(&pod("n", "Running"), Some(-1)), Grace::Seconds(1));
    }

    #[test]
    fn a_pod_is_bound_once() {
        let binding =
            json!({"metadata": {"annotations": {"a": "b"}}, "target": {"kind": "Node", "name": "n"}});
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Pending"}});
        bind(&mut pod, &binding, Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(pod["spec"]["nodeName"], "n");
        assert_eq!(pod["metadata"]["annotations"]["a"], "b");
        assert_eq!(
            pod["status"]["conditions"],
            json!([{"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}])
        );
        assert_eq!(
            bind(&mut pod, &binding, Timestamp::UNIX_EPOCH).unwrap_err(),
            "pod p is already assigned to node \"n\""
        );
    }
}
