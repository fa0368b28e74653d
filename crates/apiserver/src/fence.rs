//! The fencing policy at admission: whoever makes a Pod that will not be fenced is told why, and where the policy is
//! `always` the Pod is refused. Nothing is written into the object: the node decides, when the Pod comes to it.

use api::access::{Access, metadata};
use api::feature::Feature;
use api::status::Status;
use api::template::{pod_of, spec_path};
use api::validation::{FieldErrors, Path};
use serde_json::Value;
use userns::policy::{
    Decision, Finding, NodeFacts, POLICY_LABEL, PodFacts, Policy, Question, Reason, decide,
};

use crate::meta;
use crate::write::Write;

/// What is said of a new Pod, or of an object that makes Pods.
pub(crate) fn check(write: &Write<'_>, namespace: &Value, object: &Value) -> Result<Vec<String>, Status> {
    let kind = write.kind.kind;
    let is_on = write.server.gates.is_enabled(Feature::UserNamespacesSupport);
    let pod = pod_of(kind, object).filter(|pod| is_on && !api::admission::is_mirror(pod));
    let Some(facts) = pod.and_then(|pod| PodFacts::read(pod).ok()) else { return Ok(Vec::new()) };
    let policy = policy_in(write, namespace);
    let ids_per_pod = write.server.ids_per_pod;
    let decision = decide(Question { pod: &facts, policy, ids_per_pod, node: &NodeFacts::default() });
    let path = spec_path(kind);
    match (&decision, facts.spec.host_users) {
        (Decision::Refused(found), Some(true) | None) if kind == "Pod" => {
            let why =
                format!("the policy `{policy}` lets no Pod run with the node's IDs: {}", explain(found));
            Err(Status::forbidden(write.kind, meta::text(object, "name"), &why))
        }
        (Decision::Refused(found), Some(true) | None) => {
            Ok(told(found, &path, "the policy `always` refuses its Pods"))
        }
        (Decision::Refused(found), Some(false)) => {
            // IDs have a warning of their own, and what is left the kind's rules refuse or a gate allows.
            let only_told_here = [Reason::Propagation, Reason::Filesystem];
            let found = found.iter().filter(|finding| only_told_here.contains(&finding.reason)).cloned();
            Ok(told(&found.collect::<Vec<_>>(), &path, "does not run in a user namespace"))
        }
        (Decision::Exempt(found), None) if policy != Policy::OptIn => {
            Ok(told(found, &path, "gets no user namespace and runs with the node's IDs"))
        }
        _ => Ok(Vec::new()),
    }
}

fn told(found: &[Finding], path: &str, what: &str) -> Vec<String> {
    let text = |finding: &Finding| format!("{path}: {what}: {finding}; {}", finding.remedy());
    found.iter().map(text).collect()
}

fn explain(found: &[Finding]) -> String {
    let each = found.iter().map(|finding| format!("{finding}; {}", finding.remedy()));
    each.collect::<Vec<_>>().join("; ")
}

/// The policy of a namespace. A label that names none was refused; one from before is passed over, as the node does.
fn policy_in(write: &Write<'_>, namespace: &Value) -> Policy {
    let own = write.server.userns_policy;
    let label = metadata(namespace).map("labels").and_then(|labels| labels.get(POLICY_LABEL)?.as_str());
    own.in_force(label, true).unwrap_or(own)
}

/// Refuses a label that names no policy.
pub(crate) fn check_namespace(write: &Write<'_>, object: &Value) -> Result<(), Status> {
    let label = metadata(object).map("labels").and_then(|labels| labels.get(POLICY_LABEL)?.as_str());
    let Some(label) = label.filter(|label| label.parse::<Policy>().is_err()) else { return Ok(()) };
    let mut errors = FieldErrors::new();
    let path = Path::new("metadata").child("labels").key(POLICY_LABEL);
    errors.not_supported(&path, label, &Policy::ALL.map(Policy::as_str));
    Err(Status::invalid(write.kind, meta::text(object, "name"), &errors))
}
