//! Env files: what `fileKeyRef` reads from a file that a container of the Pod has written into a volume.
//!
//! Only `NAME='value'` is a declaration: a value lies in single quotes, means just what it says and may have several
//! lines. Whatever else a shell would understand is refused with its line. Source: KEP-3721.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Container;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// The longest file that is read, in bytes: the kernel takes no longer variable (`MAX_ARG_STRLEN`).
const LONGEST: u64 = 128 << 10;

/// Where an env file lies: the volume's name, and the path in it.
pub(crate) type Place = (String, String);

/// The files that a container's variables refer to, as they were read.
pub(crate) type EnvFiles = BTreeMap<Place, Result<String, ReadError>>;

/// Why an env file cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The message is upstream's.
    #[error("cannot find the volume {0:?} referenced by FileKeyRef")]
    NoVolume(String),
    #[error(
        "couldn't parse env file: {0} does not exist in the volume; let an init container write it, or set `optional: true`"
    )]
    Absent(String),
    #[error("couldn't parse env file: {0} is not a regular file")]
    NotRegular(String),
    #[error("couldn't parse env file: {0} is longer than {LONGEST} bytes")]
    TooLong(String),
    #[error("couldn't parse env file: read {path}: {source}")]
    Io { path: String, source: io::Error },
}

/// What is wrong with an env file, and on which line (from 1).
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("invalid environment variable format at line {line}{}{detail}", if .detail.is_empty() { "" } else { ": " })]
pub(crate) struct FormatError {
    pub(crate) line: usize,
    pub(crate) detail: &'static str,
}

/// Reads each file that a variable of `container` refers to once. `root_of` says where a volume lies on the node.
pub(crate) fn read_files(container: &Container, root_of: impl Fn(&str) -> Option<PathBuf>) -> EnvFiles {
    let mut files = EnvFiles::new();
    for variable in container.env.iter().flatten() {
        let source = variable.value_from.as_ref().and_then(|source| source.file_key_ref.as_ref());
        let Some(reference) = source else { continue };
        let place = (reference.volume_name.clone(), reference.path.clone());
        files.entry(place).or_insert_with(|| match root_of(&reference.volume_name) {
            Some(root) => read_file(&root, &reference.path),
            None => Err(ReadError::NoVolume(reference.volume_name.clone())),
        });
    }
    files
}

/// Reads a file below `root`. Containers have written it: no link leads out of the volume, and nothing is waited for.
fn read_file(root: &Path, path: &str) -> Result<String, ReadError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ReadError::Absent(path.to_owned()),
        _ => ReadError::Io { path: path.to_owned(), source },
    };
    let directory = rustix::fs::openat(CWD, root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let directory = directory.map_err(|error| failed(error.into()))?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(&directory, path, flags, Mode::empty(), resolve);
    let file = File::from(opened.map_err(|error| failed(error.into()))?);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(ReadError::NotRegular(path.to_owned()));
    }
    let mut content = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut content).map_err(failed)?;
    if u64::try_from(content.len()).is_ok_and(|length| length > LONGEST) {
        return Err(ReadError::TooLong(path.to_owned()));
    }
    Ok(String::from_utf8_lossy(&content).into_owned())
}

/// The value of `key` in the text of an env file, `None` when no line before the end declares it. The first
/// declaration counts, and what follows it is not looked at.
pub(crate) fn find_value(text: &str, key: &str) -> Result<Option<String>, FormatError> {
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let at = |detail| FormatError { line: index + 1, detail };
        let line = line.trim_start_matches([' ', '\t']);
        if line.trim_end().is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| at(""))?;
        if name.ends_with([' ', '\t']) {
            return Err(at("whitespace before '=' is not allowed"));
        }
        let rest = rest.strip_prefix('\'').ok_or_else(|| at("value must be enclosed in single quotes"))?;
        let mut value = String::new();
        let mut part = rest;
        let after = loop {
            if let Some((last, after)) = part.split_once('\'') {
                value.push_str(last);
                break after;
            }
            value.push_str(part);
            value.push('\n');
            part = lines.next().ok_or_else(|| at("the closing single quote is missing"))?.1;
        };
        let after = after.trim_matches([' ', '\t']);
        if !after.is_empty() && !after.starts_with('#') {
            return Err(at("unexpected content after closing quote"));
        }
        if name == key {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn value(text: &str, key: &str) -> Option<String> {
        find_value(text, key).unwrap()
    }

    #[test]
    fn a_value_is_what_lies_between_its_quotes() {
        let text = "# written by an init container\n\n  A='1'\r\n\tB='x=y # $HOME \"q\" \\n'\t# told\nEMPTY=''\n\
            LONG='one\n\n  three'\nA='2'\n";
        for (key, expected) in
            [("A", "1"), ("B", "x=y # $HOME \"q\" \\n"), ("EMPTY", ""), ("LONG", "one\n\n  three")]
        {
            assert_eq!(value(text, key).as_deref(), Some(expected), "{key}");
        }
        assert_eq!(value(text, "three"), None);
        assert_eq!(value("", "A"), None);
    }

    #[test]
    fn what_only_a_shell_understands_is_refused_with_its_line() {
        let found = |text: &str| find_value(text, "KEY").unwrap_err().to_string();
        let begin = "invalid environment variable format at line 2";
        for (line, detail) in [
            ("JUST_A_NAME", ""),
            ("='x'", ""),
            ("export KEY ='x'", ": whitespace before '=' is not allowed"),
            ("KEY= 'x'", ": value must be enclosed in single quotes"),
            ("KEY=x", ": value must be enclosed in single quotes"),
            ("KEY=\"x\"", ": value must be enclosed in single quotes"),
            ("KEY='x'y", ": unexpected content after closing quote"),
            ("KEY='x''y'", ": unexpected content after closing quote"),
            ("KEY='x\nB='y'", ": unexpected content after closing quote"),
            ("KEY='x\n", ": the closing single quote is missing"),
        ] {
            assert_eq!(found(&format!("A='1'\n{line}")), format!("{begin}{detail}"), "{line}");
        }
        assert_eq!(value("KEY='1'\nnonsense", "KEY").as_deref(), Some("1"), "what follows is not looked at");
    }

    #[test]
    fn a_file_is_read_from_its_volume_and_from_nowhere_else() {
        let node = tempfile::tempdir().unwrap();
        let volume = node.path().join("volume");
        fs::create_dir_all(volume.join("etc")).unwrap();
        fs::write(node.path().join("secret"), "outside").unwrap();
        fs::write(volume.join("secret"), "inside").unwrap();
        symlink("/secret", volume.join("absolute")).unwrap();
        symlink("../../../secret", volume.join("etc/up")).unwrap();
        symlink("/proc/self/environ", volume.join("node")).unwrap();
        for path in ["secret", "absolute", "etc/up"] {
            assert_eq!(read_file(&volume, path).unwrap(), "inside", "{path}");
        }
        for path in ["node", "none", "secret/below"] {
            assert!(matches!(read_file(&volume, path), Err(ReadError::Absent(_))), "{path}");
        }
    }

    #[test]
    fn a_pipe_or_a_flood_of_bytes_is_no_env_file() {
        let volume = tempfile::tempdir().unwrap();
        let pipe = volume.path().join("pipe");
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(matches!(read_file(volume.path(), "pipe"), Err(ReadError::NotRegular(_))));
        fs::File::create(volume.path().join("long")).unwrap().set_len(LONGEST + 1).unwrap();
        assert!(matches!(read_file(volume.path(), "long"), Err(ReadError::TooLong(_))));
    }
}
