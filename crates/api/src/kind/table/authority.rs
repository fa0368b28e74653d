//! Who somebody is and what they may do: reviews, certificates and roles.

use super::{CLUSTER, CLUSTER_STATUS, PLAIN, REVIEW, part, status};
use crate::access::{Access, spec};
use crate::kind::{FieldReader, Kind, part as part_of};
use crate::table::authority;
use crate::validation::{certificate, rbac};

pub(super) const REVIEWS: &[Kind] = &[
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
        type_name: "authorization.v1.LocalSubjectAccessReview",
        namespaced: true,
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
];

pub(super) const CERTIFICATES: &[Kind] = &[Kind {
    group: "certificates.k8s.io",
    kind: "CertificateSigningRequest",
    plural: "certificatesigningrequests",
    singular: "certificatesigningrequest",
    short_names: &["csr"],
    subresources: &[
        part(
            "approval",
            "CertificateSigningRequest",
            "certificates.v1.CertificateSigningRequest",
            part_of::APPROVAL,
        ),
        status("CertificateSigningRequest", "certificates.v1.CertificateSigningRequest"),
    ],
    type_name: "certificates.v1.CertificateSigningRequest",
    store_prefix: "certificatesigningrequests",
    columns: authority::SIGNING_REQUEST,
    row: authority::signing_request,
    selectable_fields: SIGNING_REQUEST_SELECTABLE,
    prepare_status: part_of::certify,
    validate: certificate::request,
    validate_update: certificate::request_update,
    validate_status: certificate::request_status,
    ..CLUSTER_STATUS
}];

pub(super) const RBAC: &[Kind] = &[
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        type_name: "rbac.v1.ClusterRoleBinding",
        store_prefix: "clusterrolebindings",
        columns: authority::BINDING,
        row: authority::binding,
        creates_on_update: true,
        validate: rbac::cluster_role_binding,
        validate_update: rbac::cluster_role_binding_update,
        ..CLUSTER
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRole",
        plural: "clusterroles",
        singular: "clusterrole",
        type_name: "rbac.v1.ClusterRole",
        store_prefix: "clusterroles",
        creates_on_update: true,
        validate: rbac::cluster_role,
        validate_update: rbac::cluster_role_update,
        ..CLUSTER
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "RoleBinding",
        plural: "rolebindings",
        singular: "rolebinding",
        type_name: "rbac.v1.RoleBinding",
        store_prefix: "rolebindings",
        columns: authority::BINDING,
        row: authority::binding,
        creates_on_update: true,
        validate: rbac::role_binding,
        validate_update: rbac::role_binding_update,
        ..PLAIN
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "Role",
        plural: "roles",
        singular: "role",
        type_name: "rbac.v1.Role",
        store_prefix: "roles",
        creates_on_update: true,
        validate: rbac::role,
        validate_update: rbac::role_update,
        ..PLAIN
    },
];

const SIGNING_REQUEST_SELECTABLE: &[(&str, FieldReader)] =
    &[("spec.signerName", |o| spec(o).text("signerName").to_owned())];
