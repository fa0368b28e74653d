//! Proving who asks: `WWW-Authenticate` challenges, Basic credentials, and tokens from a token server.
//! Sources: RFC 9110 §11; distribution, `docs/content/spec/auth/token.md` and `oauth.md`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Uri};
use serde::Deserialize;

use crate::pull::RegistryAuth;

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: String },
}

/// A token server's answer.
#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// What to send to a token server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TokenRequest {
    pub(super) uri: String,
    pub(super) authorization: Option<String>,
    /// For an `OAuth2` exchange: the form to post.
    pub(super) form: Option<String>,
}

/// The challenge to take up, Bearer before Basic.
pub(super) fn challenge_of(headers: &HeaderMap) -> Option<Challenge> {
    let values = headers.get_all(http::header::WWW_AUTHENTICATE).iter();
    let mut challenges: Vec<_> =
        values.filter_map(|value| value.to_str().ok()).flat_map(parse_challenges).collect();
    challenges.sort_by_key(|challenge| matches!(challenge, Challenge::Basic));
    challenges.into_iter().next()
}

/// Reads one header, which may hold several challenges.
fn parse_challenges(text: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', ',']).unwrap_or(rest.len());
        let (scheme, after) = rest.split_at(end);
        let (parameters, after) = parse_parameters(after);
        let get = |name: &str| {
            let value = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            value.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => found.push(Challenge::Basic),
            "bearer" => {
                found.push(Challenge::Bearer {
                    realm: get("realm"),
                    service: get("service"),
                    scope: get("scope"),
                });
            }
            _ => {}
        }
        rest = after;
    }
    found
}

/// `key="value"` pairs up to the next scheme.
fn parse_parameters(text: &str) -> (Vec<(String, String)>, &str) {
    let mut parameters = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while let Some(equals) = rest.find('=') {
        let Some((key, value)) = rest.split_at_checked(equals) else { break };
        if key.contains([' ', ',']) {
            break;
        }
        let value = value.get(1..).unwrap_or_default();
        let (value, after) = if let Some(quoted) = value.strip_prefix('"') {
            unquote(quoted)
        } else {
            let (value, after) = value.split_at(value.find([' ', ',']).unwrap_or(value.len()));
            (value.to_owned(), after)
        };
        parameters.push((key.to_owned(), value));
        rest = after.trim_start_matches([' ', ',']);
    }
    (parameters, rest)
}

fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, text.get(at + 1..).unwrap_or_default()),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// The `Authorization` that needs no token server.
pub(super) fn basic(auth: Option<&RegistryAuth>) -> Option<HeaderValue> {
    match auth {
        Some(RegistryAuth::Basic { username, password }) => {
            sensitive(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
        }
        _ => None,
    }
}

/// A bearer token as a header.
pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// How to get a token; `Err` says why the token server is not asked.
pub(super) fn plan_token(
    challenge: &Challenge,
    auth: Option<&RegistryAuth>,
    repository: &str,
    is_https: bool,
) -> Result<TokenRequest, String> {
    let Challenge::Bearer { realm, service, scope } = challenge else {
        return Err("it wants a user name and a password".to_owned());
    };
    let uri: Uri = realm.parse().map_err(|_| format!("its token server `{realm}` is not a URL"))?;
    if is_https && uri.scheme_str() != Some("https") {
        return Err(format!("its token server `{realm}` is not https; no credentials are sent there"));
    }
    let scope = if scope.is_empty() { format!("repository:{repository}:pull") } else { scope.clone() };
    let (service, scope) = (encode(service), encode(&scope));
    if let Some(RegistryAuth::IdentityToken(token)) = auth {
        let token = encode(token);
        let form = format!(
            "grant_type=refresh_token&service={service}&client_id=kakoi&scope={scope}&refresh_token={token}"
        );
        return Ok(TokenRequest { uri: realm.clone(), authorization: None, form: Some(form) });
    }
    let separator = if realm.contains('?') { '&' } else { '?' };
    let authorization = basic(auth).and_then(|value| value.to_str().map(str::to_owned).ok());
    Ok(TokenRequest {
        uri: format!("{realm}{separator}service={service}&scope={scope}"),
        authorization,
        form: None,
    })
}

/// The token in an answer.
pub(super) fn token_of(body: &[u8]) -> Option<String> {
    let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
    [answer.token, answer.access_token].into_iter().find(|token| !token.is_empty())
}

/// Percent-encodes all but the unreserved characters (RFC 3986 §2.3).
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            let digits =
                [byte >> 4, byte & 15].into_iter().filter_map(|digit| char::from_digit(digit.into(), 16));
            encoded.extend(digits.map(|digit| digit.to_ascii_uppercase()));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let pair = |value: &&str| (http::header::WWW_AUTHENTICATE, value.parse().unwrap());
        values.iter().map(pair).collect()
    }

    fn docker() -> Challenge {
        Challenge::Bearer {
            realm: "https://auth.docker.io/token".to_owned(),
            service: "registry.docker.io".to_owned(),
            scope: "repository:library/nginx:pull".to_owned(),
        }
    }

    #[test]
    fn challenges_are_read_however_they_are_joined() {
        let bearer = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#;
        assert_eq!(challenge_of(&headers(&[bearer])), Some(docker()));
        assert_eq!(challenge_of(&headers(&["Basic realm=\"x, y\"", bearer])), Some(docker()));
        assert_eq!(challenge_of(&headers(&[&format!("basic realm=x, {bearer}")])), Some(docker()));
        assert_eq!(challenge_of(&headers(&["Basic"])), Some(Challenge::Basic));
        assert_eq!(challenge_of(&headers(&["Negotiate, Digest a=\"b\\\"c\""])), None);
        assert_eq!(challenge_of(&HeaderMap::new()), None);
    }

    #[test]
    fn tokens_are_asked_for_with_what_there_is() {
        let plain = plan_token(&docker(), None, "library/nginx", true).unwrap();
        let uri = "https://auth.docker.io/token?service=registry.docker.io&scope=repository%3Alibrary%2Fnginx%3Apull";
        assert_eq!((plain.uri.as_str(), plain.authorization), (uri, None));
        let user = RegistryAuth::Basic { username: "u".to_owned(), password: "p".to_owned() };
        let known = plan_token(&docker(), Some(&user), "", true).unwrap();
        assert_eq!(known.authorization.as_deref(), Some("Basic dTpw"));
        let identity = RegistryAuth::IdentityToken("a+b".to_owned());
        let form = plan_token(&docker(), Some(&identity), "", true).unwrap().form.unwrap();
        assert!(form.ends_with("refresh_token=a%2Bb"), "{form}");
    }

    #[test]
    fn a_plain_token_server_of_a_tls_registry_gets_no_credentials() {
        let challenge = Challenge::Bearer {
            realm: "http://evil/token".to_owned(),
            service: String::new(),
            scope: String::new(),
        };
        assert!(plan_token(&challenge, None, "a", true).unwrap_err().contains("is not https"));
        plan_token(&challenge, None, "a", false).unwrap();
    }
}
