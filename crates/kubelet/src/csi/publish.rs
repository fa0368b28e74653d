//! Has drivers mount a Pod's volumes: noted, staged for the node, published for the Pod, given to its group.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::Api;
use serde_json::json;

use super::driver::Driver;
use super::error::CsiError;
use super::note::{self, EPHEMERAL, Note, PERSISTENT};
use super::plan::{
    CsiVolume, attachment_name, capability, follows_group, pod_info, takes_inline, wants_attachment,
    wants_republish,
};
use super::{Csi, text, v1};
use crate::places::PodPlaces;
use crate::token;
use crate::volume::fs_group::{ChangePolicy, apply_fs_group};
use crate::volume::mount::is_mount_point;

/// How long the API may take to tell of the driver of a volume that is there already.
const LOOKUP: Duration = Duration::from_secs(5);
/// Where the driver finds the tokens that its `CSIDriver` asks for.
const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// The Pod for which a volume is published.
#[derive(Clone, Copy)]
pub(crate) struct ForPod<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) places: &'a PodPlaces,
    /// The name of the volume in the Pod.
    pub(crate) volume: &'a str,
    pub(crate) fs_group: Option<u32>,
    /// It is time to publish again what the driver wants published again and again.
    pub(crate) is_due: bool,
}

/// A volume that is published.
#[derive(Debug)]
pub(crate) enum Published {
    /// Once and for all.
    Kept,
    /// The driver wants it published again from time to time (`requiresRepublish`).
    Repeated,
    /// It is there, but publishing it again failed; that is tried again.
    Stale(CsiError),
}

type Context = BTreeMap<String, String>;

/// A driver, and its object in the API.
type Asked<'a> = (&'a Driver, Option<&'a CSIDriver>);

impl Csi {
    /// Publishes a volume for a Pod. One that is there already is left alone, unless its driver asks for more.
    pub(crate) async fn publish(&self, at: ForPod<'_>, volume: &CsiVolume) -> Result<Published, CsiError> {
        let directory = note::directory(at.places, at.volume);
        let note = self.note(volume);
        let _lock = self.locks.take(&volume.driver, &volume.handle).await;
        if is_published(directory.clone(), note.clone()).await? {
            return Ok(if at.is_due { self.republish(at, volume).await } else { Published::Repeated });
        }
        let driver = self.driver(&volume.driver)?;
        write(directory, note).await?;
        let object = self.object(&volume.driver).await?;
        self.publish_first(at, volume, (&driver, object.as_ref())).await?;
        Ok(if wants_republish(object.as_ref()) { Published::Repeated } else { Published::Kept })
    }

    /// Publishes once more what is there, with new tokens, where the driver asks for that.
    async fn republish(&self, at: ForPod<'_>, volume: &CsiVolume) -> Published {
        let object = match tokio::time::timeout(LOOKUP, self.object(&volume.driver)).await {
            Ok(Ok(object)) if wants_republish(object.as_ref()) => object,
            Ok(Ok(_)) => return Published::Kept,
            Ok(Err(error)) => {
                tracing::debug!(driver = volume.driver, %error, "whether it is published again is asked later");
                return Published::Repeated;
            }
            // An API server that does not answer holds up no container of a Pod whose volumes are there.
            Err(_) => return Published::Repeated,
        };
        let again = async {
            let driver = self.driver(&volume.driver)?;
            let attached = self.attached(volume, object.as_ref()).await?;
            let staging = self.staging(&volume.driver, &volume.handle);
            let staging = (!volume.is_inline && driver.can_stage()).then_some(staging);
            self.ask_publish(at, volume, (&driver, object.as_ref()), (attached, staging)).await?;
            Ok(Published::Repeated)
        };
        again.await.unwrap_or_else(Published::Stale)
    }

