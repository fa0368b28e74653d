//! `storage.k8s.io`.

use super::{CLUSTER, CLUSTER_STATUS, PLAIN, status};
use crate::kind::Kind;
use crate::table::storage;
use crate::validation::storage as storage_rules;

pub(super) const KINDS: &[Kind] = &[
    Kind {
        group: "storage.k8s.io",
        kind: "CSIDriver",
        plural: "csidrivers",
        singular: "csidriver",
        type_name: "storage.v1.CSIDriver",
        store_prefix: "csidrivers",
        columns: storage::DRIVER,
        row: storage::driver,
        needs_version: true,
        validate: storage_rules::driver,
        validate_update: storage_rules::driver_update,
        ..CLUSTER
    },
    Kind {
        group: "storage.k8s.io",
        kind: "CSINode",
        plural: "csinodes",
        singular: "csinode",
        type_name: "storage.v1.CSINode",
        store_prefix: "csinodes",
        columns: storage::NODE,
        row: storage::node,
        needs_version: true,
        validate: storage_rules::csi_node,
        validate_update: storage_rules::csi_node_update,
        ..CLUSTER
    },
    Kind {
        group: "storage.k8s.io",
        kind: "CSIStorageCapacity",
        plural: "csistoragecapacities",
        singular: "csistoragecapacity",
        type_name: "storage.v1.CSIStorageCapacity",
        store_prefix: "csistoragecapacities",
        columns: storage::CAPACITY,
        row: storage::capacity,
        needs_version: true,
        validate: storage_rules::capacity,
        validate_update: storage_rules::capacity_update,
        ..PLAIN
    },
    Kind {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short_names: &["sc"],
        type_name: "storage.v1.StorageClass",
        store_prefix: "storageclasses",
        columns: storage::CLASS,
        row: storage::class,
        validate: storage_rules::class,
        validate_update: storage_rules::class_update,
        ..CLUSTER
    },
    Kind {
        group: "storage.k8s.io",
        kind: "VolumeAttachment",
        plural: "volumeattachments",
        singular: "volumeattachment",
        subresources: &[status("VolumeAttachment", "storage.v1.VolumeAttachment")],
        type_name: "storage.v1.VolumeAttachment",
        store_prefix: "volumeattachments",
        columns: storage::ATTACHMENT,
        row: storage::attachment,
        needs_version: true,
        validate: storage_rules::attachment,
        validate_update: storage_rules::attachment_update,
        ..CLUSTER_STATUS
    },
    Kind {
        group: "storage.k8s.io",
        kind: "VolumeAttributesClass",
        plural: "volumeattributesclasses",
        singular: "volumeattributesclass",
        short_names: &["vac"],
        type_name: "storage.v1.VolumeAttributesClass",
        store_prefix: "volumeattributesclasses",
        columns: storage::ATTRIBUTES_CLASS,
        row: storage::attributes_class,
        validate: storage_rules::attributes_class,
        validate_update: storage_rules::attributes_class_update,
        ..CLUSTER
    },
];
