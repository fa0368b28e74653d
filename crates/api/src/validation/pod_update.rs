//! Rules for changed Pods: nearly all of a Pod's spec stays as it was made.

use serde_json::Value;

use super::meta::{immutable, object_meta_update};
use super::pod::{ip, metadata_and_spec, rules};
use super::{FieldErrors, Path, diff, scheduling, semantically_equal};
use crate::access::{Access, carry_over, metadata, spec, status};
use crate::admission::MIRROR_ANNOTATION;
use crate::kind::Ctx;
use crate::name::{dns_subdomain_faults, qualified_name_faults, range_faults};

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Rules for a change of a Pod.
pub fn pod_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(metadata_and_spec(new, rules(Some(old), ctx)));
    annotations(new, old, &mut errors);
    let path = Path::new("spec");
    let (new, old) = (spec(new), spec(old));
    for list in ["containers", "initContainers"] {
        if new.list(list).len() != old.list(list).len() {
            errors.forbidden(&path.child(list), "pod updates may not add or remove containers");
            return errors;
        }
        for (i, container) in new.list(list).iter().enumerate() {
            if container.text("image").is_empty() {
                errors.required(&path.child(list).index(i).child("image"), "");
            }
        }
    }
    if !deadline(new, old, &path.child("activeDeadlineSeconds"), &mut errors) {
        return errors;
    }
    let (tolerations, old_tolerations) = (new.list("tolerations"), old.list("tolerations"));
    scheduling::only_added_tolerations(tolerations, old_tolerations, &path.child("tolerations"), &mut errors);
    only_deleted_gates(new, old, &path.child("schedulingGates"), &mut errors);
    let munged = with_updatable_fields_of(new, old);
    if !semantically_equal(&munged, old) {
        let changes = diff::unified(old, &munged);
        let detail = format!("pod updates may not change fields other than {UPDATABLE}\n{changes}");
        errors.forbidden(&path, detail);
    }
    errors
}

/// The new spec with the old values of all fields that may change.
fn with_updatable_fields_of(new: &Value, old: &Value) -> Value {
    let mut munged = new.clone();
    for list in ["containers", "initContainers"] {
        let containers = munged.get_mut(list).and_then(Value::as_array_mut);
        for (container, old) in containers.into_iter().flatten().zip(old.list(list)) {
            carry_over(container, old, "image");
        }
    }
    let mut fields = vec!["activeDeadlineSeconds", "schedulingGates", "tolerations"];
    let grace = |spec: &Value| spec.int("terminationGracePeriodSeconds");
    if grace(old).is_some_and(|s| s < 0) && grace(new) == Some(1) {
        fields.push("terminationGracePeriodSeconds");
    }
    if !old.list("schedulingGates").is_empty() && is_narrowed(new, old) {
        fields.push("nodeSelector");
    }
    for name in fields {
        carry_over(&mut munged, old, name);
    }
    munged
}

/// A gated Pod's node selector may gain labels.
fn is_narrowed(new: &Value, old: &Value) -> bool {
    let new = new.entries("nodeSelector");
    old.entries("nodeSelector").iter().all(|entry| new.contains(entry))
}

pub(super) fn annotations(new: &Value, old: &Value, errors: &mut FieldErrors) {
    let path = Path::new("metadata").child("annotations").key(MIRROR_ANNOTATION);
    let value =
        |pod: &Value| metadata(pod).map("annotations").and_then(|a| a.get(MIRROR_ANNOTATION)).cloned();
    match (value(new), value(old)) {
        (new, Some(old)) if new.as_ref() != Some(&old) => {
            errors.forbidden(&path, "may not remove or update mirror pod annotation");
        }
        (Some(_), None) => errors.forbidden(&path, "may not add mirror pod annotation"),
        _ => {}
    }
}

/// The deadline may be set and shortened. Says whether it makes sense to go on.
fn deadline(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) -> bool {
    let (new, old) = (new.int("activeDeadlineSeconds"), old.int("activeDeadlineSeconds"));
    match (new, old) {
        (Some(new), old) => {
            let faults = range_faults(new, 0, i64::from(i32::MAX));
            let is_later = old.is_some_and(|old| old < new);
            for fault in &faults {
                errors.invalid(path, new, fault.as_str());
            }
            if is_later && faults.is_empty() {
                errors.invalid(path, new, "must be less than or equal to previous value");
            }
            faults.is_empty() && !is_later
        }
        (None, Some(_)) => {
            errors.invalid(path, Value::Null, "must not update from a positive integer to nil value");
            true
        }
        (None, None) => true,
    }
}

