//! `storage.k8s.io`.

use super::{CLUSTER, CLUSTER_STATUS, PLAIN, status};
use crate::kind::Kind;
use crate::table::storage;

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
        ..CLUSTER
    },
];
