//! The core group, and the second view of its Events.

use super::{
    CLUSTER, CLUSTER_STATUS, CONTROLLED, COUNTED, CREATE, PLAIN, PROXY, SCALE, SCALED, STATUS, STREAM, part,
    status, sub, without_controller,
};
use crate::access::{Access, spec, status as status_of};
use crate::admission;
use crate::kind::{
    FieldReader, Kind, Subresource, config, event, namespace, node, part as part_of, pod,
    service as service_of, volume as volume_of, workload as workload_of,
};
use crate::table::{self, small};
use crate::table::{network, storage, workload};
use crate::validation::{
    self as rules, object, policy as policy_rules, service, storage as storage_rules,
    workload as workload_rules,
};
use crate::warning;

const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

pub(super) const KINDS: &[Kind] = &[
    Kind {
        kind: "Binding",
        plural: "bindings",
        singular: "binding",
        verbs: CREATE,
        type_name: "core.v1.Binding",
        validate: object::binding,
        ..PLAIN
    },
    Kind {
        kind: "ComponentStatus",
        plural: "componentstatuses",
        singular: "componentstatus",
        short_names: &["cs"],
        verbs: &["get", "list"],
        type_name: "core.v1.ComponentStatus",
        columns: small::COMPONENT_STATUS,
        row: small::component_status,
        ..CLUSTER
    },
    Kind {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        type_name: "core.v1.ConfigMap",
        store_prefix: "configmaps",
        columns: small::CONFIG_MAP,
        row: small::config_map,
        validate: object::config_map,
        validate_update: object::config_map_update,
        ..PLAIN
    },
    Kind {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        type_name: "core.v1.Endpoints",
        store_prefix: "endpoints",
        creates_on_update: true,
        columns: network::ENDPOINTS,
        row: network::endpoints,
        validate: service::endpoints,
        validate_update: service::endpoints_update,
        ..PLAIN
    },
    Kind {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        type_name: "core.v1.Event",
        store_prefix: "events",
        creates_on_update: true,
        columns: small::EVENT,
        row: small::event,
        validate: rules::event::event,
        validate_update: rules::event::event_update,
        selectable_fields: event::SELECTABLE,
        ..PLAIN
    },
    Kind {
        kind: "LimitRange",
        plural: "limitranges",
        singular: "limitrange",
        short_names: &["limits"],
        type_name: "core.v1.LimitRange",
        store_prefix: "limitranges",
        creates_on_update: true,
        validate: policy_rules::limit_range,
        validate_update: policy_rules::limit_range_update,
        ..PLAIN
    },
    Kind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        verbs: NO_COLLECTION,
        subresources: &[
            Subresource {
                verbs: &["update"],
                ..part("finalize", "Namespace", "core.v1.Namespace", part_of::FINALIZE)
            },
            status("Namespace", "core.v1.Namespace"),
        ],
        type_name: "core.v1.Namespace",
        has_status: true,
        store_prefix: "namespaces",
        columns: small::NAMESPACE,
        row: small::namespace,
        validate: object::namespace,
        validate_update: object::namespace_update,
        validate_status: object::namespace_status,
        default: namespace::default,
        prepare_create: namespace::prepare_create,
        prepare_update: namespace::prepare_update,
        prepare_status: namespace::prepare_status,
        selectable_fields: namespace::SELECTABLE,
        ..PLAIN
    },
    Kind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        subresources: &[sub("proxy", "NodeProxyOptions", PROXY, ""), status("Node", "core.v1.Node")],
        type_name: "core.v1.Node",
        has_status: true,
        store_prefix: "minions",
        columns: table::node::COLUMNS,
        row: table::node::row,
        validate: object::node,
        validate_update: object::node_update,
        validate_status: object::node_update,
        prepare_update: node::prepare_update,
        prepare_status: node::prepare_status,
        selectable_fields: node::SELECTABLE,
        ..PLAIN
    },
    Kind {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short_names: &["pvc"],
        subresources: &[status("PersistentVolumeClaim", "core.v1.PersistentVolumeClaim")],
        type_name: "core.v1.PersistentVolumeClaim",
        store_prefix: "persistentvolumeclaims",
        columns: storage::CLAIM,
        row: storage::claim,
        validate: storage_rules::claim,
        validate_update: storage_rules::claim_update,
        validate_status: storage_rules::claim_status,
        prepare_create: volume_of::create_claim,
        ..STATUS
    },
    Kind {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short_names: &["pv"],
        subresources: &[status("PersistentVolume", "core.v1.PersistentVolume")],
        type_name: "core.v1.PersistentVolume",
        store_prefix: "persistentvolumes",
        columns: storage::VOLUME,
        row: storage::volume,
        validate: storage_rules::volume,
        validate_update: storage_rules::volume_update,
        prepare_create: volume_of::create_volume,
        ..CLUSTER_STATUS
    },
    Kind {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        subresources: POD_SUBRESOURCES,
        type_name: "core.v1.Pod",
        has_status: true,
        store_prefix: "pods",
        columns: table::pod::COLUMNS,
        row: table::pod::row,
        validate: rules::pod::pod,
        validate_update: rules::pod_update::pod_update,
        validate_status: rules::pod_update::pod_status_update,
        row_conditions: table::pod::row_conditions,
        default: pod::default,
        dropped: |pod, ctx| admission::dropped_field_warnings(pod, ctx.gates),
        prepare_create: pod::prepare_create,
        prepare_update: pod::prepare_update,
        prepare_status: pod::prepare_status,
        warnings: warning::pod,
        grace: pod::grace,
        selectable_fields: pod::SELECTABLE,
        ..PLAIN
    },
    Kind {
        kind: "PodTemplate",
        plural: "podtemplates",
        singular: "podtemplate",
        type_name: "core.v1.PodTemplate",
        store_prefix: "podtemplates",
        columns: workload::POD_TEMPLATE,
        row: workload::pod_template,
        validate: workload_rules::pod_template,
        validate_update: workload_rules::pod_template_update,
        ..COUNTED
    },
    Kind {
        kind: "ReplicationController",
        plural: "replicationcontrollers",
        singular: "replicationcontroller",
        short_names: &["rc"],
        categories: &["all"],
        subresources: &[SCALE, status("ReplicationController", "core.v1.ReplicationController")],
        scale: SCALED,
        type_name: "core.v1.ReplicationController",
        store_prefix: "replicationcontrollers",
        columns: workload::REPLICAS,
        row: workload::replication_controller,
        selectable_fields: REPLICAS_SELECTABLE,
        default: workload_of::default_replication_controller,
        validate: workload_rules::replication_controller,
        validate_update: workload_rules::replication_controller_update,
        warnings: |_, old| without_controller(old, "ReplicationControllers"),
        validate_status: workload_rules::replicas_status,
        ..CONTROLLED
    },
    Kind {
        kind: "ResourceQuota",
        plural: "resourcequotas",
        singular: "resourcequota",
        short_names: &["quota"],
        subresources: &[status("ResourceQuota", "core.v1.ResourceQuota")],
        type_name: "core.v1.ResourceQuota",
        store_prefix: "resourcequotas",
        columns: small::RESOURCE_QUOTA,
        row: small::resource_quota,
        validate: policy_rules::quota,
        validate_update: policy_rules::quota_update,
        validate_status: policy_rules::quota_status,
        ..STATUS
    },
    Kind {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        type_name: "core.v1.Secret",
        store_prefix: "secrets",
        columns: small::SECRET,
        row: small::secret,
        validate: object::secret,
        validate_update: object::secret_update,
        default: config::default_secret,
        selectable_fields: config::SECRET_SELECTABLE,
        ..PLAIN
    },
    Kind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        subresources: &[Subresource {
            name: "token",
            kind: "TokenRequest",
            group_version: Some(("authentication.k8s.io", "v1")),
            also: &[],
            verbs: CREATE,
            type_name: "authentication.v1.TokenRequest",
            part: None,
        }],
        type_name: "core.v1.ServiceAccount",
        store_prefix: "serviceaccounts",
        columns: small::NAME_AGE,
        row: small::name_age,
        ..PLAIN
    },
    Kind {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[sub("proxy", "ServiceProxyOptions", PROXY, ""), status("Service", "core.v1.Service")],
        type_name: "core.v1.Service",
        store_prefix: "services",
        creates_on_update: true,
        columns: network::SERVICE,
        row: network::service,
        selectable_fields: SERVICE_SELECTABLE,
        default: service_of::default,
        prepare_create: service_of::prepare_create,
        prepare_update: service_of::prepare_update,
        allocates: true,
        validate: service::service,
        validate_update: service::service_update,
        validate_status: service::service_status,
        ..STATUS
    },
];

