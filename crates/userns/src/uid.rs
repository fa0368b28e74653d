//! A Pod's UID as a checked type: it names directories, cgroups and records, so it may never climb out of one.

use std::fmt;
use std::path::Path;

/// The UID of a Pod, safe as a single path component.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodUid(String);

/// Why a string is not usable as a Pod UID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not usable as a Pod UID: it must be 1 to 128 characters of [A-Za-z0-9._-] and not start with a dot"
)]
pub struct BadPodUid(String);

impl PodUid {
    /// Checks `uid`: 1 to 128 characters of `[A-Za-z0-9._-]`, not starting with a dot.
    ///
    /// # Errors
    /// When the string could not be one directory name below `pods/`.
    pub fn parse(uid: &str) -> Result<Self, BadPodUid> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let good = (1..=128).contains(&uid.len()) && !uid.starts_with('.') && uid.bytes().all(allowed);
        if good { Ok(Self(uid.to_owned())) } else { Err(BadPodUid(uid.to_owned())) }
    }

    /// The UID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<Path> for PodUid {
    fn as_ref(&self) -> &Path {
        self.0.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uid_is_one_path_component_or_refused() {
        PodUid::parse("0f8fad5b-d9cb-469f-a165-70867728950e").unwrap();
        for bad in ["", ".", "..", "a/b", "../x", ".hidden", "a b", &"x".repeat(129)] {
            PodUid::parse(bad).unwrap_err();
        }
    }
}
