//! `kakoi image`: through the daemon's CRI socket where one runs, so that there is one owner of the images; else on
//! the store itself.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::v1::{
    ImageSpec, ListImagesRequest, PullImageRequest, RemoveImageRequest,
    image_service_client::ImageServiceClient,
};
use image::{ImageRecord, ImageStore, LoadError, PullError, StoreError};
use serde::Serialize;
use tonic::metadata::MetadataValue;

use crate::cli::{ImageCommand, OutputFormat};
use crate::instance;
use crate::node;
use crate::output;
use crate::places::Places;

/// Why an image command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    #[error(transparent)]
    Lock(#[from] instance::LockError),
    #[error(transparent)]
    Connect(#[from] cri::ConnectError),
    #[error("{}", .0.message())]
    Daemon(#[from] Box<tonic::Status>),
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

/// A row of `kakoi image list`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    id: String,
    tags: Vec<String>,
    digests: Vec<String>,
    size: u64,
}

/// Runs an image command.
pub(crate) async fn run(places: &Places, command: &ImageCommand) -> Result<(), ImageError> {
    instance::require_root()?;
    if instance::holder(&places.run()).is_some() {
        return through_daemon(&places.cri_socket(), command).await;
    }
    let images = node::open_images(places)?;
    let done = on_store(&images, command).await;
    images.close().await;
    done
}

async fn through_daemon(socket: &Path, command: &ImageCommand) -> Result<(), ImageError> {
    let mut client = ImageServiceClient::new(cri::connect_unix(socket).await?);
    let refused = |status: tonic::Status| ImageError::Daemon(Box::new(status));
    match command {
        ImageCommand::Pull { reference } => {
            let image = Some(spec(reference));
            let request = PullImageRequest { image, ..PullImageRequest::default() };
            output::line(client.pull_image(request).await.map_err(refused)?.into_inner().image_ref);
        }
        ImageCommand::Load { path, name } => {
            let path = absolute(path)?;
            let image = Some(spec(name.as_deref().unwrap_or_default()));
            let mut request = tonic::Request::new(PullImageRequest { image, ..PullImageRequest::default() });
            let path = MetadataValue::from_bytes(path.as_os_str().as_bytes());
            request.metadata_mut().insert_bin(runtime::LOAD_FROM, path);
            output::line(client.pull_image(request).await.map_err(refused)?.into_inner().image_ref);
        }
        ImageCommand::List(format) => {
            let images = client.list_images(ListImagesRequest::default()).await.map_err(refused)?;
            let rows = images.into_inner().images.into_iter().map(|image| Row {
                id: image.id,
                tags: image.repo_tags,
                digests: image.repo_digests,
                size: image.size,
            });
            print(rows.collect(), format.output)?;
        }
        ImageCommand::Remove { reference } => {
            let request = RemoveImageRequest { image: Some(spec(reference)) };
            client.remove_image(request).await.map_err(refused)?;
        }
    }
    Ok(())
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..ImageSpec::default() }
}

async fn on_store(images: &ImageStore, command: &ImageCommand) -> Result<(), ImageError> {
    match command {
        ImageCommand::Pull { reference } => {
            let pulled = images.pull(reference, None, |_| {}).await;
            output::line(pulled?.id);
        }
        ImageCommand::Load { path, name } => {
            let loaded = images.load(&absolute(path)?, name.as_deref()).await;
            for image in loaded.map_err(Box::new)? {
                output::line(image.id);
            }
        }
        ImageCommand::List(format) => print(images.list().into_iter().map(row).collect(), format.output)?,
        ImageCommand::Remove { reference } => {
            if !images.remove(reference).await? {
                return Err(ImageError::NotFound(reference.clone()));
            }
        }
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf, ImageError> {
    path.canonicalize().map_err(|cause| ImageError::Path { path: path.to_owned(), cause })
}

fn row(image: ImageRecord) -> Row {
    Row { id: image.id, tags: image.repo_tags, digests: image.repo_digests, size: image.size }
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
        output::line(format!("{name:<50} {short:<14} {:>10}", size(row.size)));
    }
    Ok(())
}

/// Bytes as people read them: `145.2 MB`.
fn size(bytes: u64) -> String {
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
