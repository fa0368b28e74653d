//! Admission of Pods: what the server adds to a new Pod beside defaults. Pure: what has to be looked up or drawn by lot
//! (the service account, random letters) is handed in.

use serde_json::{Map, Value, json};

use crate::access::{Access, metadata, object_at, set, spec};
use crate::feature::{Feature, Gates};
use crate::kind::pod::mirror_service_account;
use crate::name::suffix;

/// The service account of a Pod that names none.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";
/// Where a container finds its token, CA and namespace.
pub const TOKEN_MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Marks the API server's image of a static Pod.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
/// Lifetime in seconds of the token in the projected volume: an hour and 7 seconds, which tells it from others.
pub const TOKEN_SECONDS: i64 = 3607;
/// How long a Pod stays on a node that is not ready or cannot be reached, in seconds.
const TOLERATION_SECONDS: i64 = 300;
const TOKEN_VOLUME_PREFIX: &str = "kube-api-access-";

/// Whether a Pod is the image of a static Pod; such Pods are not changed by admission.
pub fn is_mirror(pod: &Value) -> bool {
    metadata(pod).map("annotations").is_some_and(|a| a.contains_key(MIRROR_ANNOTATION))
}

/// Gives the Pod a service account's name if it has none, and says which it has. Empty for mirror Pods.
pub fn service_account_name(pod: &mut Value) -> String {
    if is_mirror(pod) {
        return String::new();
    }
    let fields = object_at(pod, "spec");
    let name = fields.get("serviceAccountName").and_then(Value::as_str).unwrap_or_default();
    let name = if name.is_empty() { DEFAULT_SERVICE_ACCOUNT } else { name }.to_owned();
    fields.insert("serviceAccountName".into(), name.clone().into());
    if let Some(spec) = pod.get_mut("spec") {
        mirror_service_account(spec);
    }
    name
}

/// The reason for a 403 when the Pod's service account is not there.
pub fn missing_service_account(namespace: &str, name: &str) -> String {
    format!("error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found")
}

/// Mounts the account's token in each container that has nothing mounted there, unless the Pod or the account
/// does not want it; gives the Pod the account's image pull secrets if it has none. `random` names the volume.
pub fn service_account(pod: &mut Value, account: &Value, random: u64) {
    if is_mirror(pod) {
        return;
    }
    let is_wanted = spec(pod)
        .flag("automountServiceAccountToken")
        .or_else(|| account.flag("automountServiceAccountToken"))
        .unwrap_or(true);
    if is_wanted {
        mount_token(pod, random);
    }
    let secrets = account.list("imagePullSecrets");
    if spec(pod).list("imagePullSecrets").is_empty() && !secrets.is_empty() {
        object_at(pod, "spec").insert("imagePullSecrets".into(), secrets.into());
    }
}

fn mount_token(pod: &mut Value, random: u64) {
    let volumes = spec(pod).list("volumes");
    let existing = volumes.iter().map(|v| v.text("name")).find(|n| n.starts_with(TOKEN_VOLUME_PREFIX));
    let has_volume = existing.is_some();
    let volume = existing.map_or_else(|| format!("{TOKEN_VOLUME_PREFIX}{}", suffix(random)), str::to_owned);
    let mut is_needed = false;
    let fields = object_at(pod, "spec");
    for list in ["initContainers", "containers"] {
        for container in fields.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if container.list("volumeMounts").iter().any(|m| m.text("mountPath") == TOKEN_MOUNT_PATH) {
                continue;
            }
            push(
                container,
                "volumeMounts",
                json!({"name": volume, "readOnly": true, "mountPath": TOKEN_MOUNT_PATH}),
            );
            is_needed = true;
        }
    }
    if is_needed
        && !has_volume
        && let Some(spec) = pod.get_mut("spec")
    {
        push(spec, "volumes", token_volume(&volume));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ], "defaultMode": 420}})
}

