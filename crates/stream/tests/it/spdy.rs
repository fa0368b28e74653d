//! Raw SPDY/3.1, as older clients and `crictl` speak it, and peers that break its rules.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use stream::remotecommand::RemoteCommand;
use stream::spdy::{self, Connection, Decoder, Encoder, Frame, Headers, Incoming, Role};
use stream::{ExitStatus, Sessions, portforward};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::server::Server;

const PATIENCE: Duration = Duration::from_secs(20);

pub async fn upgrade(address: SocketAddr, path: &str, protocol: &str) -> TokioIo<Upgraded> {
    let (mut sender, driver) =
        hyper::client::conn::http1::handshake(TokioIo::new(TcpStream::connect(address).await.unwrap()))
            .await
            .unwrap();
    tokio::spawn(driver.with_upgrades());
    let request = Request::post(path)
        .header("host", "node")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("x-stream-protocol-version", protocol)
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert_eq!(response.headers()["x-stream-protocol-version"], protocol);
    TokioIo::new(hyper::upgrade::on(response).await.unwrap())
}

fn pair() -> (Connection, Incoming, Connection, Incoming) {
    let (near, far) = duplex(4096);
    let sessions = Sessions::default();
    let (client, from_server) = spdy::start(near, Role::Client, &sessions);
    let (server, from_client) = spdy::start(far, Role::Server, &sessions);
    (client, from_server, server, from_client)
}

