//! Defaults that depend on other fields of the same struct, one function per type.

use serde_json::{Map, Value, json};

use crate::kind::pod::default_pull_policy;

type Members = Map<String, Value>;

type Compute = fn(&mut Members);

/// Types with a function of their own, sorted by name.
const COMPUTED: &[(&str, Compute)] = &[
    ("apps.v1.DaemonSetUpdateStrategy", rolling_update),
    ("apps.v1.DeploymentStrategy", rolling_update),
    ("apps.v1.StatefulSetUpdateStrategy", stateful_update),
    ("core.v1.Container", pull_policy_of_image),
    ("core.v1.EphemeralContainer", pull_policy_of_image),
    ("core.v1.ImageVolumeSource", image_volume),
    ("core.v1.LimitRangeItem", limit_range_item),
    ("core.v1.NodeStatus", node_status),
    ("core.v1.PodSpec", account),
    ("core.v1.ServicePort", service_port),
    ("core.v1.ServiceSpec", service),
    ("core.v1.Volume", volume),
    ("networking.v1.NetworkPolicySpec", network_policy),
    ("rbac.v1.Subject", subject),
    ("resource.v1.DeviceSubRequest", device_count),
    ("resource.v1.ExactDeviceRequest", device_count),
];

/// Runs the function of a type, if it has one.
pub(super) fn apply(type_name: &str, members: &mut Members) {
    if let Ok(index) = COMPUTED.binary_search_by(|(name, _)| (*name).cmp(type_name))
        && let Some((_, compute)) = COMPUTED.get(index)
    {
        compute(members);
    }
}

fn text<'a>(members: &'a Members, name: &str) -> &'a str {
    members.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn has(members: &Members, name: &str) -> bool {
    members.get(name).is_some_and(|value| !value.is_null())
}

fn set_absent(members: &mut Members, name: &str, value: impl Into<Value>) {
    if !has(members, name) {
        members.insert(name.to_owned(), value.into());
    }
}

fn rolling_update(members: &mut Members) {
    if text(members, "type") == "RollingUpdate" {
        set_absent(members, "rollingUpdate", json!({}));
    }
}

