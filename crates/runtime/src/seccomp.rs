//! Seccomp programs: the default profile, compiled once for each set of capabilities and passed on as a memory file,
//! and profiles of the node's (`Localhost`), compiled when a container is made and kept beside it, so that an exec has
//! the container's filter whatever became of the profile since.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cri::v1::LinuxContainerSecurityContext;
use cri::v1::security_profile::ProfileType;
use sys::seccomp::{Document, compile_document};

use crate::container::plan::{self, Seccomp};
use crate::core::Core;
use crate::error::{Error, Result};
use crate::record::ContainerRecord;

/// The compiled profile, in the container's directory.
const PROGRAM: &str = "seccomp";
/// What of the profile holds for the container, there too, for OCI runtimes.
const DOCUMENT: &str = "seccomp.json";

/// What the field's runtimes allow before the path.
const PREFIX: &str = "localhost/";

/// The compiled program of a profile.
pub(crate) fn program(core: &Core, profile: &Seccomp) -> Result<OwnedFd> {
    let opened = match profile {
        Seccomp::Default { capabilities } => {
            core.profiles.runtime_default(*capabilities).and_then(|program| program.try_clone())
        }
        Seccomp::Localhost { container } => {
            std::fs::File::open(core.container_dir(container).join(PROGRAM)).map(OwnedFd::from)
        }
    };
    opened.map_err(|error| Error::failed("open the compiled seccomp profile", error))
}

/// Where the container's profile lies, if it is one of the node's.
pub(crate) fn profile_path(security: &LinuxContainerSecurityContext) -> Result<Option<PathBuf>> {
    let profile = security.seccomp.as_ref().filter(|_| !security.privileged);
    let Some(profile) = profile.filter(|it| it.profile_type == i32::from(ProfileType::Localhost)) else {
        return Ok(None);
    };
    let path = profile.localhost_ref.strip_prefix(PREFIX).unwrap_or(&profile.localhost_ref);
    if !path.starts_with('/') {
        return Err(Error::Invalid(format!(
            "the seccomp profile {:?} is not an absolute path on this node",
            profile.localhost_ref
        )));
    }
    Ok(Some(PathBuf::from(path)))
}

/// Compiles the container's profile into its directory, if it is one of the node's. Returns the flags with which it is
/// installed.
pub(crate) fn compile(directory: &Path, record: &ContainerRecord) -> Result<u32> {
    let security = plan::security(record);
    let Some(path) = profile_path(&security)? else { return Ok(0) };
    let wrong = |error: &dyn std::fmt::Display| {
        Error::Invalid(format!("the seccomp profile {} can't be applied: {error}", path.display()))
    };
    let text = std::fs::read(&path).map_err(|error| wrong(&error))?;
    let document: Document = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
    let capabilities = plan::capabilities(&security)?.bounding;
    let kernel = rustix::system::uname();
    let kernel = kernel.release().to_string_lossy();
    let compiled = compile_document(&document, capabilities, &kernel).map_err(|error| wrong(&error))?;
    let resolved = document.resolved(capabilities, &kernel).map_err(|error| wrong(&error))?;
    let keep = || {
        std::fs::write(directory.join(PROGRAM), &compiled.program)?;
        std::fs::write(directory.join(DOCUMENT), serde_json::to_vec(&resolved)?)
    };
    keep().map_err(|error| Error::failed("keep the compiled seccomp profile", error))?;
    Ok(compiled.flags)
}

/// The profile of the node's that [`compile`] kept in a container's directory.
pub(crate) fn document(directory: &Path) -> Result<Document> {
    let read = || -> std::io::Result<Document> {
        Ok(serde_json::from_slice(&std::fs::read(directory.join(DOCUMENT))?)?)
    };
    read().map_err(|error| Error::failed("read the container's seccomp profile", error))
}
