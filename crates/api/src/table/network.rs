//! Rows of Services, endpoints, Ingresses, network policies and service addresses.

use jiff::Timestamp;
use serde_json::Value;

use super::text::{self, NONE, UNSET, number};
use super::{Column, age_cell, name_cell};
use crate::access::{Access, spec, status};

/// The columns of a Service.
pub(crate) const SERVICE: &[Column] = &[
    Column::NAME,
    Column::text("Type", "How it is reached."),
    Column::text("Cluster-IP", "The address inside the cluster."),
    Column::text("External-IP", "The addresses outside the cluster."),
    Column::text("Port(s)", "Its ports, with the node's port after a colon."),
    Column::AGE,
    Column::wide("Selector", "Which Pods it leads to."),
];

/// The columns of Endpoints.
pub(crate) const ENDPOINTS: &[Column] =
    &[Column::NAME, Column::text("Endpoints", "Addresses and ports."), Column::AGE];

/// The columns of an `EndpointSlice`.
pub(crate) const ENDPOINT_SLICE: &[Column] = &[
    Column::NAME,
    Column::text("AddressType", "IPv4, IPv6 or FQDN."),
    Column::text("Ports", "The ports."),
    Column::text("Endpoints", "The addresses."),
    Column::AGE,
];

/// The columns of an Ingress.
pub(crate) const INGRESS: &[Column] = &[
    Column::NAME,
    Column::text("Class", "The class whose controller serves it."),
    Column::text("Hosts", "The hosts that it serves."),
    Column::text("Address", "The address of the load balancer."),
    Column::text("Ports", "The ports that it serves."),
    Column::AGE,
];

/// The columns of an `IngressClass`.
pub(crate) const INGRESS_CLASS: &[Column] = &[
    Column::NAME,
    Column::text("Controller", "The controller of the class."),
    Column::text("Parameters", "The object that configures the controller."),
    Column::AGE,
];

/// The columns of a `NetworkPolicy`.
pub(crate) const POLICY: &[Column] =
    &[Column::NAME, Column::text("Pod-Selector", "Which Pods it is about."), Column::AGE];

/// The columns of a `ServiceCIDR`.
pub(crate) const SERVICE_CIDR: &[Column] =
    &[Column::NAME, Column::text("CIDRs", "The ranges of service addresses."), Column::AGE];

/// The columns of an `IPAddress`.
pub(crate) const IP_ADDRESS: &[Column] =
    &[Column::NAME, Column::text("ParentRef", "What the address belongs to."), Column::AGE];

pub(crate) fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let own = spec(object).list("clusterIPs").first().and_then(Value::as_str);
    vec![
        name_cell(object),
        spec(object).text("type").into(),
        own.unwrap_or(NONE).into(),
        external_addresses(object).into(),
        text::or(&service_ports(object), NONE).into(),
        age_cell(object, now),
        text::labels(spec(object), "selector").into(),
    ]
}

fn external_addresses(service: &Value) -> String {
    let texts = |list: &[Value]| list.iter().filter_map(Value::as_str).map(str::to_owned).collect::<Vec<_>>();
    let external = texts(spec(service).list("externalIPs"));
    match spec(service).text("type") {
        "ClusterIP" | "NodePort" => text::or(&external.join(","), NONE).to_owned(),
        "LoadBalancer" => {
            let all = [load_balancer(service), external].concat();
            text::or(&all.join(","), "<pending>").to_owned()
        }
        "ExternalName" => spec(service).text("externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

/// The addresses of a load balancer, sorted.
fn load_balancer(object: &Value) -> Vec<String> {
    let none = Value::Null;
    let ingress = status(object).field("loadBalancer").unwrap_or(&none).list("ingress");
    let mut addresses: Vec<String> = ingress
        .iter()
        .map(|one| text::or(one.text("ip"), one.text("hostname")).to_owned())
        .filter(|address| !address.is_empty())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

fn service_ports(service: &Value) -> String {
    let ports = spec(service).list("ports").iter().map(|port| {
        let node_port = match number(port, "nodePort") {
            0 => String::new(),
            number => format!(":{number}"),
        };
        format!("{}{node_port}/{}", number(port, "port"), port.text("protocol"))
    });
    ports.collect::<Vec<_>>().join(",")
}

pub(crate) fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut all = Vec::new();
    for subset in object.list("subsets") {
        let addresses = || subset.list("addresses").iter().map(|address| address.text("ip"));
        let ports = subset.list("ports");
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            all.extend(addresses().map(|ip| host_port(ip, number(port, "port"))));
        }
    }
    vec![name_cell(object), text::first_three(&all, NONE).into(), age_cell(object, now)]
}

fn host_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

pub(crate) fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = object
        .list("ports")
        .iter()
        .map(|port| {
            port.int("port").map_or_else(|| text::field_or(port, "name", "*").to_owned(), |n| n.to_string())
        })
        .collect();
    let addresses: Vec<String> = object
        .list("endpoints")
        .iter()
        .flat_map(|endpoint| endpoint.list("addresses"))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    vec![
        name_cell(object),
        object.text("addressType").into(),
        text::first_three(&ports, UNSET).into(),
        text::first_three(&addresses, UNSET).into(),
        age_cell(object, now),
    ]
}

pub(crate) fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports = if spec(object).list("tls").is_empty() { "80" } else { "80, 443" };
    vec![
        name_cell(object),
        text::field_or(spec(object), "ingressClassName", NONE).into(),
        hosts(spec(object).list("rules")).into(),
        load_balancer(object).join(",").into(),
        ports.into(),
        age_cell(object, now),
    ]
}

