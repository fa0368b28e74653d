//! From a layer's compressed bytes to a directory tree, in one pass and one thread:
//! bytes → digest → inflate → digest → untar. Both digests and the size are checked before the tree is used.

mod apply;
mod beneath;
mod inflate;
mod parents;
mod pax;
mod tar;

use std::io::{self, Read};
use std::os::fd::OwnedFd;

pub(crate) use apply::Purpose;
pub use beneath::PathError;
pub(crate) use parents::complete;

use crate::digest::{Digest, Hasher};
use crate::store::LayerSize;
use inflate::Inflate;
use tar::{TarError, TarReader};

/// What unpacking made, and what it could not know without the layers below.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Tree {
    /// What it takes.
    pub(crate) size: LayerSize,
    /// Directories that the archive has no entry for: they must look as in the layers below.
    pub(crate) implied: Vec<Vec<u8>>,
    /// Hard links to files of the layers below.
    pub(crate) links: Vec<PendingLink>,
}

/// A hard link whose target is not in its own layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingLink {
    pub(crate) path: Vec<u8>,
    pub(crate) target: Vec<u8>,
}

impl Tree {
    /// Whether the tree is the same on whatever layers it lies.
    pub(crate) fn is_self_contained(&self) -> bool {
        self.implied.is_empty() && self.links.is_empty()
    }
}

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The bytes stopped coming; the sender knows why.
    #[error("reading the layer: {0}")]
    Input(#[source] io::Error),
    /// Not a tar archive, or a broken one.
    #[error("{0}; the layer is damaged, build or push the image again")]
    Archive(String),
    /// An entry that would leave the layer.
    #[error("the entry `{entry}` is refused: {reason}; do not use this image, it is broken or hostile")]
    Refused {
        /// The entry's name as the archive has it.
        entry: String,
        /// Why.
        reason: PathError,
    },
    /// A hard link that leads nowhere good.
    #[error(
        "the hard link `{entry}` to `{target}` is refused: {reason}; do not use this image, it is broken or hostile"
    )]
    Link {
        /// The entry's name as the archive has it.
        entry: String,
        /// The link's target as the archive has it.
        target: String,
        /// Why.
        reason: PathError,
    },
    /// The disk is full (or the quota, or the inodes).
    #[error(
        "writing `{path}`: no space left on the file system of the image store; free some, then it is tried again"
    )]
    NoSpace {
        /// The file that no longer fitted.
        path: String,
    },
    /// The kernel refused something else.
    #[error("making `{path}` in the image store: {source}")]
    Disk {
        /// The file within the layer.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The compressed bytes are not what the manifest promised.
    #[error("{0}")]
    Content(#[from] ContentError),
    /// The archive is not what the image's configuration promised.
    #[error(
        "the unpacked layer has the digest {got}, but the image's configuration says {expected}; the image is damaged"
    )]
    DiffId {
        /// What the configuration says.
        expected: Digest,
        /// What came.
        got: Digest,
    },
}

/// Bytes that are not those that were promised.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ContentError {
    /// Another digest.
    #[error("wrong digest: expected {expected}, got {got}")]
    Digest {
        /// What was promised.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// More or fewer bytes.
    #[error("wrong size: expected {expected} bytes, got {got}")]
    Size {
        /// What was promised.
        expected: u64,
        /// What came; when too many came, the count at which reading stopped.
        got: u64,
    },
}

impl UnpackError {
    fn on_disk(path: String, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path },
            _ => Self::Disk { path, source },
        }
    }

    fn input(source: io::Error) -> Self {
        match source.get_ref().and_then(|inner| inner.downcast_ref::<ContentError>()) {
            Some(content) => Self::Content(content.clone()),
            None => Self::Input(source),
        }
    }

    /// Whether the bytes themselves could be at fault, so that reading on to the digest tells more.
    fn is_about_content(&self) -> bool {
        matches!(self, Self::Archive(_) | Self::Refused { .. } | Self::Link { .. })
    }
}

impl From<TarError> for UnpackError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Malformed { .. } => Self::Archive(error.to_string()),
            TarError::Io(source) if is_input(&source) => Self::input(source),
            TarError::Io(source) => {
                Self::Archive(format!("the layer cannot be decompressed or read: {source}"))
            }
        }
    }
}

