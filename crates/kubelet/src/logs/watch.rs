//! Waiting for changes in directories with inotify: nothing is polled.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags};
use tokio::io::unix::AsyncFd;

/// Bytes for one read of events.
const BUFFER: usize = 4096;

/// An inotify instance.
#[derive(Debug)]
pub(crate) struct Watch {
    fd: AsyncFd<OwnedFd>,
}

/// What changed since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Watch descriptors with events.
    pub(crate) watches: BTreeSet<i32>,
    /// Events were lost: anything may have changed.
    pub(crate) has_overflowed: bool,
}

impl Watch {
    /// A new instance.
    #[expect(
        deprecated,
        reason = "an owned descriptor is I/O safe; the replacement is `unsafe`, which stays out of here"
    )]
    pub(crate) fn new() -> io::Result<Self> {
        let fd = rustix::fs::inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self { fd: AsyncFd::new(fd)? })
    }

    /// Watches a directory for files that grow, come or go; returns the watch's descriptor.
    pub(crate) fn add(&self, directory: &Path) -> io::Result<i32> {
        let flags = WatchFlags::MODIFY
            | WatchFlags::CREATE
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::ONLYDIR;
        Ok(rustix::fs::inotify::add_watch(&self.fd, directory, flags)?)
    }

    /// Watches a directory for files that are complete (written and closed, or renamed) or gone.
    pub(crate) fn add_settled(&self, directory: &Path) -> io::Result<i32> {
        let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVE | WatchFlags::DELETE | WatchFlags::ONLYDIR;
        Ok(rustix::fs::inotify::add_watch(&self.fd, directory, flags)?)
    }

    /// Ends a watch.
    pub(crate) fn remove(&self, watch: i32) {
        // A watch whose directory is gone has ended by itself.
        let _ = rustix::fs::inotify::remove_watch(&self.fd, watch);
    }

    /// Waits for the next changes.
    pub(crate) async fn changed(&self) -> io::Result<Changes> {
        loop {
            let mut guard = self.fd.readable().await?;
            let changes = drain(self.fd.get_ref())?;
            guard.clear_ready();
            if changes != Changes::default() {
                return Ok(changes);
            }
        }
    }
}

fn drain(fd: &OwnedFd) -> io::Result<Changes> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = Reader::new(fd, &mut buffer);
    let mut changes = Changes::default();
    loop {
        match reader.next() {
            Ok(event) => {
                changes.has_overflowed |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
                changes.watches.insert(event.wd());
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(changes),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
