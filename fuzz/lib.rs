//! What several targets share: a place on the side that stays the same for all inputs of a target.
//! It decides nothing about what is right; each target says that itself, but for what holds of every API object.

pub mod object;
#[path = "../crates/apiserver/tests/matrix/protobuf.rs"]
mod protobuf;
pub mod session;
