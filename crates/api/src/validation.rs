//! Validation of objects: field paths, field errors and the rules of the built-in kinds, with Kubernetes' texts and order.
//! It decides only; it changes nothing.

pub mod certificate;
mod container;
mod diff;
pub mod environment;
mod error;
pub mod event;
pub mod job;
pub mod meta;
pub mod network;
pub mod object;
pub mod pod;
pub mod pod_part;
pub mod pod_update;
pub mod policy;
mod probe;
pub mod rbac;
mod resource;
pub(crate) mod rule;
mod scheduling;
mod security;
pub mod service;
pub mod storage;
mod volume;
pub mod volume_mapping;
pub mod workload;

pub use error::{ErrorKind, FieldError, FieldErrors, Path, quote};

use serde_json::Value;

/// Whether two values mean the same: an empty list or a null is as good as an absent field.
pub fn semantically_equal(a: &Value, b: &Value) -> bool {
    fn is_nothing(value: &Value) -> bool {
        value.is_null() || value.as_array().is_some_and(Vec::is_empty)
    }
    match (a, b) {
        (Value::Object(one), Value::Object(other)) => {
            let absent = Value::Null;
            one.keys().chain(other.keys()).all(|key| {
                semantically_equal(one.get(key).unwrap_or(&absent), other.get(key).unwrap_or(&absent))
            })
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(v, w)| semantically_equal(v, w))
        }
        _ => a == b || (is_nothing(a) && is_nothing(b)),
    }
}
