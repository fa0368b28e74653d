//! Registry credentials from a Pod's `imagePullSecrets`, picked by the image's registry.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cri::v1;
use serde_json::Value;

use crate::object::Snapshot;

/// Credentials for the registry of `image`, most specific first.
pub(crate) fn credentials(objects: &Snapshot, secrets: &[String], image: &str) -> Vec<v1::AuthConfig> {
    let target = full_name(image);
    let mut found: Vec<(usize, v1::AuthConfig)> = Vec::new();
    for secret in secrets.iter().filter_map(|name| objects.secrets.get(name)) {
        let data = secret.data.iter().flatten();
        for (key, value) in data {
            let parsed: Option<Value> = serde_json::from_slice(&value.0).ok();
            let auths = match key.as_str() {
                ".dockerconfigjson" => parsed.as_ref().and_then(|config| config.get("auths")).cloned(),
                ".dockercfg" => parsed,
                _ => None,
            };
            for (server, entry) in auths.as_ref().and_then(Value::as_object).into_iter().flatten() {
                let place = normalise(server);
                if matches(&place, &target) {
                    found.extend(auth_of(server, entry).map(|auth| (place.len(), auth)));
                }
            }
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// `nginx` as `docker.io/library/nginx`.
fn full_name(image: &str) -> String {
    let name = image.split('@').next().unwrap_or(image);
    let (first, rest) = name.split_once('/').unwrap_or(("", name));
    let is_host = first.contains(['.', ':']) || first == "localhost";
    match (is_host, first) {
        (true, _) => name.to_owned(),
        (false, "") => format!("docker.io/library/{rest}"),
        (false, _) => format!("docker.io/{name}"),
    }
}

/// The name under which an image is shown: complete, with its tag or digest.
pub(crate) fn shown_name(image: &str) -> String {
    let host = full_name(image);
    let (_, digest) = image.split_once('@').unwrap_or((image, ""));
    let has_tag = host.rsplit('/').next().is_some_and(|last| last.contains(':'));
    match (digest.is_empty(), has_tag) {
        (false, _) => format!("{host}@{digest}"),
        (true, true) => host,
        (true, false) => format!("{host}:latest"),
    }
}

/// `https://index.docker.io/v1/` as `docker.io`.
fn normalise(server: &str) -> String {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    match bare {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

/// The host is the same, or a `*` in it stands for one label; a path must lead to the image.
fn matches(place: &str, target: &str) -> bool {
    let (place_host, place_path) = place.split_once('/').unwrap_or((place, ""));
    let (host, path) = target.split_once('/').unwrap_or((target, ""));
    let labels = |text: &str| text.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (wanted, given) = (labels(place_host), labels(host));
    let same_host = wanted.len() == given.len()
        && wanted.iter().zip(&given).all(|(one, other)| one == "*" || one == other);
    let leads = place_path.is_empty()
        || path.strip_prefix(place_path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':']));
    same_host && leads
}

fn auth_of(server: &str, entry: &Value) -> Option<v1::AuthConfig> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    let encoded = text("auth");
    if username.is_empty() && !encoded.is_empty() {
        let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
        let (user, secret) = decoded.split_once(':')?;
        (username, password) = (user.to_owned(), secret.trim_end_matches('\0').to_owned());
    }
    let identity_token = text("identitytoken");
    if username.is_empty() && identity_token.is_empty() {
        return None;
    }
    Some(v1::AuthConfig {
        username,
        password,
        server_address: server.to_owned(),
        identity_token,
        ..Default::default()
    })
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn users(auths: Value, image: &str) -> Vec<String> {
        let config = STANDARD.encode(json!({"auths": auths}).to_string());
        let secret = json!({"data": {".dockerconfigjson": config}});
        let mut objects = Snapshot::default();
        objects.secrets.insert("s".into(), Arc::new(serde_json::from_value(secret).unwrap()));
        credentials(&objects, &["s".into(), "missing".into()], image)
            .into_iter()
            .map(|auth| auth.username)
            .collect()
    }

    #[test]
    fn images_are_shown_with_their_whole_name() {
        for (image, shown) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("user/app", "docker.io/user/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("r.example/app@sha256:1", "r.example/app@sha256:1"),
        ] {
            assert_eq!(shown_name(image), shown);
        }
    }

    #[test]
    fn credentials_are_for_their_registry_alone() {
        let auths = json!({
            "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:x")},
            "registry.example.com:5000/team": {"username": "team", "password": "y"},
            "registry.example.com:5000": {"username": "all", "password": "y"},
            "*.example.org": {"username": "star", "password": "z"}});
        for (image, expected) in [
            ("nginx", vec!["hub"]),
            ("user/app:1", vec!["hub"]),
            ("registry.example.com:5000/team/app", vec!["team", "all"]),
            ("registry.example.com:5000/teamwork/app", vec!["all"]),
            ("a.example.org/app", vec!["star"]),
            ("a.b.example.org/app", vec![]),
            ("localhost:5000/app", vec![]),
        ] {
            assert_eq!(users(auths.clone(), image), expected, "{image}");
        }
    }
}
