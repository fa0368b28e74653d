//! One Pod on this node: what is observed of it, what must be done, how that shows in its status, and the worker.

pub(crate) mod backoff;
pub(crate) mod observed;
pub(crate) mod plan;
pub(crate) mod resource;
pub(crate) mod restart;
pub(crate) mod status;
