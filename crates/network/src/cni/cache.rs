//! What was asked of the plugins for each sandbox, and what they answered: one file for each, written before the
//! first plugin runs and removed after the last has undone its part. So a sandbox is undone with the configuration
//! that made it, whatever became of that since.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::list::List;
use crate::error::NetworkError;
use crate::port::PortMapping;
use crate::record::{absent_is_fine, replace};

/// One sandbox's attachment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    pub(crate) list: List,
    /// `CNI_ARGS`.
    pub(crate) arguments: String,
    #[serde(default)]
    pub(crate) ports: Vec<PortMapping>,
    /// The last plugin's result; `None` until all have run.
    #[serde(default)]
    pub(crate) result: Option<Value>,
}

/// The directory of attachments.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    directory: PathBuf,
}

impl Cache {
    pub(crate) fn open(state: &Path) -> Result<Self, NetworkError> {
        let directory = state.join("cni");
        fs::create_dir_all(&directory).map_err(NetworkError::file("create the directory", &directory))?;
        Ok(Self { directory })
    }

    /// The sandboxes that have an attachment.
    pub(crate) fn list(&self) -> Result<Vec<String>, NetworkError> {
        let failed = |error| NetworkError::file("read the directory", &self.directory)(error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
            // A leading dot is a file that was being written.
            if !name.starts_with('.') {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// A sandbox's attachment.
    pub(crate) fn read(&self, sandbox: &str) -> Result<Option<Attachment>, NetworkError> {
        let path = self.directory.join(sandbox);
        let failed = |error| NetworkError::file("read", &path)(error);
        match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into())),
        }
    }

    pub(crate) fn write(&self, sandbox: &str, attachment: &Attachment) -> Result<(), NetworkError> {
        let path = self.directory.join(sandbox);
        let text = serde_json::to_vec(attachment);
        let text = text.map_err(|error| NetworkError::file("encode", &path)(error.into()))?;
        replace(&path, &text)
    }

    pub(crate) fn remove(&self, sandbox: &str) -> Result<(), NetworkError> {
        let path = self.directory.join(sandbox);
        absent_is_fine(fs::remove_file(&path)).map_err(NetworkError::file("remove", path))
    }
}
