//! SPDY/3.1 as Kubernetes uses it: multiplexed streams over one connection, raw after `Upgrade: SPDY/3.1` or
//! carried in a WebSocket. Framing follows draft-mbelshe-httpbis-spdy-00 with the 3.1 changes; no HTTP
//! semantics, no priorities, no server push.

mod connection;
mod flow;
mod frame;
mod header;

pub use connection::{Connection, Incoming, Role, Stream, start};
pub(crate) use flow::Flow;
pub use frame::{Decoder, Encoder, Frame, FrameError, ResetStatus};
pub use header::Headers;
