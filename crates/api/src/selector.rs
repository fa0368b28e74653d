//! Label and field selectors: parsing with upstream's error texts, and matching.

mod field;
mod label;

pub use field::{FieldSelector, FieldSelectorError, fields_of};
pub use label::{LabelSelector, LabelSelectorError, Operator, Requirement};
