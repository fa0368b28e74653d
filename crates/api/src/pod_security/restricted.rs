//! The checks that `restricted` adds, and those with which it replaces some of `baseline`.

use serde_json::Value;

use super::Violation;
use super::baseline::{self, bad_seccomp, forbidden_additions};
use super::pod::{Pod, by_number, containers_named, quoted, security, setters, sorted};
use crate::access::Access;

/// Volume types that hold the Pod's own data or what it was given by name.
const VOLUME_TYPES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

pub(super) fn privilege_escalation(pod: Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let is_open = |container| security(container).flag("allowPrivilegeEscalation") != Some(false);
    let bad = pod.containers_where(is_open);
    if bad.is_empty() {
        return None;
    }
    let detail =
        format!("{} must set securityContext.allowPrivilegeEscalation=false", containers_named(&bad));
    Violation::new("allowPrivilegeEscalation != false", detail)
}

pub(super) fn capabilities(pod: Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    let drops_all = |container: &Value| {
        let dropped = security(container).field("capabilities").map(|c| c.list("drop")).unwrap_or_default();
        dropped.iter().any(|name| name == "ALL")
    };
    let keeping = pod.containers_where(|container| !drops_all(container));
    let kept = (!keeping.is_empty()).then(|| {
        format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers_named(&keeping))
    });
    let faults: Vec<String> =
        kept.into_iter().chain(forbidden_additions(pod, &["NET_BIND_SERVICE"])).collect();
    if faults.is_empty() { None } else { Violation::new("unrestricted capabilities", faults.join("; ")) }
}

pub(super) fn proc_mount(pod: Pod<'_>) -> Option<Violation> {
    baseline::proc_mount(pod)
}

pub(super) fn volumes(pod: Pod<'_>) -> Option<Violation> {
    let kind = |volume: &'_ Value| -> Option<String> {
        let fields = volume.as_object()?;
        let source = fields.iter().find(|(name, value)| *name != "name" && !value.is_null());
        source.map(|(name, _)| name.clone()).filter(|name| !VOLUME_TYPES.contains(&name.as_str()))
    };
    let bad: Vec<(&str, String)> = pod
        .spec()
        .list("volumes")
        .iter()
        .filter_map(|volume| Some((volume.text("name"), kind(volume)?)))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let (names, kinds): (Vec<&str>, Vec<String>) = bad.into_iter().unzip();
    let kinds = sorted(kinds);
    Violation::new(
        "restricted volume types",
        format!(
            "{} {} {} restricted volume {} {}",
            by_number(names.len(), "volume", "volumes"),
            quoted(&names),
            by_number(names.len(), "uses", "use"),
            by_number(kinds.len(), "type", "types"),
            quoted(&kinds)
        ),
    )
}

pub(super) fn non_root(pod: Pod<'_>) -> Option<Violation> {
    let of = |context: &Value| context.flag("runAsNonRoot");
    let denying = pod.containers_where(|container| of(security(container)) == Some(false));
    if let Some(who) = setters(of(pod.security()) == Some(false), &denying) {
        let detail = format!("{who} must not set securityContext.runAsNonRoot=false");
        return Violation::new("runAsNonRoot != true", detail);
    }
    let silent = pod.containers_where(|container| of(security(container)).is_none());
    if of(pod.security()) == Some(true) || silent.is_empty() {
        return None;
    }
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", containers_named(&silent));
    Violation::new("runAsNonRoot != true", detail)
}

pub(super) fn non_root_unless_fenced(pod: Pod<'_>) -> Option<Violation> {
    if pod.is_fenced() { None } else { non_root(pod) }
}

pub(super) fn user(pod: Pod<'_>) -> Option<Violation> {
    let is_root = |context: &Value| context.int("runAsUser") == Some(0);
    let containers = pod.containers_where(|container| is_root(security(container)));
    let who = setters(is_root(pod.security()), &containers)?;
    Violation::new("runAsUser=0", format!("{who} must not set runAsUser=0"))
}

pub(super) fn user_unless_fenced(pod: Pod<'_>) -> Option<Violation> {
    if pod.is_fenced() { None } else { user(pod) }
}

pub(super) fn seccomp(pod: Pod<'_>) -> Option<Violation> {
    if pod.is_windows() {
        return None;
    }
    if let Some(bad) = baseline::seccomp(pod) {
        return Some(bad);
    }
    let has = |context: &Value| {
        context.field("seccompProfile").is_some_and(|profile| !profile.text("type").is_empty())
            && bad_seccomp(context).is_none()
    };
    let silent = pod.containers_where(|container| !has(security(container)));
    if has(pod.security()) || silent.is_empty() {
        return None;
    }
    let who = containers_named(&silent);
    let detail = format!(
        "pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""
    );
    Violation::new("seccompProfile", detail)
}
