//! What an object uses of its namespace's `ResourceQuota` objects, and whether it may. Pure; the texts are upstream's.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value};

use crate::access::{Access, metadata, spec, status};
use crate::kind::Kind;
use crate::limit::pod_total;
use crate::quantity::Quantity;

/// Amounts by the names that quotas give them: `pods`, `requests.cpu`, `count/deployments.apps`.
pub type Usage = BTreeMap<String, Quantity>;

/// Resources that also count under their plain name.
const PLAIN: &[&str] = &[
    "configmaps",
    "secrets",
    "services",
    "persistentvolumeclaims",
    "replicationcontrollers",
    "resourcequotas",
];

fn add(usage: &mut Usage, name: impl Into<String>, amount: Quantity) {
    let name = name.into();
    let sum = usage.get(&name).map_or(amount, |one| one.plus(amount));
    usage.insert(name, sum);
}

/// The name under which objects of a kind are counted.
pub fn count_name(kind: &Kind) -> String {
    format!("count/{}", kind.resource())
}

/// What one object uses.
pub fn usage_of(kind: &Kind, object: &Value, now: Timestamp) -> Usage {
    let one = Quantity::from_units(1);
    let mut usage = Usage::new();
    add(&mut usage, count_name(kind), one);
    if kind.group.is_empty() && PLAIN.contains(&kind.plural) {
        add(&mut usage, kind.plural, one);
    }
    match (kind.group, kind.plural) {
        ("", "pods") if !has_ended(object, now) => {
            add(&mut usage, "pods", one);
            add_pod(&mut usage, spec(object));
        }
        ("", "services") => add_service(&mut usage, spec(object)),
        ("", "persistentvolumeclaims") => add_claim(&mut usage, object),
        _ => {}
    }
    usage
}

/// When a Pod that is being deleted must have ended at the latest.
pub fn must_end(pod: &Value) -> Option<Timestamp> {
    let meta = metadata(pod);
    let grace = SignedDuration::from_secs(meta.int("deletionGracePeriodSeconds").unwrap_or_default());
    let asked = crate::time::of(meta.field("deletionTimestamp"))?;
    Some(asked.checked_add(grace).unwrap_or(Timestamp::MAX))
}

/// Whether a Pod no longer runs: it has ended, or should have.
fn has_ended(pod: &Value, now: Timestamp) -> bool {
    must_end(pod).is_some_and(|end| now > end) || matches!(status(pod).text("phase"), "Succeeded" | "Failed")
}

fn add_pod(usage: &mut Usage, spec: &Value) {
    for (name, amount) in pod_total(spec, "requests") {
        match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => add(usage, name.clone(), amount),
            other if other.starts_with("hugepages-") => add(usage, name.clone(), amount),
            _ => {}
        }
        add(usage, format!("requests.{name}"), amount);
    }
    for (name, amount) in pod_total(spec, "limits") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            add(usage, format!("limits.{name}"), amount);
        }
    }
}

fn add_service(usage: &mut Usage, spec: &Value) {
    let ports = i64::try_from(spec.list("ports").len()).unwrap_or(i64::MAX);
    let has_node_ports = match spec.text("type") {
        "LoadBalancer" => {
            add(usage, "services.loadbalancers", Quantity::from_units(1));
            spec.flag("allocateLoadBalancerNodePorts").unwrap_or(true)
        }
        kind => kind == "NodePort",
    };
    if has_node_ports {
        add(usage, "services.nodeports", Quantity::from_units(ports));
    }
}

fn add_claim(usage: &mut Usage, claim: &Value) {
    let class = spec(claim).text("storageClassName");
    let asked = spec(claim).field("resources").and_then(|resources| resources.field("requests"));
    let storage = asked.and_then(|requests| requests.text("storage").parse::<Quantity>().ok());
    let of_class = |what: &str| format!("{class}.storageclass.storage.k8s.io/{what}");
    if !class.is_empty() {
        add(usage, of_class("persistentvolumeclaims"), Quantity::from_units(1));
    }
    if let Some(storage) = storage {
        add(usage, "requests.storage", storage);
        if !class.is_empty() {
            add(usage, of_class("requests.storage"), storage);
        }
    }
}

/// What the scopes of quotas ask of a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    has_deadline: bool,
    is_best_effort: bool,
    crosses_namespaces: bool,
    priority_class: String,
}

impl Facts {
    /// Those of an object; `None` for what is no Pod, and so in no scope.
    pub fn of(kind: &Kind, object: &Value) -> Option<Self> {
        let spec = spec(object);
        ((kind.group, kind.plural) == ("", "pods")).then(|| Self {
            has_deadline: spec.int("activeDeadlineSeconds").is_some_and(|seconds| seconds >= 0),
            is_best_effort: pod_total(spec, "requests").is_empty() && pod_total(spec, "limits").is_empty(),
            crosses_namespaces: crosses_namespaces(spec),
            priority_class: spec.text("priorityClassName").to_owned(),
        })
    }