/// The first three hosts; what is left counts rules, not hosts.
fn hosts(rules: &[Value]) -> String {
    const SHOWN: usize = 3;
    let mut shown: Vec<&str> = Vec::new();
    let mut is_cut = false;
    for rule in rules {
        is_cut |= shown.len() == SHOWN;
        if !is_cut && !rule.text("host").is_empty() {
            shown.push(rule.text("host"));
        }
    }
    match (shown.is_empty(), is_cut) {
        (true, _) => "*".to_owned(),
        (false, true) => format!("{} + {} more...", shown.join(","), rules.len() - SHOWN),
        (false, false) => shown.join(","),
    }
}

pub(crate) fn ingress_class(object: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = spec(object).field("parameters").map_or_else(
        || NONE.to_owned(),
        |to| {
            let group = to.field("apiGroup").and_then(Value::as_str).map(|group| format!(".{group}"));
            format!("{}{}/{}", to.text("kind"), group.unwrap_or_default(), to.text("name"))
        },
    );
    let name = text::name_with_default(object, &["ingressclass.kubernetes.io/is-default-class"]);
    vec![name.into(), spec(object).text("controller").into(), parameters.into(), age_cell(object, now)]
}

pub(crate) fn policy(object: &Value, now: Timestamp) -> Vec<Value> {
    let pods = text::selector(spec(object).field("podSelector"));
    vec![name_cell(object), pods.into(), age_cell(object, now)]
}

pub(crate) fn service_cidr(object: &Value, now: Timestamp) -> Vec<Value> {
    let ranges: Vec<&str> = spec(object).list("cidrs").iter().filter_map(Value::as_str).collect();
    vec![name_cell(object), ranges.join(",").into(), age_cell(object, now)]
}

pub(crate) fn ip_address(object: &Value, now: Timestamp) -> Vec<Value> {
    let parent = spec(object).field("parentRef").map_or_else(
        || NONE.to_owned(),
        |parent| {
            let group = parent.text("group");
            let resource = if group.is_empty() {
                parent.text("resource").to_lowercase()
            } else {
                format!("{}.{group}", parent.text("resource")).to_lowercase()
            };
            let parts = [resource.as_str(), parent.text("namespace"), parent.text("name")];
            parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
        },
    );
    vec![name_cell(object), parent.into(), age_cell(object, now)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn a_service_shows_where_it_is_reached() {
        let service_of = |spec: Value| service(&json!({"metadata": {"name": "s"}, "spec": spec}), NOW);
        let row = service_of(json!({"type": "NodePort", "clusterIPs": ["10.96.0.7"], "selector": {"a": "b"},
            "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]}));
        assert_eq!(
            row[1..5],
            [json!("NodePort"), json!("10.96.0.7"), json!("<none>"), json!("80:30080/TCP,53/UDP")]
        );
        assert_eq!(row[6], "a=b");
        assert_eq!(service_of(json!({"type": "LoadBalancer"}))[3], "<pending>");
        let named = service_of(json!({"type": "ExternalName", "externalName": "example.org"}));
        assert_eq!(named[2..5], [json!("<none>"), json!("example.org"), json!("<none>")]);
    }

    #[test]
    fn endpoints_are_cut_after_three() {
        let ip = |n: i32| json!({"ip": format!("10.0.0.{n}")});
        let object = json!({"metadata": {"name": "e"}, "subsets": [
            {"addresses": [ip(1), ip(2), {"ip": "fd00::1"}, ip(4)], "ports": [{"port": 80}]}]});
        assert_eq!(endpoints(&object, NOW)[1], "10.0.0.1:80,10.0.0.2:80,[fd00::1]:80 + 1 more...");
        assert_eq!(endpoints(&json!({}), NOW)[1], "<none>");
        let slice = json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}, {}]});
        assert_eq!(endpoint_slice(&slice, NOW)[1..4], [json!("IPv4"), json!("80,*"), json!("10.0.0.1")]);
    }

    #[test]
    fn an_ingress_without_hosts_serves_all() {
        let object = json!({"spec": {"tls": [{}], "rules": [{}]}, "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}});
        assert_eq!(
            ingress(&object, NOW)[1..5],
            [json!("<none>"), json!("*"), json!("1.2.3.4"), json!("80, 443")]
        );
        let rules: Vec<Value> = ["a", "b", "c", "d"].map(|host| json!({"host": host})).into();
        assert_eq!(hosts(&rules), "a,b,c + 1 more...");
    }

    #[test]
    fn an_address_names_its_owner() {
        let object = json!({"spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "kubernetes"}}});
        assert_eq!(ip_address(&object, NOW)[1], "services/default/kubernetes");
    }
}
