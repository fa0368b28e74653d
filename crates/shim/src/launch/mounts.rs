//! The mounter: attaches the root filesystem, volumes and kernel filesystems, makes the devices, hides what is masked.
//!
//! It runs with the node's rights in a mount namespace of the initial user namespace, so no step depends on what the
//! Pod may do; every path is resolved inside the container's root by the kernel.

use super::Job;
use crate::identity;
use crate::protocol::{DevicePlan, Failure, MountPlan, MountSource};
use crate::report::{self, Report, failure, setup};
use rustix::fs::{FileType, Mode, OFlags, mknodat, openat, symlinkat};
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use sys::mount::{
    Attributes, Change, FsOption, TRIMMED_EMPTY, TRIMMED_NULL, TRIMMED_ROOT, TRIMMED_SHM, new_filesystem,
};
use sys::path::{Kind, open_in_root, open_or_make};

/// Mounts everything, then tells the first process (with the terminal, if there is one).
pub(super) fn mount_all(job: &Job<'_>, status: &OwnedFd, first_process: &OwnedFd) -> Result<(), Failure> {
    let (uid, gid) = job.sandbox.root_ids();
    identity::make_files_as(uid, gid).map_err(setup("make files as the container's root"))?;
    sys::mount::attach(job.fds.get(job.plan.rootfs)?, open_directory(TRIMMED_ROOT)?)
        .map_err(setup("attach the root filesystem"))?;
    let root = open_directory(TRIMMED_ROOT)?;
    for mount in &job.plan.mounts {
        mount_one(job, &root, mount).map_err(|error| at(&mount.destination, &error))?;
    }
    for device in &job.plan.devices {
        make_device(job, &root, device).map_err(|error| at(&device.path, &error))?;
    }
    let terminal = if job.plan.process.terminal { Some(open_terminal(job, &root, status)?) } else { None };
    open_or_make(&root, Path::new(&job.plan.process.cwd), Kind::Directory)
        .map_err(setup(format!("make the working directory {}", job.plan.process.cwd)))?;
    job.plan.masked_paths.iter().try_for_each(|path| mask(&root, path))?;
    job.plan.read_only_paths.iter().try_for_each(|path| make_read_only(&root, path))?;
    if job.plan.read_only_rootfs {
        let change = Change { set: Attributes::READ_ONLY, ..Change::default() };
        sys::mount::change(&root, &change, false).map_err(setup("make the root filesystem read-only"))?;
    }
    let fds: Vec<BorrowedFd<'_>> = terminal.iter().map(AsFd::as_fd).collect();
    report::send(first_process, &Report::Executing, &fds).map_err(setup("release the first process"))
}

fn at(place: &str, error: &Failure) -> Failure {
    failure(format!("cannot mount {place}: {error}"))
}

fn open_directory(path: &str) -> Result<OwnedFd, Failure> {
    openat(rustix::fs::CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| setup(format!("open {path}"))(e.into()))
}

fn mount_one(job: &Job<'_>, root: &OwnedFd, plan: &MountPlan) -> Result<(), Failure> {
    let (mount, kind) = match &plan.source {
        MountSource::Fd(index) => {
            let mount = job.fds.copy(*index)?;
            let kind = kind_of(&mount)?;
            (mount, kind)
        }
        source => (kernel_filesystem(job, source, plan.read_only)?, Kind::Directory),
    };
    let target =
        open_or_make(root, Path::new(&plan.destination), kind).map_err(setup("make the mount point"))?;
    if kind_of(&target)? != kind {
        return Err(failure(match kind {
            Kind::File => "a file can't be mounted on a directory",
            Kind::Directory => "a directory can't be mounted on a file",
        }));
    }
    sys::mount::attach(&mount, &target).map_err(setup("attach"))?;
    if plan.source == MountSource::Cgroup && !job.plan.cgroup.legacy.is_empty() {
        mount_legacy_cgroups(job, root, plan)?;
    }
    Ok(())
}

pub(super) fn kind_of(fd: &OwnedFd) -> Result<Kind, Failure> {
    let status = rustix::fs::fstat(fd).map_err(|e| setup("stat")(e.into()))?;
    let is_directory = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
    Ok(if is_directory { Kind::Directory } else { Kind::File })
}

