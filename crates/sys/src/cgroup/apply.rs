//! Carrying plans out, opening groups for newborns, ending and removing them.

use super::{Directories, Directory, Layout, Plan, Step, below, device, signal_all};
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A directory.
    #[error("cannot make the cgroup {path}: {source}")]
    Make {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A limit.
    #[error("cannot write {value:?} to {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The device program.
    #[error(
        "cannot attach the device program to {path}: {source} (is the kernel built with CONFIG_CGROUP_BPF?)"
    )]
    Devices {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Opening, ending or removing.
    #[error("cannot {what} the cgroup {path}: {source}")]
    Use {
        /// What was tried.
        what: &'static str,
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Carries a plan out; stops at the first failure. A plan can be applied again.
///
/// # Errors
/// The step that failed.
pub fn apply(plan: &Plan) -> Result<(), CgroupError> {
    plan.0.iter().try_for_each(apply_step)
}

fn apply_step(step: &Step) -> Result<(), CgroupError> {
    match step {
        Step::Make(path) => match fs::create_dir(path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(CgroupError::Make { path: path.clone(), source })
            }
            _ => Ok(()),
        },
        Step::InheritCpuset(path) => inherit_cpuset(path),
        Step::Delegate(path, wanted) => delegate(path, wanted),
        Step::Write { file, value, is_optional } => match fs::write(file, value) {
            Err(error) if *is_optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
            // Raising memory and swap below the present limit without swap: the next step lowers that one first.
            Err(_) if file.ends_with("memory.memsw.limit_in_bytes") => write_swap_after_memory(file, value),
            Err(source) => Err(CgroupError::Write { path: file.clone(), value: value.clone(), source }),
            Ok(()) => Ok(()),
        },
        Step::Devices(path, rules) => {
            let directory = open_directory(path)?;
            device::attach(&directory, rules)
                .map_err(|source| CgroupError::Devices { path: path.clone(), source })
        }
    }
}

/// The new sum is below the present limit without swap: that one is lowered to it first.
fn write_swap_after_memory(file: &Path, value: &str) -> Result<(), CgroupError> {
    let write = |path: &Path| {
        fs::write(path, value).map_err(|source| CgroupError::Write {
            path: path.to_owned(),
            value: value.to_owned(),
            source,
        })
    };
    write(&file.with_file_name("memory.limit_in_bytes"))?;
    write(file)
}

fn inherit_cpuset(path: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let (own, parent) = (path.join(file), path.parent().map(|parent| parent.join(file)));
        let present = fs::read_to_string(&own).unwrap_or_default();
        if let (true, Some(parent)) = (present.trim().is_empty(), parent) {
            let value = fs::read_to_string(parent).unwrap_or_default();
            fs::write(&own, &value).map_err(|source| CgroupError::Write { path: own, value, source })?;
        }
    }
    Ok(())
}

/// Turns on what the directory has and its children do not have yet.
fn delegate(path: &Path, wanted: &[&str]) -> Result<(), CgroupError> {
    let words = |file: &str| fs::read_to_string(path.join(file)).unwrap_or_default();
    let (available, enabled) = (words("cgroup.controllers"), words("cgroup.subtree_control"));
    for controller in available.split_whitespace().filter(|one| wanted.contains(one)) {
        if enabled.split_whitespace().all(|one| one != controller) {
            let (file, value) = (path.join("cgroup.subtree_control"), format!("+{controller}"));
            fs::write(&file, &value).map_err(|source| CgroupError::Write { path: file, value, source })?;
        }
    }
    Ok(())
}

fn open_directory(path: &Path) -> Result<OwnedFd, CgroupError> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| CgroupError::Use { what: "open", path: path.to_owned(), source: errno.into() })
}

/// Opens a group's directories.
///
/// # Errors
/// The first that can't be opened.
pub fn open(layout: &Layout, group: &str) -> Result<Directories, CgroupError> {
    let unified = layout.unified.as_ref().map(|mount| open_directory(&below(mount, group))).transpose()?;
    let legacy = layout.legacy.iter().map(|hierarchy| {
        open_directory(&below(&hierarchy.mount, group)).map(|fd| (hierarchy.controllers.clone(), fd))
    });
    Ok(Directories { unified, legacy: legacy.collect::<Result<_, _>>()? })
}

/// The PIDs in a group and everything below it.
pub fn processes(layout: &Layout, group: &str) -> Vec<i32> {
    let mut pids = std::collections::BTreeSet::new();
    for directory in layout.directories(group) {
        for path in tree(&directory) {
            let text = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
    }
    pids.into_iter().collect()
}

/// A directory and all below it, the deepest first.
fn tree(directory: &Path) -> Vec<PathBuf> {
    let mut list = Vec::new();
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        list.extend(tree(&entry.path()));
    }
    list.push(directory.to_owned());
    list
}

/// Sends SIGKILL to everything in a group and below it.
///
/// # Errors
/// The last error, after everything has been tried. A group that is not there is success.
pub fn kill(layout: &Layout, group: &str) -> Result<(), CgroupError> {
    let mut result = Ok(());
    let failed = |path: &Path, source| CgroupError::Use { what: "end", path: path.to_owned(), source };
    if let Some(mount) = &layout.unified {
        for path in tree(&below(mount, group)).iter().filter(|path| path.exists()) {
            let directory = Directory::Unified(open_directory(path)?);
            result = signal_all(&[directory], libc::SIGKILL).map_err(|e| failed(path, e)).and(result);
        }
    }
    for hierarchy in &layout.legacy {
        for path in tree(&below(&hierarchy.mount, group)).iter().filter(|path| path.exists()) {
            let directory = Directory::Legacy(hierarchy.controllers.clone(), open_directory(path)?);
            result = signal_all(&[directory], libc::SIGKILL).map_err(|e| failed(path, e)).and(result);
        }
    }
    result
}

/// Removes a group and all below it in every hierarchy; what is not there is removed. Processes that are dying are
/// waited for, at most `patience`.
///
/// # Errors
/// The last error, after everything has been tried.
pub fn remove(layout: &Layout, group: &str, patience: Duration) -> Result<(), CgroupError> {
    let deadline = Instant::now() + patience;
    let mut result = Ok(());
    for directory in layout.directories(group) {
        for path in tree(&directory) {
            result = remove_directory(&path, deadline).and(result);
        }
    }
    result
}

fn remove_directory(path: &Path, deadline: Instant) -> Result<(), CgroupError> {
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A dead process leaves its group a moment after it was reaped; v1 tells nobody when.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                let pause = rustix::thread::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
                let _ = rustix::thread::nanosleep(&pause);
            }
            Err(source) => return Err(CgroupError::Use { what: "remove", path: path.to_owned(), source }),
        }
    }
}
