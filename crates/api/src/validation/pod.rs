//! Rules for Pods: what a new Pod may say.

use serde_json::Value;

use super::container::{self, PodFacts, required_one_of};
use super::meta::object_meta;
use super::security::{self, HostUsersRules, is_host_users, one_of};
use super::{FieldErrors, Path, resource, scheduling, volume, volume_mapping};
use crate::access::{Access, metadata, spec};
use crate::admission::MIRROR_ANNOTATION;
use crate::feature::Feature;
use crate::kind::Ctx;
use crate::name::{dns_label_faults, dns_subdomain_faults, dns_subdomain_underscore_faults, range_faults};

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;
const MAX_HOSTNAME: usize = 64;

/// Rules for a new Pod.
pub fn pod(pod: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = metadata_and_spec(pod, rules(None, ctx));
    let path = Path::new("spec");
    let spec = spec(pod);
    if !spec.list("ephemeralContainers").is_empty() {
        errors.forbidden(&path.child("ephemeralContainers"), "cannot be set on create");
    }
    if !spec.text("nodeName").is_empty() && !spec.list("schedulingGates").is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.forbidden(&path.child("nodeName"), detail);
    }
    errors
}

/// What a Pod may do beside `hostUsers: false`: by feature gate, or because the stored Pod does so already.
pub(super) fn rules(old: Option<&Value>, ctx: &Ctx) -> HostUsersRules {
    let old = old.map(spec).filter(|s| !is_host_users(s));
    let has_devices = |spec: &Value| {
        let mut containers = security::CONTAINER_LISTS.iter().flat_map(|l| spec.list(l));
        containers.any(|c| !c.list("volumeDevices").is_empty())
    };
    HostUsersRules {
        allows_host_network: ctx.gates.is_enabled(Feature::UserNamespacesHostNetworkSupport)
            || old.is_some_and(|s| s.is_true("hostNetwork")),
        allows_volume_devices: old.is_some_and(has_devices),
    }
}

/// Rules that hold for new and changed Pods alike.
pub(super) fn metadata_and_spec(pod: &Value, rules: HostUsersRules) -> FieldErrors {
    let mut errors = object_meta(pod, true, dns_subdomain_faults);
    annotations(pod, &mut errors);
    let path = Path::new("spec");
    let spec = spec(pod);
    pod_spec(spec, rules, &path, &mut errors);
    if spec.text("serviceAccountName").is_empty() {
        token_without_account(spec, &path, &mut errors);
    }
    for list in ["containers", "initContainers"] {
        for (i, container) in spec.list(list).iter().enumerate() {
            container::image_whitespace(container, &path.child(list).index(i), &mut errors);
        }
    }
    errors
}

fn annotations(pod: &Value, errors: &mut FieldErrors) {
    let path = Path::new("metadata").child("annotations");
    for (key, value) in metadata(pod).entries("annotations") {
        match key {
            MIRROR_ANNOTATION if spec(pod).text("nodeName").is_empty() => {
                let detail = "must set spec.nodeName if mirror pod annotation is set";
                errors.invalid(&path.key(key), value, detail);
            }
            "controller.kubernetes.io/pod-deletion-cost" if value.parse::<i32>().is_err() => {
                errors.invalid(&path.key(key), value, "must be a 32bit integer");
            }
            _ => {}
        }
    }
    volume_mapping::validate(pod, &path, errors);
}

fn token_without_account(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        let sources = volume.field("projected").map(|p| p.list("sources")).unwrap_or_default();
        for (j, source) in sources.iter().enumerate() {
            if source.field("serviceAccountToken").is_some() {
                let at = path.child("volumes").index(i).child("projected").child("sources").index(j);
                let detail = "must not be specified when serviceAccountName is not set";
                errors.forbidden(&at.child("serviceAccountToken"), detail);
            }
        }
    }
}

