//! The image store as a whole: layouts, archives, registries good and bad, full disks, kills.
//! Needs root, for layers have owners and devices.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test says by panicking what is wrong; helpers are part of tests"
)]

mod disk;
mod hostile;
mod layers;
mod layouts;
mod real_registry;
mod support;
mod tls;
