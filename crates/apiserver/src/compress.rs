//! Compression of long answers, a piece at a time as the client takes them: neither the whole answer nor its compressed
//! form is ever in memory, and no other request waits for it.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, VARY};
use http::{HeaderMap, HeaderValue, Response};
use http_body::Body;
use http_body_util::BodyExt as _;
use hyper::body::Frame;

use crate::BoxError;
use crate::response::{InPieces, ResponseBody};

/// Answers above this size are compressed for clients that can take it.
const ABOVE: u64 = 128 * 1024;
/// How much is compressed at a time, in bytes.
const PIECE: usize = 64 * 1024;
/// Upstream's: the fastest, since most clients are near.
const LEVEL: u32 = 1;

/// Compresses a long body for a client that accepts gzip. Watches and other streams are left alone.
pub(crate) fn compress(accepts: bool, response: Response<ResponseBody>) -> Response<ResponseBody> {
    let (mut parts, body) = response.into_parts();
    let is_long = parts.extensions.remove::<InPieces>().is_some()
        || body.size_hint().exact().is_some_and(|size| size > ABOVE);
    if !accepts || !is_long || parts.headers.contains_key(CONTENT_ENCODING) {
        return Response::from_parts(parts, body);
    }
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    let encoder = Some(GzEncoder::new(Vec::new(), Compression::new(LEVEL)));
    Response::from_parts(parts, Gzip { body, rest: Bytes::new(), encoder }.boxed_unsync())
}

/// Whether a client takes gzip.
pub(crate) fn is_accepted(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| {
        let mut parts = part.split(';').map(str::trim);
        parts.next() == Some("gzip") && !parts.any(|part| part == "q=0")
    })
}

/// A body that is compressed while it is read.
#[derive(Debug)]
struct Gzip {
    body: ResponseBody,
    /// What the body has given and is not compressed yet.
    rest: Bytes,
    /// `None` after the end.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Gzip {
    /// Compresses the next piece; what comes out may be nothing.
    fn squeeze(&mut self) -> io::Result<Vec<u8>> {
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        let Some(encoder) = &mut self.encoder else { return Ok(Vec::new()) };
        encoder.write_all(&piece)?;
        Ok(std::mem::take(encoder.get_mut()))
    }
}

impl Body for Gzip {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let out = if self.rest.is_empty() {
                match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                    Some(Ok(frame)) => {
                        // These bodies have no trailers.
                        self.rest = frame.into_data().unwrap_or_default();
                        continue;
                    }
                    Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                    None => match self.encoder.take() {
                        Some(encoder) => encoder.finish(),
                        None => return Poll::Ready(None),
                    },
                }
            } else {
                self.squeeze()
            };
            match out {
                Ok(out) if out.is_empty() => {}
                done => {
                    return Poll::Ready(Some(done.map(|out| Frame::data(out.into())).map_err(Into::into)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use http::StatusCode;

    use super::*;
    use crate::response;

    fn size(bytes: u64) -> usize {
        usize::try_from(bytes).unwrap()
    }

    #[tokio::test]
    async fn only_long_answers_are_compressed() {
        let text = (0..50_000).fold(String::new(), |text, number| text + "pod-" + &number.to_string());
        let long = compress(true, response::text(StatusCode::OK, text.clone()));
        assert_eq!(long.headers()[CONTENT_ENCODING], "gzip");
        let sent = long.into_body().collect().await.unwrap().to_bytes();
        assert!(sent.len() < text.len() / 2, "{}", sent.len());
        let mut read = String::new();
        GzDecoder::new(&sent[..]).read_to_string(&mut read).unwrap();
        assert!(read == text);
        let short = compress(true, response::text(StatusCode::OK, "a".repeat(size(ABOVE))));
        assert!(!short.headers().contains_key(CONTENT_ENCODING));
        let unasked = compress(false, response::text(StatusCode::OK, "a".repeat(size(ABOVE) + 1)));
        assert!(!unasked.headers().contains_key(CONTENT_ENCODING));
    }
}
