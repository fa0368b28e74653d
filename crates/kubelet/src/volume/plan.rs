//! Which volumes a Pod has and what each must hold. Pure.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, Pod, Volume};

use super::claim::plan_claimed;
use super::fs_group::ChangePolicy;
use super::nfs::{NfsError, NfsVolume, plan_nfs};
use super::payload::{self, Payload, PayloadError, PayloadInput};
use crate::csi::error::CsiError;
use crate::csi::plan::CsiVolume;
use crate::huge::{HugeError, plan_medium};
use crate::{csi, quantity};

/// Annotation prefix: `kakoi.dev/volume-mapping.<volume>: none` binds a hostPath without an ID mapping.
pub(crate) const MAPPING_ANNOTATION: &str = "kakoi.dev/volume-mapping.";

/// One volume as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumePlan {
    pub(crate) name: String,
    pub(crate) content: Content,
    /// Containers only read it.
    pub(crate) is_read_only: bool,
}

/// What a volume holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Files made by the node agent; in memory unless they are a configMap's.
    Files { plugin: &'static str, in_memory: bool, files: Payload },
    /// An empty directory on the node's disk.
    EmptyDisk,
    /// An empty tmpfs of at most so many bytes.
    EmptyMemory { size: Option<i64> },
    /// An empty filesystem of huge pages of so many bytes, and its size in bytes.
    EmptyHuge { page: u64, size: u64 },
    /// A path of the node.
    HostPath { path: PathBuf, kind: String, is_mapped: bool },
    /// A directory of the node that outlives the Pod.
    Local { path: PathBuf, policy: ChangePolicy },
    /// An export of an NFS server.
    Nfs(NfsVolume),
    /// What a CSI driver mounts.
    Csi(Box<CsiVolume>),
    /// An image's files; the runtime mounts them.
    Image { reference: String, policy: Option<String> },
}

/// Why a volume cannot be set up; becomes the event `FailedMount`.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {cause}")]
pub(crate) struct VolumeError {
    pub(crate) volume: String,
    pub(crate) cause: Box<VolumeCause>,
}

