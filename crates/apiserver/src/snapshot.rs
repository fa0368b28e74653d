//! `/kakoi/snapshot`: the whole store at one revision, as one stream of bytes. It holds Secrets: like every path, it is
//! for those whom a role lets read it, which is `cluster-admin` alone from the start.

use std::io::{self, BufWriter, Write};
use std::sync::Arc;
use std::time::Duration;

use api::status::Status;
use bytes::Bytes;
use futures::StreamExt as _;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, Sender};

use crate::BoxError;
use crate::response::ResponseBody;
use crate::server::Server;

/// The path.
pub const PATH: &str = "/kakoi/snapshot";
/// Bytes of one frame.
const FRAME: usize = 64 * 1024;
/// Frames that wait for the client.
const AHEAD: usize = 4;
/// How long the client may read nothing. Meanwhile the store keeps what it would give up.
const PATIENCE: Duration = Duration::from_mins(1);

/// Begins a snapshot; one is taken at a time.
pub(crate) fn answer(server: &Arc<Server>) -> Result<Response<ResponseBody>, Status> {
    let busy = |_| Status::too_many_requests("another snapshot is being taken, please try again later", 5);
    let permit = server.snapshots.clone().try_acquire_owned().map_err(busy)?;
    let (frames, mut waiting) = mpsc::channel(AHEAD);
    let (store, runtime) = (server.cache.store().clone(), Handle::current());
    let ended = server.shutdown.clone();
    // It ends with the client, at the latest when that has read nothing for PATIENCE.
    let work = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let out = Answer { out: frames.clone(), runtime, ended };
        let taken = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
        if let Err(error) = store::save_snapshot(&*store, taken, BufWriter::with_capacity(FRAME, out)) {
            tracing::warn!(%error, "a snapshot was not sent to its end");
            // The client sees a broken answer where it still reads; a snapshot without its end is refused anyway.
            frames.try_send(Err(error.into())).ok();
        }
    });
    let body = futures::stream::poll_fn(move |context| {
        let _owned = &work;
        waiting.poll_recv(context)
    });
    let mut response = Response::new(StreamBody::new(body.boxed()).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    Ok(response)
}

/// Writes into the answer, from a thread that may block.
struct Answer {
    out: Sender<Result<Frame<Bytes>, BoxError>>,
    runtime: Handle,
    ended: tokio_util::sync::CancellationToken,
}

impl Write for Answer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let frame = Frame::data(Bytes::copy_from_slice(bytes));
        let send = tokio::time::timeout(PATIENCE, self.out.send(Ok(frame)));
        match self.runtime.block_on(self.ended.run_until_cancelled(send)) {
            Some(Ok(Ok(()))) => Ok(bytes.len()),
            Some(Ok(Err(_))) => Err(io::Error::other("the client has gone away")),
            Some(Err(_)) => Err(io::Error::other("the client has read nothing for a minute")),
            None => Err(io::Error::other("the server ends")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
