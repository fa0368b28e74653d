//! Named points at which a test makes the daemon die or fail, to see that what was half-done is undone.

use std::sync::Arc;

use crate::error::{Error, Result};

/// A step after which something exists that a crash would leave behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CrashPoint {
    /// The sandbox's record says Creating.
    SandboxRecorded,
    /// The shim runs.
    ShimSpawned,
    /// The sandbox is on the Pod network.
    NetworkAttached,
    /// The sandbox's files are written; its record does not say Ready yet.
    SandboxFilesWritten,
    /// The containers are ended; the network is still attached.
    SandboxContainersStopped,
    /// The network is detached; the shim may run still.
    NetworkDetached,
    /// The shim has ended; the record does not say so yet.
    ShimStopped,
    /// The record says Removing.
    SandboxRemoving,
    /// The container's record says Creating.
    ContainerRecorded,
    /// The container's root filesystem and volumes exist.
    RootfsMade,
    /// The record says Starting.
    ContainerStarting,
    /// The container's cgroup exists.
    CgroupMade,
    /// The shim holds the container's plan.
    ContainerCreatedInShim,
    /// The container runs; its record does not say so yet.
    ContainerStarted,
    /// The record says Removing.
    ContainerRemoving,
    /// The container's directory is half gone.
    ContainerFilesRemoved,
}

impl CrashPoint {
    /// Every point.
    pub const ALL: [Self; 16] = [
        Self::SandboxRecorded,
        Self::ShimSpawned,
        Self::NetworkAttached,
        Self::SandboxFilesWritten,
        Self::SandboxContainersStopped,
        Self::NetworkDetached,
        Self::ShimStopped,
        Self::SandboxRemoving,
        Self::ContainerRecorded,
        Self::RootfsMade,
        Self::ContainerStarting,
        Self::CgroupMade,
        Self::ContainerCreatedInShim,
        Self::ContainerStarted,
        Self::ContainerRemoving,
        Self::ContainerFilesRemoved,
    ];
}

type Hook = dyn Fn(CrashPoint) -> std::io::Result<()> + Send + Sync;

/// What happens at each point; nothing unless a test says otherwise.
#[derive(Clone, Default)]
pub struct CrashHook(Option<Arc<Hook>>);

impl std::fmt::Debug for CrashHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CrashHook").field(&self.0.is_some()).finish()
    }
}

impl CrashHook {
    /// Calls `hook` at each point; it may end the process, or return an error for the verb to fail with.
    pub fn new(hook: impl Fn(CrashPoint) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    pub(crate) fn reached(&self, point: CrashPoint) -> Result<()> {
        match &self.0 {
            None => Ok(()),
            Some(hook) => hook(point).map_err(|error| Error::failed(format!("injected at {point:?}"), error)),
        }
    }
}
