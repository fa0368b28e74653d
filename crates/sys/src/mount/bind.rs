//! Bind mounts of the node's files as descriptors, ID-mapped where a Pod has a user namespace.

use super::{Attributes, Change, FsError, FsOption, change, clone_fd, new_filesystem};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// How mounts made on one side later appear on the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all (`None`).
    Private,
    /// Those of the node appear in the container (`HostToContainer`).
    Slave,
    /// Both ways (`Bidirectional`); never with a user namespace.
    Shared,
}

impl Propagation {
    pub(super) fn bits(self) -> u64 {
        match self {
            Propagation::Shared => 1 << 20,
            Propagation::Private => 1 << 18,
            Propagation::Slave => 1 << 19,
        }
    }
}

/// A bind mount to make.
#[derive(Debug)]
pub struct BindPlan<'a> {
    /// File or directory of the node. Symbolic links are followed.
    pub source: &'a Path,
    /// Takes the mounts below it along.
    pub recursive: bool,
    /// Attributes of the mount.
    pub attributes: Attributes,
    /// Sets the attributes on the mounts below it as well (`recursiveReadOnly`).
    pub recursive_attributes: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// A user namespace whose mapping the mount gets. Only the mount itself is mapped, not mounts below it.
    pub id_mapping: Option<BorrowedFd<'a>>,
}

/// A bind mount that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The source can't be opened.
    #[error("cannot open {source_path}: {source}")]
    Open {
        /// The path.
        source_path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel can't map IDs on this filesystem.
    #[error(
        "{source_path} lies on {filesystem}, where this kernel can't map IDs (idmapped mounts: {source}); \
         use a filesystem that can (ext4, xfs, btrfs; tmpfs from Linux 6.3), or a Pod without a user namespace"
    )]
    NotIdMappable {
        /// The path.
        source_path: PathBuf,
        /// The filesystem's type.
        filesystem: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The source is mapped already.
    #[error(
        "{source_path} ({filesystem}) is an ID-mapped mount already, and the kernel maps only once; \
         name the directory that it was mounted from"
    )]
    AlreadyMapped {
        /// The path.
        source_path: PathBuf,
        /// The filesystem's type.
        filesystem: String,
    },
    /// Any other step.
    #[error("cannot bind {source_path}: {step}: {source}")]
    Step {
        /// The path.
        source_path: PathBuf,
        /// What was tried.
        step: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Makes a detached bind mount.
///
/// # Errors
/// See [`BindError`].
pub fn bind(plan: &BindPlan<'_>) -> Result<OwnedFd, BindError> {
    let source_path = || plan.source.to_owned();
    let step = |step| move |source| BindError::Step { source_path: source_path(), step, source };
    let source = rustix::fs::open(plan.source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| BindError::Open { source_path: source_path(), source: e.into() })?;
    let mount = clone_fd(&source, plan.recursive).map_err(step("open_tree"))?;
    let propagation = Change { propagation: Some(plan.propagation), ..Change::default() };
    change(&mount, &propagation, true).map_err(step("propagation"))?;
    if let Some(mapping) = plan.id_mapping {
        map_ids(&mount, mapping, plan.source)?;
    }
    let attributes = Change { set: plan.attributes, ..Change::default() };
    change(&mount, &attributes, plan.recursive_attributes).map_err(step("mount_setattr"))?;
    Ok(mount)
}

fn map_ids(mount: &OwnedFd, mapping: BorrowedFd<'_>, source: &Path) -> Result<(), BindError> {
    let idmap = Change { id_mapping: Some(mapping), ..Change::default() };
    change(mount, &idmap, false).map_err(|error| {
        let filesystem = filesystem_type(mount).unwrap_or_else(|_| "an unknown filesystem".to_owned());
        let source_path = source.to_owned();
        match error.raw_os_error() {
            Some(libc::EPERM) => BindError::AlreadyMapped { source_path, filesystem },
            _ => BindError::NotIdMappable { source_path, filesystem, source: error },
        }
    })
}

/// Whether the kernel maps IDs on the filesystem of `path`; `mapping` is any user namespace but the initial one.
///
/// # Errors
/// See [`BindError`]; `Err(NotIdMappable)` is the answer "no" with its reason.
pub fn is_id_mappable(path: &Path, mapping: BorrowedFd<'_>) -> Result<(), BindError> {
    let plan = BindPlan {
        source: path,
        recursive: false,
        attributes: Attributes::NONE,
        recursive_attributes: false,
        propagation: Propagation::Private,
        id_mapping: Some(mapping),
    };
    // A tree with mounts that are locked can only be cloned whole; the answer is about the top one all the same.
    match bind(&plan) {
        Err(BindError::Step { step: "open_tree", .. }) => {
            bind(&BindPlan { recursive: true, ..plan }).map(drop)
        }
        result => result.map(drop),
    }
}

/// A detached tmpfs, made for a Pod on the node's side.
///
/// # Errors
/// See [`FsError`].
pub fn tmpfs(uid: u32, gid: u32, mode: u32, size: u64) -> Result<OwnedFd, FsError> {
    let (uid, gid, mode, size) = (uid.to_string(), gid.to_string(), format!("{mode:o}"), size.to_string());
    let options = [
        FsOption::Text("uid", &uid),
        FsOption::Text("gid", &gid),
        FsOption::Text("mode", &mode),
        FsOption::Text("size", &size),
    ];
    new_filesystem("tmpfs", &options, Attributes::INERT)
}

/// The name of the filesystem that `fd` lies on, as `/proc/filesystems` spells it where the number is unambiguous.
///
/// # Errors
/// The kernel's answer.
pub fn filesystem_type(fd: impl AsFd) -> io::Result<String> {
    let magic = rustix::fs::fstatfs(fd)?.f_type;
    let magic = u64::try_from(magic).unwrap_or_default() & 0xffff_ffff;
    let known = MAGICS.iter().find(|(number, _)| *number == magic);
    Ok(known.map_or_else(|| format!("filesystem type {magic:#x}"), |(_, name)| (*name).to_owned()))
}

/// From statfs(2) and `linux/magic.h`.
const MAGICS: &[(u64, &str)] = &[
    (0x0000_ef53, "ext4"),
    (0x0102_1994, "tmpfs"),
    (0x794c_7630, "overlay"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0000_6969, "nfs"),
    (0x6573_5546, "fuse"),
    (0x0000_9fa0, "proc"),
    (0x6265_6572, "sysfs"),
    (0x0000_1cd1, "devpts"),
    (0x6367_7270, "cgroup2"),
    (0x0027_e0eb, "cgroup"),
    (0x1980_0202, "mqueue"),
    (0x9584_58f6, "hugetlbfs"),
    (0x00c3_6400, "ceph"),
    (0xf2f5_2010, "f2fs"),
    (0xe0f5_e1e2, "erofs"),
    (0x7371_7368, "squashfs"),
    (0x2fc1_2fc1, "zfs"),
    (0x8584_58f6, "ramfs"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0xcafe_4a11, "bpf"),
    (0x7363_6673, "securityfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb3"),
    (0x0102_1997, "9p"),
    (0x6e73_6673, "nsfs"),
    (0x0000_4d44, "vfat"),
];