    fn in_scope(&self, scope: &str) -> bool {
        match scope {
            "Terminating" => self.has_deadline,
            "NotTerminating" => !self.has_deadline,
            "BestEffort" => self.is_best_effort,
            "NotBestEffort" => !self.is_best_effort,
            "PriorityClass" => !self.priority_class.is_empty(),
            "CrossNamespacePodAffinity" => self.crosses_namespaces,
            _ => false,
        }
    }

    fn matches_term(&self, term: &Value) -> bool {
        let scope = term.text("scopeName");
        if scope != "PriorityClass" {
            return self.in_scope(scope) != (term.text("operator") == "DoesNotExist");
        }
        let class = self.priority_class.as_str();
        let is_listed = term.list("values").iter().any(|value| value == class);
        match term.text("operator") {
            "In" => is_listed,
            "NotIn" => !class.is_empty() && !is_listed,
            "Exists" => !class.is_empty(),
            _ => class.is_empty(),
        }
    }
}

/// Whether a quota is about an object at all: its scopes fit.
pub fn applies(quota: &Value, kind: &Kind, object: &Value) -> bool {
    !is_scoped(quota) || covers(quota, Facts::of(kind, object).as_ref())
}

/// The same for an object of which only the facts are known.
pub fn covers(quota: &Value, facts: Option<&Facts>) -> bool {
    let mut scopes = spec(quota).list("scopes").iter().filter_map(Value::as_str);
    let in_all = |facts: &Facts| {
        scopes.all(|scope| facts.in_scope(scope)) && terms(quota).iter().all(|term| facts.matches_term(term))
    };
    facts.map_or_else(|| !is_scoped(quota), in_all)
}

fn is_scoped(quota: &Value) -> bool {
    !spec(quota).list("scopes").is_empty() || !terms(quota).is_empty()
}

fn terms(quota: &Value) -> &[Value] {
    spec(quota).field("scopeSelector").map(|one| one.list("matchExpressions")).unwrap_or_default()
}

/// Whether objects of a kind can use what is limited.
pub fn is_limited(kind: &Kind, hard: &Usage) -> bool {
    let count = count_name(kind);
    let is_core = |plural: &str| kind.group.is_empty() && kind.plural == plural;
    hard.keys().any(|name| match name.as_str() {
        name if name == count => true,
        name if name.starts_with("count/") => false,
        name if name.contains("storage.k8s.io/") || name == "requests.storage" => {
            is_core("persistentvolumeclaims")
        }
        name if name.starts_with("services") => is_core("services"),
        name if PLAIN.contains(&name) => is_core(name),
        _ => is_core("pods"),
    })
}

fn crosses_namespaces(spec: &Value) -> bool {
    let affinity = spec.field("affinity").unwrap_or(&Value::Null);
    let terms =
        ["podAffinity", "podAntiAffinity"].iter().filter_map(|name| affinity.field(name)).flat_map(|one| {
            let preferred = one.list("preferredDuringSchedulingIgnoredDuringExecution").iter();
            let preferred = preferred.filter_map(|weighted| weighted.field("podAffinityTerm"));
            one.list("requiredDuringSchedulingIgnoredDuringExecution").iter().chain(preferred)
        });
    terms
        .into_iter()
        .any(|term| !term.list("namespaces").is_empty() || term.field("namespaceSelector").is_some())
}

/// The limits of a quota.
pub fn hard(quota: &Value) -> Usage {
    let entries = spec(quota).entries("hard").into_iter();
    entries.filter_map(|(name, text)| Some((name.to_owned(), text.parse().ok()?))).collect()
}

/// Which amounts a new Pod must state because the quota limits them, and which containers don't: upstream's text.
pub fn unstated(quota: &Value, kind: &Kind, object: &Value) -> Option<String> {
    if (kind.group, kind.plural) != ("", "pods") {
        return None;
    }
    let mut missing: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in hard(quota).into_keys() {
        let (list, resource) = match name.split_once('.') {
            Some((list @ ("requests" | "limits"), resource)) => (list, resource),
            _ => ("requests", name.as_str()),
        };
        if !matches!(resource, "cpu" | "memory") {
            continue;
        }
        if pod_total(spec(object), list).contains_key(resource) && spec(object).field("resources").is_some() {
            continue;
        }
        for container in spec(object).list("containers").iter().chain(spec(object).list("initContainers")) {
            let stated = container.field("resources").and_then(|all| all.field(list));
            if stated.is_none_or(|all| all.field(resource).is_none()) {
                missing.entry(name.clone()).or_default().push(container.text("name"));
            }
        }
    }
    let parts: Vec<String> =
        missing.into_iter().map(|(name, of)| format!("{name} for: {}", of.join(","))).collect();
    (!parts.is_empty())
        .then(|| format!("failed quota: {}: must specify {}", metadata(quota).text("name"), parts.join("; ")))
}