/// What stands in the way of a volume.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VolumeCause {
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error(transparent)]
    Write(#[from] super::atomic::WriteError),
    #[error(transparent)]
    HostPath(#[from] super::host_path::HostPathError),
    #[error(transparent)]
    Claim(#[from] super::claim::ClaimError),
    #[error(transparent)]
    Csi(#[from] CsiError),
    #[error(transparent)]
    NfsMount(#[from] NfsError),
    #[error(transparent)]
    Huge(#[from] HugeError),
    #[error("{directory} is not a directory; make it on the node, or correct the PersistentVolume", directory = .0.display())]
    NoDirectory(PathBuf),
    #[error(
        "NFS cannot be ID-mapped by any kernel, so the Pod's user namespace cannot use it; set `hostUsers: true`, or copy the data to a local volume"
    )]
    Nfs,
    #[error("volumes of type {0} are not supported by this node; use hostPath or a local PersistentVolume")]
    Unsupported(&'static str),
    #[error(
        "the filesystem of {path} ({filesystem}, mounted from {mounted}) cannot be ID-mapped by this kernel (Linux {kernel}), so the Pod's user namespace cannot use it; {remedy}"
    )]
    NotMappable { path: PathBuf, filesystem: String, mounted: String, kernel: String, remedy: String },
    #[error("{action} {path}: {source}", path = path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
}

/// Plans all volumes of the Pod.
pub(crate) fn plan_volumes(input: PayloadInput<'_>) -> Result<Vec<VolumePlan>, VolumeError> {
    let volumes = input.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .map(|volume| match plan_volume(input, volume) {
            Ok((content, is_read_only)) => {
                Ok(VolumePlan { name: volume.name.clone(), content, is_read_only })
            }
            Err(cause) => Err(VolumeError { volume: volume.name.clone(), cause: Box::new(cause) }),
        })
        .collect()
}

/// The volume of a CSI driver that a volume of the Pod stands for; `None` for every other type.
///
/// # Errors
/// When it goes by a claim that leads nowhere (yet).
pub(crate) fn plan_csi(
    pod: &Pod,
    volume: &Volume,
    objects: &crate::object::Snapshot,
) -> Result<Option<CsiVolume>, super::claim::ClaimError> {
    if let Some(source) = &volume.csi {
        return Ok(Some(csi::plan::of_pod(pod, &volume.name, source)));
    }
    if volume.persistent_volume_claim.is_none() && volume.ephemeral.is_none() {
        return Ok(None);
    }
    match plan_claimed(pod, volume, objects)?.0 {
        Content::Csi(planned) => Ok(Some(*planned)),
        _ => Ok(None),
    }
}

/// The NFS volumes of a Pod by name, which are mounted before the others are set up.
///
/// # Errors
/// When a claim leads nowhere (yet), and when the Pod has a user namespace: no kernel maps NFS.
pub(crate) fn plan_nfs_of(
    pod: &Pod,
    objects: &crate::object::Snapshot,
    is_fenced: bool,
) -> Result<Vec<(String, NfsVolume)>, VolumeError> {
    let mut found = Vec::new();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let wrong = |cause: VolumeCause| VolumeError { volume: volume.name.clone(), cause: Box::new(cause) };
        let planned = plan_nfs(pod, volume, objects).map_err(|error| wrong(error.into()))?;
        let Some(planned) = planned else { continue };
        if is_fenced {
            return Err(wrong(VolumeCause::Nfs));
        }
        found.push((volume.name.clone(), planned));
    }
    Ok(found)
}

fn plan_volume(input: PayloadInput<'_>, volume: &Volume) -> Result<(Content, bool), VolumeCause> {
    if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() {
        return Ok(plan_claimed(input.pod, volume, input.objects)?);
    }
    let content = plan_content(input, volume)?;
    let is_read_only = match &content {
        Content::Files { .. } | Content::Image { .. } => true,
        Content::Csi(volume) => volume.is_read_only,
        Content::Nfs(volume) => volume.is_read_only,
        _ => false,
    };
    Ok((content, is_read_only))
}

fn plan_content(input: PayloadInput<'_>, volume: &Volume) -> Result<Content, VolumeCause> {
    let files = |plugin, in_memory, files| Content::Files { plugin, in_memory, files };
    if let Some(source) = &volume.config_map {
        return Ok(files("configmap", false, payload::config_map_payload(input, source)?));
    }
    if let Some(source) = &volume.secret {
        return Ok(files("secret", true, payload::secret_payload(input, source)?));
    }
    if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        return Ok(files(
            "downward-api",
            true,
            payload::downward_payload(input, items, source.default_mode)?,
        ));
    }
    if let Some(source) = &volume.projected {
        return Ok(files("projected", true, payload::projected_payload(input, source)?));
    }
    if let Some(source) = &volume.empty_dir {
        return plan_empty(input.pod, source);
    }
    if let Some(source) = &volume.host_path {
        return Ok(Content::HostPath {
            path: PathBuf::from(&source.path),
            kind: source.type_.clone().unwrap_or_default(),
            is_mapped: is_mapped(input.pod, &volume.name),
        });
    }
    if let Some(source) = &volume.csi {
        return Ok(Content::Csi(Box::new(csi::plan::of_pod(input.pod, &volume.name, source))));
    }
    if let Some(source) = &volume.image {
        let reference = source.reference.clone().unwrap_or_default();
        return Ok(Content::Image { reference, policy: source.pull_policy.clone() });
    }
    if let Some(source) = &volume.nfs {
        return Ok(Content::Nfs(NfsVolume::of(source, Vec::new())));
    }
    Err(VolumeCause::Unsupported(unsupported_type(volume)))
}

