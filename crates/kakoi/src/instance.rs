//! One daemon per root: a lock that the kernel drops when its holder dies, with the holder's PID in it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

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

/// Takes the root, or says who has it.
pub(crate) fn take(root: &Path, run: &Path) -> Result<InstanceLock, LockError> {
    let path = path(run);
    let io = |cause| LockError::Io { path: path.clone(), cause };
    fs::create_dir_all(run).map_err(io)?;
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            file.read_to_string(&mut pid).map_err(io)?;
            if !is_dying(pid.trim()) {
                return Err(LockError::Held { root: root.to_owned(), pid: pid.trim().to_owned() });
            }
            // Its memory is being taken down; the lock goes with its last descriptor.
            flock(&file, FlockOperation::LockExclusive).map_err(|e| io(e.into()))?;
        }
        Err(e) => return Err(io(e.into())),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(InstanceLock(file))
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
}
