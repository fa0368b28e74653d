//! The probes of what Pods in user namespaces need of the kernel and of the machine's filesystems: each does the thing
//! and undoes it. The runtime advertises what they find; `kakoi check` says it line by line.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use sys::idmap::IdMapping;
use sys::mount::{OverlayPlan, Upper};
use userns::MAX_HOST_ID;

/// IDs of a probe's mapping.
const PROBE_LENGTH: u32 = 65_536;

/// The first ID of the mapping that [`probe_namespace`] makes: the highest block that the kernel accepts.
pub const HIGHEST: u32 = MAX_HOST_ID - PROBE_LENGTH + 1;

/// Makes a user namespace that maps the highest IDs that can be given out.
///
/// # Errors
/// What the kernel said, and the remedy.
pub fn probe_namespace() -> Result<OwnedFd, String> {
    let map = [IdMapping { container_id: 0, host_id: HIGHEST, size: PROBE_LENGTH }];
    sys::idmap::namespace_with(&map, &map)
        .map_err(|error| sys::idmap::explain_namespace_error("user", &error))
}

/// ID-maps a clone of the mount that a directory is on.
///
/// # Errors
/// What the kernel said, with the filesystem's name.
pub fn probe_id_map(directory: &Path, mapping: BorrowedFd<'_>) -> Result<(), String> {
    sys::mount::is_id_mappable(directory, mapping).map_err(|error| error.to_string())
}

/// Makes an overlay whose lower layer is ID-mapped. `state_dir` gets the writable layer, `layers_dir` the other one.
///
/// # Errors
/// What could not be made, and what the system said.
pub fn probe_overlay(state_dir: &Path, layers_dir: &Path, mapping: BorrowedFd<'_>) -> Result<(), String> {
    let said = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
    std::fs::create_dir_all(layers_dir).map_err(said("make the layers' directory"))?;
    let lower = Scratch::make(layers_dir).map_err(said("make a directory beside the layers"))?;
    let scratch = Scratch::make(state_dir).map_err(said("make a directory beside the containers"))?;
    let (upper, work) = (scratch.0.join("upper"), scratch.0.join("work"));
    for directory in [&upper, &work] {
        std::fs::create_dir(directory).map_err(said("make an overlay's directory"))?;
    }
    let plan = OverlayPlan {
        layers_dir,
        layers: std::slice::from_ref(&lower.0),
        upper: Some(Upper { upper: &upper, work: &work }),
        id_mapping: Some(mapping),
    };
    sys::mount::overlay(&plan).map(drop).map_err(|error| error.to_string())
}

/// ID-maps a tmpfs, which works from Linux 6.3 on; a volume on an older one is written with the Pod's own IDs instead.
///
/// # Errors
/// What the kernel said.
pub fn probe_tmpfs(mapping: BorrowedFd<'_>) -> Result<(), String> {
    let said = |error: &dyn std::fmt::Display| format!("tmpfs can't be ID-mapped here: {error}");
    let mount = sys::mount::tmpfs(0, 0, 0o700, 1 << 20).map_err(|error| said(&error))?;
    let change = sys::mount::Change { id_mapping: Some(mapping), ..sys::mount::Change::default() };
    sys::mount::change(&mount, &change, false).map_err(|error| said(&error))
}

/// A directory that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make(parent: &Path) -> std::io::Result<Self> {
        let path = parent.join(format!(".probe-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A leftover is empty but for two directories, and a later probe has another name.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
