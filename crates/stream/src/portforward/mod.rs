//! The server side of port-forward: SPDY/3.1, raw or carried in a WebSocket (`SPDY/3.1+portforward.k8s.io`).
//! For each connection the client opens a data stream and an error stream, joined by their `requestID`.

pub mod client;

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use crate::pipe::{Input, Output};
use crate::spdy::{self, Connection, Incoming, Role, Stream};
use crate::upgrade::{self, Offer};
use crate::websocket::{self, Tunnel};
use crate::{Refusal, Sessions};

/// The WebSocket sub-protocol of `kubectl port-forward` since 1.30.
pub(crate) const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";

/// What a SPDY client names in `X-Stream-Protocol-Version`.
pub(crate) const PROTOCOL: &str = "portforward.k8s.io";

/// How long the second stream of a pair may follow the first.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);

/// A port-forward session whose `101` answer has still to be written.
#[derive(Debug)]
pub struct Pending {
    connection: OnUpgrade,
    transport: Transport,
    sessions: Sessions,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    WebSocket,
    Spdy,
}

/// Reads a port-forward request. Write the answer to the client, then call [`Pending::establish`] from another
/// task: the connection is upgraded only after the answer has gone out.
///
/// # Errors
/// With the HTTP answer to give when the request is no upgrade that this server speaks.
pub fn accept<B>(
    request: &mut Request<B>,
    sessions: &Sessions,
) -> Result<(Response<Full<Bytes>>, Pending), Refusal> {
    let offer = Offer::of(request.headers())?;
    let spoken: &[(&str, Transport)] = match &offer {
        Offer::WebSocket { .. } => &[(TUNNELLED, Transport::WebSocket)],
        Offer::Spdy { .. } => &[(PROTOCOL, Transport::Spdy)],
    };
    let (protocol, transport) = offer.choose(spoken)?;
    let connection = upgrade::take(request)?;
    Ok((offer.accepted(protocol), Pending { connection, transport: *transport, sessions: sessions.clone() }))
}

impl Pending {
    /// Waits for the upgrade and starts the session.
    ///
    /// # Errors
    /// When the connection is lost before it is upgraded.
    pub async fn establish(self) -> Result<Forwards, hyper::Error> {
        let connection = TokioIo::new(self.connection.await?);
        let (connection, incoming) = match self.transport {
            Transport::WebSocket => {
                let tunnel = Tunnel::new(websocket::server(connection).await);
                spdy::start(tunnel, Role::Server, &self.sessions)
            }
            Transport::Spdy => spdy::start(connection, Role::Server, &self.sessions),
        };
        Ok(Forwards { _connection: connection, incoming, waiting: HashMap::new() })
    }
}

/// The connections that a client forwards; dropping it ends those that are not running yet.
#[derive(Debug)]
pub struct Forwards {
    _connection: Connection,
    incoming: Incoming,
    /// Streams whose other half has not come yet.
    waiting: HashMap<String, (Instant, Stream)>,
}

/// One forwarded connection.
#[derive(Debug)]
pub struct Forward {
    /// The port in the Pod.
    pub port: u16,
    /// The client's number for it.
    pub request_id: String,
    /// Bytes from the client.
    pub input: Input,
    /// Bytes to the client.
    pub output: Output,
    /// Where a failure is told.
    pub error: Output,
}

impl Forward {
    /// Copies between the client and `target`, each direction with its own end, until both have ended.
    ///
    /// The error stream ends with the target's last byte: `kubectl` 1.20 ends its own side only after that.
    pub async fn relay<T: AsyncRead + AsyncWrite>(mut self, target: T) {
        let (mut read, mut write) = tokio::io::split(target);
        let up = async {
            let copied = tokio::io::copy(&mut self.input, &mut write).await;
            // The target may have closed its reading side first.
            let _ = write.shutdown().await;
            copied
        };
        let down = async {
            let copied = tokio::io::copy(&mut read, &mut self.output).await;
            let _ = self.output.shutdown().await;
            let _ = self.error.shutdown().await;
            copied
        };
        // When the target has sent its last byte the client may still send; when sending fails, the answer counts.
        let (_, copied) = tokio::join!(up, down);
        if let Err(error) = copied {
            tracing::debug!(%error, port = self.port, "a forwarded connection broke");
        }
    }

    /// Tells the client why the connection cannot be made.
    pub async fn fail(mut self, message: &str) {
        // A client that is gone needs no message.
        let _ = self.error.write_all(message.as_bytes()).await;
        let _ = self.error.shutdown().await;
        let _ = self.output.shutdown().await;
    }
}

impl Forwards {
    /// The next connection; `None` when the client is gone.
    pub async fn next(&mut self) -> Option<Forward> {
        loop {
            let stream = match self.first_deadline() {
                None => self.incoming.recv().await?,
                Some(deadline) => {
                    let Ok(stream) = tokio::time::timeout_at(deadline, self.incoming.recv()).await else {
                        self.drop_late();
                        continue;
                    };
                    stream?
                }
            };
            if let Some(forward) = self.pair(stream) {
                return Some(forward);
            }
        }
    }

    fn first_deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|(deadline, _)| *deadline).min()
    }

    /// Resets the streams whose other half did not come in time.
    fn drop_late(&mut self) {
        let now = Instant::now();
        for (_, (_, stream)) in self.waiting.extract_if(|_, (deadline, _)| *deadline <= now) {
            stream.reset();
        }
    }

    /// The connection that `stream` completes. A stream that fits nothing is reset.
    fn pair(&mut self, stream: Stream) -> Option<Forward> {
        let Some((kind, port)) = wanted(&stream) else {
            stream.reset();
            return None;
        };
        let request_id = request_id(&stream, kind);
        let Some((deadline, other)) = self.waiting.remove(&request_id) else {
            self.waiting.insert(request_id, (Instant::now() + PAIR_TIMEOUT, stream));
            return None;
        };
        let (data, error) = match (kind, wanted(&other)) {
            (Kind::Data, Some((Kind::Error, _))) => (stream, other),
            (Kind::Error, Some((Kind::Data, _))) => (other, stream),
            _ => {
                stream.reset();
                self.waiting.insert(request_id, (deadline, other));
                return None;
            }
        };
        Some(Forward { port, request_id, input: data.input, output: data.output, error: error.output })
    }
}

/// What a stream is for, and its port.
fn wanted(stream: &Stream) -> Option<(Kind, u16)> {
    let port = stream.headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    Some((Kind::of(stream)?, port))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Error,
}

impl Kind {
    fn of(stream: &Stream) -> Option<Self> {
        match stream.headers.get("streamtype")? {
            "data" => Some(Self::Data),
            "error" => Some(Self::Error),
            _ => None,
        }
    }
}

/// The pair's name. Clients from before `requestID` open the error stream, then the data stream two numbers on.
fn request_id(stream: &Stream, kind: Kind) -> String {
    match stream.headers.get("requestid") {
        Some(id) => id.to_owned(),
        None if kind == Kind::Error => stream.id.to_string(),
        None => stream.id.saturating_sub(2).to_string(),
    }
}
