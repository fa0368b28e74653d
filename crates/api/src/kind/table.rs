//! The table of kinds. A kind adds a row here, and a module only where it has rules of its own.

use serde_json::Value;

use super::{Ctx, Grace, Kind, Subresource, config, event, namespace, node, pod};
use crate::admission;
use crate::table::{self, small};
use crate::validation::{self as rules, FieldErrors, object};
use crate::warning;

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const STATUS: &[&str] = &["get", "patch", "update"];
const STREAM: &[&str] = &["create", "get"];

const V1: (&str, &str) = ("", "v1");

fn same(_: &mut Value) {}

/// What a kind is that says nothing of itself.
const PLAIN: Kind = Kind {
    group: V1.0,
    version: V1.1,
    kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    verbs: ALL,
    subresources: &[],
    type_name: "",
    has_status: false,
    store_prefix: "",
    default: same,
    dropped: |_, _| Vec::new(),
    prepare_create: |_, _| {},
    prepare_update: |_, _, _| {},
    prepare_status: |_, _, _| {},
    validate: |_: &Value, _: &Ctx| FieldErrors::new(),
    validate_update: |_, _, _| FieldErrors::new(),
    validate_status: |_, _, _| FieldErrors::new(),
    warnings: |_, _| Vec::new(),
    grace: |_, _| Grace::None,
    columns: table::PLAIN_COLUMNS,
    row: table::plain_row,
    row_conditions: |_| Vec::new(),
    selectable_fields: &[],
    to_stored: same,
    from_stored: same,
};

/// A kind that is asked and answered, never stored.
const REVIEW: Kind = Kind { verbs: CREATE, namespaced: false, ..PLAIN };

const fn sub(
    name: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
    type_name: &'static str,
) -> Subresource {
    Subresource { name, kind, group_version: None, verbs, type_name }
}

static KINDS: &[Kind] = &[
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
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        type_name: "core.v1.Event",
        store_prefix: "events",
        columns: small::EVENT,
        row: small::event,
        validate: rules::event::event,
        validate_update: rules::event::event_update,
        selectable_fields: event::SELECTABLE,
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
            sub("finalize", "Namespace", &["update"], "core.v1.Namespace"),
            sub("status", "Namespace", STATUS, "core.v1.Namespace"),
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
        subresources: &[sub("status", "Node", STATUS, "core.v1.Node")],
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
            verbs: CREATE,
            type_name: "authentication.v1.TokenRequest",
        }],
        type_name: "core.v1.ServiceAccount",
        store_prefix: "serviceaccounts",
        columns: small::NAME_AGE,
        row: small::name_age,
        validate: object::metadata_only,
        validate_update: object::metadata_only_update,
        ..PLAIN
    },
    Kind {
        group: "events.k8s.io",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        type_name: "events.v1.Event",
        store_prefix: "events",
        columns: small::EVENT,
        row: event::view_row,
        validate: rules::event::event_view,
        validate_update: rules::event::event_view_update,
        selectable_fields: event::VIEW_SELECTABLE,
        to_stored: event::to_stored,
        from_stored: event::from_stored,
        ..PLAIN
    },
    Kind {
        group: "authentication.k8s.io",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        type_name: "authentication.v1.SelfSubjectReview",
        ..REVIEW
    },
    Kind {
        group: "authentication.k8s.io",
        kind: "TokenReview",
        plural: "tokenreviews",
        singular: "tokenreview",
        type_name: "authentication.v1.TokenReview",
        ..REVIEW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        namespaced: true,
        type_name: "authorization.v1.LocalSubjectAccessReview",
        ..REVIEW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        type_name: "authorization.v1.SelfSubjectAccessReview",
        ..REVIEW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        type_name: "authorization.v1.SelfSubjectRulesReview",
        ..REVIEW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        type_name: "authorization.v1.SubjectAccessReview",
        ..REVIEW
    },
    Kind {
        group: "coordination.k8s.io",
        kind: "Lease",
        plural: "leases",
        singular: "lease",
        type_name: "coordination.v1.Lease",
        store_prefix: "leases",
        columns: small::LEASE,
        row: small::lease,
        validate: object::lease,
        validate_update: object::lease_update,
        ..PLAIN
    },
];

const POD_SUBRESOURCES: &[Subresource] = &[
    sub("attach", "PodAttachOptions", STREAM, ""),
    sub("binding", "Binding", CREATE, "core.v1.Binding"),
    Subresource {
        name: "eviction",
        kind: "Eviction",
        group_version: Some(("policy", "v1")),
        verbs: CREATE,
        type_name: "policy.v1.Eviction",
    },
    sub("exec", "PodExecOptions", STREAM, ""),
    sub("log", "Pod", &["get"], ""),
    sub("portforward", "PodPortForwardOptions", STREAM, ""),
    sub("status", "Pod", STATUS, "core.v1.Pod"),
];

/// All kinds: the core group first, then the groups in the order of upstream's priorities, each sorted by plural name.
pub fn kinds() -> &'static [Kind] {
    KINDS
}
