//! The Kubernetes API as data: one schema table, kinds, defaults, validation, patches, selectors, quantities, tables, content types. Pure.
