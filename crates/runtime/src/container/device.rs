//! Device nodes that a container asks for, looked up on the node. A Pod with its own user namespace never gets all
//! of the node's devices, privileged or not: its root is nobody on the node.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use shim::protocol::DevicePlan;

use super::plan;
use crate::error::{Error, Result};
use crate::record::{ContainerRecord, SandboxRecord};

/// Directories of `/dev` that hold no devices of the node, or that a container has of its own.
const OWN: [&str; 6] = ["pts", "shm", "mqueue", "fd", "console", ".lxc"];

/// What a container may use of the node's devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Devices {
    pub(crate) nodes: Vec<DevicePlan>,
    /// What the devices cgroup allows for each node, e.g. `rwm`.
    pub(crate) permissions: Vec<String>,
    /// Every device is allowed.
    pub(crate) allows_all: bool,
}

impl Devices {
    fn add(&mut self, node: DevicePlan, permissions: &str) {
        self.nodes.push(node);
        self.permissions.push(permissions.to_owned());
    }
}

/// Finds the devices of a container.
pub(crate) fn find(record: &ContainerRecord, sandbox: &SandboxRecord) -> Result<Devices> {
    let is_privileged = plan::security(record).privileged;
    let mut devices = Devices { allows_all: is_privileged && sandbox.ids.is_none(), ..Devices::default() };
    if devices.allows_all {
        for (host, container) in below(Path::new("/dev"), Path::new("/dev"))? {
            if let Some(node) = node(&host, &container, sandbox)? {
                devices.add(node, "rwm");
            }
        }
    }
    for device in &record.config.devices {
        let permissions = if device.permissions.is_empty() { "rwm" } else { &device.permissions };
        let (host, container) = (Path::new(&device.host_path), Path::new(&device.container_path));
        let found =
            if host.is_dir() { below(host, container)? } else { vec![(host.into(), container.into())] };
        for (host, container) in found {
            let node = node(&host, &container, sandbox)?;
            let mut node = node.ok_or_else(|| Error::Invalid(format!("{} is no device", host.display())))?;
            if let Some(owner) = record.node_owners.iter().find(|owner| owner.path == node.path) {
                node.mode = owner.mode.unwrap_or(node.mode);
                node.uid = owner.uid.unwrap_or(node.uid);
                node.gid = owner.gid.unwrap_or(node.gid);
            }
            devices.nodes.retain(|other| other.path != node.path);
            devices.add(node, permissions);
        }
    }
    Ok(devices)
}

/// The devices in a directory and below, with the paths they get in the container.
fn below(host: &Path, container: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let failed = |error| Error::failed(format!("list the devices in {}", host.display()), error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(host).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (name, kind) = (entry.file_name(), entry.file_type().map_err(failed)?);
        if host == Path::new("/dev") && OWN.iter().any(|own| name == *own) {
            continue;
        }
        if kind.is_dir() {
            found.extend(below(&entry.path(), &container.join(&name))?);
        } else if kind.is_block_device() || kind.is_char_device() {
            found.push((entry.path(), container.join(&name)));
        }
    }
    found.sort();
    Ok(found)
}

/// One device; `None` when the path is something else. Its owner keeps his number where the Pod has that number.
fn node(host: &Path, container: &Path, sandbox: &SandboxRecord) -> Result<Option<DevicePlan>> {
    let metadata = std::fs::metadata(host)
        .map_err(|error| Error::failed(format!("look up the device {}", host.display()), error))?;
    let kind = metadata.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return Ok(None);
    }
    let inside = |id: u32, map: Option<crate::mapping::IdMap>| {
        if map.is_none_or(|map| map.host_id(id).is_some()) { id } else { 0 }
    };
    let number = metadata.rdev();
    Ok(Some(DevicePlan {
        path: container.to_string_lossy().into_owned(),
        is_block: kind.is_block_device(),
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
        mode: metadata.mode() & 0o7777,
        uid: inside(metadata.uid(), sandbox.ids.map(|ids| ids.uids)),
        gid: inside(metadata.gid(), sandbox.ids.map(|ids| ids.gids)),
    }))
}
