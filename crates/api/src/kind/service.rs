//! What is a Service's own: which addresses and ports it wants and has, and what becomes of them when its type changes.
//! Who gives them out is the API server; here is only what to give.

use serde_json::{Map, Value, json};

use super::{Ctx, strategy};
use crate::access::{Access, carry_over, object_at, remove, set, spec};
use crate::validation::{FieldErrors, Path};

/// What a Service without an address says in its place.
pub const HEADLESS: &str = "None";

/// A port of the nodes, for one protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodePort {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The number.
    pub number: u16,
}

/// Whether a Service has addresses in the cluster at all.
pub fn wants_address(service: &Value) -> bool {
    spec(service).text("type") != "ExternalName" && spec(service).text("clusterIP") != HEADLESS
}

/// The cluster addresses that a Service has.
pub fn addresses(service: &Value) -> Vec<&str> {
    let listed = spec(service).list("clusterIPs").iter().filter_map(Value::as_str);
    listed.filter(|ip| !ip.is_empty() && *ip != HEADLESS).collect()
}

/// The node ports that a Service has, its health check's too.
pub fn node_ports(service: &Value) -> Vec<NodePort> {
    let number = |value: &Value, name: &str| {
        value.int(name).and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0)
    };
    let ports = spec(service).list("ports").iter().filter_map(|port| {
        Some(NodePort { protocol: port.text("protocol").to_owned(), number: number(port, "nodePort")? })
    });
    let check = number(spec(service), "healthCheckNodePort");
    ports.chain(check.map(|number| NodePort { protocol: "TCP".to_owned(), number })).collect()
}

fn needs_node_ports(service: &Value) -> bool {
    match spec(service).text("type") {
        "NodePort" => true,
        "LoadBalancer" => spec(service).flag("allocateLoadBalancerNodePorts") != Some(false),
        _ => false,
    }
}

fn can_have_node_ports(service: &Value) -> bool {
    matches!(spec(service).text("type"), "NodePort" | "LoadBalancer")
}

fn needs_health_port(service: &Value) -> bool {
    spec(service).text("type") == "LoadBalancer" && spec(service).text("externalTrafficPolicy") == "Local"
}

/// A load balancer's address is one of its own unless it says otherwise.
pub(super) fn default(service: &mut Value) {
    if spec(service).text("type") != "LoadBalancer" {
        return;
    }
    let ingress = service.pointer_mut("/status/loadBalancer/ingress").and_then(Value::as_array_mut);
    for one in ingress.into_iter().flatten().filter(|one| !one.text("ip").is_empty()) {
        if one.field("ipMode").is_none() {
            set(one, "ipMode", "VIP");
        }
    }
}

/// A new Service has no load balancer yet.
pub(super) fn prepare_create(service: &mut Value, _ctx: &Ctx) {
    set(service, "status", json!({"loadBalancer": {}}));
    same_first_address(service, None);
}

/// What was given out stays; what the new type cannot have goes.
pub(super) fn prepare_update(service: &mut Value, old: &Value, ctx: &Ctx) {
    strategy::status_update(service, old, ctx);
    same_first_address(service, Some(old));
    keep_given(service, old);
    drop_foreign(service, old);
}

/// `clusterIP` is the first of `clusterIPs`; who writes one of them alone means both.
fn same_first_address(service: &mut Value, old: Option<&Value>) {
    let one = spec(service).text("clusterIP").to_owned();
    let all: Vec<Value> = spec(service).list("clusterIPs").to_vec();
    let before = old.map(|old| spec(old).text("clusterIP").to_owned());
    let before_all = old.map(|old| spec(old).list("clusterIPs").to_vec());
    let fields = object_at(service, "spec");
    if !one.is_empty()
        && (all.is_empty() || (before_all.as_ref() == Some(&all) && before.as_ref() != Some(&one)))
    {
        fields.insert("clusterIPs".into(), json!([one]));
    } else if one.is_empty() && !all.is_empty() && before.as_ref().is_some_and(|before| !before.is_empty()) {
        // A client that clears the old field means both.
        if before_all.as_ref() == Some(&all) {
            fields.shift_remove("clusterIPs");
        }
    }
}

