//! `make bench`: the promises of SPECIFICATION.md, measured on this machine and printed beside their bounds. It judges
//! nothing: machines are shared and noisy, and ratios within one run count for more than single times.

#![expect(clippy::print_stdout, reason = "a program for people")]
#![expect(clippy::expect_used, reason = "a measurement that fails ends with a sentence")]

mod api;
mod cri;
mod images;
mod node;
mod pods;
mod recovery;
mod runc;
mod steps;

use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{Node, NodeOptions};

/// Starts of a node with an empty root.
const STARTS: usize = 30;
/// Pods whose shims are measured.
const SHIMS: usize = 20;

fn main() {
    let parts: Vec<String> = std::env::args().skip(1).collect();
    let arguments = parts.get(1..).unwrap_or_default();
    match parts.first().map(String::as_str) {
        Some("inside-until-ready") => runtime().block_on(pods::until_ready()),
        Some("inside-path") => runtime().block_on(pods::one_by_one()),
        Some("inside-many") => runtime().block_on(pods::many()),
        Some("inside-node-fill") => runtime().block_on(node::fill()),
        Some("inside-node-exits") => runtime().block_on(node::exits()),
        Some("inside-node-known") => runtime().block_on(node::known(arguments)),
        Some("inside-cri") => runtime().block_on(cri::calls(arguments)),
        Some("inside-cri-cost") => runtime().block_on(cri::cost(arguments)),
        Some("inside-cri-fill") => runtime().block_on(cri::fill(arguments)),
        Some("inside-images") => runtime().block_on(images::calls(arguments)),
        Some("inside-cri-found") => runtime().block_on(cri::found(arguments)),
        _ => measure(&parts),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio starts")
}

/// Measures these parts, or all: `recovery`, `api`, `starts`, `cri`, `images`, `path`, `many`, `shims`, `node`.
fn measure(parts: &[String]) {
    let is_asked = |part: &str| parts.is_empty() || parts.iter().any(|asked| asked == part);
    if std::env::var_os("KAKOI_BINARY").is_none() {
        println!("measuring target/debug/kakoi; set KAKOI_BINARY=target/release/kakoi for what users run");
    }
    if is_asked("recovery") {
        recovery::measure();
    }
    if is_asked("api") {
        runtime().block_on(api::measure());
    }
    if is_asked("starts") {
        measure_starts();
    }
    if is_asked("cri") {
        cri::measure();
    }
    if is_asked("images") {
        images::measure();
    }
    if ["path", "many", "shims"].iter().any(|part| is_asked(part)) {
        measure_node(is_asked);
    }
    if is_asked("node") {
        node::measure();
    }
}

/// A node: how large it is, how soon Pods run on it.
fn measure_node(is_asked: impl Fn(&str) -> bool) {
    let mut node = Node::prepare(quiet());
    node.set_log("warn,path=debug");
    node.up();
    node.until("idle", Duration::from_secs(5), |_| true);
    size("daemon, idle, resident", node.daemon_pid(), "VmRSS", "60 MB");
    if is_asked("path") {
        let before = node.log().len();
        inside(&node, &["inside-path"]);
        steps::print(node.log().get(before..).unwrap_or_default());
        runc::measure();
    }
    if is_asked("many") {
        inside(&node, &["inside-many"]);
        size("daemon, after all Pods, resident", node.daemon_pid(), "VmRSS", "none");
    }
    if is_asked("shims") {
        measure_shims(&node);
    }
}

/// Log lines for the table of steps and for nobody else.
fn quiet() -> NodeOptions {
    NodeOptions { flags: vec!["--log-format".to_owned(), "json".to_owned()], ..NodeOptions::default() }
}

/// Runs a part of this program, with its arguments, inside the node's namespaces.
fn inside(node: &Node, part: &[&str]) {
    let program = std::env::current_exe().expect("this program has a path");
    let status = node.inside(&program).args(part).status().expect("it can be run inside the node");
    assert!(status.success(), "the measurement {part:?} failed");
}

/// From nothing to a node that is Ready: certificates, store, network and all.
fn measure_starts() {
    let program = std::env::current_exe().expect("this program has a path");
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let mut node = Node::prepare(quiet());
        node.set_log("warn");
        let mut waiter = node.inside(&program);
        let waiter = waiter.arg("inside-until-ready").stdout(Stdio::null()).spawn();
        let mut waiter = waiter.expect("it can be run inside the node");
        let begin = Instant::now();
        node.spawn_daemon();
        let status = waiter.wait().expect("a child can be waited for");
        starts.push(begin.elapsed());
        assert!(status.success(), "the node did not get Ready:\n{}", node.log());
    }
    report("start with an empty root to node Ready", "1 s", &mut starts);
}

fn measure_shims(node: &Node) {
    let names: Vec<String> = (1..=SHIMS).map(|n| format!("shim-{n}")).collect();
    let items: Vec<Value> = names.iter().map(|name| pods::pod(name, false)).collect();
    node.apply(&json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string());
    node.ready(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut dirty: Vec<u64> = tests::shims(&node.instance())
        .into_iter()
        .map(|pid| number(&format!("/proc/{pid}/smaps_rollup"), "Private_Dirty"))
        .collect();
    dirty.sort_unstable();
    let middle = dirty.get(dirty.len() / 2).copied().unwrap_or(0);
    println!(
        "{:<55} {middle:>8} kB median, {} kB largest of {} (bound 250 kB)",
        "shim, private dirty",
        dirty.last().unwrap_or(&0),
        dirty.len()
    );
}

/// Prints a number in kB of `/proc/PID/status`.
fn size(what: &str, pid: u32, field: &str, bound: &str) {
    println!("{what:<55} {:>8} kB (bound {bound})", number(&format!("/proc/{pid}/status"), field));
}

fn number(path: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// Prints median and 95th percentile.
fn report(what: &str, bound: &str, times: &mut [Duration]) {
    println!(
        "{what:<55} {:>8.1} ms median, {:.1} ms p95 of {} (bound {bound})",
        percentile(times, 50),
        percentile(times, 95),
        times.len()
    );
}

/// In milliseconds. Sorts.
fn percentile(times: &mut [Duration], part: usize) -> f64 {
    times.sort_unstable();
    times.get(times.len() * part / 100).copied().unwrap_or_default().as_secs_f64() * 1e3
}
