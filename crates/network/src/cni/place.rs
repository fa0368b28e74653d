//! Names for network namespaces: plugins take paths, and a sandbox has a descriptor. The namespace is bound to a file
//! of its own, and lives as long as that even when its processes are gone.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, mount_bind, unmount};

use crate::error::NetworkError;
use crate::record::absent_is_fine;

/// Where a sandbox's namespace is bound.
pub(crate) fn path_of(directory: &Path, sandbox: &str) -> PathBuf {
    directory.join(format!("kakoi-{sandbox}"))
}

/// Binds the namespace; it may be bound there already.
pub(crate) fn bind(path: &Path, netns: BorrowedFd<'_>) -> Result<(), NetworkError> {
    let apply = || {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        // What an earlier attempt bound may be the namespace of a process that is gone.
        unbind_file(path)?;
        fs::File::create_new(path)?;
        mount_bind(format!("/proc/self/fd/{}", netns.as_raw_fd()), path)?;
        Ok(())
    };
    apply().map_err(NetworkError::file("bind a network namespace to", path))
}

/// Takes the name away; it may be gone.
pub(crate) fn unbind(path: &Path) -> Result<(), NetworkError> {
    unbind_file(path).map_err(NetworkError::file("unbind the network namespace at", path))
}

fn unbind_file(path: &Path) -> io::Result<()> {
    match unmount(path, UnmountFlags::DETACH) {
        // Not there, or a plain file: after a reboot, or where a bind was not come to.
        Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => {}
        Err(error) => return Err(error.into()),
    }
    absent_is_fine(fs::remove_file(path))
}
