//! Rules for probes and lifecycle hooks.

use serde_json::Value;

use super::meta::non_negative;
use super::{FieldErrors, Path};
use crate::access::Access;
use crate::name::{http_header_faults, port_name_faults, range_faults};

/// Which probe it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Liveness,
    Readiness,
    Startup,
}

const PROBE_HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];
const HOOK_HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "sleep"];

/// The probes of a container, those that are there.
pub(crate) fn probes(container: &Value, path: &Path, errors: &mut FieldErrors) {
    for (name, role) in [
        ("livenessProbe", Role::Liveness),
        ("readinessProbe", Role::Readiness),
        ("startupProbe", Role::Startup),
    ] {
        if let Some(value) = container.field(name) {
            probe(value, role, &path.child(name), errors);
        }
    }
}

fn probe(probe: &Value, role: Role, path: &Path, errors: &mut FieldErrors) {
    handler(probe, PROBE_HANDLERS, None, path, errors);
    for name in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        non_negative(probe.int(name), &path.child(name), errors);
    }
    let grace = probe.int("terminationGracePeriodSeconds");
    let grace_path = path.child("terminationGracePeriodSeconds");
    if let Some(seconds) = grace.filter(|s| *s <= 0) {
        errors.invalid(&grace_path, seconds, "must be greater than 0");
    }
    match role {
        Role::Readiness => {
            if let Some(seconds) = grace {
                errors.invalid(&grace_path, seconds, "must not be set for readinessProbes");
            }
        }
        Role::Liveness | Role::Startup => {
            if let Some(threshold) = probe.int("successThreshold").filter(|t| *t != 1) {
                errors.invalid(&path.child("successThreshold"), threshold, "must be 1");
            }
        }
    }
}

/// The hooks of a container. `grace` is the Pod's termination grace period in seconds.
pub(crate) fn lifecycle(
    lifecycle: &Value,
    grace: Option<i64>,
    os: &str,
    path: &Path,
    errors: &mut FieldErrors,
) {
    for name in ["postStart", "preStop"] {
        if let Some(hook) = lifecycle.field(name) {
            handler(hook, HOOK_HANDLERS, grace, &path.child(name), errors);
        }
    }
    if lifecycle.field("stopSignal").is_some() && os.is_empty() {
        errors
            .forbidden(&path.child("stopSignal"), "may not be set for containers with empty `spec.os.name`");
    }
}

fn handler(value: &Value, allowed: &[&str], grace: Option<i64>, path: &Path, errors: &mut FieldErrors) {
    let mut is_first = true;
    for name in allowed {
        let Some(action) = value.field(name) else { continue };
        let path = path.child(name);
        if !is_first {
            errors.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        is_first = false;
        match *name {
            "exec" if action.list("command").is_empty() => errors.required(&path.child("command"), ""),
            "httpGet" => http_get(action, &path, errors),
            "tcpSocket" | "grpc" => port(action.field("port"), &path.child("port"), errors),
            "sleep" => sleep(action, grace, &path, errors),
            _ => {}
        }
    }
    if is_first {
        errors.required(path, "must specify a handler type");
    }
}

fn http_get(action: &Value, path: &Path, errors: &mut FieldErrors) {
    if action.text("path").is_empty() {
        errors.required(&path.child("path"), "");
    }
    port(action.field("port"), &path.child("port"), errors);
    let scheme = action.text("scheme");
    if !matches!(scheme, "HTTP" | "HTTPS") {
        errors.not_supported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]);
    }
    for header in action.list("httpHeaders") {
        for fault in http_header_faults(header.text("name")) {
            errors.invalid(&path.child("httpHeaders"), header.text("name"), fault);
        }
    }
}

fn port(port: Option<&Value>, path: &Path, errors: &mut FieldErrors) {
    match port {
        Some(Value::String(name)) => {
            for fault in port_name_faults(name) {
                errors.invalid(path, name.as_str(), fault);
            }
        }
        other => {
            let number = other.and_then(Value::as_i64).unwrap_or_default();
            for fault in range_faults(number, 1, 65535) {
                errors.invalid(path, number, fault);
            }
        }
    }
}

fn sleep(action: &Value, grace: Option<i64>, path: &Path, errors: &mut FieldErrors) {
    let seconds = action.int("seconds").unwrap_or_default();
    if let Some(grace) = grace
        && !(0..=grace).contains(&seconds)
    {
        let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.invalid(path, seconds, detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(container: &Value) -> String {
        let mut errors = FieldErrors::new();
        probes(container, &Path::new("c"), &mut errors);
        if errors.is_empty() { String::new() } else { errors.to_string() }
    }

    #[test]
    fn a_probe_has_exactly_one_handler() {
        assert_eq!(check(&json!({"readinessProbe": {"tcpSocket": {"port": 80}}})), "");
        assert_eq!(
            check(&json!({"readinessProbe": {}})),
            "c.readinessProbe: Required value: must specify a handler type"
        );
        assert_eq!(
            check(&json!({"readinessProbe": {"exec": {"command": ["x"]}, "tcpSocket": {"port": 80}}})),
            "c.readinessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type"
        );
        assert_eq!(
            check(&json!({"livenessProbe": {"exec": {}, "successThreshold": 2}})),
            "[c.livenessProbe.exec.command: Required value, c.livenessProbe.successThreshold: Invalid value: 2: must be 1]"
        );
    }

    #[test]
    fn ports_are_numbers_or_names() {
        assert_eq!(
            check(&json!({"startupProbe": {"httpGet": {"path": "/", "port": 70000, "scheme": "HTTP"}}})),
            "c.startupProbe.httpGet.port: Invalid value: 70000: must be between 1 and 65535, inclusive"
        );
        assert_eq!(
            check(&json!({"startupProbe": {"httpGet": {"path": "/", "port": "web", "scheme": "HTTP"}}})),
            ""
        );
        assert_eq!(
            check(&json!({"startupProbe": {"httpGet": {"path": "/", "port": 1, "scheme": "FTP"}}})),
            "c.startupProbe.httpGet.scheme: Unsupported value: \"FTP\": supported values: \"HTTP\", \"HTTPS\""
        );
    }

    #[test]
    fn a_hook_may_sleep_within_the_grace_period() {
        let mut errors = FieldErrors::new();
        lifecycle(
            &json!({"preStop": {"sleep": {"seconds": 31}}}),
            Some(30),
            "",
            &Path::new("l"),
            &mut errors,
        );
        assert_eq!(
            errors.to_string(),
            "l.preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)"
        );
    }
}
