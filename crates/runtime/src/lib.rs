//! The CRI services over images, network and shims.
