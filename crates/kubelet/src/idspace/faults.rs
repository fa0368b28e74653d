//! The instants at which a crash or an error must do no harm, so that tests can cause one there.

use std::io;

/// A named instant of writing or removing a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPoint {
    /// A block is chosen; nothing is on disk.
    BeforeTemporary,
    /// The temporary file is durable; the record is not there yet.
    TemporaryWritten,
    /// The record is in place; the directory is not synced.
    Renamed,
    /// The record is removed; the block is still held in memory and in the claim.
    RecordRemoved,
}

/// What happens at a crash point: nothing, an I/O error, or (in tests) a panic.
pub trait Faults: Send + Sync + std::fmt::Debug {
    /// Called at each point.
    ///
    /// # Errors
    /// The I/O error that the step is to end with.
    fn at(&self, point: CrashPoint) -> io::Result<()>;
}

/// No faults.
#[derive(Debug)]
pub struct NoFaults;

impl Faults for NoFaults {
    fn at(&self, _: CrashPoint) -> io::Result<()> {
        Ok(())
    }
}
