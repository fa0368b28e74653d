//! OCI images: registries, mirrors, authentication, import, verification, unpacking, layers, collection.
//!
//! [`ImageStore`] pulls images from registries and mirrors or loads them from files, checks every byte against
//! its digest while it streams, and keeps the unpacked layers as directories that overlayfs takes as they are.
//! It refuses what leads out of a layer, and it never shows an image of which a part is missing.

mod config;
mod digest;
mod error;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod image_store;
mod layout;
mod load;
mod manifest;
mod pull;
mod reference;
mod registry;
mod source;
mod store;
mod unpack;

pub use config::{ImageConfig, ImageDocument, RootFs};
pub use digest::{Digest, DigestError, Hasher};
pub use error::{Attempt, AttemptError, Attempts, LoadError, PullError, PullErrorKind};
pub use image_store::{ImagePin, ImageStore, ImageStoreConfig};
pub use manifest::{Descriptor, DocumentError, Index, Manifest, OCI_INDEX, OCI_MANIFEST, Platform};
pub use pull::{Progress, RegistryAuth};
pub use reference::{DEFAULT_REGISTRY, Reference, ReferenceError};
pub use registry::{HostsError, NetworkConfig, Proxies};
pub use store::{ImageRecord, StoreError, Usage};
pub use unpack::{ContentError, PathError, UnpackError};
