//! Entry points for fuzzing: what is read from a request's head before anything is done.

use std::sync::LazyLock;

use api::kind;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use rustls_pki_types::CertificateDer;

use crate::admission::certificate;
use crate::list::{self, Continue, Filter};
use crate::request::{self, RequestInfo};
use crate::token::Signer;
use crate::{ISSUER, authn, impersonate, watch};

/// The second at which tokens are checked.
const NOW: i64 = 1_800_000_000;

static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let directory = std::env::temp_dir().join(format!("kakoi-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("the directory for temporary files is there");
    let signer = Signer::open(&directory, ISSUER).expect("a fresh key is a good one");
    std::fs::remove_dir_all(&directory).ok();
    signer
});

/// Reads a request's method, path and query, as a list and as a watch, and answers the selectors in it.
///
/// # Panics
/// When a parameter is another one after it is encoded again.
pub fn request(method: &str, uri: &str) -> Vec<String> {
    let (Ok(method), Ok(uri)) = (method.parse::<Method>(), uri.parse::<Uri>()) else { return Vec::new() };
    let info = RequestInfo::parse(&method, &uri);
    if let Some(kind) = kind::find(&info.group, &info.version, &info.resource) {
        // A refusal is as good as a filter.
        let _ = Filter::parse(kind, &info);
    }
    for refused in [list::Options::parse(&info.query).err(), watch::Options::parse(&info.query, 1000).err()] {
        assert!(refused.is_none_or(|status| (400..500).contains(&status.code()) || status.code() == 504));
    }
    let selectors =
        ["labelSelector", "fieldSelector", "continue"].map(|name| info.query.get(name).to_owned());
    for text in &selectors {
        assert_eq!(request::decode(&request::encode(text), true), *text);
    }
    selectors.into()
}

/// Reads what a continue token says.
///
/// # Panics
/// When it is another token after it is written again.
pub fn continue_token(contents: &[u8]) {
    if let Ok(token) = Continue::decode(&URL_SAFE_NO_PAD.encode(contents)) {
        assert_eq!(Continue::decode(&token.encode()).ok().as_ref(), Some(&token));
    }
}

/// Reads an `Authorization` header.
///
/// # Panics
/// When a token is good that was never signed.
pub fn authorization(header: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(header) else { return };
    let headers = HeaderMap::from_iter([(AUTHORIZATION, value)]);
    let Some(token) = authn::bearer(&headers) else { return };
    assert!(SIGNER.verify(token, &[ISSUER.to_owned()], NOW).is_err(), "a forged token: {token}");
    if let Some((id, secret)) = authn::bootstrap_parts(token) {
        assert_eq!(format!("{id}.{secret}"), token);
    }
}

/// Reads claims in a token with a good signature.
///
/// # Panics
/// When a token is good that is not for us or not for now, or when its claims are others after they are written again.
pub fn claims(payload: &[u8]) {
    let audiences = [ISSUER.to_owned()];
    let sign = |payload: &[u8]| SIGNER.sign_payload(payload).expect("a key of ours signs every text");
    let Ok(claims) = SIGNER.verify(&sign(payload), &audiences, NOW) else { return };
    assert!(claims.nbf <= NOW && NOW < claims.exp && claims.iss == ISSUER, "{claims:?}");
    assert!(claims.aud.contains(&audiences[0]), "{claims:?}");
    let again = SIGNER.sign(&claims).expect("claims that were read can be written");
    assert_eq!(SIGNER.verify(&again, &audiences, NOW), Ok(claims));
}

/// Reads a line of the token file.
///
/// # Panics
/// When it makes a user without a name or a token.
pub fn token_line(line: &str) {
    if let Some((token, identity)) = authn::read_line(line) {
        assert!(!token.is_empty() && !identity.user.is_empty() && !token.contains(','));
    }
}

/// Reads headers, one a line, that name another user.
///
/// # Panics
/// When they name a user without a name.
pub fn impersonation(lines: &[u8]) {
    let headers: HeaderMap = lines
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = line.split_at(colon);
            Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value.get(1..)?).ok()?))
        })
        .collect();
    if let Ok(Some(user)) = impersonate::named(&headers) {
        assert!(!user.user.is_empty());
    }
}

/// Reads a client's certificate in DER.
///
/// # Panics
/// When it makes a user without a name.
pub fn certificate(der: &[u8]) {
    if let Some(identity) = authn::of_certificate(&CertificateDer::from(der)) {
        assert!(!identity.user.is_empty());
    }
}

/// Reads a certificate request in PEM.
pub fn certificate_request(pem: &[u8]) {
    // What is no request is the business of the kind's rules.
    let _ = certificate::organisations(&STANDARD.encode(pem));
}
