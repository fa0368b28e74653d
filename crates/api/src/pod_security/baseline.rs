//! The checks of `baseline`: a function each, named after what it looks at.

use serde_json::Value;

use super::Violation;
use super::pod::{Pod, by_number, containers_named, quoted, security, setters, sorted};
use crate::access::Access;

/// Capabilities that a container runtime gives anyway.
const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Sysctls that are safe, with the minor version since which they count as such.
const SAFE_SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

const APP_ARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

pub(super) fn app_armor(pod: Pod<'_>) -> Option<Violation> {
    let bad = |of: &Value| {
        let kind = of.field("appArmorProfile").map_or("", |profile| profile.text("type"));
        !matches!(kind, "" | "RuntimeDefault" | "Localhost")
    };
    let kind = |of: &Value| of.field("appArmorProfile").map_or("", |profile| profile.text("type")).to_owned();
    let containers = pod.containers_where(|container| bad(security(container)));
    let mut who: Vec<String> = setters(bad(pod.security()), &containers).into_iter().collect();
    let mut values: Vec<String> = Vec::new();
    values.extend(bad(pod.security()).then(|| kind(pod.security())));
    values.extend(pod.containers().map(security).filter(|context| bad(context)).map(kind));
    for (key, value) in pod.annotations() {
        let is_good = value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
        if key.starts_with(APP_ARMOR_ANNOTATION) && !is_good {
            who.push(format!("annotation \"{key}\""));
            values.push(value.to_owned());
        }
    }
    if who.is_empty() {
        return None;
    }
    let values = sorted(values);
    Violation::new(
        by_number(values.len(), "forbidden AppArmor profile", "forbidden AppArmor profiles"),
        format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(&values)),
    )
}

/// Capabilities that a container adds and that are not in a list.
pub(super) fn added_beyond<'a>(container: &'a Value, allowed: &[&str]) -> Vec<&'a str> {
    let added = security(container).field("capabilities").map(|c| c.list("add")).unwrap_or_default();
    added.iter().filter_map(Value::as_str).filter(|name| !allowed.contains(name)).collect()
}

/// What is said of containers that add capabilities beyond a list.
pub(super) fn forbidden_additions(pod: Pod<'_>, allowed: &[&str]) -> Option<String> {
    let bad = pod.containers_where(|container| !added_beyond(container, allowed).is_empty());
    let names = sorted(pod.containers().flat_map(|container| added_beyond(container, allowed)).collect());
    (!bad.is_empty()).then(|| {
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers_named(&bad),
            quoted(&names)
        )
    })
}

pub(super) fn capabilities(pod: Pod<'_>) -> Option<Violation> {
    Violation::new("non-default capabilities", forbidden_additions(pod, &DEFAULT_CAPABILITIES)?)
}

pub(super) fn host_namespaces(pod: Pod<'_>) -> Option<Violation> {
    let fields = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|field| pod.spec().is_true(field));
    let set: Vec<String> = fields.map(|field| format!("{field}=true")).collect();
    if set.is_empty() { None } else { Violation::new("host namespaces", set.join(", ")) }
}

pub(super) fn host_paths(pod: Pod<'_>) -> Option<Violation> {
    let volumes = pod.spec().list("volumes").iter().filter(|volume| volume.field("hostPath").is_some());
    let names: Vec<&str> = volumes.map(|volume| volume.text("name")).collect();
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} {}", by_number(names.len(), "volume", "volumes"), quoted(&names));
    Violation::new("hostPath volumes", detail)
}

pub(super) fn host_ports(pod: Pod<'_>) -> Option<Violation> {
    let ports = |container: &Value| -> Vec<i64> {
        container.list("ports").iter().filter_map(|port| port.int("hostPort").filter(|n| *n != 0)).collect()
    };
    let bad = pod.containers_where(|container| !ports(container).is_empty());
    if bad.is_empty() {
        return None;
    }
    let numbers: Vec<String> = pod.containers().flat_map(ports).map(|port| port.to_string()).collect();
    let numbers = sorted(numbers);
    Violation::new(
        "hostPort",
        format!(
            "{} {} {} {}",
            containers_named(&bad),
            by_number(bad.len(), "uses", "use"),
            by_number(numbers.len(), "hostPort", "hostPorts"),
            numbers.join(", ")
        ),
    )
}

/// Hosts that a container's probes and hooks name.
fn hosts(container: &Value) -> Vec<&str> {
    let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|name| container.field(name));
    let hooks = ["postStart", "preStop"].map(|name| container.field("lifecycle").and_then(|l| l.field(name)));
    let handlers = probes.into_iter().chain(hooks).flatten();
    let actions = handlers.flat_map(|handler| ["httpGet", "tcpSocket"].map(|name| handler.field(name)));
    actions.flatten().map(|action| action.text("host")).filter(|host| !host.is_empty()).collect()
}

pub(super) fn probe_hosts(pod: Pod<'_>) -> Option<Violation> {
    let bad = pod.containers_where(|container| !hosts(container).is_empty());
    if bad.is_empty() {
        return None;
    }
    let named = sorted(pod.containers().flat_map(hosts).collect());
    Violation::new(
        "probe or lifecycle host",
        format!(
            "{} {} probe or lifecycle {} {}",
            containers_named(&bad),
            by_number(bad.len(), "uses", "use"),
            by_number(named.len(), "host", "hosts"),
            quoted(&named)
        ),
    )
}

