//! The part of a Pod that the policy looks at, read from the API's JSON by its field names. Everything else of a Pod
//! is passed over, so that the same reading serves a Pod, a template in a Deployment and a file from a stranger.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A Pod, or the template of one.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct PodFacts {
    /// Its metadata.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) metadata: Metadata,
    /// Its spec.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: PodSpec,
}

impl PodFacts {
    /// Reads a Pod or a Pod template.
    ///
    /// # Errors
    /// When a field that matters has another type than the API's.
    pub fn read(pod: &Value) -> Result<Self, serde_json::Error> {
        Self::deserialize(pod)
    }

    /// Whether a hostPath volume is bound without an ID mapping, so that its filesystem need not support one. Volumes
    /// of other kinds always have one.
    pub(super) fn is_unmapped(&self, volume: &Volume) -> bool {
        let key = format!("kakoi.dev/volume-mapping.{}", volume.name);
        volume.host_path.is_some() && self.metadata.annotations.get(&key).is_some_and(|value| value == "none")
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Metadata {
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

impl Metadata {
    pub(super) fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }
}

/// `spec` of a Pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The user's word; absent is different from `true`.
    pub host_users: Option<bool>,
    #[serde(deserialize_with = "or_default")]
    pub(super) host_network: bool,
    #[serde(rename = "hostPID", deserialize_with = "or_default")]
    pub(super) host_pid: bool,
    #[serde(rename = "hostIPC", deserialize_with = "or_default")]
    pub(super) host_ipc: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) security_context: PodSecurity,
    #[serde(deserialize_with = "or_default")]
    pub(super) init_containers: Vec<Container>,
    /// The main containers.
    #[serde(deserialize_with = "or_default")]
    pub containers: Vec<Container>,
    #[serde(deserialize_with = "or_default")]
    pub(super) ephemeral_containers: Vec<Container>,
    /// The volumes.
    #[serde(deserialize_with = "or_default")]
    pub volumes: Vec<Volume>,
    #[serde(deserialize_with = "or_default")]
    pub(super) resource_claims: Vec<Named>,
}

impl PodSpec {
    /// All containers, in the order in which they start.
    pub(super) fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers.iter().chain(&self.containers).chain(&self.ephemeral_containers)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PodSecurity {
    pub(super) run_as_user: Option<i64>,
    pub(super) run_as_group: Option<i64>,
    pub(super) fs_group: Option<i64>,
    #[serde(deserialize_with = "or_default")]
    pub(super) supplemental_groups: Vec<i64>,
    #[serde(deserialize_with = "or_default")]
    pub(super) sysctls: Vec<Named>,
}

/// A container of any kind.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Its name.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Its image.
    #[serde(deserialize_with = "or_default")]
    pub image: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) security_context: ContainerSecurity,
    #[serde(deserialize_with = "or_default")]
    pub(super) volume_mounts: Vec<VolumeMount>,
    #[serde(deserialize_with = "or_default")]
    pub(super) volume_devices: Vec<Named>,
    #[serde(deserialize_with = "or_default")]
    pub(super) resources: Resources,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ContainerSecurity {
    #[serde(deserialize_with = "or_default")]
    pub(super) privileged: bool,
    pub(super) run_as_user: Option<i64>,
    pub(super) run_as_group: Option<i64>,
    #[serde(deserialize_with = "or_default")]
    pub(super) capabilities: Capabilities,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Capabilities {
    #[serde(deserialize_with = "or_default")]
    pub(super) add: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeMount {
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) mount_propagation: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Resources {
    #[serde(deserialize_with = "or_default")]
    pub(super) limits: BTreeMap<String, Value>,
    #[serde(deserialize_with = "or_default")]
    pub(super) claims: Vec<Named>,
}

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Volume {
    /// Its name.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    pub(super) host_path: Option<HostPath>,
    pub(super) nfs: Option<Nfs>,
    pub(super) persistent_volume_claim: Option<Claim>,
}

impl Volume {
    /// The claim whose data it holds.
    pub fn claim(&self) -> Option<&str> {
        self.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.as_str())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct HostPath {
    #[serde(deserialize_with = "or_default")]
    pub(super) path: String,
    #[serde(rename = "type", deserialize_with = "or_default")]
    pub(super) kind: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Nfs {
    #[serde(deserialize_with = "or_default")]
    pub(super) server: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) path: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Claim {
    #[serde(deserialize_with = "or_default")]
    claim_name: String,
}

/// Something of which only the name matters.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Named {
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
}

/// `null` reads as absent.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}
