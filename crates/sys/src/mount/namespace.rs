//! Mount namespaces that hold almost nothing, for processes that would otherwise copy the node's whole table.

use super::{Attributes, Change, FsOption, Propagation, attach, change, new_filesystem};
use rustix::fs::{FileType, Mode, OFlags, mkdirat, mknodat, openat};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

/// In the trimmed namespace: an empty directory on which a launcher attaches a container's root.
pub const TRIMMED_ROOT: &str = "/rootfs";
/// In the trimmed namespace: an empty directory on which a shim attaches its Pod's shared memory.
pub const TRIMMED_SHM: &str = "/shm";
/// In the trimmed namespace: the null device.
pub const TRIMMED_NULL: &str = "/null";
/// In the trimmed namespace: an empty directory that hides others.
pub const TRIMMED_EMPTY: &str = "/empty";

/// Runs `work` on a thread with a private copy of the caller's mount namespace, which ends with it.
/// Descriptors of detached mounts that it returns live on.
///
/// # Errors
/// The kernel's answer to `unshare`, or `work`'s error.
pub fn in_private_namespace<T: Send, E: From<io::Error> + Send>(
    work: impl FnOnce() -> Result<T, E> + Send,
) -> Result<T, E> {
    let run = || {
        // CLONE_NEWNS gives the thread its own root and working directory too (CLONE_FS).
        crate::process::unshare(0x0002_0000)?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(io::Error::from)?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(run).join())
        .unwrap_or_else(|_| Err(io::Error::other("the mount thread panicked").into()))
}

/// A detached clone of a file or directory inside a detached mount. `path` is resolved as if the mount were the root;
/// `place` is a directory over which the mount is attached meanwhile, in a namespace that ends with this call (before
/// Linux 6.15 a detached mount can't be cloned in parts).
///
/// # Errors
/// The kernel's answer; `ENOENT` if there is nothing at `path`.
pub fn clone_part(mount: impl AsFd + Sync, path: &Path, place: &Path) -> io::Result<OwnedFd> {
    in_private_namespace(|| {
        let open = || openat(rustix::fs::CWD, place, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        attach(&mount, open()?)?;
        let part = crate::path::open_in_root(&open()?, path, OFlags::PATH)?;
        super::clone_fd(part, false)
    })
}

/// A mount namespace of the initial user namespace with a small read-only tmpfs and a whole `/proc`: every new mount
/// namespace copies its parent's table, so shims and launchers start from this one.
///
/// # Errors
/// The kernel's answer; needs `CAP_SYS_ADMIN`.
pub fn trimmed_namespace() -> io::Result<OwnedFd> {
    in_private_namespace(|| {
        let root = small_root()?;
        let here =
            openat(rustix::fs::CWD, "/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        attach(&root, &here)?;
        rustix::process::fchdir(&root)?;
        become_root()?;
        let proc = new_filesystem("proc", &[], Attributes::INERT).map_err(io::Error::other)?;
        attach(&proc, open_directory("/proc")?)?;
        let set = Change { set: Attributes::READ_ONLY, ..Change::default() };
        change(open_directory("/")?, &set, false)?;
        Ok(openat(
            rustix::fs::CWD,
            "/proc/thread-self/ns/mnt",
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    })
}

fn open_directory(path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(rustix::fs::CWD, path, flags, Mode::empty())?)
}

/// The tmpfs with the places that shims and launchers use.
fn small_root() -> io::Result<OwnedFd> {
    let options = [FsOption::Text("mode", "755"), FsOption::Text("size", "64k")];
    let root = new_filesystem("tmpfs", &options, Attributes::NOSUID).map_err(io::Error::other)?;
    for directory in ["proc", "rootfs", "shm", "empty"] {
        mkdirat(&root, directory, Mode::from_raw_mode(0o755))?;
    }
    let null = rustix::fs::makedev(1, 3);
    mknodat(&root, "null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), null)?;
    rustix::fs::chmodat(&root, "null", Mode::from_raw_mode(0o666), rustix::fs::AtFlags::empty())?;
    let private = Change { propagation: Some(Propagation::Private), ..Change::default() };
    change(&root, &private, true)?;
    Ok(root)
}

/// Makes the working directory, which is a mount, the root of this thread's mount namespace, and lets go of the old one.
fn become_root() -> io::Result<()> {
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => {
            unmount(".", UnmountFlags::DETACH)?;
            Ok(rustix::process::chdir("/")?)
        }
        // The root is the kernel's first one (initramfs), which can't be pivoted away from.
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount_move(".", "/")?;
            rustix::process::chroot(".")?;
            Ok(rustix::process::chdir("/")?)
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn the_trimmed_namespace_holds_two_mounts() {
        let namespace = trimmed_namespace().expect("needs root");
        let table = std::thread::spawn(move || {
            crate::process::unshare(0x200).unwrap(); // CLONE_FS, without which a thread can't change mount namespace
            crate::process::enter_namespaces(namespace.as_fd(), 0x0002_0000).unwrap();
            assert!(std::path::Path::new(TRIMMED_NULL).exists());
            std::fs::read_to_string("/proc/thread-self/mounts").unwrap()
        });
        let table = table.join().unwrap();
        assert_eq!(table.lines().count(), 2, "{table}");
    }
}
