//! The instants at which a crash or an error must do no harm, so that tests can cause one there.

use std::io;

/// A named instant at which something exists, or is gone, that a crash would leave so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CrashPoint {
    /// A block is chosen; nothing is on disk.
    BeforeTemporary,
    /// The temporary file is durable; the record is not there yet.
    TemporaryWritten,
    /// The record is in place; the directory is not synced.
    Renamed,
    /// The Pod holds its host IDs durably.
    IdsRecorded,
    /// The Pod's cgroup exists.
    CgroupMade,
    /// The volumes are mounted and filled.
    VolumesPrepared,
    /// The runtime has made the sandbox.
    SandboxMade,
    /// The container's image is there.
    ImagePulled,
    /// The container's files and the mounts of its sub-paths are made.
    ContainerPlanned,
    /// The runtime has made the container, which does not run yet.
    ContainerCreated,
    /// The container runs.
    ContainerStarted,
    /// The container's `postStart` hook has run.
    PostStartRun,
    /// The API has taken a status.
    StatusWritten,
    /// A container that is to end has run its `preStop` hook, and got no signal yet.
    PreStopRun,
    /// The container has ended; its sandbox still runs.
    ContainerStopped,
    /// The sandboxes are stopped.
    SandboxesStopped,
    /// The runtime has forgotten the Pod; all that the node agent made is still there.
    SandboxesRemoved,
    /// The volumes are unmounted and removed.
    VolumesRemoved,
    /// The Pod's cgroup is removed; its host IDs are still held.
    CgroupRemoved,
    /// The record is removed; the block is still held in memory and in the claim.
    RecordRemoved,
    /// The host IDs are free.
    IdsFreed,
    /// The API does not have the Pod any more.
    ObjectDeleted,
    /// The Pod's logs are removed; its directory is still there.
    LogsRemoved,
    /// Nothing of the Pod is left on disk.
    DirectoryRemoved,
}

impl CrashPoint {
    /// Every point, in the order of a Pod's life.
    pub const ALL: [Self; 24] = [
        Self::BeforeTemporary,
        Self::TemporaryWritten,
        Self::Renamed,
        Self::IdsRecorded,
        Self::CgroupMade,
        Self::VolumesPrepared,
        Self::SandboxMade,
        Self::ImagePulled,
        Self::ContainerPlanned,
        Self::ContainerCreated,
        Self::ContainerStarted,
        Self::PostStartRun,
        Self::StatusWritten,
        Self::PreStopRun,
        Self::ContainerStopped,
        Self::SandboxesStopped,
        Self::SandboxesRemoved,
        Self::VolumesRemoved,
        Self::CgroupRemoved,
        Self::RecordRemoved,
        Self::IdsFreed,
        Self::ObjectDeleted,
        Self::LogsRemoved,
        Self::DirectoryRemoved,
    ];
}

/// What happens at a crash point: nothing, an I/O error, or (in tests) the end of the process.
pub trait Faults: Send + Sync + std::fmt::Debug {
    /// Called in the middle of writing and removing a record.
    ///
    /// # Errors
    /// The I/O error that the step is to end with.
    fn at(&self, point: CrashPoint) -> io::Result<()>;

    /// Called after a step of a Pod's life. What is done can't fail any more: an error counts for nothing.
    fn reached(&self, point: CrashPoint) {
        let _ = self.at(point);
    }
}

/// No faults.
#[derive(Debug)]
pub struct NoFaults;

impl Faults for NoFaults {
    fn at(&self, _: CrashPoint) -> io::Result<()> {
        Ok(())
    }
}
