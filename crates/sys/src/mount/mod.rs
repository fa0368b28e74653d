//! Mounts as descriptors: made detached, given their attributes, then attached where a descriptor points.
//!
//! A detached mount appears in no mount table and vanishes with its last descriptor, so nothing is left behind when a
//! process dies half-way. Kernels from 5.19 on.

mod bind;
mod namespace;
mod overlay;

pub use bind::{BindError, BindPlan, Propagation, bind, filesystem_type, is_id_mappable, tmpfs};
pub use namespace::{
    TRIMMED_EMPTY, TRIMMED_NULL, TRIMMED_ROOT, TRIMMED_SHM, clone_part, in_private_namespace,
    trimmed_namespace,
};
pub use overlay::{OverlayError, OverlayPlan, Upper, clone_layers, overlay};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Attributes of a mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes(u64);

impl Attributes {
    /// None.
    pub const NONE: Self = Attributes(0);
    /// `ro`
    pub const READ_ONLY: Self = Attributes(0x1);
    /// `nosuid`
    pub const NOSUID: Self = Attributes(0x2);
    /// `nodev`
    pub const NODEV: Self = Attributes(0x4);
    /// `noexec`
    pub const NOEXEC: Self = Attributes(0x8);
    /// `nosuid,nodev,noexec`
    pub const INERT: Self = Attributes(0xe);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Attributes(self.0 | other.0)
    }

    /// `self`, and `other` if `wanted`.
    #[must_use]
    pub const fn and_if(self, wanted: bool, other: Self) -> Self {
        if wanted { self.and(other) } else { self }
    }

    fn flags(self) -> MountAttrFlags {
        MountAttrFlags::from_bits_retain(u32::try_from(self.0).unwrap_or(0))
    }
}

/// A change of a mount's attributes (`mount_setattr`).
#[derive(Debug, Default)]
pub struct Change<'a> {
    /// Attributes to set.
    pub set: Attributes,
    /// Attributes to clear.
    pub clear: Attributes,
    /// Propagation to set.
    pub propagation: Option<Propagation>,
    /// User namespace whose mapping the mount gets.
    pub id_mapping: Option<BorrowedFd<'a>>,
}

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// Changes a mount, or with `recursive` the whole tree below it.
///
/// # Errors
/// The kernel's answer.
pub fn change(mount: impl AsFd, change: &Change<'_>, recursive: bool) -> io::Result<()> {
    let idmap = if change.id_mapping.is_some() { MOUNT_ATTR_IDMAP } else { 0 };
    let userns_fd = change.id_mapping.map_or(0, |fd| u64::try_from(fd.as_raw_fd()).unwrap_or(0));
    let attr = MountAttr {
        set: change.set.0 | idmap,
        clear: change.clear.0,
        propagation: change.propagation.map_or(0, Propagation::bits),
        userns_fd,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty path, and a `mount_attr` of the size given, which the kernel only reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A detached copy of the mount at `path`, with all mounts below it if `recursive`.
///
/// # Errors
/// The kernel's answer.
pub fn clone_path(path: &Path, recursive: bool) -> io::Result<OwnedFd> {
    Ok(open_tree(rustix::fs::CWD, path, clone_flags(recursive))?)
}

/// A detached copy of what `fd` points to (a file or directory in an attached mount).
///
/// # Errors
/// The kernel's answer.
pub fn clone_fd(fd: impl AsFd, recursive: bool) -> io::Result<OwnedFd> {
    Ok(open_tree(fd, c"", clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH)?)
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

/// Attaches a detached mount on what `target` points to.
///
/// # Errors
/// The kernel's answer.
pub fn attach(mount: impl AsFd, target: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, c"", target, c"", flags)?)
}

/// An option of a new filesystem.
#[derive(Clone, Copy, Debug)]
pub enum FsOption<'a> {
    /// `name`
    Flag(&'a str),
    /// `name=value`
    Text(&'a str, &'a str),
}

/// A filesystem that can't be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a {kind} filesystem: {source}{log}")]
pub struct FsError {
    /// The filesystem's name.
    pub kind: String,
    /// The kernel's answer.
    pub source: io::Error,
    /// What the kernel wrote beside it.
    pub log: String,
}

/// Makes a filesystem and a detached mount of it.
///
/// # Errors
/// The kernel's answer with its log.
pub fn new_filesystem(
    kind: &str,
    options: &[FsOption<'_>],
    attributes: Attributes,
) -> Result<OwnedFd, FsError> {
    let failed = |source: Errno, log| FsError { kind: kind.to_owned(), source: source.into(), log };
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| failed(e, String::new()))?;
    let configure = || {
        for option in options {
            match option {
                FsOption::Flag(name) => fsconfig_set_flag(&context, *name)?,
                FsOption::Text(name, value) => fsconfig_set_string(&context, *name, *value)?,
            }
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes.flags())
    };
    configure().map_err(|errno| failed(errno, context_log(&context)))
}

/// What the kernel says about a filesystem context's last operation, ` (…)` or nothing.
fn context_log(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while let Ok(read @ 1..) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(buffer.get(..read).unwrap_or_default());
        let line = line.trim_end().trim_start_matches(['e', 'w', 'i', ' ']);
        text.push_str(if text.is_empty() { " (" } else { "; " });
        text.push_str(line);
    }
    if !text.is_empty() {
        text.push(')');
    }
    text
}
