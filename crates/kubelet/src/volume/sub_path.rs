//! `subPath` mounts: the path is resolved inside the volume by the kernel and bound where the Pod cannot reach it,
//! so that a link that the Pod plants can never lead out of the volume (CVE-2017-1002101, CVE-2021-25741).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};

use super::mount::is_mount_point;
use super::setup::ReadyVolume;

/// Why a `subPath` cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubPathError {
    #[error("must be a relative path without `..`: `{0}`")]
    NotBelow(String),
    #[error("{path} is, or lies behind, a link that leads out of the volume; a subPath must stay in it", path = .0.display())]
    LeadsOut(PathBuf),
    #[error("{action} {path}: {source}", path = path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

fn io_at(action: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> SubPathError {
    let path = path.to_owned();
    move |source| SubPathError::Io { action, path, source: source.into() }
}

/// Binds `sub_path` of `volume` at `target` and returns `target`. A missing directory is made, as root's.
pub(crate) fn bind_sub_path(
    volume: &ReadyVolume,
    sub_path: &str,
    target: &Path,
) -> Result<PathBuf, SubPathError> {
    let relative = Path::new(sub_path);
    let is_below = relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if !is_below {
        return Err(SubPathError::NotBelow(sub_path.to_owned()));
    }
    if target.exists() && is_mount_point(target).unwrap_or(false) {
        return Ok(target.to_owned());
    }
    let source = open_or_make(volume, relative)?;
    make_target(&source, target)?;
    // The descriptor pins what was resolved: the bind cannot be led elsewhere.
    let pinned = format!("/proc/self/fd/{}", source.as_raw_fd());
    rustix::mount::mount_bind_recursive(pinned.as_str(), target).map_err(io_at("bind", target))?;
    Ok(target.to_owned())
}

fn open_beneath(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn open_or_make(volume: &ReadyVolume, relative: &Path) -> Result<OwnedFd, SubPathError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let shown = volume.host_path.join(relative);
    let root = rustix::fs::openat(CWD, &volume.host_path, flags, Mode::empty());
    let root = root.map_err(io_at("open", &volume.host_path))?;
    let path = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
    match open_beneath(&root, path) {
        Err(rustix::io::Errno::NOENT) => make_beneath(volume, &root, relative),
        Err(rustix::io::Errno::XDEV) => Err(SubPathError::LeadsOut(shown)),
        other => other.map_err(io_at("open", &shown)),
    }
}

/// Makes each missing directory on the way, never following a link out of the volume.
fn make_beneath(volume: &ReadyVolume, root: &OwnedFd, relative: &Path) -> Result<OwnedFd, SubPathError> {
    let mut reached = PathBuf::new();
    let mut parent = open_beneath(root, Path::new(".")).map_err(io_at("open", &volume.host_path))?;
    for part in relative.components() {
        reached.push(part);
        let shown = volume.host_path.join(&reached);
        if open_beneath(root, &reached).is_err() {
            rustix::fs::mkdirat(&parent, part.as_os_str(), Mode::from_raw_mode(0o755))
                .map_err(io_at("make directory", &shown))?;
            let owner = rustix::process::Uid::from_raw(volume.base);
            let group = rustix::process::Gid::from_raw(volume.base);
            let no_follow = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&parent, part.as_os_str(), Some(owner), Some(group), no_follow)
                .map_err(io_at("change owner of", &shown))?;
        }
        parent = open_beneath(root, &reached).map_err(io_at("open", &shown))?;
    }
    Ok(parent)
}

/// An empty file or directory to bind on.
fn make_target(source: &OwnedFd, target: &Path) -> Result<(), SubPathError> {
    let io = |source| SubPathError::Io { action: "make mount point", path: target.to_owned(), source };
    if let Some(parent) = target.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(parent).map_err(io)?;
    }
    let kind = FileType::from_raw_mode(rustix::fs::fstat(source).map_err(io_at("stat", target))?.st_mode);
    if kind == FileType::Directory {
        return match fs::create_dir(target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other.map_err(io),
        };
    }
    fs::OpenOptions::new().create(true).append(true).open(target).map(drop).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::mount::unmount_below;

    struct Fixture(tempfile::TempDir);

    impl Drop for Fixture {
        fn drop(&mut self) {
            unmount_below(self.0.path()).unwrap();
        }
    }

    impl Fixture {
        fn new() -> (Self, ReadyVolume) {
            assert!(rustix::process::geteuid().is_root(), "this test binds mounts: run it as root");
            let root = tempfile::tempdir().unwrap();
            let host_path = root.path().join("volume");
            fs::create_dir(&host_path).unwrap();
            let volume = ReadyVolume {
                name: "v".into(),
                host_path,
                is_mapped: false,
                is_read_only: false,
                base: 0,
                image: None,
            };
            (Self(root), volume)
        }

        fn target(&self, name: &str) -> PathBuf {
            self.0.path().join("targets").join(name)
        }
    }

    #[test]
    fn files_and_directories_are_bound_and_missing_ones_made() {
        let (fixture, volume) = Fixture::new();
        fs::write(volume.host_path.join("file"), "x").unwrap();
        let file = bind_sub_path(&volume, "file", &fixture.target("0")).unwrap();
        assert_eq!(fs::read_to_string(file).unwrap(), "x");
        let made = bind_sub_path(&volume, "a/b", &fixture.target("1")).unwrap();
        fs::write(made.join("y"), "y").unwrap();
        assert_eq!(fs::read_to_string(volume.host_path.join("a/b/y")).unwrap(), "y");
        bind_sub_path(&volume, "a/b", &fixture.target("1")).unwrap();
    }

    #[test]
    fn a_link_never_leads_out_of_the_volume() {
        let (fixture, volume) = Fixture::new();
        for (name, to) in [("absolute", "/etc"), ("up", ".."), ("deep", "up/../..")] {
            std::os::unix::fs::symlink(to, volume.host_path.join(name)).unwrap();
            assert!(bind_sub_path(&volume, name, &fixture.target(name)).is_err(), "{name}");
            assert!(bind_sub_path(&volume, &format!("{name}/new"), &fixture.target(name)).is_err(), "{name}");
        }
        bind_sub_path(&volume, "../x", &fixture.target("t")).unwrap_err();
        bind_sub_path(&volume, "/etc", &fixture.target("t")).unwrap_err();
        fs::create_dir(volume.host_path.join("real")).unwrap();
        std::os::unix::fs::symlink("real", volume.host_path.join("inside")).unwrap();
        bind_sub_path(&volume, "inside", &fixture.target("inside")).unwrap();
    }
}
