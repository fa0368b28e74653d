//! Validation of objects: field paths, field errors and the rules of the built-in kinds, with Kubernetes' texts and order.
//! It decides only; it changes nothing.

mod error;

pub use error::{ErrorKind, FieldError, FieldErrors, Path, quote};
