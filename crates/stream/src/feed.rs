//! Messages to a client over a WebSocket, one way: how a watch is served to a browser. What the client sends is read and
//! dropped, so that its pings are answered and its end is seen; a client that reads slowly slows its own feed alone.

use bytes::Bytes;
use futures::{SinkExt, Stream, StreamExt};
use http::header::UPGRADE;
use http::{HeaderMap, Request, Response};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::CancellationToken;

use crate::upgrade::{self, Offer, Refusal};
use crate::{Sessions, websocket};

/// Whether a request asks for its answer over a WebSocket.
pub fn is_asked(headers: &HeaderMap) -> bool {
    upgrade::is_asked(headers)
        && headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Answers an upgrade request, and sends each of `messages` as one text message until they or the client end.
///
/// # Errors
/// [`Refusal`] with the answer to send instead.
pub fn serve<B>(
    mut request: Request<B>,
    messages: impl Stream<Item = Bytes> + Send + Unpin + 'static,
    sessions: &Sessions,
) -> Result<Response<Full<Bytes>>, Refusal> {
    let offer = Offer::of(request.headers())?;
    let connection = upgrade::take(&mut request)?;
    let shutdown = sessions.shutdown().clone();
    sessions.spawn(async move {
        match connection.await {
            Ok(connection) => {
                let socket = websocket::server(TokioIo::new(connection)).await;
                send(socket, messages, &shutdown).await;
            }
            Err(error) => tracing::debug!(%error, "a connection was not upgraded"),
        }
    });
    Ok(offer.accepted(""))
}

async fn send<S: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<S>,
    mut messages: impl Stream<Item = Bytes> + Unpin,
    shutdown: &CancellationToken,
) {
    let (mut writer, mut reader) = socket.split();
    let is_over = async {
        // Ends with the client, or with what is no WebSocket.
        while let Some(Ok(_)) = reader.next().await {}
    };
    let sent = async {
        while let Some(message) = messages.next().await {
            // A watch's messages are JSON; what would not be text ends the feed.
            let Ok(text) = message.try_into() else { break };
            if writer.send(Message::Text(text)).await.is_err() {
                return;
            }
        }
        let end = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        writer.send(Message::Close(Some(end))).await.ok();
    };
    tokio::select! {
        () = sent => {}
        () = is_over => {}
        () = shutdown.cancelled() => {}
    }
}
