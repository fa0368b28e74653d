//! One Pod on this node: what is observed of it, what must be done, how that shows in its status, and the worker.

pub(crate) mod admission;
pub(crate) mod backoff;
pub(crate) mod container;
pub(crate) mod credential;
pub(crate) mod dns;
pub(crate) mod ephemeral;
pub(crate) mod hosts;
pub(crate) mod image;
pub(crate) mod label;
pub(crate) mod observed;
pub(crate) mod plan;
pub(crate) mod publish;
pub(crate) mod resize;
pub(crate) mod resource;
pub(crate) mod restart;
pub(crate) mod restart_all;
pub(crate) mod sandbox;
pub(crate) mod security;
pub(crate) mod status;
pub(crate) mod worker;
