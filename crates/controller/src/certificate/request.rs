//! A certificate request as the controller reads it: who made it, what it asks for, and whether its signer signs such
//! things. Pure. The rules are those of the documented signers of Kubernetes.

use std::collections::BTreeSet;
use std::time::Duration;

use api::access::{Access as _, metadata, spec, status};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use informer::Meta;
use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use serde::Deserialize;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Client certificates of users.
pub(super) const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Client certificates of kubelets.
pub(super) const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Serving certificates of kubelets.
pub(super) const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// The signers that this controller is.
pub(super) const SIGNERS: [&str; 3] = [CLIENT, KUBELET_CLIENT, KUBELET_SERVING];

const NODES: &str = "system:nodes";
const NODE: &str = "system:node:";

/// How long a request is kept after it was decided.
const DECIDED: SignedDuration = SignedDuration::from_hours(1);
/// How long a request waits for a decision.
const PENDING: SignedDuration = SignedDuration::from_hours(24);

/// A `CertificateSigningRequest`.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Request {
    pub(crate) key: Meta,
    pub(crate) object: Value,
}

impl From<Value> for Request {
    fn from(object: Value) -> Self {
        Self { key: Meta::of(&object), object }
    }
}

impl informer::Object for Request {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

/// Whom a certificate is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Subject {
    pub(crate) common_name: String,
    pub(crate) organizations: Vec<String>,
    /// DNS names and addresses.
    hosts: usize,
    /// Names of other sorts, such as mail addresses.
    others: usize,
}

impl Request {
    pub(crate) fn signer(&self) -> &str {
        spec(&self.object).text("signerName")
    }

    pub(crate) fn maker(&self) -> &str {
        spec(&self.object).text("username")
    }

    /// Who made it, as a review of access asks.
    pub(crate) fn identity(&self) -> Value {
        let spec = spec(&self.object);
        json!({"user": spec.text("username"), "uid": spec.text("uid"), "groups": spec.list("groups"),
            "extra": spec.field("extra").cloned().unwrap_or_else(|| json!({}))})
    }

    pub(crate) fn usages(&self) -> BTreeSet<&str> {
        spec(&self.object).list("usages").iter().filter_map(Value::as_str).collect()
    }

    /// How long the certificate shall be good, in seconds, where the request says so.
    pub(crate) fn lifetime(&self) -> Option<i64> {
        spec(&self.object).int("expirationSeconds")
    }

    /// Whether a condition is there.
    pub(crate) fn has(&self, kind: &str) -> bool {
        self.condition(kind).is_some()
    }

    fn condition(&self, kind: &str) -> Option<&Value> {
        status(&self.object).list("conditions").iter().find(|one| one.text("type") == kind)
    }

    pub(crate) fn is_signed(&self) -> bool {
        !status(&self.object).text("certificate").is_empty()
    }

