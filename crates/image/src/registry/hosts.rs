//! Where a registry's images are fetched from: containerd's `hosts.toml` layout.
//!
//! ```text
//! <certs.d>/docker.io/hosts.toml      for docker.io
//! <certs.d>/localhost:5000/hosts.toml or localhost_5000_/hosts.toml
//! <certs.d>/_default/hosts.toml       for every registry without a directory of its own
//! ```
//! A host may also be `oci:/directory`: OCI layouts, one directory for each repository, as a mirror that needs no
//! network. Source of names and meanings: containerd, `docs/hosts.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::reference::{DEFAULT_REGISTRY, Reference};

/// Where docker.io really answers.
const DOCKER_SERVER: &str = "https://registry-1.docker.io";

/// Why a registry's configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The file cannot be read.
    #[error("reading {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not TOML, or a value has the wrong type.
    #[error("{path} is not a valid hosts.toml: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A host's address makes no sense.
    #[error("{path}: `{host}` is not a host: write `https://name`, `http://name` or `oci:/directory`")]
    Host {
        /// The file.
        path: PathBuf,
        /// The host as written.
        host: String,
    },
    /// A certificate or key named in it is unusable.
    #[error("{path}: {reason}")]
    Tls {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// One place to fetch from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) place: Place,
    /// May be asked what a tag means.
    pub(crate) can_resolve: bool,
    /// May be asked for content by digest.
    pub(crate) can_pull: bool,
    /// The same registry by the other protocol: asked only if the one before seems to speak that.
    pub(crate) is_other_protocol: bool,
}

/// What kind of place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A directory of OCI layouts.
    Layouts(PathBuf),
    /// A registry or a mirror of one.
    Registry(Box<Endpoint>),
}

/// How a registry is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Endpoint {
    pub(crate) is_https: bool,
    /// Host and port, as in the URL.
    pub(crate) authority: String,
    /// What comes before `/<repository>/manifests/…`: `/v2`.
    pub(crate) path: String,
    /// The registry's name, when this is a mirror: told as `?ns=`.
    pub(crate) mirrored: Option<String>,
    pub(crate) tls: TlsFiles,
    pub(crate) headers: Vec<(String, String)>,
}

/// The TLS settings of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TlsFiles {
    pub(crate) ca: Vec<PathBuf>,
    /// Certificate chain and key; the key is in the same file when there is none of its own.
    pub(crate) client: Option<(PathBuf, Option<PathBuf>)>,
    pub(crate) skip_verify: bool,
}

impl Endpoint {
    /// `https://registry.example`, for messages.
    pub(crate) fn origin(&self) -> String {
        let scheme = if self.is_https { "https" } else { "http" };
        format!("{scheme}://{}", self.authority)
    }

    /// Whether this is a loopback address, to which plain HTTP gives nothing away.
    pub(crate) fn is_loopback(&self) -> bool {
        is_loopback(&self.authority)
    }
}

/// A host's table; the top level of the file has the same keys for the server.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Table {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: bool,
    override_path: bool,
    header: BTreeMap<String, OneOrMany>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    own: Table,
    // `toml` keeps the order of the file: it is the order in which hosts are asked.
    host: toml::Table,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Many(Vec<OneOrMany>),
}

impl OneOrMany {
    fn all(&self) -> Vec<&str> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many.iter().map(String::as_str).collect(),
        }
    }
}

/// The hosts to ask for `reference`, in order.
///
/// # Errors
/// When the registry's `hosts.toml` cannot be read or makes no sense: silently asking elsewhere would be worse.
pub(crate) fn hosts_of(certs_dir: &Path, reference: &Reference) -> Result<Vec<Host>, HostsError> {
    let registry = reference.registry();
    let Some(dir) = directory_of(certs_dir, registry) else { return Ok(default_hosts(registry)) };
    let path = dir.join("hosts.toml");
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text, &path, registry),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(with_docker_files(&dir, registry)),
        Err(source) => Err(HostsError::Read { path, source }),
    }
}

fn directory_of(certs_dir: &Path, registry: &str) -> Option<PathBuf> {
    let underscored = match registry.rsplit_once(':') {
        Some((host, port)) => format!("{host}_{port}_"),
        None => registry.to_owned(),
    };
    [registry, &underscored, "_default"].iter().map(|name| certs_dir.join(name)).find(|dir| dir.is_dir())
}

fn default_hosts(registry: &str) -> Vec<Host> {
    let everything = |endpoint| Host {
        place: Place::Registry(Box::new(endpoint)),
        can_resolve: true,
        can_pull: true,
        is_other_protocol: false,
    };
    let secure = server_of(registry);
    if !secure.is_loopback() || secure.authority.ends_with(":443") {
        return vec![everything(secure)];
    }
    let plain = Endpoint { is_https: false, ..secure.clone() };
    vec![everything(plain), Host { is_other_protocol: true, ..everything(secure) }]
}

