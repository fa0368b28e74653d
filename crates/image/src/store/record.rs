//! What is known of an image: what callers see, and what is on disk.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::layer::LayerNumber;
use crate::config::ImageConfig;
use crate::manifest::Platform;

/// An image on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// `sha256:` and the digest of the image's configuration.
    pub id: String,
    /// `docker.io/library/nginx:latest`; empty when every tag has moved to another image.
    pub repo_tags: Vec<String>,
    /// `docker.io/library/nginx@sha256:…`, with the digest that the registry gave for the tag.
    pub repo_digests: Vec<String>,
    /// Bytes on disk, in whole blocks. What is shared with other images is counted here too.
    pub size: u64,
    /// The highest user or group ID that owns a file in it: a Pod whose ID range is not longer than this sees
    /// some of its files as nobody's.
    pub highest_id: u32,
    /// Bytes of the compressed layers and documents.
    pub download_size: u64,
    /// When the image was made, in its own words (RFC 3339); may be empty.
    pub created: String,
    /// The machines it is for.
    pub platform: Platform,
    /// What its containers run with.
    pub config: ImageConfig,
    /// Kubelets must not collect it, whether it is used or not.
    pub is_pinned: bool,
    /// The unpacked layers, lowest first, all in one directory; never empty, never the same twice.
    pub layers: Vec<PathBuf>,
}

/// The record on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StoredImage {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) repo_tags: Vec<String>,
    #[serde(default)]
    pub(crate) repo_digests: Vec<String>,
    #[serde(default)]
    pub(crate) download_size: u64,
    #[serde(default)]
    pub(crate) created: String,
    pub(crate) platform: Platform,
    pub(crate) config: ImageConfig,
    #[serde(default)]
    pub(crate) is_pinned: bool,
    /// Numbers of the layers, lowest first.
    pub(crate) layers: Vec<LayerNumber>,
}
