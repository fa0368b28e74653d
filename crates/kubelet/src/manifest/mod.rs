//! Static Pods: manifests in a directory of the node, run without the API and shown in it as mirror Pods.
//!
//! A manifest is a Pod's, in YAML or JSON, and obeys the API server's own rules. One that does not is refused with its
//! path; what ran from it before runs on.

mod follow;
pub(crate) mod mirror;

use std::path::{Path, PathBuf};

use api::codec::{self, Expected, MediaType};
use api::feature::Gates;
use api::kind::{self, Ctx};
use api::{default, schema};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub(crate) use follow::follow_manifests;

/// Says where a Pod comes from; a static one says `file`.
pub(crate) const SOURCE: &str = "kubernetes.io/config.source";
/// The identity of a static Pod's content; its mirror Pod carries it as [`mirror::MIRROR`].
pub(crate) const HASH: &str = "kubernetes.io/config.hash";
/// Where a manifest's namespace is not said.
const NAMESPACE: &str = "default";

/// What manifests are read with.
#[derive(Clone, Debug)]
pub(crate) struct ManifestSource {
    pub(crate) directory: PathBuf,
    pub(crate) node: String,
    pub(crate) gates: Gates,
}

/// Why a manifest is not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("read it: {0}")]
    Read(#[from] std::io::Error),
    #[error("it is no Pod: {0}")]
    Decode(String),
    #[error("it is no valid Pod: {0}")]
    Invalid(String),
    #[error(
        "a static Pod may not refer to {0}: it runs without the API; write the content into the manifest"
    )]
    Refers(String),
    #[error("{0}")]
    Taken(String),
}

/// The Pod of one manifest, ready to run: named after the node, with an identity that follows from its content.
///
/// # Errors
/// When the text is no Pod, or one that the API server would refuse.
pub(crate) fn parse(
    source: &ManifestSource,
    path: &Path,
    text: &[u8],
    now: Timestamp,
) -> Result<Pod, ManifestError> {
    let decode = |error: &dyn std::fmt::Display| ManifestError::Decode(error.to_string());
    let kind = kind::find("", "v1", "pods").ok_or_else(|| decode(&"the API has no Pods"))?;
    let root = schema::type_named(kind.type_name).ok_or_else(|| decode(&"the API has no Pods"))?;
    let expected = Expected { group: kind.group, version: kind.version, kind: kind.kind, also: &[] };
    let decoded = codec::decode(MediaType::Yaml, text, root, expected).map_err(|error| decode(&error))?;
    for complaint in &decoded.unknown {
        tracing::warn!(manifest = %path.display(), complaint, "part of a manifest is ignored");
    }
    let mut pod = decoded.object;
    let uid = identity(source, path, &pod);
    place(&mut pod, source, &uid);
    default::apply(root, &mut pod);
    (kind.default)(&mut pod);
    let errors = (kind.validate)(&pod, &Ctx { now, gates: source.gates });
    if !errors.is_empty() {
        return Err(ManifestError::Invalid(errors.to_string()));
    }
    let mut pod: Pod = serde_json::from_value(pod).map_err(|error| decode(&error))?;
    refuse_references(&pod)?;
    add_toleration(&mut pod);
    Ok(pod)
}

/// The manifest's own UID, or one from its node, path and content: the same after each restart, another for each change.
fn identity(source: &ManifestSource, path: &Path, pod: &Value) -> String {
    if let Some(uid) = pod.pointer("/metadata/uid").and_then(Value::as_str).filter(|uid| !uid.is_empty()) {
        return uid.to_owned();
    }
    let mut hash = Sha256::new();
    hash.update(format!("node:{}\nfile:{}\n", source.node, path.display()));
    hash.update(pod.to_string());
    let head = hash.finalize().iter().take(16).fold(0_u128, |head, byte| head << 8 | u128::from(*byte));
    format!("{head:032x}")
}

/// Name, namespace, node and annotations as upstream gives them.
fn place(pod: &mut Value, source: &ManifestSource, uid: &str) {
    let text = |pod: &Value, pointer: &str| {
        pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let name = format!("{}-{}", text(pod, "/metadata/name"), source.node);
    let namespace = match text(pod, "/metadata/namespace") {
        empty if empty.is_empty() => NAMESPACE.to_owned(),
        namespace => namespace,
    };
    let Some(fields) = pod.as_object_mut() else { return };
    fields.shift_remove("status");
    let meta = fields.entry("metadata").or_insert_with(|| json!({}));
    if let Some(meta) = meta.as_object_mut() {
        meta.insert("name".into(), name.into());
        meta.insert("namespace".into(), namespace.into());
        meta.insert("uid".into(), uid.into());
        let annotations = meta.entry("annotations").or_insert_with(|| json!({}));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(SOURCE.into(), "file".into());
            annotations.insert(HASH.into(), uid.into());
        }
    }
    let spec = fields.entry("spec").or_insert_with(|| json!({}));
    if let Some(spec) = spec.as_object_mut() {
        spec.insert("nodeName".into(), source.node.as_str().into());
    }
}

