//! Remote command, port-forward and the proxy over loopback connections, with a real HTTP server in front.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    reason = "the helpers of tests fail by panicking"
)]

mod forward;
mod kubectl;
mod proxy;
mod remote;
mod server;
mod spdy;
