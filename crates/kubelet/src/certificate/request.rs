//! A `CertificateSigningRequest` from its making to its certificate. It is waited for by a watch, and what comes is
//! taken only with the key that was asked for.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use informer::{Target, Typed, Update};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use rcgen::{CertificateParams, DnType, KeyPair};
use sha2::{Digest as _, Sha512};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::pair::{Pair, PairError};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
const NODES: &str = "system:nodes";

/// What is asked for: whose certificate, of which signer, for which hosts.
#[derive(Clone, Debug)]
pub struct Template {
    signer: &'static str,
    usage: &'static str,
    common_name: String,
    hosts: Vec<String>,
}

impl Template {
    /// A node's client certificate.
    pub fn client(node: &str) -> Self {
        Self {
            signer: "kubernetes.io/kube-apiserver-client-kubelet",
            usage: "client auth",
            common_name: format!("system:node:{node}"),
            hosts: Vec::new(),
        }
    }

    /// The serving certificate of a node that is reached by these names and addresses.
    pub fn serving(node: &str, hosts: Vec<String>) -> Self {
        Self {
            signer: "kubernetes.io/kubelet-serving",
            usage: "server auth",
            common_name: format!("system:node:{node}"),
            hosts,
        }
    }

    /// Whether this certificate is the one that would be asked for.
    pub(super) fn fits(&self, pair: &Pair) -> bool {
        pair.is_for(&self.common_name, &self.hosts)
    }

    /// The name that a request of this key has whoever makes it again, so that a restart finds its own.
    pub(super) fn name_for(&self, key: &KeyPair) -> String {
        let mut digest = Sha512::new();
        digest.update(key.public_key_raw());
        for part in [self.signer, self.usage, &self.common_name, NODES] {
            digest.update(part);
            digest.update([0]);
        }
        format!("node-csr-{}", URL_SAFE_NO_PAD.encode(digest.finalize().get(..32).unwrap_or_default()))
    }

    fn object(&self, key: &KeyPair, name: &Name) -> Result<CertificateSigningRequest, rcgen::Error> {
        let mut params = CertificateParams::new(self.hosts.clone())?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::OrganizationName, NODES);
        params.distinguished_name.push(DnType::CommonName, self.common_name.as_str());
        let pem = params.serialize_request(key)?.pem()?;
        let metadata = match name {
            Name::Known(name) => ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() },
            Name::Any => ObjectMeta { generate_name: Some("csr-".to_owned()), ..ObjectMeta::default() },
        };
        let spec = CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: self.signer.to_owned(),
            usages: Some(vec!["digital signature".to_owned(), self.usage.to_owned()]),
            ..CertificateSigningRequestSpec::default()
        };
        Ok(CertificateSigningRequest { metadata, spec, status: None })
    }
}

