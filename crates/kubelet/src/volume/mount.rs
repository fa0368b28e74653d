//! Mounts that the node agent makes below a Pod's directory, and their removal.
//!
//! Nothing is ever deleted through a mount: directories go only when no mount is left below them.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};

/// Is `path` the root of a mount?
pub(crate) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let found = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Mounts a tmpfs of at most `size` bytes (the kernel's default without) at `path`, unless one is there.
pub(crate) fn mount_tmpfs(path: &Path, size: Option<i64>, mode: u32) -> io::Result<()> {
    if is_mount_point(path)? {
        return Ok(());
    }
    let size = size.filter(|size| *size > 0).map(|size| format!(",size={size}")).unwrap_or_default();
    let options = CString::new(format!("mode={mode:o}{size}")).map_err(io::Error::other)?;
    rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?;
    Ok(())
}

/// Mounts a filesystem of huge pages of `page` bytes at `path`, unless one is there. It holds at most `size` bytes,
/// rounded up to whole pages.
pub(crate) fn mount_hugetlbfs(path: &Path, page: u64, size: u64) -> io::Result<()> {
    if is_mount_point(path)? {
        return Ok(());
    }
    let size = size.div_ceil(page).saturating_mul(page);
    let options = CString::new(format!("pagesize={page},size={size},mode=777")).map_err(io::Error::other)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount("hugetlbfs", path, "hugetlbfs", flags, options.as_c_str())?)
}

/// The filesystem type at `path` for messages, e.g. `ext4`; the magic number where it has no name here.
pub(crate) fn filesystem_name(path: &Path) -> String {
    let Ok(found) = rustix::fs::statfs(path) else { return "unknown".to_owned() };
    let magic = u64::try_from(found.f_type).unwrap_or_default();
    let name = match magic {
        0xEF53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683E => "btrfs",
        0x0102_1994 => "tmpfs",
        0x6969 => "nfs",
        0x6573_5546 => "fuse",
        0x794C_7630 => "overlay",
        0x9FA0 => "proc",
        0x9584_58F6 => "hugetlbfs",
        0x6265_6572 => "sysfs",
        0x6367_7270 => "cgroup2",
        0x0027_E0EB => "cgroup",
        0x1CD1 => "devpts",
        _ => return format!("filesystem with magic 0x{magic:x}"),
    };
    name.to_owned()
}

/// What the filesystem of `path` was mounted from, e.g. `/dev/sda1` or `server:/export`.
pub(crate) fn mount_source(path: &Path) -> String {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let lines = table.split(|byte| *byte == b'\n').filter_map(|line| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let point = unescape(fields.get(4)?);
        let separator = fields.iter().position(|field| *field == b"-")?;
        Some((point, unescape(fields.get(separator + 2)?)))
    });
    let holding = lines.filter(|(point, _)| path.starts_with(point));
    // Of several at one place the last one covers the others.
    let found = holding.max_by_key(|(point, _)| point.components().count());
    found.map_or_else(|| "an unknown source".to_owned(), |(_, source)| source.display().to_string())
}

/// Mount points at or below `root`, deepest first, as the kernel lists them.
pub(crate) fn mounts_below(root: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read("/proc/self/mountinfo")?;
    let lines = table.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(root)).collect();
    below.reverse();
    Ok(below)
}

/// `\040` and the like back to bytes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        if let Some(byte) =
            octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| first == b'\\')
        {
            out.push(byte);
            rest = after.get(3..).unwrap_or_default();
        } else {
            out.push(first);
            rest = after;
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(out))
}

/// Unmounts everything at or below `root`, then makes sure that nothing is left.
pub(crate) fn unmount_below(root: &Path) -> io::Result<()> {
    for point in mounts_below(root)? {
        rustix::mount::unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .map_err(|error| io::Error::other(format!("unmount {}: {error}", point.display())))?;
    }
    match mounts_below(root)?.first() {
        None => Ok(()),
        Some(left) => Err(io::Error::other(format!("{} is still mounted", left.display()))),
    }
}

/// Removes `directory` with all it holds, once nothing is mounted in it. One that is absent is fine.
pub(crate) fn remove_tree(directory: &Path) -> io::Result<()> {
    unmount_below(directory)?;
    let result = match fs::symlink_metadata(directory) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(directory),
        Ok(_) => fs::remove_file(directory),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_of_the_mount_table_are_undone() {
        assert_eq!(unescape(b"/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape(b"/plain\\"), Path::new("/plain\\"));
    }

    #[test]
    fn a_tree_goes_only_after_its_mounts() {
        assert!(rustix::process::geteuid().is_root(), "this test mounts a tmpfs: run it as root");
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("pod dir");
        let volume = root.join("volume");
        fs::create_dir_all(&volume).unwrap();
        mount_tmpfs(&volume, Some(1 << 20), 0o777).unwrap();
        mount_tmpfs(&volume, None, 0o777).unwrap();
        assert_eq!(
            mounts_below(&root).unwrap(),
            std::slice::from_ref(&volume),
            "the second mount does nothing"
        );
        assert_eq!((filesystem_name(&volume), mount_source(&volume)), ("tmpfs".into(), "tmpfs".into()));
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        remove_tree(&root).unwrap();
    }
}
