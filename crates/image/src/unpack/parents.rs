//! Completes a layer that does not stand alone. Overlayfs shows the uppermost directory's owner and mode, so a
//! directory that an archive implies but does not have (`tmp/x` without `tmp/`) must look as in the layers below;
//! and a hard link to a lower layer's file must bring that file up, as overlayfs itself would.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::beneath::{self, Absent, Beneath, PathError};
use super::{PendingLink, Tree, UnpackError};

/// As many symbolic links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

/// Where a path is found in the layers below.
enum Below {
    Absent,
    Found(OwnedFd, Stat),
}

/// Completes the layer in `root`, which lies on `lower` (lowest first).
///
/// # Errors
/// When a hard link's target is in no layer, or a path goes through something that is not a directory below.
pub(crate) fn complete(root: OwnedFd, tree: &mut Tree, lower: &[OwnedFd]) -> Result<(), UnpackError> {
    let mut beneath = Beneath::new(root);
    let mut links = std::mem::take(&mut tree.links);
    // Parents come before their children, so that a directory that moves takes them along.
    let mut open: BTreeSet<Vec<u8>> = std::mem::take(&mut tree.implied).into_iter().collect();
    while let Some(path) = open.pop_first() {
        let parts = beneath::split(&path).unwrap_or_default();
        if let Some(moved) = adopt(&mut beneath, &parts, lower)? {
            open = open.into_iter().map(|other| rebased(other, &path, &moved)).collect();
            for link in &mut links {
                link.path = rebased(std::mem::take(&mut link.path), &path, &moved);
            }
            open.append(&mut beneath.implied);
        }
    }
    links.iter().try_for_each(|link| bring_up(&mut beneath, tree, link, lower))
}

fn rebased(path: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    match path.strip_prefix(from) {
        Some(rest) if rest.starts_with(b"/") => [to, rest].concat(),
        _ => path,
    }
}

/// Gives an implied directory the owner, mode, times and attributes of the directory below. Where there is a
/// symbolic link below, the directory's content goes to where that leads; then the new path is given.
fn adopt(beneath: &mut Beneath, parts: &[&[u8]], lower: &[OwnedFd]) -> Result<Option<Vec<u8>>, UnpackError> {
    let system = |errno| on_disk(parts, errno);
    let Below::Found(model, stat) = find(parts, lower).map_err(system)? else { return Ok(None) };
    let refused = |reason| UnpackError::Refused { entry: beneath::text(parts), reason };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let directory = beneath.directory(parts, Absent::Refuse).map_err(refused)?;
            let directory = reopen(&directory, OFlags::RDONLY | OFlags::DIRECTORY).map_err(system)?;
            copy_metadata(&model, &stat, &directory).map_err(system)?;
            Ok(None)
        }
        FileType::Symlink => {
            let target = resolve(parts, lower).map_err(system)?;
            let to: Vec<&[u8]> = target.iter().map(Vec::as_slice).collect();
            if to.starts_with(parts) {
                return Ok(None);
            }
            let into = beneath.directory(&to, Absent::Make).map_err(refused)?;
            let from = beneath.directory(parts, Absent::Refuse).map_err(refused)?;
            move_content(&from, &into).map_err(system)?;
            let (name, before) = parts.split_last().ok_or_else(|| refused(PathError::Name))?;
            let parent = beneath.directory(before, Absent::Refuse).map_err(refused)?;
            rustix::fs::unlinkat(&parent, *name, AtFlags::REMOVEDIR).map_err(system)?;
            Ok(Some(target.join(&b'/')))
        }
        // The layer puts a directory where a file was: overlayfs shows the directory.
        _ => Ok(None),
    }
}

fn move_content(from: &OwnedFd, to: &OwnedFd) -> rustix::io::Result<()> {
    let listed = reopen(from, OFlags::RDONLY | OFlags::DIRECTORY)?;
    for entry in rustix::fs::Dir::read_from(&listed)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        match rustix::fs::renameat_with(from, name, to, name, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => {
                other?;
                continue;
            }
        }
        let directories = (open_directory(from, name), open_directory(to, name));
        if let (Ok(inner_from), Ok(inner_to)) = directories {
            move_content(&inner_from, &inner_to)?;
            rustix::fs::unlinkat(from, name, AtFlags::REMOVEDIR)?;
        } else {
            super::apply::remove_tree(to, name)?;
            rustix::fs::renameat(from, name, to, name)?;
        }
    }
    Ok(())
}

