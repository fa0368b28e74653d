//! Paths inside a root filesystem that nobody trusts, resolved by the kernel as if it were `/` (`RESOLVE_IN_ROOT`).
//!
//! Symbolic links, absolute ones and `..` too, stay inside the root; magic links are refused.

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
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

/// Opens the mount point `path` inside `root` as a path descriptor and makes it, with all parents, if it is not there.
///
/// # Errors
/// The kernel's answer.
pub fn open_or_make(root: impl AsFd, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    match resolve(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        result => return Ok(result?),
    }
    let names: Vec<&std::ffi::OsStr> = path
        .components()
        .filter_map(|part| if let Component::Normal(name) = part { Some(name) } else { None })
        .collect();
    let (mut here, mut walked) = (root.try_clone_to_owned()?, PathBuf::from("/"));
    for (index, name) in names.iter().enumerate() {
        walked.push(name);
        let is_last = index + 1 == names.len();
        here = match resolve(root, &walked, OFlags::PATH) {
            Ok(found) => found,
            Err(Errno::NOENT) => make(&here, name, if is_last { kind } else { Kind::Directory })?,
            Err(errno) => return Err(errno.into()),
        };
    }
    Ok(here)
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
        assert!(open_or_make(&root_fd, Path::new("/relative/x"), Kind::Directory).is_err());
        assert!(!dir.path().join("outside/x").exists());
    }
}
