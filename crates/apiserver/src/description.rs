//! What types and fields are for, as `kubectl explain` shows it. The texts come from the schemas of the `k8s-openapi`
//! crate, when a document is asked for; nothing of them is kept beside the document.

use api::openapi::Descriptions;
use k8s_openapi::schemars::SchemaGenerator;
use serde_json::Value;

/// Reads the types of one group and version.
type Read = fn(&mut SchemaGenerator);

macro_rules! types {
    ($($ty:ty),* $(,)?) => {
        |generator: &mut SchemaGenerator| {
            $( generator.subschema_for::<$ty>(); )*
        }
    };
}

/// The types that stand alone in each group; what they reach comes with them.
const GROUPS: &[(&str, &str, Read)] = &[
    (
        "",
        "v1",
        types![
            k8s_openapi::api::core::v1::Binding,
            k8s_openapi::api::core::v1::ComponentStatus,
            k8s_openapi::api::core::v1::ConfigMap,
            k8s_openapi::api::core::v1::Endpoints,
            k8s_openapi::api::core::v1::Event,
            k8s_openapi::api::core::v1::LimitRange,
            k8s_openapi::api::core::v1::Namespace,
            k8s_openapi::api::core::v1::Node,
            k8s_openapi::api::core::v1::PersistentVolume,
            k8s_openapi::api::core::v1::PersistentVolumeClaim,
            k8s_openapi::api::core::v1::Pod,
            k8s_openapi::api::core::v1::PodTemplate,
            k8s_openapi::api::core::v1::ReplicationController,
            k8s_openapi::api::core::v1::ResourceQuota,
            k8s_openapi::api::core::v1::Secret,
            k8s_openapi::api::core::v1::Service,
            k8s_openapi::api::core::v1::ServiceAccount,
            k8s_openapi::api::authentication::v1::TokenRequest,
            k8s_openapi::api::policy::v1::Eviction,
            k8s_openapi::api::autoscaling::v1::Scale
        ],
    ),
    (
        "authentication.k8s.io",
        "v1",
        types![
            k8s_openapi::api::authentication::v1::SelfSubjectReview,
            k8s_openapi::api::authentication::v1::TokenReview
        ],
    ),
    ("events.k8s.io", "v1", types![k8s_openapi::api::events::v1::Event]),
    ("policy", "v1", types![k8s_openapi::api::policy::v1::PodDisruptionBudget]),
    (
        "apps",
        "v1",
        types![
            k8s_openapi::api::apps::v1::ControllerRevision,
            k8s_openapi::api::apps::v1::DaemonSet,
            k8s_openapi::api::apps::v1::Deployment,
            k8s_openapi::api::apps::v1::ReplicaSet,
            k8s_openapi::api::apps::v1::StatefulSet,
            k8s_openapi::api::autoscaling::v1::Scale
        ],
    ),
    ("batch", "v1", types![k8s_openapi::api::batch::v1::CronJob, k8s_openapi::api::batch::v1::Job]),
    ("autoscaling", "v2", types![k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler]),
    ("autoscaling", "v1", types![k8s_openapi::api::autoscaling::v1::HorizontalPodAutoscaler]),
    (
        "authorization.k8s.io",
        "v1",
        types![
            k8s_openapi::api::authorization::v1::LocalSubjectAccessReview,
            k8s_openapi::api::authorization::v1::SelfSubjectAccessReview,
            k8s_openapi::api::authorization::v1::SelfSubjectRulesReview,
            k8s_openapi::api::authorization::v1::SubjectAccessReview
        ],
    ),
    ("certificates.k8s.io", "v1", types![k8s_openapi::api::certificates::v1::CertificateSigningRequest]),
    (
        "rbac.authorization.k8s.io",
        "v1",
        types![
            k8s_openapi::api::rbac::v1::ClusterRole,
            k8s_openapi::api::rbac::v1::ClusterRoleBinding,
            k8s_openapi::api::rbac::v1::Role,
            k8s_openapi::api::rbac::v1::RoleBinding
        ],
    ),
    (
        "networking.k8s.io",
        "v1",
        types![
            k8s_openapi::api::networking::v1::IPAddress,
            k8s_openapi::api::networking::v1::Ingress,
            k8s_openapi::api::networking::v1::IngressClass,
            k8s_openapi::api::networking::v1::NetworkPolicy,
            k8s_openapi::api::networking::v1::ServiceCIDR
        ],
    ),
    ("discovery.k8s.io", "v1", types![k8s_openapi::api::discovery::v1::EndpointSlice]),
    (
        "storage.k8s.io",
        "v1",
        types![
            k8s_openapi::api::storage::v1::CSIDriver,
            k8s_openapi::api::storage::v1::CSINode,
            k8s_openapi::api::storage::v1::CSIStorageCapacity,
            k8s_openapi::api::storage::v1::StorageClass,
            k8s_openapi::api::storage::v1::VolumeAttachment,
            k8s_openapi::api::storage::v1::VolumeAttributesClass
        ],
    ),
    (
        "admissionregistration.k8s.io",
        "v1",
        types![
            k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicy,
            k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicyBinding,
            k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration,
            k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy,
            k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicyBinding,
            k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration
        ],
    ),
    (
        "apiextensions.k8s.io",
        "v1",
        types![k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition],
    ),
    (
        "apiregistration.k8s.io",
        "v1",
        types![k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService],
    ),
    (
        "flowcontrol.apiserver.k8s.io",
        "v1",
        types![
            k8s_openapi::api::flowcontrol::v1::FlowSchema,
            k8s_openapi::api::flowcontrol::v1::PriorityLevelConfiguration
        ],
    ),
    ("scheduling.k8s.io", "v1", types![k8s_openapi::api::scheduling::v1::PriorityClass]),
    ("coordination.k8s.io", "v1", types![k8s_openapi::api::coordination::v1::Lease]),
    ("node.k8s.io", "v1", types![k8s_openapi::api::node::v1::RuntimeClass]),
    (
        "resource.k8s.io",
        "v1",
        types![
            k8s_openapi::api::resource::v1::DeviceClass,
            k8s_openapi::api::resource::v1::ResourceClaim,
            k8s_openapi::api::resource::v1::ResourceClaimTemplate,
            k8s_openapi::api::resource::v1::ResourceSlice
        ],
    ),
];

