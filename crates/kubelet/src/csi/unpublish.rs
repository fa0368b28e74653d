//! Has drivers take back what they published for a Pod, and what they staged once nobody uses it any more.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Csi;
use super::driver::Driver;
use super::error::CsiError;
use super::note::{self, Note, PERSISTENT};
use crate::places::PodPlaces;
use crate::volume::mount::unmount_below;

impl Csi {
    /// Takes back all volumes of a Pod whose containers are gone.
    ///
    /// # Errors
    /// The first volume that its driver does not let go of; it is tried again.
    pub(crate) async fn unpublish(&self, places: &PodPlaces) -> Result<(), CsiError> {
        let own = places.clone();
        let noted = tokio::task::spawn_blocking(move || note::of_pod(&own)).await?;
        let noted = noted.map_err(CsiError::io("look for CSI volumes below", places.root()))?;
        for (directory, note) in noted {
            self.unpublish_one(directory, &note).await?;
        }
        Ok(())
    }

    async fn unpublish_one(&self, directory: PathBuf, note: &Note) -> Result<(), CsiError> {
        let (name, handle) = (&note.driver_name, &note.volume_handle);
        let driver = self.driver(name)?;
        let _lock = self.locks.take(name, handle).await;
        driver.unpublish(handle, &directory.join(note::MOUNT)).await?;
        let gone = directory.clone();
        let removed = tokio::task::spawn_blocking(move || remove(&gone));
        removed.await?.map_err(CsiError::io("remove", directory))?;
        if note.volume_lifecycle_mode == PERSISTENT && driver.can_stage() {
            self.unstage(&driver, handle).await?;
        }
        Ok(())
    }

    /// Unstages a volume unless another Pod of the node has it.
    async fn unstage(&self, driver: &Driver, handle: &str) -> Result<(), CsiError> {
        let (places, name, owned) = (self.places.clone(), driver.name.clone(), handle.to_owned());
        let is_used = tokio::task::spawn_blocking(move || note::is_used(&places, &name, &owned)).await?;
        if is_used.map_err(CsiError::io("look for users of the volume below", self.places.pods()))? {
            return Ok(());
        }
        let staging = self.staging(&driver.name, handle);
        driver.unstage(handle, &staging).await?;
        let volume = staging.parent().map_or_else(|| staging.clone(), Path::to_path_buf);
        let gone = volume.clone();
        tokio::task::spawn_blocking(move || remove(&gone)).await?.map_err(CsiError::io("remove", volume))
    }
}

/// Removes a volume's directory. Only empty directories and the note go: a driver that left its data there has not
/// unmounted it, and nothing is deleted through a mount.
fn remove(directory: &Path) -> io::Result<()> {
    unmount_below(directory)?;
    for name in [note::MOUNT, super::STAGED] {
        absent_is_fine(fs::remove_dir(directory.join(name)))?;
    }
    absent_is_fine(fs::remove_file(directory.join(note::FILE)))?;
    absent_is_fine(fs::remove_dir(directory))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
