//! The kernel's word that tasks wait for memory: a trigger of its pressure stall information. It tells when to look at how
//! much is left, and nothing about how much that is.
//!
//! Source: the kernel's `Documentation/accounting/psi.rst`.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::OFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Where the kernel tells of memory.
const MEMORY: &str = "/proc/pressure/memory";

/// So much waiting within so much time is told, once in that time.
#[derive(Clone, Copy, Debug)]
struct Trigger {
    stall: Duration,
    window: Duration,
}

/// Told at once, to those who have `CAP_SYS_RESOURCE`.
const PROMPT: Trigger = Trigger { stall: Duration::from_millis(50), window: Duration::from_millis(500) };
/// What anybody may ask for; the kernel adds up every two seconds (since 6.5).
const PATIENT: Trigger = Trigger { stall: Duration::from_millis(100), window: Duration::from_secs(2) };

/// Waits for memory to run short.
#[derive(Debug)]
pub(crate) struct MemoryStalls(Option<AsyncFd<File>>);

impl MemoryStalls {
    /// Asks the kernel to tell. Where it can't (PSI is switched off, or older than 4.20), the log says so once, and
    /// [`next`](Self::next) never comes.
    pub(crate) fn ask() -> Self {
        let of = |trigger| ask(Path::new(MEMORY), trigger);
        match of(PROMPT).or_else(|_| of(PATIENT)) {
            Ok(told) => Self(Some(told)),
            Err(error) => {
                tracing::info!(%error, "the kernel does not tell when memory runs short ({MEMORY}): it is looked at now and then");
                Self(None)
            }
        }
    }

    /// The next time that tasks wait for memory.
    pub(crate) async fn next(&self) {
        let Some(told) = &self.0 else { return std::future::pending().await };
        match told.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            // The reactor ends with the node agent.
            Err(_) => std::future::pending().await,
        }
    }
}

/// Registers a trigger; it goes when the file is closed.
#[expect(
    deprecated,
    reason = "an owned descriptor is I/O safe; the replacement is `unsafe`, which stays out of here"
)]
fn ask(path: &Path, trigger: Trigger) -> io::Result<AsyncFd<File>> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    let words = format!("some {} {}\0", trigger.stall.as_micros(), trigger.window.as_micros());
    file.write_all(words.as_bytes())?;
    AsyncFd::with_interest(file, Interest::PRIORITY)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use sys::cgroup::{Layout, Limits, plan_create};

    use super::*;

    #[tokio::test]
    async fn tasks_that_wait_for_memory_are_told_of() {
        if !Path::new(MEMORY).exists() {
            println!("this kernel has no pressure stall information");
            return;
        }
        let trigger = Trigger { stall: Duration::from_millis(2), window: Duration::from_secs(2) };
        let stalls = MemoryStalls(Some(ask(Path::new(MEMORY), trigger).unwrap()));
        // A group that holds a small part of what its process reads and writes.
        let layout = Layout::detect().unwrap();
        let group = format!("/kakoi-stall-{}", std::process::id());
        let limits = Limits { memory: Some(8 << 20), ..Limits::default() };
        sys::cgroup::apply(&plan_create(&layout, &group, &limits)).unwrap();
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = directory.path().join("much");
        let enter = "for d in /sys/fs/cgroup/memory /sys/fs/cgroup; do [ ! -e $d$0/cgroup.procs ] || { echo $$ > $d$0/cgroup.procs; break; }; done";
        let line = format!("{enter}; while :; do dd if=/dev/zero of=$1 bs=1M count=64; done");
        let mut busy =
            Command::new("sh").args(["-c", &line, &group]).arg(&file).stderr(Stdio::null()).spawn().unwrap();
        let told = tokio::time::timeout(Duration::from_secs(30), stalls.next()).await;
        busy.kill().unwrap();
        busy.wait().unwrap();
        sys::cgroup::remove(&layout, &group, Duration::from_secs(10)).unwrap();
        assert!(told.is_ok(), "the kernel has told nothing");
    }

    #[test]
    fn a_kernel_that_tells_nothing_is_no_error() {
        let asked = ask(Path::new("/nonexistent"), PATIENT);
        assert_eq!(asked.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
