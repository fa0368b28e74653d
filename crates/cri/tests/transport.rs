//! The same calls over both transports.

#![expect(clippy::unwrap_used, reason = "a test helper fails by panicking")]

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cri::Connection;
use cri::v1::image_service_server::ImageService;
use cri::v1::runtime_service_server::RuntimeService;
use cri::v1::{
    AuthConfig, ListImagesRequest, StatusRequest, StatusResponse, VersionRequest, VersionResponse,
};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

struct Echo;

#[tonic::async_trait]
impl RuntimeService for Echo {
    async fn version(&self, request: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse { version: request.into_inner().version, ..Default::default() }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        std::future::pending().await
    }
}

impl ImageService for Echo {}

async fn answers(connection: Connection) {
    let large = "x".repeat(5 * 1024 * 1024);
    let request = VersionRequest { version: large.clone() };
    let version =
        cri::runtime_client(connection.clone()).version(request).await.unwrap().into_inner().version;
    assert!(version == large, "a message of 5 MiB comes back whole");
    let status = cri::image_client(connection).list_images(ListImagesRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("`list_images`"), "{}", status.message());
}

#[tokio::test]
async fn a_client_in_the_same_process_calls_the_services_themselves() {
    answers(cri::routes(Echo, Echo).into()).await;
}

#[tokio::test]
async fn a_client_calls_through_a_unix_socket_that_only_its_owner_may_open() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/cri.sock");
    let listener = cri::bind_unix(&path).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(cri::serve(
        cri::routes(Echo, Echo),
        UnixListenerStream::new(listener),
        shutdown.clone(),
    ));
    answers(cri::connect_unix(&path).await.unwrap().into()).await;
    assert!(matches!(cri::bind_unix(&path).await, Err(cri::BindError::InUse { .. })));
    shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), server).await.unwrap().unwrap().unwrap();
    cri::bind_unix(&path).await.expect("a socket that nobody answers is replaced");
}

#[tokio::test]
async fn a_path_that_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cri.sock");
    std::fs::write(&path, "mine").unwrap();
    assert!(matches!(cri::bind_unix(&path).await, Err(cri::BindError::NotASocket { .. })));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
}

#[tokio::test]
async fn a_missing_socket_is_named_in_the_error() {
    let error = cri::connect_unix(Path::new("/nonexistent/cri.sock")).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/cri.sock"), "{error}");
}

#[test]
fn credentials_are_never_in_debug_output() {
    let auth = AuthConfig { username: "u".into(), password: "hunter2".into(), ..Default::default() };
    assert!(!format!("{auth:?}").contains("hunter2"));
}

/// With no clock of its own, unlike a [`tonic::transport::Channel`].
#[tokio::test]
async fn a_call_whose_deadline_comes_is_told_as_that_and_not_as_cancelled() {
    let (client, server) = tokio::net::UnixStream::pair().unwrap();
    let shutdown = CancellationToken::new();
    let incoming = tokio_stream::once(Ok(server)).chain(tokio_stream::pending());
    tokio::spawn(cri::serve(cri::routes(Echo, Echo), incoming, shutdown.clone()));
    let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut calls, connection) = builder.handshake(TokioIo::new(client)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..20 {
        let request = http::Request::post("http://localhost/runtime.v1.RuntimeService/Status");
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        // An empty message: not compressed, of no length.
        let body = Full::new(Bytes::from_static(&[0; 5]));
        let request = request.header("grpc-timeout", "5m").body(body).unwrap();
        calls.ready().await.unwrap();
        let answer = calls.send_request(request).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4", "{:?}", answer.headers());
    }
    shutdown.cancel();
}
