//! The Kubernetes API as data: one schema table, kinds, defaults, validation, patches, selectors, quantities, tables, content types. Pure.

pub mod access;
pub mod admission;
pub mod apply;
pub mod codec;
pub mod declared;
pub mod default;
pub mod discovery;
pub mod disruption;
pub mod feature;
pub mod kind;
pub mod limit;
pub mod name;
pub mod openapi;
pub mod patch;
pub mod pod_security;
pub mod quantity;
pub mod quota;
pub mod rbac;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;
pub mod template;
pub mod time;
pub mod validation;
pub mod warning;
