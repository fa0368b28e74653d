//! What a node leaves on the machine, and the lock of the tests that need the machine's first IDs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

/// Held by a test that checks exact host IDs: nobody else may hold 131072 meanwhile.
#[derive(Debug)]
pub struct ExactLock(#[expect(dead_code, reason = "held for its lock")] File);

impl ExactLock {
    /// Waits for the lock.
    ///
    /// # Panics
    /// When the lock file can't be made.
    pub fn take() -> Self {
        let file = File::create("/run/lock/kakoi-exact").expect("/run/lock is writable");
        flock(&file, FlockOperation::LockExclusive).expect("a file lock can be waited for");
        Self(file)
    }
}

/// What is left of a node: each list is empty when all is well.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Processes whose command line or root names the node's directory.
    pub processes: Vec<String>,
    /// Mounts of the machine below the node's directory.
    pub mounts: Vec<String>,
    /// Control groups with the instance's name.
    pub cgroups: Vec<String>,
    /// The instance's claim in the register of IDs.
    pub claims: Vec<String>,
    /// Records, directories and logs of Pods, sandboxes, containers and shims below the node's directory.
    pub files: Vec<String>,
}

/// Where a Pod leaves files below a node's root; each is empty when no Pod is left.
const PLACES: [&str; 6] = [
    "var/lib/kubelet/pods",
    "var/log/pods",
    "var/lib/kakoi/containers/sandboxes",
    "var/lib/kakoi/containers/containers",
    "var/lib/kakoi/network/sandboxes",
    "run/kakoi/shims",
];

/// Looks for what a node with this root and instance name has left on the machine.
pub fn leftovers(root: &Path, instance: &str) -> Leftovers {
    Leftovers {
        processes: processes(root, instance),
        mounts: mounts(root),
        cgroups: cgroups(instance),
        claims: entries(Path::new("/run/kakoi/ids")).into_iter().filter(|name| name == instance).collect(),
        files: PLACES.iter().flat_map(|place| below(&root.join(place))).collect(),
    }
}

/// The PIDs of the processes that run as one of the machine's IDs in `range`.
pub fn processes_on(range: &Range<u64>) -> BTreeSet<u32> {
    let pids = entries(Path::new("/proc")).into_iter().filter_map(|name| name.parse().ok());
    let on_range = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        if status.contains("State:\tZ") {
            return false;
        }
        let uid = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
        uid.is_some_and(|uid| range.contains(&uid))
    };
    pids.filter(on_range).collect()
}

fn entries(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn below(dir: &Path) -> Vec<String> {
    entries(dir).into_iter().map(|name| dir.join(name).display().to_string()).collect()
}

fn processes(root: &Path, instance: &str) -> Vec<String> {
    let root = root.to_string_lossy().into_owned();
    let pids =
        entries(Path::new("/proc")).into_iter().filter(|name| name.bytes().all(|b| b.is_ascii_digit()));
    let lines = pids.filter_map(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let is_ours = (line.contains(&root) || is_in(&pid, instance)) && !has_ended(&pid);
        (is_ours && pid != std::process::id().to_string()).then(|| format!("{pid}: {line}"))
    });
    lines.collect()
}

/// Whether a process has ended and waits for its parent's notice: what a killed daemon leaves to the machine's init is
/// not ours any more.
fn has_ended(pid: &str) -> bool {
    stat(pid).is_none_or(|(state, _)| matches!(state, 'Z' | 'X'))
}

/// A process's state and its parent.
fn stat(pid: &str) -> Option<(char, u32)> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut words = line.rsplit_once(')')?.1.split_whitespace();
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

/// The children of a process that have ended and that it has not taken notice of.
pub fn unreaped(parent: u32) -> Vec<u32> {
    let pids = entries(Path::new("/proc")).into_iter().filter(|pid| stat(pid) == Some(('Z', parent)));
    pids.filter_map(|pid| pid.parse().ok()).collect()
}

/// Whether a process is in a control group of the instance.
fn is_in(pid: &str, instance: &str) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.lines().any(|line| line.split('/').any(|part| part == instance))
}

/// The shims of an instance, without the processes that they have made of themselves.
pub fn shims(instance: &str) -> Vec<u32> {
    let is_shim = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.starts_with(b"kakoi-shim") && is_in(&pid.to_string(), instance)
    };
    let pids = entries(Path::new("/proc")).into_iter().filter_map(|pid| pid.parse().ok()).filter(is_shim);
    pids.filter(|pid| stat(&pid.to_string()).is_some_and(|(_, parent)| !is_shim(&parent))).collect()
}

/// The processor time that a process's threads and the control groups of an instance have had: its daemon, its shims, and
/// all that they started. What the kernel does elsewhere for them is not in it, nor what a thread had that has ended since.
pub fn processor_time(daemon: u32, instance: &str) -> Duration {
    let tasks = PathBuf::from(format!("/proc/{daemon}/task"));
    let of_task = |id: &String| first_number(&tasks.join(id).join("schedstat"));
    let threads: u64 = entries(&tasks).iter().map(of_task).sum();
    let legacy = entries(Path::new("/sys/fs/cgroup")).into_iter().filter(|name| name.contains("cpuacct"));
    let legacy = legacy.map(|name| PathBuf::from(format!("/sys/fs/cgroup/{name}/{instance}/cpuacct.usage")));
    let groups = legacy.map(|path| first_number(&path)).max().filter(|nanoseconds| *nanoseconds > 0);
    let unified = || 1000 * usage(&fs::read_to_string(format!("/sys/fs/cgroup/{instance}/cpu.stat")));
    Duration::from_nanos(threads + groups.unwrap_or_else(unified))
}

/// Microseconds, of a group's `cpu.stat`.
fn usage(stat: &std::io::Result<String>) -> u64 {
    let mut lines = stat.as_deref().unwrap_or_default().lines();
    lines.find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok()).unwrap_or(0)
}

fn first_number(path: &Path) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn mounts(root: &Path) -> Vec<String> {
    let below = format!(" {}", root.display());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table.lines().filter(|line| line.contains(&below)).map(str::to_owned).collect()
}

fn cgroups(instance: &str) -> Vec<String> {
    let hierarchies = entries(Path::new("/sys/fs/cgroup"));
    let paths = hierarchies.iter().map(|name| format!("/sys/fs/cgroup/{name}/{instance}"));
    let all = paths.chain([format!("/sys/fs/cgroup/{instance}"), format!("/sys/fs/cgroup/{instance}.slice")]);
    all.filter(|path| Path::new(path).exists()).collect()
}
