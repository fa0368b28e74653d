//! A reader of tar archives as image layers have them: ustar, GNU (long names, base-256 numbers, sparse files)
//! and PAX (long values, extended attributes, sparse files of format 0.0, 0.1 and 1.0).
//! It reads forward only, trusts no length, and keeps at most 1 MiB of names and attributes in memory.
//!
//! Sources: POSIX.1-2017 `pax` (ustar, PAX), GNU tar manual, "Basic Tar Format" and "Storing Sparse Files".

use std::io::{self, Read};

use super::pax::{self, Pax};

const BLOCK: usize = 512;
/// Most bytes of a long name or of one set of PAX records.
const MAX_EXTENSION: u64 = 1 << 20;
/// Most pieces of one sparse file.
const MAX_PIECES: usize = 1 << 16;

/// What an entry makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
    /// Something that has no place in a file system (a volume label, a vendor's record); skipped.
    Other(u8),
}

/// A point in time, as `utimensat` takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

/// One piece of a sparse file: where it lies and how many bytes it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// The header of one entry, with all extensions applied.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Length of the file that is made.
    pub(crate) size: u64,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// For a sparse file: the pieces that have data, in order; the rest is holes.
    pub(crate) sparse: Option<Vec<Piece>>,
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the archive is broken at byte {at}: {what}")]
    Malformed { at: u64, what: String },
}

/// Reads entries one after the other; `Read` gives the current entry's stored bytes.
#[derive(Debug)]
pub(crate) struct TarReader<R> {
    input: R,
    at: u64,
    left: u64,
    padding: u64,
    global: Pax,
}

