//! What a driver is asked for a Pod's volume, from the Pod, its claim's `PersistentVolume` and the `CSIDriver`. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, CSIVolumeSource, PersistentVolumeSpec, Pod, SecretReference,
};
use k8s_openapi::api::storage::v1::CSIDriver;
use sha2::{Digest as _, Sha256};

use super::driver::Driver;
use super::hex;
use super::v1::VolumeCapability;
use super::v1::volume_capability::access_mode::Mode;
use super::v1::volume_capability::{AccessMode, AccessType, MountVolume};

/// A volume of a driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CsiVolume {
    pub(crate) driver: String,
    pub(crate) handle: String,
    /// The volume's name in the Pod for an inline one, else the `PersistentVolume`'s.
    pub(super) spec_name: String,
    /// Written into the Pod, and gone with it.
    pub(super) is_inline: bool,
    pub(super) fs_type: String,
    pub(super) mount_flags: Vec<String>,
    pub(super) access_modes: Vec<String>,
    pub(super) attributes: BTreeMap<String, String>,
    pub(crate) is_read_only: bool,
    /// Namespace and name.
    pub(super) publish_secret: Option<(String, String)>,
    pub(super) stage_secret: Option<(String, String)>,
}

/// An inline volume. Its handle is the Pod's own.
pub(crate) fn of_pod(pod: &Pod, volume: &str, source: &CSIVolumeSource) -> CsiVolume {
    let meta = &pod.metadata;
    let uid = meta.uid.clone().unwrap_or_default();
    let namespace = meta.namespace.clone().unwrap_or_default();
    CsiVolume {
        driver: source.driver.clone(),
        handle: format!("csi-{}", hex(&Sha256::digest(format!("{uid}{volume}")))),
        spec_name: volume.to_owned(),
        is_inline: true,
        fs_type: source.fs_type.clone().unwrap_or_default(),
        attributes: source.volume_attributes.clone().unwrap_or_default(),
        is_read_only: source.read_only == Some(true),
        publish_secret: source
            .node_publish_secret_ref
            .as_ref()
            .map(|secret| (namespace, secret.name.clone())),
        ..CsiVolume::default()
    }
}

/// A `PersistentVolume` of a driver.
pub(crate) fn of_persistent_volume(
    name: &str,
    spec: &PersistentVolumeSpec,
    source: &CSIPersistentVolumeSource,
) -> CsiVolume {
    CsiVolume {
        driver: source.driver.clone(),
        handle: source.volume_handle.clone(),
        spec_name: name.to_owned(),
        is_inline: false,
        fs_type: source.fs_type.clone().unwrap_or_default(),
        mount_flags: spec.mount_options.clone().unwrap_or_default(),
        access_modes: spec.access_modes.clone().unwrap_or_default(),
        attributes: source.volume_attributes.clone().unwrap_or_default(),
        is_read_only: source.read_only == Some(true),
        publish_secret: source.node_publish_secret_ref.as_ref().map(named),
        stage_secret: source.node_stage_secret_ref.as_ref().map(named),
    }
}

fn named(secret: &SecretReference) -> (String, String) {
    (secret.namespace.clone().unwrap_or_default(), secret.name.clone().unwrap_or_default())
}

/// Whether inline volumes are allowed: only a `CSIDriver` that says so allows them.
pub(super) fn takes_inline(driver: Option<&CSIDriver>) -> bool {
    let modes = driver.and_then(|driver| driver.spec.volume_lifecycle_modes.as_ref());
    modes.is_some_and(|modes| modes.iter().any(|mode| mode == super::note::EPHEMERAL))
}

/// Whether the driver wants its volumes published again and again, to show new tokens for example.
pub(super) fn wants_republish(driver: Option<&CSIDriver>) -> bool {
    driver.is_some_and(|driver| driver.spec.requires_republish == Some(true))
}

/// Whether the volume must be attached to the node first: unless its `CSIDriver` says that it need not.
pub(super) fn wants_attachment(volume: &CsiVolume, driver: Option<&CSIDriver>) -> bool {
    !volume.is_inline && driver.is_none_or(|driver| driver.spec.attach_required != Some(false))
}

