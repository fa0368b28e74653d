//! Which OCI runtimes are handlers: those that the node's configuration names, and runc and crun where they are installed.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::HandlerFeatures;

/// OCI runtimes that are handlers wherever they are installed.
const KNOWN: [&str; 2] = ["runc", "crun"];

/// Where programs of the node are, besides `PATH`: a service may have a short one.
const USUAL: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// An OCI runtime and the name by which a `RuntimeClass` chooses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandlerConfig {
    /// A DNS label, e.g. `crun`.
    pub name: String,
    /// Absolute path of the program.
    pub program: PathBuf,
}

/// Why a handler can't be configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandlerError {
    /// Not `NAME=PATH`.
    #[error(
        "the runtime handler {0:?} is not of the form NAME=PATH, e.g. `crun-debug=/usr/local/bin/crun`, with a name of \
         lower case letters, digits and `-` and an absolute path"
    )]
    Form(String),
    /// There is no program at the path.
    #[error("the runtime handler {name:?} is {}, which is no executable file on this node", .program.display())]
    Program {
        /// The handler.
        name: String,
        /// Where its program should be.
        program: PathBuf,
    },
}

impl HandlerConfig {
    /// Parses `NAME=PATH`.
    ///
    /// # Errors
    /// [`HandlerError::Form`]
    pub fn parse(text: &str) -> Result<Self, HandlerError> {
        let wrong = || HandlerError::Form(text.to_owned());
        let (name, program) = text.split_once('=').ok_or_else(wrong)?;
        let is_label = (1..=63).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !name.starts_with('-')
            && !name.ends_with('-');
        if !is_label || !program.starts_with('/') {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), program: program.into() })
    }
}

/// The handlers of a node: those configured, and runc and crun where they are installed and not configured otherwise.
/// `path` is the daemon's `PATH`.
///
/// # Errors
/// [`HandlerError::Program`] for one that is configured and not there.
pub fn handlers(configured: Vec<HandlerConfig>, path: &OsStr) -> Result<Vec<HandlerConfig>, HandlerError> {
    if let Some(HandlerConfig { name, program }) =
        configured.iter().find(|handler| !is_program(&handler.program))
    {
        return Err(HandlerError::Program { name: name.clone(), program: program.clone() });
    }
    let mut all: Vec<HandlerConfig> = Vec::new();
    for handler in configured {
        all.retain(|other| other.name != handler.name);
        all.push(handler);
    }
    let directories: Vec<PathBuf> =
        std::env::split_paths(path).chain(USUAL.map(PathBuf::from)).filter(|dir| dir.is_absolute()).collect();
    for name in KNOWN {
        let found = directories.iter().map(|directory| directory.join(name)).find(|path| is_program(path));
        if let Some(program) = found.filter(|_| all.iter().all(|handler| handler.name != name)) {
            all.push(HandlerConfig { name: name.to_owned(), program });
        }
    }
    Ok(all)
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

/// What `kakoi check` says of a handler: the version that it tells, and why it can't run Pods in user namespaces.
///
/// # Errors
/// What it said when it was asked.
pub fn describe(handler: &HandlerConfig) -> Result<(String, Option<String>), String> {
    let features = HandlerFeatures::probe(&handler.program);
    if features.version.is_empty() {
        return Err(features.reason);
    }
    Ok((features.version, Some(features.reason).filter(|reason| !reason.is_empty())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_is_a_name_and_an_absolute_path() {
        let parsed = HandlerConfig::parse("kata-qemu=/opt/kata/bin/kata-runtime").unwrap();
        assert_eq!(
            (parsed.name.as_str(), parsed.program.to_str()),
            ("kata-qemu", Some("/opt/kata/bin/kata-runtime"))
        );
        for wrong in ["runc", "=/usr/bin/runc", "Runc=/usr/bin/runc", "-a=/b", "runc=bin/runc", "../x=/y"] {
            let text = HandlerConfig::parse(wrong).unwrap_err().to_string();
            assert!(text.contains(wrong) && text.contains("NAME=PATH"), "{text}");
        }
    }

    /// A directory with an executable file of each name.
    fn programs(names: &[&str]) -> tempfile::TempDir {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().unwrap();
        for name in names {
            let path = directory.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        directory
    }

    #[test]
    fn what_is_installed_is_a_handler_unless_the_node_says_otherwise() {
        let node = programs(&["runc", "crun", "mine"]);
        let at = |name: &str| node.path().join(name);
        let found = handlers(Vec::new(), node.path().as_os_str()).unwrap();
        let expected = ["runc", "crun"].map(|name| HandlerConfig { name: name.into(), program: at(name) });
        assert_eq!(found, expected);

        let own = HandlerConfig { name: "runc".into(), program: at("mine") };
        let found = handlers(vec![own.clone()], node.path().as_os_str()).unwrap();
        assert_eq!(found[0], own);
        assert_eq!(found.iter().filter(|handler| handler.name == "runc").count(), 1);

        let absent = HandlerConfig { name: "kata".into(), program: at("absent") };
        let text = handlers(vec![absent], node.path().as_os_str()).unwrap_err().to_string();
        assert!(text.contains("\"kata\"") && text.contains("absent"), "{text}");
    }
}
