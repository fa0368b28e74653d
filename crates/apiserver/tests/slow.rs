//! Clients over the wire that are slow, silent or greedy: each is ended in a time that is known, with a sentence where
//! one can still be said, and others notice nothing.
//!
//! The connections are real; the clock is tokio's, which jumps ahead as soon as nobody has anything to do.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;

use std::time::Duration;

use common::client::World;
use common::connection;
use http::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{self, Instant};
use tokio_rustls::client::TlsStream;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// How long a connection may take for the head of a request.
const HEAD: Duration = Duration::from_secs(90);
/// After how long a connection of HTTP/2 ends that does not answer the ping.
const PING: Duration = Duration::from_secs(50);
/// How long an answer may take, the reading of the body included.
const ANSWER: Duration = Duration::from_mins(1);

/// A connection of the admin's.
async fn connect(world: &World) -> TlsStream<TcpStream> {
    connection::connect(world, Some(&connection::admin(world))).await
}

/// Everything up to the end of the connection, which may be abrupt.
async fn read_to_end(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text).await;
    String::from_utf8_lossy(&text).into_owned()
}

/// Sends a text a byte at a time until the server has had enough, and answers what it said and how long it took.
async fn trickle(stream: TlsStream<TcpStream>, text: &str, every: Duration) -> (String, Duration) {
    let (mut from, mut to) = tokio::io::split(stream);
    time::pause();
    let begun = Instant::now();
    let writing = async {
        for byte in text.bytes().cycle() {
            if to.write_all(&[byte]).await.and(to.flush().await).is_err() {
                return;
            }
            time::sleep(every).await;
        }
    };
    let said = tokio::select! {
        said = read_to_end(&mut from) => said,
        () = writing => String::new(),
    };
    time::resume();
    (said, begun.elapsed())
}

/// Whether something took about as long as it may.
fn is_about(found: Duration, wanted: Duration) -> bool {
    let late = Duration::from_secs(15);
    (wanted..wanted + late).contains(&(found + Duration::from_secs(1)))
}

#[tokio::test]
async fn a_connection_that_asks_nothing_is_closed() {
    let world = World::new().await;
    let openings = [
        ("", HEAD),
        ("G", HEAD),
        ("PRI * HTTP", HEAD),
        ("GET /healthz HTTP/1.1\r\nx: ", HEAD),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", PING),
    ];
    for (opening, wanted) in openings {
        let mut stream = connect(&world).await;
        stream.write_all(opening.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        time::pause();
        let begun = Instant::now();
        read_to_end(&mut stream).await;
        assert!(is_about(begun.elapsed(), wanted), "{opening:?}: {:?}", begun.elapsed());
        time::resume();
    }
    assert_eq!(world.admin.get("/healthz").await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_head_that_trickles_is_not_waited_for() {
    let world = World::new().await;
    let mut stream = connect(&world).await;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nx: ").await.unwrap();
    let (said, took) = trickle(stream, "x", Duration::from_secs(10)).await;
    assert!(is_about(took, HEAD), "{took:?} {said}");
}

#[tokio::test]
async fn a_body_that_trickles_is_answered_that_it_took_too_long() {
    let world = World::new().await;
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let mut stream = connect(&world).await;
        let path = if method == "POST" { MAPS.to_owned() } else { format!("{MAPS}/a") };
        let media = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: a\r\ncontent-type: {media}\r\ncontent-length: 1000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let (said, took) = trickle(stream, " ", Duration::from_secs(10)).await;
        assert!(is_about(took, ANSWER), "{method}: {took:?} {said}");
        assert!(said.starts_with("HTTP/1.1 504 "), "{method}: {said}");
        assert!(said.contains("request did not complete within the allotted timeout"), "{method}: {said}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_answered_while_it_is_sent() {
    let world = World::new().await;
    for size in [4 << 20, 64 << 20] {
        let (mut from, mut to) = tokio::io::split(connect(&world).await);
        let head = format!("POST {MAPS} HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n");
        to.write_all(head.as_bytes()).await.unwrap();
        let sending = async {
            let piece = vec![b' '; 64 << 10];
            // The server may have hung up before the end.
            while to.write_all(&piece).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        let said = tokio::select! {
            said = read_to_end(&mut from) => said,
            () = sending => String::new(),
        };
        assert!(said.starts_with("HTTP/1.1 413 "), "{size}: {said}");
        assert!(said.contains("Request entity too large: limit is 3145728"), "{size}: {said}");
    }
}

/// The open watches, as the metrics count them.
async fn watches(world: &World) -> u64 {
    let metrics = world.admin.send(Method::GET, "/metrics", &[], "").await;
    let text = String::from_utf8_lossy(metrics.body()).into_owned();
    let line = text.lines().find(|line| line.starts_with("apiserver_longrunning_requests{")).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_watcher_that_reads_nothing_is_dropped() {
    let world = World::new().await;
    let data = "x".repeat(1 << 19);
    world.admin.make(MAPS, json!({"metadata": {"name": "big"}, "data": {"k": data}})).await;
    let mut asleep = connect(&world).await;
    let head = format!("GET {MAPS}?watch=true HTTP/1.1\r\nhost: a\r\n\r\n");
    asleep.write_all(head.as_bytes()).await.unwrap();
    asleep.flush().await.unwrap();
    let mut awake = world.admin.watch(&format!("{MAPS}?watch=true")).await;
    awake.next().await.unwrap();
    // More than the buffers of the connection take.
    for step in 0..32 {
        let patch = json!({"data": {"step": step.to_string()}});
        world.admin.patch(&format!("{MAPS}/big"), "merge-patch+json", &patch).await;
        assert_eq!(awake.next().await.unwrap()["object"]["data"]["step"], step.to_string());
    }
    assert_eq!(watches(&world).await, 2);
    time::pause();
    let begun = Instant::now();
    while watches(&world).await > 1 {
        assert!(begun.elapsed() < Duration::from_mins(5), "it is still there");
        time::sleep(Duration::from_secs(1)).await;
    }
    time::resume();
    let took = begun.elapsed();
    // The minute has begun with the first byte that found no place.
    assert!(took < Duration::from_secs(75), "{took:?}");
    drop(asleep);
    let patch = json!({"data": {"step": "last"}});
    world.admin.patch(&format!("{MAPS}/big"), "merge-patch+json", &patch).await;
    assert_eq!(awake.next().await.unwrap()["object"]["data"]["step"], "last");
}