/// The version of the crate that the texts come from: a part of what makes a document another one.
pub(crate) const SOURCE: &str = "k8s-openapi 0.29";

/// The descriptions of the types of a group and version, and of all that they reach.
pub(crate) fn of(group: &str, version: &str) -> Descriptions {
    read(GROUPS.iter().filter(|(own, of, _)| *own == group && *of == version).map(|(_, _, read)| *read))
}

/// The descriptions of all types.
pub(crate) fn all() -> Descriptions {
    read(GROUPS.iter().map(|(_, _, read)| *read))
}

fn read(readers: impl Iterator<Item = Read>) -> Descriptions {
    let mut generator = SchemaGenerator::default();
    for one in readers {
        one(&mut generator);
    }
    let definitions = generator.take_definitions(false);
    definitions.into_iter().map(|(name, schema)| (name, description_of(&schema))).collect()
}

fn description_of(schema: &Value) -> api::openapi::Description {
    let text =
        |value: &Value| value.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    let fields = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    api::openapi::Description {
        text: text(schema),
        fields: fields.map(|(name, field)| (name.clone(), text(field))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_descriptions() {
        let all = all();
        for kind in api::kind::kinds() {
            let ty = api::schema::type_named(kind.type_name).unwrap();
            assert!(all.of(&ty.definition()).is_some_and(|d| !d.text.is_empty()), "{}", kind.type_name);
            let is_known =
                GROUPS.iter().any(|(group, version, _)| (*group, *version) == (kind.group, kind.version));
            assert!(is_known, "{}", kind.group);
        }
    }

    #[test]
    fn fields_below_are_described() {
        let found = of("", "v1");
        let pod = found.of("io.k8s.api.core.v1.PodSpec").unwrap();
        assert!(pod.fields["hostUsers"].starts_with("Use the host's user namespace."));
    }
}
