//! Whole-system tests: the real `kubectl` against the real binary.
//!
//! Each [`Node`] is a node of its own: root directory, network namespace, mount namespace and ID pool, so that
//! tests run beside each other and beside a node that the machine may really have. They need root.

#![expect(clippy::expect_used, reason = "a test's harness ends the test with a sentence")]

mod agent;
mod attempt;
mod containerd;
mod images;
mod machine;
mod node;
mod probes;
mod runtime;
mod shared;

pub use agent::{Agent, WORKER, admit_worker};
pub use attempt::Attempt;
pub use containerd::Containerd;
pub use images::image_mirror;
pub use machine::{ExactLock, Leftovers, leftovers, processes_on, processor_time, shims, unreaped};
pub use node::{Node, NodeOptions, Ran, kakoi, run};
pub use probes::GRPC_SERVER;
pub use runtime::Runtime;
pub use shared::{Kept, SharedNode};
