//! What nodes, schedulers and drivers agree on: `scheduling.k8s.io`, `coordination.k8s.io`, `node.k8s.io` and
//! `resource.k8s.io`.

use super::{CLUSTER, CLUSTER_COUNTED, PLAIN, STATUS, status};
use crate::access::{Access, spec};
use crate::kind::{FieldReader, Kind};
use crate::table::{device, small};
use crate::validation::{object, policy};

pub(super) const SCHEDULING: &[Kind] = &[Kind {
    group: "scheduling.k8s.io",
    kind: "PriorityClass",
    plural: "priorityclasses",
    singular: "priorityclass",
    short_names: &["pc"],
    type_name: "scheduling.v1.PriorityClass",
    store_prefix: "priorityclasses",
    columns: small::PRIORITY_CLASS,
    row: small::priority_class,
    validate: policy::priority_class,
    validate_update: policy::priority_class_update,
    ..CLUSTER_COUNTED
}];

pub(super) const COORDINATION: &[Kind] = &[Kind {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    type_name: "coordination.v1.Lease",
    store_prefix: "leases",
    columns: small::LEASE,
    row: small::lease,
    creates_on_update: true,
    needs_version: true,
    validate: object::lease,
    validate_update: object::lease_update,
    ..PLAIN
}];

pub(super) const RUNTIME: &[Kind] = &[Kind {
    group: "node.k8s.io",
    kind: "RuntimeClass",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    type_name: "node.v1.RuntimeClass",
    store_prefix: "runtimeclasses",
    columns: small::RUNTIME_CLASS,
    row: small::runtime_class,
    validate: policy::runtime_class,
    validate_update: policy::runtime_class_update,
    creates_on_update: true,
    needs_version: true,
    ..CLUSTER
}];

pub(super) const DEVICES: &[Kind] = &[
    Kind {
        group: "resource.k8s.io",
        kind: "DeviceClass",
        plural: "deviceclasses",
        singular: "deviceclass",
        type_name: "resource.v1.DeviceClass",
        store_prefix: "deviceclasses",
        columns: small::NAME_AGE,
        row: small::name_age,
        ..CLUSTER_COUNTED
    },
    Kind {
        group: "resource.k8s.io",
        kind: "ResourceClaim",
        plural: "resourceclaims",
        singular: "resourceclaim",
        subresources: &[status("ResourceClaim", "resource.v1.ResourceClaim")],
        type_name: "resource.v1.ResourceClaim",
        store_prefix: "resourceclaims",
        columns: device::CLAIM,
        row: device::claim,
        ..STATUS
    },
    Kind {
        group: "resource.k8s.io",
        kind: "ResourceClaimTemplate",
        plural: "resourceclaimtemplates",
        singular: "resourceclaimtemplate",
        type_name: "resource.v1.ResourceClaimTemplate",
        store_prefix: "resourceclaimtemplates",
        columns: small::NAME_AGE,
        row: small::name_age,
        ..PLAIN
    },
    Kind {
        group: "resource.k8s.io",
        kind: "ResourceSlice",
        plural: "resourceslices",
        singular: "resourceslice",
        type_name: "resource.v1.ResourceSlice",
        store_prefix: "resourceslices",
        columns: device::SLICE,
        row: device::slice,
        selectable_fields: SLICE_SELECTABLE,
        ..CLUSTER_COUNTED
    },
];

const SLICE_SELECTABLE: &[(&str, FieldReader)] = &[
    ("spec.nodeName", |o| spec(o).text("nodeName").to_owned()),
    ("spec.driver", |o| spec(o).text("driver").to_owned()),
];
