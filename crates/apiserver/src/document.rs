//! Documents about the API itself: discovery, `OpenAPI`, version and token keys. Each is made once, when it is first
//! asked for, and has an `ETag`.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::kind::{Kind, kinds};
use api::openapi::Descriptions;
use api::status::Status;
use api::{discovery, openapi};
use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::description;
use crate::response::{Accepted, Offer, ResponseBody, full, json, negotiate, to_bytes};
use crate::server::Server;

/// The version of Kubernetes whose API this is.
pub const KUBERNETES: &str = "v1.36.2";

/// A document as it is sent.
#[derive(Debug, Clone)]
struct Document {
    bytes: Bytes,
    hash: String,
}

impl Document {
    fn of(bytes: Bytes) -> Self {
        let hash = hash(&bytes);
        Self { bytes, hash }
    }
}

fn hash(bytes: &[u8]) -> String {
    crate::response::hex(digest(&SHA256, bytes).as_ref()).to_uppercase()
}

/// The documents made so far, by path.
#[derive(Debug, Default)]
pub(crate) struct Documents(Mutex<HashMap<String, Arc<Document>>>);

impl Documents {
    fn get(&self, path: &str, make: impl FnOnce() -> Option<Document>) -> Option<Arc<Document>> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = lock().get(path) {
            return Some(found.clone());
        }
        let document = Arc::new(make()?);
        lock().insert(path.to_owned(), document.clone());
        Some(document)
    }
}

/// Answers a path that is a document; `None` when it isn't one.
pub(crate) fn answer(
    server: &Server,
    path: &str,
    headers: &HeaderMap,
) -> Option<Result<Response<ResponseBody>, Status>> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    Some(match segments.as_slice() {
        [] => Ok(paths()),
        ["version"] => Ok(json(StatusCode::OK, Accepted::JSON, &version())),
        ["api" | "apis"] => discover(server, path, headers),
        ["api", version] => plain(headers, discovery::resources("", version)),
        ["apis", group] => plain(headers, discovery::group_document(group)),
        ["apis", group, version] => {
            plain(headers, discovery::resources(group, version).filter(|_| !group.is_empty()))
        }
        ["openapi", "v3"] => cached(server, path, headers, "application/json", || {
            Some(Document::of(to_bytes(&openapi_index())))
        }),
        ["openapi", "v3", rest @ ..] => {
            cached(server, path, headers, "application/json", || openapi_document(rest))
        }
        ["openapi", "v2"] => openapi_v2(server, headers),
        ["openid", "v1", "jwks"] => Ok(typed(&server.signer.jwks(), "application/jwk-set+json")),
        [".well-known", "openid-configuration"] => {
            let keys = format!("https://{}/openid/v1/jwks", server.public_address);
            Ok(typed(&server.signer.configuration(&keys), "application/json"))
        }
        _ => return None,
    })
}

fn paths() -> Response<ResponseBody> {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, versions) in discovery::group_versions().into_iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
    }
    for path in [
        "/healthz",
        crate::snapshot::PATH,
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ] {
        paths.push(path.to_owned());
    }
    json(StatusCode::OK, Accepted::JSON, &json!({"paths": paths}))
}

/// The document `/version`. Clients compare major and minor; people read the rest.
pub(crate) fn version() -> Value {
    let mut parts = KUBERNETES.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    json!({
        "major": major,
        "minor": minor,
        "emulationMajor": major,
        "emulationMinor": minor,
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": "35",
        "gitVersion": format!("{KUBERNETES}+kakoi{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none (Rust)",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, architecture()),
    })
}

/// The machine's architecture as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn typed(value: &Value, content_type: &'static str) -> Response<ResponseBody> {
    let mut response = json(StatusCode::OK, Accepted::JSON, value);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

fn plain(headers: &HeaderMap, document: Option<Value>) -> Result<Response<ResponseBody>, Status> {
    let accepted = negotiate(headers, "", Offer::Objects)?;
    let document = document.ok_or_else(Status::unknown_path)?;
    Ok(json(StatusCode::OK, accepted, &document))
}

