//! Rules for security contexts, and for `hostUsers` with what it excludes.

use serde_json::Value;

use super::volume::local_path;
use super::{FieldErrors, Path};
use crate::access::Access;
use crate::name::{DNS_SUBDOMAIN_MAX, is_sysctl_name, range_faults};

const MAX_ID: i64 = i32::MAX as i64;
const SYSCTL_REGEX: &str = "^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
const WHEN_FALSE: &str = "when `hostUsers` is false";
/// The lists of containers of a Pod, in the order in which upstream visits them.
pub(crate) const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// What an older, stored Pod may keep although the rules refuse it today.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HostUsersRules {
    /// `hostNetwork` is allowed beside `hostUsers: false`.
    pub(crate) allows_host_network: bool,
    /// `volumeDevices` are allowed beside `hostUsers: false`.
    pub(crate) allows_volume_devices: bool,
}

/// Whether the Pod runs in the node's user namespace as far as its spec says.
pub(crate) fn is_host_users(spec: &Value) -> bool {
    spec.flag("hostUsers").unwrap_or(true)
}

/// What `hostUsers: false` excludes. The capital letters in two of the paths are upstream's.
pub(crate) fn host_users(spec: &Value, rules: HostUsersRules, path: &Path, errors: &mut FieldErrors) {
    if is_host_users(spec) {
        return;
    }
    if !rules.allows_host_network && spec.is_true("hostNetwork") {
        errors.forbidden(&path.child("hostNetwork"), WHEN_FALSE);
    }
    if spec.is_true("hostPID") {
        errors.forbidden(&path.child("HostPID"), WHEN_FALSE);
    }
    if spec.is_true("hostIPC") {
        errors.forbidden(&path.child("HostIPC"), WHEN_FALSE);
    }
    if rules.allows_volume_devices {
        return;
    }
    for list in CONTAINER_LISTS {
        for (i, container) in spec.list(list).iter().enumerate() {
            if !container.list("volumeDevices").is_empty() {
                errors.forbidden(&path.child(list).index(i).child("volumeDevices"), WHEN_FALSE);
            }
        }
    }
}

/// Rules for the security context of a whole Pod.
pub(crate) fn pod_context(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let null = Value::Null;
    let context = spec.field("securityContext").unwrap_or(&null);
    for name in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(context.int(name), &path.child(name), errors);
    }
    for (i, group) in context.list("supplementalGroups").iter().enumerate() {
        id(group.as_i64(), &path.child("supplementalGroups").index(i), errors);
    }
    if spec.is_true("shareProcessNamespace") && spec.is_true("hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.child("shareProcessNamespace"), true, detail);
    }
    sysctls(spec, context, &path.child("sysctls"), errors);
    one_of(context, "fsGroupChangePolicy", &["Always", "OnRootMismatch"], path, errors);
    seccomp(context.field("seccompProfile"), &path.child("seccompProfile"), errors);
    app_armor(context.field("appArmorProfile"), &path.child("appArmorProfile"), errors);
    one_of(context, "supplementalGroupsPolicy", &["Merge", "Strict"], path, errors);
    one_of(context, "seLinuxChangePolicy", &["MountOption", "Recursive"], path, errors);
}

