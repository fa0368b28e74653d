//! User-namespace ID mappings: the triples, translating through them, writing them, and namespaces made only to carry one.

use serde::{Deserialize, Serialize};

/// One extent of a mapping: `size` IDs from `container_id` inside are those from `host_id` outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IdMapping {
    /// First ID inside.
    pub container_id: u32,
    /// First ID outside.
    pub host_id: u32,
    /// Number of IDs.
    pub size: u32,
}

/// The host ID of a container ID, if it is mapped.
pub fn to_host(mappings: &[IdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id).filter(|offset| *offset < mapping.size)?;
        mapping.host_id.checked_add(offset)
    })
}
