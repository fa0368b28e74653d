//! The node's images: records and unpacked layers on disk, found again after a crash at any instruction.
//!
//! ```text
//! <dir>/                 0700: set-ID files of images are out of other users' reach
//!   lock                 held by the process that uses the store
//!   layers/<number>/     one unpacked layer each, in overlayfs' form
//!   layer-records/<number>.json   or <number>.<boot>.json until the layer is on the disk
//!   images/<config digest>.json
//!   tmp/                 what is being made; emptied at open
//! ```
//! A layer or an image exists when its record does: the record is written last and removed first.

mod disk;
mod layer;
mod record;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use disk::StoreError;
pub(crate) use disk::{Scratch, open_directory};
pub(crate) use layer::{LayerPin, LayerSize, NewLayer};
pub use record::ImageRecord;

use crate::digest::Digest;
use crate::reference::Reference;
use disk::{Disk, Durable, Unsettled};
use layer::{Layer, LayerNumber};
use record::StoredImage;

/// What all images together take on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes, in whole blocks; a layer that two images share counts once.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// Records and layers; what is behind [`crate::ImageStore`].
#[derive(Debug)]
pub(crate) struct Store {
    disk: Disk,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    images: BTreeMap<String, StoredImage>,
    layers: HashMap<String, Layer>,
    pins: HashMap<LayerNumber, usize>,
    /// Layers that may be in memory alone and that nobody is making durable.
    unsettled: Vec<Unsettled>,
    next: u64,
}

