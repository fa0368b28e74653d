//! The files of a configMap, secret, downwardAPI or projected volume, worked out as data. Pure.
//!
//! Source: "Volumes" and "Projected Volumes" pages; error texts are those that users search for.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapVolumeSource, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret,
    SecretVolumeSource, VolumeProjection,
};

use crate::env::downward::{self, DownwardError};
use crate::object::bundle::{BundleError, trust_anchors};
use crate::object::{MissingObject, Snapshot};
use crate::quantity::Amounts;

/// Files by path relative to the volume.
pub(crate) type Payload = BTreeMap<String, File>;

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) data: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Owner as a container ID, when it is not 0.
    pub(crate) user: Option<u32>,
}

/// Default permission bits of files.
const DEFAULT_MODE: i32 = 0o644;
/// Permission bits of a token that one user of the Pod reads.
const TOKEN_MODE: u32 = 0o600;

/// A token that a projected volume asks for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TokenRequestKey {
    /// Audience; empty means the API's own.
    pub(crate) audience: String,
    pub(crate) expiration_seconds: i64,
}

/// Tokens fetched before planning.
pub(crate) type Tokens = BTreeMap<TokenRequestKey, String>;

/// What payloads are planned from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PayloadInput<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) objects: &'a Snapshot,
    pub(crate) tokens: &'a Tokens,
    pub(crate) allocatable: &'a Amounts,
}

/// Why the files of a volume cannot be made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum PayloadError {
    #[error(transparent)]
    Missing(#[from] MissingObject),
    #[error("{0} references non-existent {1} key: {2}")]
    MissingKey(&'static str, &'static str, String),
    #[error(transparent)]
    Downward(#[from] DownwardError),
    #[error("the service account token for audience `{0}` has not been fetched")]
    NoToken(String),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(
        "projected source podCertificate is not supported by this node: no signer of this cluster answers PodCertificateRequests; use a csi volume or a Secret"
    )]
    PodCertificate,
}

fn mode(specific: Option<i32>, default: Option<i32>) -> u32 {
    u32::try_from(specific.or(default).unwrap_or(DEFAULT_MODE)).unwrap_or(0o644) & 0o777
}

fn file(data: Vec<u8>, mode: u32) -> File {
    File { data, mode, user: None }
}

/// The files of a configMap volume.
pub(crate) fn config_map_payload(
    input: PayloadInput<'_>,
    source: &ConfigMapVolumeSource,
) -> Result<Payload, PayloadError> {
    let optional = source.optional == Some(true);
    config_map_files(input, &source.name, source.items.as_deref(), optional, source.default_mode)
}

/// The files of a secret volume.
pub(crate) fn secret_payload(
    input: PayloadInput<'_>,
    source: &SecretVolumeSource,
) -> Result<Payload, PayloadError> {
    let name = source.secret_name.as_deref().unwrap_or_default();
    secret_files(input, name, source.items.as_deref(), source.optional == Some(true), source.default_mode)
}

/// The files of a downwardAPI volume or source.
pub(crate) fn downward_payload(
    input: PayloadInput<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
) -> Result<Payload, PayloadError> {
    let mut payload = Payload::new();
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => downward::metadata_field(input.pod, &field.field_path)?,
            (None, Some(selector)) => downward::resource_field(input.pod, None, selector, input.allocatable)?,
            (None, None) => String::new(),
        };
        payload.insert(item.path.clone(), file(text.into_bytes(), mode(item.mode, default_mode)));
    }
    Ok(payload)
}

/// The files of a projected volume: all sources, later ones over earlier ones.
pub(crate) fn projected_payload(
    input: PayloadInput<'_>,
    source: &ProjectedVolumeSource,
) -> Result<Payload, PayloadError> {
    let mut payload = Payload::new();
    for projection in source.sources.iter().flatten() {
        payload.extend(projection_payload(input, projection, source.default_mode)?);
    }
    Ok(payload)
}