/// Rules for a Pod's spec, also that of a template.
pub(super) fn pod_spec(spec: &Value, rules: HostUsersRules, path: &Path, errors: &mut FieldErrors) {
    let grace = spec.int("terminationGracePeriodSeconds");
    if grace.is_none() {
        errors.required(&path.child("terminationGracePeriodSeconds"), "");
    }
    let facts = PodFacts {
        volumes: volume::volumes(spec.list("volumes"), &path.child("volumes"), errors),
        is_host_users: is_host_users(spec),
        grace,
        restart_policy: spec.text("restartPolicy"),
        os: spec.field("os").map_or("", |os| os.text("name")),
    };
    container::containers(spec, &facts, &path.child("containers"), errors);
    container::init_containers(spec, &facts, &path.child("initContainers"), errors);
    container::ephemeral_containers(spec, &facts, &path.child("ephemeralContainers"), errors);
    if let Some(resources) = spec.field("resources") {
        resource::container_resources(resources, &path.child("resources"), errors);
    }
    host_network_ports(spec, path, errors);
    required_one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], path, errors);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    required_one_of(spec, "dnsPolicy", &policies, path, errors);
    super::meta::labels(spec, "nodeSelector", &path.child("nodeSelector"), errors);
    security::pod_context(spec, &path.child("securityContext"), errors);
    if let Some(affinity) = spec.field("affinity") {
        scheduling::affinity(affinity, &path.child("affinity"), errors);
    }
    dns_config(spec, &path.child("dnsConfig"), errors);
    scheduling::readiness_gates(spec.list("readinessGates"), &path.child("readinessGates"), errors);
    scheduling::scheduling_gates(spec.list("schedulingGates"), &path.child("schedulingGates"), errors);
    let constraints = spec.list("topologySpreadConstraints");
    scheduling::topology_spread(constraints, &path.child("topologySpreadConstraints"), errors);
    security::host_users(spec, rules, path, errors);
    hostname_override(spec, path, errors);
    names(spec, path, errors);
    if let Some(seconds) = spec.int("activeDeadlineSeconds") {
        for fault in range_faults(seconds, 1, i64::from(i32::MAX)) {
            errors.invalid(&path.child("activeDeadlineSeconds"), seconds, fault);
        }
    }
    for name in ["hostname", "subdomain"] {
        let value = spec.text(name);
        for fault in dns_label_faults(value).into_iter().filter(|_| !value.is_empty()) {
            errors.invalid(&path.child(name), value, fault);
        }
    }
    scheduling::tolerations(spec.list("tolerations"), &path.child("tolerations"), errors);
    host_aliases(spec, &path.child("hostAliases"), errors);
    class_names(spec, path, errors);
    os(spec, path, errors);
    file_keys(spec, path, errors);
}

