//! Finds the sources of the crates that the table is made from.
//! It asks `cargo metadata`, so the versions are those of the lock file.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Error;

/// Source directories of the two crates.
#[derive(Debug)]
pub(crate) struct Sources {
    /// `k8s-openapi`'s `src/v1_36`.
    pub(crate) openapi: PathBuf,
    /// `k8s-pb`'s `src`.
    pub(crate) messages: PathBuf,
}

/// The Kubernetes version whose types are taken, as `k8s-openapi` names its directory.
const VERSION_DIR: &str = "v1_36";

/// Locates the sources through `cargo metadata` (all features, so that optional packages appear).
pub(crate) fn find_sources() -> Result<Sources, Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--all-features", "--locked"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .output()
        .map_err(|source| Error::Metadata { said: source.to_string() })?;
    if !output.status.success() {
        return Err(Error::Metadata { said: String::from_utf8_lossy(&output.stderr).into_owned() });
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
        .map_err(|source| Error::Metadata { said: source.to_string() })?;
    Ok(Sources {
        openapi: package_dir(&metadata, "k8s-openapi")?.join("src").join(VERSION_DIR),
        messages: package_dir(&metadata, "k8s-pb")?.join("src"),
    })
}

fn package_dir(metadata: &serde_json::Value, name: &'static str) -> Result<PathBuf, Error> {
    metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == name)
        .and_then(|package| Path::new(package["manifest_path"].as_str()?).parent())
        .map(Path::to_path_buf)
        .ok_or(Error::NoPackage { name })
}

/// All `.rs` files below a directory, in a stable order.
pub(crate) fn rust_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        let entries = std::fs::read_dir(&dir).map_err(|source| Error::Read { path: dir.clone(), source })?;
        for entry in entries {
            let path = entry.map_err(|source| Error::Read { path: dir.clone(), source })?.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Reads one text file.
pub(crate) fn read(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })
}
