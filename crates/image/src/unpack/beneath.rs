//! Paths below a directory that hostile archives cannot leave: every step is an `openat2` whose result the
//! kernel confines, and what would lead out is refused with the entry and the symbolic link that did it.
//!
//! A symbolic link *as an entry* may say anything; it is only a text. What counts is a path that goes *through*
//! one: relative links are followed as long as they stay inside, absolute ones are read from the layer's root,
//! as a container would read them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Deepest directory of a layer. A deeper tree could not be removed with a bounded stack.
const MAX_DEPTH: usize = 512;
const OPEN: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const CONFINED: ResolveFlags = ResolveFlags::NO_MAGICLINKS.union(ResolveFlags::NO_XDEV);
/// Marks a directory of an upper layer that hides the lower layers' directory of the same name.
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// Why a path cannot be reached inside the layer.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// `..` above the root.
    #[error("its name leads out of the layer")]
    Climbs,
    /// A name that no file can have.
    #[error("its name is empty, holds a NUL byte, or is `.` or `..`")]
    Name,
    /// A hard link to a directory.
    #[error("it is a directory")]
    Directory,
    /// More than 512 directories deep.
    #[error("it lies more than {MAX_DEPTH} directories deep")]
    Depth,
    /// A symbolic link in the path leads out, or to nothing.
    #[error("it goes through the symbolic link `{link}` to `{target}`, which leads out of the layer")]
    LeadsOut {
        /// Path of the link within the layer.
        link: String,
        /// What the link says.
        target: String,
    },
    /// A component is a file.
    #[error("`{0}` in its path is not a directory")]
    NotADirectory(String),
    /// Something that cannot be linked across layers.
    #[error("`{0}` in a lower layer is not a regular file")]
    NotAFile(String),
    /// Nothing there.
    #[error("`{0}` does not exist")]
    Missing(String),
    /// The kernel refused.
    #[error("`{path}`: {errno}")]
    System {
        /// The path within the layer.
        path: String,
        /// What the kernel said.
        errno: Errno,
    },
}

/// What to do about a directory that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    Make,
    Refuse,
}

/// A directory that nothing opened through it can leave.
#[derive(Debug)]
pub(super) struct Beneath {
    root: OwnedFd,
    /// Directories made because an entry needed them, though the archive has no entry for them.
    pub(super) implied: std::collections::BTreeSet<Vec<u8>>,
}

/// Splits an archive's path: `./a//b/../c` is `[a, c]`; the root is `[]`.
pub(super) fn split(path: &[u8]) -> Result<Vec<&[u8]>, PathError> {
    if path.contains(&0) {
        return Err(PathError::Name);
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop().ok_or(PathError::Climbs)?),
            part => parts.push(part),
        }
    }
    if parts.len() > MAX_DEPTH { Err(PathError::Depth) } else { Ok(parts) }
}

/// The text of a path, for messages.
pub(super) fn text(parts: &[&[u8]]) -> String {
    String::from_utf8_lossy(&parts.join(&b'/')).into_owned()
}

/// Whether this is the device `0:0` that overlayfs takes for a whiteout.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

