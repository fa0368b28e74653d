//! When the last graceful shutdown began and ended, kept in the kubelet's directory under upstream's name: after the
//! machine is up again its metrics tell whether all Pods had their time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

const FILE: &str = "graceful_node_shutdown_state";

/// The last graceful shutdown. An end that is missing: it was broken off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ShutdownState {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) start_time: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) end_time: Option<Timestamp>,
}

/// Where it is kept.
fn path(kubelet_dir: &Path) -> PathBuf {
    kubelet_dir.join(FILE)
}

impl ShutdownState {
    /// What was stored last; nothing, where there is no file or one that cannot be read: only metrics are made of it.
    pub(crate) fn load(kubelet_dir: &Path) -> Self {
        let text = fs::read(path(kubelet_dir)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Stores it; the file is the old one or the new one.
    pub(crate) fn store(self, kubelet_dir: &Path) -> io::Result<()> {
        let (path, new) = (path(kubelet_dir), kubelet_dir.join(format!(".{FILE}.new")));
        fs::write(&new, serde_json::to_vec(&self)?)?;
        fs::rename(new, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_loaded_and_a_broken_file_is_none() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(ShutdownState::load(directory.path()), ShutdownState::default());
        let begun = ShutdownState { start_time: Some(Timestamp::UNIX_EPOCH), end_time: None };
        begun.store(directory.path()).unwrap();
        assert_eq!(ShutdownState::load(directory.path()), begun);
        let text = fs::read_to_string(path(directory.path())).unwrap();
        assert_eq!(text, r#"{"startTime":"1970-01-01T00:00:00Z"}"#);
        fs::write(path(directory.path()), "{").unwrap();
        assert_eq!(ShutdownState::load(directory.path()), ShutdownState::default());
    }
}