fn projection_payload(
    input: PayloadInput<'_>,
    projection: &VolumeProjection,
    default_mode: Option<i32>,
) -> Result<Payload, PayloadError> {
    if let Some(map) = &projection.config_map {
        let optional = map.optional == Some(true);
        return config_map_files(input, &map.name, map.items.as_deref(), optional, default_mode);
    }
    if let Some(secret) = &projection.secret {
        let optional = secret.optional == Some(true);
        return secret_files(input, &secret.name, secret.items.as_deref(), optional, default_mode);
    }
    if let Some(fields) = &projection.downward_api {
        return downward_payload(input, fields.items.as_deref().unwrap_or_default(), default_mode);
    }
    if let Some(token) = &projection.service_account_token {
        let key = token_key(token);
        let text = input.tokens.get(&key).ok_or(PayloadError::NoToken(key.audience))?;
        return Ok(Payload::from([(token.path.clone(), token_file(input.pod, text, default_mode))]));
    }
    if let Some(source) = &projection.cluster_trust_bundle {
        let anchors = trust_anchors(input.objects.trust_bundles.as_deref(), source)?;
        return Ok(Payload::from([(
            source.path.clone(),
            file(anchors.into_bytes(), mode(None, default_mode)),
        )]));
    }
    if projection.pod_certificate.is_some() {
        return Err(PayloadError::PodCertificate);
    }
    Ok(Payload::new())
}

/// The request that a token source makes; one hour is the API's default.
pub(crate) fn token_key(
    token: &k8s_openapi::api::core::v1::ServiceAccountTokenProjection,
) -> TokenRequestKey {
    TokenRequestKey {
        audience: token.audience.clone().unwrap_or_default(),
        expiration_seconds: token.expiration_seconds.unwrap_or(3600),
    }
}

/// Every token that the Pod's projected volumes ask for.
pub(crate) fn token_requests(pod: &Pod) -> Vec<TokenRequestKey> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let projected = volumes.filter_map(|volume| volume.projected.as_ref());
    let sources = projected.flat_map(|projected| projected.sources.iter().flatten());
    let mut keys: Vec<_> =
        sources.filter_map(|source| source.service_account_token.as_ref()).map(token_key).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// A token is the Pod's secret: only its one user, or its fsGroup, may read it.
fn token_file(pod: &Pod, token: &str, default_mode: Option<i32>) -> File {
    let user = sole_user(pod);
    let is_narrow = user.is_some() || fs_group(pod).is_some();
    let mode = if is_narrow { TOKEN_MODE } else { mode(None, default_mode) };
    File { data: token.as_bytes().to_vec(), mode, user }
}

/// The Pod's `fsGroup`.
pub(crate) fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    u32::try_from(context.fs_group?).ok()
}

/// The user that all containers run as, when the spec names just one.
fn sole_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let pod_user = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let mut containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let user_of = |container: &k8s_openapi::api::core::v1::Container| {
        container.security_context.as_ref().and_then(|context| context.run_as_user).or(pod_user)
    };
    let first = user_of(containers.next()?)?;
    let same = containers.all(|container| user_of(container) == Some(first));
    if same { u32::try_from(first).ok() } else { None }
}

fn config_map_files(
    input: PayloadInput<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default_mode: Option<i32>,
) -> Result<Payload, PayloadError> {
    let map: &ConfigMap = match input.objects.config_map(name) {
        Err(_) if optional => return Ok(Payload::new()),
        other => other?,
    };
    let text = map.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
    let binary =
        map.binary_data.iter().flatten().map(|(key, ByteString(value))| (key.as_str(), value.as_slice()));
    let data: BTreeMap<&str, &[u8]> = text.chain(binary).collect();
    pick(&data, items, optional, default_mode, ("configmap", "config"))
}

fn secret_files(
    input: PayloadInput<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default_mode: Option<i32>,
) -> Result<Payload, PayloadError> {
    let secret: &Secret = match input.objects.secret(name) {
        Err(_) if optional => return Ok(Payload::new()),
        other => other?,
    };
    let data: BTreeMap<&str, &[u8]> = secret
        .data
        .iter()
        .flatten()
        .map(|(key, ByteString(value))| (key.as_str(), value.as_slice()))
        .collect();
    pick(&data, items, optional, default_mode, ("secret", "secret"))
}

