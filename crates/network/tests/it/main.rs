//! The Pod network in network namespaces of its own: one is the node, one the world outside, the rest are Pods.
//! Nothing here touches the machine's links or tables. Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    reason = "the helpers of tests fail by panicking"
)]

mod crash;
mod firewall;
mod ipv6;
mod plugins;
mod pods;
mod ports;
mod world;
