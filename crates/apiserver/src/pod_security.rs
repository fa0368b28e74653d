//! Admission by the Pod Security Standards: a namespace's labels say which Pods it refuses, and of which it warns. What
//! the standards are is `api::pod_security`'s.

use api::access::{Access, spec};
use api::kind::Kind;
use api::pod_security::{LevelVersion, Modes, validate_labels, violations};
use api::status::Status;
use api::template::pod_of;
use serde_json::Value;

use crate::meta;
use crate::write::Write;

/// Refuses a Pod that violates what its namespace enforces; the warnings about one that is let through, and about
/// objects that make Pods, which are never refused themselves. What the namespace audits goes to the audit log.
pub(crate) fn check(
    write: &Write<'_>,
    namespace: &Value,
    object: &Value,
    old: Option<&Value>,
) -> Result<Vec<String>, Status> {
    let kind = write.kind.kind;
    let Some(pod) = pod_of(kind, object).filter(|pod| is_new(kind, pod, old)) else { return Ok(Vec::new()) };
    let (modes, name) = (Modes::of(namespace), meta::text(object, "name"));
    let notes = &write.info.notes;
    if kind == "Pod" {
        notes.add("pod-security.kubernetes.io/enforce-policy", modes.enforce.to_string());
    }
    if kind == "Pod"
        && let Some(why) = violations(modes.enforce, pod)
    {
        let text = format!("violates PodSecurity \"{}\": {why}", modes.enforce);
        return Err(Status::forbidden(write.kind, name, &text));
    }
    if let Some(text) = would_violate(modes.audit, pod) {
        notes.add("pod-security.kubernetes.io/audit-violations", text);
    }
    Ok(would_violate(modes.warn, pod).into_iter().collect())
}

fn would_violate(standard: LevelVersion, pod: &Value) -> Option<String> {
    violations(standard, pod).map(|why| format!("would violate PodSecurity \"{standard}\": {why}"))
}

/// Whether the Pod says something that was not looked at before. Of a Pod that exists only its ephemeral containers
/// are new: what else may change of it, no check looks at.
fn is_new(kind: &str, pod: &Value, old: Option<&Value>) -> bool {
    let Some(old) = old else { return true };
    match kind {
        "Pod" => spec(pod).list("ephemeralContainers") != spec(old).list("ephemeralContainers"),
        _ => pod_of(kind, old) != Some(pod),
    }
}

/// Refuses labels of a namespace that choose no standard, and tells which of its Pods violate the one that it enforces
/// from now on.
pub(crate) fn check_namespace(
    write: &Write<'_>,
    object: &Value,
    old: Option<&Value>,
) -> Result<Vec<String>, Status> {
    let name = meta::text(object, "name");
    let errors = validate_labels(object);
    if !errors.is_empty() {
        return Err(Status::invalid(write.kind, name, &errors));
    }
    let new = Modes::of(object).enforce;
    if old.is_none_or(|old| Modes::of(old).enforce == new) {
        return Ok(Vec::new());
    }
    let violating = violating(write, name, new);
    let first = violating.first().map(|_| {
        format!("existing pods in namespace \"{name}\" violate the new PodSecurity enforce level \"{new}\"")
    });
    Ok(first.into_iter().chain(violating).collect())
}

/// The Pods of a namespace that violate a standard, a line each.
fn violating(write: &Write<'_>, namespace: &str, standard: LevelVersion) -> Vec<String> {
    let Some(table) = pods().and_then(|kind| write.server.cache.table(kind)) else { return Vec::new() };
    let snapshot = write.server.cache.snapshot(table);
    let prefix = format!("{namespace}/");
    let lines = snapshot.range(&prefix, None).filter_map(|pod| {
        let pod = pod.value();
        violations(standard, &pod).map(|why| format!("{}: {why}", meta::text(&pod, "name")))
    });
    lines.collect()
}

fn pods() -> Option<&'static Kind> {
    api::kind::find("", "v1", "pods")
}
