//! What is noted of a published volume, beside its mount: enough to take it back when all else is forgotten.
//!
//! The file and its keys are upstream's (`vol_data.json`).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::places::{Places, PodPlaces};

/// The note in a volume's directory.
pub(super) const FILE: &str = "vol_data.json";
/// The mount in a volume's directory.
pub(super) const MOUNT: &str = "mount";
const PLUGIN: &str = "csi";
/// The lifecycle of a volume that is written into its Pod.
pub(super) const EPHEMERAL: &str = "Ephemeral";
/// The lifecycle of a volume that has a `PersistentVolume`.
pub(super) const PERSISTENT: &str = "Persistent";

/// A volume that may be published for a Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Note {
    #[serde(rename = "specVolID")]
    pub(super) spec_name: String,
    pub(super) volume_handle: String,
    pub(super) driver_name: String,
    pub(super) node_name: String,
    pub(super) volume_lifecycle_mode: String,
}

impl Note {
    pub(super) fn is_of(&self, driver: &str, handle: &str) -> bool {
        self.driver_name == driver && self.volume_handle == handle
    }
}

/// One volume's directory; the mount is `mount` in it.
pub(super) fn directory(places: &PodPlaces, volume: &str) -> PathBuf {
    places.volume(PLUGIN, volume)
}

/// Where a driver publishes a volume for a Pod.
pub(crate) fn target(places: &PodPlaces, volume: &str) -> PathBuf {
    directory(places, volume).join(MOUNT)
}

/// Notes a volume durably.
pub(super) fn write(directory: &Path, note: &Note) -> io::Result<()> {
    if read(directory)?.as_ref() == Some(note) {
        return Ok(());
    }
    let new = directory.join(".vol_data.json");
    let file = fs::File::create(&new)?;
    serde_json::to_writer(&file, note)?;
    file.sync_all()?;
    fs::rename(new, directory.join(FILE))
}

/// The note in a volume's directory. One that is no JSON counts as none: its mount goes with the Pod's directory.
pub(super) fn read(directory: &Path) -> io::Result<Option<Note>> {
    match fs::read(directory.join(FILE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
    }
}

/// The noted volumes of one Pod, with their directories.
pub(super) fn of_pod(places: &PodPlaces) -> io::Result<Vec<(PathBuf, Note)>> {
    let entries = match fs::read_dir(places.volumes(PLUGIN)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let Some(note) = read(&path)? {
            found.push((path, note));
        }
    }
    Ok(found)
}

/// Whether a Pod of the node has this volume noted.
pub(super) fn is_used(places: &Places, driver: &str, handle: &str) -> io::Result<bool> {
    for pod in places.all()? {
        if of_pod(&pod)?.iter().any(|(_, note)| note.is_of(driver, handle)) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uid::PodUid;

    #[test]
    fn what_is_noted_is_found_again_and_says_who_uses_a_volume() {
        let root = tempfile::tempdir().unwrap();
        let places = Places::new(root.path().into(), root.path().join("logs"));
        let pod = places.of(&PodUid::parse("uid").unwrap());
        assert_eq!(of_pod(&pod).unwrap(), []);
        let note = Note { volume_handle: "h".into(), driver_name: "d".into(), ..Note::default() };
        let directory = directory(&pod, "v");
        fs::create_dir_all(&directory).unwrap();
        write(&directory, &note).unwrap();
        write(&directory, &note).unwrap();
        assert_eq!(of_pod(&pod).unwrap(), [(directory.clone(), note)]);
        assert!(is_used(&places, "d", "h").unwrap());
        assert!(!is_used(&places, "d", "other").unwrap() && !is_used(&places, "other", "h").unwrap());
        fs::write(directory.join(FILE), "{\"volumeHan").unwrap();
        assert_eq!(of_pod(&pod).unwrap(), [], "a note that cannot be read stops nothing");
    }
}