/// How the request is called.
#[derive(Clone, Debug)]
pub(super) enum Name {
    /// By this name; one that is there already is waited for.
    Known(String),
    /// As the server says.
    Any,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The request cannot be made.
    #[error("make a certificate request: {0}")]
    Make(#[from] rcgen::Error),
    /// The API server does not take it.
    #[error("send a certificate request: {0}")]
    Send(#[from] kube::Error),
    /// Somebody said no.
    #[error("the certificate request {name} was denied: {why}; the next start asks again")]
    Denied {
        /// The object's name.
        name: String,
        /// The condition's reason and message.
        why: String,
    },
    /// The signer could not sign it.
    #[error("the certificate request {name} failed: {why}")]
    Failed {
        /// The object's name.
        name: String,
        /// The condition's reason and message.
        why: String,
    },
    /// It was removed before it was answered.
    #[error("the certificate request {0} is gone before it was answered")]
    Gone(String),
    /// What was issued is not for the key.
    #[error("what was issued for the certificate request {name} is not used: {source}")]
    Unusable {
        /// The object's name.
        name: String,
        /// What is wrong with it.
        source: PairError,
    },
    /// The kubelet is asked to end.
    #[error("the kubelet ends before its certificate request {0} is answered")]
    Ended(String),
}

/// Asks for a certificate and waits for it.
pub(super) async fn obtain(
    client: &Client,
    template: &Template,
    key: &KeyPair,
    name: Name,
    shutdown: &CancellationToken,
) -> Result<Pair, RequestError> {
    let name = create(client, template, key, name).await?;
    tracing::info!(request = name, signer = template.signer, "a certificate is asked for");
    let issued = wait(client, &name, shutdown).await?;
    let pem = [issued.as_slice(), key.serialize_pem().as_bytes()].concat();
    Pair::from_pem(&pem).map_err(|source| RequestError::Unusable { name, source })
}

async fn create(
    client: &Client,
    template: &Template,
    key: &KeyPair,
    name: Name,
) -> Result<String, RequestError> {
    let object = template.object(key, &name)?;
    let requests: Api<CertificateSigningRequest> = Api::all(client.clone());
    match (requests.create(&PostParams::default(), &object).await, name) {
        (Ok(made), _) => Ok(made.metadata.name.unwrap_or_default()),
        (Err(kube::Error::Api(status)), Name::Known(name)) if status.code == 409 => Ok(name),
        (Err(error), _) => Err(error.into()),
    }
}

async fn wait(client: &Client, name: &str, shutdown: &CancellationToken) -> Result<Vec<u8>, RequestError> {
    let (updates, mut changes) = mpsc::channel(8);
    let target = Target::all(REQUESTS).with_fields(format!("metadata.name={name}"));
    let watching = informer::watch::<Typed<CertificateSigningRequest>>(
        client.clone(),
        target,
        updates,
        shutdown.clone(),
    );
    let answered = async {
        while let Some(update) = changes.recv().await {
            let request = match update.into_objects() {
                Update::Snapshot(all) => all.into_iter().next(),
                Update::Applied(request) => Some(request),
                Update::Deleted(_) => None,
            };
            let request = request.ok_or_else(|| RequestError::Gone(name.to_owned()))?;
            if let Some(answer) = answer(&request) {
                return answer;
            }
        }
        Err(RequestError::Ended(name.to_owned()))
    };
    tokio::select! {
        answer = answered => answer,
        () = watching => Err(RequestError::Ended(name.to_owned())),
    }
}

/// What became of a request; nothing yet while it waits.
fn answer(request: &CertificateSigningRequest) -> Option<Result<Vec<u8>, RequestError>> {
    let status = request.status.as_ref()?;
    let name = request.metadata.name.clone().unwrap_or_default();
    let find = |type_: &str| {
        let found = status.conditions.iter().flatten().find(|condition| condition.type_ == type_)?;
        let reason = found.reason.as_deref().unwrap_or(type_);
        Some(format!("{reason}: {}", found.message.as_deref().unwrap_or_default()))
    };
    if let Some(why) = find("Denied") {
        return Some(Err(RequestError::Denied { name, why }));
    }
    if let Some(why) = find("Failed") {
        return Some(Err(RequestError::Failed { name, why }));
    }
    let issued = status.certificate.as_ref().filter(|certificate| !certificate.0.is_empty())?;
    find("Approved").map(|_| Ok(issued.0.clone()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_answer_is_a_certificate_that_was_approved_or_a_no_with_its_reason() {
        let of = |status: Value| {
            let request = json!({"metadata": {"name": "r"}, "spec": {"request": "", "signerName": "s"}, "status": status});
            answer(&serde_json::from_value(request).unwrap())
                .map(|answer| answer.map_err(|error| error.to_string()))
        };
        let condition =
            |type_: &str| json!({"type": type_, "status": "True", "reason": "Because", "message": "of that"});
        assert_eq!(of(json!({})), None);
        assert_eq!(of(json!({"conditions": [condition("Approved")]})), None);
        assert_eq!(of(json!({"certificate": "eA=="})), None, "nobody approved it");
        let issued = json!({"conditions": [condition("Approved")], "certificate": "eA=="});
        assert_eq!(of(issued), Some(Ok(b"x".to_vec())));
        for (type_, word) in [("Denied", "denied: Because: of that"), ("Failed", "failed: Because: of that")]
        {
            let text = of(json!({"conditions": [condition(type_)]})).unwrap().unwrap_err();
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn a_key_has_one_name_for_each_thing_that_is_asked_for() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let template = Template::client("a");
        assert_eq!(template.name_for(&key), template.name_for(&key));
        assert_ne!(template.name_for(&key), template.name_for(&other));
        assert_ne!(template.name_for(&key), Template::client("b").name_for(&key));
        assert!(template.name_for(&key).starts_with("node-csr-"));
    }
}
