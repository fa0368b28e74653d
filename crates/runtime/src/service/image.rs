//! `runtime.v1.ImageService`.

use std::collections::BTreeMap;

use cri::v1::image_service_server::ImageService;
#[allow(clippy::wildcard_imports, reason = "a service names most messages of its package")]
use cri::v1::*;
use image::{ImageRecord, RegistryAuth};
use tonic::{Request, Response, Status};

use super::{ImageServer, list};
use crate::core::{blocking, containers_dir, now};
use crate::error::{Error, Result as Outcome};

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ImageService for ImageServer {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Ok(Response::new(ListImagesResponse { images: self.images(request.into_inner().filter) }))
    }

    async fn stream_images(
        &self,
        request: Request<StreamImagesRequest>,
    ) -> list::Answer<StreamImagesResponse> {
        let images = self.images(request.into_inner().filter);
        Ok(list::stream(images, |images| StreamImagesResponse { images }))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let request = request.into_inner();
        let name = name(request.image)?;
        let found = self.0.config.images.resolve(&name);
        if let (None, Err(error)) = (&found, name.parse::<image::Reference>()) {
            return Err(Error::Invalid(error.to_string()).into());
        }
        let mut info = BTreeMap::new();
        if let Some(record) = found.as_ref().filter(|_| request.verbose) {
            let detail =
                serde_json::json!({ "imageSpec": { "config": record.config }, "created": record.created });
            info.insert("info".to_owned(), detail.to_string());
        }
        Ok(Response::new(ImageStatusResponse { image: found.as_ref().map(describe), info }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let request = request.into_inner();
        let name = name(request.image)?;
        let auth = request.auth.map(credentials).transpose()?.flatten();
        let images = std::sync::Arc::clone(&self.0.config.images);
        let pulled = images.pull(&name, auth, |_| {}).await;
        let record = pulled.map_err(|error| refused(&error))?;
        Ok(Response::new(PullImageResponse { image_ref: record.id }))
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let name = name(request.into_inner().image)?;
        let removed = self.0.config.images.remove(&name).await;
        removed.map_err(|error| Error::failed(format!("remove the image {name}"), error))?;
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        let images = &self.0.config.images;
        let usage = images.usage();
        let of_images = filesystem(&images.layers_dir(), usage.bytes, usage.inodes);
        let directory = containers_dir(&self.0.config.state_dir);
        let (bytes, inodes) = blocking({
            let directory = directory.clone();
            move || Ok(crate::stats::disk_usage(&directory))
        })
        .await?;
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![of_images],
            container_filesystems: vec![filesystem(&directory, bytes, inodes)],
        }))
    }
}

impl ImageServer {
    fn images(&self, filter: Option<ImageFilter>) -> Vec<Image> {
        let wanted = filter.and_then(|filter| filter.image).map(|spec| spec.image);
        let images = match wanted.filter(|name| !name.is_empty()) {
            Some(name) => self.0.config.images.resolve(&name).into_iter().collect(),
            None => self.0.config.images.list(),
        };
        images.iter().map(describe).collect()
    }
}

fn name(spec: Option<ImageSpec>) -> Outcome<String> {
    let name = spec.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() { Err(Error::missing("image.image")) } else { Ok(name) }
}

fn filesystem(directory: &std::path::Path, bytes: u64, inodes: u64) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: now(),
        fs_id: Some(FilesystemIdentifier { mountpoint: directory.to_string_lossy().into_owned() }),
        used_bytes: Some(UInt64Value { value: bytes }),
        inodes_used: Some(UInt64Value { value: inodes }),
    }
}

/// An image with the user it runs as, which the kubelet needs for `runAsNonRoot`.
fn describe(record: &ImageRecord) -> Image {
    let user = record.config.user.split(':').next().unwrap_or_default();
    let (uid, username) = match user.parse::<i64>() {
        Ok(value) => (Some(Int64Value { value }), String::new()),
        Err(_) if user.is_empty() => (Some(Int64Value { value: 0 }), String::new()),
        Err(_) => (None, user.to_owned()),
    };
    Image {
        id: record.id.clone(),
        repo_tags: record.repo_tags.clone(),
        repo_digests: record.repo_digests.clone(),
        size: record.size,
        uid,
        username,
        spec: Some(ImageSpec { image: record.id.clone(), ..ImageSpec::default() }),
        pinned: record.is_pinned,
    }
}

/// The request's credentials, whichever of its forms they come in.
pub(crate) fn credentials(auth: AuthConfig) -> Outcome<Option<RegistryAuth>> {
    use base64::Engine as _;

    if !auth.registry_token.is_empty() {
        return Ok(Some(RegistryAuth::RegistryToken(auth.registry_token)));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(RegistryAuth::IdentityToken(auth.identity_token)));
    }
    if !auth.username.is_empty() {
        return Ok(Some(RegistryAuth::Basic { username: auth.username, password: auth.password }));
    }
    if auth.auth.is_empty() {
        return Ok(None);
    }
    let wrong = || Error::Invalid("the request's `auth` is not base64 of `user:password`".to_owned());
    let text = base64::engine::general_purpose::STANDARD
        .decode(auth.auth.trim_end_matches('\0'))
        .map_err(|_| wrong())?;
    let text = String::from_utf8(text).map_err(|_| wrong())?;
    let (username, password) = text.split_once(':').ok_or_else(wrong)?;
    let password = password.trim_end_matches('\0').to_owned();
    Ok(Some(RegistryAuth::Basic { username: username.to_owned(), password }))
}

/// A failed pull, by the code from which the kubelet tells what to do.
pub(super) fn refused(error: &image::PullError) -> Status {
    use image::PullErrorKind as Kind;

    let code = match error.kind() {
        Kind::NotFound => tonic::Code::NotFound,
        Kind::Unauthorized => tonic::Code::Unauthenticated,
        Kind::Invalid => tonic::Code::InvalidArgument,
        Kind::Unavailable => tonic::Code::Unavailable,
        _ => tonic::Code::Unknown,
    };
    Status::new(code, error.to_string())
}
