//! Images from files: OCI layouts as directories or archives, and what `docker save` writes.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::watch;

use crate::config::ImageDocument;
use crate::digest::Digest;
use crate::error::{LoadError, PullError};
use crate::layout::{self, Layout};
use crate::manifest::{Descriptor, MAX_DOCUMENT};
use crate::pull::{ImagePlan, Job, LayerPlan, Progress, Puller};
use crate::reference::Reference;
use crate::source::{Candidate, Source};
use crate::store::{ImageRecord, Names, Scratch, Store};
use crate::unpack::unpack_carrier;

/// An image of `docker save`'s `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default, deserialize_with = "crate::manifest::or_null")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "crate::manifest::or_null")]
    layers: Vec<String>,
}

/// Loads all images of `path`.
pub(crate) async fn load(
    puller: &Puller,
    store: &Arc<Store>,
    path: &Path,
    name: Option<&str>,
) -> Result<Vec<ImageRecord>, LoadError> {
    let shown = path.display().to_string();
    let image = |source| LoadError::Image { path: shown.clone(), source: Box::new(source) };
    let name = name.map(str::parse::<Reference>).transpose().map_err(|error| image(error.into()))?;
    let meta = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    // Held until the images are in the store.
    let scratch;
    let dir = if meta.is_dir() {
        path
    } else {
        scratch = extract(puller, store, path).await?;
        scratch.path()
    };
    let loader = Loader { puller, dir, shown: shown.clone(), name };
    if dir.join("index.json").is_file() {
        loader.layout().await
    } else if dir.join("manifest.json").is_file() {
        loader.docker().await
    } else {
        Err(LoadError::Unknown { path: shown })
    }
}

async fn extract(puller: &Puller, store: &Arc<Store>, path: &Path) -> Result<Scratch, LoadError> {
    let (store, file) = (Arc::clone(store), path.to_owned());
    let extracted = puller.blocking(move || {
        let scratch = store.scratch().map_err(|error| image_error(&file, error.into()))?;
        let root = scratch.open().map_err(|error| image_error(&file, error.into()))?;
        let input = File::open(&file).map_err(|error| unreadable(&file, &error))?;
        unpack_carrier(input, root).map_err(|error| LoadError::Read {
            path: file.display().to_string(),
            cause: error.to_string(),
        })?;
        Ok(scratch)
    });
    extracted.await.map_err(|error| image_error(path, error))?
}

struct Loader<'a> {
    puller: &'a Puller,
    dir: &'a Path,
    shown: String,
    name: Option<Reference>,
}