/// What precedes an entry and belongs to it.
#[derive(Default)]
struct Extensions {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

impl<R: Read> TarReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, at: 0, left: 0, padding: 0, global: Pax::default() }
    }

    /// The input, for what follows the archive's end.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut before = Extensions::default();
        loop {
            self.skip_rest()?;
            let Some(block) = self.read_header()? else { return Ok(None) };
            let size = self.number(&block, 124, 12, "size")?;
            match field(&block, 156, 1).first().copied().unwrap_or(0) {
                b'L' => before.name = Some(trim_nul(self.extension(size)?)),
                b'K' => before.link = Some(trim_nul(self.extension(size)?)),
                b'x' => before.pax = Some(self.pax_records(size)?),
                b'g' => self.global = self.pax_records(size)?,
                flag => return self.entry(&block, flag, size, before).map(Some),
            }
        }
    }

    /// A header block; `None` at the end, which is a block of zeros or the end of the input.
    fn read_header(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.input.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.malformed("it ends within a header")),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.at += BLOCK as u64;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        self.check(&block)?;
        Ok(Some(block))
    }

    fn check(&self, block: &[u8; BLOCK]) -> Result<(), TarError> {
        let said = self.number(block, 148, 8, "checksum")?;
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
            .sum();
        if sum == said { Ok(()) } else { Err(self.malformed("a header's checksum is wrong")) }
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        flag: u8,
        size: u64,
        before: Extensions,
    ) -> Result<Entry, TarError> {
        let mut pax = self.global.clone();
        pax.merge(before.pax.unwrap_or_default());
        let stored = pax.number("size").map_err(|what| self.malformed(what))?.unwrap_or(size);
        let mut path = before.name.unwrap_or_else(|| header_path(block));
        if let Some(value) = pax.value("GNU.sparse.name").or_else(|| pax.value("path")) {
            value.clone_into(&mut path);
        }
        let mut link = before.link.unwrap_or_else(|| until_nul(field(block, 157, 100)).to_vec());
        if let Some(value) = pax.value("linkpath") {
            value.clone_into(&mut link);
        }
        // POSIX lets a hard link carry data; no image tool writes any, and GNU tar gives such a size for none.
        let kind = kind_of(flag, &path);
        let has_data = matches!(kind, Kind::File | Kind::Other(_));
        self.left = if has_data { stored } else { 0 };
        self.padding = padding_of(self.left);
        let mut entry = Entry {
            path,
            link,
            kind,
            mode: u32::try_from(self.number(block, 100, 8, "mode")? & 0o7777).unwrap_or(0),
            uid: self.owner(block, &pax, 108, "uid")?,
            gid: self.owner(block, &pax, 116, "gid")?,
            mtime: self.mtime(block, &pax)?,
            size: self.left,
            device: (0, 0),
            xattrs: pax.xattrs(),
            sparse: None,
        };
        if matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
            entry.device = (self.small(block, 329, "device")?, self.small(block, 337, "device")?);
        }
        self.find_holes(block, flag, &pax, &mut entry)?;
        Ok(entry)
    }

    fn owner(&self, block: &[u8; BLOCK], pax: &Pax, at: usize, name: &str) -> Result<u32, TarError> {
        let id = match pax.number(name).map_err(|what| self.malformed(what))? {
            Some(id) => id,
            None => self.number(block, at, 8, name)?,
        };
        u32::try_from(id)
            .ok()
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| self.malformed(format!("{name} {id} is beyond what Linux knows")))
    }

    fn small(&self, block: &[u8; BLOCK], at: usize, name: &str) -> Result<u32, TarError> {
        let number = self.number(block, at, 8, name)?;
        u32::try_from(number).map_err(|_| self.malformed(format!("{name} number {number} is too large")))
    }

    fn mtime(&self, block: &[u8; BLOCK], pax: &Pax) -> Result<Time, TarError> {
        if let Some(time) = pax.value("mtime") {
            return pax::time(time).ok_or_else(|| self.malformed("a modification time is not a number"));
        }
        let raw = field(block, 136, 12);
        if raw.first() == Some(&0xff) {
            // A negative base-256 number: before 1970.
            let tail = raw.get(4..).and_then(|tail| <[u8; 8]>::try_from(tail).ok()).unwrap_or_default();
            return Ok(Time { seconds: i64::from_be_bytes(tail), nanoseconds: 0 });
        }
        let seconds = self.number(block, 136, 12, "modification time")?;
        Ok(Time { seconds: i64::try_from(seconds).unwrap_or(i64::MAX), nanoseconds: 0 })
    }

    fn number(&self, block: &[u8; BLOCK], at: usize, length: usize, name: &str) -> Result<u64, TarError> {
        parse_number(field(block, at, length))
            .ok_or_else(|| self.malformed(format!("its {name} is not a number")))
    }

    fn pax_records(&mut self, size: u64) -> Result<Pax, TarError> {
        let bytes = self.extension(size)?;
        Pax::parse(&bytes).map_err(|what| self.malformed(what))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION {
            return Err(self.malformed(format!("names or attributes of {size} bytes; at most 1 MiB is read")));
        }
        self.left = size;
        self.padding = padding_of(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let mut scratch = [0; 8192];
        while self.read(&mut scratch)? > 0 {}
        let padding = std::mem::take(&mut self.padding);
        let skipped = io::copy(&mut self.input.by_ref().take(padding), &mut io::sink())?;
        self.at += skipped;
        // A missing padding after the last entry is the end of the archive, which `read_header` sees.
        Ok(())
    }

    fn find_holes(
        &mut self,
        block: &[u8; BLOCK],
        flag: u8,
        pax: &Pax,
        entry: &mut Entry,
    ) -> Result<(), TarError> {
        let (pieces, size) = if flag == b'S' {
            (self.gnu_pieces(block)?, self.number(block, 483, 12, "size")?)
        } else if pax.value("GNU.sparse.major").is_some_and(|major| major == b"1") {
            (self.stored_pieces()?, self.sparse_size(pax, "GNU.sparse.realsize")?)
        } else if let Some(pieces) = pax.pieces().map_err(|what| self.malformed(what))? {
            (pieces, self.sparse_size(pax, "GNU.sparse.size")?)
        } else {
            return Ok(());
        };
        self.check_pieces(&pieces, size)?;
        entry.size = size;
        entry.sparse = Some(pieces);
        Ok(())
    }

    fn sparse_size(&self, pax: &Pax, key: &str) -> Result<u64, TarError> {
        let size = pax.number(key).map_err(|what| self.malformed(what))?;
        size.ok_or_else(|| self.malformed("a sparse file has no size"))
    }

    fn check_pieces(&self, pieces: &[Piece], size: u64) -> Result<(), TarError> {
        let mut end = 0;
        let mut stored: u64 = 0;
        for piece in pieces {
            let next = piece.offset.checked_add(piece.length).filter(|next| *next <= size);
            end =
                next.filter(|_| piece.offset >= end).ok_or_else(|| self.malformed("a sparse file's map"))?;
            stored = stored.saturating_add(piece.length);
        }
        if stored == self.left {
            Ok(())
        } else {
            Err(self.malformed("a sparse file's map and size disagree"))
        }
    }

    fn gnu_pieces(&mut self, block: &[u8; BLOCK]) -> Result<Vec<Piece>, TarError> {
        let mut pieces = Vec::new();
        self.take_pieces(block, 386, 4, &mut pieces)?;
        let mut goes_on = field(block, 482, 1) == [1];
        while goes_on {
            let mut more = [0; BLOCK];
            self.input.read_exact(&mut more)?;
            self.at += BLOCK as u64;
            self.take_pieces(&more, 0, 21, &mut pieces)?;
            goes_on = field(&more, 504, 1) == [1];
            if pieces.len() > MAX_PIECES {
                return Err(self.malformed("a sparse file has too many pieces"));
            }
        }
        Ok(pieces)
    }

    fn take_pieces(
        &self,
        block: &[u8; BLOCK],
        start: usize,
        count: usize,
        pieces: &mut Vec<Piece>,
    ) -> Result<(), TarError> {
        for slot in 0..count {
            let at = start + slot * 24;
            let length = self.number(block, at + 12, 12, "sparse map")?;
            let offset = self.number(block, at, 12, "sparse map")?;
            if field(block, at, 24).iter().any(|byte| *byte != 0) {
                pieces.push(Piece { offset, length });
            }
        }
        Ok(())
    }

    /// Format 1.0: the map stands before the data, as decimal lines, filled up to a block.
    fn stored_pieces(&mut self) -> Result<Vec<Piece>, TarError> {
        let mut read: u64 = 0;
        let count = usize::try_from(self.decimal_line(&mut read)?).unwrap_or(usize::MAX);
        if count > MAX_PIECES {
            return Err(self.malformed("a sparse file has too many pieces"));
        }
        let mut pieces = Vec::with_capacity(count);
        for _ in 0..count {
            let offset = self.decimal_line(&mut read)?;
            let length = self.decimal_line(&mut read)?;
            pieces.push(Piece { offset, length });
        }
        let padding = padding_of(read);
        io::copy(&mut self.by_ref().take(padding), &mut io::sink())?;
        Ok(pieces)
    }

    fn decimal_line(&mut self, read: &mut u64) -> Result<u64, TarError> {
        let mut number: u64 = 0;
        let mut byte = [0];
        for _ in 0..21 {
            self.read_exact(&mut byte)?;
            *read += 1;
            match byte {
                [b'\n'] => return Ok(number),
                [digit] if digit.is_ascii_digit() => {
                    number = number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
                }
                _ => break,
            }
        }
        Err(self.malformed("a sparse file's map is not a list of numbers"))
    }

    fn malformed(&self, what: impl Into<String>) -> TarError {
        TarError::Malformed { at: self.at, what: what.into() }
    }
}

impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || buffer.is_empty() {
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let window = buffer.get_mut(..most).unwrap_or_default();
        let count = self.input.read(window)?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("the archive ends {} bytes before the end of a file", self.left),
            ));
        }
        self.left -= count as u64;
        self.at += count as u64;
        Ok(count)
    }
}

fn kind_of(flag: u8, path: &[u8]) -> Kind {
    match flag {
        // Before ustar a directory was a file whose name ends in a slash.
        0 | b'0' if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => Kind::Other(other),
    }
}

fn header_path(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(field(block, 0, 100));
    let prefix = match field(block, 257, 6) {
        b"ustar\0" => until_nul(field(block, 345, 155)),
        _ => &[],
    };
    if prefix.is_empty() { name.to_vec() } else { [prefix, name].join(&b'/') }
}

/// Octal digits among spaces and NULs, or (highest bit set) a big-endian number.
fn parse_number(raw: &[u8]) -> Option<u64> {
    match raw.first() {
        Some(first) if first & 0x80 != 0 => {
            let bytes = std::iter::once(first & 0x7f).chain(raw.iter().skip(1).copied());
            bytes.into_iter().try_fold(0_u64, |sum, byte| {
                sum.checked_mul(256).and_then(|sum| sum.checked_add(u64::from(byte)))
            })
        }
        _ => {
            let text = raw.trim_ascii_start();
            let digits = text.split(|byte| matches!(byte, 0 | b' ')).next().unwrap_or_default();
            digits.iter().try_fold(0_u64, |sum, byte| match byte {
                b'0'..=b'7' => sum.checked_mul(8).and_then(|sum| sum.checked_add(u64::from(byte - b'0'))),
                _ => None,
            })
        }
    }
}

fn field(block: &[u8; BLOCK], at: usize, length: usize) -> &[u8] {
    block.get(at..at + length).unwrap_or_default()
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn trim_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(until_nul(&bytes).len());
    bytes
}

fn padding_of(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