/// `/api` and `/apis`: aggregated for clients that know that form.
fn discover(server: &Server, path: &str, headers: &HeaderMap) -> Result<Response<ResponseBody>, Status> {
    let is_core = path.trim_end_matches('/') == "/api";
    if accepts_aggregated(headers) {
        let key = format!("aggregated{}", path.trim_end_matches('/'));
        let make = || {
            let document =
                if is_core { discovery::aggregated_core() } else { discovery::aggregated_groups() };
            Some(Document::of(to_bytes(&document)))
        };
        return cached(server, &key, headers, discovery::AGGREGATED_V2, make);
    }
    let document =
        if is_core { discovery::core_versions(&server.public_address) } else { discovery::groups() };
    plain(headers, Some(document))
}

fn accepts_aggregated(headers: &HeaderMap) -> bool {
    headers.get_all(http::header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').any(|clause| {
            let parts: Vec<&str> = clause.split(';').map(str::trim).collect();
            ["application/json", "g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"]
                .iter()
                .all(|part| parts.contains(part))
        })
    })
}

fn cached(
    server: &Server,
    key: &str,
    headers: &HeaderMap,
    content_type: &'static str,
    make: impl FnOnce() -> Option<Document>,
) -> Result<Response<ResponseBody>, Status> {
    let document = server.documents.get(key, make).ok_or_else(Status::unknown_path)?;
    let tag = format!("\"{}\"", document.hash);
    let is_known = headers.get(IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == tag.as_bytes());
    let mut response = Response::new(full(if is_known { Bytes::new() } else { document.bytes.clone() }));
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(VARY, HeaderValue::from_static("Accept"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    Ok(response)
}

/// `/openapi/v2`: for `kubectl` before v3 the protobuf message `openapi.v2.Document`, for others JSON.
fn openapi_v2(server: &Server, headers: &HeaderMap) -> Result<Response<ResponseBody>, Status> {
    let wants_protobuf = headers
        .get(http::header::ACCEPT)
        .is_some_and(|value| value.to_str().is_ok_and(|value| value.contains(OPENAPI_V2_PROTOBUF)));
    let make = || openapi::v2::document(KUBERNETES, &description::all());
    if wants_protobuf {
        cached(server, "openapi/v2.pb", headers, OPENAPI_V2_ANSWER, || {
            Some(Document::of(openapi::v2::encode(&make()).into()))
        })
    } else {
        cached(server, "openapi/v2", headers, "application/json", || Some(Document::of(to_bytes(&make()))))
    }
}

const OPENAPI_V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// The same without the `@`, which Go's parser of media types refuses in answers.
const OPENAPI_V2_ANSWER: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The kinds of each group and version, by the path of its document.
fn documented() -> Vec<(String, (&'static str, &'static str))> {
    discovery::group_versions()
        .into_iter()
        .flat_map(|(group, versions)| versions.into_iter().map(move |version| (group, version)))
        .map(|(group, version)| {
            let path =
                if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            (path, (group, version))
        })
        .collect()
}

fn openapi_index() -> Value {
    let documents: Vec<(String, String)> = documented()
        .into_iter()
        .map(|(path, (group, version))| (path, openapi_hash(group, version)))
        .collect();
    openapi::v3_index(documents.iter().map(|(path, hash)| (path.as_str(), hash.as_str())))
}

fn openapi_document(segments: &[&str]) -> Option<Document> {
    let path = segments.join("/");
    let (_, (group, version)) = documented().into_iter().find(|(known, _)| *known == path)?;
    let document = openapi_of(group, version, &description::of(group, version));
    Some(Document { bytes: to_bytes(&document), hash: openapi_hash(group, version) })
}

/// The hash of a document, from all that makes it what it is: making the descriptions for it would take longer.
fn openapi_hash(group: &str, version: &str) -> String {
    let plain = openapi_of(group, version, &Descriptions::default());
    hash(&[description::SOURCE.as_bytes(), &to_bytes(&plain)].concat())
}

fn openapi_of(group: &str, version: &str, texts: &Descriptions) -> Value {
    let kinds: Vec<&Kind> =
        kinds().iter().filter(|kind| kind.group == group && kind.version == version).collect();
    openapi::v3_document(group, version, &kinds, texts)
}