fn server_of(registry: &str) -> Endpoint {
    let authority = match registry {
        DEFAULT_REGISTRY => DOCKER_SERVER.trim_start_matches("https://"),
        other => other,
    };
    Endpoint {
        is_https: true,
        authority: authority.to_owned(),
        path: "/v2".to_owned(),
        ..Endpoint::default()
    }
}

/// Docker's older layout: `*.crt` are authorities, `NAME.cert` and `NAME.key` a client certificate.
fn with_docker_files(dir: &Path, registry: &str) -> Vec<Host> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    let with = |extension: &str| {
        files
            .iter()
            .filter(|path| path.extension().is_some_and(|e| e == extension))
            .cloned()
            .collect::<Vec<_>>()
    };
    let client = with("cert").into_iter().map(|cert| (cert.clone(), Some(cert.with_extension("key")))).next();
    let tls = TlsFiles { ca: with("crt"), client, skip_verify: false };
    let mut hosts = default_hosts(registry);
    for host in &mut hosts {
        if let Place::Registry(endpoint) = &mut host.place {
            endpoint.tls = tls.clone();
        }
    }
    hosts
}

pub(super) fn parse(text: &str, path: &Path, registry: &str) -> Result<Vec<Host>, HostsError> {
    let syntax = |reason: String| HostsError::Syntax { path: path.to_owned(), reason };
    let file: File =
        toml::from_str(text).map_err(|error| syntax(error.to_string().trim().replace('\n', " ")))?;
    let mut hosts = Vec::new();
    for (name, value) in file.host {
        let table: Table = value.try_into().map_err(|error| syntax(format!("host `{name}`: {error}")))?;
        hosts.push(host(&name, &table, path, registry)?);
    }
    match &file.server {
        Some(server) if !server.is_empty() => hosts.push(host(server, &file.own, path, registry)?),
        _ => hosts.extend(default_hosts(registry)),
    }
    Ok(hosts)
}

fn host(name: &str, table: &Table, path: &Path, registry: &str) -> Result<Host, HostsError> {
    let may = |what: &str| table.capabilities.as_ref().is_none_or(|list| list.iter().any(|c| c == what));
    let place = match name.strip_prefix("oci:") {
        Some(dir) => Place::Layouts(
            layouts_dir(dir)
                .ok_or_else(|| HostsError::Host { path: path.to_owned(), host: name.to_owned() })?,
        ),
        None => Place::Registry(Box::new(endpoint(name, table, path, registry)?)),
    };
    Ok(Host { place, can_resolve: may("resolve"), can_pull: may("pull"), is_other_protocol: false })
}

/// `oci:/dir` and `oci:///dir`.
fn layouts_dir(text: &str) -> Option<PathBuf> {
    let dir = text.strip_prefix("//").unwrap_or(text);
    dir.starts_with('/').then(|| PathBuf::from(dir))
}

fn endpoint(name: &str, table: &Table, path: &Path, registry: &str) -> Result<Endpoint, HostsError> {
    let refused = || HostsError::Host { path: path.to_owned(), host: name.to_owned() };
    let (scheme, rest) = name.split_once("://").unwrap_or(("https", name));
    let (authority, url_path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let is_https = match scheme {
        "https" => true,
        "http" => false,
        _ => return Err(refused()),
    };
    if authority.is_empty() || authority.parse::<http::uri::Authority>().is_err() || authority.contains('@') {
        return Err(refused());
    }
    let server = server_of(registry);
    // `server = "https://docker.io"` is what people write; it has no registry of its own.
    let authority = if authority == DEFAULT_REGISTRY { &server.authority } else { authority };
    let url_path = url_path.trim_end_matches('/');
    let api_path = match (url_path, table.override_path) {
        (given, true) => given.to_owned(),
        (given, false) if given.ends_with("/v2") => given.to_owned(),
        (given, false) => format!("{given}/v2"),
    };
    let headers = table.header.iter().flat_map(|(key, values)| {
        values.all().into_iter().map(|value| (key.clone(), value.to_owned())).collect::<Vec<_>>()
    });
    Ok(Endpoint {
        is_https,
        mirrored: (*authority != server.authority).then(|| registry.to_owned()),
        authority: authority.to_owned(),
        path: api_path,
        tls: tls_files(table, path.parent().unwrap_or_else(|| Path::new("/"))),
        headers: headers.collect(),
    })
}

fn tls_files(table: &Table, dir: &Path) -> TlsFiles {
    let ca = table.ca.iter().flat_map(OneOrMany::all).map(|file| dir.join(file)).collect();
    let client = match &table.client {
        None => None,
        Some(Client::One(both)) => Some((dir.join(both), None)),
        Some(Client::Many(pairs)) => pairs.first().and_then(|pair| match pair.all().as_slice() {
            [cert, key] => Some((dir.join(cert), Some(dir.join(key)))),
            [both] => Some((dir.join(both), None)),
            _ => None,
        }),
    };
    TlsFiles { ca, client, skip_verify: table.skip_verify }
}

pub(super) fn is_loopback(authority: &str) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
