//! One daemon per root: a lock that the kernel drops when its holder dies, with the holder's PID in it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// The lock, held by the daemon of a root as long as it lives.
#[derive(Debug)]
pub(crate) struct InstanceLock(#[expect(dead_code, reason = "held for its lock")] File);

/// Why a root can't be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error(
        "kakoi already runs on the root {} (PID {pid}); stop it with `kakoi down --root {}`, or give this one \
         another --root", .root.display(), .root.display()
    )]
    Held { root: PathBuf, pid: String },
    #[error("can't lock {}: {cause}", .path.display())]
    Io { path: PathBuf, cause: io::Error },
    #[error("kakoi must run as root: it makes namespaces, mounts and cgroups for others; use `sudo kakoi …`")]
    NotRoot,
}

fn path(run: &Path) -> PathBuf {
    run.join("daemon.lock")
}

/// Refuses to go on without root's rights.
pub(crate) fn require_root() -> Result<(), LockError> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err(LockError::NotRoot) }
}

/// How long a daemon that has been killed may take to let go of its root: its memory is taken down first, and a child
/// that it was just starting holds the lock until it runs its program.
const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the root, or says who has it.
pub(crate) fn take(root: &Path, run: &Path) -> Result<InstanceLock, LockError> {
    take_within(root, run, PATIENCE)
}

fn take_within(root: &Path, run: &Path, patience: Duration) -> Result<InstanceLock, LockError> {
    let path = path(run);
    let io = |cause| LockError::Io { path: path.clone(), cause };
    fs::create_dir_all(run).map_err(io)?;
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
    let deadline = Instant::now() + patience;
    while !try_lock(&file).map_err(io)? {
        let pid = read_pid(&mut file).map_err(io)?;
        if !is_dying(&pid) || Instant::now() >= deadline {
            return Err(LockError::Held { root: root.to_owned(), pid });
        }
        // Waiting for the lock itself would have no end if another daemon takes it first.
        std::thread::park_timeout(Duration::from_millis(20));
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(InstanceLock(file))
}

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn read_pid(file: &mut File) -> io::Result<String> {
    let mut pid = String::new();
    file.rewind()?;
    file.read_to_string(&mut pid)?;
    Ok(pid.trim().to_owned())
}

/// Whether a process has been killed or has ended and is only not gone yet: a daemon started right after `kill -9`
/// must not be told that the old one still runs.
fn is_dying(pid: &str) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let is_ended = field("State:").is_some_and(|state| state.starts_with(['Z', 'X']));
    let killed = 1_u64 << (sigkill() - 1);
    let pending = ["SigPnd:", "ShdPnd:"].into_iter().filter_map(field);
    let mut pending = pending.filter_map(|mask| u64::from_str_radix(mask, 16).ok());
    is_ended || pending.any(|mask| mask & killed != 0)
}

fn sigkill() -> u32 {
    rustix::process::Signal::KILL.as_raw().unsigned_abs()
}

/// The PID of the daemon that holds the root, if one does.
pub(crate) fn holder(run: &Path) -> Option<u32> {
    let mut file = File::open(path(run)).ok()?;
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).ok()?;
            pid.trim().parse().ok()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_has_one_daemon_and_its_end_frees_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()), None);
        let lock = take(Path::new("/r"), dir.path()).unwrap();
        let text = take(Path::new("/r"), dir.path()).unwrap_err().to_string();
        assert!(
            text.contains(&format!("PID {}", std::process::id())) && text.contains("--root /r"),
            "{text}"
        );
        assert_eq!(holder(dir.path()), Some(std::process::id()));
        drop(lock);
        take(Path::new("/r"), dir.path()).unwrap();
    }
    /// A lock that is held by somebody who is not the PID in it.
    fn held_by_nobody(dir: &Path) -> File {
        let mut file = File::create(path(dir)).unwrap();
        assert!(try_lock(&file).unwrap());
        writeln!(file, "4194305").unwrap();
        file
    }

    #[test]
    fn what_a_dead_daemon_leaves_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let left = held_by_nobody(dir.path());
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| take(Path::new("/r"), dir.path()).is_ok());
            drop(left);
            assert!(taken.join().unwrap());
        });
    }

    #[test]
    fn the_wait_for_a_dead_daemon_ends() {
        let dir = tempfile::tempdir().unwrap();
        let _left = held_by_nobody(dir.path());
        let taken = take_within(Path::new("/r"), dir.path(), Duration::from_millis(50));
        assert!(matches!(taken, Err(LockError::Held { .. })));
    }
}