/// The name of the `VolumeAttachment` of a volume on a node.
pub(super) fn attachment_name(volume: &CsiVolume, node: &str) -> String {
    format!("csi-{}", hex(&Sha256::digest(format!("{}{}{node}", volume.handle, volume.driver))))
}

/// Whether the node agent gives the volume to the Pod's `fsGroup` (`fsGroupPolicy`).
pub(super) fn follows_group(volume: &CsiVolume, driver: Option<&CSIDriver>) -> bool {
    let policy = driver.and_then(|driver| driver.spec.fs_group_policy.as_deref());
    match policy.unwrap_or("ReadWriteOnceWithFSType") {
        "None" => false,
        "File" => !volume.is_read_only,
        _ => {
            let is_single =
                volume.access_modes.iter().any(|mode| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod");
            !volume.is_read_only && !volume.fs_type.is_empty() && (is_single || volume.is_inline)
        }
    }
}

/// What the driver is told of the volume beside its own attributes: of the Pod, where its `CSIDriver` wants that.
pub(super) fn pod_info(
    volume: &CsiVolume,
    driver: Option<&CSIDriver>,
    pod: &Pod,
) -> BTreeMap<String, String> {
    if driver.is_none_or(|driver| driver.spec.pod_info_on_mount != Some(true)) {
        return BTreeMap::new();
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let account = pod.spec.as_ref().map(|spec| text(&spec.service_account_name)).unwrap_or_default();
    let pairs = [
        ("pod.name", text(&pod.metadata.name)),
        ("pod.namespace", text(&pod.metadata.namespace)),
        ("pod.uid", text(&pod.metadata.uid)),
        ("serviceAccount.name", account),
        ("ephemeral", volume.is_inline.to_string()),
    ];
    pairs.into_iter().map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value)).collect()
}

/// How the volume is used.
pub(super) fn capability(volume: &CsiVolume, driver: &Driver, group: Option<u32>) -> VolumeCapability {
    let group = group.filter(|_| driver.can_give_to_group()).map(|group| group.to_string());
    let mount = MountVolume {
        fs_type: volume.fs_type.clone(),
        mount_flags: volume.mount_flags.clone(),
        volume_mount_group: group.unwrap_or_default(),
    };
    let mode = access_mode(&volume.access_modes, driver.can_tell_writers());
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(mount)),
    }
}

/// The widest of the volume's modes, as upstream chooses; an inline volume has one writer.
fn access_mode(modes: &[String], tells_writers: bool) -> Mode {
    let has = |mode: &str| modes.iter().any(|one| one == mode);
    match () {
        () if has("ReadWriteMany") => Mode::MultiNodeMultiWriter,
        () if has("ReadOnlyMany") && has("ReadWriteOnce") => Mode::MultiNodeSingleWriter,
        () if has("ReadOnlyMany") => Mode::MultiNodeReaderOnly,
        () if has("ReadWriteOncePod") && tells_writers => Mode::SingleNodeSingleWriter,
        () if has("ReadWriteOnce") && tells_writers => Mode::SingleNodeMultiWriter,
        () => Mode::SingleNodeWriter,
    }
}

