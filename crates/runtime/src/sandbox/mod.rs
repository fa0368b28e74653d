//! The verbs of Pod sandboxes.

pub(crate) mod follow;
pub(crate) mod plan;
mod remove;
mod run;
pub(crate) mod status;

pub(crate) use remove::{kill, remove, stop, undo};
pub(crate) use run::run;