fn push(object: &mut Value, list: &str, item: Value) {
    let Some(fields) = object.as_object_mut() else { return };
    if let Some(items) = fields.entry(list).or_insert_with(|| json!([])).as_array_mut() {
        items.push(item);
    }
}

/// Lets the Pod stay for five minutes on a node that is not ready or cannot be reached, unless it says otherwise.
pub fn default_tolerations(pod: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let is_there = spec(pod).list("tolerations").iter().any(|t| {
            (t.text("key").is_empty() || t.text("key") == key) && matches!(t.text("effect"), "" | "NoExecute")
        });
        if !is_there && let Some(spec) = pod.get_mut("spec") {
            push(
                spec,
                "tolerations",
                json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS}),
            );
        }
    }
}

/// The classes that every cluster has, with their values.
pub const SYSTEM_PRIORITIES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

/// Sets the Pod's priority from the class that it names, or from the one for all that name none. `class` is that
/// object; a Pod without any has priority 0.
///
/// # Errors
/// The reason for a 403: an unknown class, or a priority or preemption policy that is not the class's.
pub fn priority(pod: &mut Value, class: Option<&Value>) -> Result<(), String> {
    let named = spec(pod).text("priorityClassName").to_owned();
    let system = SYSTEM_PRIORITIES.iter().find(|(name, _)| *name == named);
    if !named.is_empty() && class.is_none() && system.is_none() {
        return Err(format!("no PriorityClass with name {named} was found"));
    }
    let value =
        class.and_then(|class| class.int("value")).or_else(|| system.map(|(_, value)| *value)).unwrap_or(0);
    let policy = class.map(|class| class.text("preemptionPolicy")).filter(|policy| !policy.is_empty());
    let policy = policy.unwrap_or("PreemptLowerPriority");
    if let Some(given) = spec(pod).int("priority").filter(|given| *given != value) {
        return Err(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name"
        ));
    }
    let given = spec(pod).text("preemptionPolicy");
    if !given.is_empty() && given != policy {
        return Err(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        ));
    }
    let fields = object_at(pod, "spec");
    if let Some(class) = class.filter(|_| named.is_empty()) {
        fields.insert("priorityClassName".into(), metadata(class).text("name").into());
    }
    fields.insert("priority".into(), value.into());
    fields.insert("preemptionPolicy".into(), policy.into());
    Ok(())
}

/// Gives a Pod what its `RuntimeClass` says: the overhead, and where it may run.
///
/// # Errors
/// The reason for a 403.
pub fn runtime_class(pod: &mut Value, class: &Value) -> Result<(), String> {
    if let Some(overhead) = class.field("overhead").and_then(|overhead| overhead.field("podFixed")) {
        match spec(pod).field("overhead") {
            Some(given) if given != overhead => {
                return Err(
                    "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".to_owned()
                );
            }
            _ => object_at(pod, "spec").insert("overhead".into(), overhead.clone()),
        };
    }
    let Some(scheduling) = class.field("scheduling") else { return Ok(()) };
    for (key, value) in scheduling.entries("nodeSelector") {
        let given = spec(pod).field("nodeSelector").map(|all| all.text(key)).unwrap_or_default().to_owned();
        if !given.is_empty() && given != value {
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {given}"
            ));
        }
        if let Some(spec) = pod.get_mut("spec") {
            object_at(spec, "nodeSelector").insert(key.to_owned(), value.into());
        }
    }
    for toleration in scheduling.list("tolerations") {
        if !spec(pod).list("tolerations").contains(toleration)
            && let Some(spec) = pod.get_mut("spec")
        {
            push(spec, "tolerations", toleration.clone());
        }
    }
    Ok(())
}

/// Warnings about what this server drops from a new Pod because a feature is off. To be asked before the Pod is
/// prepared: `hostUsers: false` that is dropped in silence leaves a Pod unprotected (kubernetes#126484).
pub fn dropped_field_warnings(pod: &Value, gates: Gates) -> Vec<String> {
    let asks = spec(pod).field("hostUsers").is_some();
    if asks && !gates.is_enabled(Feature::UserNamespacesSupport) {
        return vec![
            "spec.hostUsers: dropped, because the feature gate UserNamespacesSupport is off; the Pod runs in the node's user namespace"
                .to_owned(),
        ];
    }
    Vec::new()
}

