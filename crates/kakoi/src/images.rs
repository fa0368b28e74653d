//! `kakoi image`: through the daemon's CRI socket where one runs, so that there is one owner of the images; else on
//! the store itself.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::ImageClient;
use cri::kakoi::images_client::ImagesClient;
use cri::kakoi::{LoadRequest, PinRequest, PullProgress, PullRequest};
use cri::v1::{ImageSpec, ImageStatusRequest, ListImagesRequest, RemoveImageRequest};
use image::{ImageRecord, ImageStore, LoadError, PullError, StoreError};
use serde::Serialize;
use tonic::transport::Channel;

use crate::cli::{ImageCommand, OutputFormat};
use crate::instance;
use crate::node;
use crate::output;
use crate::places::Places;
use crate::progress::Shown;

/// Why an image command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(transparent)]
    Lock(#[from] instance::LockError),
    #[error(transparent)]
    Connect(#[from] cri::ConnectError),
    #[error("{}", .0.message())]
    Daemon(Box<tonic::Status>),
    #[error("the daemon ended before the image was there; pull it again when it runs")]
    Ended,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Pull(#[from] Arc<PullError>),
    #[error(transparent)]
    Load(#[from] Box<LoadError>),
    #[error("no image `{0}`; `kakoi image list` shows what there is")]
    NotFound(String),
    #[error("can't use {}: {cause}", .path.display())]
    Path { path: PathBuf, cause: std::io::Error },
    #[error("can't print as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl From<tonic::Status> for ImageError {
    fn from(status: tonic::Status) -> Self {
        Self::Daemon(Box::new(status))
    }
}

/// A row of `kakoi image list`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    tags: Vec<String>,
    digests: Vec<String>,
    size: u64,
    pinned: bool,
}

/// Runs an image command.
pub(crate) async fn run(places: &Places, command: &ImageCommand) -> Result<(), ImageError> {
    instance::require_root()?;
    if instance::holder(&places.run()).is_some() {
        let channel = cri::connect_unix(&places.cri_socket()).await?;
        let images = Box::new(cri::image_client(channel.clone()));
        return Images::Daemon { images, own: ImagesClient::new(channel) }.run(command).await;
    }
    let store = node::open_images(places)?;
    let done = Images::Store(Arc::clone(&store)).run(command).await;
    store.close().await;
    done
}

/// Whoever owns the images.
enum Images {
    Daemon { images: Box<ImageClient>, own: ImagesClient<Channel> },
    Store(Arc<ImageStore>),
}

impl Images {
    async fn run(mut self, command: &ImageCommand) -> Result<(), ImageError> {
        match command {
            ImageCommand::Pull { reference } => output::line(self.pull(reference).await?),
            ImageCommand::Load { path, name } => {
                for id in self.load(&absolute(path)?, name.as_deref()).await? {
                    output::line(id);
                }
            }
            ImageCommand::List(format) => print(self.list().await?, format.output)?,
            ImageCommand::Remove { reference } => self.remove(reference).await?,
            ImageCommand::Pin { reference } => self.set_pinned(reference, true).await?,
            ImageCommand::Unpin { reference } => self.set_pinned(reference, false).await?,
        }
        Ok(())
    }

    async fn pull(&mut self, reference: &str) -> Result<String, ImageError> {
        let mut shown = Shown::of(reference);
        match self {
            Self::Daemon { own, .. } => {
                let request = PullRequest { image: reference.to_owned() };
                let mut messages = own.pull(request).await?.into_inner();
                while let Some(message) = messages.message().await? {
                    shown.tell(progress(&message));
                    if !message.image_id.is_empty() {
                        return Ok(message.image_id);
                    }
                }
                Err(ImageError::Ended)
            }
            Self::Store(store) => Ok(store.pull(reference, None, |now| shown.tell(now)).await?.id),
        }
    }

    async fn load(&mut self, path: &Path, name: Option<&str>) -> Result<Vec<String>, ImageError> {
        match self {
            Self::Daemon { own, .. } => {
                let path = path.as_os_str().as_bytes().to_vec();
                let request = LoadRequest { path, name: name.unwrap_or_default().to_owned() };
                Ok(own.load(request).await?.into_inner().image_ids)
            }
            Self::Store(store) => {
                let loaded = store.load(path, name).await.map_err(Box::new)?;
                Ok(loaded.into_iter().map(|image| image.id).collect())
            }
        }
    }

    async fn list(&mut self) -> Result<Vec<Row>, ImageError> {
        match self {
            Self::Daemon { images, .. } => {
                let listed = images.list_images(ListImagesRequest::default()).await?.into_inner().images;
                let row = |image: cri::v1::Image| Row {
                    id: image.id,
                    tags: image.repo_tags,
                    digests: image.repo_digests,
                    size: image.size,
                    pinned: image.pinned,
                };
                Ok(listed.into_iter().map(row).collect())
            }
            Self::Store(store) => Ok(store.list().into_iter().map(row).collect()),
        }
    }

    async fn remove(&mut self, reference: &str) -> Result<(), ImageError> {
        let is_removed = match self {
            Self::Daemon { images, .. } => {
                // CRI's call is silent about an image that is not there; a person who mistyped its name is told.
                let image = Some(ImageSpec { image: reference.to_owned(), ..ImageSpec::default() });
                let status = ImageStatusRequest { image: image.clone(), verbose: false };
                let is_here = images.image_status(status).await?.into_inner().image.is_some();
                images.remove_image(RemoveImageRequest { image }).await?;
                is_here
            }
            Self::Store(store) => store.remove(reference).await?,
        };
        found(is_removed, reference)
    }

    async fn set_pinned(&mut self, reference: &str, pinned: bool) -> Result<(), ImageError> {
        let is_found = match self {
            Self::Daemon { own, .. } => {
                match own.pin(PinRequest { image: reference.to_owned(), pinned }).await {
                    Err(status) if status.code() == tonic::Code::NotFound => false,
                    answer => answer.map(|_| true)?,
                }
            }
            Self::Store(store) => store.set_pinned(reference, pinned).await?,
        };
        found(is_found, reference)
    }
}

fn found(is_found: bool, reference: &str) -> Result<(), ImageError> {
    if is_found { Ok(()) } else { Err(ImageError::NotFound(reference.to_owned())) }
}

/// What the daemon says of a pull, in the store's words.
fn progress(message: &PullProgress) -> image::Progress {
    let count = |layers: u64| usize::try_from(layers).unwrap_or(usize::MAX);
    image::Progress {
        layers: count(message.layers),
        layers_done: count(message.layers_done),
        bytes: message.bytes,
        bytes_done: message.bytes_done,
    }
}

fn absolute(path: &Path) -> Result<PathBuf, ImageError> {
    path.canonicalize().map_err(|cause| ImageError::Path { path: path.to_owned(), cause })
}

fn row(image: ImageRecord) -> Row {
    Row {
        id: image.id,
        tags: image.repo_tags,
        digests: image.repo_digests,
        size: image.size,
        pinned: image.is_pinned,
    }
}

fn print(mut rows: Vec<Row>, format: OutputFormat) -> Result<(), ImageError> {
    rows.sort_by(|a, b| (&a.tags, &a.id).cmp(&(&b.tags, &b.id)));
    if format == OutputFormat::Json {
        output::line(serde_json::to_string_pretty(&rows)?);
        return Ok(());
    }
    output::line(format!("{:<50} {:<14} {:>10}", "IMAGE", "ID", "SIZE"));
    for row in rows {
        let name = row.tags.first().or_else(|| row.digests.first()).map_or("<none>", String::as_str);
        let id = row.id.strip_prefix("sha256:").unwrap_or(&row.id);
        let short: String = id.chars().take(12).collect();
        let pinned = if row.pinned { "  pinned" } else { "" };
        output::line(format!("{name:<50} {short:<14} {:>10}{pinned}", size(row.size)));
    }
    Ok(())
}

/// Bytes as people read them: `145.2 MB`.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["kB", "MB", "GB"];
    let (mut whole, mut tenths, mut unit) = (bytes, 0, "B");
    for next in units {
        if whole < 1000 {
            break;
        }
        (tenths, whole, unit) = (whole % 1000 / 100, whole / 1000, next);
    }
    if unit == "B" { format!("{whole} B") } else { format!("{whole}.{tenths} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_by_people() {
        assert_eq!(size(999), "999 B");
        assert_eq!(size(145_210_000), "145.2 MB");
        assert_eq!(size(2_900_000_000), "2.9 GB");
    }
}
