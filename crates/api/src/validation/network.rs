//! Rules for Ingresses, their classes and network policies.

use std::net::IpAddr;

use serde_json::Value;

use super::meta::{object_meta, object_meta_update};
use super::rule::immutables;
use super::service::cidr;
use super::volume::label_selector;
use super::{FieldErrors, Path};
use crate::access::{Access, spec};
use crate::kind::Ctx;
use crate::name::{dns_label_faults, dns_subdomain_faults, port_name_faults, range_faults};

static NULL: Value = Value::Null;

fn field<'a>(object: &'a Value, name: &str) -> &'a Value {
    object.field(name).unwrap_or(&NULL)
}

/// Rules for a new Ingress.
pub fn ingress(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    ingress_spec(spec(object), &mut errors);
    errors
}

fn ingress_spec(spec: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec");
    if spec.list("rules").is_empty() && spec.field("defaultBackend").is_none() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.invalid(&path, spec.list("rules"), detail);
    }
    if let Some(backend) = spec.field("defaultBackend") {
        backend_rules(backend, &path.child("defaultBackend"), errors);
    }
    for (i, rule) in spec.list("rules").iter().enumerate() {
        let path = path.child("rules").index(i);
        host(rule.text("host"), &path.child("host"), errors);
        if let Some(http) = rule.field("http") {
            paths(http.list("paths"), &path.child("http").child("paths"), errors);
        }
    }
    for (i, tls) in spec.list("tls").iter().enumerate() {
        let path = path.child("tls").index(i).child("hosts");
        for (j, name) in tls.list("hosts").iter().filter_map(Value::as_str).enumerate() {
            host(name, &path.index(j), errors);
        }
    }
    if let Some(class) = spec.field("ingressClassName").and_then(Value::as_str) {
        for fault in dns_subdomain_faults(class) {
            errors.invalid(&path.child("ingressClassName"), class, fault);
        }
    }
}

/// A host name, with a `*` for its first label if need be; empty means all.
fn host(name: &str, path: &Path, errors: &mut FieldErrors) {
    if name.is_empty() {
        return;
    }
    if name.parse::<IpAddr>().is_ok() {
        errors.invalid(path, name, "must be a DNS name, not an IP address");
    }
    for fault in dns_subdomain_faults(name.strip_prefix("*.").unwrap_or(name)) {
        errors.invalid(path, name, fault);
    }
}

fn paths(paths: &[Value], at: &Path, errors: &mut FieldErrors) {
    if paths.is_empty() {
        errors.required(at, "");
    }
    for (i, one) in paths.iter().enumerate() {
        let at = at.index(i);
        let text = one.text("path");
        match one.text("pathType") {
            "" => errors.required(&at.child("pathType"), "pathType must be specified"),
            "Exact" | "Prefix" => {
                if !text.starts_with('/') {
                    errors.invalid(&at.child("path"), text, "must be an absolute path");
                }
                for part in ["//", "/./", "/../", "%2f", "%2F"].into_iter().filter(|part| text.contains(part))
                {
                    errors.invalid(&at.child("path"), text, format!("must not contain '{part}'"));
                }
                for part in ["/..", "/."].into_iter().filter(|part| text.ends_with(part)) {
                    errors.invalid(&at.child("path"), text, format!("cannot end with '{part}'"));
                }
            }
            "ImplementationSpecific" => {
                if !text.is_empty() && !text.starts_with('/') {
                    errors.invalid(&at.child("path"), text, "must be an absolute path");
                }
            }
            other => {
                let known = ["Exact", "ImplementationSpecific", "Prefix"];
                errors.not_supported(&at.child("pathType"), other, &known);
            }
        }
        backend_rules(field(one, "backend"), &at.child("backend"), errors);
    }
}