#[tokio::test]
async fn exec_over_spdy_has_streams_sizes_and_a_status() {
    let server = Server::start(|mut command: RemoteCommand| async move {
        let size = command.resize.next().await.unwrap();
        let (mut stdin, mut stdout) = (command.stdin.take().unwrap(), command.stdout.take().unwrap());
        stdout.write_all(format!("{}x{} ", size.width, size.height).as_bytes()).await.unwrap();
        tokio::io::copy(&mut stdin, &mut stdout).await.unwrap();
        command.exit.send(ExitStatus::Code(9)).await;
    })
    .await;
    let io = upgrade(server.address, "/exec?tty=1", "v4.channel.k8s.io").await;
    let (connection, _incoming) = spdy::start(io, Role::Client, &server.sessions);
    let open = |kind| connection.open(Headers::new([("streamType", kind)])).unwrap();
    let (mut error, mut stdin, mut stdout) = (open("error"), open("stdin"), open("stdout"));
    let mut resize = open("resize");
    resize.output.write_all(b"{\"Width\":80,\"Height\":24}\n").await.unwrap();
    stdin.output.write_all(b"typed").await.unwrap();
    stdin.output.shutdown().await.unwrap();
    let (mut out, mut status) = (String::new(), String::new());
    timeout(PATIENCE, stdout.input.read_to_string(&mut out)).await.unwrap().unwrap();
    timeout(PATIENCE, error.input.read_to_string(&mut status)).await.unwrap().unwrap();
    assert_eq!(out, "80x24 typed");
    assert!(status.contains(r#""reason":"ExitCode","message":"9""#), "{status}");
    connection.close().await;
    timeout(PATIENCE, server.sessions.close()).await.unwrap();
}

#[tokio::test]
async fn port_forward_over_raw_spdy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = Server::start(async |_| unreachable!()).await;
    let io = upgrade(server.address, "/forward", "portforward.k8s.io").await;
    let mut client = portforward::client::over(io, &server.sessions);
    let mut forwarded = client.forward(port).await.unwrap();
    let (mut target, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    target.write_all(b"served").await.unwrap();
    drop(target);
    let mut text = String::new();
    timeout(PATIENCE, forwarded.input.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "served");
}

#[tokio::test]
async fn the_peer_is_told_of_a_reset() {
    let (client, _a, _server, mut from_client) = pair();
    let mut stream = client.open(Headers::new([("streamtype", "data")])).unwrap();
    let accepted = timeout(PATIENCE, from_client.recv()).await.unwrap().unwrap();
    assert_eq!(accepted.headers.get("StreamType"), Some("data"));
    accepted.reset();
    assert_eq!(timeout(PATIENCE, stream.input.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    let broken = async { while stream.output.write_all(&[0; 1024]).await.is_ok() {} };
    timeout(PATIENCE, broken).await.unwrap();
}

#[tokio::test]
async fn a_dropped_output_ends_its_side_behind_what_was_written() {
    let (client, _a, _server, mut from_client) = pair();
    let mut stream = client.open(Headers::default()).unwrap();
    let mut accepted = timeout(PATIENCE, from_client.recv()).await.unwrap().unwrap();
    let writer = tokio::spawn(async move {
        accepted.output.write_all(&vec![5; 100_000]).await.unwrap();
        drop(accepted.output);
        // The other direction goes on.
        let mut text = String::new();
        accepted.input.read_to_string(&mut text).await.unwrap();
        text
    });
    let mut received = Vec::new();
    timeout(PATIENCE, stream.input.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received.len(), 100_000);
    stream.output.write_all(b"thanks").await.unwrap();
    drop(stream.output);
    assert_eq!(timeout(PATIENCE, writer).await.unwrap().unwrap(), "thanks");
}

#[tokio::test]
async fn a_peer_that_does_not_read_makes_writers_wait() {
    let (client, _a, _server, mut from_client) = pair();
    let mut stream = client.open(Headers::default()).unwrap();
    let mut accepted = timeout(PATIENCE, from_client.recv()).await.unwrap().unwrap();
    let total = 8 << 20;
    let write = tokio::spawn(async move {
        stream.output.write_all(&vec![1; total]).await.unwrap();
        stream.output.shutdown().await.unwrap();
        // Kept until the other side has read all: dropping it would not reset what has been shut down.
        stream
    });
    assert!(
        timeout(Duration::from_millis(50), async {
            while !write.is_finished() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .is_err()
    );
    let mut received = Vec::new();
    timeout(PATIENCE, accepted.input.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received.len(), total);
    write.await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_connection_ends_every_stream() {
    let (near, far) = duplex(4096);
    let (client, _incoming) = spdy::start(near, Role::Client, &Sessions::default());
    let mut stream = client.open(Headers::default()).unwrap();
    drop(far);
    assert_eq!(timeout(PATIENCE, stream.input.read(&mut [0; 8])).await.unwrap().unwrap(), 0);
    timeout(PATIENCE, client.ended()).await.unwrap();
    client.open(Headers::default()).unwrap_err();
    assert!(stream.output.write_all(b"x").await.is_err());
}

#[tokio::test]
async fn noise_ends_the_connection() {
    let (mut near, far) = duplex(4096);
    let (server, mut incoming) = spdy::start(far, Role::Server, &Sessions::default());
    near.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n\x80\x07\x00\x01\x00\x00\x00\x00").await.unwrap();
    drop(near);
    assert!(timeout(PATIENCE, incoming.recv()).await.unwrap().is_none());
    timeout(PATIENCE, server.ended()).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_keeps_windows_is_never_sent_more_than_they_allow() {
    let (mut peer, far) = duplex(1 << 20);
    let (client, _incoming) = spdy::start(far, Role::Client, &Sessions::default());
    let mut peer = Peer {
        encoder: Encoder::default(),
        decoder: Decoder::default(),
        buffer: BytesMut::new(),
        io: &mut peer,
    };
    // A ping behind the settings: once it is answered, they have been read.
    peer.send(&Frame::Settings(vec![(7, 1000)])).await;
    peer.send(&Frame::Ping(2)).await;
    assert_eq!(peer.next().await, Frame::Ping(2));
    let mut stream = client.open(Headers::default()).unwrap();
    let id = stream.id;
    let writer = tokio::spawn(async move {
        stream.output.write_all(&[1; 2500]).await.unwrap();
        stream.output.shutdown().await.unwrap();
        stream
    });
    assert!(matches!(peer.next().await, Frame::SynStream { .. }));
    assert_eq!(peer.data_until_ping(4).await, 1000);
    peer.send(&Frame::WindowUpdate { id, delta: 700 }).await;
    assert_eq!(peer.data_until_ping(6).await, 700);
    peer.send(&Frame::WindowUpdate { id, delta: 5000 }).await;
    timeout(PATIENCE, writer).await.unwrap().unwrap();
    assert_eq!(peer.data_until_ping(8).await, 800);
}

/// The other end, frame by frame.
struct Peer<'a> {
    encoder: Encoder,
    decoder: Decoder,
    buffer: BytesMut,
    io: &'a mut DuplexStream,
}

impl Peer<'_> {
    async fn send(&mut self, frame: &Frame) {
        let mut out = BytesMut::new();
        self.encoder.encode(frame, &mut out).unwrap();
        self.io.write_all(&out).await.unwrap();
    }

    async fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                return frame;
            }
            assert_ne!(timeout(PATIENCE, self.io.read_buf(&mut self.buffer)).await.unwrap().unwrap(), 0);
        }
    }

    /// The length of the data that comes before the answer to a ping. The writer is let run first.
    async fn data_until_ping(&mut self, ping: u32) -> usize {
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        self.send(&Frame::Ping(ping)).await;
        let mut length = 0;
        loop {
            match self.next().await {
                Frame::Data { bytes, .. } => length += bytes.len(),
                Frame::Ping(id) if id == ping => return length,
                other => panic!("{other:?}"),
            }
        }
    }
}
