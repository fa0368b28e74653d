//! From a write to the event that tells of it: one watcher, and a thousand over twenty connections.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::mpsc;

use super::client::{Connection, Target};
use super::server::Server;
use crate::{percentile, report};

/// Watchers and the connections that they share.
const MANY: (usize, usize) = (1000, 20);
/// Writes whose events are waited for.
const WRITES: usize = 100;
/// An event that has not come after this is lost.
const PATIENCE: Duration = Duration::from_secs(10);
const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// Prints both, and how much later the last ones of many hear.
pub(crate) async fn compare(server: &Server) {
    let target = server.target();
    let mut writer = target.connect().await;
    let body = json!({"metadata": {"name": "watched"}, "data": {"n": ""}}).to_string();
    let made = String::from_utf8(writer.post(PATH, body.into()).await.to_vec()).expect("JSON is text");
    let version = made.split("\"resourceVersion\":\"").nth(1).and_then(|rest| rest.split('"').next());
    let version = version.expect("the object has a version").to_owned();
    let mut one = measure(&target, (1, 1), &version, &mut writer).await;
    report("write to event, one watcher", "none", &mut one);
    let mut many = measure(&target, MANY, &version, &mut writer).await;
    report(&format!("write to event, {} watchers, {} connections", MANY.0, MANY.1), "none", &mut many);
    let (one, many) = (percentile(&mut one, 99), percentile(&mut many, 99));
    println!(
        "{:<55} {:>8.1} times that of one: {many:.1} to {one:.1} ms (bound 5)",
        "  … p99 of many",
        many / one.max(f64::MIN_POSITIVE)
    );
}

async fn measure(
    target: &Target,
    (watchers, connections): (usize, usize),
    version: &str,
    writer: &mut Connection,
) -> Vec<Duration> {
    let (heard, mut events) = mpsc::channel(watchers);
    let mut tasks = tokio::task::JoinSet::new();
    let path = format!("{PATH}?watch=1&resourceVersion={version}&allowWatchBookmarks=true");
    for _ in 0..connections {
        let mut connection = target.connect().await;
        for _ in 0..watchers / connections {
            let answer = connection.open(Method::GET, &path, &[], Bytes::new()).await;
            let answer = answer.expect("the server lets watch");
            assert!(answer.status().is_success(), "{}", answer.status());
            tasks.spawn(listen(answer.into_body(), heard.clone()));
        }
    }
    let mut times = Vec::with_capacity(WRITES * watchers);
    // The first one is not counted: it also tells that all are there.
    for number in 0..=WRITES {
        let text = format!("{version}-{watchers}-{number}");
        let body = json!({"data": {"n": text}}).to_string();
        let begin = Instant::now();
        let headers = [("content-type", "application/merge-patch+json")];
        let path = format!("{PATH}/watched");
        let answer = writer.open(Method::PATCH, &path, &headers, body.into()).await;
        assert!(answer.is_some_and(|answer| answer.status().is_success()), "the server writes");
        let mut missing = watchers;
        while missing > 0 {
            let heard = tokio::time::timeout(PATIENCE, events.recv()).await;
            let (which, at) = heard.expect("each watcher hears of each write").expect("there are watchers");
            if which == text {
                missing -= 1;
                if number > 0 {
                    times.push(Instant::saturating_duration_since(&at, begin));
                }
            }
        }
    }
    times
}

/// Tells of each event: what the write had said, and when it came.
async fn listen(mut body: Incoming, heard: mpsc::Sender<(String, Instant)>) {
    let mut rest = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let at = Instant::now();
        rest.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let Some(said) = line.split("\"n\":\"").nth(1).and_then(|rest| rest.split('"').next()) else {
                continue;
            };
            if heard.send((said.to_owned(), at)).await.is_err() {
                return;
            }
        }
    }
}
