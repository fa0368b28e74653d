//! Paths inside a root filesystem that nobody trusts, resolved by the kernel as if it were `/` (`RESOLVE_IN_ROOT`).
//!
//! Symbolic links, absolute ones and `..` too, stay inside the root; magic links are refused.

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Opens `path` inside `root`.
///
/// # Errors
/// The kernel's answer.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    resolve(root, path, flags).map_err(Into::into)
}

fn resolve(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        // EAGAIN: something was renamed meanwhile and the kernel could not be sure.
        match openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// What a mount point has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File,
}

/// The kernel's own limit on symbolic links in one path.
const MAX_LINKS: usize = 40;

/// Opens the mount point `path` inside `root` as a path descriptor and makes it, with all parents, if it is not there.
/// Where a symbolic link leads to nothing, what it names is made, inside the root.
///
/// # Errors
/// The kernel's answer.
pub fn open_or_make(root: impl AsFd, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match resolve(root, &path, OFlags::PATH) {
            Err(Errno::NOENT) => {}
            result => return Ok(result?),
        }
        match make_all(root, &path, kind)? {
            Made::All(fd) => return Ok(fd),
            Made::UpToLink(onwards) => path = onwards,
        }
    }
    Err(Errno::LOOP.into())
}

enum Made {
    All(OwnedFd),
    /// A dangling link: where its target and the rest of the path would be.
    UpToLink(PathBuf),
}

fn make_all(root: BorrowedFd<'_>, path: &Path, kind: Kind) -> io::Result<Made> {
    let names: Vec<&OsStr> = path
        .components()
        .filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir))
        .map(Component::as_os_str)
        .collect();
    let (mut here, mut walked) = (root.try_clone_to_owned()?, PathBuf::from("/"));
    for (index, name) in names.iter().enumerate() {
        let is_last = index + 1 == names.len();
        let next = walked.join(name);
        here = match resolve(root, &next, OFlags::PATH) {
            Ok(found) => found,
            Err(Errno::NOENT) => {
                if let Ok(target) = rustix::fs::readlinkat(&here, *name, Vec::new()) {
                    let target = walked.join(OsStr::from_bytes(target.as_bytes()));
                    return Ok(Made::UpToLink(
                        names.iter().skip(index + 1).fold(target, |path, name| path.join(name)),
                    ));
                }
                make(&here, name, if is_last { kind } else { Kind::Directory })?
            }
            Err(errno) => return Err(errno.into()),
        };
        walked = next;
    }
    Ok(Made::All(here))
}

fn make(parent: &OwnedFd, name: &std::ffi::OsStr, kind: Kind) -> io::Result<OwnedFd> {
    let flags = OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match kind {
        Kind::Directory => match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {
                Ok(rustix::fs::openat(parent, name, flags | OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?)
            }
            Err(errno) => Err(errno.into()),
        },
        Kind::File => {
            let file = flags | OFlags::CREATE | OFlags::WRONLY;
            drop(rustix::fs::openat(parent, name, file, Mode::from_raw_mode(0o644))?);
            Ok(rustix::fs::openat(parent, name, flags | OFlags::PATH, Mode::empty())?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_that_lead_out_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("/etc", root.join("absolute")).unwrap();
        symlink("../../outside", root.join("relative")).unwrap();
        let root_fd = std::fs::File::open(&root).unwrap();
        drop(open_or_make(&root_fd, Path::new("/absolute/new/file"), Kind::File).unwrap());
        assert!(root.join("etc/new/file").is_file());
        drop(open_or_make(&root_fd, Path::new("/relative/x"), Kind::Directory).unwrap());
        assert!(root.join("outside/x").is_dir() && !dir.path().join("outside/x").exists());
        symlink("loop", root.join("loop")).unwrap();
        let error = open_or_make(&root_fd, Path::new("/loop/x"), Kind::Directory).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}
