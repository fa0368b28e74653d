//! Bad input to a whole node: what the user sees, held in `../golden/refusals-*.txt`, and that nothing half-done stays
//! behind. The API's own texts are in the crate `apiserver`, `tests/golden/refusals.txt`.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test says what is wrong by ending")]

mod disk;
#[path = "../golden/mod.rs"]
mod golden;
mod pod;
mod registry;
mod start;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use golden::normalise;
use serde_json::Value;
use tests::{Leftovers, Node, image_mirror};

/// For what takes a pull, a back-off or a retry.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) const BUSYBOX: &str = "docker.io/library/busybox:latest";

pub(crate) fn places(node: &Node) -> Vec<(String, &'static str)> {
    let instance = node.instance();
    vec![
        (image_mirror().display().to_string(), "MIRROR"),
        (node.root().display().to_string(), "ROOT"),
        (instance, "INSTANCE"),
    ]
}

/// How a command ended and what it said.
pub(crate) fn said(node: &Node, ran: &tests::Ran) -> String {
    let places = places(node);
    let names: Vec<(&str, &str)> = places.iter().map(|(from, to)| (from.as_str(), *to)).collect();
    // Log lines begin with the time; what is said to the user does not.
    let lines = ran.stderr.lines().filter(|line| !line.starts_with("20"));
    let text = lines.fold(String::new(), |text, line| text + line + "\n");
    normalise(&format!("exit {}\n{}{text}\n", ran.code, ran.stdout), &names)
}

/// The warnings of an object, each once, sorted; without those that every Pod has, and what depends on when one looks.
pub(crate) fn warnings(node: &Node, name: &str) -> BTreeSet<(String, String)> {
    let selector = format!("involvedObject.name={name},type=Warning");
    let list = node.kubectl(&["get", "events", "-o", "json", "--field-selector", &selector]).ok();
    let list: Value = serde_json::from_str(&list).unwrap();
    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    let events = list["items"].as_array().unwrap().iter();
    let events = events.map(|event| (text(event, "reason"), text(event, "message")));
    let timely = |(reason, message): &(String, String)| {
        !matches!(reason.as_str(), "MissingClusterDNS" | "BackOff") && message != "Error: ImagePullBackOff"
    };
    events.filter(timely).collect()
}

/// Deletes all Pods, and asserts that nothing of them stays: no record or directory, no cgroup, no address, no part of
/// an image; then takes the node down and looks for the rest.
#[track_caller]
pub(crate) fn assert_nothing_stays(node: &mut Node, images: &[&str]) {
    node.kubectl(&["delete", "pods", "--all", "--timeout=60s"]).ok();
    let empty = |path: &Path| fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none());
    let state = node.root().join("var/lib/kakoi");
    let places = [
        "../kubelet/pods",
        "containers/containers",
        "containers/sandboxes",
        "network/sandboxes",
        "images/tmp",
    ]
    .map(|place| state.join(place));
    node.until("the Pods' last traces to go", PATIENCE, |_| places.iter().all(|place| empty(place)));
    let listed = node.kakoi(&["image", "list"]).ok();
    let names: Vec<&str> = listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, images);
    let layers = fs::read_dir(state.join("images/layers")).unwrap().count();
    assert_eq!(layers, images.len(), "no layer of a refused image stays");
    node.down().ok();
    assert_eq!(node.leftovers(), Leftovers::default());
    assert_eq!(node.network_leftovers(), "");
}