fn plan_empty(pod: &Pod, source: &EmptyDirVolumeSource) -> Result<Content, VolumeCause> {
    let limit = source.size_limit.as_ref().map(quantity::value);
    match source.medium.as_deref().unwrap_or_default() {
        "" => Ok(Content::EmptyDisk),
        "Memory" => Ok(Content::EmptyMemory { size: limit }),
        medium => {
            let unknown = || HugeError::Unknown(medium.to_owned());
            let (page, most) = plan_medium(pod, medium).ok_or_else(unknown)??;
            let size = limit.and_then(|limit| u64::try_from(limit).ok()).filter(|limit| *limit > 0);
            Ok(Content::EmptyHuge { page, size: size.map_or(most, |size| size.min(most)) })
        }
    }
}

/// Whether the volume gets the Pod's ID mapping: always, unless the annotation says `none`.
fn is_mapped(pod: &Pod, volume: &str) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let value = annotations.and_then(|annotations| annotations.get(&format!("{MAPPING_ANNOTATION}{volume}")));
    value.is_none_or(|value| value != "none")
}

fn unsupported_type(volume: &Volume) -> &'static str {
    let types: [(bool, &'static str); 2] =
        [(volume.iscsi.is_some(), "iscsi"), (volume.git_repo.is_some(), "gitRepo")];
    types.into_iter().find(|(is_set, _)| *is_set).map_or("of an unknown plugin", |(_, name)| name)
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;
    use crate::object::Snapshot;
    use crate::quantity::Amounts;

    fn plan(volume: serde_json::Value) -> Result<Content, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"annotations": {"kakoi.dev/volume-mapping.plain": "none"}},
            "spec": {"containers": [], "volumes": [volume]}}))
        .unwrap();
        let (objects, tokens, allocatable) = (Snapshot::default(), BTreeMap::default(), Amounts::new());
        let input = PayloadInput { pod: &pod, objects: &objects, tokens: &tokens, allocatable: &allocatable };
        plan_volumes(input).map(|mut plans| plans.remove(0).content).map_err(|error| error.to_string())
    }

    #[test]
    fn each_type_is_planned_and_unknown_ones_are_refused_by_name() {
        assert_eq!(plan(json!({"name": "v", "emptyDir": {}})), Ok(Content::EmptyDisk));
        assert_eq!(
            plan(json!({"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}})),
            Ok(Content::EmptyMemory { size: Some(1 << 20) })
        );
        assert_eq!(
            plan(json!({"name": "v", "emptyDir": {"medium": "HugePages"}})),
            Err("MountVolume.SetUp failed for volume \"v\" : hugePages storage requested, but there is no resource request for huge pages".into())
        );
        assert_eq!(
            plan(json!({"name": "v", "configMap": {"name": "no"}})),
            Err("MountVolume.SetUp failed for volume \"v\" : configmap \"no\" not found".into())
        );
        assert_eq!(
            plan(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}})),
            Err("MountVolume.SetUp failed for volume \"v\" : persistentvolumeclaim \"c\" not found".into())
        );
        assert_eq!(
            plan(json!({"name": "v", "iscsi": {"targetPortal": "p", "iqn": "i", "lun": 0}})),
            Err("MountVolume.SetUp failed for volume \"v\" : volumes of type iscsi are not supported by this node; use hostPath or a local PersistentVolume".into())
        );
        assert_eq!(
            plan(json!({"name": "v", "image": {"reference": "busybox", "pullPolicy": "Never"}})),
            Ok(Content::Image { reference: "busybox".into(), policy: Some("Never".into()) })
        );
    }

    #[test]
    fn h07_nfs_is_refused_early_in_a_user_namespace() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"hostUsers": false, "containers": [],
            "volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}]}}))
        .unwrap();
        let nfs = plan_nfs_of(&pod, &Snapshot::default(), true);
        let text = nfs.unwrap_err().to_string();
        assert!(
            text.contains("volume \"v\" : NFS cannot be ID-mapped") && text.contains("hostUsers: true"),
            "{text}"
        );
    }

    #[test]
    fn only_the_annotation_takes_the_mapping_away() {
        let mapped = |name: &str| match plan(json!({"name": name, "hostPath": {"path": "/srv"}})) {
            Ok(Content::HostPath { is_mapped, .. }) => is_mapped,
            other => panic!("{other:?}"),
        };
        assert!(mapped("usual"));
        assert!(!mapped("plain"));
    }
}
