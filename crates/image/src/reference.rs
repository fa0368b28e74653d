//! Image references, normalised by the rules every user knows from `docker`: `nginx` is
//! `docker.io/library/nginx:latest`. What the rules refuse is refused here, so that no repository name can
//! ever be a path that leaves a directory.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// The registry that a name without a registry means.
pub const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A normalised reference to an image: registry, repository, and a tag or a digest (or both; the digest wins).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, thiserror::Error)]
#[error("`{text}` is not an image reference: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: Reason,
}

#[derive(Debug, Clone, thiserror::Error)]
enum Reason {
    #[error("it is empty; write for example `nginx` or `registry.example/team/app:1.2`")]
    Empty,
    #[error("64 hexadecimal digits are an image ID, which can be looked up on the node but not pulled")]
    Identifier,
    #[error("the repository name must be lower case")]
    UpperCase,
    #[error("`{0}` is not a registry's name (letters, digits, `.`, `-`, and a port)")]
    Registry(String),
    #[error(
        "`{0}` is not a repository's name: parts of lower-case letters and digits, joined by `.`, `_`, `__` or `-`, separated by `/`"
    )]
    Repository(String),
    #[error("the name is longer than 255 characters")]
    TooLong,
    #[error("`{0}` is not a tag: up to 128 letters, digits, `_`, `.` and `-`, not starting with `.` or `-`")]
    Tag(String),
    #[error("{0}")]
    Digest(#[from] crate::digest::DigestError),
}

impl Reference {
    /// The registry's name, as users write it: `docker.io`, `registry.example:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry: `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. `None` only when there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when the reference names one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository: `docker.io/library/nginx`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The last part of a manifest's URL: the digest, else the tag.
    pub fn identifier(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => DEFAULT_TAG,
        }
    }

    /// `docker.io/library/nginx:latest`, for a reference that has a tag and no digest.
    pub fn repo_tag(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.name())),
            _ => None,
        }
    }

    /// `docker.io/library/nginx@sha256:…` for a given digest of the same repository.
    pub fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|reason| ReferenceError { text: text.chars().take(300).collect(), reason })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

fn parse(text: &str) -> Result<Reference, Reason> {
    if text.is_empty() {
        return Err(Reason::Empty);
    }
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase()) {
        return Err(Reason::Identifier);
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse()?)),
        None => (text, None),
    };
    let (name, tag) = split_tag(rest);
    let (registry, repository) = split_registry(name);
    check_registry(registry)?;
    let repository = match registry {
        DEFAULT_REGISTRY if !repository.contains('/') => format!("library/{repository}"),
        _ => repository.to_owned(),
    };
    check_repository(&repository)?;
    if registry.len() + repository.len() + 1 > MAX_NAME {
        return Err(Reason::TooLong);
    }
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        return Err(Reason::Tag(tag.to_owned()));
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        (tag, _) => tag.map(str::to_owned),
    };
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
}

fn split_tag(rest: &str) -> (&str, Option<&str>) {
    match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    }
}

fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => (DEFAULT_REGISTRY, rest),
        Some((first, rest)) if is_registry_like(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn is_registry_like(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), Reason> {
    let refused = || Reason::Registry(registry.to_owned());
    let (host, port) = match registry.strip_prefix('[') {
        Some(v6) => v6.split_once(']').ok_or_else(refused)?,
        None => registry.find(':').map_or((registry, ""), |at| registry.split_at(at)),
    };
    let is_host = if registry.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        host.split('.').all(is_host_label)
    };
    let is_port = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    if is_host && is_port { Ok(()) } else { Err(refused()) }
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn check_repository(repository: &str) -> Result<(), Reason> {
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(Reason::UpperCase);
    }
    let is_valid = repository.split('/').all(is_path_component);
    if is_valid { Ok(()) } else { Err(Reason::Repository(repository.to_owned())) }
}

/// Runs of `[a-z0-9]`, joined by one of `.`, `_`, `__` or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = |b: Option<&u8>| b.is_some_and(|b| is_word(*b));
    let bytes = part.as_bytes();
    ends(bytes.first())
        && ends(bytes.last())
        && bytes
            .split(|b| is_word(*b))
            .filter(|separator| !separator.is_empty())
            .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    let rest = tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    first && rest && tag.len() <= MAX_TAG
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn short_names_mean_docker_io() {
        assert_eq!(normal("nginx"), "docker.io/library/nginx:latest");
        assert_eq!(normal("nginx:1.27"), "docker.io/library/nginx:1.27");
        assert_eq!(normal("team/app"), "docker.io/team/app:latest");
        assert_eq!(normal("docker.io/nginx"), "docker.io/library/nginx:latest");
        assert_eq!(normal("index.docker.io/library/nginx"), "docker.io/library/nginx:latest");
        assert_eq!(normal("localhost/app"), "localhost/app:latest");
    }

    #[test]
    fn a_registry_has_a_dot_a_port_or_is_localhost() {
        assert_eq!(normal("registry.k8s.io/pause:3.10"), "registry.k8s.io/pause:3.10");
        assert_eq!(normal("localhost:5000/a/b/c"), "localhost:5000/a/b/c:latest");
        assert_eq!(normal("[::1]:5000/app:x"), "[::1]:5000/app:x");
        assert_eq!(normal("Registry/app"), "Registry/app:latest");
    }

    #[test]
    fn a_digest_takes_the_place_of_the_default_tag() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(normal(&format!("nginx@{digest}")), format!("docker.io/library/nginx@{digest}"));
        let both: Reference = format!("nginx:1@{digest}").parse().unwrap();
        assert_eq!((both.tag(), both.identifier()), (Some("1"), digest.as_str()));
        assert_eq!(both.repo_tag(), None);
    }

    #[test]
    fn what_docker_refuses_is_refused_with_the_reason() {
        let hex = "a".repeat(64);
        let long = "a/".repeat(140) + "a";
        for (text, reason) in [
            ("", "it is empty"),
            (hex.as_str(), "image ID"),
            ("docker.io/Nginx", "lower case"),
            ("NGINX", "lower case"),
            ("a/../b", "not a repository's name"),
            ("/nginx", "not a repository's name"),
            ("nginx/", "not a repository's name"),
            ("a//b", "not a repository's name"),
            ("a___b", "not a repository's name"),
            ("-a", "not a repository's name"),
            ("reg.io:99999/a", "not a registry's name"),
            ("-reg.io/a", "not a registry's name"),
            ("nginx:", "not a tag"),
            ("nginx:.x", "not a tag"),
            ("nginx@sha256:12", "not a digest"),
            ("ngi nx", "not a repository's name"),
            (long.as_str(), "longer than 255"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
