//! Control groups of shims and containers, in every hierarchy of the machine: v2, v1, or both.
//!
//! Limits are planned as a list of files and values ([`limit`]), then written. Pods' own groups, above those of
//! their containers, belong to the kubelet; they are made here only where they are missing.

mod hierarchy;
mod limit;
mod usage;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::v1::LinuxContainerResources;
use rustix::fs::{Mode, OFlags};
use sys::cgroup::{Directories, Directory};

use crate::container::device::Devices;
use crate::error::{Error, Result};
use crate::process::signal;
use crate::record::SandboxRecord;
use hierarchy::{Hierarchy, Kind};
use limit::Limit;
pub(crate) use usage::Usage;

/// Below the instance's group: where shims are. A leaf, since v2 allows no processes beside groups with limits.
const SHIMS: &str = "shims";

/// How often a group that still holds a dying process is tried again, 5 ms apart.
const REMOVE_ATTEMPTS: u32 = 200;

/// The machine's hierarchies and the instance's group in them.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups {
    hierarchies: Arc<Vec<Hierarchy>>,
    parent: String,
    shims: Arc<Directories>,
}

impl Cgroups {
    /// Finds the hierarchies and makes the shims' group.
    pub(crate) fn open(parent: &str) -> Result<Self> {
        let text = std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| Error::failed("read /proc/self/mountinfo", error))?;
        let hierarchies = Arc::new(hierarchy::parse(&text));
        if hierarchies.is_empty() {
            return Err(Error::Failed(
                "no cgroup hierarchy is mounted; mount cgroup2 on /sys/fs/cgroup".to_owned(),
            ));
        }
        let mut cgroups =
            Self { hierarchies, parent: parent.trim_end_matches('/').to_owned(), shims: Arc::default() };
        cgroups.shims = Arc::new(cgroups.make_group(&format!("{}/{SHIMS}", cgroups.parent))?);
        Ok(cgroups)
    }

    /// The group that shims are born in.
    pub(crate) fn of_shims(&self) -> &Directories {
        &self.shims
    }

    /// The group above a sandbox's containers: the kubelet's for the Pod, else one of the sandbox's own.
    pub(crate) fn parent_of(&self, sandbox: &SandboxRecord) -> String {
        match crate::sandbox::plan::cgroup_parent(&sandbox.config).trim_end_matches('/') {
            "" => format!("{}/sandboxes/{}", self.parent, sandbox.id),
            asked if asked.starts_with('/') => asked.to_owned(),
            asked => format!("/{asked}"),
        }
    }

    /// Makes a container's group with its limits.
    pub(crate) fn make(
        &self,
        group: &str,
        resources: &LinuxContainerResources,
        devices: &Devices,
    ) -> Result<Directories> {
        let directories = self.make_group(group)?;
        self.write(group, &limit::plan_unified(resources), &limit::plan_legacy(resources, Some(devices)))?;
        Ok(directories)
    }

    /// Changes a container's limits.
    pub(crate) fn update(&self, group: &str, resources: &LinuxContainerResources) -> Result<()> {
        self.write(group, &limit::plan_unified(resources), &limit::plan_legacy(resources, None))
    }

    /// Opens a group that exists.
    pub(crate) fn open_group(&self, group: &str) -> Result<Directories> {
        let mut directories = Directories::default();
        for hierarchy in self.hierarchies.iter() {
            let directory = open_directory(&hierarchy.directory(group))?;
            match &hierarchy.kind {
                Kind::Unified => directories.unified = Some(directory),
                Kind::Legacy(controllers) => directories.legacy.push((controllers.join(","), directory)),
            }
        }
        Ok(directories)
    }

    /// Ends every process of a group with SIGKILL. A group that is absent has none.
    pub(crate) fn kill(&self, group: &str) -> Result<()> {
        let mut directories = Vec::new();
        for hierarchy in self.hierarchies.iter() {
            let path = hierarchy.directory(group);
            if !path.exists() {
                continue;
            }
            let directory = open_directory(&path)?;
            directories.push(match &hierarchy.kind {
                Kind::Unified => Directory::Unified(directory),
                Kind::Legacy(controllers) => Directory::Legacy(controllers.join(","), directory),
            });
        }
        if directories.is_empty() {
            return Ok(());
        }
        sys::cgroup::signal_all(&directories, signal::KILL)
            .map_err(|error| Error::failed(format!("end the processes of the cgroup {group}"), error))
    }

    /// Removes a group and those below it, in every hierarchy. Killed processes may take a moment to leave it.
    pub(crate) fn remove(&self, group: &str) -> Result<()> {
        let mut result = Ok(());
        for hierarchy in self.hierarchies.iter() {
            let path = hierarchy.directory(group);
            if let Err(error) = remove_group(&path) {
                result = Err(Error::failed(format!("remove the cgroup {}", path.display()), error));
            }
        }
        result
    }

    /// Removes the group above a sandbox's containers where it is empty: the sandbox's own, or a Pod's that nobody
    /// else removes.
    pub(crate) fn remove_own_parent(&self, sandbox: &SandboxRecord) {
        let group = self.parent_of(sandbox);
        for hierarchy in self.hierarchies.iter() {
            // Not empty, or the kubelet was first: both are right.
            let _ = std::fs::remove_dir(hierarchy.directory(&group));
        }
    }

    /// What a group has used.
    pub(crate) fn usage(&self, group: &str) -> Option<Usage> {
        usage::read(&self.hierarchies, group)
    }

    fn make_group(&self, group: &str) -> Result<Directories> {
        for hierarchy in self.hierarchies.iter() {
            hierarchy.make(group).map_err(|error| {
                Error::failed(format!("make the cgroup {}", hierarchy.directory(group).display()), error)
            })?;
        }
        self.open_group(group)
    }

    fn write(&self, group: &str, unified: &[Limit], legacy: &[Limit]) -> Result<()> {
        for limit in unified {
            if let Some(hierarchy) =
                self.hierarchies.iter().find(|one| one.is_unified() && one.has(limit.controller))
            {
                write_limit(&hierarchy.directory(group), limit)?;
            } else if limit.is_needed && !self.has_legacy(limit.controller) {
                return Err(Error::Unsupported(format!(
                    "the limit {} can't be set: this machine has no cgroup controller `{}`",
                    limit.file, limit.controller
                )));
            }
        }
        for limit in legacy {
            let owner = self.hierarchies.iter().find(|one| !one.is_unified() && one.has(limit.controller));
            if let Some(hierarchy) = owner {
                write_limit(&hierarchy.directory(group), limit)?;
            }
        }
        Ok(())
    }

    fn has_legacy(&self, controller: &str) -> bool {
        self.hierarchies.iter().any(|one| !one.is_unified() && one.has(controller))
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| Error::failed(format!("open the cgroup {}", path.display()), error))
}

fn write_limit(directory: &Path, limit: &Limit) -> Result<()> {
    let path: PathBuf = directory.join(&limit.file);
    match std::fs::write(&path, &limit.value) {
        Err(error) if limit.is_needed => {
            Err(Error::failed(format!("write {:?} to {}", limit.value, path.display()), error))
        }
        Err(error) => {
            tracing::debug!(path = %path.display(), value = limit.value, %error, "a limit is not set");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Removes a group, those below first. EBUSY while a killed process is still going: the kernel has no event for v1,
/// so this looks again a few times.
fn remove_group(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path())?;
        }
    }
    let mut attempt = 0;
    loop {
        match std::fs::remove_dir(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy && attempt < REMOVE_ATTEMPTS => {
                attempt += 1;
                std::thread::park_timeout(std::time::Duration::from_millis(5));
            }
            other => return other,
        }
    }
}
