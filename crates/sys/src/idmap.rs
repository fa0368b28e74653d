//! User-namespace ID mappings: the triples, translating through them, writing them, and namespaces made only to carry one.

use crate::process::{self, CLONE_NEWUSER, Child, CloneOptions, Fork};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// One extent of a mapping: `size` IDs from `container_id` inside are those from `host_id` outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdMapping {
    /// First ID inside.
    pub container_id: u32,
    /// First ID outside.
    pub host_id: u32,
    /// Number of IDs.
    pub size: u32,
}

/// The host ID of a container ID, if it is mapped.
pub fn to_host(mappings: &[IdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id).filter(|offset| *offset < mapping.size)?;
        mapping.host_id.checked_add(offset)
    })
}

/// The extents as text for people: `0-65535 are the node's 131072-196607`.
pub fn describe(mappings: &[IdMapping]) -> String {
    let mut text = String::new();
    for (index, IdMapping { container_id, host_id, size }) in mappings.iter().enumerate() {
        let last = |first: u32| u64::from(first) + u64::from(*size).saturating_sub(1);
        let separator = if index > 0 { ", " } else { "" };
        let (inside, outside) = (last(*container_id), last(*host_id));
        let _ = write!(text, "{separator}{container_id}-{inside} are the node's {host_id}-{outside}");
    }
    text
}

/// What is written to `uid_map`.
fn map_text(mappings: &[IdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut text, IdMapping { container_id, host_id, size }| {
        let _ = writeln!(text, "{container_id} {host_id} {size}");
        text
    })
}

/// Reads a `/proc/PID/uid_map`. `None` if a line is not three numbers.
pub fn parse_map(text: &str) -> Option<Vec<IdMapping>> {
    let parse_line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|word| word.parse().ok());
        let mapping =
            IdMapping { container_id: numbers.next()??, host_id: numbers.next()??, size: numbers.next()?? };
        numbers.next().is_none().then_some(mapping)
    };
    text.lines().map(parse_line).collect()
}

/// Whether two mappings say the same, in whatever order (the kernel sorts from six extents on).
pub fn is_same(left: &[IdMapping], right: &[IdMapping]) -> bool {
    let sorted = |mappings: &[IdMapping]| {
        let mut sorted = mappings.to_vec();
        sorted.sort_unstable_by_key(|mapping| mapping.container_id);
        sorted
    };
    sorted(left) == sorted(right)
}

/// Writes the maps of a process that has just entered a new user namespace. Each map can be written once.
///
/// # Errors
/// The kernel's answer: `EINVAL` for overlapping or empty extents and for host ID 4294967295, `EPERM` without the right.
pub fn write_maps(pid: i32, uids: &[IdMapping], gids: &[IdMapping]) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/gid_map"), map_text(gids))?;
    std::fs::write(format!("/proc/{pid}/uid_map"), map_text(uids))
}

/// A user namespace that no process is in, with the given mapping: what `mount_setattr` takes to map a mount's IDs.
///
/// # Errors
/// The kernel's answer; see [`explain_namespace_error`].
pub fn namespace_with(uids: &[IdMapping], gids: &[IdMapping]) -> io::Result<OwnedFd> {
    let child = start_sleeper()?;
    let made = write_maps(child.pid, uids, gids)
        .and_then(|()| std::fs::File::open(format!("/proc/{}/ns/user", child.pid)));
    child.kill()?;
    child.wait()?;
    Ok(made?.into())
}

/// A process in a new user namespace that does nothing. It ends with the thread that made it: it has copies of all
/// descriptors, locks among them, which must not outlive a program that is killed.
fn start_sleeper() -> io::Result<Child> {
    let parent = rustix::process::getpid();
    // SAFETY: the child makes system calls only, until it is killed.
    match unsafe { process::fork(CloneOptions { flags: CLONE_NEWUSER, cgroup: None }) }? {
        Fork::Parent(child) => Ok(child),
        Fork::Child => {
            let bound = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
            // The parent may have died before.
            if bound.is_err() || rustix::process::getppid() != Some(parent) {
                process::exit_now(1);
            }
            loop {
                // SAFETY: no arguments, no memory.
                unsafe { libc::pause() };
            }
        }
    }
}

