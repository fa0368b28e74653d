//! What the endpoints of a Service should be: from its Pods, or from `Endpoints` that somebody wrote by hand. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::model::{
    Address, Endpoint, EndpointConditions, Endpoints, HEADLESS, Labels, MANAGED_BY, Pod, Port, SERVICE_NAME,
    Service, Subset,
};

/// The controller of slices that are made from Pods.
pub(crate) const SLICES: &str = "endpointslice-controller.k8s.io";
/// The controller of slices that are made from `Endpoints`.
pub(crate) const MIRROR: &str = "endpointslicemirroring-controller.k8s.io";
/// The controller of `Endpoints`, in their label.
const LEGACY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
/// The label that keeps `Endpoints` from being mirrored.
const SKIP_MIRROR: &str = "endpointslice.kubernetes.io/skip-mirror";
/// The annotation of `Endpoints` that were a lock for electing a leader.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// The most addresses of one subset that are mirrored.
const MIRRORED: usize = 1000;

/// Slices of one address type with the same ports hold these endpoints.
pub(crate) type Groups = BTreeMap<(String, Vec<Port>), Vec<Endpoint>>;

/// What the slices of one controller for one Service should be.
#[derive(Clone, Debug)]
pub(crate) struct Desired {
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) labels: Labels,
    /// The object that the slices go with.
    pub(crate) owner: Value,
    pub(crate) groups: Groups,
    /// Whether a Service without endpoints has an empty slice.
    pub(crate) has_placeholder: bool,
}

/// The slices of a Service from its Pods.
pub(crate) fn from_pods<'a>(service: &Service, pods: impl Iterator<Item = &'a Pod>) -> Desired {
    let mut groups = Groups::new();
    for pod in pods.filter(|pod| pod.is_reachable()) {
        let Some(kind) = address_type(&pod.status.pod_ip) else { continue };
        groups.entry((kind, ports_of(service, pod))).or_default().push(endpoint_of(service, pod));
    }
    let mut labels = inherited(&service.labels, service.is_headless());
    labels.insert(SERVICE_NAME.to_owned(), service.key.name.clone());
    labels.insert(MANAGED_BY.to_owned(), SLICES.to_owned());
    Desired {
        namespace: service.key.namespace.clone(),
        service: service.key.name.clone(),
        labels,
        owner: owner("Service", &service.key.name, &service.key.uid),
        groups,
        has_placeholder: true,
    }
}

/// The slices that mirror `Endpoints`; `None` when these are not to be mirrored.
pub(crate) fn from_endpoints(service: &Service, endpoints: &Endpoints) -> Option<Desired> {
    let is_skipped = endpoints.labels.get(SKIP_MIRROR).is_some_and(|value| value == "true");
    if service.selects() || is_skipped || endpoints.annotations.contains_key(LEADER) {
        return None;
    }
    let mut groups = Groups::new();
    for subset in &endpoints.subsets {
        mirror(subset, &mut groups);
    }
    let mut labels = endpoints.labels.clone();
    labels.insert(SERVICE_NAME.to_owned(), endpoints.key.name.clone());
    labels.insert(MANAGED_BY.to_owned(), MIRROR.to_owned());
    Some(Desired {
        namespace: endpoints.key.namespace.clone(),
        service: endpoints.key.name.clone(),
        labels,
        owner: owner("Endpoints", &endpoints.key.name, &endpoints.key.uid),
        groups,
        has_placeholder: false,
    })
}

fn mirror(subset: &Subset, groups: &mut Groups) {
    let ports: Vec<Port> = subset.ports.iter().cloned().map(Port::from).collect();
    let ready = subset.addresses.iter().map(|address| (address, true));
    let unready = subset.not_ready_addresses.iter().map(|address| (address, false));
    for (address, ready) in ready.chain(unready).take(MIRRORED) {
        let Some(kind) = address_type(&address.ip) else { continue };
        let endpoint = Endpoint {
            addresses: vec![address.ip.clone()],
            conditions: EndpointConditions { ready, ..EndpointConditions::default() },
            hostname: address.hostname.clone(),
            target_ref: address.target_ref.clone(),
            node_name: address.node_name.clone(),
        };
        groups.entry((kind, ports.clone())).or_default().push(endpoint);
    }
}

