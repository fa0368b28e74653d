//! Documents without descriptions, for builds that do without the crate that has them.

use api::openapi::Descriptions;

/// What makes a document without descriptions another one.
pub(crate) const SOURCE: &str = "none";

/// No descriptions.
pub(crate) fn of(_group: &str, _version: &str) -> Descriptions {
    Descriptions::default()
}

/// No descriptions.
pub(crate) fn all() -> Descriptions {
    Descriptions::default()
}