/// What a new Pod gets without looking anything up but its account, for the tests of its rules.
///
/// # Errors
/// The reason for a 403.
pub fn admit_pod(pod: &mut Value, account: &Value, random: u64) -> Result<(), String> {
    if !spec(pod).is_object() {
        set(pod, "spec", Map::new());
    }
    service_account(pod, account, random);
    default_tolerations(pod);
    priority(pod, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_gets_its_accounts_token_unless_it_does_not_want_it() {
        let mut pod = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}, {"name": "b", "volumeMounts":
            [{"name": "own", "mountPath": TOKEN_MOUNT_PATH}]}]}});
        assert_eq!(service_account_name(&mut pod), "default");
        service_account(&mut pod, &json!({"imagePullSecrets": [{"name": "s"}]}), 7);
        let spec = &pod["spec"];
        assert_eq!(spec["serviceAccount"], "default");
        let name = spec["volumes"][0]["name"].as_str().unwrap();
        assert!(name.starts_with("kube-api-access-") && name.len() == 21);
        assert_eq!(
            spec["containers"][0]["volumeMounts"],
            json!([{"name": name, "readOnly": true, "mountPath": TOKEN_MOUNT_PATH}])
        );
        assert_eq!(spec["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        assert_eq!(
            spec["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
            3607
        );
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "s"}]));

        let mut pod = json!({"spec": {"automountServiceAccountToken": false, "containers": [{"name": "a"}]}});
        service_account(&mut pod, &json!({}), 7);
        assert!(pod["spec"].get("volumes").is_none());
        let mut pod = json!({"spec": {"containers": [{"name": "a"}]}});
        service_account(&mut pod, &json!({"automountServiceAccountToken": false}), 7);
        assert!(pod["spec"].get("volumes").is_none());
    }

    #[test]
    fn a_mirror_pod_is_left_alone() {
        let mut pod =
            json!({"metadata": {"annotations": {MIRROR_ANNOTATION: "x"}}, "spec": {"containers": [{}]}});
        let before = pod.clone();
        assert_eq!(service_account_name(&mut pod), "");
        service_account(&mut pod, &json!({}), 1);
        assert_eq!(pod, before);
    }

    #[test]
    fn tolerations_are_added_once() {
        let mut pod = json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}]}});
        default_tolerations(&mut pod);
        default_tolerations(&mut pod);
        let tolerations = pod["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(tolerations.len(), 2);
        assert_eq!(tolerations[1]["key"], "node.kubernetes.io/unreachable");
        assert_eq!(tolerations[1]["tolerationSeconds"], 300);
        let mut all = json!({"spec": {"tolerations": [{"operator": "Exists"}]}});
        default_tolerations(&mut all);
        assert_eq!(all["spec"]["tolerations"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn priority_comes_from_the_class() {
        let mut pod = json!({"spec": {}});
        priority(&mut pod, None).unwrap();
        assert_eq!(pod["spec"], json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"}));
        let refused = |spec: Value| priority(&mut json!({"spec": spec}), None).unwrap_err();
        assert_eq!(refused(json!({"priorityClassName": "x"})), "no PriorityClass with name x was found");
        assert!(
            refused(json!({"priority": 5}))
                .starts_with("the integer value of priority (5) must not be provided")
        );
    }

    #[test]
    fn a_dropped_host_users_is_told() {
        let off = Gates::default().with(Feature::UserNamespacesSupport, false);
        let pod = json!({"spec": {"hostUsers": false}});
        assert_eq!(dropped_field_warnings(&pod, off).len(), 1);
        assert!(dropped_field_warnings(&pod, Gates::default()).is_empty());
        assert!(dropped_field_warnings(&json!({"spec": {}}), off).is_empty());
    }
}
