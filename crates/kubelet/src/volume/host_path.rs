//! hostPath volumes: the type that the spec asks for is checked, or made, before the Pod starts.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Why a hostPath volume cannot be used. The texts are those of upstream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostPathError {
    #[error("hostPath type check failed: {path} is not {wanted}")]
    WrongType { path: String, wanted: &'static str },
    #[error("hostPath type check failed: make {path}: {source}")]
    Make { path: String, source: io::Error },
    #[error("{0} is an invalid volume type")]
    UnknownType(String),
}

/// Checks `path` against the hostPath `type`, and makes what the `…OrCreate` types ask for.
pub(crate) fn check_host_path(path: &Path, kind: &str) -> Result<(), HostPathError> {
    let shown = path.display().to_string();
    let make = |source| HostPathError::Make { path: shown.clone(), source };
    match kind {
        "" => return Ok(()),
        "DirectoryOrCreate" if !exists(path) => return make_directory(path).map_err(make),
        "FileOrCreate" if !exists(path) => return make_file(path).map_err(make),
        _ => {}
    }
    let found = fs::metadata(path).map(|meta| meta.file_type());
    let (fits, wanted) = match kind {
        "Directory" | "DirectoryOrCreate" => (found.is_ok_and(|kind| kind.is_dir()), "a directory"),
        "File" | "FileOrCreate" => (found.is_ok_and(|kind| kind.is_file()), "a file"),
        "Socket" => (found.is_ok_and(|kind| kind.is_socket()), "a socket file"),
        "CharDevice" => (found.is_ok_and(|kind| kind.is_char_device()), "a character device"),
        "BlockDevice" => (found.is_ok_and(|kind| kind.is_block_device()), "a block device"),
        other => return Err(HostPathError::UnknownType(other.to_owned())),
    };
    if fits { Ok(()) } else { Err(HostPathError::WrongType { path: shown, wanted }) }
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Like upstream, the parent must exist.
fn make_file(path: &Path) -> io::Result<()> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_checked() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("dir")).unwrap();
        fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, kind, fits) in [
            ("missing", "", true),
            ("dir", "Directory", true),
            ("file", "Directory", false),
            ("missing", "Directory", false),
            ("file", "File", true),
            ("dir", "File", false),
            ("socket", "Socket", true),
            ("file", "Socket", false),
            ("file", "CharDevice", false),
            ("file", "BlockDevice", false),
            ("new/dir", "DirectoryOrCreate", true),
            ("file", "DirectoryOrCreate", false),
            ("new-file", "FileOrCreate", true),
            ("no/parent", "FileOrCreate", false),
            ("dir", "FileOrCreate", false),
            ("dir", "Nonsense", false),
        ] {
            assert_eq!(check_host_path(&at(name), kind).is_ok(), fits, "{name} {kind}");
        }
        check_host_path(Path::new("/dev/null"), "CharDevice").unwrap();
        let error = check_host_path(&at("file"), "Directory").unwrap_err().to_string();
        assert!(error.starts_with("hostPath type check failed: ") && error.ends_with(" is not a directory"));
    }
}
