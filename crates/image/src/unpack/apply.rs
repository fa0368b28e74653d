//! Makes a directory tree from a layer's archive, in the form that overlayfs takes as a lower layer: whiteouts
//! become devices `0:0`, opaque directories carry `trusted.overlay.opaque`. Owners, modes, times, hard links,
//! devices, sparse files and the attributes that containers may have are kept. Nothing outside is ever touched.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::beneath::{self, Absent, Beneath, PathError};
use super::tar::{Entry, Kind, TarReader, Time};
use super::{PendingLink, Tree, UnpackError};
use crate::store::LayerSize;

/// The time that directories get which the archive does not have.
pub(super) const EPOCH: Timestamps = Timestamps {
    last_access: Timespec { tv_sec: 0, tv_nsec: 0 },
    last_modification: Timespec { tv_sec: 0, tv_nsec: 0 },
};
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const COPY: usize = 256 << 10;
const DISK_BLOCK: u64 = 4096;

/// What the archive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A layer: owners and whiteouts count.
    Layer,
    /// A file that carries images: only files, directories and links are taken, owned by this process.
    Carrier,
}

/// Unpacks one archive.
pub(super) struct Applier {
    beneath: Beneath,
    purpose: Purpose,
    /// The directory of the entry before: archives go through a tree in order.
    parent: Option<(Vec<u8>, OwnedFd)>,
    times: Vec<(Vec<u8>, Time)>,
    tree: Tree,
    buffer: Vec<u8>,
}

impl Applier {
    pub(super) fn new(root: OwnedFd, purpose: Purpose) -> Self {
        let beneath = Beneath::new(root);
        let tree =
            Tree { size: LayerSize { inodes: 1, bytes: DISK_BLOCK, highest_id: 0 }, ..Tree::default() };
        Self { beneath, purpose, parent: None, times: Vec::new(), tree, buffer: vec![0; COPY] }
    }

    /// Makes all entries of `archive`, then sets the directories' times.
    pub(super) fn run<R: Read>(mut self, archive: &mut TarReader<R>) -> Result<Tree, UnpackError> {
        while let Some(entry) = archive.next_entry()? {
            self.apply(&entry, archive)?;
        }
        for (path, time) in std::mem::take(&mut self.times) {
            let parts = beneath::split(&path).unwrap_or_default();
            // A later entry may have put something else there; then there is no time to set.
            if let Ok(directory) = self.beneath.directory(&parts, Absent::Refuse) {
                set_times(directory.as_fd(), b".", time).map_err(|errno| failed(&parts, errno))?;
            }
        }
        self.tree.implied = self.beneath.implied.into_iter().collect();
        Ok(self.tree)
    }

    fn apply<R: Read>(&mut self, entry: &Entry, data: &mut TarReader<R>) -> Result<(), UnpackError> {
        let refused = |reason| UnpackError::Refused { entry: lossy(&entry.path), reason };
        let parts = beneath::split(&entry.path).map_err(refused)?;
        let Some((name, before)) = parts.split_last() else {
            return self.set_root(entry).map_err(|errno| failed(&parts, errno));
        };
        if name.len() > 255 {
            return Err(failed(&parts, Errno::NAMETOOLONG));
        }
        if matches!(entry.kind, Kind::Other(_)) {
            return Ok(());
        }
        let parent = self.open_parent(before).map_err(refused)?;
        let made = match (self.purpose, name.strip_prefix(WHITEOUT)) {
            (Purpose::Layer, Some(hidden)) => {
                let is_name = !matches!(hidden, b"" | b"." | b"..");
                if !is_name {
                    return Err(refused(PathError::Name));
                }
                self.hide(&parent, name, hidden)
            }
            _ => self.make(entry, &parts, &parent, data),
        };
        self.parent.get_or_insert_with(|| (before.join(&b'/'), parent));
        made
    }

    fn open_parent(&mut self, before: &[&[u8]]) -> Result<OwnedFd, PathError> {
        let path = before.join(&b'/');
        match self.parent.take() {
            Some((known, parent)) if known == path => Ok(parent),
            _ => self.beneath.directory(before, Absent::Make),
        }
    }

    fn hide(&mut self, parent: &OwnedFd, name: &[u8], hidden: &[u8]) -> Result<(), UnpackError> {
        if name == OPAQUE_MARK {
            return beneath::set_opaque(parent).map_err(|errno| failed(&[name], errno));
        }
        if name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        match make_whiteout(parent, hidden) {
            Ok(made) => {
                self.tree.size.inodes += u64::from(made);
                Ok(())
            }
            Err(errno) => Err(failed(&[hidden], errno)),
        }
    }

