//! Record files on disk: written so that a crash leaves the old state or the new one, read so that nothing found
//! in their place can block or mislead.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use userns::{IdRange, OnDisk, PodUid, Record, RecordDefect, RecordError};

use crate::fault::{CrashPoint, Faults};

const NAME: &str = "userns";
const TEMPORARY: &str = ".userns-new";

/// The mode of the Pods' directories. Root of a Pod can make set-uid programs in its volumes, and on disk they belong
/// to the node's root: no user of the node may reach them.
const PRIVATE: u32 = 0o750;

/// A record is about 150 bytes; what is larger than this is something else.
const LARGEST: u64 = 64 << 10;

/// The Pods' directories: `<kubelet root>/pods`.
#[derive(Clone, Debug)]
pub(super) struct PodDirs {
    root: PathBuf,
}

impl PodDirs {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    pub(super) fn record_path(&self, pod: &PodUid) -> PathBuf {
        self.root.join(pod).join(NAME)
    }

    /// Whether the Pod has a directory.
    pub(super) fn has(&self, pod: &PodUid) -> bool {
        self.root.join(pod).is_dir()
    }

    /// Every record on disk; Pods without one are left out. A missing directory has none.
    pub(super) fn records(&self) -> io::Result<Vec<OnDisk>> {
        let mut found = Vec::new();
        for pod in self.pods()? {
            if let Some(content) = self.read(&pod) {
                found.push(OnDisk { pod, content });
            }
        }
        Ok(found)
    }

    /// The Pods that have a directory. Other files are passed over.
    pub(super) fn pods(&self) -> io::Result<Vec<PodUid>> {
        let entries = match fs::read_dir(&self.root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut pods = Vec::new();
        for entry in entries {
            let entry = entry?;
            let uid = entry.file_name().to_str().and_then(|name| PodUid::parse(name).ok());
            if entry.file_type()?.is_dir() {
                pods.extend(uid);
            }
        }
        Ok(pods)
    }

    /// The Pod's record: `None` when there is no such file.
    ///
    /// Nothing is followed and nothing is waited for: a symlink, a directory, a FIFO or a device in the record's
    /// place is a defect of the record.
    pub(super) fn read(&self, pod: &PodUid) -> Option<Result<Record, RecordError>> {
        match read_small(&self.record_path(pod)) {
            Ok(bytes) => Some(Record::parse(&bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                let defect = RecordDefect::Unreadable(e.to_string());
                Some(Err(RecordError { defect, touched: Vec::new() }))
            }
        }
    }

    /// Writes the record durably: 0600, a temporary file synced and renamed, then the directory synced.
    pub(super) fn write(&self, pod: &PodUid, range: IdRange, faults: &dyn Faults) -> io::Result<()> {
        let dir = self.root.join(pod);
        fs::DirBuilder::new().recursive(true).mode(PRIVATE).create(&dir)?;
        let temporary = dir.join(TEMPORARY);
        faults.at(CrashPoint::BeforeTemporary)?;
        let mut file = create_private(&temporary)?;
        file.write_all(&userns::encode(range))?;
        file.sync_all()?;
        drop(file);
        faults.at(CrashPoint::TemporaryWritten)?;
        rename_over(&temporary, &dir.join(NAME))?;
        faults.at(CrashPoint::Renamed)?;
        sync_dir(&dir)?;
        // Last: by now most filesystems have written it with the record, and this costs nothing more.
        sync_dir(&self.root)
    }

    /// Removes the record; one that is not there is removed already. An empty directory in its place goes too, else the
    /// Pod would never be gone; what somebody put into one is not ours to delete.
    pub(super) fn remove(&self, pod: &PodUid) -> io::Result<()> {
        let path = self.record_path(pod);
        let removed = match fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::IsADirectory => fs::remove_dir(&path),
            other => other,
        };
        match removed {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(()) => sync_dir(&self.root.join(pod)),
        }
    }

    /// Removes what a write that was cut off left behind.
    pub(super) fn remove_leftovers(&self) -> io::Result<()> {
        for pod in self.pods()? {
            match fs::remove_file(self.root.join(&pod).join(TEMPORARY)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// Makes the Pods' directory, open for its owner alone, whoever made it before.
    pub(super) fn close(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).create(&self.root)?;
        fs::set_permissions(&self.root, fs::Permissions::from_mode(PRIVATE))
    }
}

fn create_private(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?;
    Ok(File::from(file))
}

/// Puts a file in the place of whatever is there, an empty directory too.
fn rename_over(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            fs::remove_dir(to)?;
            fs::rename(from, to)
        }
        other => other,
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads a small regular file without following a link and without waiting.
pub(super) fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    read_small_up_to(path, LARGEST)
}

/// Reads a regular file of at most `largest` bytes without following a link and without waiting.
pub(super) fn read_small_up_to(path: &Path, largest: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let fd: OwnedFd = rustix::fs::open(path, flags, Mode::empty())?;
    let file = File::from(fd);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    let read = file.take(largest + 1).read_to_end(&mut bytes)?;
    if read as u64 > largest {
        return Err(io::Error::other(format!("it is larger than {largest} bytes")));
    }
    Ok(bytes)
}