/// User namespaces by mapping, each made once while somebody holds it.
#[derive(Debug, Default)]
pub struct Namespaces(Mutex<HashMap<MapKey, std::sync::Weak<OwnedFd>>>);

type MapKey = (Vec<IdMapping>, Vec<IdMapping>);

impl Namespaces {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The namespace with this mapping.
    ///
    /// # Errors
    /// See [`namespace_with`].
    pub fn get(&self, uids: &[IdMapping], gids: &[IdMapping]) -> io::Result<Arc<OwnedFd>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, namespace| namespace.strong_count() > 0);
        let key = (uids.to_vec(), gids.to_vec());
        if let Some(namespace) = known.get(&key).and_then(std::sync::Weak::upgrade) {
            return Ok(namespace);
        }
        let namespace = Arc::new(namespace_with(uids, gids)?);
        known.insert(key, Arc::downgrade(&namespace));
        Ok(namespace)
    }
}

/// The sentence for a namespace that could not be made: the kernel says `ENOSPC` for a limit that has nothing to do with space.
pub fn explain_namespace_error(kind: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOSPC) => format!(
            "cannot create a {kind} namespace: the limit user.max_{kind}_namespaces is reached or 0 \
             (the kernel says ENOSPC, \"{error}\"); raise it: sysctl -w user.max_{kind}_namespaces=100000"
        ),
        Some(libc::EINVAL) if kind == "user" => format!(
            "cannot create a user namespace: {error}; this kernel is built without CONFIG_USER_NS, or the limit of 32 nested ones is reached"
        ),
        Some(libc::EPERM | libc::EUSERS) => format!(
            "cannot create a {kind} namespace: {error}; root with CAP_SYS_ADMIN is needed, and kernel.unprivileged_userns_clone or an AppArmor policy may forbid it"
        ),
        _ => format!("cannot create a {kind} namespace: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: IdMapping = IdMapping { container_id: 0, host_id: 131_072, size: 65_536 };

    #[test]
    fn ids_outside_the_map_have_no_host_id() {
        assert_eq!(to_host(&[BLOCK], 65_535), Some(196_607));
        assert_eq!(to_host(&[BLOCK], 65_536), None);
        assert_eq!(describe(&[BLOCK]), "0-65535 are the node's 131072-196607");
    }

    #[test]
    fn a_map_is_read_as_the_kernel_prints_it() {
        assert_eq!(parse_map("         0     131072      65536\n"), Some(vec![BLOCK]));
        assert_eq!(parse_map("0 1\n"), None);
        assert_eq!(parse_map("0 1 2 3\n"), None);
    }

    #[test]
    fn a_namespace_is_made_once_for_a_mapping() {
        let namespaces = Namespaces::new();
        let first = namespaces.get(&[BLOCK], &[BLOCK]).expect("needs root");
        let second = namespaces.get(&[BLOCK], &[BLOCK]).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn the_process_that_holds_a_new_namespace_ends_with_its_maker() {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let make = || {
            let child = start_sleeper().expect("needs root");
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            let stat = format!("/proc/{}/stat", child.pid);
            while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
                assert!(std::time::Instant::now() < deadline, "it does not go to sleep");
                std::thread::yield_now();
            }
            child
        };
        let child = std::thread::spawn(make).join().unwrap();
        let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&child.pidfd, PollFlags::IN)], Some(&limit));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(ended, Ok(1), "it would hold the program's locks for ever");
    }

    #[test]
    fn a_map_that_ends_at_the_last_id_is_refused_by_the_kernel() {
        let last = IdMapping { container_id: 0, host_id: 4_294_901_760, size: 65_536 };
        let error = namespace_with(&[last], &[last]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn g08_a_kernel_without_user_namespaces_is_named() {
        let text = explain_namespace_error("user", &io::Error::from_raw_os_error(libc::EINVAL));
        assert!(text.contains("without CONFIG_USER_NS"), "{text}");
    }

    #[test]
    fn no_space_names_the_limit() {
        let text = explain_namespace_error("user", &io::Error::from_raw_os_error(libc::ENOSPC));
        assert!(text.contains("user.max_user_namespaces"), "{text}");
    }
}