    /// The request itself.
    pub(crate) fn der(&self) -> Result<CertificateSigningRequestDer<'static>, String> {
        let pem =
            STANDARD.decode(spec(&self.object).text("request")).map_err(|_| "the request is no base64")?;
        CertificateSigningRequestDer::from_pem_slice(&pem).map_err(|_| "the request is no PEM".to_owned())
    }

    pub(crate) fn subject(&self) -> Result<Subject, String> {
        let der = self.der()?;
        let (_, request) =
            X509CertificationRequest::from_der(&der).map_err(|_| "the request is no certificate request")?;
        let name = &request.certification_request_info.subject;
        let mut subject = Subject {
            common_name: name
                .iter_common_name()
                .find_map(|one| one.as_str().ok())
                .unwrap_or_default()
                .to_owned(),
            organizations: name
                .iter_organization()
                .filter_map(|one| one.as_str().ok())
                .map(str::to_owned)
                .collect(),
            ..Subject::default()
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                let is_host = |name: &&GeneralName<'_>| {
                    matches!(name, GeneralName::DNSName(_) | GeneralName::IPAddress(_))
                };
                let hosts = names.general_names.iter().filter(is_host).count();
                subject.hosts += hosts;
                subject.others += names.general_names.len() - hosts;
            }
        }
        Ok(subject)
    }

    /// How long the request is still kept.
    pub(crate) fn left(&self, now: Timestamp) -> Duration {
        let since =
            |kind: &str| self.condition(kind).and_then(|one| api::time::of(one.field("lastUpdateTime")));
        let decided = ["Approved", "Denied", "Failed"].iter().filter_map(|kind| since(kind)).max();
        let created = api::time::of(metadata(&self.object).field("creationTimestamp"));
        let is_decided = ["Approved", "Denied", "Failed"].iter().any(|kind| self.has(kind));
        let end = match (decided, created) {
            (Some(decided), _) => decided.checked_add(DECIDED),
            (None, Some(created)) if is_decided => created.checked_add(DECIDED),
            (None, Some(created)) => created.checked_add(PENDING),
            (None, None) => Ok(Timestamp::MAX),
        };
        let end = end.unwrap_or(Timestamp::MAX).min(self.certificate_end().unwrap_or(Timestamp::MAX));
        Duration::try_from(end.duration_since(now)).unwrap_or_default()
    }

    /// When the certificate that was issued ends.
    fn certificate_end(&self) -> Option<Timestamp> {
        let pem = STANDARD.decode(status(&self.object).text("certificate")).ok()?;
        let der = CertificateDer::from_pem_slice(&pem).ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
    }
}

/// Whether its signer signs such a request, or why not.
pub(crate) fn check(request: &Request, subject: &Subject) -> Result<(), String> {
    match request.signer() {
        KUBELET_CLIENT => check_kubelet_client(request, subject),
        KUBELET_SERVING => check_kubelet_serving(request, subject),
        _ => check_client(request, subject),
    }
}

/// The usages must hold `needed`, and may hold the two of the handshake.
fn check_usages(request: &Request, needed: &str) -> Result<(), String> {
    let usages = request.usages();
    let is_good =
        |usage: &&&str| **usage == needed || matches!(**usage, "digital signature" | "key encipherment");
    if usages.contains(needed) && usages.iter().filter(is_good).count() == usages.len() {
        return Ok(());
    }
    Err(format!(
        "usages did not match {{\"{needed}\", \"digital signature\"}}, with or without \"key encipherment\""
    ))
}

fn check_client(request: &Request, subject: &Subject) -> Result<(), String> {
    if subject.organizations.len() > 1 {
        return Err("the subject has more than one organization, and this signer writes one".to_owned());
    }
    check_usages(request, "client auth")
}

fn check_node(subject: &Subject) -> Result<(), String> {
    if subject.organizations != [NODES] {
        return Err(format!("subject organization is not {NODES}"));
    }
    if !subject.common_name.starts_with(NODE) {
        return Err(format!("subject common name does not begin with {NODE}"));
    }
    if subject.others > 0 {
        return Err("email and URI subjectAltNames are not allowed".to_owned());
    }
    Ok(())
}

/// The rules of a kubelet's client certificate.
pub(crate) fn check_kubelet_client(request: &Request, subject: &Subject) -> Result<(), String> {
    check_node(subject)?;
    if subject.hosts > 0 {
        return Err("DNS and IP subjectAltNames are not allowed".to_owned());
    }
    check_usages(request, "client auth")?;
    must_have(request, "digital signature")
}

fn check_kubelet_serving(request: &Request, subject: &Subject) -> Result<(), String> {
    check_node(subject)?;
    if subject.hosts == 0 {
        return Err("DNS or IP subjectAltName is required".to_owned());
    }
    check_usages(request, "server auth")?;
    must_have(request, "digital signature")
}

fn must_have(request: &Request, usage: &str) -> Result<(), String> {
    if request.usages().contains(usage) { Ok(()) } else { Err(format!("usages lack {usage:?}")) }
}
