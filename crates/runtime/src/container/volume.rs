//! Volumes that an image declares (`VOLUME`): directories of the container, filled once with what the image has at
//! that path. They are copied from the layers as they lie on disk, without the Pod's mapping: the mapping comes
//! with the mount, and applied twice it would shift every owner (containerd#12218).

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use sys::mount::OverlayPlan;

use super::apply;
use crate::core::{Core, make_dir};
use crate::error::{Error, Result};
use crate::record::{ContainerRecord, ImageVolume};

/// Makes the volumes; those that the request mounts something over are left out.
pub(crate) fn seed(core: &Core, record: &ContainerRecord) -> Result<Vec<ImageVolume>> {
    let is_mounted = |path: &String| record.config.mounts.iter().any(|mount| &mount.container_path == path);
    let declared: Vec<&String> = record
        .image
        .config
        .volumes
        .iter()
        .filter(|path| path.starts_with('/') && !is_mounted(path))
        .collect();
    if declared.is_empty() {
        return Ok(Vec::new());
    }
    let image = raw_image(core, record)?;
    let parent = core.container_dir(&record.id).join(apply::VOLUMES);
    make_dir(&parent)?;
    let mut volumes = Vec::new();
    for (number, path) in declared.into_iter().enumerate() {
        let volume = ImageVolume { path: path.clone(), directory: number.to_string() };
        fill(&image, path, &parent.join(&volume.directory))
            .map_err(|error| Error::failed(format!("fill the image's volume {path}"), error))?;
        volumes.push(volume);
    }
    Ok(volumes)
}

/// The image's files with the owners that lie on disk, read-only.
fn raw_image(core: &Core, record: &ContainerRecord) -> Result<OwnedFd> {
    let layers_dir = core.config.images.layers_dir();
    let plan =
        OverlayPlan { layers_dir: &layers_dir, layers: &record.image.layers, upper: None, id_mapping: None };
    sys::mount::overlay(&plan).map_err(|error| Error::failed("read the image's volumes", error))
}

fn fill(image: &OwnedFd, path: &str, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o755))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(image, path, flags, Mode::empty(), resolve) {
        Ok(source) => copy_directory(source.as_fd(), target),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Copies a directory's attributes and content. `source` is walked by descriptor, so a link in the image leads
/// nowhere else.
fn copy_directory(source: impl AsFd, target: &Path) -> io::Result<()> {
    let here = own_path(&source);
    copy_attributes(&fs::metadata(&here)?, target)?;
    for entry in fs::read_dir(&here)? {
        let entry = entry?;
        let metadata = fs::symlink_metadata(here.join(entry.file_name()))?;
        let destination = target.join(entry.file_name());
        let kind = metadata.file_type();
        if kind.is_dir() {
            fs::create_dir(&destination)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let child = rustix::fs::openat(&source, entry.file_name(), flags, Mode::empty())?;
            copy_directory(child, &destination)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(here.join(entry.file_name()))?, &destination)?;
            std::os::unix::fs::lchown(&destination, Some(metadata.uid()), Some(metadata.gid()))?;
        } else if kind.is_file() {
            fs::copy(here.join(entry.file_name()), &destination)?;
            copy_attributes(&metadata, &destination)?;
        }
    }
    Ok(())
}

fn own_path(directory: &impl AsFd) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", directory.as_fd().as_raw_fd()))
}

/// Owner, then mode: a change of owner clears set-ID bits.
fn copy_attributes(metadata: &fs::Metadata, target: &Path) -> io::Result<()> {
    std::os::unix::fs::chown(target, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(target, fs::Permissions::from_mode(metadata.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_filled_with_owners_modes_and_links_as_they_lie_on_disk() {
        let image = tempfile::tempdir().unwrap();
        let data = image.path().join("data/sub");
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("file"), "x").unwrap();
        fs::set_permissions(data.join("file"), fs::Permissions::from_mode(0o4750)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", image.path().join("data/link")).unwrap();
        let out = tempfile::tempdir().unwrap();
        let target = out.path().join("volume");
        let root = OwnedFd::from(fs::File::open(image.path()).unwrap());
        fill(&root, "/data", &target).unwrap();
        assert_eq!(fs::metadata(target.join("sub/file")).unwrap().mode() & 0o7777, 0o4750);
        assert_eq!(fs::read_link(target.join("link")).unwrap(), Path::new("/etc/passwd"));
        fill(&root, "/absent", &out.path().join("empty")).unwrap();
        assert_eq!(fs::read_dir(out.path().join("empty")).unwrap().count(), 0);
    }
}
