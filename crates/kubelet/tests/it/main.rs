//! The node agent between the real API server and a scripted container runtime, both in the test's process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    reason = "a test ends at its first surprise, and JSON literals read best as arguments"
)]

mod agent;
mod bundle;
mod certificate;
mod changes;
mod crash;
mod csi;
mod faults;
mod fence;
mod fields;
mod full;
mod lifecycle;
mod line;
mod manifests;
mod node;
mod outage;
mod probes;
mod records;
mod restart;
mod script;
mod shutdown;
mod volumes;