    async fn publish_first(
        &self,
        at: ForPod<'_>,
        volume: &CsiVolume,
        (driver, object): Asked<'_>,
    ) -> Result<(), CsiError> {
        if volume.is_inline && !takes_inline(object) {
            return Err(CsiError::NotInline { driver: volume.driver.clone() });
        }
        let attached = self.attached(volume, object).await?;
        let group = group(at, volume, (driver, object));
        let capability = capability(volume, driver, group);
        let staging = self.stage(volume, driver, (&attached, &capability)).await?;
        self.ask_publish(at, volume, (driver, object), (attached, staging)).await?;
        match group.filter(|_| !driver.can_give_to_group()) {
            Some(group) => give(note::target(at.places, at.volume), group, change_policy(at.pod)).await,
            None => Ok(()),
        }
    }

    async fn ask_publish(
        &self,
        at: ForPod<'_>,
        volume: &CsiVolume,
        (driver, object): Asked<'_>,
        (attached, staging): (Context, Option<PathBuf>),
    ) -> Result<(), CsiError> {
        let mut context = volume.attributes.clone();
        context.extend(pod_info(volume, object, at.pod));
        context.extend(self.tokens(volume, object, at.pod).await?);
        let request = v1::NodePublishVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: attached,
            staging_target_path: staging.as_deref().map(text).unwrap_or_default(),
            target_path: text(&note::target(at.places, at.volume)),
            volume_capability: Some(capability(volume, driver, group(at, volume, (driver, object)))),
            readonly: volume.is_read_only,
            secrets: self.secret(volume.publish_secret.as_ref()).await?,
            volume_context: context,
        };
        driver.publish(request).await
    }

    pub(super) fn driver(&self, name: &str) -> Result<Arc<Driver>, CsiError> {
        self.drivers.borrow().get(name).cloned().ok_or_else(|| CsiError::NoDriver(name.to_owned()))
    }

    fn note(&self, volume: &CsiVolume) -> Note {
        let lifecycle = if volume.is_inline { EPHEMERAL } else { PERSISTENT };
        Note {
            spec_name: volume.spec_name.clone(),
            volume_handle: volume.handle.clone(),
            driver_name: volume.driver.clone(),
            node_name: self.node_name.clone(),
            volume_lifecycle_mode: lifecycle.to_owned(),
        }
    }

    /// The driver's own object; drivers need not have one.
    async fn object(&self, driver: &str) -> Result<Option<CSIDriver>, CsiError> {
        let api: Api<CSIDriver> = Api::all(self.client.clone());
        api.get_opt(driver).await.map_err(|cause| CsiError::Api { action: "read the CSIDriver", cause })
    }

    /// What the attachment tells the node, once the volume is attached.
    async fn attached(&self, volume: &CsiVolume, driver: Option<&CSIDriver>) -> Result<Context, CsiError> {
        if !wants_attachment(volume, driver) {
            return Ok(Context::new());
        }
        let name = attachment_name(volume, &self.node_name);
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        let found = match api.get_opt(&name).await {
            // A node may not read what is not its own, and what is not there is nobody's.
            Err(kube::Error::Api(status)) if status.code == 403 => None,
            other => other.map_err(|cause| CsiError::Api { action: "read the VolumeAttachment", cause })?,
        };
        let status = found.as_ref().and_then(|found| found.status.as_ref());
        let error = status.and_then(|status| status.attach_error.as_ref()?.message.clone());
        let state = match (status, error) {
            (Some(status), _) if status.attached => {
                return Ok(status.attachment_metadata.clone().unwrap_or_default());
            }
            (_, Some(error)) => error,
            _ if found.is_some() => format!("the VolumeAttachment {name} waits"),
            _ => format!("there is no VolumeAttachment {name}"),
        };
        Err(CsiError::NotAttached { driver: volume.driver.clone(), state })
    }

    /// Has the driver stage the volume, where it does; answers where.
    async fn stage(
        &self,
        volume: &CsiVolume,
        driver: &Driver,
        (attached, capability): (&Context, &v1::VolumeCapability),
    ) -> Result<Option<PathBuf>, CsiError> {
        if volume.is_inline || !driver.can_stage() {
            return Ok(None);
        }
        let staging = self.staging(&volume.driver, &volume.handle);
        make_directory(&staging).map_err(CsiError::io("make directory", &staging))?;
        let request = v1::NodeStageVolumeRequest {
            volume_id: volume.handle.clone(),
            publish_context: attached.clone(),
            staging_target_path: text(&staging),
            volume_capability: Some(capability.clone()),
            secrets: self.secret(volume.stage_secret.as_ref()).await?,
            volume_context: volume.attributes.clone(),
        };
        driver.stage(request).await?;
        Ok(Some(staging))
    }

    async fn secret(&self, reference: Option<&(String, String)>) -> Result<Context, CsiError> {
        let Some((namespace, name)) = reference else { return Ok(Context::new()) };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let wrong = |cause| CsiError::Secret { namespace: namespace.clone(), name: name.clone(), cause };
        let data = api.get(name).await.map_err(wrong)?.data.unwrap_or_default();
        Ok(data
            .into_iter()
            .map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned()))
            .collect())
    }

    /// The tokens of the Pod's service account that the driver asks for, in one JSON text by audience.
    async fn tokens(
        &self,
        volume: &CsiVolume,
        driver: Option<&CSIDriver>,
        pod: &Pod,
    ) -> Result<Option<(String, String)>, CsiError> {
        let asked = driver.and_then(|driver| driver.spec.token_requests.as_deref()).unwrap_or_default();
        let mut tokens = serde_json::Map::new();
        for request in asked {
            let wanted = token::Wanted { audience: &request.audience, seconds: request.expiration_seconds };
            let answer = token::request(&self.client, pod, wanted).await;
            let status =
                answer.map_err(|cause| CsiError::Token { driver: volume.driver.clone(), cause })?.status;
            let status = status.unwrap_or_default();
            let token = json!({"token": status.token, "expirationTimestamp": status.expiration_timestamp});
            tokens.insert(request.audience.clone(), token);
        }
        Ok((!tokens.is_empty()).then(|| (TOKENS.to_owned(), serde_json::Value::Object(tokens).to_string())))
    }
}

