//! Snapshots: all entries of a store at one revision, as a file that tells by itself whether it is whole. This file
//! writes and reads that form; it decides nothing about where a snapshot goes or when it may be taken back.
//!
//! The form: a line that names it, the time (seconds since 1970, 8 bytes, big-endian like all numbers), then for each
//! entry the lengths of key and value (4 bytes each), its revision (8), key and value. Two lengths of zero end the
//! entries; the store's revision, the number of entries and the SHA-256 of all bytes before it follow.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::{Entry, Revision, Storage, StoreError};

/// How every snapshot begins, whatever its version.
const FAMILY: &[u8] = b"kakoi snapshot ";
/// How a snapshot of this version begins.
const MAGIC: &[u8] = b"kakoi snapshot 1\n";
/// No key of ours is longer; a length beyond it is damage, and must not make us ask for memory.
const LONGEST_KEY: u32 = 64 * 1024;
/// The same for values: the API takes bodies of 3 MiB.
const LONGEST_VALUE: u32 = 64 * 1024 * 1024;

/// What a snapshot says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// The store's revision when it was taken.
    pub revision: Revision,
    /// When it was taken, in seconds since 1970.
    pub taken: u64,
    /// How many entries it has.
    pub entries: u64,
}

/// A snapshot could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The store could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Reading or writing failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file is something else.
    #[error("it is no snapshot of kakoi; name a file that `kakoi snapshot save` has written")]
    Foreign,
    /// The file was written by another version.
    #[error("it has a form that this version of kakoi does not know; use the version that wrote it")]
    Version,
    /// The file ends too early.
    #[error(
        "it ends in the middle, after {entries} entries: it was not written or copied to its end; use another one"
    )]
    Truncated {
        /// The entries before the end.
        entries: u64,
    },
    /// The file is not as it was written.
    #[error("it is damaged: {0}; use another one")]
    Damaged(&'static str),
}

/// Writes all entries of a store, as they are at one revision, to `out`. `taken` is the time, in seconds since 1970.
///
/// # Errors
/// When the store can't be read or `out` can't be written.
pub fn save(store: &dyn Storage, taken: u64, out: impl Write) -> Result<SnapshotInfo, SnapshotError> {
    let mut out = Digesting::new(out);
    out.write_all(MAGIC)?;
    out.write_all(&taken.to_be_bytes())?;
    let mut entries = 0_u64;
    let mut failed: Option<io::Error> = None;
    let revision = store.export(&mut |entry| {
        entries += 1;
        failed = put(&mut out, entry).err();
        failed.is_none()
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
    for number in [0, revision, entries] {
        out.write_all(&number.to_be_bytes())?;
    }
    let digest = out.digest.finalize();
    out.inner.write_all(&digest)?;
    out.inner.flush()?;
    Ok(SnapshotInfo { revision, taken, entries })
}

fn put(out: &mut impl Write, entry: &Entry) -> io::Result<()> {
    let too_long = |_| io::Error::other(format!("the entry {} is too long for a snapshot", entry.key));
    let key = u32::try_from(entry.key.len()).map_err(too_long)?;
    let value = u32::try_from(entry.value.len()).map_err(too_long)?;
    out.write_all(&key.to_be_bytes())?;
    out.write_all(&value.to_be_bytes())?;
    out.write_all(&entry.revision.to_be_bytes())?;
    out.write_all(entry.key.as_bytes())?;
    out.write_all(&entry.value)
}

/// Reads a snapshot to its end, giving each entry to `take`, and holds it against its checksum. Nothing that was given
/// may be used before this answers well: the checksum comes last.
///
/// # Errors
/// When it can't be read, is no snapshot, ends too early or is damaged, or what `take` says.
pub fn read<E: From<SnapshotError>>(
    input: impl Read,
    mut take: impl FnMut(Entry) -> Result<(), E>,
) -> Result<SnapshotInfo, E> {
    let mut reader = Reader { input: Digesting::new(input), entries: 0, last: None };
    let taken = reader.begin()?;
    let revision = loop {
        match reader.next()? {
            Next::Entry(entry) => take(entry)?,
            Next::End(revision) => break revision,
        }
    };
    let newest = reader.finish()?;
    if newest > revision {
        return Err(SnapshotError::Damaged("an entry is newer than the whole").into());
    }
    Ok(SnapshotInfo { revision, taken, entries: reader.entries })
}

enum Next {
    Entry(Entry),
    End(Revision),
}

/// The key and the newest revision so far.
type Last = (Arc<str>, Revision);

struct Reader<R> {
    input: Digesting<R>,
    entries: u64,
    last: Option<Last>,
}

impl<R: Read> Reader<R> {
    fn begin(&mut self) -> Result<u64, SnapshotError> {
        let mut magic = [0; MAGIC.len()];
        match self.input.read_exact(&mut magic) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(SnapshotError::Foreign),
            read => read?,
        }
        if magic != MAGIC {
            let is_ours = magic.starts_with(FAMILY);
            return Err(if is_ours { SnapshotError::Version } else { SnapshotError::Foreign });
        }
        self.number()
    }

    fn next(&mut self) -> Result<Next, SnapshotError> {
        let (key, value) = (u32::from_be_bytes(self.bytes()?), u32::from_be_bytes(self.bytes()?));
        let revision = self.number()?;
        if (key, value) == (0, 0) {
            return Ok(Next::End(revision));
        }
        if key == 0 || key > LONGEST_KEY || value > LONGEST_VALUE {
            return Err(SnapshotError::Damaged("the length of an entry is out of range"));
        }
        let key =
            String::from_utf8(self.text(key)?).map_err(|_| SnapshotError::Damaged("a key is no text"))?;
        let key: Arc<str> = Arc::from(key);
        let newest = match &self.last {
            Some((last, _)) if *last >= key => {
                return Err(SnapshotError::Damaged("its entries are out of order"));
            }
            Some((_, newest)) => revision.max(*newest),
            None => revision,
        };
        let value = Bytes::from(self.text(value)?);
        self.last = Some((key.clone(), newest));
        self.entries += 1;
        Ok(Next::Entry(Entry { key, revision, value }))
    }

    /// Checks what stands at the end; gives the newest revision of all entries.
    fn finish(&mut self) -> Result<Revision, SnapshotError> {
        if self.number()? != self.entries {
            return Err(SnapshotError::Damaged("the number of its entries is wrong"));
        }
        let expected = self.input.digest.clone().finalize();
        let found: [u8; 32] = self.bytes()?;
        if expected.as_slice() != found {
            return Err(SnapshotError::Damaged("its checksum is wrong"));
        }
        match self.input.inner.read(&mut [0])? {
            0 => Ok(self.last.as_ref().map_or(0, |(_, newest)| *newest)),
            _ => Err(SnapshotError::Damaged("something follows its end")),
        }
    }

    fn number(&mut self) -> Result<u64, SnapshotError> {
        Ok(u64::from_be_bytes(self.bytes()?))
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self, length: u32) -> Result<Vec<u8>, SnapshotError> {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        self.input.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => SnapshotError::Truncated { entries: self.entries },
            _ => SnapshotError::Io(error),
        })
    }
}

/// Passes bytes on and adds them to a checksum.
struct Digesting<T> {
    inner: T,
    digest: Sha256,
}

impl<T> Digesting<T> {
    fn new(inner: T) -> Self {
        Self { inner, digest: Sha256::new() }
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.digest.update(bytes.get(..read).unwrap_or_default());
        Ok(read)
    }
}
