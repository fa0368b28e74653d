//! Rules for containers, init containers and ephemeral containers.

use serde_json::Value;

use super::security::container_context;
use super::volume::{local_path, no_backsteps};
use super::{FieldErrors, Path, environment, probe, resource};
use crate::access::Access;
use crate::name::{dns_label_faults, port_name_faults, range_faults};

/// What the rules for a container need to know of its Pod.
#[derive(Debug)]
pub(crate) struct PodFacts<'a> {
    /// The volumes that are well-formed.
    pub(crate) volumes: Vec<&'a Value>,
    /// Whether the Pod runs in the node's user namespace.
    pub(crate) is_host_users: bool,
    /// The termination grace period in seconds.
    pub(crate) grace: Option<i64>,
    /// The Pod's restart policy.
    pub(crate) restart_policy: &'a str,
    /// `spec.os.name`; empty when not said.
    pub(crate) os: &'a str,
}

const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// Rules for `containers`.
pub(crate) fn containers(spec: &Value, facts: &PodFacts<'_>, path: &Path, errors: &mut FieldErrors) {
    let list = spec.list("containers");
    if list.is_empty() {
        errors.required(path, "");
        return;
    }
    let mut names: Vec<&str> = Vec::new();
    for (i, container) in list.iter().enumerate() {
        let path = path.index(i);
        common(container, facts, &path, errors);
        unique_name(container.text("name"), &mut names, &path, errors);
        if let Some(lifecycle) = container.field("lifecycle") {
            probe::lifecycle(lifecycle, facts.grace, facts.os, &path.child("lifecycle"), errors);
        }
        probe::probes(container, &path, errors);
        restart_rules(container, &path, errors);
    }
    host_ports(list, path, errors);
}

/// Rules for `initContainers`; with `restartPolicy: Always` one is a sidecar and may have probes and hooks.
pub(crate) fn init_containers(spec: &Value, facts: &PodFacts<'_>, path: &Path, errors: &mut FieldErrors) {
    let mut names: Vec<&str> = spec.list("containers").iter().map(|c| c.text("name")).collect();
    for (i, container) in spec.list("initContainers").iter().enumerate() {
        let at = path.index(i);
        common(container, facts, &at, errors);
        restart_rules(container, &at, errors);
        unique_name(container.text("name"), &mut names, &at, errors);
        host_ports(std::slice::from_ref(container), path, errors);
        let lifecycle = container.field("lifecycle");
        if container.text("restartPolicy") == "Always" {
            if let Some(lifecycle) = lifecycle {
                probe::lifecycle(lifecycle, facts.grace, facts.os, &at.child("lifecycle"), errors);
            }
            probe::probes(container, &at, errors);
        } else {
            for name in ["lifecycle"].iter().chain(&PROBES).filter(|n| container.field(n).is_some()) {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errors.forbidden(&at.child(name), detail);
            }
        }
    }
}

/// Rules for `ephemeralContainers`, which only the subresource of that name may add.
pub(crate) fn ephemeral_containers(
    spec: &Value,
    facts: &PodFacts<'_>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    const NOT_ALLOWED: [&str; 6] =
        ["ports", "resources", "lifecycle", "livenessProbe", "readinessProbe", "startupProbe"];
    let others: Vec<&str> =
        ["containers", "initContainers"].iter().flat_map(|l| spec.list(l)).map(|c| c.text("name")).collect();
    let mut names = others.clone();
    for (i, container) in spec.list("ephemeralContainers").iter().enumerate() {
        let path = path.index(i);
        common(container, facts, &path, errors);
        image_whitespace(container, &path, errors);
        unique_name(container.text("name"), &mut names, &path, errors);
        let target = container.text("targetContainerName");
        if !target.is_empty() && !others.contains(&target) {
            errors.not_found(&path.child("targetContainerName"), target);
        }
        for name in NOT_ALLOWED {
            let is_set = container.field(name).is_some_and(|v| v.as_object().is_none_or(|o| !o.is_empty()));
            if is_set && !container.field(name).and_then(Value::as_array).is_some_and(Vec::is_empty) {
                errors.forbidden(&path.child(name), "cannot be set for an Ephemeral Container");
            }
        }
        for (j, mount) in container.list("volumeMounts").iter().enumerate() {
            for name in ["subPath", "subPathExpr"].into_iter().filter(|n| !mount.text(n).is_empty()) {
                let path = path.child("volumeMounts").index(j).child(name);
                errors.forbidden(&path, "cannot be set for an Ephemeral Container");
            }
        }
    }
}

/// Images of a Pod (not of a template) must not be padded.
pub(crate) fn image_whitespace(container: &Value, path: &Path, errors: &mut FieldErrors) {
    let image = container.text("image");
    if image.trim().len() != image.len() {
        errors.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
}

fn unique_name<'a>(name: &'a str, names: &mut Vec<&'a str>, path: &Path, errors: &mut FieldErrors) {
    if names.contains(&name) {
        errors.duplicate(&path.child("name"), name);
    } else if !name.is_empty() {
        names.push(name);
    }
}

