//! Seccomp programs, compiled once for each profile and kept as sealed memory files.

use std::os::fd::OwnedFd;

use crate::container::plan::Seccomp;
use crate::core::Core;
use crate::error::{Error, Result};

/// The compiled program of a profile.
pub(crate) fn program(core: &Core, profile: &Seccomp) -> Result<OwnedFd> {
    let _ = (core, profile);
    Err(Error::Unsupported("seccomp".to_owned()))
}