impl Loader<'_> {
    async fn layout(&self) -> Result<Vec<ImageRecord>, LoadError> {
        let layout = Layout::new(self.dir.to_owned());
        let index = layout.index().await.map_err(|error| self.unreadable(error.to_string()))?;
        let source = Arc::new(Source::Layouts { place: self.shown.clone(), layouts: vec![layout] });
        let mut loaded = Vec::new();
        for entry in &index.manifests {
            let name = self.name_of(entry, index.manifests.len() == 1)?;
            let reference = format!("{}@{}", name.name(), entry.digest);
            let job = Job {
                reference: reference
                    .parse()
                    .map_err(|error: crate::ReferenceError| self.failed(error.into()))?,
                candidates: vec![Candidate::always(Arc::clone(&source))],
                names: Some(Names { tag: name.repo_tag(), digest: Some(name.repo_digest(&entry.digest)) }),
                progress: watch::Sender::new(Progress::default()),
            };
            loaded.push(self.puller.pull(&job).await.map_err(|error| self.failed(error))?);
        }
        Ok(loaded)
    }

    fn name_of(&self, entry: &Descriptor, is_only: bool) -> Result<Reference, LoadError> {
        let given = self.name.clone().filter(|_| is_only);
        let own = || layout::names_of(entry).into_iter().next();
        // A tag alone belongs to a repository that only the directory's name tells.
        let by_directory = || {
            let directory = Path::new(&self.shown);
            let name = directory.file_name()?.to_str().filter(|_| directory.is_dir())?;
            format!("{name}:{}", layout::tag_of(entry)?).parse().ok()
        };
        given.or_else(own).or_else(by_directory).ok_or_else(|| LoadError::NoName { path: self.shown.clone() })
    }

    async fn docker(&self) -> Result<Vec<ImageRecord>, LoadError> {
        let saved: Vec<Saved> = self.json("manifest.json")?;
        let mut loaded = Vec::new();
        for image in &saved {
            let given = self.name.iter().filter(|_| saved.len() == 1).cloned();
            let own = image.repo_tags.iter().filter_map(|name| name.parse().ok());
            let names: Vec<Reference> = if self.name.is_some() { given.collect() } else { own.collect() };
            if names.is_empty() {
                return Err(LoadError::NoName { path: self.shown.clone() });
            }
            let mut record = None;
            for name in &names {
                record = Some(self.saved_image(image, name).await?);
            }
            loaded.extend(record);
        }
        Ok(loaded)
    }

    async fn saved_image(&self, image: &Saved, name: &Reference) -> Result<ImageRecord, LoadError> {
        let bytes = self.read(&image.config)?;
        let document: ImageDocument = serde_json::from_slice(&bytes)
            .map_err(|error| self.unreadable(format!("{}: {error}", image.config)))?;
        let diff_ids = &document.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() {
            let reason = format!("it has {} layers and names {}", image.layers.len(), diff_ids.len());
            return Err(self.failed(PullError::Image { reference: name.to_string(), reason }));
        }
        let mut files = HashMap::new();
        let mut layers = Vec::new();
        let mut download_size = bytes.len() as u64;
        for (diff_id, layer) in diff_ids.iter().zip(&image.layers) {
            let file = self.inside(layer)?;
            let size =
                std::fs::metadata(&file).map_err(|error| self.unreadable(format!("{layer}: {error}")))?.len();
            download_size += size;
            files.insert(diff_id.clone(), file);
            layers.push(LayerPlan {
                diff_id: diff_id.clone(),
                blob: address(diff_id, size),
                is_promised: false,
            });
        }
        let plan = ImagePlan {
            reference: name.to_string(),
            id: Digest::of(&bytes),
            document,
            layers,
            download_size,
            names: Names { tag: name.repo_tag(), digest: None },
        };
        let source = Arc::new(Source::Files { place: self.shown.clone(), files });
        let progress = watch::Sender::new(Progress::default());
        self.puller.install(plan, &[source], &progress).await.map_err(|error| self.failed(error))
    }

    fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T, LoadError> {
        let bytes = self.read(name)?;
        serde_json::from_slice(&bytes).map_err(|error| self.unreadable(format!("{name}: {error}")))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, LoadError> {
        let path = self.inside(name)?;
        let size =
            std::fs::metadata(&path).map_err(|error| self.unreadable(format!("{name}: {error}")))?.len();
        if size > MAX_DOCUMENT {
            return Err(self.unreadable(format!("{name} has {size} bytes; at most 8 MiB is read")));
        }
        std::fs::read(&path).map_err(|error| self.unreadable(format!("{name}: {error}")))
    }

    /// A file named in the archive, which must be in it: symbolic links of old archives are followed, not out.
    fn inside(&self, name: &str) -> Result<PathBuf, LoadError> {
        let refused = |error: std::io::Error| self.unreadable(format!("{name}: {error}"));
        let dir = self.dir.canonicalize().map_err(refused)?;
        let file = dir.join(name).canonicalize().map_err(refused)?;
        if file.starts_with(&dir) {
            return Ok(file);
        }
        Err(self.unreadable(format!("`{name}` leads out of the archive")))
    }

    fn unreadable(&self, cause: String) -> LoadError {
        LoadError::Read { path: self.shown.clone(), cause }
    }

    fn failed(&self, source: PullError) -> LoadError {
        LoadError::Image { path: self.shown.clone(), source: Box::new(source) }
    }
}

fn address(diff_id: &Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: String::new(),
        digest: diff_id.clone(),
        size,
        platform: None,
        annotations: std::collections::BTreeMap::new(),
    }
}

fn unreadable(path: &Path, error: &std::io::Error) -> LoadError {
    LoadError::Read { path: path.display().to_string(), cause: error.to_string() }
}

fn image_error(path: &Path, source: PullError) -> LoadError {
    LoadError::Image { path: path.display().to_string(), source: Box::new(source) }
}