#[cfg(test)]
#[expect(clippy::needless_pass_by_value, reason = "JSON literals read best as arguments")]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn driver(spec: Value) -> CSIDriver {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": spec})).unwrap()
    }

    fn persistent(spec: Value) -> CsiVolume {
        let spec: PersistentVolumeSpec = serde_json::from_value(spec).unwrap();
        of_persistent_volume("pv", &spec, spec.csi.as_ref().unwrap())
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"serviceAccountName": "a", "containers": []}}))
        .unwrap()
    }

    #[test]
    fn a_persistent_volume_says_all_that_its_driver_needs() {
        let volume = persistent(json!({
            "accessModes": ["ReadWriteOnce"], "mountOptions": ["noatime"],
            "csi": {"driver": "d", "volumeHandle": "h", "fsType": "ext4", "volumeAttributes": {"a": "b"},
                "nodeStageSecretRef": {"name": "s", "namespace": "secrets"}}}));
        assert_eq!((volume.driver.as_str(), volume.handle.as_str()), ("d", "h"));
        assert_eq!(volume.stage_secret, Some(("secrets".into(), "s".into())));
        assert_eq!(
            (volume.mount_flags.as_slice(), volume.is_inline),
            (["noatime".to_owned()].as_slice(), false)
        );
    }

    #[test]
    fn an_inline_volume_belongs_to_its_pod_and_needs_a_driver_that_says_so() {
        let source =
            serde_json::from_value(json!({"driver": "d", "nodePublishSecretRef": {"name": "s"}})).unwrap();
        let volume = of_pod(&pod(), "v", &source);
        assert_eq!(volume.handle.len(), "csi-".len() + 64);
        assert_ne!(volume.handle, of_pod(&pod(), "w", &source).handle);
        assert_eq!(volume.publish_secret, Some(("n".into(), "s".into())));
        assert!(!takes_inline(None) && !takes_inline(Some(&driver(json!({})))));
        let both = driver(json!({"volumeLifecycleModes": ["Persistent", "Ephemeral"]}));
        assert!(takes_inline(Some(&both)) && !wants_attachment(&volume, None));
    }

    #[test]
    fn attachment_is_waited_for_unless_the_driver_needs_none() {
        let volume = persistent(json!({"csi": {"driver": "d", "volumeHandle": "h"}}));
        assert!(wants_attachment(&volume, None) && wants_attachment(&volume, Some(&driver(json!({})))));
        assert!(!wants_attachment(&volume, Some(&driver(json!({"attachRequired": false})))));
        assert_eq!(attachment_name(&volume, "node").len(), "csi-".len() + 64);
    }

    #[test]
    fn the_group_follows_the_drivers_policy() {
        let with = |spec: Value| persistent(json!({"accessModes": ["ReadWriteOnce"], "csi": spec}));
        let typed = with(json!({"driver": "d", "volumeHandle": "h", "fsType": "ext4"}));
        let bare = with(json!({"driver": "d", "volumeHandle": "h"}));
        let policy = |name: &str| driver(json!({"fsGroupPolicy": name}));
        assert!(follows_group(&typed, None) && !follows_group(&bare, None));
        assert!(follows_group(&bare, Some(&policy("File"))) && !follows_group(&typed, Some(&policy("None"))));
        let read = with(json!({"driver": "d", "volumeHandle": "h", "readOnly": true}));
        assert!(!follows_group(&read, Some(&policy("File"))));
    }

    #[test]
    fn the_pod_is_told_of_only_where_it_is_wanted() {
        let volume = persistent(json!({"csi": {"driver": "d", "volumeHandle": "h"}}));
        assert!(pod_info(&volume, Some(&driver(json!({}))), &pod()).is_empty());
        let told = pod_info(&volume, Some(&driver(json!({"podInfoOnMount": true}))), &pod());
        let of = |key: &str| told[&format!("csi.storage.k8s.io/{key}")].as_str();
        assert_eq!((of("pod.name"), of("pod.namespace"), of("pod.uid")), ("p", "n", "u"));
        assert_eq!((of("serviceAccount.name"), of("ephemeral")), ("a", "false"));
    }

    #[test]
    fn access_modes_are_the_drivers_words() {
        let mode = |modes: &[&str], tells| {
            access_mode(&modes.iter().map(ToString::to_string).collect::<Vec<_>>(), tells)
        };
        assert_eq!(mode(&[], false), Mode::SingleNodeWriter);
        assert_eq!(mode(&["ReadWriteOnce"], true), Mode::SingleNodeMultiWriter);
        assert_eq!(mode(&["ReadWriteOncePod"], true), Mode::SingleNodeSingleWriter);
        assert_eq!(mode(&["ReadOnlyMany", "ReadWriteOnce"], false), Mode::MultiNodeSingleWriter);
        assert_eq!(mode(&["ReadOnlyMany"], true), Mode::MultiNodeReaderOnly);
        assert_eq!(mode(&["ReadWriteMany", "ReadWriteOnce"], true), Mode::MultiNodeMultiWriter);
    }
}
