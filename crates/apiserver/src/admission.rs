//! What the server itself adds to or forbids in a write, beside the kind's own rules: one ordered list of steps, as
//! upstream's admission plugins are. Webhooks and CEL policies will be further steps of the same list. The quota comes
//! after all of them, as upstream's does: [`quota::take`] holds what it granted until the object is stored.

pub(crate) mod certificate;
mod limit;
mod namespace;
mod node;
mod pod;
pub(crate) mod quota;
mod role;
mod security;
mod storage;

use api::status::Status;
use futures::future::BoxFuture;
use serde_json::Value;

use crate::write::{Part, Write};

/// What a write does to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Create,
    Update,
    Delete,
}

/// A write that is otherwise good.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) write: &'a Write<'a>,
    pub(crate) act: Act,
    pub(crate) part: Part,
    /// The object after the write; of a deletion, as it is.
    pub(crate) object: &'a Value,
    /// The object before a change.
    pub(crate) old: Option<&'a Value>,
}

impl Ask<'_> {
    /// No, with a reason.
    fn forbidden(&self, why: &str) -> Status {
        Status::forbidden(self.write.kind, crate::meta::text(self.object, "name"), why)
    }
}

type Complete = fn(&Write<'_>, &mut Value);
type Change = fn(&Write<'_>, &mut Value) -> Result<(), Status>;
type Wait = for<'a> fn(&'a Write<'a>, &'a mut Value) -> BoxFuture<'a, Result<(), Status>>;
type Check = fn(Ask<'_>) -> Result<Vec<String>, Status>;

/// How a step works. Changes come before the kind's own rules are asked, checks after them.
enum Run {
    /// Completes a new object.
    Complete(Complete),
    /// Completes a new object, or forbids it.
    Change(Change),
    /// The same, where something must be waited for.
    Wait(Wait),
    /// Forbids a write, or warns.
    Check(Check),
}

/// Which writes a step is for.
enum For {
    /// All kinds.
    All,
    /// Kinds by group and name.
    Kinds(&'static [(&'static str, &'static str)]),
}

struct Step {
    /// Upstream's name of the plugin.
    name: &'static str,
    of: For,
    acts: &'static [Act],
    run: Run,
}

const PODS: For = For::Kinds(&[("", "Pod")]);
const CLAIMS: For = For::Kinds(&[("", "PersistentVolumeClaim")]);
const STORAGE: For = For::Kinds(&[("", "PersistentVolumeClaim"), ("", "PersistentVolume")]);
const INGRESSES: For = For::Kinds(&[("networking.k8s.io", "Ingress")]);
const NODE_OBJECTS: For = For::Kinds(&[
    ("", "Pod"),
    ("", "Node"),
    ("coordination.k8s.io", "Lease"),
    ("storage.k8s.io", "CSINode"),
    ("resource.k8s.io", "ResourceSlice"),
]);
const ROLES: For = For::Kinds(&[
    (api::rbac::GROUP, "Role"),
    (api::rbac::GROUP, "ClusterRole"),
    (api::rbac::GROUP, "RoleBinding"),
    (api::rbac::GROUP, "ClusterRoleBinding"),
]);
const CERTIFICATES: For = For::Kinds(&[("certificates.k8s.io", "CertificateSigningRequest")]);

const CREATE: &[Act] = &[Act::Create];
const WRITE: &[Act] = &[Act::Create, Act::Update];
const ANY: &[Act] = &[Act::Create, Act::Update, Act::Delete];

const fn step(name: &'static str, of: For, acts: &'static [Act], run: Run) -> Step {
    Step { name, of, acts, run }
}

/// The list, in upstream's order.
static STEPS: &[Step] = &[
    step("NamespaceLifecycle", For::All, CREATE, Run::Change(namespace::must_live)),
    step(
        "NamespaceLifecycle",
        For::Kinds(&[("", "Namespace")]),
        &[Act::Delete],
        Run::Check(namespace::may_go),
    ),
    step("NodeRestriction", NODE_OBJECTS, ANY, Run::Check(node::check)),
    step("ServiceAccount", PODS, CREATE, Run::Wait(pod::service_account)),
    step("LimitRanger", PODS, CREATE, Run::Complete(limit::default_pod)),
    step("DefaultTolerationSeconds", PODS, CREATE, Run::Complete(pod::tolerations)),
    step("Priority", PODS, CREATE, Run::Change(pod::priority)),
    step("RuntimeClass", PODS, CREATE, Run::Change(pod::runtime_class)),
    step("DefaultStorageClass", CLAIMS, CREATE, Run::Complete(storage::default_storage_class)),
    step("StorageObjectInUseProtection", STORAGE, CREATE, Run::Complete(storage::protect)),
    step("DefaultIngressClass", INGRESSES, CREATE, Run::Complete(storage::default_ingress_class)),
    step("CertificateRequester", CERTIFICATES, CREATE, Run::Complete(certificate::name_requester)),
    step("PodSecurity", For::All, WRITE, Run::Check(security::pod_security)),
    step("UserNamespaces", For::All, WRITE, Run::Check(security::user_namespaces)),
    step("RBAC", ROLES, WRITE, Run::Check(role::check)),
    step("LimitRanger", PODS, WRITE, Run::Check(limit::check_pod)),
    step("LimitRanger", CLAIMS, WRITE, Run::Check(limit::check_claim)),
    step("CertificateSubjectRestriction", CERTIFICATES, CREATE, Run::Check(certificate::check_subject)),
    step("CertificateApproval", CERTIFICATES, &[Act::Update], Run::Check(certificate::check_approval)),
    step("CertificateSigning", CERTIFICATES, &[Act::Update], Run::Check(certificate::check_signing)),
];

impl Step {
    fn is_for(&self, write: &Write<'_>, act: Act) -> bool {
        let is_kind = match self.of {
            For::All => true,
            For::Kinds(kinds) => kinds.contains(&(write.kind.group, write.kind.kind)),
        };
        is_kind && self.acts.contains(&act)
    }
}

/// Completes a new object, or forbids it.
pub(crate) async fn change(write: &Write<'_>, object: &mut Value) -> Result<(), Status> {
    for step in STEPS.iter().filter(|step| step.is_for(write, Act::Create)) {
        match step.run {
            Run::Complete(complete) => {
                complete(write, object);
                Ok(())
            }
            Run::Change(change) => change(write, object),
            Run::Wait(change) => change(write, object).await,
            Run::Check(_) => Ok(()),
        }
        .inspect_err(|status| told(step, status))?;
    }
    Ok(())
}

/// Forbids a write that is otherwise good, or warns of it.
pub(crate) fn check(ask: Ask<'_>) -> Result<Vec<String>, Status> {
    let mut warnings = Vec::new();
    for step in STEPS.iter().filter(|step| step.is_for(ask.write, ask.act)) {
        if let Run::Check(check) = step.run {
            warnings.extend(check(ask).inspect_err(|status| told(step, status))?);
        }
    }
    Ok(warnings)
}

fn told(step: &Step, status: &Status) {
    tracing::debug!(step = step.name, %status, "admission refused a write");
}
