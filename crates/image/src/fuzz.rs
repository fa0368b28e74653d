//! Entry points for fuzzing: parsers that are no part of the crate's interface.

use std::os::fd::OwnedFd;

use crate::config::ImageDocument;
use crate::manifest::{Document, Platform};
use crate::registry;
use crate::unpack::{self, UnpackError};

/// Unpacks an archive into `root`, on top of the layer `lower`.
///
/// # Errors
/// As for any layer, but for its digests, which are not looked at.
pub fn unpack(archive: &[u8], root: OwnedFd, lower: OwnedFd) -> Result<(), UnpackError> {
    unpack::unpack_unverified(archive, root, lower)
}

/// Reads a manifest or an index, and an image's configuration.
///
/// # Panics
/// When what was understood is not understood the same again.
pub fn document(bytes: &[u8]) {
    match Document::parse(bytes, "") {
        Ok(Document::Manifest(manifest)) => is_stable(&manifest),
        Ok(Document::Index(index)) => {
            is_stable(&index);
            assert!(Platform::of_this_machine().select(&index.manifests).len() <= index.manifests.len());
        }
        Err(_) => {}
    }
    if let Ok(document) = serde_json::from_slice::<ImageDocument>(bytes) {
        is_stable(&document);
    }
}

fn is_stable<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) {
    let write = |value: &T| serde_json::to_string(value).expect("the documents have no keys but texts");
    let text = write(value);
    let again = serde_json::from_str(&text).expect("what was understood can be written down and read");
    assert_eq!(write(&again), text);
}

/// Reads a `hosts.toml`.
pub fn hosts(text: &str) {
    registry::fuzz_hosts(text);
}

/// Reads a `WWW-Authenticate` header and plans what to ask a token server for.
pub fn challenges(text: &str) {
    registry::fuzz_challenges(text);
}
