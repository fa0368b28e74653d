//! `kakoi.v1.Images`: what `kakoi image` asks of the runtime and CRI has no call for.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cri::kakoi::images_server::Images;
use cri::kakoi::{LoadRequest, LoadResponse, PinRequest, PinResponse, PullProgress, PullRequest};
use image::Progress;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::ImageServer;
use super::image::refused;
use super::list;
use crate::error::Error;

/// How often a pull says how far it is: often enough for eyes.
const INTERVAL: Duration = Duration::from_millis(100);

/// Messages that wait for a slow reader; what comes while it is full is left out, the last one never.
const AHEAD: usize = 4;

#[tonic::async_trait]
impl Images for ImageServer {
    /// Pulls as `PullImage` does. Ends when the caller goes away and nobody else waits for the same image.
    async fn pull(&self, request: Request<PullRequest>) -> list::Answer<PullProgress> {
        let name = request.into_inner().image;
        let images = Arc::clone(&self.0.config.images);
        let shutdown = self.0.shutdown.clone();
        let (sender, receiver) = mpsc::channel(AHEAD);
        self.0.tasks.spawn(async move {
            let (mut now, mut last) = (Progress::default(), None::<Instant>);
            let tell = |progress: Progress| {
                now = progress;
                if last.is_none_or(|at| at.elapsed() >= INTERVAL) {
                    last = Some(Instant::now());
                    // A reader who is behind sees a later one.
                    let _ = sender.try_send(Ok(message(progress)));
                }
            };
            let pulled = tokio::select! {
                pulled = images.pull(&name, None, tell) => pulled,
                () = sender.closed() => return,
                // The caller hears of no end and can say so: a registry that hangs must not hold the daemon.
                () = shutdown.cancelled() => return,
            };
            let end = pulled.map(|record| PullProgress { image_id: record.id, ..message(now) });
            // The caller may have gone away now: the image is here all the same.
            let _ = sender.send(end.map_err(|error| refused(&error))).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn load(&self, request: Request<LoadRequest>) -> Result<Response<LoadResponse>, Status> {
        let LoadRequest { path, name } = request.into_inner();
        let path = Path::new(OsStr::from_bytes(&path));
        let loaded =
            self.0.config.images.load(path, Some(name.as_str()).filter(|name| !name.is_empty())).await;
        let loaded =
            loaded.map_err(|error| Error::failed(format!("load images from {}", path.display()), error))?;
        Ok(Response::new(LoadResponse { image_ids: loaded.into_iter().map(|record| record.id).collect() }))
    }

    async fn pin(&self, request: Request<PinRequest>) -> Result<Response<PinResponse>, Status> {
        let PinRequest { image, pinned } = request.into_inner();
        let found = self.0.config.images.set_pinned(&image, pinned).await;
        let found = found.map_err(|error| Error::failed(format!("pin the image {image}"), error))?;
        if found {
            Ok(Response::new(PinResponse {}))
        } else {
            Err(Error::NotFound { what: "image", id: image }.into())
        }
    }
}

fn message(progress: Progress) -> PullProgress {
    PullProgress {
        layers: progress.layers as u64,
        layers_done: progress.layers_done as u64,
        bytes: progress.bytes,
        bytes_done: progress.bytes_done,
        image_id: String::new(),
    }
}