fn backend_rules(backend: &Value, path: &Path, errors: &mut FieldErrors) {
    match (backend.field("resource"), backend.field("service")) {
        (Some(_), Some(_)) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (None, None) => errors.invalid(path, "", "resource or service backend is required"),
        (Some(_), None) => {}
        (None, Some(service)) => {
            let at = path.child("service");
            let name = service.text("name");
            if name.is_empty() {
                errors.required(&at.child("name"), "");
            } else {
                for fault in dns_label_faults(name) {
                    errors.invalid(&at.child("name"), name, fault);
                }
            }
            let port = field(service, "port");
            match (port.text("name"), port.int("number").unwrap_or_default()) {
                ("", 0) => errors.required(path, "port name or number is required"),
                (name, 0) => {
                    for fault in port_name_faults(name) {
                        errors.invalid(&at.child("port").child("name"), name, fault);
                    }
                }
                ("", number) => {
                    for fault in range_faults(number, 1, 65_535) {
                        errors.invalid(&at.child("port").child("number"), number, fault);
                    }
                }
                _ => errors.invalid(path, "", "cannot set both port name & port number"),
            }
        }
    }
}

/// Rules for a changed Ingress.
pub fn ingress_update(new: &Value, old: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    ingress_spec(spec(new), &mut errors);
    errors
}

/// Rules for a new `IngressClass`.
pub fn ingress_class(object: &Value, _ctx: &Ctx) -> FieldErrors {
    const LONGEST: usize = 250;
    let mut errors = object_meta(object, false, dns_subdomain_faults);
    let path = Path::new("spec");
    let controller = spec(object).text("controller");
    if controller.len() > LONGEST {
        errors.too_long(&path.child("controller"), LONGEST);
    }
    if controller.is_empty() {
        errors.required(&path.child("controller"), "");
    } else if !controller.contains('/') {
        errors.invalid(
            &path.child("controller"),
            controller,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        );
    }
    if let Some(to) = spec(object).field("parameters") {
        let path = path.child("parameters");
        for name in ["kind", "name"] {
            super::rule::required(to, name, &path, &mut errors);
        }
        match (to.text("scope"), to.text("namespace")) {
            ("Namespace", "") => {
                errors.required(&path.child("namespace"), "`parameters.scope` is set to 'Namespace'");
            }
            ("Cluster", namespace) if !namespace.is_empty() => {
                errors.forbidden(&path.child("namespace"), "`parameters.scope` is set to 'Cluster'");
            }
            ("Namespace" | "Cluster", _) => {}
            (other, _) => errors.not_supported(&path.child("scope"), other, &["Cluster", "Namespace"]),
        }
    }
    errors
}

/// Rules for a changed `IngressClass`: its controller stays.
pub fn ingress_class_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(ingress_class(new, ctx));
    immutables(spec(new), spec(old), &["controller"], &Path::new("spec"), &mut errors);
    errors
}

/// Rules for a new `NetworkPolicy`.
pub fn policy(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, true, dns_subdomain_faults);
    let (path, spec) = (Path::new("spec"), spec(object));
    label_selector(field(spec, "podSelector"), &path.child("podSelector"), &mut errors);
    for (list, peers) in [("ingress", "from"), ("egress", "to")] {
        for (i, rule) in spec.list(list).iter().enumerate() {
            let path = path.child(list).index(i);
            for (j, port) in rule.list("ports").iter().enumerate() {
                policy_port(port, &path.child("ports").index(j), &mut errors);
            }
            for (j, peer) in rule.list(peers).iter().enumerate() {
                peer_rules(peer, &path.child(peers).index(j), &mut errors);
            }
        }
    }
    let kinds = spec.list("policyTypes");
    if kinds.len() > 2 {
        errors.invalid(&path.child("policyTypes"), kinds, "may not specify more than two policyTypes");
    }
    for (i, kind) in kinds.iter().enumerate().filter(|(_, kind)| *kind != "Ingress" && *kind != "Egress") {
        errors.not_supported(&path.child("policyTypes").index(i), kind.clone(), &["Ingress", "Egress"]);
    }
    errors
}

