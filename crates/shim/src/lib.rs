//! The per-Pod supervisor: a small single-threaded static program that makes the sandbox, launches, reaps, holds terminals and writes logs.
//!
//! The daemon uses [`client`] (blocking, no async runtime) and the types of [`protocol`]; the program `kakoi-shim` is
//! the rest. The program opens no path of the node after its start: root filesystems, volumes, logs and cgroups
//! arrive as descriptors. The one exception are OCI runtimes (`launch::oci`): a child of the shim starts them with the
//! node's files in sight.

pub mod client;
mod identity;
mod init;
mod launch;
mod log;
pub mod protocol;
mod report;
mod sandbox;
pub mod stage;
mod streams;
mod supervisor;
mod wire;

pub use supervisor::run;

/// The program's argument for [`hold`], in the place of a sandbox's ID.
pub const HOLD: &str = "hold";

/// The program in its other role: it stays where it is until a signal ends it. systemd ends a scope that has no process.
pub fn hold() -> ! {
    loop {
        rustix::event::pause();
    }
}

/// One line to the shim's own log, `shim.log` in its run directory.
fn complain(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}