/// Rolling is the default as a whole: who writes the type alone gets no partition.
fn stateful_update(members: &mut Members) {
    if text(members, "type").is_empty() {
        members.insert("type".to_owned(), "RollingUpdate".into());
        set_absent(members, "rollingUpdate", json!({}));
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`; both are kept equal.
fn account(members: &mut Members) {
    let name = match text(members, "serviceAccountName") {
        "" => text(members, "serviceAccount").to_owned(),
        name => name.to_owned(),
    };
    if !name.is_empty() {
        members.insert("serviceAccountName".to_owned(), name.as_str().into());
        members.insert("serviceAccount".to_owned(), name.into());
    }
}

fn device_count(members: &mut Members) {
    let is_unset = members.get("count").is_none_or(|count| count.is_null() || count == 0);
    if text(members, "allocationMode") == "ExactCount" && is_unset {
        members.insert("count".to_owned(), 1.into());
    }
}

fn pull_policy_of_image(members: &mut Members) {
    if text(members, "imagePullPolicy").is_empty() {
        let policy = default_pull_policy(text(members, "image"));
        members.insert("imagePullPolicy".to_owned(), policy.into());
    }
}

fn image_volume(members: &mut Members) {
    if text(members, "pullPolicy").is_empty() {
        let policy = default_pull_policy(text(members, "reference"));
        members.insert("pullPolicy".to_owned(), policy.into());
    }
}

fn volume(members: &mut Members) {
    if members.iter().all(|(key, value)| key == "name" || value.is_null()) {
        members.insert("emptyDir".to_owned(), json!({}));
    }
}

fn node_status(members: &mut Members) {
    if let Some(capacity) = members.get("capacity").filter(|capacity| capacity.is_object()).cloned() {
        set_absent(members, "allocatable", capacity);
    }
}

/// For containers: `default` from `max`, then `defaultRequest` from `default` and from `min`.
fn limit_range_item(members: &mut Members) {
    if text(members, "type") != "Container" {
        return;
    }
    for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
        let Some(Value::Object(source)) = members.get(from).cloned() else { continue };
        let target = members.entry(to).or_insert_with(|| json!({}));
        if let Some(target) = target.as_object_mut() {
            for (name, value) in source {
                target.entry(name).or_insert(value);
            }
        }
    }
}

fn service_port(members: &mut Members) {
    let unset = match members.get("targetPort") {
        None | Some(Value::Null) => true,
        Some(Value::String(name)) => name.is_empty(),
        Some(value) => value == 0,
    };
    if let Some(port) = members.get("port").filter(|_| unset).cloned() {
        members.insert("targetPort".to_owned(), port);
    }
}

fn service(members: &mut Members) {
    const THREE_HOURS: i32 = 10_800;
    match text(members, "sessionAffinity") {
        "None" => {
            members.shift_remove("sessionAffinityConfig");
        }
        "ClientIP"
            if members
                .get("sessionAffinityConfig")
                .is_none_or(|config| config.pointer("/clientIP/timeoutSeconds").is_none()) =>
        {
            let config = json!({"clientIP": {"timeoutSeconds": THREE_HOURS}});
            members.insert("sessionAffinityConfig".to_owned(), config);
        }
        _ => {}
    }
    let ty = text(members, "type").to_owned();
    let external = matches!(ty.as_str(), "NodePort" | "LoadBalancer")
        || (ty == "ClusterIP"
            && members.get("externalIPs").and_then(Value::as_array).is_some_and(|l| !l.is_empty()));
    if external && text(members, "externalTrafficPolicy").is_empty() {
        members.insert("externalTrafficPolicy".to_owned(), "Cluster".into());
    }
    if matches!(ty.as_str(), "ClusterIP" | "NodePort" | "LoadBalancer") {
        set_absent(members, "internalTrafficPolicy", "Cluster");
    }
    if ty == "LoadBalancer" {
        set_absent(members, "allocateLoadBalancerNodePorts", true);
    }
}

fn network_policy(members: &mut Members) {
    if members.get("policyTypes").and_then(Value::as_array).is_some_and(|types| !types.is_empty()) {
        return;
    }
    let egress = members.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
    let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
    members.insert("policyTypes".to_owned(), types);
}

fn subject(members: &mut Members) {
    if matches!(text(members, "kind"), "User" | "Group") && text(members, "apiGroup").is_empty() {
        members.insert("apiGroup".to_owned(), "rbac.authorization.k8s.io".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::type_named;

    fn computed(ty: &str, value: Value) -> Value {
        let Value::Object(mut members) = value else { panic!("not an object") };
        apply(ty, &mut members);
        Value::Object(members)
    }

    #[test]
    fn every_type_exists_and_the_list_is_sorted() {
        assert!(COMPUTED.is_sorted_by_key(|(name, _)| *name));
        for (name, _) in COMPUTED {
            assert!(type_named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_container_limit_is_the_default_and_the_request() {
        let item = json!({"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"}});
        assert_eq!(
            computed("core.v1.LimitRangeItem", item),
            json!({"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Mi"},
                "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2", "memory": "1Mi"}})
        );
    }

    #[test]
    fn a_stateful_set_rolls_with_a_partition_unless_it_names_its_strategy() {
        let ty = "apps.v1.StatefulSetUpdateStrategy";
        assert_eq!(computed(ty, json!({})), json!({"type": "RollingUpdate", "rollingUpdate": {}}));
        let named = json!({"type": "RollingUpdate"});
        assert_eq!(computed(ty, named.clone()), named);
    }

    #[test]
    fn service_ports_lead_to_the_same_port() {
        assert_eq!(
            computed("core.v1.ServicePort", json!({"port": 80})),
            json!({"port": 80, "targetPort": 80})
        );
        let named = json!({"port": 80, "targetPort": "http"});
        assert_eq!(computed("core.v1.ServicePort", named.clone()), named);
    }

    #[test]
    fn a_service_that_is_reached_from_outside_says_how() {
        let service = computed("core.v1.ServiceSpec", json!({"type": "NodePort", "sessionAffinity": "None"}));
        assert_eq!(service["externalTrafficPolicy"], "Cluster");
        assert_eq!(service["internalTrafficPolicy"], "Cluster");
    }
}