/// Rules for the security context of one container.
pub(crate) fn container_context(context: &Value, is_host_users: bool, path: &Path, errors: &mut FieldErrors) {
    id(context.int("runAsUser"), &path.child("runAsUser"), errors);
    id(context.int("runAsGroup"), &path.child("runAsGroup"), errors);
    if let Some(proc_mount) = context.field("procMount").and_then(Value::as_str) {
        let path = path.child("procMount");
        if !matches!(proc_mount, "Default" | "Unmasked") {
            errors.not_supported(&path, proc_mount, &["Default", "Unmasked"]);
        }
        if is_host_users && proc_mount == "Unmasked" {
            errors.invalid(&path, proc_mount, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp(context.field("seccompProfile"), &path.child("seccompProfile"), errors);
    if context.flag("allowPrivilegeEscalation") == Some(false) {
        if context.is_true("privileged") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(path, context.clone(), detail);
        }
        let added = context.field("capabilities").map(|c| c.list("add")).unwrap_or_default();
        if added.iter().any(|c| c == "CAP_SYS_ADMIN") {
            let detail =
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(path, context.clone(), detail);
        }
    }
    app_armor(context.field("appArmorProfile"), &path.child("appArmorProfile"), errors);
}

fn id(id: Option<i64>, path: &Path, errors: &mut FieldErrors) {
    if let Some(id) = id {
        for fault in range_faults(id, 0, MAX_ID) {
            errors.invalid(path, id, fault);
        }
    }
}

/// A field that, where it is there, has one of some values (given in alphabetical order).
pub(crate) fn one_of(object: &Value, name: &str, values: &[&str], path: &Path, errors: &mut FieldErrors) {
    if let Some(value) = object.field(name).and_then(Value::as_str)
        && !values.contains(&value)
    {
        errors.not_supported(&path.child(name), value, values);
    }
}

fn sysctls(spec: &Value, context: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut names: Vec<String> = Vec::new();
    for (i, sysctl) in context.list("sysctls").iter().enumerate() {
        let path = path.index(i).child("name");
        let name = sysctl.text("name");
        if name.is_empty() {
            errors.required(&path, "");
        } else if !is_sysctl_name(name) {
            let detail =
                format!("must have at most {DNS_SUBDOMAIN_MAX} characters and match regex {SYSCTL_REGEX}");
            errors.invalid(&path, name, detail);
        } else if names.iter().any(|n| n == name) {
            errors.duplicate(&path, name);
        }
        let dotted = dotted_sysctl(name);
        if spec.is_true("hostNetwork") && dotted.starts_with("net.") {
            errors.invalid(&path, name, "may not be specified when 'hostNetwork' is true");
        }
        if spec.is_true("hostIPC") && is_ipc_sysctl(&dotted) {
            errors.invalid(&path, name, "may not be specified when 'hostIPC' is true");
        }
        names.push(name.to_owned());
    }
}

/// `net/ipv4/x.y` is `net.ipv4.x/y`: the first separator that appears separates.
fn dotted_sysctl(name: &str) -> String {
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes().get(at) == Some(&b'/') => name
            .chars()
            .map(|c| match c {
                '/' => '.',
                '.' => '/',
                c => c,
            })
            .collect(),
        _ => name.to_owned(),
    }
}

fn is_ipc_sysctl(name: &str) -> bool {
    matches!(name, "kernel.sem")
        || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|p| name.starts_with(p))
}

fn seccomp(profile: Option<&Value>, path: &Path, errors: &mut FieldErrors) {
    const TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
    let Some(profile) = profile else { return };
    let kind = profile.text("type");
    if kind.is_empty() {
        errors.required(&path.child("type"), "type is required when seccompProfile is set");
    } else if !TYPES.contains(&kind) {
        errors.not_supported(&path.child("type"), kind, TYPES);
    }
    let file = profile.field("localhostProfile").and_then(Value::as_str);
    let path = path.child("localhostProfile");
    match (kind == "Localhost", file) {
        (true, None) => errors.required(&path, "must be set when seccomp type is Localhost"),
        (true, Some(file)) => local_path(file, &path, errors),
        (false, Some(_)) => {
            errors.invalid(&path, profile.clone(), "can only be set when seccomp type is Localhost");
        }
        (false, None) => {}
    }
}

