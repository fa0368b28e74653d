//! What the runtime remembers on disk: one JSON file for each sandbox and container, replaced atomically before
//! and after each step that leaves something behind. A daemon that starts anew reads them and finishes or
//! undoes what was half-done.
//!
//! Files are renamed into place but not fsynced: a SIGKILL loses nothing that was written, and after a power
//! loss no sandbox runs, so a record then only says which directories to remove.

use std::fs;
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use cri::v1::{ContainerConfig, PodSandboxConfig};
use image::ImageConfig;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::mapping::PodIds;
use crate::process::user::User;

const FILE: &str = "record.json";

/// Where a sandbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SandboxPhase {
    /// Being made; undone when found at start.
    Creating,
    /// Its namespaces exist and its shim answers.
    Ready,
    /// Stopped, or its shim died.
    NotReady,
    /// Being removed; finished when found at start.
    Removing,
}

/// A sandbox, as it was asked for and as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SandboxRecord {
    pub(crate) id: String,
    pub(crate) config: PodSandboxConfig,
    pub(crate) handler: String,
    /// `None` is the node's user namespace.
    pub(crate) ids: Option<PodIds>,
    /// Nanoseconds since 1970.
    pub(crate) created_at: i64,
    pub(crate) phase: SandboxPhase,
    /// Addresses in the Pod network; empty with the node's network.
    #[serde(default)]
    pub(crate) addresses: Vec<IpAddr>,
    /// What the shim could not honour in full.
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
    /// Its containers have been ended and its network has been given back.
    #[serde(default)]
    pub(crate) is_stopped: bool,
}

/// The image a container was made from, kept whole so that nothing depends on the image's later removal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ImageUse {
    /// `sha256:` and the configuration's digest.
    pub(crate) id: String,
    /// What people call it.
    pub(crate) name: String,
    /// `repository@digest` where known, else the ID.
    pub(crate) reference: String,
    pub(crate) config: ImageConfig,
    /// Unpacked layers, lowest first.
    pub(crate) layers: Vec<PathBuf>,
}

/// Where a container stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ContainerPhase {
    /// Being made; undone when found at start.
    Creating,
    /// Made, never started.
    Created,
    /// Handed to the shim; whether it runs is the shim's to say.
    Starting,
    /// Its first process runs.
    Running { pid: i32, started_at: i64 },
    /// Its first process ended, or could not be started.
    Exited(Exited),
    /// Being removed; finished when found at start.
    Removing,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Exited {
    /// 0 when it never ran.
    pub(crate) started_at: i64,
    pub(crate) finished_at: i64,
    pub(crate) code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// A volume that the image declares, seeded from the image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageVolume {
    /// Path in the container.
    pub(crate) path: String,
    /// Name of its directory below the container's `volumes`.
    pub(crate) directory: String,
}

/// An image that the request mounts, kept whole like the container's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageMount {
    /// Path in the container.
    pub(crate) path: String,
    /// `sha256:` and the configuration's digest.
    pub(crate) id: String,
    /// Unpacked layers, lowest first.
    pub(crate) layers: Vec<PathBuf>,
}

/// A container, as it was asked for and as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: String,
    pub(crate) sandbox: String,
    pub(crate) config: ContainerConfig,
    pub(crate) image: ImageUse,
    pub(crate) user: User,
    #[serde(default)]
    pub(crate) volumes: Vec<ImageVolume>,
    /// Device nodes that do not belong to whom they belong on the node.
    #[serde(default)]
    pub(crate) node_owners: Vec<crate::cdi::NodeOwner>,
    #[serde(default)]
    pub(crate) image_mounts: Vec<ImageMount>,
    /// `SECCOMP_FILTER_FLAG_…` of the node's profile that was compiled for the container.
    #[serde(default)]
    pub(crate) seccomp_flags: u32,
    /// Nanoseconds since 1970.
    pub(crate) created_at: i64,
    pub(crate) phase: ContainerPhase,
}

/// Why a record can't be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("write the record {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
    #[error("read the record {path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("the record {path} is damaged ({source})")]
    Damaged { path: PathBuf, source: serde_json::Error },
}

/// Replaces the record in `directory`.
pub(crate) fn save<T: Serialize>(directory: &Path, record: &T) -> Result<(), RecordError> {
    let path = directory.join(FILE);
    let write = || {
        let bytes = serde_json::to_vec(record).map_err(io::Error::other)?;
        let temporary = directory.join(format!(".{FILE}"));
        write_over(&temporary, &bytes)?;
        put(&temporary, &path)
    };
    write().map_err(|source| RecordError::Write { path: path.clone(), source })
}

/// Writes a file whole in the place of what it was. Not truncated first: at the end of such a write ext4 (`auto_da_alloc`)
/// waits for the disk, which no record needs.
fn write_over(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::options().write(true).create(true).truncate(false).open(path)?;
    file.write_all(bytes)?;
    let length = bytes.len() as u64;
    if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
}

/// Puts a new record in the place of the one before. The two change places, and the old one stays to be written over: a
/// rename onto a file that exists would wait for the disk too, and a removal does where the disk discards what is freed.
fn put(new: &Path, place: &Path) -> io::Result<()> {
    // The first record, or a file system without this call.
    renameat_with(CWD, new, CWD, place, RenameFlags::EXCHANGE).or_else(|_| fs::rename(new, place))
}

/// Reads the record in `directory`; `None` when there is none yet.
pub(crate) fn load<T: DeserializeOwned>(directory: &Path) -> Result<Option<T>, RecordError> {
    let path = directory.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(RecordError::Read { path, source }),
    };
    match serde_json::from_slice(&bytes) {
        Ok(record) => Ok(Some(record)),
        Err(source) => Err(RecordError::Damaged { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox() -> SandboxRecord {
        SandboxRecord {
            id: "a".into(),
            config: PodSandboxConfig { hostname: "pod".into(), ..PodSandboxConfig::default() },
            handler: String::new(),
            ids: None,
            created_at: 7,
            phase: SandboxPhase::Creating,
            addresses: vec![IpAddr::from([10, 0, 0, 1])],
            warnings: Vec::new(),
            is_stopped: false,
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_saved() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(load::<SandboxRecord>(directory.path()).unwrap(), None);
        save(directory.path(), &sandbox()).unwrap();
        assert_eq!(load(directory.path()).unwrap(), Some(sandbox()));
        let next = SandboxRecord { phase: SandboxPhase::Ready, ..sandbox() };
        save(directory.path(), &next).unwrap();
        assert_eq!(load(directory.path()).unwrap(), Some(next));
        let short = SandboxRecord { id: String::new(), addresses: Vec::new(), ..sandbox() };
        save(directory.path(), &short).unwrap();
        assert_eq!(load(directory.path()).unwrap(), Some(short), "nothing of a longer one shows");
    }

    #[test]
    fn a_damaged_record_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(FILE), b"{\"id\":").unwrap();
        let error = load::<SandboxRecord>(directory.path()).unwrap_err();
        assert!(error.to_string().contains("record.json"), "{error}");
    }

    #[test]
    fn a_half_written_record_is_never_read() {
        let directory = tempfile::tempdir().unwrap();
        save(directory.path(), &sandbox()).unwrap();
        fs::write(directory.path().join(format!(".{FILE}")), b"{").unwrap();
        assert_eq!(load(directory.path()).unwrap(), Some(sandbox()));
    }
}
