//! Seccomp programs, compiled once for each set of capabilities and passed on as memory files.

use std::os::fd::OwnedFd;

use crate::container::plan::Seccomp;
use crate::core::Core;
use crate::error::{Error, Result};

/// The compiled program of a profile.
pub(crate) fn program(core: &Core, profile: &Seccomp) -> Result<OwnedFd> {
    let Seccomp::Default { capabilities } = profile;
    let compiled = core.profiles.runtime_default(*capabilities).and_then(|program| program.try_clone());
    compiled.map_err(|error| Error::failed("compile the seccomp profile", error))
}