pub(super) fn privileged(pod: Pod<'_>) -> Option<Violation> {
    let bad = pod.containers_where(|container| security(container).is_true("privileged"));
    if bad.is_empty() {
        return None;
    }
    Violation::new(
        "privileged",
        format!("{} must not set securityContext.privileged=true", containers_named(&bad)),
    )
}

pub(super) fn proc_mount(pod: Pod<'_>) -> Option<Violation> {
    let kind = |container| security(container).text("procMount");
    let is_bad = |container| !matches!(kind(container), "" | "Default");
    let bad = pod.containers_where(is_bad);
    if bad.is_empty() {
        return None;
    }
    let kinds = sorted(pod.containers().filter(|container| is_bad(container)).map(kind).collect());
    let detail =
        format!("{} must not set securityContext.procMount to {}", containers_named(&bad), quoted(&kinds));
    Violation::new("procMount", detail)
}

pub(super) fn proc_mount_unless_fenced(pod: Pod<'_>) -> Option<Violation> {
    if pod.is_fenced() { None } else { proc_mount(pod) }
}

pub(super) fn se_linux_before_31(pod: Pod<'_>) -> Option<Violation> {
    se_linux_of(pod, &["", "container_t", "container_init_t", "container_kvm_t"])
}

pub(super) fn se_linux(pod: Pod<'_>) -> Option<Violation> {
    se_linux_of(pod, &["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"])
}

fn se_linux_of(pod: Pod<'_>, allowed: &[&str]) -> Option<Violation> {
    let options = |of: &'_ Value| of.field("seLinuxOptions").cloned().unwrap_or_default();
    let is_bad = |of: &Value| {
        let options = options(of);
        !allowed.contains(&options.text("type"))
            || !options.text("user").is_empty()
            || !options.text("role").is_empty()
    };
    let containers = pod.containers_where(|container| is_bad(security(container)));
    let who = setters(is_bad(pod.security()), &containers)?;
    let all = || pod.containers().map(security).chain([pod.security()]).map(options);
    let types = all().map(|options| options.text("type").to_owned());
    let types = sorted(types.filter(|kind| !allowed.contains(&kind.as_str())).collect());
    let mut faults = Vec::new();
    if !types.is_empty() {
        faults.push(format!("{} {}", by_number(types.len(), "type", "types"), quoted(&types)));
    }
    for field in ["user", "role"] {
        if all().any(|options| !options.text(field).is_empty()) {
            faults.push(format!("{field} may not be set"));
        }
    }
    Violation::new(
        "seLinuxOptions",
        format!("{who} set forbidden securityContext.seLinuxOptions: {}", faults.join("; ")),
    )
}

/// Whether a security context sets a seccomp profile that is none; its type.
pub(super) fn bad_seccomp(context: &Value) -> Option<&str> {
    let kind = context.field("seccompProfile")?.text("type");
    (!matches!(kind, "" | "RuntimeDefault" | "Localhost")).then_some(kind)
}

pub(super) fn seccomp(pod: Pod<'_>) -> Option<Violation> {
    let containers = pod.containers_where(|container| bad_seccomp(security(container)).is_some());
    let of_pod = bad_seccomp(pod.security());
    let who = setters(of_pod.is_some(), &containers)?;
    let kinds = pod.containers().map(security).filter_map(bad_seccomp).chain(of_pod);
    let kinds = sorted(kinds.collect());
    Violation::new(
        "seccompProfile",
        format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(&kinds)),
    )
}

pub(super) fn sysctls_0(pod: Pod<'_>) -> Option<Violation> {
    sysctls(pod, 0)
}

pub(super) fn sysctls_27(pod: Pod<'_>) -> Option<Violation> {
    sysctls(pod, 27)
}

pub(super) fn sysctls_29(pod: Pod<'_>) -> Option<Violation> {
    sysctls(pod, 29)
}

pub(super) fn sysctls_32(pod: Pod<'_>) -> Option<Violation> {
    sysctls(pod, 32)
}

fn sysctls(pod: Pod<'_>, version: u32) -> Option<Violation> {
    let is_safe = |name: &str| SAFE_SYSCTLS.iter().any(|(safe, since)| *safe == name && *since <= version);
    let names = pod.security().list("sysctls").iter().map(|sysctl| sysctl.text("name"));
    let bad: Vec<&str> = names.filter(|name| !is_safe(name)).collect();
    if bad.is_empty() { None } else { Violation::new("forbidden sysctls", bad.join(", ")) }
}

pub(super) fn host_process(pod: Pod<'_>) -> Option<Violation> {
    let is_set =
        |of: &Value| of.field("windowsOptions").is_some_and(|options| options.is_true("hostProcess"));
    let containers = pod.containers_where(|container| is_set(security(container)));
    let who = setters(is_set(pod.security()), &containers)?;
    let detail = format!("{who} must not set securityContext.windowsOptions.hostProcess=true");
    Violation::new("hostProcess", detail)
}
