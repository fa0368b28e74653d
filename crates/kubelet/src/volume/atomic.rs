//! Writes the files of a volume so that a reader sees either all of the old content or all of the new.
//!
//! Content lies in a directory `..<time>`; the link `..data` points to it and each file's own name is a link through
//! `..data`. One rename of `..data` makes a change visible. The layout is upstream's, which programs rely on.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

use super::payload::{File, Payload};

const DATA: &str = "..data";
const DATA_NEXT: &str = "..data_tmp";

/// Who owns what is written, in host IDs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ownership {
    /// The host ID of container ID 0: 0 unless the filesystem cannot be ID-mapped.
    pub(crate) base: u32,
    /// The Pod's `fsGroup` as a container ID.
    pub(crate) fs_group: Option<u32>,
}

impl Ownership {
    /// The host ID of a container's user.
    pub(crate) fn user(self, container_id: u32) -> u32 {
        self.base.saturating_add(container_id)
    }

    /// The host ID of the group: the `fsGroup` or root's.
    pub(crate) fn group(self) -> u32 {
        self.base.saturating_add(self.fs_group.unwrap_or(0))
    }
}

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error(
        "path `{0}` in the volume is not allowed: it must be relative, without `..`, and not start with `..`"
    )]
    BadPath(String),
    #[error("{action} {path}: {source}", path = path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

trait At<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, WriteError>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, WriteError> {
        self.map_err(|source| WriteError::Io { action, path: path.to_owned(), source })
    }
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Unchanged,
    Replaced,
}

/// Makes `directory` show exactly `payload`.
pub(crate) fn write_payload(
    directory: &Path,
    payload: &Payload,
    owner: Ownership,
    now: Timestamp,
) -> Result<Written, WriteError> {
    for path in payload.keys() {
        check_path(path)?;
    }
    let current = current_version(directory);
    if let Some(current) = &current
        && holds(current, payload, owner)
        && links_are_complete(directory, payload)
    {
        return Ok(Written::Unchanged);
    }
    let version = write_version(directory, payload, owner, now)?;
    switch_version(directory, &version)?;
    add_links(directory, payload, owner)?;
    remove_stale_links(directory, payload)?;
    remove_other_versions(directory, &version)?;
    Ok(Written::Replaced)
}

/// Relative, no `..` component, first component not starting with `..` (those names are the writer's own).
fn check_path(path: &str) -> Result<(), WriteError> {
    let bad = || WriteError::BadPath(path.to_owned());
    let mut components = Path::new(path).components();
    let Some(Component::Normal(first)) = components.next() else { return Err(bad()) };
    if first.to_string_lossy().starts_with("..") || path.len() > 4096 {
        return Err(bad());
    }
    let fine = components.all(|component| matches!(component, Component::Normal(_)));
    if fine { Ok(()) } else { Err(bad()) }
}

fn current_version(directory: &Path) -> Option<PathBuf> {
    let target = fs::read_link(directory.join(DATA)).ok()?;
    Some(directory.join(target))
}

/// Does the version directory hold just these files with these modes and owners?
fn holds(version: &Path, payload: &Payload, owner: Ownership) -> bool {
    let mut found = BTreeSet::new();
    if collect_files(version, version, &mut found).is_err() || found.len() != payload.len() {
        return false;
    }
    payload
        .iter()
        .all(|(path, file)| found.contains(path.as_str()) && is_same(&version.join(path), file, owner))
}

fn is_same(path: &Path, file: &File, owner: Ownership) -> bool {
    let Ok(meta) = fs::symlink_metadata(path) else { return false };
    let same_owner = meta.uid() == owner.user(file.user.unwrap_or(0)) && meta.gid() == owner.group();
    let same_mode = meta.mode() & 0o7777 == file_mode(file, owner);
    same_owner && same_mode && fs::read(path).is_ok_and(|data| data == file.data)
}

/// With an `fsGroup`, the group may read.
fn file_mode(file: &File, owner: Ownership) -> u32 {
    if owner.fs_group.is_some() { file.mode | 0o440 } else { file.mode }
}

fn directory_mode(owner: Ownership) -> u32 {
    if owner.fs_group.is_some() { 0o2755 | 0o550 } else { 0o755 }
}

fn collect_files(root: &Path, directory: &Path, found: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect_files(root, &path, found)?;
        } else if let Ok(relative) = path.strip_prefix(root) {
            found.insert(relative.to_string_lossy().into_owned());
        }
    }
    Ok(())
}

/// Writes a new version directory; nothing points to it yet.
fn write_version(
    directory: &Path,
    payload: &Payload,
    owner: Ownership,
    now: Timestamp,
) -> Result<String, WriteError> {
    let time = now.strftime("%Y_%m_%d_%H_%M_%S").to_string();
    let name = format!("..{time}.{:010}", rand::random::<u32>());
    let version = directory.join(&name);
    make_directory(&version, owner)?;
    for (path, file) in payload {
        if let Some(parent) = Path::new(path).parent() {
            let mut at = version.clone();
            for component in parent.components() {
                at.push(component);
                make_directory(&at, owner)?;
            }
        }
        write_file(&version.join(path), file, owner)?;
    }
    Ok(name)
}

fn make_directory(path: &Path, owner: Ownership) -> Result<(), WriteError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other.at("make directory", path)?,
    }
    chown(path, Some(owner.user(0)), Some(owner.group())).at("change owner of", path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(directory_mode(owner))).at("change mode of", path)
}

