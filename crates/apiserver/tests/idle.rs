//! What watches cost that wait: memory, measured in a process with no other test in it.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]
#![allow(clippy::print_stdout, reason = "the figure is for whoever reads the test's output")]

mod common;

use common::client::World;
use serde_json::json;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WATCHES: usize = 2000;
/// The most that one idle watch may cost, in bytes, with the test's end of it.
const MOST: usize = 16 << 10;

/// The memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_idle_watches_cost_little_and_hear_of_the_one_write() {
    let world = World::new().await;
    for at in 0..100 {
        let data = json!({"k": "x".repeat(4096)});
        world.admin.make(MAPS, json!({"metadata": {"name": format!("m{at}")}, "data": data})).await;
    }
    let (_, list) = world.admin.get(&format!("{MAPS}?limit=1")).await;
    let start = list["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let before = resident();
    let mut watches = Vec::new();
    for _ in 0..WATCHES {
        let uri = format!("{MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion={start}");
        watches.push(world.admin.watch(&uri).await);
    }
    let each = resident().saturating_sub(before) / WATCHES;
    println!("an idle watch costs {each} bytes");
    assert!(each < MOST, "an idle watch costs {each} bytes");
    let made = world.admin.make(MAPS, json!({"metadata": {"name": "one"}})).await;
    for watch in &mut watches {
        let event = watch.next().await.unwrap();
        assert_eq!((&event["type"], &event["object"]), (&json!("ADDED"), &made));
    }
    drop(watches);
    let many = resident().saturating_sub(before) / WATCHES;
    assert!(many < MOST, "after the one event each has cost {many} bytes");
}