/// The labels and subsets of a Service's `Endpoints`. A Pod that ends is in no subset, unless unready ones are wanted.
pub(crate) fn subsets<'a>(service: &Service, pods: impl Iterator<Item = &'a Pod>) -> (Labels, Vec<Subset>) {
    let all = service.spec.publish_not_ready_addresses;
    let mut by_ports: BTreeMap<Vec<Port>, Subset> = BTreeMap::new();
    for pod in pods.filter(|pod| pod.is_reachable() && (all || !pod.is_deleted)) {
        let ports = ports_of(service, pod);
        let subset = by_ports.entry(ports.clone()).or_insert_with(|| Subset {
            ports: ports.into_iter().map(Into::into).collect(),
            ..Subset::default()
        });
        let is_ready = all || pod.is_ready();
        let addresses = if is_ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        addresses.push(address_of(service, pod));
    }
    let by_ip = |one: &Address, other: &Address| one.ip.cmp(&other.ip);
    for subset in by_ports.values_mut() {
        subset.addresses.sort_by(by_ip);
        subset.not_ready_addresses.sort_by(by_ip);
    }
    let mut labels = inherited(&service.labels, service.is_headless());
    labels.insert(LEGACY.0.to_owned(), LEGACY.1.to_owned());
    (labels, by_ports.into_values().collect())
}

/// Whether our controller made these `Endpoints`.
pub(crate) fn is_made(endpoints: &Endpoints) -> bool {
    endpoints.labels.get(LEGACY.0).is_some_and(|manager| manager == LEGACY.1)
}

fn address_of(service: &Service, pod: &Pod) -> Address {
    Address {
        ip: pod.status.pod_ip.clone(),
        hostname: hostname(service, pod),
        node_name: pod.spec.node_name.clone(),
        target_ref: Some(reference(pod)),
    }
}

fn endpoint_of(service: &Service, pod: &Pod) -> Endpoint {
    let is_serving = pod.is_ready();
    let ready = service.spec.publish_not_ready_addresses || (is_serving && !pod.is_deleted);
    Endpoint {
        addresses: vec![pod.status.pod_ip.clone()],
        conditions: EndpointConditions {
            ready,
            serving: Some(is_serving),
            terminating: Some(pod.is_deleted),
        },
        hostname: hostname(service, pod),
        target_ref: Some(reference(pod)),
        node_name: pod.spec.node_name.clone(),
    }
}

/// A Pod whose subdomain is the Service has a name of its own in it.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    pod.spec.hostname.clone().filter(|name| !name.is_empty() && pod.spec.subdomain == service.key.name)
}

fn reference(pod: &Pod) -> Value {
    let key = &pod.key;
    json!({"kind": "Pod", "namespace": key.namespace, "name": key.name, "uid": key.uid})
}

/// The ports of a Service as they are in a Pod; those that it has not are left out.
fn ports_of(service: &Service, pod: &Pod) -> Vec<Port> {
    let ports = service.spec.ports.iter().filter_map(|port| {
        Some(Port {
            name: port.name.clone(),
            number: pod.port(port)?,
            protocol: if port.protocol.is_empty() { "TCP".to_owned() } else { port.protocol.clone() },
            app_protocol: port.app_protocol.clone(),
        })
    });
    let mut ports: Vec<Port> = ports.collect();
    ports.sort();
    ports
}

fn inherited(labels: &Labels, is_headless: bool) -> Labels {
    let mut labels = labels.clone();
    labels.remove(HEADLESS);
    if is_headless {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

fn owner(kind: &str, name: &str, uid: &str) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "controller": true,
        "blockOwnerDeletion": true})
}

fn address_type(ip: &str) -> Option<String> {
    let kind = match ip.parse().ok()? {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    };
    Some(kind.to_owned())
}
