//! Who approves or signs a certificate request must be allowed to for its signer; and nobody gets a certificate of the
//! masters by asking.

use api::access::{Access as _, spec, status};
use api::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::Ask;
use crate::authz::{Attributes, Target};
use crate::identity::MASTERS;
use crate::meta;
use crate::write::Write;

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

/// A certificate request says who makes it, whatever the client wrote.
pub(super) fn name_requester(write: &Write<'_>, request: &mut Value) {
    let user = write.user;
    let spec = meta::map_at(request, "spec");
    for name in ["uid", "extra"] {
        spec.shift_remove(name);
    }
    spec.insert("username".to_owned(), user.user.as_str().into());
    spec.insert("groups".to_owned(), user.groups.clone().into());
    if !user.uid.is_empty() {
        spec.insert("uid".to_owned(), user.uid.as_str().into());
    }
    if !user.extra.is_empty() {
        let extra = user.extra.iter().map(|(name, values)| (name.clone(), values.clone().into()));
        spec.insert("extra".to_owned(), Value::Object(extra.collect()));
    }
}

/// Whether the writer may do something with the request's signer, by its name or for its whole domain.
fn may(ask: Ask<'_>, verb: &str) -> bool {
    let signer = spec(ask.object).text("signerName");
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    [signer, domain.as_str()].into_iter().any(|name| {
        let target = Target::Resource {
            group: "certificates.k8s.io",
            resource: "signers",
            subresource: "",
            namespace: "",
            name,
            fields: "",
        };
        let question = Attributes { user: ask.write.user, verb, target };
        ask.write.server.authorizer.allows(&ask.write.server.cache, &question).is_some()
    })
}

fn decided(request: &Value) -> Vec<&Value> {
    let conditions = status(request).list("conditions").iter();
    conditions.filter(|condition| matches!(condition.text("type"), "Approved" | "Denied")).collect()
}

/// Approving and denying needs `approve`.
pub(super) fn check_approval(ask: Ask<'_>) -> Result<Vec<String>, Status> {
    let is_decision = ask.write.info.subresource == "approval"
        && ask.old.is_some_and(|old| decided(old) != decided(ask.object));
    if !is_decision || may(ask, "approve") {
        return Ok(Vec::new());
    }
    let signer = api::validation::quote(spec(ask.object).text("signerName"));
    Err(ask.forbidden(&format!("user not permitted to approve requests with signerName {signer}")))
}

/// Issuing a certificate needs `sign`.
pub(super) fn check_signing(ask: Ask<'_>) -> Result<Vec<String>, Status> {
    let certificate = |request: &Value| status(request).text("certificate").to_owned();
    let is_issue = ask.write.info.subresource == "status"
        && ask.old.is_some_and(|old| certificate(old) != certificate(ask.object));
    if !is_issue || may(ask, "sign") {
        return Ok(Vec::new());
    }
    let signer = api::validation::quote(spec(ask.object).text("signerName"));
    Err(ask.forbidden(&format!("user not permitted to sign requests with signerName {signer}")))
}

/// A client certificate of the group of masters is not to be had through the API.
pub(super) fn check_subject(ask: Ask<'_>) -> Result<Vec<String>, Status> {
    let spec = spec(ask.object);
    if spec.text("signerName") != CLIENT_SIGNER {
        return Ok(Vec::new());
    }
    if organisations(spec.text("request")).is_some_and(|all| all.iter().any(|one| one == MASTERS)) {
        return Err(
            ask.forbidden(&format!("use of {CLIENT_SIGNER} signer with {MASTERS} group is not allowed"))
        );
    }
    Ok(Vec::new())
}

/// The organisations of a request's subject; `None` for what is no request, which the kind's own rules refuse.
pub(crate) fn organisations(encoded: &str) -> Option<Vec<String>> {
    let pem = STANDARD.decode(encoded).ok()?;
    let der = CertificateSigningRequestDer::from_pem_slice(&pem).ok()?;
    let (_, request) = X509CertificationRequest::from_der(&der).ok()?;
    let names = request.certification_request_info.subject.iter_organization();
    Some(names.filter_map(|name| name.as_str().ok()).map(str::to_owned).collect())
}
