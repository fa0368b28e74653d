//! Rules for certificate requests: what they ask for, and who may write which part of their status.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::meta::{object_meta, object_meta_update};
use super::{FieldErrors, Path, semantically_equal};
use crate::access::{Access, spec, status};
use crate::kind::Ctx;
use crate::name::{dns_label_faults, dns_subdomain_faults};

/// The shortest life that a request may ask for, in seconds.
const SHORTEST: i64 = 600;
const LEGACY_SIGNER: &str = "kubernetes.io/legacy-unknown";
const PEM_TYPE: &str = "-----BEGIN CERTIFICATE REQUEST-----";

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// Rules for a new request.
pub fn request(object: &Value, _ctx: &Ctx) -> FieldErrors {
    let mut errors = object_meta(object, false, |_| Vec::new());
    let path = Path::new("spec");
    let spec = spec(object);
    let bytes = STANDARD.decode(spec.text("request")).unwrap_or_default();
    if !String::from_utf8_lossy(&bytes).contains(PEM_TYPE) {
        let detail = "PEM block type must be CERTIFICATE REQUEST";
        errors.invalid(&path.child("request"), spec.text("request"), detail);
    }
    usages(spec.list("usages"), &path.child("usages"), &mut errors);
    if spec.text("signerName") == LEGACY_SIGNER {
        let detail = "the legacy signerName is not allowed via this API version";
        errors.invalid(&path.child("signerName"), LEGACY_SIGNER, detail);
    } else {
        signer_name(spec.text("signerName"), &path.child("signerName"), &mut errors);
    }
    if let Some(seconds) = spec.int("expirationSeconds").filter(|seconds| *seconds < SHORTEST) {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid(&path.child("expirationSeconds"), seconds, detail);
    }
    conditions(status(object).list("conditions"), &mut errors);
    errors
}

fn usages(usages: &[Value], path: &Path, errors: &mut FieldErrors) {
    if usages.is_empty() {
        errors.required(path, "");
    }
    for (i, usage) in usages.iter().enumerate() {
        if !USAGES.contains(&usage.as_str().unwrap_or_default()) {
            errors.not_supported(&path.index(i), usage.clone(), USAGES);
        }
        if usages.iter().take(i).any(|earlier| earlier == usage) {
            errors.duplicate(&path.index(i), usage.clone());
        }
    }
}

/// `domain/path`, the domain fully qualified.
fn signer_name(name: &str, path: &Path, errors: &mut FieldErrors) {
    let Some((domain, rest)) = name.split_once('/') else {
        if name.is_empty() {
            errors.required(path, "");
        } else {
            errors.invalid(
                path,
                name,
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            );
        }
        return;
    };
    for fault in dns_subdomain_faults(domain) {
        errors.invalid(path, domain, fault);
    }
    if domain.split('.').count() < 2 {
        errors.invalid(path, domain, "should be a domain with at least two segments separated by dots");
    }
    for part in rest.split('.') {
        for fault in dns_label_faults(part) {
            errors.invalid(path, rest, fault);
        }
    }
}

fn conditions(conditions: &[Value], errors: &mut FieldErrors) {
    let path = Path::new("status").child("conditions");
    for (i, condition) in conditions.iter().enumerate() {
        let kind = condition.text("type");
        if kind.is_empty() {
            errors.required(&path.index(i).child("type"), "");
        }
        let allowed: &[&str] = match kind {
            "Approved" | "Denied" | "Failed" => &["True"],
            _ => &["False", "True", "Unknown"],
        };
        let state = condition.text("status");
        if state.is_empty() {
            errors.required(&path.index(i).child("status"), "");
        } else if !allowed.contains(&state) {
            errors.not_supported(&path.index(i).child("status"), state, allowed);
        }
        let has_earlier = |wanted: &str| conditions.iter().take(i).any(|c| c.text("type") == wanted);
        if (kind == "Approved" && has_earlier("Denied")) || (kind == "Denied" && has_earlier("Approved")) {
            errors.invalid(&path, kind, "Approved and Denied conditions are mutually exclusive");
        }
        if has_earlier(kind) {
            errors.duplicate(&path.index(i).child("type"), kind);
        }
    }
}

