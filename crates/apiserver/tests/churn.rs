//! Watches under churn, checked against a model that is made from the log of all changes: no event lost, none twice, and
//! none that does not follow. And what a sleeping watcher costs others: nothing.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

mod common;

use std::collections::BTreeMap;

use common::client::{Client, Lines, World};
use http::{Method, StatusCode};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WRITERS: usize = 6;
const WRITES: usize = 40;
/// The object whose appearance ends every watch; it matches every selector here.
const END: &str = "zz-end";

/// Writes for a while: makes, changes, relabels and removes a few objects that others write too.
async fn churn(client: Client, seed: usize) {
    for step in 0..WRITES {
        let name = format!("m{}", (seed * 7 + step * 3) % 9);
        let label = (seed + step) % 3;
        let uri = format!("{MAPS}/{name}");
        let object = json!({"metadata": {"name": name, "labels": {"l": label.to_string(), "all": "yes"}}, "data": {"by": format!("{seed}-{step}")}});
        match (seed + step) % 4 {
            0 => drop(client.ask(Method::DELETE, &uri, Value::Null).await),
            1 => drop(client.patch(&uri, "merge-patch+json", &object).await),
            _ => {
                let (code, _) = client.ask(Method::POST, MAPS, object.clone()).await;
                if code == StatusCode::CONFLICT {
                    client.ask(Method::PUT, &uri, object).await;
                }
            }
        }
    }
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

/// Everything that a watch says, up to the end of the test. Bookmarks are checked and left out.
async fn follow(mut lines: Lines) -> Vec<(String, Value)> {
    let mut seen = Vec::new();
    let mut last = 0;
    loop {
        let event = lines.next().await.unwrap();
        let (kind, object) = (event["type"].as_str().unwrap().to_owned(), event["object"].clone());
        assert!(matches!(kind.as_str(), "ADDED" | "MODIFIED" | "DELETED" | "BOOKMARK"), "{event}");
        if kind == "BOOKMARK" {
            last = last.max(revision(&object));
            continue;
        }
        let is_end = name(&object) == END;
        seen.push((kind, object));
        if is_end {
            return seen;
        }
    }
}

fn matches(object: &Value, label: &str) -> bool {
    label.is_empty() || object["metadata"]["labels"]["l"] == label || name(object) == END
}

/// What a watch with a selector must say of the log after a revision, over what was there at it.
fn expected(log: &[(String, Value)], after: u64, label: &str) -> Vec<(String, Value)> {
    let mut state: BTreeMap<String, Value> = BTreeMap::new();
    let mut events = Vec::new();
    for (kind, object) in log {
        let key = name(object);
        let was = state.get(&key).is_some_and(|before| matches(before, label));
        let is = kind != "DELETED" && matches(object, label);
        let before = state.get(&key).cloned();
        if kind == "DELETED" {
            state.remove(&key);
        } else {
            state.insert(key, object.clone());
        }
        if revision(object) <= after {
            continue;
        }
        match (was, is) {
            (false, true) => events.push(("ADDED".to_owned(), object.clone())),
            (true, true) => events.push(("MODIFIED".to_owned(), object.clone())),
            (true, false) => {
                let mut gone = if kind == "DELETED" { object.clone() } else { before.unwrap() };
                gone["metadata"]["resourceVersion"] = object["metadata"]["resourceVersion"].clone();
                events.push(("DELETED".to_owned(), gone));
            }
            (false, false) => {}
        }
    }
    events
}

async fn list(client: &Client, label: &str) -> u64 {
    let (_, list) = client.get(&format!("{MAPS}?labelSelector={}", selector(label))).await;
    revision(&list)
}

fn selector(label: &str) -> String {
    if label.is_empty() { String::new() } else { format!("l%20in%20({label},end)") }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_watch_loses_repeats_or_invents_an_event() {
    let world = World::new().await;
    let start = list(&world.admin, "").await;
    let log =
        tokio::spawn(follow(world.admin.watch(&format!("{MAPS}?watch=true&resourceVersion={start}")).await));
    let writers: Vec<_> = (0..WRITERS).map(|seed| tokio::spawn(churn(world.admin.clone(), seed))).collect();
    let mut watches = Vec::new();
    for round in 0..12 {
        let label = ["", "0", "1", "2"][round % 4];
        let after = list(&world.admin, label).await;
        let uri = format!(
            "{MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion={after}&labelSelector={}",
            selector(label)
        );
        watches.push((label, after, tokio::spawn(follow(world.admin.watch(&uri).await))));
        // Others write in between.
        world.admin.make(MAPS, json!({"metadata": {"generateName": "round-", "labels": {"l": label}}})).await;
    }
    for writer in writers {
        writer.await.unwrap();
    }
    world.admin.make(MAPS, json!({"metadata": {"name": END, "labels": {"l": "end"}}})).await;
    let log = log.await.unwrap();
    assert!(log.len() > WRITERS * WRITES / 4, "{}", log.len());
    assert!(log.windows(2).all(|pair| revision(&pair[0].1) < revision(&pair[1].1)), "revisions rise");
    for (label, after, watch) in watches {
        let seen = watch.await.unwrap();
        let wanted = expected(&log, after, label);
        assert_eq!(seen.len(), wanted.len(), "label {label:?} after {after}");
        for (seen, wanted) in seen.iter().zip(&wanted) {
            assert_eq!(seen, wanted, "label {label:?} after {after}");
        }
    }
}

/// Goes on with a list whose version is no longer kept (conformance: "API Chunking, server should support continue listing
/// from the last key even if the original version has been compacted away").
async fn go_on_inconsistently(client: &Client, token: &str) {
    let (code, expired) = client.get(&format!("{MAPS}?limit=1&continue={token}")).await;
    assert_eq!((code, &expired["reason"]), (StatusCode::GONE, &json!("Expired")), "{expired}");
    let mut token = expired["metadata"]["continue"].as_str().unwrap().to_owned();
    let mut newer = None;
    for (wanted, remaining) in [("b", json!(2)), ("big", json!(1)), ("c", Value::Null)] {
        let (code, page) = client.get(&format!("{MAPS}?limit=1&continue={token}")).await;
        assert_eq!((code, name(&page["items"][0]).as_str()), (StatusCode::OK, wanted), "{page}");
        assert_eq!(page["metadata"]["remainingItemCount"], remaining);
        assert_eq!(
            *newer.get_or_insert_with(|| revision(&page)),
            revision(&page),
            "all further pages are of one version"
        );
        page["metadata"]["continue"].as_str().unwrap_or_default().clone_into(&mut token);
    }
    assert_eq!(token, "", "the list is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_stops_reading_and_a_list_that_stopped_are_told_that_they_are_too_late() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.admin.make(MAPS, json!({"metadata": {"name": name}})).await;
    }
    let (_, page) = world.admin.get(&format!("{MAPS}?limit=1")).await;
    let start = list(&world.admin, "").await;
    let mut asleep = world.admin.watch(&format!("{MAPS}?watch=true&resourceVersion={start}")).await;
    let mut awake = world.admin.watch(&format!("{MAPS}?watch=true&resourceVersion={start}")).await;
    // More than the changes that are kept: 32 MiB, and at least 256 of them.
    let data = "x".repeat(140 * 1024);
    world.admin.make(MAPS, json!({"metadata": {"name": "big"}, "data": {"k": data}})).await;
    awake.next().await.unwrap();
    for step in 0..260 {
        let (code, _) = world
            .admin
            .patch(&format!("{MAPS}/big"), "merge-patch+json", &json!({"data": {"step": step.to_string()}}))
            .await;
        assert_eq!(code, StatusCode::OK);
        let event = awake.next().await.unwrap();
        assert_eq!(event["object"]["data"]["step"], step.to_string(), "others are not held up");
    }
    let told = asleep.next().await.unwrap();
    assert_eq!(
        (&told["type"], &told["object"]["code"], &told["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    assert_eq!(asleep.next().await, None, "and its watch is over");
    go_on_inconsistently(&world.admin, page["metadata"]["continue"].as_str().unwrap()).await;
}