/// Why more can't be used, in upstream's text; `None` when it can.
pub fn exceeded(quota: &Value, used: &Usage, more: &Usage) -> Option<String> {
    let hard = hard(quota);
    let zero = Quantity::ZERO;
    let over: Vec<&String> = hard
        .iter()
        .filter(|(name, most)| {
            more.get(*name).is_some_and(|asked| {
                *asked > zero && used.get(*name).copied().unwrap_or(zero).plus(*asked) > **most
            })
        })
        .map(|(name, _)| name)
        .collect();
    if over.is_empty() {
        return None;
    }
    let list = |of: &Usage| {
        let mut text = String::new();
        for name in &over {
            let comma = if text.is_empty() { "" } else { "," };
            // Writing to a String cannot fail.
            write!(text, "{comma}{name}={}", of.get(*name).copied().unwrap_or(zero)).ok();
        }
        text
    };
    Some(format!(
        "exceeded quota: {}, requested: {}, used: {}, limited: {}",
        metadata(quota).text("name"),
        list(more),
        list(used),
        list(&hard)
    ))
}

/// A quota's status.
pub fn status_of(quota: &Value, used: &Usage) -> Value {
    let hard = hard(quota);
    let write = |of: &dyn Fn(&String, &Quantity) -> Quantity| {
        let entries = hard.iter().map(|(name, most)| (name.clone(), of(name, most).to_string().into()));
        Value::Object(entries.collect::<Map<_, _>>())
    };
    let mut status = Map::new();
    status.insert("hard".to_owned(), write(&|_, most| *most));
    status.insert("used".to_owned(), write(&|name, _| used.get(name).copied().unwrap_or(Quantity::ZERO)));
    Value::Object(status)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kind::find;

    fn pod(resources: &Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": resources}]}})
    }

    fn quota(hard: &Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})
    }

    fn usage(object: &Value) -> Usage {
        usage_of(find("", "v1", "pods").unwrap(), object, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_pod_uses_what_it_asks_for_until_it_ends() {
        let mut running = pod(&json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "2"}}));
        let used = usage(&running);
        let shown: Vec<String> = used.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
        assert_eq!(
            shown,
            [
                "count/pods=1",
                "cpu=1",
                "limits.cpu=2",
                "memory=1Gi",
                "pods=1",
                "requests.cpu=1",
                "requests.memory=1Gi"
            ]
        );
        running["status"] = json!({"phase": "Succeeded"});
        assert_eq!(usage(&running).keys().collect::<Vec<_>>(), ["count/pods"]);
    }

    #[test]
    fn too_much_is_refused_in_upstreams_words() {
        let q = quota(&json!({"pods": "1", "requests.cpu": "1", "memory": "9Gi"}));
        let one = usage(&pod(&json!({"requests": {"cpu": "600m"}})));
        assert_eq!(exceeded(&q, &Usage::new(), &one), None);
        assert_eq!(
            exceeded(&q, &one, &one).unwrap(),
            "exceeded quota: q, requested: pods=1,requests.cpu=600m, used: pods=1,requests.cpu=600m, limited: pods=1,requests.cpu=1"
        );
        assert_eq!(status_of(&q, &one)["used"], json!({"memory": "0", "pods": "1", "requests.cpu": "600m"}));
    }

    #[test]
    fn what_is_limited_must_be_stated() {
        let q = quota(&json!({"limits.cpu": "1", "requests.memory": "1Gi", "pods": "5"}));
        let pods = find("", "v1", "pods").unwrap();
        assert_eq!(
            unstated(&q, pods, &pod(&json!({}))).unwrap(),
            "failed quota: q: must specify limits.cpu for: c; requests.memory for: c"
        );
        assert_eq!(
            unstated(&q, pods, &pod(&json!({"limits": {"cpu": "1"}, "requests": {"memory": "1"}}))),
            None
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let pods = find("", "v1", "pods").unwrap();
        let scoped = |scope: &str| json!({"metadata": {"name": "q"}, "spec": {"scopes": [scope]}});
        let plain = pod(&json!({}));
        assert!(applies(&scoped("BestEffort"), pods, &plain));
        assert!(!applies(&scoped("Terminating"), pods, &plain));
        assert!(!applies(&scoped("NotTerminating"), find("", "v1", "services").unwrap(), &plain));
    }

    #[test]
    fn services_and_claims_count_their_parts() {
        let service = json!({"spec": {"type": "LoadBalancer", "ports": [{"port": 80}, {"port": 443}]}});
        let used = usage_of(find("", "v1", "services").unwrap(), &service, Timestamp::UNIX_EPOCH);
        assert_eq!(used["services.nodeports"].to_string(), "2");
        assert_eq!(used["services.loadbalancers"].to_string(), "1");
        let claim =
            json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "5Gi"}}}});
        let used = usage_of(find("", "v1", "persistentvolumeclaims").unwrap(), &claim, Timestamp::UNIX_EPOCH);
        assert_eq!(used["fast.storageclass.storage.k8s.io/requests.storage"].to_string(), "5Gi");
    }
}
