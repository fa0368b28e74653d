//! The per-Pod supervisor: a small single-threaded static program that makes the sandbox, launches, reaps, holds terminals and writes logs.
//!
//! The daemon uses [`client`] (blocking, no async runtime) and the types of [`protocol`]; the program `kakoi-shim` is
//! the rest. The program opens no path of the node after its start: root filesystems, volumes, logs and cgroups
//! arrive as descriptors.

pub mod client;
pub mod protocol;
mod wire;
