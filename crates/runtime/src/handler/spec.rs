//! The part of the OCI runtime specification's `config.json` (1.0.2) that is written here. Names and meanings are the
//! specification's.

use serde::Serialize;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Spec {
    pub(super) oci_version: &'static str,
    pub(super) root: Root,
    pub(super) mounts: Vec<Mount>,
    pub(super) process: Process,
    pub(super) linux: Linux,
}

#[derive(Debug, Serialize)]
pub(super) struct Root {
    pub(super) path: String,
    pub(super) readonly: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Mount {
    pub(super) destination: String,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) source: String,
    pub(super) options: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    pub(super) terminal: bool,
    pub(super) user: User,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<String>,
    pub(super) cwd: String,
    pub(super) capabilities: Capabilities,
    pub(super) no_new_privileges: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) apparmor_profile: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) selinux_label: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) umask: Option<u32>,
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Serialize)]
pub(super) struct Capabilities {
    pub(super) bounding: Vec<String>,
    pub(super) effective: Vec<String>,
    pub(super) permitted: Vec<String>,
    pub(super) inheritable: Vec<String>,
    pub(super) ambient: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Linux {
    pub(super) namespaces: Vec<Namespace>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) uid_mappings: Vec<IdMapping>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) gid_mappings: Vec<IdMapping>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) devices: Vec<Node>,
    pub(super) cgroups_path: String,
    pub(super) resources: Resources,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) seccomp: Option<sys::seccomp::Document>,
    pub(super) masked_paths: Vec<String>,
    pub(super) readonly_paths: Vec<String>,
    /// How the container's root is shared with the node.
    pub(super) rootfs_propagation: &'static str,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Namespace {
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    /// `None` is a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct IdMapping {
    #[serde(rename = "containerID")]
    pub(super) container_id: u32,
    #[serde(rename = "hostID")]
    pub(super) host_id: u32,
    pub(super) size: u32,
}

/// A device node that the runtime makes.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Node {
    pub(super) path: String,
    #[serde(rename = "type")]
    pub(super) kind: &'static str,
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) file_mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Devices alone: every other limit is set on the cgroup by this runtime itself, before and after.
#[derive(Debug, Serialize)]
pub(super) struct Resources {
    pub(super) devices: Vec<Device>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Device {
    pub(super) allow: bool,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) major: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) minor: Option<u32>,
    pub(super) access: String,
}
