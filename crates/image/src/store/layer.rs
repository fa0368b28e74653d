//! Layers of the store, and the guards that keep them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Store;
use super::disk::Scratch;

/// The name of a layer's directory: short, because overlayfs' options must fit one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct LayerNumber(pub(crate) u64);

impl fmt::Display for LayerNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A layer's record on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Layer {
    pub(crate) number: LayerNumber,
    /// Digest of the archive, or of the chain when the tree depends on the layers below.
    pub(crate) key: String,
    #[serde(flatten)]
    pub(crate) size: LayerSize,
}

/// What a layer takes and needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayerSize {
    /// Bytes on disk, in whole blocks.
    pub(crate) bytes: u64,
    /// Files, directories, links and devices.
    pub(crate) inodes: u64,
    /// The highest user or group ID that owns a file.
    #[serde(default)]
    pub(crate) highest_id: u32,
}

/// An unpacked tree that is not a layer yet.
#[derive(Debug)]
pub(crate) struct NewLayer {
    pub(crate) scratch: Scratch,
    pub(crate) key: String,
    pub(crate) size: LayerSize,
}

/// Keeps layers from being collected while it lives.
#[derive(Debug)]
pub(crate) struct LayerPin {
    store: Arc<Store>,
    numbers: Vec<LayerNumber>,
}

impl LayerPin {
    pub(super) fn new(store: Arc<Store>, numbers: Vec<LayerNumber>) -> Self {
        Self { store, numbers }
    }

    /// The layers it keeps.
    pub(crate) fn numbers(&self) -> &[LayerNumber] {
        &self.numbers
    }
}

impl Drop for LayerPin {
    fn drop(&mut self) {
        self.store.release(&self.numbers);
    }
}