fn common(container: &Value, facts: &PodFacts<'_>, path: &Path, errors: &mut FieldErrors) {
    let name = container.text("name");
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        for fault in dns_label_faults(name) {
            errors.invalid(&path.child("name"), name, fault);
        }
    }
    if container.text("image").is_empty() {
        errors.required(&path.child("image"), "");
    }
    let policies = ["File", "FallbackToLogsOnError"];
    required_one_of(container, "terminationMessagePolicy", &policies, path, errors);
    ports(container.list("ports"), &path.child("ports"), errors);
    environment::env(container, &path.child("env"), errors);
    environment::env_from(container, &path.child("envFrom"), errors);
    mounts(container, facts, &path.child("volumeMounts"), errors);
    devices(container, facts, &path.child("volumeDevices"), errors);
    required_one_of(container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], path, errors);
    if let Some(resources) = container.field("resources") {
        resource::container_resources(resources, &path.child("resources"), errors);
    }
    resize_policy(container, facts.restart_policy, &path.child("resizePolicy"), errors);
    if let Some(context) = container.field("securityContext") {
        container_context(context, facts.is_host_users, &path.child("securityContext"), errors);
    }
}

/// A field that must be there with one of some values.
pub(crate) fn required_one_of(
    object: &Value,
    name: &str,
    values: &[&str],
    path: &Path,
    errors: &mut FieldErrors,
) {
    match object.text(name) {
        "" => errors.required(&path.child(name), ""),
        value if !values.contains(&value) => errors.not_supported(&path.child(name), value, values),
        _ => {}
    }
}

fn ports(list: &[Value], path: &Path, errors: &mut FieldErrors) {
    let mut names: Vec<&str> = Vec::new();
    for (i, port) in list.iter().enumerate() {
        let path = path.index(i);
        let name = port.text("name");
        if !name.is_empty() {
            let faults = port_name_faults(name);
            if faults.is_empty() {
                unique_name(name, &mut names, &path, errors);
            }
            for fault in faults {
                errors.invalid(&path.child("name"), name, fault);
            }
        }
        let number = port.int("containerPort").unwrap_or_default();
        if number == 0 {
            errors.required(&path.child("containerPort"), "");
        }
        for (name, number) in
            [("containerPort", number), ("hostPort", port.int("hostPort").unwrap_or_default())]
        {
            for fault in range_faults(number, 1, 65535).into_iter().filter(|_| number != 0) {
                errors.invalid(&path.child(name), number, fault);
            }
        }
        required_one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &path, errors);
    }
}

fn host_ports(list: &[Value], path: &Path, errors: &mut FieldErrors) {
    let mut taken: Vec<String> = Vec::new();
    for (i, container) in list.iter().enumerate() {
        for (j, port) in container.list("ports").iter().enumerate() {
            let number = port.int("hostPort").unwrap_or_default();
            if number == 0 {
                continue;
            }
            let key = format!("{}/{}/{number}", port.text("protocol"), port.text("hostIP"));
            if taken.contains(&key) {
                errors.duplicate(&path.index(i).child("ports").index(j).child("hostPort"), key);
            } else {
                taken.push(key);
            }
        }
    }
}

fn mounts(container: &Value, facts: &PodFacts<'_>, path: &Path, errors: &mut FieldErrors) {
    let devices = container.list("volumeDevices");
    let mut seen: Vec<&str> = Vec::new();
    for (i, mount) in container.list("volumeMounts").iter().enumerate() {
        let at = path.index(i);
        let (name, target) = (mount.text("name"), mount.text("mountPath"));
        if name.is_empty() {
            errors.required(&at.child("name"), "");
        }
        if !facts.volumes.iter().any(|v| v.text("name") == name) {
            errors.not_found(&at.child("name"), name);
        }
        if target.is_empty() {
            errors.required(&at.child("mountPath"), "");
        }
        if seen.contains(&target) {
            errors.invalid(&at.child("mountPath"), target, "must be unique");
        }
        seen.push(target);
        if devices.iter().any(|d| d.text("name") == name) {
            errors.invalid(&at.child("name"), name, "must not already exist in volumeDevices");
        }
        if devices.iter().any(|d| d.text("devicePath") == target) {
            errors.invalid(
                &at.child("mountPath"),
                target,
                "must not already exist as a path in volumeDevices",
            );
        }
        sub_path(mount, path, &at, errors);
        propagation(mount, container, path, errors);
    }
}

/// Upstream names the list, not the item, in the paths of these rules.
fn sub_path(mount: &Value, path: &Path, at: &Path, errors: &mut FieldErrors) {
    let (plain, expanded) = (mount.text("subPath"), mount.text("subPathExpr"));
    if !plain.is_empty() {
        local_path(plain, &path.child("subPath"), errors);
    }
    if !expanded.is_empty() {
        if !plain.is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.invalid(&at.child("subPathExpr"), expanded, detail);
        }
        local_path(expanded, &path.child("subPathExpr"), errors);
    }
}

