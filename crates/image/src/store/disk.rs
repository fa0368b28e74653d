//! The store's files: every change is a rename that is made durable, every removal starts with the record.
//!
//! A layer's files are not waited for. Its record carries the boot's ID in its name until they are on the disk: while the
//! machine runs, all of them are in its memory, whatever becomes of this process; when it went down before, the record is
//! another boot's, and the layer is removed at open. So a layer is there whole or not at all, and a pull is as fast as
//! unpacking is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, IFlags, Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::layer::{Layer, LayerNumber};
use super::record::StoredImage;

const LAYERS: &str = "layers";
const LAYER_RECORDS: &str = "layer-records";
const IMAGES: &str = "images";
const TMP: &str = "tmp";
/// The ID of this boot, and another one at each look.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
const NEW_ID: &str = "/proc/sys/kernel/random/uuid";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system said no.
    #[error("the image store: {action} {path}: {source}{}", remedy(source))]
    Disk {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("the image store {path} is in use by another process: use that one's, or stop it first")]
    InUse {
        /// The store's directory.
        path: PathBuf,
    },
}

fn remedy(source: &io::Error) -> &'static str {
    if is_no_space(source) { "; free some space on this file system" } else { "" }
}

fn is_no_space(source: &io::Error) -> bool {
    matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl StoreError {
    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Disk { source, .. } if is_no_space(source))
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Disk { action, path, source }
}

/// The directory, held open and locked.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    /// The ID of the boot: what says that it happened in this one may be in memory alone.
    boot: String,
    /// What the names in `tmp/` end in, another one at each start: ext4 chooses by the name where a directory lies, and
    /// where others of the same name were removed a moment ago is the worst place.
    salt: String,
    _lock: File,
}

/// A layer whose record is this boot's.
#[derive(Debug)]
pub(super) struct Unsettled {
    pub(super) number: LayerNumber,
    /// Its root, open since before it had files: syncing it tells of every write that failed since.
    root: OwnedFd,
}

/// When a change must be on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durable {
    /// At return.
    Now,
    /// With the layers that it is about.
    Later,
}

/// A directory below `tmp/`, removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    root: OwnedFd,
    is_kept: bool,
}

impl Scratch {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it as a root to unpack into.
    pub(crate) fn open(&self) -> Result<OwnedFd, StoreError> {
        open_directory(&self.path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.is_kept
            && let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a temporary directory stays until the next start");
        }
    }
}

/// Opens a directory for reading.
pub(crate) fn open_directory(path: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed("opening", path)(errno.into()))
}