fn write_file(path: &Path, file: &File, owner: Ownership) -> Result<(), WriteError> {
    let mut out =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).at("create", path)?;
    out.write_all(&file.data).at("write", path)?;
    chown(path, Some(owner.user(file.user.unwrap_or(0))), Some(owner.group())).at("change owner of", path)?;
    out.set_permissions(fs::Permissions::from_mode(file_mode(file, owner))).at("change mode of", path)
}

/// Lets `..data` point to the new version in one rename.
fn switch_version(directory: &Path, version: &str) -> Result<(), WriteError> {
    let next = directory.join(DATA_NEXT);
    match fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).at("remove", &next),
        _ => {}
    }
    symlink(version, &next).at("link", &next)?;
    let data = directory.join(DATA);
    fs::rename(&next, &data).at("rename to", &data)
}

/// First components of all paths: the names that users see in the volume.
fn visible_names(payload: &Payload) -> BTreeSet<&str> {
    payload.keys().filter_map(|path| path.split('/').next()).collect()
}

fn links_are_complete(directory: &Path, payload: &Payload) -> bool {
    visible_names(payload).iter().all(|name| fs::symlink_metadata(directory.join(name)).is_ok())
}

fn add_links(directory: &Path, payload: &Payload, owner: Ownership) -> Result<(), WriteError> {
    for name in visible_names(payload) {
        let link = directory.join(name);
        match symlink(Path::new(DATA).join(name), &link) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.at("link", &link)?,
        }
        lchown(&link, Some(owner.user(0)), Some(owner.group())).at("change owner of", &link)?;
    }
    let data = directory.join(DATA);
    lchown(&data, Some(owner.user(0)), Some(owner.group())).at("change owner of", &data)
}

fn remove_stale_links(directory: &Path, payload: &Payload) -> Result<(), WriteError> {
    let names = visible_names(payload);
    for entry in fs::read_dir(directory).at("list", directory)? {
        let name = entry.at("list", directory)?.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !names.contains(name.as_ref()) {
            let link = directory.join(name.as_ref());
            fs::remove_file(&link).at("remove", &link)?;
        }
    }
    Ok(())
}

fn remove_other_versions(directory: &Path, version: &str) -> Result<(), WriteError> {
    for entry in fs::read_dir(directory).at("list", directory)? {
        let name = entry.at("list", directory)?.file_name();
        let text = name.to_string_lossy();
        if text.starts_with("..") && text != DATA && text != version {
            let old = directory.join(&name);
            match fs::remove_dir_all(&old) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).at("remove", &old);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.into(), mode: 0o644, user: None };
        files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    /// Files get the test's own IDs, so that the test needs no privilege.
    fn mine() -> Ownership {
        assert!(rustix::process::geteuid().is_root(), "this test changes owners: run it as root");
        Ownership::default()
    }

    fn write(directory: &Path, files: &[(&str, &str)]) -> Written {
        write_payload(directory, &payload(files), mine(), Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn content_changes_through_one_link_and_old_versions_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(write(path, &[("a", "1"), ("dir/b", "2")]), Written::Replaced);
        assert_eq!(fs::read_link(path.join("a")).unwrap(), Path::new("..data/a"));
        assert_eq!(fs::read_link(path.join("dir")).unwrap(), Path::new("..data/dir"));
        assert_eq!(fs::read_to_string(path.join("dir/b")).unwrap(), "2");
        assert_eq!(write(path, &[("a", "1"), ("dir/b", "2")]), Written::Unchanged);
        let first = fs::read_link(path.join(DATA)).unwrap();
        assert_eq!(write(path, &[("a", "3"), ("c", "4")]), Written::Replaced);
        assert_ne!(fs::read_link(path.join(DATA)).unwrap(), first);
        assert!(!path.join(first).exists());
        assert!(!path.join("dir").exists());
        assert_eq!(fs::read_to_string(path.join("a")).unwrap(), "3");
        assert_eq!(write(path, &[]), Written::Replaced);
        let left: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "only the link and an empty version: {left:?}");
    }

    #[test]
    fn what_a_crash_left_behind_does_no_harm() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::create_dir(path.join("..half")).unwrap();
        symlink("..half", path.join(DATA_NEXT)).unwrap();
        write(path, &[("a", "1")]);
        fs::remove_file(path.join("a")).unwrap();
        assert_eq!(write(path, &[("a", "1")]), Written::Replaced, "a missing link is put back");
        assert!(!path.join("..half").exists());
    }

    #[test]
    fn a_path_that_leaves_the_volume_is_refused() {
        for bad in ["../x", "a/../../x", "/etc/x", "", "..data", "..x"] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
        for good in ["a", "a/b", ".hidden", "a/..b"] {
            assert!(check_path(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn the_group_and_the_base_show_in_owner_and_mode() {
        mine();
        let directory = tempfile::tempdir().unwrap();
        let owner = Ownership { base: 131_072, fs_group: Some(2000) };
        let mut payload = payload(&[("token", "t")]);
        payload.insert("token".into(), File { data: b"t".to_vec(), mode: 0o600, user: Some(1000) });
        write_payload(directory.path(), &payload, owner, Timestamp::UNIX_EPOCH).unwrap();
        let meta = fs::metadata(directory.path().join("token")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (132_072, 133_072, 0o640));
    }
}