fn propagation(mount: &Value, container: &Value, path: &Path, errors: &mut FieldErrors) {
    let mode = mount.text("mountPropagation");
    let at = path.child("mountPropagation");
    if !matches!(mode, "" | "Bidirectional" | "HostToContainer" | "None") {
        errors.not_supported(&at, mode, &["Bidirectional", "HostToContainer", "None"]);
    }
    let is_privileged = container.field("securityContext").is_some_and(|c| c.is_true("privileged"));
    if mode == "Bidirectional" && !is_privileged {
        errors.forbidden(&at, "Bidirectional mount propagation is available only to privileged containers");
    }
    let at = path.child("recursiveReadOnly");
    match mount.text("recursiveReadOnly") {
        "" | "Disabled" => {}
        "Enabled" | "IfPossible" => {
            if !mount.is_true("readOnly") {
                errors.forbidden(&at, "may only be specified when readOnly is true");
            }
            if !matches!(mode, "" | "None") {
                let detail = "may only be specified when mountPropagation is None or not specified";
                errors.forbidden(&at, detail);
            }
        }
        other => errors.not_supported(&at, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn devices(container: &Value, facts: &PodFacts<'_>, path: &Path, errors: &mut FieldErrors) {
    let mounts = container.list("volumeMounts");
    let (mut names, mut paths): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    for (i, device) in container.list("volumeDevices").iter().enumerate() {
        let (name_at, path_at) = (path.index(i).child("name"), path.index(i).child("devicePath"));
        let (name, target) = (device.text("name"), device.text("devicePath"));
        if name.is_empty() {
            errors.required(&name_at, "");
        }
        if names.contains(&name) {
            errors.invalid(&name_at, name, "must be unique");
        }
        match facts.volumes.iter().find(|v| v.text("name") == name) {
            None => errors.not_found(&name_at, name),
            Some(volume)
                if volume.field("persistentVolumeClaim").or_else(|| volume.field("ephemeral")).is_none() =>
            {
                let detail =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&name_at, name, detail);
            }
            Some(_) => {}
        }
        if target.is_empty() {
            errors.required(&path_at, "");
        }
        if paths.contains(&target) {
            errors.invalid(&path_at, target, "must be unique");
        }
        no_backsteps(target, &path_at, errors);
        if mounts.iter().any(|m| m.text("name") == name) {
            errors.invalid(&name_at, name, "must not already exist in volumeMounts");
        }
        if mounts.iter().any(|m| m.text("mountPath") == target) {
            errors.invalid(&path_at, target, "must not already exist as a path in volumeMounts");
        }
        names.push(name);
        paths.push(target);
    }
}

fn resize_policy(container: &Value, restart_policy: &str, path: &Path, errors: &mut FieldErrors) {
    let mut seen: Vec<&str> = Vec::new();
    for (i, policy) in container.list("resizePolicy").iter().enumerate() {
        let (resource, restart) = (policy.text("resourceName"), policy.text("restartPolicy"));
        if seen.contains(&resource) {
            errors.duplicate(&path.index(i), resource);
        }
        seen.push(resource);
        if resource.is_empty() {
            errors.required(path, "");
        } else if !matches!(resource, "cpu" | "memory") {
            errors.not_supported(path, resource, &["cpu", "memory"]);
        }
        if restart.is_empty() {
            errors.required(path, "");
        } else if !matches!(restart, "NotRequired" | "RestartContainer") {
            errors.not_supported(path, restart, &["NotRequired", "RestartContainer"]);
        }
        if restart_policy == "Never" && restart != "NotRequired" {
            errors.invalid(path, restart, "must be 'NotRequired' when pod `restartPolicy` is 'Never'");
        }
    }
}

fn restart_rules(container: &Value, path: &Path, errors: &mut FieldErrors) {
    let rules = container.list("restartPolicyRules");
    match container.text("restartPolicy") {
        "" if !rules.is_empty() => {
            let detail = "must specify restartPolicy when restart rules are used";
            errors.required(&path.child("restartPolicy"), detail);
        }
        "" | "Always" | "Never" | "OnFailure" => {}
        other => errors.not_supported(&path.child("restartPolicy"), other, &["Always", "Never", "OnFailure"]),
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > 20 {
        errors.too_many(&path, rules.len(), 20);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        let action = rule.text("action");
        if !matches!(action, "Restart" | "RestartAllContainers") {
            errors.not_supported(&path.child("action"), action, &["Restart", "RestartAllContainers"]);
        }
        let Some(codes) = rule.field("exitCodes") else {
            errors.required(&path.child("exitCodes"), "must be specified");
            continue;
        };
        let path = path.child("exitCodes");
        let operator = codes.text("operator");
        if !matches!(operator, "In" | "NotIn") {
            errors.not_supported(&path.child("operator"), operator, &["In", "NotIn"]);
        }
        if codes.list("values").len() > 255 {
            errors.too_many(&path.child("values"), codes.list("values").len(), 255);
        }
    }
}
