//! gRPC probes: one `Check` of the standard health service, grpc.health.v1.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::FutureExt as _;
use futures::future::{BoxFuture as Task, Either, join, select};
use http::header::{HeaderValue, USER_AGENT};
use http::uri::{PathAndQuery, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::TokioIo;
use tokio::io::BufWriter;
use tokio::net::TcpStream;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codegen::{BoxFuture, Service};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

/// What a connection lets the server send unasked, HTTP/2's own default: an answer is a few bytes.
const WINDOW: u32 = 65_535;

/// Bytes that are written at once: the greeting and a request have some 200.
const WRITES: usize = 1024;

/// The request of `grpc.health.v1.Health/Check`.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckRequest {
    /// The service that is asked about; empty for the server as a whole.
    #[prost(string, tag = "1")]
    service: String,
}

/// Its answer.
#[derive(Clone, PartialEq, prost::Message)]
struct CheckResponse {
    #[prost(enumeration = "Serving", tag = "1")]
    status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Serving {
    Unknown = 0,
    Yes = 1,
    No = 2,
    NoSuchService = 3,
}

impl Serving {
    fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Yes => "SERVING",
            Self::No => "NOT_SERVING",
            Self::NoSuchService => "SERVICE_UNKNOWN",
        }
    }
}

/// A connection that carries one call: a channel that could connect anew would be made for nothing.
struct Connection(SendRequest<Body>);

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<Self::Response, hyper::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("kube-probe/1.36"));
        Box::pin(self.0.send_request(request))
    }
}

/// What a connection wants to run beside its call: it runs in the probe's own task. No other thread is woken for it, and
/// what it writes goes out with what the call writes.
#[derive(Clone, Default)]
struct Beside(Arc<Mutex<Vec<Task<'static, ()>>>>);

impl<F> Executor<F> for Beside
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        let task = Box::pin(async move { drop(task.await) });
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }
}

impl Beside {
    /// Runs what there is and what is added meanwhile, for as long as this is polled.
    async fn run(self) -> Infallible {
        let mut running: Vec<Task<'static, ()>> = Vec::new();
        std::future::poll_fn(|context| {
            running.retain_mut(|task| task.poll_unpin(context).is_pending());
            loop {
                let mut added = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
                if added.is_empty() {
                    return Poll::Pending;
                }
                added.retain_mut(|task| task.poll_unpin(context).is_pending());
                running.append(&mut added);
            }
        })
        .await
    }
}

/// Asks the server at `address` whether `service` is serving; the error is what to show of it.
pub(super) async fn check(address: &str, service: &str) -> Result<(), String> {
    let shown = |error: &dyn std::fmt::Display| {
        format!("failed to connect service {address:?}: {error}; the container must serve gRPC on this port")
    };
    let origin: Uri = format!("http://{address}").parse().map_err(|error| shown(&error))?;
    let stream = TcpStream::connect(address).await.map_err(|error| shown(&error))?;
    let beside = Beside::default();
    let mut builder = Builder::new(beside.clone());
    builder.initial_connection_window_size(WINDOW).initial_stream_window_size(WINDOW);
    // Written when the connection has no more to say for now: the greeting and the request are one segment.
    let handshake = builder.handshake(TokioIo::new(BufWriter::with_capacity(WRITES, stream))).await;
    let (sender, driver) = handshake.map_err(|error| shown(&cause(&error)))?;
    let call = call(Grpc::with_origin(Connection(sender), origin), service);
    // In this order: the call hands over its request before the connection is asked what it has to write.
    let (call, connection) = (std::pin::pin!(call), std::pin::pin!(join(driver, beside.run())));
    match select(call, connection).await {
        Either::Left((answer, _)) => answer,
        Either::Right(((_, never), _)) => match never {},
    }
}

async fn call(mut client: Grpc<Connection>, service: &str) -> Result<(), String> {
    client.ready().await.map_err(|error| format!("error: health rpc probe failed: {}", cause(&error)))?;
    let request = Request::new(CheckRequest { service: service.to_owned() });
    let path = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec: ProstCodec<CheckRequest, CheckResponse> = ProstCodec::default();
    match client.unary(request, path, codec).await {
        Ok(answer) => match answer.into_inner().status() {
            Serving::Yes => Ok(()),
            other => Err(format!("service unhealthy (responded with {:?})", other.name())),
        },
        Err(status) if status.code() == Code::Unimplemented => Err(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        )),
        Err(status) => Err(format!("error: health rpc probe failed: {}", status.message())),
    }
}

/// The innermost reason of an error: tonic's own text says only that something failed.
fn cause(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(next) = inner.source() {
        inner = next;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::net::SocketAddr;

    use bytes::{BufMut as _, Bytes, BytesMut};
    use http_body_util::{BodyExt as _, Full, StreamBody};
    use hyper::body::{Frame, Incoming};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use prost::Message as _;

    use super::*;

    /// A server that answers each check with this status, and knows the service `known` and the empty name alone.
    async fn server(status: i32) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let service = hyper::service::service_fn(move |request| answer(request, status));
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(http.serve_connection(TokioIo::new(connection), service));
            }
        });
        address
    }

    async fn answer(
        request: http::Request<Incoming>,
        status: i32,
    ) -> Result<http::Response<http_body_util::combinators::BoxBody<Bytes, Infallible>>, Infallible> {
        let is_check = request.uri().path() == "/grpc.health.v1.Health/Check";
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let asked = CheckRequest::decode(body.slice(5..)).unwrap();
        let response = http::Response::builder().header("content-type", "application/grpc");
        let code = match asked.service.as_str() {
            _ if !is_check => "12",
            "" | "known" => "0",
            _ => "5",
        };
        if code != "0" {
            let empty = Full::new(Bytes::new()).boxed();
            return Ok(response
                .header("grpc-status", code)
                .header("grpc-message", "no")
                .body(empty)
                .unwrap());
        }
        let message = CheckResponse { status }.encode_to_vec();
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).unwrap());
        framed.put_slice(&message);
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        let parts = [Ok(Frame::data(framed.freeze())), Ok(Frame::trailers(trailers))];
        Ok(response.body(StreamBody::new(futures::stream::iter(parts)).boxed()).unwrap())
    }

    #[tokio::test]
    async fn only_a_service_that_says_serving_is_healthy() {
        let serving = server(1).await.to_string();
        assert_eq!(check(&serving, "").await, Ok(()));
        assert_eq!(check(&serving, "known").await, Ok(()));
        assert!(check(&serving, "other").await.unwrap_err().contains("health rpc probe failed: no"));
        let text = check(&server(2).await.to_string(), "").await.unwrap_err();
        assert_eq!(text, "service unhealthy (responded with \"NOT_SERVING\")");
    }

    #[tokio::test]
    async fn a_port_that_nobody_serves_is_named() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let text = check(&address, "").await.unwrap_err();
        assert!(text.contains(&address) && text.contains("refused"), "{text}");
    }
}
