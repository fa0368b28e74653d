//! Services, Pods, `EndpointSlice`s and `Endpoints`, as far as the controllers of endpoints read them.

use std::collections::BTreeMap;

use informer::Meta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::metadata::Metadata;

pub(crate) type Labels = BTreeMap<String, String>;

/// The label that names a slice's Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that names a slice's controller.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The label of what belongs to a headless Service.
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

#[derive(Default, Deserialize)]
#[serde(default)]
struct Labelled {
    #[serde(flatten)]
    metadata: Metadata,
    labels: Labels,
    annotations: Labels,
}

/// A Service.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WholeService")]
pub(crate) struct Service {
    pub(crate) key: Meta,
    pub(crate) labels: Labels,
    pub(crate) spec: ServiceSpec,
}

#[derive(Deserialize)]
struct WholeService {
    metadata: Labelled,
    #[serde(default)]
    spec: ServiceSpec,
}

/// What a Service says of its endpoints.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceSpec {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    pub(crate) selector: Labels,
    pub(crate) ports: Vec<ServicePort>,
    pub(crate) publish_not_ready_addresses: bool,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServicePort {
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) app_protocol: Option<String>,
    pub(crate) port: u16,
    pub(crate) target_port: Option<TargetPort>,
}

/// Which port of a Pod is meant.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum TargetPort {
    /// This one; 0 means the Service's own.
    Number(u16),
    /// The container port of this name.
    Name(String),
}

impl From<WholeService> for Service {
    fn from(whole: WholeService) -> Self {
        let Labelled { metadata, labels, .. } = whole.metadata;
        Self { key: metadata.key(), labels, spec: whole.spec }
    }
}

impl Service {
    pub(crate) fn is_headless(&self) -> bool {
        self.spec.cluster_ip == "None"
    }

    /// Whether the controllers make its endpoints.
    pub(crate) fn selects(&self) -> bool {
        !self.spec.selector.is_empty() && self.spec.kind != "ExternalName"
    }

    /// Whether a Pod of these labels is one of its endpoints.
    pub(crate) fn matches(&self, namespace: &str, labels: &Labels) -> bool {
        self.selects()
            && self.key.namespace == namespace
            && self.spec.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// A Pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WholePod")]
pub(crate) struct Pod {
    pub(crate) key: Meta,
    pub(crate) labels: Labels,
    pub(crate) is_deleted: bool,
    pub(crate) spec: PodSpec,
    pub(crate) status: PodStatus,
}

#[derive(Deserialize)]
struct WholePod {
    metadata: Labelled,
    #[serde(default)]
    spec: PodSpec,
    #[serde(default)]
    status: PodStatus,
}

/// What of a Pod's spec endpoints show.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpec {
    pub(crate) node_name: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) subdomain: String,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    ports: Vec<ContainerPort>,
    restart_policy: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerPort {
    name: String,
    protocol: String,
    #[serde(rename = "containerPort")]
    number: u16,
}

/// What of a Pod's status endpoints show.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatus {
    phase: String,
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: String,
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
}

impl From<WholePod> for Pod {
    fn from(whole: WholePod) -> Self {
        let Labelled { metadata, labels, .. } = whole.metadata;
        let is_deleted = metadata.is_deleted();
        Self { key: metadata.key(), labels, is_deleted, spec: whole.spec, status: whole.status }
    }
}

impl Pod {
    /// Whether it has an address that will answer, now or later.
    pub(crate) fn is_reachable(&self) -> bool {
        !self.status.pod_ip.is_empty() && !matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True")
    }

    /// The number of a port of a Service in this Pod.
    pub(crate) fn port(&self, port: &ServicePort) -> Option<u16> {
        match &port.target_port {
            None | Some(TargetPort::Number(0)) => Some(port.port),
            Some(TargetPort::Number(number)) => Some(*number),
            Some(TargetPort::Name(name)) => self.named_port(name, &port.protocol),
        }
    }

    fn named_port(&self, name: &str, protocol: &str) -> Option<u16> {
        let protocol = if protocol.is_empty() { "TCP" } else { protocol };
        let sidecars = self.spec.init_containers.iter().filter(|init| init.restart_policy == "Always");
        let mut ports =
            self.spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter());
        let is_meant = |port: &&ContainerPort| {
            let own = if port.protocol.is_empty() { "TCP" } else { &port.protocol };
            port.name == name && own == protocol
        };
        ports.find(is_meant).map(|port| port.number)
    }
}

