//! What a namespace's `LimitRange` objects do to a new Pod or claim: they give containers the requests and limits that
//! they lack, and refuse what is too little, too much, or too far from its request. Pure; the texts are upstream's.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::access::{Access, metadata, object_at, spec};
use crate::quantity::Quantity;

/// Where it is written what was added.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

type Amounts = BTreeMap<String, Quantity>;

fn amounts(object: &Value, list: &str) -> Amounts {
    let read = |text: &str| text.parse().ok();
    object.entries(list).into_iter().filter_map(|(name, text)| Some((name.to_owned(), read(text)?))).collect()
}

fn items<'a>(ranges: &'a [Value], of: &'a str) -> impl Iterator<Item = &'a Value> + 'a {
    ranges.iter().flat_map(|range| spec(range).list("limits")).filter(move |item| item.text("type") == of)
}

/// Gives a Pod's containers what they lack.
pub fn default_pod(pod: &mut Value, ranges: &[Value]) {
    let mut limits = Map::new();
    let mut requests = Map::new();
    for item in items(ranges, "Container") {
        for (list, into) in [("default", &mut limits), ("defaultRequest", &mut requests)] {
            for (name, value) in item.map(list).into_iter().flatten() {
                into.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    if limits.is_empty() && requests.is_empty() {
        return;
    }
    let mut notes = Vec::new();
    for (list, word) in [("initContainers", "init container"), ("containers", "container")] {
        let containers = object_at(pod, "spec").get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let name = container.text("name").to_owned();
            for (kind, defaults, what) in [("requests", &requests, "request"), ("limits", &limits, "limit")] {
                let set = fill(container, kind, defaults);
                if !set.is_empty() {
                    notes.push(format!("{} {what} for {word} {name}", set.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty()
        && let Some(meta) = pod.get_mut("metadata")
    {
        let text = format!("LimitRanger plugin set: {}", notes.join("; "));
        object_at(meta, "annotations").insert(ANNOTATION.to_owned(), text.into());
    }
}

/// Sets the resources of one kind that are absent, and says which.
fn fill(container: &mut Value, kind: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let resources = object_at(container, "resources");
    let current = resources.get(kind).and_then(Value::as_object).cloned().unwrap_or_default();
    let missing: Vec<_> = defaults.iter().filter(|(name, _)| !current.contains_key(*name)).collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let mut all = current.clone();
    all.extend(missing.iter().map(|(name, value)| ((*name).clone(), (*value).clone())));
    resources.insert(kind.to_owned(), Value::Object(all));
    missing.into_iter().map(|(name, _)| name.clone()).collect()
}

/// Why a Pod is refused; empty when it isn't.
pub fn check_pod(pod: &Value, ranges: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    let spec = spec(pod);
    for item in items(ranges, "Container") {
        for container in spec.list("initContainers").iter().chain(spec.list("containers")) {
            let resources = container.field("resources").unwrap_or(&Value::Null);
            check(
                item,
                "Container",
                &amounts(resources, "requests"),
                &amounts(resources, "limits"),
                &mut faults,
            );
        }
    }
    for item in items(ranges, "Pod") {
        check(item, "Pod", &pod_total(spec, "requests"), &pod_total(spec, "limits"), &mut faults);
    }
    faults
}

/// Why a claim is refused; empty when it isn't.
pub fn check_claim(claim: &Value, ranges: &[Value]) -> Vec<String> {
    let mut faults = Vec::new();
    let requests = spec(claim).field("resources").map(|one| amounts(one, "requests")).unwrap_or_default();
    for item in items(ranges, "PersistentVolumeClaim") {
        check(item, "PersistentVolumeClaim", &requests, &requests, &mut faults);
    }
    faults
}

/// What a Pod's containers need together: all that run at a time, or the greediest init container.
pub fn pod_total(spec: &Value, kind: &str) -> Amounts {
    let of = |container: &Value| {
        container.field("resources").map(|resources| amounts(resources, kind)).unwrap_or_default()
    };
    let mut total = Amounts::new();
    let add = |total: &mut Amounts, more: Amounts| {
        for (name, amount) in more {
            let sum = total.get(&name).map_or(amount, |one| one.plus(amount));
            total.insert(name, sum);
        }
    };
    for container in spec.list("containers") {
        add(&mut total, of(container));
    }
    let mut sidecars = Amounts::new();
    let mut greediest = Amounts::new();
    for container in spec.list("initContainers") {
        let mut running = sidecars.clone();
        add(&mut running, of(container));
        if container.text("restartPolicy") == "Always" {
            sidecars.clone_from(&running);
        }
        for (name, amount) in running {
            let most = greediest.get(&name).map_or(amount, |one| amount.max(*one));
            greediest.insert(name, most);
        }
    }
    add(&mut total, sidecars);
    for (name, amount) in greediest {
        let most = total.get(&name).map_or(amount, |one| amount.max(*one));
        total.insert(name, most);
    }
    add(&mut total, amounts(spec, "overhead"));
    if let Some(whole) = spec.field("resources") {
        total.extend(amounts(whole, kind));
    }
    total
}

fn check(item: &Value, of: &str, requests: &Amounts, limits: &Amounts, faults: &mut Vec<String>) {
    for (name, least) in amounts(item, "min") {
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => {
                faults.push(format!("minimum {name} usage per {of} is {least}.  No request is specified"));
            }
            (Some(request), _) if *request < least => {
                faults.push(format!("minimum {name} usage per {of} is {least}, but request is {request}"));
            }
            (Some(_), Some(limit)) if *limit < least => {
                faults.push(format!("minimum {name} usage per {of} is {least}, but limit is {limit}"));
            }
            _ => {}
        }
    }
    for (name, most) in amounts(item, "max") {
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => {
                faults.push(format!("maximum {name} usage per {of} is {most}.  No limit is specified"));
            }
            (_, Some(limit)) if *limit > most => {
                faults.push(format!("maximum {name} usage per {of} is {most}, but limit is {limit}"));
            }
            (Some(request), _) if *request > most => {
                faults.push(format!("maximum {name} usage per {of} is {most}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (name, ratio) in amounts(item, "maxLimitRequestRatio") {
        let (Some(request), Some(limit)) = (requests.get(&name), limits.get(&name)) else {
            faults.push(format!(
                "{name} max limit to request ratio per {of} is {ratio}, but no request is specified or request is 0"
            ));
            continue;
        };
        if !is_within(*limit, *request, ratio) {
            faults.push(format!(
                "{name} max limit to request ratio per {of} is {ratio}, but provided ratio is {}",
                ratio_text(*limit, *request)
            ));
        }
    }
}

fn is_within(limit: Quantity, request: Quantity, ratio: Quantity) -> bool {
    i128::from(limit.milli()) * 1000 <= i128::from(ratio.milli()) * i128::from(request.milli())
}

/// A ratio with six digits after the point, as Go prints it.
fn ratio_text(limit: Quantity, request: Quantity) -> String {
    let (limit, request) = (i128::from(limit.milli()), i128::from(request.milli()).max(1));
    let millionths = limit * 1_000_000 / request;
    format!("{}.{:06}", millionths / 1_000_000, millionths % 1_000_000)
}

/// The class that a new object gets which names none: the newest of those that are marked as the default, and of
/// equally old ones the first by name.
pub fn default_class<'a>(classes: &'a [Value], mark: &str) -> Option<&'a Value> {
    let is_default =
        |class: &&Value| metadata(class).field("annotations").is_some_and(|all| all.text(mark) == "true");
    classes.iter().filter(is_default).min_by(|one, other| {
        let born = |class: &Value| metadata(class).text("creationTimestamp").to_owned();
        let name = |class: &Value| metadata(class).text("name").to_owned();
        born(other).cmp(&born(one)).then_with(|| name(one).cmp(&name(other)))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(resources: &Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    fn range(item: &Value) -> Vec<Value> {
        vec![json!({"spec": {"limits": [item]}})]
    }

    #[test]
    fn a_container_gets_what_it_lacks() {
        let ranges = range(
            &json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "100m", "memory": "1Gi"}}),
        );
        let mut lacking = pod(&json!({"limits": {"cpu": "2"}}));
        default_pod(&mut lacking, &ranges);
        assert_eq!(
            lacking["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "2"}, "requests": {"cpu": "100m", "memory": "1Gi"}})
        );
        assert_eq!(
            lacking["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu, memory request for container c"
        );
    }

    #[test]
    fn too_little_too_much_and_too_far_are_refused() {
        let ranges = range(
            &json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"memory": "1Gi"}, "maxLimitRequestRatio": {"cpu": "2"}}),
        );
        let bad = pod(&json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "200m", "memory": "2Gi"}}));
        assert_eq!(
            check_pod(&bad, &ranges),
            [
                "minimum cpu usage per Container is 100m, but request is 50m",
                "maximum memory usage per Container is 1Gi, but limit is 2Gi",
                "cpu max limit to request ratio per Container is 2, but provided ratio is 4.000000",
            ]
        );
        let good = pod(&json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "200m", "memory": "1Gi"}}));
        assert_eq!(check_pod(&good, &ranges), Vec::<String>::new());
    }

    #[test]
    fn a_pod_needs_its_containers_together_or_its_greediest_init_container() {
        let cpu = |amount: &str| json!({"requests": {"cpu": amount}});
        let spec = json!({
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": cpu("1")},
                {"name": "i", "resources": cpu("5")}],
            "containers": [{"name": "a", "resources": cpu("2")}, {"name": "b", "resources": cpu("1")}],
            "overhead": {"cpu": "500m"}});
        assert_eq!(pod_total(&spec, "requests")["cpu"].to_string(), "6500m");
    }

    #[test]
    fn the_newest_default_class_counts() {
        let class = |name: &str, born: &str, mark: &str| json!({"metadata": {"name": name, "creationTimestamp": born, "annotations": {"m": mark}}});
        let classes = [
            class("a", "2026-01-01T00:00:00Z", "true"),
            class("b", "2026-01-02T00:00:00Z", "true"),
            class("c", "2026-01-03T00:00:00Z", "false"),
        ];
        assert_eq!(default_class(&classes, "m").unwrap()["metadata"]["name"], "b");
        assert!(default_class(&classes[2..], "m").is_none());
    }
}
