//! The runtime as its clients see it: over its Unix socket, in a network and mount namespace of the test's own, with
//! a daemon process that can be killed at any instruction.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::large_futures,
    reason = "test helpers fail by panicking"
)]

mod containers;
mod crash;
mod daemon;
mod escapes;
mod features;
mod handlers;
mod image;
mod machine;
mod roots;
mod streams;
mod user_namespaces;