/// What a client leaves out it still has.
fn keep_given(service: &mut Value, old: &Value) {
    let has_type = |service: &Value| spec(service).text("type") != "ExternalName";
    if has_type(service) && has_type(old) && spec(service).text("clusterIP").is_empty() {
        object_at(service, "spec");
        if let Some(new) = service.get_mut("spec") {
            carry_over(new, spec(old), "clusterIP");
            if new.list("clusterIPs").is_empty() {
                carry_over(new, spec(old), "clusterIPs");
            }
        }
    }
    if can_have_node_ports(service) && can_have_node_ports(old) {
        keep_node_ports(service, old);
    }
    if needs_health_port(service)
        && needs_health_port(old)
        && spec(service).int("healthCheckNodePort").is_none()
        && let Some(new) = service.get_mut("spec")
    {
        carry_over(new, spec(old), "healthCheckNodePort");
    }
}

fn keep_node_ports(service: &mut Value, old: &Value) {
    let number = |port: &Value| port.int("nodePort").filter(|n| *n > 0);
    let used: Vec<i64> = spec(service).list("ports").iter().filter_map(number).collect();
    let ports = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter(|port| number(port).is_none()) {
        let same = spec(old).list("ports").iter().find(|one| one.text("name") == port.text("name"));
        if let Some(kept) = same.and_then(number).filter(|kept| !used.contains(kept)) {
            set(port, "nodePort", kept);
        }
    }
}

/// Fields that only the old type had go, unless they are written anew.
fn drop_foreign(service: &mut Value, old: &Value) {
    let wanted = service.clone();
    let Some(new) = service.get_mut("spec") else { return };
    let mut drop_if_same = |holds: bool, names: &[&str]| {
        for name in names.iter().filter(|_| holds) {
            if new.get(*name) == spec(old).get(*name) {
                remove(new, name);
            }
        }
    };
    let has_address = |service: &Value| spec(service).text("type") != "ExternalName";
    let families = ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"];
    drop_if_same(has_address(old) && !has_address(&wanted), &families);
    let health = needs_health_port(old) && !needs_health_port(&wanted);
    drop_if_same(health, &["healthCheckNodePort"]);
    let is_balanced = |service: &Value| spec(service).text("type") == "LoadBalancer";
    let balancer = ["allocateLoadBalancerNodePorts", "loadBalancerClass"];
    drop_if_same(is_balanced(old) && !is_balanced(&wanted), &balancer);
    let external = is_external(old) && !is_external(&wanted);
    drop_if_same(external, &["externalTrafficPolicy"]);
    if can_have_node_ports(old) && !can_have_node_ports(&wanted) && node_ports(old) == node_ports(&wanted) {
        for port in new.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            remove(port, "nodePort");
        }
    }
    if !is_balanced(&wanted) && wanted.pointer("/status/loadBalancer").is_some() {
        object_at(service, "status").insert("loadBalancer".into(), Value::Object(Map::new()));
    }
}

/// Whether a Service is reached from outside the cluster.
pub(crate) fn is_external(service: &Value) -> bool {
    match spec(service).text("type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !spec(service).list("externalIPs").is_empty(),
        _ => false,
    }
}

/// Fills in the address families of a cluster that has IPv4 alone.
///
/// # Errors
/// For families that such a cluster does not have.
pub fn fill_families(service: &mut Value) -> FieldErrors {
    let mut errors = FieldErrors::new();
    if spec(service).text("type") == "ExternalName" {
        return errors;
    }
    let is_headless = spec(service).text("clusterIP") == HEADLESS;
    let is_bare = is_headless && spec(service).map("selector").is_none_or(Map::is_empty);
    let path = Path::new("spec");
    let fields = object_at(service, "spec");
    if fields.get("ipFamilyPolicy").and_then(Value::as_str).is_none_or(str::is_empty) {
        let policy = if is_bare { "RequireDualStack" } else { "SingleStack" };
        fields.insert("ipFamilyPolicy".into(), policy.into());
    }
    let policy = fields.get("ipFamilyPolicy").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut families: Vec<Value> =
        fields.get("ipFamilies").and_then(Value::as_array).cloned().unwrap_or_default();
    if families.is_empty() {
        families.push("IPv4".into());
    }
    if is_bare {
        if families.len() < 2 && policy != "SingleStack" {
            let other = if families.first().is_some_and(|one| one == "IPv4") { "IPv6" } else { "IPv4" };
            families.push(other.into());
        }
    } else {
        if policy == "RequireDualStack" {
            let detail = "this cluster is not configured for dual-stack services";
            errors.invalid(&path.child("ipFamilyPolicy"), policy.as_str(), detail);
        }
        for (i, family) in families.iter().enumerate().filter(|(_, family)| *family != "IPv4") {
            let path = path.child("ipFamilies").index(i);
            errors.invalid(&path, family.clone(), "not configured on this cluster");
        }
    }
    fields.insert("ipFamilies".into(), families.into());
    if is_headless {
        fields.insert("clusterIPs".into(), json!([HEADLESS]));
    }
    errors
}