/// All keys, or those that `items` names.
fn pick(
    data: &BTreeMap<&str, &[u8]>,
    items: Option<&[KeyToPath]>,
    optional: bool,
    default_mode: Option<i32>,
    (kind, key_kind): (&'static str, &'static str),
) -> Result<Payload, PayloadError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        let all = data
            .iter()
            .map(|(key, value)| ((*key).to_owned(), file(value.to_vec(), mode(None, default_mode))));
        return Ok(all.collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(item.key.as_str()) {
            Some(value) => {
                payload.insert(item.path.clone(), file(value.to_vec(), mode(item.mode, default_mode)));
            }
            None if optional => {}
            None => return Err(PayloadError::MissingKey(kind, key_kind, item.key.clone())),
        }
    }
    Ok(payload)
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn objects() -> Snapshot {
        let mut objects = Snapshot::default();
        let map = json!({"data": {"a": "1"}, "binaryData": {"b": "/w=="}});
        objects.config_maps.insert("cm".into(), Arc::new(serde_json::from_value(map).unwrap()));
        let secret = json!({"data": {"k": "cw=="}});
        objects.secrets.insert("s".into(), Arc::new(serde_json::from_value(secret).unwrap()));
        objects
    }

    fn project(pod: &Pod, source: serde_json::Value) -> Result<Payload, PayloadError> {
        let key = TokenRequestKey { audience: String::new(), expiration_seconds: 3607 };
        let input = PayloadInput {
            pod,
            objects: &objects(),
            tokens: &Tokens::from([(key, "token".into())]),
            allocatable: &Amounts::new(),
        };
        projected_payload(input, &serde_json::from_value(source).unwrap())
    }

    fn pod(security: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "labels": {"l": "v"}},
            "spec": {"securityContext": security, "containers": [{"name": "c"}, {"name": "d"}]}}))
        .unwrap()
    }

    #[test]
    fn a_projected_volume_gathers_all_its_sources() {
        let payload = project(
            &pod(json!({})),
            json!({"defaultMode": 0o440, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "cm", "items": [{"key": "b", "path": "dir/b", "mode": 0o400}]}},
                {"secret": {"name": "s"}},
                {"configMap": {"name": "none", "optional": true}},
                {"downwardAPI": {"items": [
                    {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
                    {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}),
        )
        .unwrap();
        let seen: Vec<_> =
            payload.iter().map(|(path, file)| (path.as_str(), file.data.as_slice(), file.mode)).collect();
        assert_eq!(
            seen,
            [
                ("dir/b", &b"\xff"[..], 0o400),
                ("k", &b"s"[..], 0o440),
                ("labels", &b"l=\"v\""[..], 0o440),
                ("namespace", &b"n"[..], 0o440),
                ("token", &b"token"[..], 0o440)
            ]
        );
    }

    #[test]
    fn a_token_is_readable_by_the_pods_one_user_or_group_alone() {
        let token = |security| {
            let source =
                json!({"sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "t"}}]});
            project(&pod(security), source).unwrap().remove("t").unwrap()
        };
        assert_eq!((token(json!({})).mode, token(json!({})).user), (0o644, None));
        let user = token(json!({"runAsUser": 1000}));
        assert_eq!((user.mode, user.user), (0o600, Some(1000)));
        let group = token(json!({"fsGroup": 2000}));
        assert_eq!((group.mode, group.user), (0o600, None));
    }

    #[test]
    fn pod_certificates_are_refused_by_name() {
        let source = json!({"sources": [{"podCertificate": {"signerName": "s.io/x", "keyType": "ED25519"}}]});
        let text = project(&pod(json!({})), source).unwrap_err().to_string();
        assert_eq!(
            text,
            "projected source podCertificate is not supported by this node: no signer of this cluster answers PodCertificateRequests; use a csi volume or a Secret"
        );
    }

    #[test]
    fn missing_objects_and_keys_are_named() {
        let error = |source| project(&pod(json!({})), json!({"sources": [source]})).unwrap_err().to_string();
        assert_eq!(error(json!({"configMap": {"name": "no"}})), "configmap \"no\" not found");
        assert_eq!(error(json!({"secret": {"name": "no"}})), "secret \"no\" not found");
        assert_eq!(
            error(json!({"configMap": {"name": "cm", "items": [{"key": "x", "path": "x"}]}})),
            "configmap references non-existent config key: x"
        );
        assert_eq!(
            error(json!({"secret": {"name": "s", "items": [{"key": "x", "path": "x"}]}})),
            "secret references non-existent secret key: x"
        );
    }
}