fn host_network_ports(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    if !spec.is_true("hostNetwork") {
        return;
    }
    for (i, container) in spec.list("containers").iter().enumerate() {
        for (j, port) in container.list("ports").iter().enumerate() {
            let (host, own) =
                (port.int("hostPort").unwrap_or_default(), port.int("containerPort").unwrap_or_default());
            if host != own {
                let at = path.child("containers").index(i).child("ports").index(j).child("hostPort");
                errors.invalid(&at, host, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

fn dns_config(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let is_none = spec.text("dnsPolicy") == "None";
    let Some(config) = spec.field("dnsConfig") else {
        if is_none {
            errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None");
        }
        return;
    };
    let (servers, searches) = (config.list("nameservers"), config.list("searches"));
    if is_none && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        return errors.required(&path.child("nameservers"), detail);
    }
    if servers.len() > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.invalid(&path.child("nameservers"), servers, detail);
    }
    for (i, server) in servers.iter().enumerate() {
        ip(server.as_str().unwrap_or_default(), &path.child("nameservers").index(i), errors);
    }
    if searches.len() > MAX_SEARCHES {
        let detail = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.invalid(&path.child("searches"), searches, detail);
    }
    let texts: Vec<&str> = searches.iter().filter_map(Value::as_str).collect();
    if texts.join(" ").len() > MAX_SEARCH_CHARS {
        let detail = format!(
            "must not have more than {MAX_SEARCH_CHARS} characters (including spaces) in the search list"
        );
        errors.invalid(&path.child("searches"), searches, detail);
    }
    for (i, search) in texts.into_iter().enumerate().filter(|(_, s)| *s != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        for fault in dns_subdomain_underscore_faults(search) {
            errors.invalid(&path.child("searches").index(i), search, fault);
        }
    }
    for (i, option) in config.list("options").iter().enumerate() {
        if option.text("name").is_empty() {
            errors.required(&path.child("options").index(i), "must not be empty");
        }
    }
}

/// An IP address of either family.
pub(super) fn ip(address: &str, path: &Path, errors: &mut FieldErrors) {
    if address.parse::<std::net::IpAddr>().is_err() {
        errors.invalid(path, address, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

fn hostname_override(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let Some(name) = spec.field("hostnameOverride").and_then(Value::as_str) else { return };
    let path = path.child("hostnameOverride");
    if spec.is_true("setHostnameAsFQDN") {
        errors.forbidden(&path, "may not be specified when setHostnameAsFQDN is true");
    }
    if spec.is_true("hostNetwork") {
        errors.forbidden(&path, "may not be specified when hostNetwork is true");
    }
    if name.len() > MAX_HOSTNAME {
        errors.too_long(&path, MAX_HOSTNAME);
    }
    for fault in dns_subdomain_faults(name) {
        errors.invalid(&path, name, fault);
    }
}

fn names(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    for name in ["serviceAccountName", "nodeName"] {
        let value = spec.text(name);
        for fault in dns_subdomain_faults(value).into_iter().filter(|_| !value.is_empty()) {
            errors.invalid(&path.child(name), value, fault);
        }
    }
}

fn host_aliases(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, alias) in spec.list("hostAliases").iter().enumerate() {
        let path = path.index(i);
        ip(alias.text("ip"), &path.child("ip"), errors);
        for (j, name) in alias.list("hostnames").iter().filter_map(Value::as_str).enumerate() {
            for fault in dns_subdomain_faults(name) {
                errors.invalid(&path.child("hostnames").index(j), name, fault);
            }
        }
    }
}

fn class_names(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let class = spec.text("priorityClassName");
    for fault in dns_subdomain_faults(class).into_iter().filter(|_| !class.is_empty()) {
        errors.invalid(&path.child("priorityClassName"), class, fault);
    }
    if let Some(class) = spec.field("runtimeClassName").and_then(Value::as_str) {
        for fault in dns_subdomain_faults(class) {
            errors.invalid(&path.child("runtimeClassName"), class, fault);
        }
    }
    if let Some(policy) = spec.field("preemptionPolicy").and_then(Value::as_str)
        && !matches!(policy, "PreemptLowerPriority" | "Never")
    {
        let supported = &["PreemptLowerPriority", "Never"];
        errors.not_supported(&path.child("preemptionPolicy"), policy, supported);
    }
    for (name, amount) in spec.map("overhead").into_iter().flatten() {
        resource::quantity_value(name, amount, &path.child("overhead").key(name), errors);
    }
}

fn os(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let Some(os) = spec.field("os") else { return };
    let at = path.child("os");
    match os.text("name") {
        "" => errors.required(&at.child("name"), ""),
        "windows" if spec.field("hostUsers").is_some() => {
            errors.forbidden(&path.child("hostUsers"), "cannot be set for a windows pod");
        }
        _ => one_of(os, "name", &["linux", "windows"], &at, errors),
    }
}

fn file_keys(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    for list in security::CONTAINER_LISTS {
        for (i, container) in spec.list(list).iter().enumerate() {
            for (j, variable) in container.list("env").iter().enumerate() {
                let Some(name) = variable.pointer("/valueFrom/fileKeyRef").map(|r| r.text("volumeName"))
                else {
                    continue;
                };
                let at = path.child(list).index(i).child("env").index(j);
                let at = at.child("valueFrom").child("fileKeyRef").child("volumeName");
                match spec.list("volumes").iter().find(|v| v.text("name") == name) {
                    None => errors.not_found(&at, name),
                    Some(v) if v.field("emptyDir").is_none() => {
                        errors.invalid(&at, name, "referenced volume must be of type emptyDir");
                    }
                    Some(_) => {}
                }
            }
        }
    }
}