fn policy_port(port: &Value, path: &Path, errors: &mut FieldErrors) {
    if !matches!(port.text("protocol"), "TCP" | "UDP" | "SCTP") {
        errors.not_supported(&path.child("protocol"), port.text("protocol"), &["TCP", "UDP", "SCTP"]);
    }
    let end = port.int("endPort");
    match port.field("port") {
        Some(Value::String(name)) => {
            for fault in port_name_faults(name) {
                errors.invalid(&path.child("port"), name.as_str(), fault);
            }
            if let Some(end) = end {
                errors.invalid(
                    &path.child("endPort"),
                    end,
                    "may not be specified when `port` is non-numeric",
                );
            }
        }
        Some(number) => {
            let number = number.as_i64().unwrap_or_default();
            for fault in range_faults(number, 1, 65_535) {
                errors.invalid(&path.child("port"), number, fault);
            }
            if end.is_some_and(|end| end < number) {
                errors.invalid(&path.child("endPort"), number, "must be greater than or equal to `port`");
            }
            for (end, fault) in end
                .into_iter()
                .flat_map(|end| range_faults(end, 1, 65_535).into_iter().map(move |f| (end, f)))
            {
                errors.invalid(&path.child("endPort"), end, fault);
            }
        }
        None => {
            if let Some(end) = end {
                errors.invalid(
                    &path.child("endPort"),
                    end,
                    "may not be specified when `port` is not specified",
                );
            }
        }
    }
}

fn peer_rules(peer: &Value, path: &Path, errors: &mut FieldErrors) {
    let names = ["podSelector", "namespaceSelector", "ipBlock"];
    let given: Vec<&str> = names.into_iter().filter(|name| peer.field(name).is_some()).collect();
    for name in ["podSelector", "namespaceSelector"] {
        label_selector(field(peer, name), &path.child(name), errors);
    }
    if given.is_empty() {
        errors.required(path, "must specify a peer");
    } else if given.len() > 1 && given.contains(&"ipBlock") {
        errors.forbidden(path, "may not specify both ipBlock and another peer");
    }
    if let Some(block) = peer.field("ipBlock") {
        let path = path.child("ipBlock");
        if block.text("cidr").is_empty() {
            errors.required(&path.child("cidr"), "");
        } else {
            cidr(block.text("cidr"), &path.child("cidr"), errors);
        }
        for (i, except) in block.list("except").iter().filter_map(Value::as_str).enumerate() {
            cidr(except, &path.child("except").index(i), errors);
        }
    }
}

/// Rules for a changed `NetworkPolicy`.
pub fn policy_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta_update(new, old);
    errors.extend(policy(new, ctx));
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feature::Gates;
    use jiff::Timestamp;
    use serde_json::json;

    fn ctx() -> Ctx {
        Ctx { now: Timestamp::UNIX_EPOCH, gates: Gates::default() }
    }

    fn of(rules: fn(&Value, &Ctx) -> FieldErrors, spec: &Value) -> String {
        rules(&json!({"metadata": {"name": "a", "namespace": "d"}, "spec": spec}), &ctx()).to_string()
    }

    #[test]
    fn an_ingress_leads_somewhere() {
        let backend = json!({"service": {"name": "s", "port": {"number": 80}}});
        let path = |kind: &str, path: &str| json!({"rules": [{"host": "*.example.org", "http": {"paths": [{"path": path, "pathType": kind, "backend": backend}]}}]});
        assert_eq!(of(ingress, &path("Prefix", "/a")), "[]");
        assert_eq!(
            of(ingress, &path("Exact", "a")),
            "spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path"
        );
        assert_eq!(
            of(ingress, &json!({"defaultBackend": {"service": {"name": "s"}}})),
            "spec.defaultBackend: Required value: port name or number is required"
        );
        assert!(of(ingress, &json!({})).ends_with("either `defaultBackend` or `rules` must be specified"));
    }

    #[test]
    fn a_policy_names_peers_and_ports() {
        let with = |peer: Value, port: Value| json!({"podSelector": {}, "ingress": [{"from": [peer], "ports": [port]}]});
        let port = json!({"protocol": "TCP", "port": 80, "endPort": 90});
        assert_eq!(of(policy, &with(json!({"ipBlock": {"cidr": "10.0.0.0/8"}}), port.clone())), "[]");
        assert_eq!(
            of(policy, &with(json!({}), port)),
            "spec.ingress[0].from[0]: Required value: must specify a peer"
        );
        assert_eq!(
            of(
                policy,
                &with(json!({"podSelector": {}}), json!({"protocol": "TCP", "port": "http", "endPort": 90}))
            ),
            "spec.ingress[0].ports[0].endPort: Invalid value: 90: may not be specified when `port` is non-numeric"
        );
    }
}
