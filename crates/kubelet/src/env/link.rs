//! What the environment tells of Services (`enableServiceLinks`): their names and ports in the form of Docker links, as
//! they are when a container starts. Source: "Discovering services" on the "Service" page.

use api::access::{Access as _, spec};
use informer::{Meta, Object, Store, Target, Update};
use kube::Client;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkPort {
    /// Empty when it has none.
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) port: i64,
}

/// What is kept of a Service.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Link {
    meta: Meta,
    /// Empty when it has none, as a headless one.
    address: String,
    ports: Vec<LinkPort>,
}

impl From<Value> for Link {
    fn from(service: Value) -> Self {
        let spec = spec(&service);
        let port = |port: &Value| LinkPort {
            name: port.text("name").to_owned(),
            protocol: port.text("protocol").to_owned(),
            port: port.int("port").unwrap_or_default(),
        };
        let address = spec.text("clusterIP");
        Self {
            meta: Meta::of(&service),
            address: if address == "None" { String::new() } else { address.to_owned() },
            ports: spec.list("ports").iter().map(port).collect(),
        }
    }
}

impl Object for Link {
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

/// All Services; `None` until they were told once.
pub(crate) type Links = Option<Store<Link>>;

/// Follows the Services of the cluster until `stop`.
pub(crate) async fn follow_links(client: Client, links: watch::Sender<Links>, stop: CancellationToken) {
    let (updates, mut changes) = mpsc::channel::<Update<Link>>(8);
    let watching = informer::watch(client, Target::all("/api/v1/services"), updates, stop);
    let taking = async {
        // The first update has all of them.
        while let Some(update) = changes.recv().await {
            links.send_modify(|links| drop(links.get_or_insert_default().apply(update)));
        }
    };
    tokio::join!(watching, taking);
}

/// The variables of all Services of a namespace that have an address, in the order of their names.
pub(crate) fn plan_links(links: &Links, namespace: &str) -> Vec<(String, String)> {
    let all = links.iter().flat_map(Store::iter);
    let here = all.filter(|link| link.meta.namespace == namespace && !link.address.is_empty());
    here.flat_map(|link| link_variables(&link.meta.name, &link.address, &link.ports)).collect()
}

/// The variables of one Service: `NAME_SERVICE_HOST`, its ports, and those of Docker links.
pub(crate) fn link_variables(name: &str, address: &str, ports: &[LinkPort]) -> Vec<(String, String)> {
    let Some(first) = ports.first() else { return Vec::new() };
    let name = variable(name);
    let bracketed = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    let url = |port: &LinkPort| format!("{}://{bracketed}:{}", port.protocol.to_lowercase(), port.port);
    let mut variables = vec![
        (format!("{name}_SERVICE_HOST"), address.to_owned()),
        (format!("{name}_SERVICE_PORT"), first.port.to_string()),
    ];
    let named = ports.iter().filter(|port| !port.name.is_empty());
    variables.extend(
        named.map(|port| (format!("{name}_SERVICE_PORT_{}", variable(&port.name)), port.port.to_string())),
    );
    variables.push((format!("{name}_PORT"), url(first)));
    for port in ports {
        let prefix = format!("{name}_PORT_{}_{}", port.port, port.protocol);
        variables.extend([
            (format!("{prefix}_PROTO"), port.protocol.to_lowercase()),
            (format!("{prefix}_PORT"), port.port.to_string()),
            (format!("{prefix}_ADDR"), address.to_owned()),
            (prefix, url(port)),
        ]);
    }
    variables
}

/// A name as the beginning of a variable's.
fn variable(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn links(services: Value) -> Store<Link> {
        let mut store = Store::default();
        store.apply(Update::Snapshot(serde_json::from_value(services).unwrap()));
        store
    }

    fn service(namespace: &str, name: &str, spec: &Value) -> Value {
        json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec})
    }

    #[test]
    fn a_service_shows_as_the_documentation_says() {
        let redis = json!({"clusterIP": "10.0.0.11", "ports": [{"protocol": "TCP", "port": 6379}]});
        let many = json!({"clusterIP": "fd00::1", "ports": [
            {"name": "dns-udp", "protocol": "UDP", "port": 53}, {"name": "web", "protocol": "TCP", "port": 80}]});
        let services = json!([service("n", "redis-primary", &redis), service("n", "many", &many)]);
        let variables = plan_links(&Some(links(services)), "n");
        let value =
            |name: &str| variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
        for (name, expected) in [
            ("REDIS_PRIMARY_SERVICE_HOST", "10.0.0.11"),
            ("REDIS_PRIMARY_SERVICE_PORT", "6379"),
            ("REDIS_PRIMARY_PORT", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PROTO", "tcp"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PORT", "6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_ADDR", "10.0.0.11"),
            ("MANY_SERVICE_PORT", "53"),
            ("MANY_SERVICE_PORT_DNS_UDP", "53"),
            ("MANY_SERVICE_PORT_WEB", "80"),
            ("MANY_PORT", "udp://[fd00::1]:53"),
            ("MANY_PORT_80_TCP", "tcp://[fd00::1]:80"),
            ("MANY_PORT_80_TCP_ADDR", "fd00::1"),
        ] {
            assert_eq!(value(name), Some(expected), "{name}");
        }
        assert_eq!(variables.len(), 7 + 13);
    }

    #[test]
    fn services_without_an_address_or_of_other_namespaces_are_not_told() {
        let headless = json!({"clusterIP": "None", "ports": [{"protocol": "TCP", "port": 1}]});
        let other = json!({"clusterIP": "10.0.0.1", "ports": [{"protocol": "TCP", "port": 1}]});
        let services = json!([
            service("n", "headless", &headless),
            service("m", "other", &other),
            service("n", "external", &json!({"type": "ExternalName", "externalName": "x"}))
        ]);
        assert_eq!(plan_links(&Some(links(services)), "n"), []);
        assert_eq!(plan_links(&None, "n"), []);
    }
}