/// The group that the volume is given to, by the driver or by the node agent.
fn group(at: ForPod<'_>, volume: &CsiVolume, (driver, object): Asked<'_>) -> Option<u32> {
    at.fs_group.filter(|_| follows_group(volume, object) || driver.can_give_to_group())
}

/// Whether this volume is noted and something is mounted there.
async fn is_published(directory: PathBuf, note: Note) -> Result<bool, CsiError> {
    let shown = directory.clone();
    let look = move || {
        let is_noted = note::read(&directory)?.as_ref() == Some(&note);
        match is_mount_point(&directory.join(note::MOUNT)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            answer => Ok(is_noted && answer?),
        }
    };
    tokio::task::spawn_blocking(look).await?.map_err(CsiError::io("look for the volume in", shown))
}

/// Notes a volume whose driver is about to be asked for it.
async fn write(directory: PathBuf, note: Note) -> Result<(), CsiError> {
    let shown = directory.clone();
    let write = move || make_directory(&directory).and_then(|()| note::write(&directory, &note));
    tokio::task::spawn_blocking(write).await?.map_err(CsiError::io("note the volume in", shown))
}

fn make_directory(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path)
}

fn change_policy(pod: &Pod) -> ChangePolicy {
    let context = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    ChangePolicy::parse(context.and_then(|context| context.fs_group_change_policy.as_deref()))
}

async fn give(target: PathBuf, group: u32, policy: ChangePolicy) -> Result<(), CsiError> {
    let given = tokio::task::spawn_blocking(move || apply_fs_group(&target, group, policy));
    given.await?.map_err(|(path, source)| CsiError::Io { action: "give to the fsGroup", path, source })
}