/// Which part of the status a write may change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writes {
    Nothing,
    Certificate,
    Approval,
}

/// Rules for a changed request.
pub fn request_update(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    change(new, old, ctx, Writes::Nothing)
}

/// Rules for a write to `/status`: the certificate is set once.
pub fn request_status(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    change(new, old, ctx, Writes::Certificate)
}

/// Rules for a write to `/approval`: the decision is made once.
pub fn approval(new: &Value, old: &Value, ctx: &Ctx) -> FieldErrors {
    change(new, old, ctx, Writes::Approval)
}

fn change(new: &Value, old: &Value, ctx: &Ctx, writes: Writes) -> FieldErrors {
    let mut errors = request(new, ctx);
    let path = Path::new("status").child("conditions");
    let of = |object: &Value, kind: &str| -> Vec<Value> {
        status(object).list("conditions").iter().filter(|c| c.text("type") == kind).cloned().collect()
    };
    for kind in ["Approved", "Denied", "Failed"] {
        if of(new, kind).len() < of(old, kind).len() {
            errors.forbidden(&path, format!("updates may not remove a condition of type \"{kind}\""));
        }
    }
    for kind in ["Approved", "Denied"].into_iter().filter(|_| writes != Writes::Approval) {
        let (new, old) = (of(new, kind), of(old, kind));
        if new.len() > old.len() {
            errors.forbidden(&path, format!("updates may not add a condition of type \"{kind}\""));
        } else if new.len() == old.len() && !semantically_equal(&new.into(), &old.into()) {
            errors.forbidden(&path, format!("updates may not modify a condition of type \"{kind}\""));
        }
    }
    certificate(status(new).text("certificate"), status(old).text("certificate"), writes, &mut errors);
    errors.extend(object_meta_update(new, old));
    errors
}

fn certificate(new: &str, old: &str, writes: Writes, errors: &mut FieldErrors) {
    let path = Path::new("status").child("certificate");
    if new == old {
    } else if writes != Writes::Certificate {
        errors.forbidden(&path, "updates may not set certificate content");
    } else if !old.is_empty() {
        errors.forbidden(&path, "updates may not modify existing certificate content");
    }
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

    fn a_request() -> Value {
        json!({"metadata": {"name": "r", "resourceVersion": "1"}, "spec": {"signerName": "example.com/a",
            "usages": ["client auth"], "request": STANDARD.encode(PEM_TYPE)}})
    }

    #[test]
    fn a_request_names_a_signer_and_usages() {
        assert_eq!(request(&a_request(), &ctx()).to_string(), "[]");
        let bad = json!({"metadata": {"name": "r"}, "spec": {"signerName": "a", "usages": ["fly"],
            "request": "eA==", "expirationSeconds": 5}});
        let text = request(&bad, &ctx()).to_string();
        for part in [
            "spec.request: Invalid value: \"eA==\": PEM block type must be CERTIFICATE REQUEST",
            "spec.usages[0]: Unsupported value: \"fly\"",
            "spec.signerName: Invalid value: \"a\": must be a fully qualified",
            "spec.expirationSeconds: Invalid value: 5: may not specify a duration less than 600 seconds (10 minutes)",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn only_approval_decides_and_only_status_certifies() {
        let mut approved = a_request();
        approved["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]});
        assert_eq!(approval(&approved, &a_request(), &ctx()).to_string(), "[]");
        assert_eq!(
            request_status(&approved, &a_request(), &ctx()).to_string(),
            "status.conditions: Forbidden: updates may not add a condition of type \"Approved\""
        );
        let mut issued = approved.clone();
        issued["status"]["certificate"] = "eA==".into();
        assert_eq!(request_status(&issued, &approved, &ctx()).to_string(), "[]");
        assert_eq!(
            approval(&issued, &approved, &ctx()).to_string(),
            "status.certificate: Forbidden: updates may not set certificate content"
        );
        assert!(approval(&a_request(), &approved, &ctx()).to_string().contains("may not remove a condition"));
    }
}