/// A filesystem of the kernel, of the namespaces that this process is in.
fn kernel_filesystem(job: &Job<'_>, source: &MountSource, read_only: bool) -> Result<OwnedFd, Failure> {
    let inert = Attributes::INERT.and_if(read_only, Attributes::READ_ONLY);
    let make = |kind: &str, options: &[FsOption<'_>], attributes| {
        new_filesystem(kind, options, attributes).map_err(|error| failure(error.to_string()))
    };
    match source {
        MountSource::Fd(_) => Err(failure("not a filesystem of the kernel")),
        MountSource::Proc => make("proc", &[], inert),
        MountSource::Sysfs => make("sysfs", &[], inert),
        MountSource::Mqueue => make("mqueue", &[], inert),
        MountSource::Dev => make_dev(job),
        MountSource::Devpts => {
            let group = job.sandbox.host_gid(5).map(|gid| gid.to_string()); // `tty`, if the map is large enough
            let mut options = vec![FsOption::Text("ptmxmode", "666"), FsOption::Text("mode", "620")];
            options.extend(group.as_ref().map(|gid| FsOption::Text("gid", gid)));
            make("devpts", &options, Attributes::NOSUID.and(Attributes::NOEXEC))
        }
        MountSource::Shm => {
            sys::mount::clone_path(Path::new(TRIMMED_SHM), false).map_err(setup("clone shared memory"))
        }
        MountSource::Cgroup if job.plan.cgroup.legacy.is_empty() => make("cgroup2", &[], inert),
        MountSource::Cgroup => make("tmpfs", &[FsOption::Text("mode", "755")], Attributes::INERT),
        MountSource::Tmpfs { size, mode } => {
            let (mode, size) = (format!("{mode:o}"), size.to_string());
            let mut options = vec![FsOption::Text("mode", &mode)];
            options.extend((size != "0").then_some(FsOption::Text("size", &size)));
            make("tmpfs", &options, inert)
        }
    }
}

/// The v1 hierarchies below a tmpfs, named as on the node.
fn mount_legacy_cgroups(job: &Job<'_>, root: &OwnedFd, plan: &MountPlan) -> Result<(), Failure> {
    let attributes = Attributes::INERT.and_if(plan.read_only, Attributes::READ_ONLY);
    let top = open_in_root(root, Path::new(&plan.destination), OFlags::PATH).map_err(setup("open"))?;
    for group in &job.plan.cgroup.legacy {
        let name = group.controllers.strip_prefix("name=").unwrap_or(&group.controllers);
        let options: Vec<FsOption<'_>> = match group.controllers.strip_prefix("name=") {
            Some(name) => vec![FsOption::Flag("none"), FsOption::Text("name", name)],
            None => group.controllers.split(',').map(FsOption::Flag).collect(),
        };
        let hierarchy =
            new_filesystem("cgroup", &options, attributes).map_err(|error| failure(error.to_string()))?;
        let target =
            open_or_make(&top, Path::new(name), Kind::Directory).map_err(setup("make a mount point"))?;
        sys::mount::attach(&hierarchy, &target).map_err(setup("attach"))?;
        for part in name.split(',').filter(|part| *part != name) {
            symlinkat(name, &top, part).map_err(|e| setup("link a hierarchy")(e.into()))?;
        }
    }
    let change =
        Change { set: Attributes::NONE.and_if(plan.read_only, Attributes::READ_ONLY), ..Change::default() };
    sys::mount::change(&top, &change, false).map_err(setup("make it read-only"))
}

/// The device nodes of every container: name, minor of major 1 or 5.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// `/dev`. Its nodes belong to the container's root and not to the node's, as they lie on a tmpfs of this container;
/// the container can't make more of them (`mknod` needs the initial user namespace).
fn make_dev(job: &Job<'_>) -> Result<OwnedFd, Failure> {
    let (uid, gid) = job.sandbox.root_ids();
    let (uid, gid) = (uid.to_string(), gid.to_string());
    let options = [
        FsOption::Text("mode", "755"),
        FsOption::Text("size", "65536k"),
        FsOption::Text("uid", &uid),
        FsOption::Text("gid", &gid),
    ];
    let dev =
        new_filesystem("tmpfs", &options, Attributes::NOSUID).map_err(|error| failure(error.to_string()))?;
    for (name, major, minor) in DEVICES {
        make_node(&dev, Path::new(name), FileType::CharacterDevice, 0o666, (major, minor))
            .map_err(|e| setup(format!("make /dev/{name}"))(e.into()))?;
    }
    for (name, target) in LINKS {
        symlinkat(target, &dev, name).map_err(|e| setup(format!("link /dev/{name}"))(e.into()))?;
    }
    Ok(dev)
}

pub(super) fn make_node(
    dir: &OwnedFd,
    name: &Path,
    kind: FileType,
    mode: u32,
    device: (u32, u32),
) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    mknodat(dir, name, kind, mode, rustix::fs::makedev(device.0, device.1))?;
    rustix::fs::chmodat(dir, name, mode, rustix::fs::AtFlags::empty()) // whatever the umask is
}