fn open_directory(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(parent, name, PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// Where a path leads in the layers below, with all symbolic links followed.
fn resolve(parts: &[&[u8]], lower: &[OwnedFd]) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut to_go: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
    let mut path: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while let Some(part) = to_go.pop() {
        match part.as_slice() {
            b"" | b"." => continue,
            b".." => {
                path.pop();
                continue;
            }
            _ => path.push(part),
        }
        let so_far: Vec<&[u8]> = path.iter().map(Vec::as_slice).collect();
        let Below::Found(link, stat) = find(&so_far, lower)? else { continue };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let target = rustix::fs::readlinkat(&link, "", Vec::new())?.into_bytes();
        path.pop();
        if target.starts_with(b"/") {
            path.clear();
        }
        to_go.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
    }
    Ok(path)
}

/// Brings up a file of a lower layer to which this layer has a hard link.
fn bring_up(
    beneath: &mut Beneath,
    tree: &mut Tree,
    link: &PendingLink,
    lower: &[OwnedFd],
) -> Result<(), UnpackError> {
    let refused = |reason| UnpackError::Link {
        entry: String::from_utf8_lossy(&link.path).into_owned(),
        target: String::from_utf8_lossy(&link.target).into_owned(),
        reason,
    };
    let (path, target) = (beneath::split(&link.path), beneath::split(&link.target));
    let (path, target) = (path.map_err(refused)?, target.map_err(refused)?);
    let (name, before) = target.split_last().ok_or_else(|| refused(PathError::Name))?;
    let before = resolve(before, lower).map_err(|errno| on_disk(&target, errno))?;
    let real: Vec<&[u8]> = before.iter().map(Vec::as_slice).chain([*name]).collect();
    match find(&real, lower).map_err(|errno| on_disk(&target, errno))? {
        Below::Found(file, stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
            tree.size.bytes += copy_up(beneath, &path, &file, &stat)?;
            tree.size.inodes += 1;
            Ok(())
        }
        Below::Found(..) => Err(refused(PathError::NotAFile(beneath::text(&target)))),
        Below::Absent => Err(refused(PathError::Missing(beneath::text(&target)))),
    }
}

fn copy_up(beneath: &mut Beneath, parts: &[&[u8]], from: &OwnedFd, stat: &Stat) -> Result<u64, UnpackError> {
    let system = |errno| on_disk(parts, errno);
    let refused = |reason| UnpackError::Refused { entry: beneath::text(parts), reason };
    let (name, before) = parts.split_last().ok_or_else(|| refused(PathError::Name))?;
    let parent = beneath.directory(before, Absent::Make).map_err(refused)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = rustix::fs::openat(&parent, *name, flags, Mode::from_raw_mode(0o600)).map_err(system)?;
    let mut to = File::from(to);
    let mut source = File::from(reopen(from, OFlags::RDONLY).map_err(system)?);
    let bytes = std::io::copy(&mut source, &mut to)
        .map_err(|error| UnpackError::on_disk(beneath::text(parts), error))?;
    copy_metadata(from, stat, &to.into()).map_err(system)?;
    Ok(bytes.next_multiple_of(4096))
}

fn copy_metadata(from: &OwnedFd, stat: &Stat, to: &OwnedFd) -> rustix::io::Result<()> {
    rustix::fs::fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let from = format!("/proc/self/fd/{}", from.as_raw_fd());
    let mut names = vec![0; 64 << 10];
    let length = match rustix::fs::listxattr(&from, names.as_mut_slice()) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    let mut value = vec![0; 64 << 10];
    for name in names.get(..length).unwrap_or_default().split(|byte| *byte == 0) {
        if name.is_empty() || name.starts_with(b"trusted.") {
            continue;
        }
        let length = rustix::fs::getxattr(&from, name, value.as_mut_slice())?;
        rustix::fs::fsetxattr(to, name, value.get(..length).unwrap_or_default(), XattrFlags::empty())?;
    }
    let time = Timespec { tv_sec: stat.st_mtime, tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0) };
    rustix::fs::futimens(to, &Timestamps { last_access: time, last_modification: time })
}

/// Looks a path up as overlayfs would show it: from the uppermost layer down, until something hides the rest.
fn find(parts: &[&[u8]], lower: &[OwnedFd]) -> rustix::io::Result<Below> {
    for layer in lower.iter().rev() {
        let mut at = rustix::fs::openat(layer, ".", PATH | OFlags::DIRECTORY, Mode::empty())?;
        let mut hides_lower = false;
        for (index, part) in parts.iter().enumerate() {
            let is_last = index + 1 == parts.len();
            let next = match rustix::fs::openat(&at, *part, PATH | OFlags::NOFOLLOW, Mode::empty()) {
                Err(Errno::NOENT) => break,
                other => other?,
            };
            let stat = rustix::fs::fstat(&next)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            if is_last {
                return Ok(if beneath::is_whiteout(&stat) {
                    Below::Absent
                } else {
                    Below::Found(next, stat)
                });
            }
            if kind != FileType::Directory {
                return Ok(Below::Absent);
            }
            hides_lower = hides_lower || is_opaque(&next);
            at = next;
        }
        if hides_lower {
            break;
        }
    }
    Ok(Below::Absent)
}

const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

fn is_opaque(directory: &OwnedFd) -> bool {
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let mut value = [0; 1];
    matches!(rustix::fs::getxattr(path, beneath::OPAQUE, value.as_mut_slice()), Ok(1)) && value == *b"y"
}

fn reopen(fd: &OwnedFd, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()),
        flags | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn on_disk(parts: &[&[u8]], errno: Errno) -> UnpackError {
    UnpackError::on_disk(beneath::text(parts), errno.into())
}