pub(super) const EVENTS: &[Kind] = &[Kind {
    group: "events.k8s.io",
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    type_name: "events.v1.Event",
    store_prefix: "events",
    creates_on_update: true,
    columns: small::EVENT,
    row: event::view_row,
    validate: rules::event::event_view,
    validate_update: rules::event::event_view_update,
    selectable_fields: event::VIEW_SELECTABLE,
    to_stored: event::to_stored,
    from_stored: event::from_stored,
    ..PLAIN
}];

const POD_SUBRESOURCES: &[Subresource] = &[
    sub("attach", "PodAttachOptions", STREAM, ""),
    sub("binding", "Binding", CREATE, "core.v1.Binding"),
    part("ephemeralcontainers", "Pod", "core.v1.Pod", part_of::EPHEMERAL_CONTAINERS),
    Subresource {
        name: "eviction",
        kind: "Eviction",
        group_version: Some(("policy", "v1")),
        also: &["policy/v1beta1"],
        verbs: CREATE,
        type_name: "policy.v1.Eviction",
        part: None,
    },
    sub("exec", "PodExecOptions", STREAM, ""),
    sub("log", "Pod", &["get"], ""),
    sub("portforward", "PodPortForwardOptions", STREAM, ""),
    sub("proxy", "PodProxyOptions", PROXY, ""),
    part("resize", "Pod", "core.v1.Pod", part_of::RESIZE),
    status("Pod", "core.v1.Pod"),
];

/// The fields of `ReplicationController` and `ReplicaSet` that field selectors may name.
pub(super) const REPLICAS_SELECTABLE: &[(&str, FieldReader)] =
    &[("status.replicas", |o| status_of(o).int("replicas").unwrap_or_default().to_string())];

const SERVICE_SELECTABLE: &[(&str, FieldReader)] = &[
    ("spec.clusterIP", |o| spec(o).text("clusterIP").to_owned()),
    ("spec.type", |o| spec(o).text("type").to_owned()),
];
