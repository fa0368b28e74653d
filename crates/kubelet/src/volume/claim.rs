//! Volumes by claim: which `PersistentVolume` a Pod's claim is bound to, and what of the node that is. Pure.
//!
//! Binding is a controller's; here a claim must be bound, and the volume must say that it is this claim's.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Volume};

use super::fs_group::ChangePolicy;
use super::nfs::NfsVolume;
use super::plan::Content;
use crate::csi;
use crate::object::Snapshot;

/// Why a claim gives no volume (yet).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ClaimError {
    #[error("persistentvolumeclaim \"{0}\" not found")]
    NoClaim(String),
    #[error("PVC \"{0}\" was not created for the pod; delete it, or rename the Pod's volume")]
    NotOurs(String),
    #[error("PVC is being deleted")]
    Deleting,
    #[error("PVC \"{0}\" is not bound")]
    Unbound(String),
    #[error("persistentvolume \"{0}\" not found")]
    NoVolume(String),
    #[error("persistentvolume \"{volume}\" is not bound to the claim \"{claim}\"")]
    Misbound { volume: String, claim: String },
    #[error("volume has volumeMode Block, which this node does not support; use Filesystem")]
    Block,
    #[error("persistent volumes of type {0} are not supported by this node; use a local or hostPath volume")]
    Unsupported(&'static str),
}

/// The claim that a volume of the Pod stands for.
pub(crate) fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some(source.claim_name.clone());
    }
    volume.ephemeral.as_ref()?;
    Some(format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name))
}

/// The `PersistentVolume`s that the Pod's claims are bound to.
pub(crate) fn bound_volumes(objects: &Snapshot) -> impl Iterator<Item = String> {
    let names = objects.claims.values().filter_map(|claim| claim.spec.as_ref()?.volume_name.clone());
    names.filter(|name| !name.is_empty())
}

/// What a claimed volume is on this node, and whether it is only read.
pub(crate) fn plan_claimed(
    pod: &Pod,
    volume: &Volume,
    objects: &Snapshot,
) -> Result<(Content, bool), ClaimError> {
    let name = claim_name(pod, volume).unwrap_or_default();
    let claim = objects.claims.get(&name).ok_or_else(|| ClaimError::NoClaim(name.clone()))?;
    if volume.ephemeral.is_some() && !is_owned(claim, pod) {
        return Err(ClaimError::NotOurs(name));
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(ClaimError::Deleting);
    }
    let is_bound = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound");
    let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).filter(|name| !name.is_empty());
    let bound = bound.filter(|_| is_bound).ok_or_else(|| ClaimError::Unbound(name.clone()))?;
    let found = objects.persistent_volumes.get(&bound).ok_or_else(|| ClaimError::NoVolume(bound.clone()))?;
    if !refers_to(found, claim) {
        return Err(ClaimError::Misbound { volume: bound, claim: name });
    }
    let is_read_only =
        volume.persistent_volume_claim.as_ref().is_some_and(|source| source.read_only == Some(true));
    let mut content = content_of(found, pod)?;
    if let Content::Csi(planned) = &mut content {
        planned.is_read_only |= is_read_only;
        let is_read_only = planned.is_read_only;
        return Ok((content, is_read_only));
    }
    if let Content::Nfs(planned) = &mut content {
        planned.is_read_only |= is_read_only;
        let is_read_only = planned.is_read_only;
        return Ok((content, is_read_only));
    }
    Ok((content, is_read_only))
}

/// A generic ephemeral volume's claim belongs to its Pod.
fn is_owned(claim: &PersistentVolumeClaim, pod: &Pod) -> bool {
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref() && owner.controller == Some(true))
}

fn refers_to(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    reference.is_some_and(|reference| {
        reference.name == claim.metadata.name
            && reference.namespace == claim.metadata.namespace
            && (reference.uid.is_none() || reference.uid == claim.metadata.uid)
    })
}

