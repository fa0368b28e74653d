//! The two CRI services: requests in, verbs called, answers out. What is not served here answers Unimplemented with
//! the method's name.

pub(crate) mod image;
mod list;
mod runtime;

use std::sync::Arc;

use crate::core::Core;

/// The runtime service. Clones serve the same runtime.
#[derive(Clone, Debug)]
pub struct RuntimeServer(pub(crate) Arc<Core>);

/// The image service. Clones serve the same store.
#[derive(Clone, Debug)]
pub struct ImageServer(pub(crate) Arc<Core>);