impl Disk {
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        make_private(dir)?;
        let lock_path = dir.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(failed("opening", &lock_path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::InUse { path: dir.to_owned() }),
            Err(errno) => return Err(failed("locking", &lock_path)(errno.into())),
        }
        for name in [LAYERS, LAYER_RECORDS, IMAGES, TMP] {
            make_private(&dir.join(name))?;
        }
        let (boot, salt) = (read_id(BOOT_ID)?, read_id(NEW_ID)?);
        let disk = Self { dir: dir.to_owned(), boot, salt, _lock: lock };
        for path in disk.entries(TMP)? {
            remove_any(&path)?;
        }
        spread_children(&disk.dir.join(TMP));
        Ok(disk)
    }

    pub(super) fn layers_dir(&self) -> PathBuf {
        self.dir.join(LAYERS)
    }

    fn layer_path(&self, number: LayerNumber) -> PathBuf {
        self.dir.join(LAYERS).join(number.to_string())
    }

    fn layer_record(&self, number: LayerNumber) -> PathBuf {
        self.dir.join(LAYER_RECORDS).join(format!("{number}.json"))
    }

    /// The record's name until the layer is on the disk.
    fn unsettled_record(&self, number: LayerNumber) -> PathBuf {
        self.dir.join(LAYER_RECORDS).join(format!("{number}.{}.json", self.boot))
    }

    fn image_record(&self, id: &str) -> PathBuf {
        self.dir.join(IMAGES).join(format!("{}.json", id.replace(':', "-")))
    }

    fn entries(&self, name: &str) -> Result<Vec<PathBuf>, StoreError> {
        let dir = self.dir.join(name);
        let listed: io::Result<Vec<_>> = fs::read_dir(&dir)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
        listed.map_err(failed("listing", &dir))
    }

    /// The layers that have both a record and a directory, and those of them that may be in memory alone. What has only
    /// one of the two is removed, and what was still in memory when the machine went down.
    pub(super) fn read_layers(&self) -> Result<(Vec<Layer>, Vec<Unsettled>), StoreError> {
        let (mut layers, mut unsettled) = (Vec::new(), Vec::new());
        for path in self.entries(LAYER_RECORDS)? {
            let read = read_record::<Layer>(&path)?;
            let Some(layer) = read.filter(|layer| self.layer_path(layer.number).is_dir()) else {
                remove_any(&path)?;
                continue;
            };
            if path == self.unsettled_record(layer.number) {
                let root = open_directory(&self.layer_path(layer.number))?;
                unsettled.push(Unsettled { number: layer.number, root });
            } else if path != self.layer_record(layer.number) {
                tracing::warn!(path = %path.display(), "the machine went down before this layer was on the disk");
                remove_any(&path)?;
                continue;
            }
            layers.push(layer);
        }
        for path in self.entries(LAYERS)? {
            if !layers.iter().any(|layer| self.layer_path(layer.number) == path) {
                remove_any(&path)?;
            }
        }
        Ok((layers, unsettled))
    }

    /// The images' records; one that cannot be read is removed, for the image can be pulled again.
    pub(super) fn read_images(&self) -> Result<Vec<StoredImage>, StoreError> {
        let mut images = Vec::new();
        for path in self.entries(IMAGES)? {
            match read_record(&path)? {
                Some(image) => images.push(image),
                None => remove_any(&path)?,
            }
        }
        Ok(images)
    }

    pub(super) fn scratch(&self, number: u64) -> Result<Scratch, StoreError> {
        let path = self.dir.join(TMP).join(format!("{number}-{}", self.salt));
        fs::DirBuilder::new().mode(0o755).create(&path).map_err(failed("making", &path))?;
        let scratch = Scratch { root: open_directory(&path)?, path, is_kept: false };
        // Whatever the umask of this process: a layer's root is readable unless the layer says otherwise.
        rustix::fs::fchmod(&scratch.root, Mode::from_raw_mode(0o755))
            .map_err(|errno| failed("setting the mode of", &scratch.path)(errno.into()))?;
        Ok(scratch)
    }

    /// Moves a tree to its place and writes its record, as this boot's.
    pub(super) fn publish(&self, mut scratch: Scratch, layer: &Layer) -> Result<Unsettled, StoreError> {
        let number = layer.number;
        let to = self.layer_path(number);
        let root = scratch.root.try_clone().map_err(failed("opening", &scratch.path))?;
        fs::rename(&scratch.path, &to).map_err(failed("making", &to))?;
        scratch.is_kept = true;
        let written = self.write_record(&self.unsettled_record(number), layer, Durable::Later);
        if written.is_err() {
            remove_any(&to)?;
        }
        written.map(|()| Unsettled { number, root })
    }

    /// Waits until the layer's files are on the disk, with all that was written before.
    pub(super) fn sync_layer(&self, layer: &Unsettled) -> Result<(), StoreError> {
        // One call for all of the layer's files: an fsync for each would take longer than unpacking them.
        rustix::fs::syncfs(&layer.root)
            .map_err(|errno| failed("syncing", &self.layer_path(layer.number))(errno.into()))
    }

    /// Gives a layer that is on the disk its lasting record.
    pub(super) fn settle(&self, number: LayerNumber) -> Result<(), StoreError> {
        let (from, to) = (self.unsettled_record(number), self.layer_record(number));
        fs::rename(&from, &to).map_err(failed("renaming", &from))
    }

    /// Makes the records of layers durable.
    pub(super) fn sync_layer_records(&self) -> Result<(), StoreError> {
        sync_directory(&self.dir.join(LAYER_RECORDS))
    }

    pub(super) fn write_image(&self, image: &StoredImage, durable: Durable) -> Result<(), StoreError> {
        self.write_record(&self.image_record(&image.id), image, durable)
    }

    pub(super) fn remove_image(&self, id: &str) -> Result<(), StoreError> {
        remove_any(&self.image_record(id))?;
        sync_directory(&self.dir.join(IMAGES))
    }

    pub(super) fn remove_layer(&self, number: LayerNumber) -> Result<(), StoreError> {
        remove_any(&self.unsettled_record(number))?;
        remove_any(&self.layer_record(number))?;
        self.sync_layer_records()?;
        let (from, to) = (self.layer_path(number), self.dir.join(TMP).join(number.to_string()));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed("removing", &from))?,
        }
        remove_any(&to)
    }

    fn write_record<T: Serialize>(
        &self,
        path: &Path,
        record: &T,
        durable: Durable,
    ) -> Result<(), StoreError> {
        let name = path.file_name().unwrap_or_default();
        let draft = self.dir.join(TMP).join(name);
        let write = || -> io::Result<()> {
            let mut file =
                File::options().create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            if durable == Durable::Now {
                file.sync_all()?;
            }
            fs::rename(&draft, path)
        };
        write().map_err(|source| {
            // The draft would go at the next start too.
            let _ = fs::remove_file(&draft);
            failed("writing", path)(source)
        })?;
        match durable {
            Durable::Now => sync_directory(path.parent().unwrap_or(&self.dir)),
            Durable::Later => Ok(()),
        }
    }
}

/// Tells ext4 to put what is made in this directory far apart, as it does with users' homes: layers that are unpacked side
/// by side then fill groups of their own. It matters most without a journal, where ext4 gives no number of an inode away
/// in the minutes after its removal, and looks at each of them for each new file of the group. Others do not know the flag.
fn spread_children(directory: &Path) {
    let set = || -> rustix::io::Result<()> {
        let directory =
            rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = rustix::fs::ioctl_getflags(&directory)?;
        rustix::fs::ioctl_setflags(&directory, flags | IFlags::TOPDIR)
    };
    if let Err(error) = set() {
        tracing::debug!(%error, "layers are not spread over the file system, which does not know how");
    }
}

fn read_id(path: &str) -> Result<String, StoreError> {
    let text = fs::read_to_string(path).map_err(failed("reading", Path::new(path)))?;
    Ok(text.trim().to_owned())
}

fn make_private(path: &Path) -> Result<(), StoreError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(failed("making", path))?;
    let directory = open_directory(path)?;
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o700))
        .map_err(|errno| failed("setting the mode of", path)(errno.into()))
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    let directory = open_directory(path)?;
    rustix::fs::fsync(&directory).map_err(|errno| failed("syncing", path)(errno.into()))
}

fn remove_any(path: &Path) -> Result<(), StoreError> {
    let is_directory = path.symlink_metadata().is_ok_and(|meta| meta.is_dir());
    let removed = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("removing", path)),
    }
}

/// A record; `None` when it is damaged, which is said.
fn read_record<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    let bytes = fs::read(path).map_err(failed("reading", path))?;
    let read = serde_json::from_slice(&bytes);
    Ok(read
        .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "a damaged record is removed"))
        .ok())
}