    fn make<R: Read>(
        &mut self,
        entry: &Entry,
        parts: &[&[u8]],
        parent: &OwnedFd,
        data: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        let name = parts.last().copied().unwrap_or_default();
        let system = |errno| failed(parts, errno);
        self.note_owner(entry);
        match entry.kind {
            Kind::Directory => self.make_directory(entry, parts, parent).map_err(system)?,
            Kind::File => self.make_file(entry, parts, parent, data)?,
            Kind::HardLink => return self.make_link(entry, parts, parent),
            Kind::Symlink => {
                let make = || rustix::fs::symlinkat(entry.link.as_slice(), parent, name);
                Self::instead(parent, name, make).map_err(system)?;
                self.set_owner(entry, parent, name).map_err(system)?;
                set_times(parent.as_fd(), name, entry.mtime).map_err(system)?;
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                self.make_node(entry, parent, name).map_err(system)?;
            }
            Kind::Other(_) => return Ok(()),
        }
        self.tree.size.inodes += 1;
        Ok(())
    }

    fn note_owner(&mut self, entry: &Entry) {
        let highest = &mut self.tree.size.highest_id;
        *highest = (*highest).max(entry.uid).max(entry.gid);
    }

    /// Makes something new under a name; what the archive had there before goes.
    fn instead<T>(
        parent: &OwnedFd,
        name: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> rustix::io::Result<T> {
        match make() {
            Err(Errno::EXIST) => {
                remove_tree(parent, name)?;
                make()
            }
            other => other,
        }
    }

    fn make_directory(&mut self, entry: &Entry, parts: &[&[u8]], parent: &OwnedFd) -> rustix::io::Result<()> {
        let name = parts.last().copied().unwrap_or_default();
        let existing = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let is_directory =
            existing.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if !is_directory {
            let make = || rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o700));
            Self::instead(parent, name, make)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        if existing.as_ref().is_some_and(beneath::is_whiteout) {
            rustix::fs::fsetxattr(&directory, beneath::OPAQUE, b"y", XattrFlags::empty())?;
        }
        self.set_metadata(entry, directory.as_fd())?;
        let path = parts.join(&b'/');
        self.beneath.implied.remove(&path);
        self.times.push((path, entry.mtime));
        self.tree.size.bytes += if is_directory { 0 } else { DISK_BLOCK };
        Ok(())
    }