/// What a layer's compressed bytes must be.
#[derive(Debug, Clone)]
pub(crate) struct Promise {
    /// Digest of the compressed bytes and their number; `None` for an archive that came by hand.
    pub(crate) blob: Option<(Digest, u64)>,
    /// Digest of the archive.
    pub(crate) diff_id: Digest,
}

/// Unpacks `input` into the empty directory `root` and checks what came.
///
/// # Errors
/// Any `UnpackError`; then the directory holds a part of the layer and must be removed.
pub(crate) fn unpack_layer(input: impl Read, root: OwnedFd, promise: &Promise) -> Result<Tree, UnpackError> {
    let blob_hasher = promise.blob.as_ref().map(|(digest, _)| digest.hasher());
    let limit = promise.blob.as_ref().map(|(_, size)| *size);
    let mut counted = Counted { input, hasher: blob_hasher, count: 0, limit };
    let unpacked = unpack_counted(&mut counted, root, &promise.diff_id);
    match &unpacked {
        Err(error) if !error.is_about_content() && !matches!(error, UnpackError::DiffId { .. }) => {
            return unpacked;
        }
        _ => {}
    }
    // Bytes after the compressed stream's end still belong to the blob; and when an entry is bad, the digest
    // tells whether the image says so or a mirror sent something else.
    io::copy(&mut counted, &mut io::sink()).map_err(UnpackError::input)?;
    counted.check(promise.blob.as_ref())?;
    unpacked
}

fn unpack_counted(counted: &mut impl Read, root: OwnedFd, diff_id: &Digest) -> Result<Tree, UnpackError> {
    let inflate = Inflate::new(counted).map_err(TarError::Io)?;
    let archive = Counted { input: inflate, hasher: Some(diff_id.hasher()), count: 0, limit: None };
    let mut reader = TarReader::new(io::BufReader::with_capacity(128 << 10, archive));
    let tree = apply::Applier::new(root, Purpose::Layer).run(&mut reader)?;
    let mut rest = reader.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(TarError::Io)?;
    let got = rest.into_inner().hasher.map(Hasher::finish);
    match got {
        Some(got) if got != *diff_id => Err(UnpackError::DiffId { expected: diff_id.clone(), got }),
        _ => Ok(tree),
    }
}

/// Unpacks `input` on top of the layer `lower` whatever its digests are: what is fuzzed is all that follows them.
#[cfg(feature = "fuzz")]
pub(crate) fn unpack_unverified(input: impl Read, root: OwnedFd, lower: OwnedFd) -> Result<(), UnpackError> {
    let mut inflate = Inflate::new(input).map_err(TarError::Io)?;
    let mut reader = TarReader::new(io::BufReader::with_capacity(128 << 10, &mut inflate));
    let again = root.try_clone().map_err(UnpackError::Input)?;
    let mut tree = apply::Applier::new(root, Purpose::Layer).run(&mut reader)?;
    complete(again, &mut tree, &[lower])
}

/// Unpacks a file that carries images (`docker save`, an OCI archive) into a directory, as plain files.
///
/// # Errors
/// Any `UnpackError` but those about digests: a carrier has none.
pub(crate) fn unpack_carrier(input: impl Read, root: OwnedFd) -> Result<Tree, UnpackError> {
    let mut inflate = Inflate::new(input).map_err(TarError::Io)?;
    let mut reader = TarReader::new(io::BufReader::with_capacity(128 << 10, &mut inflate));
    apply::Applier::new(root, Purpose::Carrier).run(&mut reader)
}

/// Marks an error of the input, so that it is not taken for a damaged archive.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct InputError(pub(crate) String);

fn is_input(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<InputError>() || inner.is::<ContentError>())
}

/// Counts and hashes what is read, and stops at the promised size.
struct Counted<R> {
    input: R,
    hasher: Option<Hasher>,
    count: u64,
    limit: Option<u64>,
}

impl<R> Counted<R> {
    fn check(self, promised: Option<&(Digest, u64)>) -> Result<(), ContentError> {
        let (Some((expected, size)), Some(hasher)) = (promised, self.hasher) else { return Ok(()) };
        if self.count != *size {
            return Err(ContentError::Size { expected: *size, got: self.count });
        }
        let got = hasher.finish();
        if got == *expected { Ok(()) } else { Err(ContentError::Digest { expected: expected.clone(), got }) }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.count += count as u64;
        if let Some(expected) = self.limit.filter(|limit| self.count > *limit) {
            return Err(io::Error::other(ContentError::Size { expected, got: self.count }));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(buffer.get(..count).unwrap_or_default());
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