fn only_deleted_gates(new: &Value, old: &Value, path: &Path, errors: &mut FieldErrors) {
    let known: Vec<&str> = old.list("schedulingGates").iter().map(|g| g.text("name")).collect();
    for (i, gate) in new.list("schedulingGates").iter().enumerate() {
        let name = gate.text("name");
        if !known.contains(&name) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.forbidden(&path.index(i).child("name"), detail);
        }
    }
}

/// Rules for a write to a Pod's status.
pub fn pod_status_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    annotations(new, old, &mut errors);
    let path = Path::new("status");
    let (new_status, old_status) = (status(new), status(old));
    conditions(new_status, &path.child("conditions"), &mut errors);
    if spec(new).text("nodeName") != spec(old).text("nodeName") {
        errors.forbidden(&path.child("nodeName"), "may not be changed directly");
    }
    let nominated = new_status.text("nominatedNodeName");
    if nominated != old_status.text("nominatedNodeName") && !nominated.is_empty() {
        for fault in dns_subdomain_faults(nominated) {
            errors.invalid(&path.child("nominatedNodeName"), nominated, fault);
        }
    }
    let null = Value::Null;
    let (new_qos, old_qos) = (new_status.field("qosClass"), old_status.field("qosClass"));
    immutable(new_qos.unwrap_or(&null), old_qos.unwrap_or(&null), &path.child("qosClass"), &mut errors);
    let restart = spec(old);
    transitions(new_status, old_status, restart, ("containerStatuses", "containers"), &mut errors);
    transitions(new_status, old_status, restart, ("initContainerStatuses", "initContainers"), &mut errors);
    ips(new_status, "podIPs", &path, &mut errors);
    ips(new_status, "hostIPs", &path, &mut errors);
    errors
}

fn conditions(status: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, condition) in status.list("conditions").iter().enumerate() {
        let path = path.index(i);
        if let Some(generation) = condition.int("observedGeneration").filter(|g| *g < 0) {
            errors.invalid(&path.child("observedGeneration"), generation, "must be a non-negative integer");
        }
        let kind = condition.text("type");
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            for fault in qualified_name_faults(kind) {
                errors.invalid(&path.child("Type"), kind, fault);
            }
        }
    }
}

/// A container that has ended and is not started again by its policy stays ended.
fn transitions(new: &Value, old: &Value, spec: &Value, lists: (&str, &str), errors: &mut FieldErrors) {
    let (statuses, containers) = lists;
    let restarts_all =
        |c: &Value| c.list("restartPolicyRules").iter().any(|r| r.text("action") == "RestartAllContainers");
    let mut all = spec.list("containers").iter().chain(spec.list("initContainers"));
    if all.any(restarts_all) {
        return;
    }
    for (i, before) in old.list(statuses).iter().enumerate() {
        let Some(terminated) = before.pointer("/state/terminated") else { continue };
        let name = before.text("name");
        let after = new.list(statuses).iter().find(|s| s.text("name") == name);
        let is_running_again = after.is_some_and(|s| s.pointer("/state/terminated").is_none());
        let container = spec.list(containers).iter().find(|c| c.text("name") == name);
        let code = terminated.int("exitCode").unwrap_or_default();
        if is_running_again && !container.is_some_and(|c| may_restart(c, spec, code)) {
            let path = Path::new("status").child(statuses).index(i).child("state");
            errors.forbidden(&path, "may not be transitioned to non-terminated state");
        }
    }
}

fn may_restart(container: &Value, spec: &Value, code: i64) -> bool {
    let has_rule = container.list("restartPolicyRules").iter().any(|rule| {
        let listed = rule.field("exitCodes").map(|c| c.list("values").contains(&code.into()));
        let is_in = rule.field("exitCodes").is_some_and(|c| c.text("operator") == "In");
        listed == Some(is_in)
    });
    let policy = match container.text("restartPolicy") {
        "" => spec.text("restartPolicy"),
        own => own,
    };
    has_rule || policy == "Always" || (policy == "OnFailure" && code != 0)
}

fn ips(status: &Value, field: &str, path: &Path, errors: &mut FieldErrors) {
    let list = status.list(field);
    let path = path.child(field);
    for (i, address) in list.iter().enumerate() {
        ip(address.text("ip"), &path.index(i), errors);
    }
    let families: Vec<bool> = list.iter().map(|a| a.text("ip").contains(':')).collect();
    if families.len() > 1 && families != [true, false] && families != [false, true] {
        errors.invalid(&path, list, "may specify no more than one IP for each IP family");
    }
}
