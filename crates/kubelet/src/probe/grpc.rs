//! gRPC probes: one `Check` of the standard health service, grpc.health.v1.

use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

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

/// Asks the server at `address` whether `service` is serving; the error is what to show of it.
pub(super) async fn check(address: &str, service: &str) -> Result<(), String> {
    let shown = |error: &dyn std::fmt::Display| {
        format!("failed to connect service {address:?}: {error}; the container must serve gRPC on this port")
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| shown(&error))?;
    let endpoint = endpoint.user_agent("kube-probe/1.36").map_err(|error| shown(&error))?;
    let channel = endpoint.connect().await.map_err(|error| shown(&cause(&error)))?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| shown(&cause(&error)))?;
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