/// A static Pod is not driven away by the node's own taints.
fn add_toleration(pod: &mut Pod) {
    let everything = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    if let Some(spec) = &mut pod.spec {
        spec.tolerations.get_or_insert_default().push(everything);
    }
}

fn refuse_references(pod: &Pod) -> Result<(), ManifestError> {
    let found = crate::object::references(pod);
    let named = |kind: &str, names: &std::collections::BTreeSet<String>| {
        names.first().map(|name| format!("the {kind} {name:?}"))
    };
    let spec = pod.spec.as_ref();
    let account = spec.and_then(|spec| spec.service_account_name.as_ref()).filter(|name| !name.is_empty());
    let volumes = spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claim = volumes.into_iter().find_map(|volume| volume.persistent_volume_claim.as_ref());
    let refers = named("ConfigMap", &found.config_maps)
        .or_else(|| named("Secret", &found.secrets))
        .or_else(|| account.map(|name| format!("the ServiceAccount {name:?}")))
        .or_else(|| claim.map(|claim| format!("the PersistentVolumeClaim {:?}", claim.claim_name)));
    refers.map_or(Ok(()), |refers| Err(ManifestError::Refers(refers)))
}

/// Whether a Pod comes from a manifest of this node.
pub(crate) fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let says = |name: &str| annotations.and_then(|annotations| annotations.get(name));
    says(SOURCE).is_some_and(|source| source == "file") && says(mirror::MIRROR).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> ManifestSource {
        ManifestSource {
            directory: "/etc/kubernetes/manifests".into(),
            node: "node".into(),
            gates: Gates::default(),
        }
    }

    fn read(text: &str) -> Result<Pod, String> {
        let path = Path::new("/etc/kubernetes/manifests/web.yaml");
        parse(&source(), path, text.as_bytes(), Timestamp::UNIX_EPOCH).map_err(|error| error.to_string())
    }

    const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  hostUsers: false\n  containers:\n  - {name: c, image: nginx}\n";

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node_with_a_lasting_identity() {
        let pod = read(WEB).unwrap();
        let meta = &pod.metadata;
        assert_eq!((meta.name.as_deref(), meta.namespace.as_deref()), (Some("web-node"), Some("default")));
        assert_eq!(meta.uid, read(WEB).unwrap().metadata.uid);
        assert_ne!(meta.uid, read(&WEB.replace("nginx", "nginx:2")).unwrap().metadata.uid);
        assert_eq!(meta.uid.as_ref(), meta.annotations.as_ref().unwrap().get(HASH));
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!((spec.node_name.as_deref(), spec.host_users), (Some("node"), Some(false)));
        assert_eq!(spec.termination_grace_period_seconds, Some(30), "defaults are the API's");
        assert!(is_static(&pod));
        let json = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "j", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}"#;
        assert_eq!(read(json).unwrap().metadata.uid.as_deref(), Some("u"));
    }

    #[test]
    fn a17_a_manifest_that_the_api_would_refuse_is_refused() {
        let text = read(&WEB.replace("hostUsers: false", "hostUsers: false\n  hostPID: true")).unwrap_err();
        assert_eq!(text, "it is no valid Pod: spec.HostPID: Forbidden: when `hostUsers` is false");
        assert!(read("kind: Pod\napiVersion: v1\n").unwrap_err().contains("it is no"));
        assert!(read("apiVersion: v1\nkind: Service\n").unwrap_err().contains("it is no Pod"));
        assert!(read("{").unwrap_err().contains("it is no Pod"));
    }

    #[test]
    fn what_only_the_api_has_cannot_be_referred_to() {
        let with = |line: &str| read(&format!("{WEB}  {line}\n")).unwrap_err();
        assert!(with("volumes: [{name: v, configMap: {name: cm}}]").contains("the ConfigMap \"cm\""));
        assert!(with("imagePullSecrets: [{name: s}]").contains("the Secret \"s\""));
        assert!(with("serviceAccountName: sa").contains("the ServiceAccount \"sa\""));
    }
}