/// Gives a Service its cluster address.
pub fn set_address(service: &mut Value, address: &str) {
    let fields = object_at(service, "spec");
    fields.insert("clusterIP".into(), address.into());
    fields.insert("clusterIPs".into(), json!([address]));
}

/// The protocols and names of ports that still want a number from the nodes, by position; `None` stands for the health
/// check's.
pub fn ports_without_number(service: &Value) -> Vec<(Option<usize>, String)> {
    let mut out = Vec::new();
    if needs_node_ports(service) {
        for (i, port) in spec(service).list("ports").iter().enumerate() {
            if port.int("nodePort").unwrap_or_default() == 0 {
                out.push((Some(i), port.text("protocol").to_owned()));
            }
        }
    }
    if needs_health_port(service) && spec(service).int("healthCheckNodePort").unwrap_or_default() == 0 {
        out.push((None, "TCP".to_owned()));
    }
    out
}

/// Gives a port its number; without a position, the health check.
pub fn set_node_port(service: &mut Value, position: Option<usize>, number: u16) {
    match position {
        Some(i) => {
            if let Some(port) = service.pointer_mut(&format!("/spec/ports/{i}")) {
                set(port, "nodePort", number);
            }
        }
        None => {
            object_at(service, "spec").insert("healthCheckNodePort".into(), number.into());
        }
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

    fn given(kind: &str) -> Value {
        json!({"metadata": {"name": "s"}, "spec": {"type": kind, "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "externalTrafficPolicy": "Cluster",
            "ports": [{"name": "a", "port": 80, "protocol": "TCP", "nodePort": 30001}]}, "status": {"loadBalancer": {}}})
    }

    #[test]
    fn what_was_given_stays_with_who_leaves_it_out() {
        let mut new =
            json!({"spec": {"type": "NodePort", "ports": [{"name": "a", "port": 81, "protocol": "TCP"}]}});
        prepare_update(&mut new, &given("NodePort"), &ctx());
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.5"]));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30001);
        assert_eq!(node_ports(&new), [NodePort { protocol: "TCP".into(), number: 30001 }]);
    }

    #[test]
    fn another_type_loses_what_it_cannot_have() {
        let mut new = given("NodePort");
        new["spec"]["type"] = "ClusterIP".into();
        prepare_update(&mut new, &given("NodePort"), &ctx());
        assert_eq!(new["spec"]["ports"][0].get("nodePort"), None);
        assert_eq!(new["spec"].get("externalTrafficPolicy"), None);
        let mut new = given("NodePort");
        new["spec"]["type"] = "ExternalName".into();
        prepare_update(&mut new, &given("NodePort"), &ctx());
        assert!(addresses(&new).is_empty() && new["spec"].get("ipFamilies").is_none());
    }

    #[test]
    fn families_are_those_of_the_cluster() {
        let mut service = json!({"spec": {"type": "ClusterIP"}});
        assert!(fill_families(&mut service).is_empty());
        assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(service["spec"]["ipFamilyPolicy"], "SingleStack");
        let mut bare = json!({"spec": {"type": "ClusterIP", "clusterIP": "None"}});
        assert!(fill_families(&mut bare).is_empty());
        assert_eq!(bare["spec"]["ipFamilies"], json!(["IPv4", "IPv6"]));
        assert_eq!(bare["spec"]["clusterIPs"], json!(["None"]));
        let mut six = json!({"spec": {"type": "ClusterIP", "ipFamilies": ["IPv6"], "ipFamilyPolicy": "RequireDualStack"}});
        assert_eq!(
            fill_families(&mut six).to_string(),
            "[spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services, spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster]"
        );
    }

    #[test]
    fn a_local_balancer_wants_a_health_port_too() {
        let mut service = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local",
            "ports": [{"port": 80, "protocol": "UDP"}, {"port": 81, "nodePort": 30002}]}});
        let wanted = ports_without_number(&service);
        assert_eq!(wanted, [(Some(0), "UDP".to_owned()), (None, "TCP".to_owned())]);
        set_node_port(&mut service, Some(0), 30007);
        set_node_port(&mut service, None, 30008);
        assert!(ports_without_number(&service).is_empty());
        assert_eq!(node_ports(&service).len(), 3);
    }
}
