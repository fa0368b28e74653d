//! How Pods are reached: `networking.k8s.io` and `discovery.k8s.io`.

use super::{CLUSTER, CLUSTER_COUNTED, CLUSTER_STATUS, CONTROLLED, COUNTED, status, without_effect};
use crate::kind::Kind;
use crate::table::network;
use crate::validation::{network as network_rules, service};

pub(super) const NETWORKING: &[Kind] = &[
    Kind {
        group: "networking.k8s.io",
        kind: "IngressClass",
        plural: "ingressclasses",
        singular: "ingressclass",
        type_name: "networking.v1.IngressClass",
        store_prefix: "ingressclasses",
        columns: network::INGRESS_CLASS,
        row: network::ingress_class,
        validate: network_rules::ingress_class,
        validate_update: network_rules::ingress_class_update,
        ..CLUSTER_COUNTED
    },
    Kind {
        group: "networking.k8s.io",
        kind: "Ingress",
        plural: "ingresses",
        singular: "ingress",
        short_names: &["ing"],
        subresources: &[status("Ingress", "networking.v1.Ingress")],
        type_name: "networking.v1.Ingress",
        store_prefix: "ingresses",
        columns: network::INGRESS,
        row: network::ingress,
        validate: network_rules::ingress,
        validate_update: network_rules::ingress_update,
        ..CONTROLLED
    },
    Kind {
        group: "networking.k8s.io",
        kind: "IPAddress",
        plural: "ipaddresses",
        singular: "ipaddress",
        short_names: &["ip"],
        type_name: "networking.v1.IPAddress",
        store_prefix: "ipaddresses",
        columns: network::IP_ADDRESS,
        row: network::ip_address,
        validate: service::ip_address,
        validate_update: service::ip_address_update,
        ..CLUSTER
    },
    Kind {
        group: "networking.k8s.io",
        kind: "NetworkPolicy",
        plural: "networkpolicies",
        singular: "networkpolicy",
        short_names: &["netpol"],
        type_name: "networking.v1.NetworkPolicy",
        store_prefix: "networkpolicies",
        columns: network::POLICY,
        row: network::policy,
        validate: network_rules::policy,
        validate_update: network_rules::policy_update,
        warnings: |_, _| without_effect("kakoi's network does not enforce NetworkPolicies yet"),
        ..COUNTED
    },
    Kind {
        group: "networking.k8s.io",
        kind: "ServiceCIDR",
        plural: "servicecidrs",
        singular: "servicecidr",
        subresources: &[status("ServiceCIDR", "networking.v1.ServiceCIDR")],
        type_name: "networking.v1.ServiceCIDR",
        store_prefix: "servicecidrs",
        columns: network::SERVICE_CIDR,
        row: network::service_cidr,
        validate: service::service_cidr,
        validate_update: service::service_cidr_update,
        ..CLUSTER_STATUS
    },
];

pub(super) const DISCOVERY: &[Kind] = &[Kind {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    type_name: "discovery.v1.EndpointSlice",
    store_prefix: "endpointslices",
    columns: network::ENDPOINT_SLICE,
    row: network::endpoint_slice,
    validate: service::slice,
    validate_update: service::slice_update,
    ..COUNTED
}];
