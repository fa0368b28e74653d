//! Features that nodes declare in `status.declaredFeatures`, and which Pods need them (KEP-5328): the scheduler takes
//! such a Pod only to a node that declares them, and the kubelet refuses it elsewhere. Pure.

use serde_json::Value;

use crate::access::Access;

/// All containers restart in their place by a rule of one of them (KEP-5532).
pub const RESTART_ALL_CONTAINERS: &str = "RestartAllContainersOnContainerExits";
/// A user namespace on the node's network (KEP-127).
pub const USER_NAMESPACES_HOST_NETWORK: &str = "UserNamespacesHostNetworkSupport";
/// The processor of a Pod of the class Guaranteed is resized in place (KEP-1287). Pods need it only for an update.
pub const GUARANTEED_CPU_RESIZE: &str = "GuaranteedQoSPodCPUResize";

/// A feature, and whether a Pod with this spec needs it from its start.
type Rule = (&'static str, fn(&Value) -> bool);

/// In alphabetical order.
const RULES: [Rule; 2] = [
    (RESTART_ALL_CONTAINERS, restarts_all_containers),
    (USER_NAMESPACES_HOST_NETWORK, is_fenced_on_the_nodes_network),
];

fn restarts_all_containers(spec: &Value) -> bool {
    let mut containers = spec.list("containers").iter().chain(spec.list("initContainers"));
    containers.any(|container| {
        container.list("restartPolicyRules").iter().any(|rule| rule.text("action") == "RestartAllContainers")
    })
}

fn is_fenced_on_the_nodes_network(spec: &Value) -> bool {
    spec.flag("hostNetwork") == Some(true) && spec.flag("hostUsers") == Some(false)
}

/// The features that a Pod with this spec needs, in alphabetical order.
pub fn required(spec: &Value) -> Vec<&'static str> {
    RULES.iter().filter(|(_, is_needed)| is_needed(spec)).map(|(name, _)| *name).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_needs_what_its_fields_ask_for() {
        let rule =
            json!([{"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [1]}}]);
        let plain = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [1]}}]);
        let with = |rules: &Value| json!({"containers": [{"name": "c", "restartPolicyRules": rules}]});
        assert_eq!(required(&with(&rule)), [RESTART_ALL_CONTAINERS]);
        assert_eq!(
            required(&json!({"initContainers": [{"restartPolicyRules": rule}]})),
            [RESTART_ALL_CONTAINERS]
        );
        assert!(required(&with(&plain)).is_empty());
        let on_the_network = |host_users: bool| json!({"hostNetwork": true, "hostUsers": host_users});
        assert_eq!(required(&on_the_network(false)), [USER_NAMESPACES_HOST_NETWORK]);
        assert!(required(&on_the_network(true)).is_empty());
        assert!(
            required(&json!({"hostNetwork": true})).is_empty()
                && required(&json!({"hostUsers": false})).is_empty()
        );
    }

    #[test]
    fn the_rules_are_in_order() {
        assert!(RULES.is_sorted_by_key(|(name, _)| *name));
    }
}
