//! Port-forward over WebSocket.

use std::time::Duration;

use stream::portforward::client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::server::Server;

const PATIENCE: Duration = Duration::from_secs(20);

/// Answers what it is sent, backwards, after its peer's half-close.
async fn reverser() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                connection.read_to_end(&mut bytes).await.unwrap();
                bytes.reverse();
                connection.write_all(&bytes).await.unwrap();
            });
        }
    });
    port
}

async fn open(server: &Server) -> client::Client {
    client::connect(server.connect().await, server.request("/forward"), &server.sessions).await.unwrap()
}

#[tokio::test]
async fn connections_go_side_by_side_with_half_close() {
    let server = Server::start(async |_| unreachable!()).await;
    let port = reverser().await;
    let mut client = open(&server).await;
    let mut first = client.forward(port).await.unwrap();
    let mut second = client.forward(port).await.unwrap();
    second.output.write_all(b"xyz").await.unwrap();
    first.output.write_all(b"abc").await.unwrap();
    first.output.shutdown().await.unwrap();
    second.output.shutdown().await.unwrap();
    for (forwarded, answer) in [(&mut first, "cba"), (&mut second, "zyx")] {
        let mut text = String::new();
        timeout(PATIENCE, forwarded.input.read_to_string(&mut text)).await.unwrap().unwrap();
        assert_eq!(text, answer);
        assert_eq!(timeout(PATIENCE, forwarded.error()).await.unwrap().unwrap(), "");
    }
    client.close().await;
    timeout(PATIENCE, server.sessions.close()).await.unwrap();
}

/// `kubectl` 1.20 waits for that before it ends the connection of its own user.
#[tokio::test]
async fn the_error_stream_ends_with_the_last_byte_of_a_target_that_ends_first() {
    let server = Server::start(async |_| unreachable!()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut connection, _) = listener.accept().await.unwrap();
        connection.write_all(b"bye").await.unwrap();
    });
    let mut client = open(&server).await;
    let mut forwarded = client.forward(port).await.unwrap();
    let mut text = String::new();
    timeout(PATIENCE, forwarded.input.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "bye");
    assert_eq!(timeout(PATIENCE, forwarded.error()).await.unwrap().unwrap(), "");
}

#[tokio::test]
async fn a_port_where_nothing_listens_is_told_on_the_error_stream() {
    let server = Server::start(async |_| unreachable!()).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut client = open(&server).await;
    let mut forwarded = client.forward(closed).await.unwrap();
    let error = timeout(PATIENCE, forwarded.error()).await.unwrap().unwrap();
    assert_eq!(error, format!("cannot connect to port {closed}: Connection refused (os error 111)"));
    let mut rest = Vec::new();
    timeout(PATIENCE, forwarded.input.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert!(rest.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn megabytes_go_through_in_both_directions() {
    let server = Server::start(async |_| unreachable!()).await;
    let port = reverser().await;
    let mut client = open(&server).await;
    let forwarded = client.forward(port).await.unwrap();
    let (mut input, mut output) = (forwarded.input, forwarded.output);
    let sent: Vec<u8> =
        (0..6_000_000_u32).map(|number| number.to_le_bytes()[0] ^ number.to_le_bytes()[2]).collect();
    let mut expected = sent.clone();
    expected.reverse();
    let writer = tokio::spawn(async move {
        output.write_all(&sent).await.unwrap();
        output.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    timeout(PATIENCE, input.read_to_end(&mut received)).await.unwrap().unwrap();
    writer.await.unwrap();
    assert!(received == expected);
}
