//! Who asks: a client certificate of our CA, a token (of the file, of a service account, for bootstrapping), or nobody. A token that is there but not good
//! is an error, never nobody.

use std::collections::HashMap;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use api::kind;
use api::status::Status;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;
use jiff::Timestamp;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{AUTHENTICATED, Identity, SERVICE_ACCOUNTS};
use crate::meta;
use crate::pki;
use crate::server::Server;
use crate::token::{Claims, Reference, TokenError};

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

/// Tokens that the administrator has written into a file, one a line: `token,user,uid,"group1,group2"`.
#[derive(Debug, Default)]
pub(crate) struct StaticTokens(HashMap<[u8; SHA256_OUTPUT_LEN], Arc<Identity>>);

/// The file of tokens can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It can't be read.
    #[error("the token file {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A line is not in the form.
    #[error(
        "line {line} of the token file {} is not `token,user,uid` or `token,user,uid,\"group1,group2\"`; mend it or take it out",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
}

fn digest_of(token: &str) -> [u8; SHA256_OUTPUT_LEN] {
    let mut found = [0; SHA256_OUTPUT_LEN];
    found.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    found
}

impl StaticTokens {
    /// Reads the file.
    pub(crate) fn read(path: &FilePath) -> Result<Self, TokenFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| TokenFileError::Read { path: path.to_owned(), source })?;
        let mut tokens = HashMap::new();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let (token, identity) = read_line(line)
                .ok_or_else(|| TokenFileError::Line { path: path.to_owned(), line: at + 1 })?;
            tokens.insert(digest_of(token), Arc::new(identity));
        }
        Ok(Self(tokens))
    }

    /// The user of a token. Digests are compared, so that the time taken says nothing about the token.
    fn get(&self, token: &str) -> Option<Arc<Identity>> {
        self.0.get(&digest_of(token)).cloned()
    }
}

pub(crate) fn read_line(line: &str) -> Option<(&str, Identity)> {
    let mut words = line.trim().splitn(4, ',');
    let (token, user, uid) = (words.next()?, words.next()?, words.next()?);
    let groups = words.next().unwrap_or_default().trim().trim_matches('"');
    let groups: Vec<&str> = groups.split(',').map(str::trim).filter(|group| !group.is_empty()).collect();
    if token.is_empty() || user.is_empty() {
        return None;
    }
    let identity = Identity { uid: uid.to_owned(), ..Identity::new(user, &groups) };
    Some((token, identity))
}

/// The user of a good token, and for whom it is meant.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) user: Arc<Identity>,
    pub(crate) audiences: Vec<String>,
}

/// Checks bearer tokens: those of the file, those of service accounts (against the key and what they are bound to), and
/// bootstrap tokens.
#[derive(Debug)]
pub(crate) struct Tokens<'a> {
    pub(crate) server: &'a Server,
}

impl Tokens<'_> {
    /// The user of the request's bearer token; `None` when it has none.
    pub(crate) fn of_headers(&self, headers: &HeaderMap) -> Result<Option<Arc<Identity>>, Status> {
        let Some(token) = bearer(headers) else { return Ok(None) };
        match self.check(token, &self.server.audiences) {
            Ok(known) => Ok(Some(known.user)),
            Err(error) => {
                tracing::debug!(%error, "a bearer token was refused");
                Err(Status::unauthorized())
            }
        }
    }

    /// The user of a token, when it is good for one of the audiences.
    pub(crate) fn check(&self, token: &str, audiences: &[String]) -> Result<Known, TokenError> {
        let for_server = || self.server.audiences.clone();
        if let Some(user) = self.server.static_tokens.get(token) {
            return Ok(Known { user, audiences: for_server() });
        }
        if let Some((id, secret)) = bootstrap_parts(token) {
            let user = self.bootstrap(id, secret).ok_or(TokenError::Bootstrap)?;
            return Ok(Known { user: Arc::new(user), audiences: for_server() });
        }
        let (user, claims) = self.check_account(token, audiences)?;
        Ok(Known { user: Arc::new(user), audiences: claims.aud })
    }

    /// The user of a bootstrap token: a Secret of `kube-system` holds its other half and says until when and for what.
    fn bootstrap(&self, id: &str, secret: &str) -> Option<Identity> {
        let kind = kind::find("", "v1", "secrets")?;
        let found = self.server.cache.get(kind, &format!("kube-system/bootstrap-token-{id}"))?.value();
        let field = |name: &str| {
            let encoded = found.get("data")?.get(name)?.as_str()?;
            String::from_utf8(STANDARD.decode(encoded).ok()?).ok()
        };
        let is_good = found.get("type").and_then(Value::as_str) == Some("bootstrap.kubernetes.io/token")
            && meta::get(&found, "deletionTimestamp").is_none()
            && field("token-id").as_deref() == Some(id)
            && field("token-secret").is_some_and(|kept| digest_of(&kept) == digest_of(secret))
            && field("usage-bootstrap-authentication").as_deref() == Some("true")
            && field("expiration")
                .is_none_or(|end| api::time::parse(&end).is_some_and(|end| Timestamp::now() < end));
        if !is_good {
            return None;
        }
        let more = field("auth-extra-groups").unwrap_or_default();
        let more = more.split(',').map(str::trim).filter(|group| group.starts_with("system:bootstrappers:"));
        let groups: Vec<&str> = std::iter::once("system:bootstrappers").chain(more).collect();
        Some(Identity::new(format!("system:bootstrap:{id}"), &groups))
    }

    /// The account of a token and what it says.
    fn check_account(&self, token: &str, audiences: &[String]) -> Result<(Identity, Claims), TokenError> {
        let claims = self.server.signer.verify(token, audiences, Timestamp::now().as_second())?;
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
        let found = self.server.cache.get(kind, &meta::key(kind.namespaced, namespace, &reference.name));
        found.is_some_and(|found| {
            let object = found.value();
            let ends = meta::time(&object, "deletionTimestamp");
            meta::text(&object, "uid") == reference.uid
                && ends.is_none_or(|ends| Timestamp::now() < ends + jiff::SignedDuration::from_secs(60))
        })
    }
}

/// The two halves of a bootstrap token: six and sixteen small letters and digits.
pub(crate) fn bootstrap_parts(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && is_plain(id) && is_plain(secret)).then_some((id, secret))
}

pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_tokens_is_read_and_its_mistakes_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tokens.csv");
        std::fs::write(&path, "abc,jane,7,\"dev,ops\"\n\ndef,joe,8\n").unwrap();
        let tokens = StaticTokens::read(&path).unwrap();
        let jane = tokens.get("abc").unwrap();
        assert_eq!((jane.user.as_str(), jane.uid.as_str()), ("jane", "7"));
        assert_eq!(jane.groups, ["dev", "ops", AUTHENTICATED]);
        assert_eq!(tokens.get("def").unwrap().groups, [AUTHENTICATED]);
        assert!(tokens.get("ab").is_none());
        std::fs::write(&path, "abc,jane,7\nnothing\n").unwrap();
        let refused = StaticTokens::read(&path).unwrap_err().to_string();
        assert!(refused.starts_with("line 2 of the token file "), "{refused}");
    }

    #[test]
    fn a_bootstrap_token_has_two_halves() {
        assert_eq!(bootstrap_parts("abcdef.0123456789abcdef"), Some(("abcdef", "0123456789abcdef")));
        for other in ["abcdef.0123456789abcde", "ABCDEF.0123456789abcdef", "abcdef0123456789abcdef", "."] {
            assert_eq!(bootstrap_parts(other), None, "{other}");
        }
    }
}
