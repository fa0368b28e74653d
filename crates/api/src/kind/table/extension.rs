//! What extends or tunes the API server itself: `admissionregistration.k8s.io`, `apiextensions.k8s.io`,
//! `apiregistration.k8s.io` and `flowcontrol.apiserver.k8s.io`.

use serde_json::Value;

use super::{CLUSTER_CONTROLLED, CLUSTER_COUNTED, CLUSTER_STATUS, status, without_effect};
use crate::kind::Kind;
use crate::table::extension;

fn policies_are_not_asked(_: &Value, _: Option<&Value>) -> Vec<String> {
    without_effect("this server does not evaluate admission policies yet")
}

fn webhooks_are_not_called(_: &Value, _: Option<&Value>) -> Vec<String> {
    without_effect("this server does not call admission webhooks yet")
}

fn definitions_are_not_served(_: &Value, _: Option<&Value>) -> Vec<String> {
    without_effect("this server does not serve custom resources yet")
}

fn flows_are_one(_: &Value, _: Option<&Value>) -> Vec<String> {
    without_effect("this server has one flow and one priority level")
}

pub(super) const ADMISSION: &[Kind] = &[
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "MutatingAdmissionPolicy",
        plural: "mutatingadmissionpolicies",
        singular: "mutatingadmissionpolicy",
        categories: &["api-extensions"],
        type_name: "admissionregistration.v1.MutatingAdmissionPolicy",
        store_prefix: "mutatingadmissionpolicies",
        columns: extension::MUTATING_POLICY,
        row: extension::mutating_policy,
        needs_version: true,
        warnings: policies_are_not_asked,
        ..CLUSTER_COUNTED
    },
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "MutatingAdmissionPolicyBinding",
        plural: "mutatingadmissionpolicybindings",
        singular: "mutatingadmissionpolicybinding",
        categories: &["api-extensions"],
        type_name: "admissionregistration.v1.MutatingAdmissionPolicyBinding",
        store_prefix: "mutatingadmissionpolicybindings",
        columns: extension::POLICY_BINDING,
        row: extension::policy_binding,
        needs_version: true,
        warnings: policies_are_not_asked,
        ..CLUSTER_COUNTED
    },
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "MutatingWebhookConfiguration",
        plural: "mutatingwebhookconfigurations",
        singular: "mutatingwebhookconfiguration",
        categories: &["api-extensions"],
        type_name: "admissionregistration.v1.MutatingWebhookConfiguration",
        store_prefix: "mutatingwebhookconfigurations",
        columns: extension::WEBHOOKS,
        row: extension::webhooks,
        needs_version: true,
        warnings: webhooks_are_not_called,
        ..CLUSTER_COUNTED
    },
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "ValidatingAdmissionPolicy",
        plural: "validatingadmissionpolicies",
        singular: "validatingadmissionpolicy",
        categories: &["api-extensions"],
        subresources: &[status(
            "ValidatingAdmissionPolicy",
            "admissionregistration.v1.ValidatingAdmissionPolicy",
        )],
        type_name: "admissionregistration.v1.ValidatingAdmissionPolicy",
        store_prefix: "validatingadmissionpolicies",
        columns: extension::VALIDATING_POLICY,
        row: extension::validating_policy,
        needs_version: true,
        warnings: policies_are_not_asked,
        ..CLUSTER_CONTROLLED
    },
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "ValidatingAdmissionPolicyBinding",
        plural: "validatingadmissionpolicybindings",
        singular: "validatingadmissionpolicybinding",
        categories: &["api-extensions"],
        type_name: "admissionregistration.v1.ValidatingAdmissionPolicyBinding",
        store_prefix: "validatingadmissionpolicybindings",
        columns: extension::POLICY_BINDING,
        row: extension::policy_binding,
        needs_version: true,
        warnings: policies_are_not_asked,
        ..CLUSTER_COUNTED
    },
    Kind {
        group: "admissionregistration.k8s.io",
        kind: "ValidatingWebhookConfiguration",
        plural: "validatingwebhookconfigurations",
        singular: "validatingwebhookconfiguration",
        categories: &["api-extensions"],
        type_name: "admissionregistration.v1.ValidatingWebhookConfiguration",
        store_prefix: "validatingwebhookconfigurations",
        columns: extension::WEBHOOKS,
        row: extension::webhooks,
        needs_version: true,
        warnings: webhooks_are_not_called,
        ..CLUSTER_COUNTED
    },
];

pub(super) const DEFINITIONS: &[Kind] = &[Kind {
    group: "apiextensions.k8s.io",
    kind: "CustomResourceDefinition",
    plural: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    subresources: &[status("CustomResourceDefinition", "apiextensions.v1.CustomResourceDefinition")],
    type_name: "apiextensions.v1.CustomResourceDefinition",
    store_prefix: "customresourcedefinitions",
    needs_version: true,
    warnings: definitions_are_not_served,
    ..CLUSTER_CONTROLLED
}];

pub(super) const REGISTRATION: &[Kind] = &[Kind {
    group: "apiregistration.k8s.io",
    kind: "APIService",
    plural: "apiservices",
    singular: "apiservice",
    categories: &["api-extensions"],
    subresources: &[status("APIService", "apiregistration.v1.APIService")],
    type_name: "apiregistration.v1.APIService",
    store_prefix: "apiservices",
    columns: extension::API_SERVICE,
    row: extension::api_service,
    ..CLUSTER_STATUS
}];

pub(super) const FLOW_CONTROL: &[Kind] = &[
    Kind {
        group: "flowcontrol.apiserver.k8s.io",
        kind: "FlowSchema",
        plural: "flowschemas",
        singular: "flowschema",
        subresources: &[status("FlowSchema", "flowcontrol.v1.FlowSchema")],
        type_name: "flowcontrol.v1.FlowSchema",
        store_prefix: "flowschemas",
        columns: extension::FLOW_SCHEMA,
        row: extension::flow_schema,
        warnings: flows_are_one,
        ..CLUSTER_CONTROLLED
    },
    Kind {
        group: "flowcontrol.apiserver.k8s.io",
        kind: "PriorityLevelConfiguration",
        plural: "prioritylevelconfigurations",
        singular: "prioritylevelconfiguration",
        subresources: &[status("PriorityLevelConfiguration", "flowcontrol.v1.PriorityLevelConfiguration")],
        type_name: "flowcontrol.v1.PriorityLevelConfiguration",
        store_prefix: "prioritylevelconfigurations",
        columns: extension::PRIORITY_LEVEL,
        row: extension::priority_level,
        warnings: flows_are_one,
        ..CLUSTER_CONTROLLED
    },
];