    fn make_file<R: Read>(
        &mut self,
        entry: &Entry,
        parts: &[&[u8]],
        parent: &OwnedFd,
        data: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        let name = parts.last().copied().unwrap_or_default();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = if self.purpose == Purpose::Carrier { 0o600 } else { entry.mode & 0o777 };
        let make = || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(mode));
        let file = Self::instead(parent, name, make).map_err(|errno| failed(parts, errno))?;
        let mut file = File::from(file);
        self.write(entry, parts, &mut file, data)?;
        self.set_metadata(entry, file.as_fd()).map_err(|errno| failed(parts, errno))?;
        rustix::fs::futimens(&file, &timestamps(entry.mtime)).map_err(|errno| failed(parts, errno))
    }

    fn write<R: Read>(
        &mut self,
        entry: &Entry,
        parts: &[&[u8]],
        file: &mut File,
        data: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        let on_disk = |error: std::io::Error| UnpackError::on_disk(beneath::text(parts), error);
        let whole = [super::tar::Piece { offset: 0, length: entry.size }];
        for piece in entry.sparse.as_deref().unwrap_or(&whole) {
            if entry.sparse.is_some() {
                file.seek(SeekFrom::Start(piece.offset)).map_err(on_disk)?;
            }
            let mut left = piece.length;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
                let window = self.buffer.get_mut(..most).unwrap_or_default();
                let count = data.read(window).map_err(super::tar::TarError::Io)?;
                file.write_all(window.get(..count).unwrap_or_default()).map_err(on_disk)?;
                left -= count as u64;
            }
            self.tree.size.bytes += piece.length.next_multiple_of(DISK_BLOCK);
        }
        if entry.sparse.is_some() {
            file.set_len(entry.size).map_err(on_disk)?;
        }
        Ok(())
    }

    fn make_node(&mut self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
        if self.purpose == Purpose::Carrier {
            return Ok(());
        }
        let (kind, device) = match entry.kind {
            Kind::CharDevice => (FileType::CharacterDevice, entry.device),
            Kind::BlockDevice => (FileType::BlockDevice, entry.device),
            _ => (FileType::Fifo, (0, 0)),
        };
        let device = rustix::fs::makedev(device.0, device.1);
        let make = || rustix::fs::mknodat(parent, name, kind, Mode::from_raw_mode(0o600), device);
        Self::instead(parent, name, make)?;
        self.set_owner(entry, parent, name)?;
        rustix::fs::chmodat(parent, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())?;
        set_times(parent.as_fd(), name, entry.mtime)
    }

    fn make_link(&mut self, entry: &Entry, parts: &[&[u8]], parent: &OwnedFd) -> Result<(), UnpackError> {
        let refused =
            |reason| UnpackError::Link { entry: lossy(&entry.path), target: lossy(&entry.link), reason };
        let target = beneath::split(&entry.link).map_err(refused)?;
        let Some((target_name, before)) = target.split_last() else { return Err(refused(PathError::Name)) };
        if target == parts {
            return Ok(());
        }
        let below = || PendingLink { path: parts.join(&b'/'), target: target.join(&b'/') };
        let directory = match self.beneath.directory(before, Absent::Refuse) {
            Ok(directory) => directory,
            Err(PathError::Missing(_)) => {
                self.tree.links.push(below());
                return Ok(());
            }
            Err(reason) => return Err(refused(reason)),
        };
        let name = parts.last().copied().unwrap_or_default();
        let make = || rustix::fs::linkat(&directory, *target_name, parent, name, AtFlags::empty());
        match Self::instead(parent, name, make) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT) => {
                self.tree.links.push(below());
                Ok(())
            }
            Err(Errno::PERM) => Err(refused(PathError::Directory)),
            Err(errno) => Err(failed(parts, errno)),
        }
    }

    fn set_root(&mut self, entry: &Entry) -> rustix::io::Result<()> {
        if entry.kind != Kind::Directory {
            return Ok(());
        }
        self.note_owner(entry);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(self.beneath.root(), ".", flags, Mode::empty())?;
        self.set_metadata(entry, root.as_fd())?;
        self.times.push((Vec::new(), entry.mtime));
        Ok(())
    }

    /// Owner first: changing it clears set-ID bits and capabilities.
    fn set_metadata(&self, entry: &Entry, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        if self.purpose == Purpose::Carrier {
            return Ok(());
        }
        // Most files are made as they must be, and asking costs a tenth of setting.
        let is = rustix::fs::fstat(file)?;
        if (is.st_uid, is.st_gid) != (entry.uid, entry.gid) {
            rustix::fs::fchown(file, Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))?;
            rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))?;
        } else if is.st_mode & 0o7777 != entry.mode {
            rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode))?;
        }
        entry.xattrs.iter().filter(|(name, _)| is_kept(name)).try_for_each(|(name, value)| {
            match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
                // The file system has no such attributes; neither would the container.
                Err(Errno::NOTSUP) => Ok(()),
                other => other,
            }
        })
    }

    fn set_owner(&self, entry: &Entry, parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
        if self.purpose == Purpose::Carrier {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Makes a whiteout and says whether it is new. What the same layer puts there stays: a directory becomes opaque.
pub(super) fn make_whiteout(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<bool> {
    match rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat(parent, name, flags, Mode::empty()) {
                Ok(directory) => beneath::set_opaque(&directory).map(|()| false),
                Err(Errno::NOTDIR | Errno::LOOP) => Ok(false),
                Err(errno) => Err(errno),
            }
        }
        Err(errno) => Err(errno),
    }
}

/// The attributes that a container's file may bring. `trusted.*` and `*.overlay.*` would steer overlayfs itself.
fn is_kept(name: &[u8]) -> bool {
    let is_user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
    is_user
        || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
}

/// Removes a file or a tree; no symbolic link is followed.
pub(super) fn remove_tree(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let child = entry.file_name().to_bytes();
        if !matches!(child, b"." | b"..") {
            remove_tree(&directory, child)?;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn set_times(parent: BorrowedFd<'_>, name: &[u8], time: Time) -> rustix::io::Result<()> {
    rustix::fs::utimensat(parent, name, &timestamps(time), AtFlags::SYMLINK_NOFOLLOW)
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn failed(parts: &[&[u8]], errno: Errno) -> UnpackError {
    UnpackError::on_disk(beneath::text(parts), errno.into())
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
