//! A Pod's UID as a checked type: the ID space's own.

pub use userns::{BadPodUid, PodUid};
