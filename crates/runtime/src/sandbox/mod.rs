//! The verbs of Pod sandboxes.

pub(crate) mod follow;
pub(crate) mod plan;
mod remove;
mod run;
pub(crate) mod status;
mod update;

pub(crate) use remove::{kill, remove, stop, undo};
pub(crate) use run::{run, uses_pod_network};
pub(crate) use update::update_resources;