impl Beneath {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, implied: std::collections::BTreeSet::new() }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the directory `parts` (for use with `*at` calls only), making it and its parents if asked to.
    pub(super) fn directory(&mut self, parts: &[&[u8]], absent: Absent) -> Result<OwnedFd, PathError> {
        let path = if parts.is_empty() { b".".to_vec() } else { parts.join(&b'/') };
        let direct = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(CONFINED);
        match open(self.root.as_fd(), &path, direct) {
            Ok(directory) => Ok(directory),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.step(parts, absent),
            Err(errno) => Err(PathError::System { path: text(parts), errno }),
        }
    }

    fn step(&mut self, parts: &[&[u8]], absent: Absent) -> Result<OwnedFd, PathError> {
        let Some((last, before)) = parts.split_last() else { return Err(PathError::Missing("/".to_owned())) };
        let parent = self.directory(before, absent)?;
        let system = |errno| PathError::System { path: text(parts), errno };
        match rustix::fs::statat(&parent, *last, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) if absent == Absent::Make => self.make(&parent, parts).map_err(system),
            Err(Errno::NOENT) => Err(PathError::Missing(text(parts))),
            Err(errno) => Err(system(errno)),
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    rustix::fs::openat(&parent, *last, OPEN | OFlags::NOFOLLOW, Mode::empty()).map_err(system)
                }
                FileType::Symlink => self.follow(&parent, parts),
                _ if is_whiteout(&stat) && absent == Absent::Make => {
                    self.take_whiteouts_place(&parent, parts).map_err(system)
                }
                _ => Err(PathError::NotADirectory(text(parts))),
            },
        }
    }

    fn make(&mut self, parent: &OwnedFd, parts: &[&[u8]]) -> rustix::io::Result<OwnedFd> {
        let last = parts.last().copied().unwrap_or_default();
        rustix::fs::mkdirat(parent, last, Mode::from_raw_mode(0o755))?;
        let made = rustix::fs::openat(parent, last, OPEN | OFlags::NOFOLLOW, Mode::empty())?;
        rustix::fs::chmodat(parent, last, Mode::from_raw_mode(0o755), AtFlags::empty())?;
        rustix::fs::utimensat(parent, last, &super::apply::EPOCH, AtFlags::SYMLINK_NOFOLLOW)?;
        let path = self.inner_path(&made).unwrap_or_else(|| parts.join(&b'/'));
        self.implied.insert(path);
        Ok(made)
    }

    /// A directory where the layer has a whiteout: the lower one is gone, this one is new.
    fn take_whiteouts_place(&mut self, parent: &OwnedFd, parts: &[&[u8]]) -> rustix::io::Result<OwnedFd> {
        let last = parts.last().copied().unwrap_or_default();
        rustix::fs::unlinkat(parent, last, AtFlags::empty())?;
        let made = self.make(parent, parts)?;
        set_opaque(&made)?;
        self.implied.remove(&parts.join(&b'/'));
        Ok(made)
    }

    fn follow(&self, parent: &OwnedFd, parts: &[&[u8]]) -> Result<OwnedFd, PathError> {
        let last = parts.last().copied().unwrap_or_default();
        let path = parts.join(&b'/');
        let system = |errno| PathError::System { path: text(parts), errno };
        let target = rustix::fs::readlinkat(parent, last, Vec::new()).map_err(system)?.into_bytes();
        let leads_out = || PathError::LeadsOut {
            link: text(parts),
            target: String::from_utf8_lossy(&target).into_owned(),
        };
        if climbs(parts.len().saturating_sub(1), &target) {
            return Err(leads_out());
        }
        let found = match open(self.root.as_fd(), &path, ResolveFlags::BENEATH.union(CONFINED)) {
            Err(Errno::XDEV) => open(self.root.as_fd(), &path, ResolveFlags::IN_ROOT.union(CONFINED)),
            other => other,
        };
        let directory = match found {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::XDEV | Errno::LOOP) => return Err(leads_out()),
            Err(Errno::NOTDIR) => return Err(PathError::NotADirectory(text(parts))),
            Err(errno) => return Err(system(errno)),
        };
        // Through links a path can be longer than its text.
        let depth = self.inner_path(&directory).map(|inner| inner.split(|byte| *byte == b'/').count());
        if depth.is_some_and(|depth| depth < MAX_DEPTH) { Ok(directory) } else { Err(PathError::Depth) }
    }

    /// The path of an open directory below the root, with no symbolic link in it.
    fn inner_path(&self, directory: &OwnedFd) -> Option<Vec<u8>> {
        let name = |fd: BorrowedFd<'_>| {
            use std::os::fd::AsRawFd;
            rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new()).ok()
        };
        let (whole, root) = (name(directory.as_fd())?.into_bytes(), name(self.root.as_fd())?.into_bytes());
        let inner = whole.strip_prefix(root.as_slice())?;
        Some(inner.strip_prefix(b"/").unwrap_or(inner).to_vec())
    }
}

/// Marks a directory as hiding the lower one. Works on a descriptor that was opened as a path only.
pub(super) fn set_opaque(directory: &OwnedFd) -> rustix::io::Result<()> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    rustix::fs::setxattr(path, OPAQUE, b"y", rustix::fs::XattrFlags::empty())
}

/// Opens below `root` as the flags confine it. The kernel says `EAGAIN` when something was renamed meanwhile.
fn open(root: BorrowedFd<'_>, path: &[u8], resolve: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root, path, OPEN, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) if tries < 32 => tries += 1,
            other => return other,
        }
    }
}

/// Whether a relative link in a directory `depth` below the root climbs above it.
fn climbs(depth: usize, target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return split(target).is_err();
    }
    let mut depth = depth;
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => return true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_or_refused() {
        assert_eq!(split(b"./a//b/../c/").unwrap(), [b"a".as_slice(), b"c"]);
        assert_eq!(split(b"/etc/passwd").unwrap(), [b"etc".as_slice(), b"passwd"]);
        assert!(split(b"./").unwrap().is_empty());
        assert!(matches!(split(b"../x"), Err(PathError::Climbs)));
        assert!(matches!(split(b"a/../../x"), Err(PathError::Climbs)));
        assert!(matches!(split(b"a\0b"), Err(PathError::Name)));
        assert!(matches!(split("d/".repeat(600).as_bytes()), Err(PathError::Depth)));
    }

    #[test]
    fn a_relative_link_climbs_when_it_has_more_dots_than_depth() {
        assert!(climbs(0, b".."));
        assert!(climbs(1, b"../../etc"));
        assert!(!climbs(2, b"../../etc"));
        assert!(!climbs(0, b"/etc"));
        assert!(climbs(5, b"/../etc"));
    }
}
