//! A proxy before the server, as the API server is before the kubelet.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use stream::proxy::{Destination, forward};
use stream::remotecommand::{RemoteCommand, client};
use stream::{ExitStatus, Sessions, portforward};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::server::Server;
use crate::spdy::upgrade;

const PATIENCE: Duration = Duration::from_secs(20);

/// Passes `/api/...` on to the server's `/...`.
async fn proxy(server: SocketAddr, sessions: Sessions) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let sessions = sessions.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let sessions = sessions.clone();
                async move {
                    let path = request.uri().path_and_query().unwrap().as_str().strip_prefix("/api").unwrap();
                    let destination = Destination {
                        path_and_query: path.parse().unwrap(),
                        host: HeaderValue::from_static("the-kubelet:10250"),
                    };
                    let target = TcpStream::connect(server).await.unwrap();
                    let answer: Result<Response<_>, Infallible> =
                        Ok(forward(request, target, &destination, &sessions).await.unwrap());
                    answer
                }
            });
            let http = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(connection), service);
            tokio::spawn(http.with_upgrades());
        }
    });
    address
}

/// Greets, then copies input to output until the half-close.
async fn echo(mut command: RemoteCommand) {
    let (mut stdin, mut stdout) = (command.stdin.take().unwrap(), command.stdout.take().unwrap());
    stdout.write_all(b"> ").await.unwrap();
    tokio::io::copy(&mut stdin, &mut stdout).await.unwrap();
    command.exit.send(ExitStatus::Code(3)).await;
}

#[tokio::test]
async fn a_session_goes_through_two_proxies() {
    let server = Server::start(echo).await;
    let sessions = Sessions::default();
    let inner = proxy(server.address, sessions.clone()).await;
    let outer = proxy(inner, sessions.clone()).await;
    let connection = TcpStream::connect(outer).await.unwrap();
    let request = Request::builder().uri("ws://node/api/api/exec").header("host", "node").body(()).unwrap();
    let mut client =
        client::connect(connection, request, "v5.channel.k8s.io", &Sessions::default()).await.unwrap();
    client.stdin.write_all(b"through").await.unwrap();
    client.stdin.shutdown().await.unwrap();
    let mut text = String::new();
    timeout(PATIENCE, client.stdout.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "> through");
    assert_eq!(client.wait().await, ExitStatus::Code(3));
    // Both sides have closed: nothing is left to join but what ends by itself.
    timeout(PATIENCE, sessions.close()).await.unwrap();
}

#[tokio::test]
async fn raw_spdy_goes_through_as_well() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::start(echo).await;
    let sessions = Sessions::default();
    let address = proxy(server.address, sessions.clone()).await;
    let io = upgrade(address, "/api/forward", "portforward.k8s.io").await;
    let mut client = portforward::client::over(io, &Sessions::default());
    let mut forwarded = client.forward(listener.local_addr().unwrap().port()).await.unwrap();
    let (mut target, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    target.write_all(b"served").await.unwrap();
    drop(target);
    let mut text = String::new();
    timeout(PATIENCE, forwarded.input.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "served");
    client.close().await;
    timeout(PATIENCE, sessions.close()).await.unwrap();
}

#[tokio::test]
async fn answers_that_are_no_upgrade_come_back_as_they_are() {
    let server = Server::start(echo).await;
    let address = proxy(server.address, Sessions::default()).await;
    let (mut sender, driver) =
        hyper::client::conn::http1::handshake(TokioIo::new(TcpStream::connect(address).await.unwrap()))
            .await
            .unwrap();
    tokio::spawn(driver);
    let request = Request::builder()
        .uri("/api/pods?watch=1")
        .header("host", "me")
        .header("authorization", "Bearer secret");
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(response.headers()["x-kind"], "pod");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "no /pods?watch=1 at the-kubelet:10250, authorization: false");
    let request = Request::builder()
        .uri("/api/exec")
        .header("host", "me")
        .header("connection", "upgrade")
        .header("upgrade", "h2c");
    let response = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "cannot upgrade to \"h2c\": this server speaks `websocket` and `SPDY/3.1`\n");
}
