//! The two CRI services and ours beside them: requests in, verbs called, answers out. What is not served here answers
//! Unimplemented with the method's name.

pub(crate) mod image;
mod list;
mod own;
mod runtime;

use std::sync::Arc;

use crate::core::Core;

/// The runtime service. Clones serve the same runtime.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeServer(pub(crate) Arc<Core>);

/// The image service. Clones serve the same store.
#[derive(Clone, Debug)]
pub(crate) struct ImageServer(pub(crate) Arc<Core>);
