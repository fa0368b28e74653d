//! The stage of an OCI runtime: where its `config.json` finds what the daemon opened for a container. Each launch has a
//! tmpfs there in a mount namespace of its own, so that nothing of it is ever mounted on the node.
//!
//! Names are relative to the stage's directory.

use crate::protocol::FdIndex;

/// The root filesystem.
pub const ROOTFS: &str = "rootfs";
/// The Pod's shared memory.
pub const SHM: &str = "shm";
/// The namespaces that the Pod has of its own, a file each: `user`, `network`, `ipc`, `uts`, `pid`.
pub const NAMESPACES: &str = "namespaces";
/// Device nodes, numbered as in the plan.
pub const DEVICES: &str = "devices";
/// What is mounted, named by descriptor.
pub const MOUNTS: &str = "mounts";

/// What a descriptor of the plan is mounted from.
pub fn mount(index: FdIndex) -> String {
    format!("{MOUNTS}/{}", index.0)
}

/// A device node of the plan.
pub fn device(number: usize) -> String {
    format!("{DEVICES}/{number}")
}

/// What a runtime says of its failure where it keeps no log: the last line with words of what it wrote.
pub fn last_line(text: &str) -> Option<String> {
    text.rsplit('\n').map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}

/// The longest path of a stage, in bytes: a socket's path below it has 107 at most.
pub const MAX_PATH: usize = 90;

pub(crate) const CONFIG: &str = "config.json";
pub(crate) const PROCESS: &str = "process.json";
pub(crate) const CONSOLE: &str = "console.sock";
pub(crate) const PID: &str = "pid";
pub(crate) const LOG: &str = "runtime.log";
