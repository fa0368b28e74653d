//! `fsGroup` of a volume that has a life of its own: everything in it becomes the group's, as the policy asks.
//!
//! IDs on disk are the containers' own, with a user namespace or without.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::{Path, PathBuf};

/// When the group is changed (`fsGroupChangePolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ChangePolicy {
    /// At each start of the Pod.
    #[default]
    Always,
    /// Only when the volume's root does not fit.
    OnRootMismatch,
}

impl ChangePolicy {
    /// Reads the API's word.
    pub(crate) fn parse(text: Option<&str>) -> Self {
        if text == Some("OnRootMismatch") { Self::OnRootMismatch } else { Self::Always }
    }
}

/// The bits that a file, or a directory, must have.
const FILE_BITS: u32 = 0o660;
const DIRECTORY_BITS: u32 = 0o2770;

/// Gives `root` and all below it to `group`. Links are not followed.
///
/// # Errors
/// The path that could not be changed, and why.
pub(crate) fn apply_fs_group(
    root: &Path,
    group: u32,
    policy: ChangePolicy,
) -> Result<(), (PathBuf, io::Error)> {
    let at = |path: &Path, error| (path.to_owned(), error);
    let meta = fs::symlink_metadata(root).map_err(|error| at(root, error))?;
    let fits = meta.gid() == group && meta.mode() & DIRECTORY_BITS == DIRECTORY_BITS;
    if policy == ChangePolicy::OnRootMismatch && fits {
        return Ok(());
    }
    let mut directories = vec![root.to_owned()];
    // The root goes last: it tells whether the rest is done.
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).map_err(|error| at(&directory, error))? {
            let path = entry.map_err(|error| at(&directory, error))?.path();
            if give(&path, group).map_err(|error| at(&path, error))? {
                directories.push(path);
            }
        }
    }
    give(root, group).map(drop).map_err(|error| at(root, error))
}

/// Gives one entry to the group; says whether it is a directory.
fn give(path: &Path, group: u32) -> io::Result<bool> {
    let meta = fs::symlink_metadata(path)?;
    if meta.gid() != group {
        lchown(path, None, Some(group))?;
    }
    if meta.is_symlink() {
        return Ok(false);
    }
    let bits = if meta.is_dir() { DIRECTORY_BITS } else { FILE_BITS };
    let mode = meta.mode() & 0o7777;
    if mode & bits != bits {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | bits))?;
    }
    Ok(meta.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        assert!(rustix::process::geteuid().is_root(), "this test changes owners: run it as root");
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("d")).unwrap();
        fs::write(root.path().join("d/f"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("link")).unwrap();
        root
    }

    #[test]
    fn everything_becomes_the_groups_and_links_are_not_followed() {
        let root = tree();
        let before = fs::metadata("/etc/passwd").unwrap();
        apply_fs_group(root.path(), 2000, ChangePolicy::Always).unwrap();
        let of = |name: &str| {
            let meta = fs::symlink_metadata(root.path().join(name)).unwrap();
            (meta.gid(), meta.mode() & 0o7777)
        };
        assert_eq!((of("d"), of("d/f")), ((2000, 0o2775), (2000, 0o664)));
        assert_eq!(of("link").0, 2000);
        let after = fs::metadata("/etc/passwd").unwrap();
        assert_eq!((before.gid(), before.mode()), (after.gid(), after.mode()));
    }

    #[test]
    fn a_root_that_fits_is_enough_when_the_policy_says_so() {
        let root = tree();
        apply_fs_group(root.path(), 2000, ChangePolicy::Always).unwrap();
        lchown(root.path().join("d/f"), None, Some(0)).unwrap();
        let group = || fs::metadata(root.path().join("d/f")).unwrap().gid();
        apply_fs_group(root.path(), 2000, ChangePolicy::OnRootMismatch).unwrap();
        assert_eq!(group(), 0);
        apply_fs_group(root.path(), 2000, ChangePolicy::Always).unwrap();
        assert_eq!(group(), 2000);
        apply_fs_group(root.path(), 3000, ChangePolicy::OnRootMismatch).unwrap();
        assert_eq!(group(), 3000);
    }
}