fn app_armor(profile: Option<&Value>, path: &Path, errors: &mut FieldErrors) {
    const PATH_MAX: usize = 4095;
    const REQUIRED: &str = "must be set when AppArmor type is Localhost";
    let Some(profile) = profile else { return };
    let file = profile.field("localhostProfile").and_then(Value::as_str);
    let file_path = path.child("localhostProfile");
    match (profile.text("type"), file) {
        ("Localhost", None | Some("")) => errors.required(&file_path, REQUIRED),
        ("Localhost", Some(file)) if file.trim() != file => {
            errors.invalid(&file_path, file, "must not be padded with whitespace");
        }
        ("Localhost", Some(file)) if file.len() > PATH_MAX => errors.too_long(&file_path, PATH_MAX),
        ("RuntimeDefault" | "Unconfined", Some(file)) => {
            errors.invalid(&file_path, file, "can only be set when AppArmor type is Localhost");
        }
        ("Localhost" | "RuntimeDefault" | "Unconfined", _) => {}
        ("", _) => errors.required(&path.child("type"), "type is required when appArmorProfile is set"),
        (other, _) => {
            errors.not_supported(&path.child("type"), other, &["Localhost", "RuntimeDefault", "Unconfined"]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(f: impl Fn(&mut FieldErrors)) -> Vec<String> {
        let mut errors = FieldErrors::new();
        f(&mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    fn check_host_users(spec: &Value, rules: HostUsersRules) -> Vec<String> {
        texts(|e| host_users(spec, rules, &Path::new("spec"), e))
    }

    #[test]
    fn a04_a06_host_users_false_excludes_the_hosts_namespaces() {
        let spec = json!({"hostUsers": false, "hostNetwork": true, "hostPID": true, "hostIPC": true});
        assert_eq!(
            check_host_users(&spec, HostUsersRules::default()),
            [
                "spec.hostNetwork: Forbidden: when `hostUsers` is false",
                "spec.HostPID: Forbidden: when `hostUsers` is false",
                "spec.HostIPC: Forbidden: when `hostUsers` is false",
            ]
        );
        let rules = HostUsersRules { allows_host_network: true, ..HostUsersRules::default() };
        assert_eq!(check_host_users(&spec, rules).len(), 2);
        for spec in [json!({"hostPID": true}), json!({"hostUsers": true, "hostNetwork": true})] {
            assert!(check_host_users(&spec, HostUsersRules::default()).is_empty());
        }
    }

    #[test]
    fn a07_host_users_false_excludes_volume_devices_in_each_container() {
        let container = json!({"volumeDevices": [{"name": "v"}]});
        let spec = json!({"hostUsers": false, "containers": [{}, container], "initContainers": [container], "ephemeralContainers": [container]});
        assert_eq!(
            check_host_users(&spec, HostUsersRules::default()),
            [
                "spec.initContainers[0].volumeDevices: Forbidden: when `hostUsers` is false",
                "spec.containers[1].volumeDevices: Forbidden: when `hostUsers` is false",
                "spec.ephemeralContainers[0].volumeDevices: Forbidden: when `hostUsers` is false",
            ]
        );
    }

    #[test]
    fn a11_a12_unmasked_needs_a_user_namespace() {
        let context = json!({"procMount": "Unmasked"});
        let check = |host: bool| texts(|e| container_context(&context, host, &Path::new("sc"), e));
        assert_eq!(
            check(true),
            ["sc.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use `Unmasked`"]
        );
        assert!(check(false).is_empty());
        assert_eq!(
            texts(|e| container_context(&json!({"procMount": "x"}), true, &Path::new("sc"), e)),
            ["sc.procMount: Unsupported value: \"x\": supported values: \"Default\", \"Unmasked\""]
        );
    }

    #[test]
    fn ids_are_31_bits() {
        let context = json!({"runAsUser": -1, "runAsGroup": 2_147_483_648_i64});
        assert_eq!(
            texts(|e| container_context(&context, true, &Path::new("sc"), e)),
            [
                "sc.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                "sc.runAsGroup: Invalid value: 2147483648: must be between 0 and 2147483647, inclusive",
            ]
        );
    }

    #[test]
    fn sysctls_and_profiles() {
        let spec = json!({"hostNetwork": true, "securityContext": {"sysctls": [{"name": "net.ipv4.x"}, {"name": "A"}],
            "seccompProfile": {"type": "Localhost"}, "appArmorProfile": {"type": "x"}}});
        let found = texts(|e| pod_context(&spec, &Path::new("sc"), e));
        assert_eq!(
            found[0],
            "sc.sysctls[0].name: Invalid value: \"net.ipv4.x\": may not be specified when 'hostNetwork' is true"
        );
        assert!(found[1].starts_with(
            "sc.sysctls[1].name: Invalid value: \"A\": must have at most 253 characters and match regex ^("
        ));
        assert_eq!(
            found[2],
            "sc.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost"
        );
        assert!(found[3].starts_with("sc.appArmorProfile.type: Unsupported value"));
    }
}
