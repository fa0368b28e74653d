//! The API server alone, as a program: how soon it is ready, how large it is, how fast it writes, lists and tells of
//! changes. Ends within three minutes.

mod client;
mod server;
mod watchers;
mod writers;

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use client::Connection;
use server::Server;

use crate::report;

/// Objects in the server while it is measured.
const PODS: usize = 10_000;
/// The size of each as JSON, about, in bytes.
const POD_SIZE: usize = 4096;
/// Environment variables of each.
const SETTINGS: usize = 12;
/// How often a list is asked for, and the server started.
const RUNS: usize = 30;
/// Changes of a Pod's status whose CPU time is counted.
const PATCHES: usize = 300;
/// Where the Pods are.
const PATH: &str = "/api/v1/namespaces/default/pods";

/// Measures all of it.
pub(crate) async fn measure() {
    // The more it writes the more it holds: the server that is measured afterwards is another one.
    writers::compare(&Server::start().await).await;
    let mut server = Server::start().await;
    size("API server, empty", &server, "40 MB");
    writers::fill(&server).await;
    size(&format!("API server, {PODS} Pods of 4 KB made"), &server, "120 MB");
    lists(&server).await;
    size("API server, after 90 lists", &server, "none");
    watchers::compare(&server).await;
    patches(&server).await;
    size("API server, after lists and watches", &server, "none");
    starts(&mut server).await;
    size("API server, started with the Pods", &server, "120 MB");
}

fn size(what: &str, server: &Server, bound: &str) {
    println!("{what:<55} {:>8} kB resident (bound {bound})", server.resident());
}

/// A Pod as `kubectl apply` makes it: a small container with settings, what was applied as an annotation, and up to the
/// size another one whose text has nothing to compress.
fn pod(name: &str) -> Value {
    let mut pod = crate::pods::pod(name, false);
    let setting = |number| {
        let value = digits(&format!("{name} {number}"), 32);
        json!({"name": format!("SETTING_{number}"), "value": value})
    };
    put(&mut pod, "/metadata", "labels", json!({"app": "bench", "tier": "none"}));
    put(&mut pod, "/spec/containers/0", "env", (0..SETTINGS).map(setting).collect());
    let applied = pod.to_string();
    put(
        &mut pod,
        "/metadata",
        "annotations",
        json!({"kubectl.kubernetes.io/last-applied-configuration": applied}),
    );
    let missing = POD_SIZE.saturating_sub(pod.to_string().len());
    put(&mut pod, "/metadata/annotations", "bench/pad", digits(name, missing).into());
    pod
}

/// Sets a field of the object at `place`.
fn put(pod: &mut Value, place: &str, field: &str, value: Value) {
    let object = pod.pointer_mut(place).and_then(Value::as_object_mut).expect("a Pod has it");
    object.insert(field.to_owned(), value);
}

/// So many hexadecimal digits, others for each seed.
fn digits(seed: &str, count: usize) -> String {
    let blocks = (0..=count / 64).flat_map(|block| Sha256::digest(format!("{seed} {block}")));
    let mut digits = String::new();
    for byte in blocks {
        write!(digits, "{byte:02x}").expect("a string takes all");
    }
    digits.truncate(count);
    digits
}

/// A list is made while the client takes it, so two numbers tell of it: the CPU time of the server, with encryption and
/// the kernel's part, and the time to the last byte, which has the client's own work in it.
async fn lists(server: &Server) {
    let mut connection = server.target().connect().await;
    let table = ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io");
    for (what, header, bound) in [
        ("list of all Pods", ("accept", "application/json"), "50 ms"),
        ("list of all Pods, compressed", ("accept-encoding", "gzip"), "none"),
        ("list of all Pods as a Table", table, "none"),
    ] {
        let before = server.cpu();
        let mut times = Vec::new();
        for _ in 0..RUNS {
            times.push(list(&mut connection, header).await);
        }
        let each = cpu_of_each(server, before, RUNS);
        println!("{what:<55} {each:>8.1} ms of CPU, mean of {RUNS} (bound {bound})");
        report("  … to the last byte", "none", &mut times);
    }
}

async fn list(connection: &mut Connection, header: (&str, &str)) -> Duration {
    let path = format!("{PATH}?resourceVersion=0");
    let begin = Instant::now();
    let answer = connection.open(Method::GET, &path, &[header], Bytes::new()).await;
    let answer = answer.expect("the server lists");
    assert!(answer.status().is_success(), "{}", answer.status());
    let mut body = answer.into_body();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        length += frame.expect("the list comes to its end").data_ref().map_or(0, Bytes::len);
    }
    assert!(length > PODS, "a list of {PODS} Pods is longer than {length} bytes");
    begin.elapsed()
}

/// In milliseconds.
fn cpu_of_each(server: &Server, before: Duration, count: usize) -> f64 {
    server.cpu().saturating_sub(before).as_secs_f64() * 1e3
        / f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// What the server's CPU does for one change of a Pod's status, of which the start of a Pod has about five.
async fn patches(server: &Server) {
    let mut connection = server.target().connect().await;
    let path = format!("{PATH}/pod-0/status");
    let before = server.cpu();
    for number in 0..PATCHES {
        let body = json!({"status": {"phase": "Pending", "message": number.to_string(), "conditions": [
            {"type": "Ready", "status": "False", "reason": number.to_string(), "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        let media = "application/strategic-merge-patch+json";
        connection.ask(Method::PATCH, &path, media, body.to_string().into()).await;
    }
    let each = cpu_of_each(server, before, PATCHES);
    println!("{:<55} {each:>8.2} ms of CPU, mean of {PATCHES}", "patch of a Pod's status");
}

/// From `execve` to `/readyz`, after an orderly end and after SIGKILL under writes.
async fn starts(server: &mut Server) {
    let (mut ended, mut killed) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        server.end();
        ended.push(server.restart().await);
        writers::kill_under(server).await;
        killed.push(server.restart().await);
    }
    report(&format!("start to /readyz with {PODS} Pods"), "200 ms", &mut ended);
    report("  … after SIGKILL under 16 writers", "200 ms", &mut killed);
}
