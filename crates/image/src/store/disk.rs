//! The store's files: every change is a rename that is made durable, every removal starts with the record.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::layer::{Layer, LayerNumber};
use super::record::StoredImage;

const LAYERS: &str = "layers";
const LAYER_RECORDS: &str = "layer-records";
const IMAGES: &str = "images";
const TMP: &str = "tmp";

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
    _lock: File,
}

/// A directory below `tmp/`, removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
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
        let disk = Self { dir: dir.to_owned(), _lock: lock };
        for path in disk.entries(TMP)? {
            remove_any(&path)?;
        }
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

    fn image_record(&self, id: &str) -> PathBuf {
        self.dir.join(IMAGES).join(format!("{}.json", id.replace(':', "-")))
    }

    fn entries(&self, name: &str) -> Result<Vec<PathBuf>, StoreError> {
        let dir = self.dir.join(name);
        let listed: io::Result<Vec<_>> = fs::read_dir(&dir)
            .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.path())).collect());
        listed.map_err(failed("listing", &dir))
    }

    /// The layers that have both a record and a directory; what has only one of them is removed.
    pub(super) fn read_layers(&self) -> Result<Vec<Layer>, StoreError> {
        let mut layers: Vec<Layer> = Vec::new();
        for path in self.entries(LAYER_RECORDS)? {
            match read_record::<Layer>(&path)? {
                Some(layer)
                    if self.layer_path(layer.number).is_dir() && self.layer_record(layer.number) == path =>
                {
                    layers.push(layer);
                }
                _ => remove_any(&path)?,
            }
        }
        for path in self.entries(LAYERS)? {
            if !layers.iter().any(|layer| self.layer_path(layer.number) == path) {
                remove_any(&path)?;
            }
        }
        Ok(layers)
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
        let path = self.dir.join(TMP).join(number.to_string());
        fs::DirBuilder::new().mode(0o755).create(&path).map_err(failed("making", &path))?;
        let scratch = Scratch { path, is_kept: false };
        let directory = scratch.open()?;
        // Whatever the umask of this process: a layer's root is readable unless the layer says otherwise.
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o755))
            .map_err(|errno| failed("setting the mode of", &scratch.path)(errno.into()))?;
        Ok(scratch)
    }

    /// Makes a tree durable, moves it to its place and writes its record.
    pub(super) fn publish(&self, mut scratch: Scratch, layer: &Layer) -> Result<(), StoreError> {
        let root = scratch.open()?;
        // One call for all of the layer's files: an fsync for each would take longer than unpacking them.
        rustix::fs::syncfs(&root).map_err(|errno| failed("syncing", scratch.path())(errno.into()))?;
        let to = self.layer_path(layer.number);
        fs::rename(&scratch.path, &to).map_err(failed("making", &to))?;
        scratch.is_kept = true;
        sync_directory(&self.layers_dir())?;
        let written = self.write_record(&self.layer_record(layer.number), layer);
        if written.is_err() {
            remove_any(&to)?;
        }
        written
    }

    pub(super) fn write_image(&self, image: &StoredImage) -> Result<(), StoreError> {
        self.write_record(&self.image_record(&image.id), image)
    }

    pub(super) fn remove_image(&self, id: &str) -> Result<(), StoreError> {
        remove_any(&self.image_record(id))?;
        sync_directory(&self.dir.join(IMAGES))
    }

    pub(super) fn remove_layer(&self, number: LayerNumber) -> Result<(), StoreError> {
        remove_any(&self.layer_record(number))?;
        sync_directory(&self.dir.join(LAYER_RECORDS))?;
        let (from, to) = (self.layer_path(number), self.dir.join(TMP).join(number.to_string()));
        match fs::rename(&from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(failed("removing", &from))?,
        }
        remove_any(&to)
    }

    fn write_record<T: Serialize>(&self, path: &Path, record: &T) -> Result<(), StoreError> {
        let name = path.file_name().unwrap_or_default();
        let draft = self.dir.join(TMP).join(name);
        let write = || -> io::Result<()> {
            let mut file =
                File::options().create(true).write(true).truncate(true).mode(0o600).open(&draft)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            file.sync_all()?;
            fs::rename(&draft, path)
        };
        write().map_err(|source| {
            // The draft would go at the next start too.
            let _ = fs::remove_file(&draft);
            failed("writing", path)(source)
        })?;
        sync_directory(path.parent().unwrap_or(&self.dir))
    }
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