fn content_of(volume: &PersistentVolume, pod: &Pod) -> Result<Content, ClaimError> {
    let Some(spec) = &volume.spec else { return Err(ClaimError::Unsupported("of an unknown plugin")) };
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err(ClaimError::Block);
    }
    if let Some(source) = &spec.host_path {
        let kind = source.type_.clone().unwrap_or_default();
        return Ok(Content::HostPath { path: PathBuf::from(&source.path), kind, is_mapped: true });
    }
    if let Some(source) = &spec.local {
        let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
        let policy = context.and_then(|context| context.fs_group_change_policy.as_deref());
        return Ok(Content::Local { path: PathBuf::from(&source.path), policy: ChangePolicy::parse(policy) });
    }
    if let Some(source) = &spec.csi {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        return Ok(Content::Csi(Box::new(csi::plan::of_persistent_volume(name, spec, source))));
    }
    if let Some(source) = &spec.nfs {
        return Ok(Content::Nfs(NfsVolume::of(source, spec.mount_options.clone().unwrap_or_default())));
    }
    let types: [(bool, &'static str); 3] =
        [(spec.iscsi.is_some(), "iscsi"), (spec.fc.is_some(), "fc"), (spec.cephfs.is_some(), "cephfs")];
    let name = types.into_iter().find(|(is_set, _)| *is_set).map_or("of an unknown plugin", |(_, name)| name);
    Err(ClaimError::Unsupported(name))
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": []}}))
        .unwrap()
    }

    fn objects(claim: Value, volume: Value) -> Snapshot {
        let mut objects = Snapshot::default();
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
        let volume: PersistentVolume = serde_json::from_value(volume).unwrap();
        objects.claims.insert(claim.metadata.name.clone().unwrap(), Arc::new(claim));
        objects.persistent_volumes.insert(volume.metadata.name.clone().unwrap(), Arc::new(volume));
        objects
    }

    fn claim(phase: &str) -> Value {
        json!({"metadata": {"name": "c", "namespace": "n", "uid": "claim"},
            "spec": {"volumeName": "pv"}, "status": {"phase": phase}})
    }

    fn volume(source: Value) -> Value {
        let mut spec = json!({"claimRef": {"name": "c", "namespace": "n", "uid": "claim"}});
        spec.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
        json!({"metadata": {"name": "pv"}, "spec": spec})
    }

    fn plan(source: Value, objects: &Snapshot) -> Result<(Content, bool), String> {
        plan_claimed(&pod(), &serde_json::from_value(source).unwrap(), objects)
            .map_err(|error| error.to_string())
    }

    fn by_claim() -> Value {
        json!({"name": "v", "persistentVolumeClaim": {"claimName": "c", "readOnly": true}})
    }

    #[test]
    fn a_bound_claim_leads_to_its_volume() {
        let local = objects(claim("Bound"), volume(json!({"local": {"path": "/srv/data"}})));
        let (content, is_read_only) = plan(by_claim(), &local).unwrap();
        assert_eq!(content, Content::Local { path: "/srv/data".into(), policy: ChangePolicy::Always });
        assert!(is_read_only);
        let host =
            objects(claim("Bound"), volume(json!({"hostPath": {"path": "/srv", "type": "Directory"}})));
        let (content, _) = plan(by_claim(), &host).unwrap();
        assert_eq!(
            content,
            Content::HostPath { path: "/srv".into(), kind: "Directory".into(), is_mapped: true }
        );
    }

    #[test]
    fn what_stands_in_the_way_is_said() {
        let local = || volume(json!({"local": {"path": "/srv/data"}}));
        let error = |claim: Value, volume: Value| plan(by_claim(), &objects(claim, volume)).unwrap_err();
        assert_eq!(error(claim("Pending"), local()), "PVC \"c\" is not bound");
        let mut other = local();
        other["spec"]["claimRef"]["uid"] = json!("another");
        assert_eq!(error(claim("Bound"), other), "persistentvolume \"pv\" is not bound to the claim \"c\"");
        assert!(
            error(claim("Bound"), volume(json!({"iscsi": {"targetPortal": "s", "iqn": "i", "lun": 0}})))
                .contains("type iscsi")
        );
        assert!(
            error(claim("Bound"), volume(json!({"volumeMode": "Block", "local": {"path": "/dev/x"}})))
                .contains("Block")
        );
        assert_eq!(
            plan(by_claim(), &Snapshot::default()).unwrap_err(),
            "persistentvolumeclaim \"c\" not found"
        );
    }

    #[test]
    fn an_ephemeral_volume_has_a_claim_of_the_pods_own() {
        let source = json!({"name": "v", "ephemeral": {}});
        let mut own = claim("Bound");
        own["metadata"]["name"] = json!("p-v");
        let mut held = volume(json!({"local": {"path": "/srv/data"}}));
        held["spec"]["claimRef"]["name"] = json!("p-v");
        let foreign = plan(source.clone(), &objects(own.clone(), held.clone())).unwrap_err();
        assert!(foreign.contains("was not created for the pod"), "{foreign}");
        own["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u", "controller": true}]);
        plan(source, &objects(own, held)).unwrap();
    }
}
