//! Who asks: a client certificate of our CA, a service account's token, or nobody. A token that is there but not good
//! is an error, never nobody.

use std::sync::Arc;

use api::kind;
use api::status::Status;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::cache::Cache;
use crate::identity::{AUTHENTICATED, Identity, SERVICE_ACCOUNTS};
use crate::meta;
use crate::pki;
use crate::token::{Claims, Reference, Signer, TokenError};

/// Where a user's credential is told apart from others of the same user.
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// The user of a client certificate that the TLS handshake has verified.
pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let (common_name, groups) = pki::subject(&parsed);
    let user = common_name.filter(|name| !name.is_empty())?;
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let mut identity = Identity::new(user, &groups);
    let fingerprint = crate::response::hex(digest(&SHA256, certificate).as_ref());
    identity.extra.push((CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={fingerprint}")]));
    Some(identity)
}

/// Checks tokens against the key and against what they are bound to.
#[derive(Debug)]
pub(crate) struct Tokens<'a> {
    pub(crate) signer: &'a Signer,
    pub(crate) cache: &'a Cache,
    pub(crate) audiences: &'a [String],
}

impl Tokens<'_> {
    /// The user of the request's bearer token; `None` when it has none.
    pub(crate) fn of_headers(&self, headers: &HeaderMap) -> Result<Option<Arc<Identity>>, Status> {
        let Some(token) = bearer(headers) else { return Ok(None) };
        match self.check(token, self.audiences) {
            Ok((identity, _)) => Ok(Some(Arc::new(identity))),
            Err(error) => {
                tracing::debug!(%error, "a bearer token was refused");
                Err(Status::unauthorized())
            }
        }
    }

    /// The user of a token and what it says.
    pub(crate) fn check(&self, token: &str, audiences: &[String]) -> Result<(Identity, Claims), TokenError> {
        let claims = self.signer.verify(token, audiences, Timestamp::now().as_second())?;
        let bound = &claims.kubernetes;
        let namespace = bound.namespace.as_str();
        let is_there = |kind: &str, reference: Option<&Reference>| {
            reference.is_none_or(|reference| self.exists(kind, namespace, reference))
        };
        let alive = is_there("ServiceAccount", Some(&bound.serviceaccount))
            && is_there("Pod", bound.pod.as_ref())
            && is_there("Secret", bound.secret.as_ref())
            // The node of a Pod is told, not checked: the token lives as long as the Pod.
            && (bound.pod.is_some() || is_there("Node", bound.node.as_ref()));
        let expected = format!("system:serviceaccount:{namespace}:{}", bound.serviceaccount.name);
        if !alive || claims.sub != expected {
            return Err(TokenError::Unbound);
        }
        Ok((identity(&claims), claims))
    }

    /// Whether the very object is there and not about to go.
    fn exists(&self, kind: &str, namespace: &str, reference: &Reference) -> bool {
        let Some(kind) = kind::find_kind("", "v1", kind) else { return false };
        let found = self.cache.get(kind, &meta::key(kind.namespaced, namespace, &reference.name));
        found.is_some_and(|found| {
            let object = found.value();
            let ends = meta::time(&object, "deletionTimestamp");
            meta::text(&object, "uid") == reference.uid
                && ends.is_none_or(|ends| Timestamp::now() < ends + jiff::SignedDuration::from_secs(60))
        })
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let header = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = header.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

fn identity(claims: &Claims) -> Identity {
    let bound = &claims.kubernetes;
    let mut extra = vec![(CREDENTIAL_ID.to_owned(), vec![format!("JTI={}", claims.jti)])];
    for (name, reference) in [("pod", &bound.pod), ("node", &bound.node)] {
        if let Some(reference) = reference {
            let prefix = format!("authentication.kubernetes.io/{name}");
            extra.push((format!("{prefix}-name"), vec![reference.name.clone()]));
            extra.push((format!("{prefix}-uid"), vec![reference.uid.clone()]));
        }
    }
    Identity {
        user: claims.sub.clone(),
        uid: bound.serviceaccount.uid.clone(),
        groups: vec![
            SERVICE_ACCOUNTS.to_owned(),
            format!("{SERVICE_ACCOUNTS}:{}", bound.namespace),
            AUTHENTICATED.to_owned(),
        ],
        extra,
    }
}