fn make_device(job: &Job<'_>, root: &OwnedFd, plan: &DevicePlan) -> Result<(), Failure> {
    let path = Path::new(&plan.path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failure("not the path of a device"));
    };
    let parent = open_or_make(root, parent, Kind::Directory).map_err(setup("make the directory"))?;
    if !path.starts_with("/dev") {
        return Err(failure("devices are made below /dev only"));
    }
    let kind = if plan.is_block { FileType::BlockDevice } else { FileType::CharacterDevice };
    match make_node(&parent, Path::new(name), kind, plan.mode, (plan.major, plan.minor)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(setup("make the device node")(errno.into())),
    }
    let owner = (job.sandbox.host_uid(plan.uid)?, job.sandbox.host_gid(plan.gid)?);
    chown(&parent, Path::new(name), owner).map_err(|e| setup("give the device node its owner")(e.into()))
}

pub(super) fn chown(dir: &OwnedFd, name: &Path, (uid, gid): (u32, u32)) -> rustix::io::Result<()> {
    use rustix::fs::{AtFlags, Gid, Uid, chownat};
    chownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::SYMLINK_NOFOLLOW)
}

/// A terminal of the container's own devpts: the master goes to the shim, the other end to the first process and on
/// `/dev/console`.
fn open_terminal(job: &Job<'_>, root: &OwnedFd, status: &OwnedFd) -> Result<OwnedFd, Failure> {
    let process = &job.plan.process;
    let master = open_in_root(root, Path::new("/dev/pts/ptmx"), OFlags::RDWR | OFlags::NOCTTY)
        .map_err(setup("open /dev/pts/ptmx"))?;
    let peer = sys::pty::open_peer(&master).map_err(setup("open the terminal"))?;
    give_terminal(&peer, job.sandbox.host_uid(process.uid)?)?;
    if let Some(size) = process.terminal_size {
        sys::pty::resize(&master, size.columns, size.rows).map_err(setup("set the terminal's size"))?;
    }
    let console = sys::mount::clone_fd(&peer, false).map_err(setup("clone the terminal"))?;
    let target =
        open_or_make(root, Path::new("/dev/console"), Kind::File).map_err(setup("make /dev/console"))?;
    sys::mount::attach(&console, &target).map_err(setup("attach /dev/console"))?;
    report::send(status, &Report::Terminal, &[master.as_fd()])
        .map_err(setup("send the terminal to the shim"))?;
    Ok(peer)
}

/// The process must be able to open its terminal by name. (The group stays what devpts gave it, `tty`.)
pub(super) fn give_terminal(peer: &OwnedFd, uid: u32) -> Result<(), Failure> {
    rustix::fs::fchown(peer, Some(rustix::fs::Uid::from_raw(uid)), None)
        .map_err(|e| setup("give the terminal its owner")(e.into()))
}

/// Hides a path: an empty directory or the null device over it. What is not there need not be hidden.
fn mask(root: &OwnedFd, path: &str) -> Result<(), Failure> {
    let Some(target) = open_if_there(root, path)? else { return Ok(()) };
    let cover = if kind_of(&target)? == Kind::Directory { TRIMMED_EMPTY } else { TRIMMED_NULL };
    let cover = sys::mount::clone_path(Path::new(cover), false).map_err(setup("clone a mask"))?;
    sys::mount::attach(&cover, &target).map_err(setup(format!("mask {path}")))
}

fn make_read_only(root: &OwnedFd, path: &str) -> Result<(), Failure> {
    let Some(target) = open_if_there(root, path)? else { return Ok(()) };
    let copy = sys::mount::clone_fd(&target, true).map_err(setup(format!("clone {path}")))?;
    let change = Change { set: Attributes::READ_ONLY, ..Change::default() };
    sys::mount::change(&copy, &change, true).map_err(setup(format!("make {path} read-only")))?;
    sys::mount::attach(&copy, &target).map_err(setup(format!("attach {path}")))
}

fn open_if_there(root: &OwnedFd, path: &str) -> Result<Option<OwnedFd>, Failure> {
    match open_in_root(root, Path::new(path), OFlags::PATH) {
        Ok(target) => Ok(Some(target)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(setup(format!("open {path}"))(error)),
    }
}

/// The first process, in its own mount namespace: makes the container's root its root and lets go of everything else.
///
/// The root filesystem came locked into this namespace, and a locked mount can't become the root; a copy of it can,
/// and everything below it stays locked.
pub(super) fn enter_root() -> Result<(), Failure> {
    let locked = open_directory(TRIMMED_ROOT)?;
    let copy = sys::mount::clone_fd(&locked, true).map_err(setup("copy the root filesystem's mounts"))?;
    sys::mount::attach(&copy, &locked).map_err(setup("attach the copy of the root filesystem"))?;
    let enter = || {
        rustix::process::fchdir(&copy)?;
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)?;
        rustix::process::chdir("/")
    };
    enter().map_err(|errno| setup("enter the root filesystem")(errno.into()))
}