/// One endpoint of a slice.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Endpoint {
    pub(crate) addresses: Vec<String>,
    pub(crate) conditions: EndpointConditions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target_ref: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_name: Option<String>,
}

impl Endpoint {
    /// What makes it the same endpoint in another state.
    pub(crate) fn identity(&self) -> (String, String) {
        let uid = self.target_ref.as_ref().and_then(|target| target.get("uid")).and_then(Value::as_str);
        (self.addresses.first().cloned().unwrap_or_default(), uid.unwrap_or_default().to_owned())
    }
}

/// Whether an endpoint takes connections.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct EndpointConditions {
    pub(crate) ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) serving: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) terminating: Option<bool>,
}

/// A port of a slice or of `Endpoints`.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Port {
    pub(crate) name: String,
    #[serde(rename = "port")]
    pub(crate) number: u16,
    pub(crate) protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) app_protocol: Option<String>,
}

/// An `EndpointSlice`.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WholeSlice")]
pub(crate) struct Slice {
    pub(crate) key: Meta,
    pub(crate) labels: Labels,
    pub(crate) is_deleted: bool,
    pub(crate) address_type: String,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) ports: Vec<Port>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WholeSlice {
    metadata: Labelled,
    address_type: String,
    #[serde(default)]
    endpoints: Option<Vec<Endpoint>>,
    #[serde(default)]
    ports: Option<Vec<Port>>,
}

impl From<WholeSlice> for Slice {
    fn from(whole: WholeSlice) -> Self {
        let Labelled { metadata, labels, .. } = whole.metadata;
        Self {
            key: metadata.key(),
            labels,
            is_deleted: metadata.is_deleted(),
            address_type: whole.address_type,
            endpoints: whole.endpoints.unwrap_or_default(),
            ports: whole.ports.unwrap_or_default(),
        }
    }
}

impl Slice {
    /// The key of its Service.
    pub(crate) fn service(&self) -> Option<String> {
        self.labels.get(SERVICE_NAME).map(|name| format!("{}/{name}", self.key.namespace))
    }

    pub(crate) fn is_managed_by(&self, controller: &str) -> bool {
        self.labels.get(MANAGED_BY).is_some_and(|manager| manager == controller)
    }
}

/// `Endpoints`, the older form of the same.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WholeEndpoints")]
pub(crate) struct Endpoints {
    pub(crate) key: Meta,
    pub(crate) labels: Labels,
    pub(crate) annotations: Labels,
    pub(crate) subsets: Vec<Subset>,
}

#[derive(Deserialize)]
struct WholeEndpoints {
    metadata: Labelled,
    #[serde(default)]
    subsets: Option<Vec<Subset>>,
}

impl From<WholeEndpoints> for Endpoints {
    fn from(whole: WholeEndpoints) -> Self {
        let Labelled { metadata, labels, annotations } = whole.metadata;
        Self { key: metadata.key(), labels, annotations, subsets: whole.subsets.unwrap_or_default() }
    }
}

/// Addresses that share their ports.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Subset {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) not_ready_addresses: Vec<Address>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ports: Vec<LegacyPort>,
}

/// A port of a subset; a nameless one has no name at all.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct LegacyPort {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) app_protocol: Option<String>,
}

impl From<Port> for LegacyPort {
    fn from(port: Port) -> Self {
        Self { name: port.name, port: port.number, protocol: port.protocol, app_protocol: port.app_protocol }
    }
}

impl From<LegacyPort> for Port {
    fn from(port: LegacyPort) -> Self {
        let protocol = if port.protocol.is_empty() { "TCP".to_owned() } else { port.protocol };
        Self { name: port.name, number: port.port, protocol, app_protocol: port.app_protocol }
    }
}

/// One address of a subset.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Address {
    pub(crate) ip: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) target_ref: Option<Value>,
}

/// An informer's object of each of the four.
macro_rules! kept_by {
    ($($kind:ty),*) => {$(
        impl informer::Object for $kind {
            fn meta(&self) -> &Meta {
                &self.key
            }
        }
    )*};
}

kept_by!(Service, Pod, Slice, Endpoints);