impl Store {
    /// Opens the store in `dir`, makes it if it is not there, and removes what a crash left half done.
    pub(crate) fn open(dir: &Path) -> Result<Arc<Self>, StoreError> {
        let disk = Disk::open(dir)?;
        let (layers, unsettled) = disk.read_layers()?;
        let mut images = BTreeMap::new();
        for image in disk.read_images()? {
            let known = image.layers.iter().all(|number| layers.iter().any(|layer| layer.number == *number));
            if known {
                images.insert(image.id.clone(), image);
            } else {
                tracing::warn!(image = %image.id, "a layer of the image is gone; it must be pulled again");
                disk.remove_image(&image.id)?;
            }
        }
        let next = layers.iter().map(|layer| layer.number.0).max().unwrap_or(0) + 1;
        let layers = layers.into_iter().map(|layer| (layer.key.clone(), layer)).collect();
        let state = State { images, layers, pins: HashMap::new(), unsettled, next };
        Ok(Arc::new(Self { disk, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the maps half changed: every change is one insertion or removal.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The parent of all unpacked layers.
    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.disk.layers_dir()
    }

    /// A directory of its own below `tmp/`, removed when dropped.
    pub(crate) fn scratch(&self) -> Result<disk::Scratch, StoreError> {
        let number = {
            let mut state = self.state();
            state.next += 1;
            state.next
        };
        self.disk.scratch(number)
    }

    /// All images, by ID.
    pub(crate) fn list(&self) -> Vec<ImageRecord> {
        let state = self.state();
        state.images.values().map(|image| self.record(&state, image)).collect()
    }

    /// The image that a reference, an ID or the unambiguous beginning of an ID means.
    pub(crate) fn resolve(&self, name: &str) -> Option<ImageRecord> {
        let state = self.state();
        let image = find(&state, name)?;
        Some(self.record(&state, image))
    }

    fn record(&self, state: &State, image: &StoredImage) -> ImageRecord {
        let layers_dir = self.layers_dir();
        let sizes: Vec<LayerSize> = image
            .layers
            .iter()
            .filter_map(|number| state.layers.values().find(|layer| layer.number == *number))
            .map(|layer| layer.size)
            .collect();
        ImageRecord {
            id: image.id.clone(),
            repo_tags: image.repo_tags.clone(),
            repo_digests: image.repo_digests.clone(),
            size: sizes.iter().map(|size| size.bytes).sum(),
            highest_id: sizes.iter().map(|size| size.highest_id).max().unwrap_or(0),
            download_size: image.download_size,
            created: image.created.clone(),
            platform: image.platform.clone(),
            config: image.config.clone(),
            is_pinned: image.is_pinned,
            layers: image.layers.iter().map(|number| layers_dir.join(number.to_string())).collect(),
        }
    }

    /// What all layers take.
    pub(crate) fn usage(&self) -> Usage {
        self.state().layers.values().fold(Usage::default(), |sum, layer| Usage {
            bytes: sum.bytes + layer.size.bytes,
            inodes: sum.inodes + layer.size.inodes,
        })
    }

    /// Holds the layer with this key, if it is there, against collection.
    pub(crate) fn hold(self: &Arc<Self>, key: &str) -> Option<LayerPin> {
        let mut state = self.state();
        let number = state.layers.get(key)?.number;
        *state.pins.entry(number).or_default() += 1;
        Some(LayerPin::new(Arc::clone(self), vec![number]))
    }

    /// Holds the layers in these directories; what is not a layer of this store is left out.
    pub(crate) fn hold_paths(self: &Arc<Self>, layers: &[PathBuf]) -> LayerPin {
        let dir = self.layers_dir();
        let numbers: Vec<_> = layers
            .iter()
            .filter(|path| path.parent() == Some(dir.as_path()))
            .filter_map(|path| path.file_name()?.to_str()?.parse().ok().map(LayerNumber))
            .collect();
        let mut state = self.state();
        for number in &numbers {
            *state.pins.entry(*number).or_default() += 1;
        }
        drop(state);
        LayerPin::new(Arc::clone(self), numbers)
    }

    fn release(&self, numbers: &[LayerNumber]) {
        let mut state = self.state();
        for number in numbers {
            if let Some(count) = state.pins.get_mut(number) {
                *count -= 1;
                if *count == 0 {
                    state.pins.remove(number);
                }
            }
        }
    }

    /// Makes an unpacked tree a layer of the store and holds it. It is durable with [`Store::make_durable`].
    pub(crate) fn publish(self: &Arc<Self>, new: NewLayer) -> Result<LayerPin, StoreError> {
        if let Some(pin) = self.hold(&new.key) {
            return Ok(pin);
        }
        let number = {
            let mut state = self.state();
            state.next += 1;
            LayerNumber(state.next)
        };
        let layer = Layer { number, key: new.key, size: new.size };
        let unsettled = self.disk.publish(new.scratch, &layer)?;
        let mut state = self.state();
        state.unsettled.push(unsettled);
        *state.pins.entry(number).or_default() += 1;
        state.layers.insert(layer.key.clone(), layer);
        drop(state);
        Ok(LayerPin::new(Arc::clone(self), vec![number]))
    }

    /// Waits until all layers that were published are on the disk, and those images with them. One that the disk refused
    /// is there until the machine goes down. Blocks on the disk for as long as it takes to write them.
    pub(crate) fn make_durable(&self) -> Result<(), StoreError> {
        let unsettled = std::mem::take(&mut self.state().unsettled);
        if unsettled.is_empty() {
            return Ok(());
        }
        let mut outcome = Ok(());
        for layer in unsettled {
            if let Err(error) = self.disk.sync_layer(&layer).and_then(|()| self.settle(layer.number)) {
                outcome = Err(error);
            }
        }
        let recorded = self.disk.sync_layer_records();
        outcome.and(recorded)
    }

    /// The lock is held: a layer that is being removed must not get its record back.
    fn settle(&self, number: LayerNumber) -> Result<(), StoreError> {
        let state = self.state();
        let is_known = state.layers.values().any(|layer| layer.number == number);
        if is_known { self.disk.settle(number) } else { Ok(()) }
    }

    /// Adds an image whose layers are held by `pins`, or more names for one that is known. Blocks on the disk.
    pub(crate) fn add(&self, mut image: StoredImage, names: &Names) -> Result<ImageRecord, StoreError> {
        let mut state = self.state();
        // A new image lasts no longer than its layers.
        let is_unsettled = state.unsettled.iter().any(|layer| image.layers.contains(&layer.number));
        let mut durable = if is_unsettled { Durable::Later } else { Durable::Now };
        if let Some(known) = state.images.get(&image.id) {
            image.repo_tags.clone_from(&known.repo_tags);
            image.repo_digests.clone_from(&known.repo_digests);
            image.is_pinned = known.is_pinned;
            durable = Durable::Now;
        }
        push_new(&mut image.repo_tags, names.tag.as_ref());
        push_new(&mut image.repo_digests, names.digest.as_ref());
        self.disk.write_image(&image, durable)?;
        let moved: Vec<StoredImage> = state
            .images
            .values()
            .filter(|other| other.id != image.id && names.tag.iter().any(|tag| other.repo_tags.contains(tag)))
            .cloned()
            .collect();
        for mut other in moved {
            other.repo_tags.retain(|tag| Some(tag) != names.tag.as_ref());
            self.disk.write_image(&other, Durable::Now)?;
            state.images.insert(other.id.clone(), other);
        }
        let record = self.record(&state, &image);
        state.images.insert(image.id.clone(), image);
        Ok(record)
    }

    /// Keeps an image from being collected by kubelets, or no longer. `false`: there is none.
    pub(crate) fn set_pinned(&self, name: &str, is_pinned: bool) -> Result<bool, StoreError> {
        let mut state = self.state();
        let Some(mut image) = find(&state, name).cloned() else { return Ok(false) };
        image.is_pinned = is_pinned;
        self.disk.write_image(&image, Durable::Now)?;
        state.images.insert(image.id.clone(), image);
        Ok(true)
    }

    /// Forgets an image; its layers go with the next collection. `false`: there was none.
    pub(crate) fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let mut state = self.state();
        let Some(id) = find(&state, name).map(|image| image.id.clone()) else { return Ok(false) };
        self.disk.remove_image(&id)?;
        state.images.remove(&id);
        Ok(true)
    }

    /// Takes one name from an image; with its last name the image goes. `false`: no image has it.
    pub(crate) fn untag(&self, reference: &Reference) -> Result<bool, StoreError> {
        let name = reference.to_string();
        let mut state = self.state();
        let Some(mut image) = find(&state, &name).cloned() else { return Ok(false) };
        image.repo_tags.retain(|tag| *tag != name);
        image.repo_digests.retain(|digest| *digest != name);
        if image.repo_tags.is_empty() {
            self.disk.remove_image(&image.id)?;
            state.images.remove(&image.id);
        } else {
            self.disk.write_image(&image, Durable::Now)?;
            state.images.insert(image.id.clone(), image);
        }
        Ok(true)
    }

    /// Removes the layers that no image has and nobody holds; gives the bytes freed. Blocks on the disk.
    pub(crate) fn collect(&self) -> Result<u64, StoreError> {
        let unused: Vec<Layer> = {
            let mut state = self.state();
            let used: std::collections::BTreeSet<LayerNumber> =
                state.images.values().flat_map(|image| image.layers.iter().copied()).collect();
            let is_free =
                |layer: &Layer| !used.contains(&layer.number) && !state.pins.contains_key(&layer.number);
            let keys: Vec<_> =
                state.layers.values().filter(|layer| is_free(layer)).map(|layer| layer.key.clone()).collect();
            keys.iter().filter_map(|key| state.layers.remove(key)).collect()
        };
        let mut freed = 0;
        for layer in unused {
            self.disk.remove_layer(layer.number)?;
            freed += layer.size.bytes;
        }
        Ok(freed)
    }
}

/// The names under which an image was pulled or loaded.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    /// `docker.io/library/nginx:latest`.
    pub(crate) tag: Option<String>,
    /// `docker.io/library/nginx@sha256:…`.
    pub(crate) digest: Option<String>,
}

pub(crate) use record::StoredImage as NewImage;

fn push_new(list: &mut Vec<String>, name: Option<&String>) {
    if let Some(name) = name.filter(|name| !list.contains(name)) {
        list.push(name.clone());
    }
}

fn find<'s>(state: &'s State, name: &str) -> Option<&'s StoredImage> {
    if let Some(image) = state.images.get(name) {
        return Some(image);
    }
    if let Ok(reference) = name.parse::<Reference>()
        && let Some(image) = find_reference(state, &reference)
    {
        return Some(image);
    }
    let beginning = format!("sha256:{}", name.strip_prefix("sha256:").unwrap_or(name));
    let is_hex = beginning.bytes().skip(7).all(|byte| byte.is_ascii_hexdigit());
    let mut fitting =
        state.images.range(beginning.clone()..).take_while(|(id, _)| id.starts_with(&beginning));
    match (fitting.next(), fitting.next()) {
        (Some((_, image)), None) if is_hex && beginning.len() >= 7 + 4 => Some(image),
        _ => None,
    }
}

fn find_reference<'s>(state: &'s State, reference: &Reference) -> Option<&'s StoredImage> {
    let has = |image: &&StoredImage| match reference.digest() {
        Some(digest) => image.repo_digests.contains(&reference.repo_digest(digest)),
        None => reference.repo_tag().is_some_and(|tag| image.repo_tags.contains(&tag)),
    };
    state.images.values().find(has)
}

/// The key of a layer that lies on nothing in particular.
pub(crate) fn key_of(diff_id: &Digest) -> String {
    diff_id.to_string()
}

/// The key of a layer whose tree depends on those below: OCI's chain ID.
pub(crate) fn chain_key(diff_ids: &[Digest]) -> String {
    let chain = diff_ids.iter().fold(String::new(), |below, diff_id| {
        if below.is_empty() {
            diff_id.to_string()
        } else {
            Digest::of(format!("{below} {diff_id}").as_bytes()).to_string()
        }
    });
    format!("chain:{chain}")
}

#[cfg(test)]
mod tests;
