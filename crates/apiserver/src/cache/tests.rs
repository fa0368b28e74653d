//! The cache and the watches over it against a model that keeps every state there ever was.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::kind::{self, Kind};
use http::Method;
use proptest::prelude::*;
use serde_json::{Value, json};
use store::{Expect, Op, Store, StoreOptions};
use tokio_util::sync::CancellationToken;

use super::Cache;
use crate::request::RequestInfo;
use crate::response::Form;
use crate::watch::Watch;

#[derive(Debug, Clone)]
enum Step {
    /// Puts an object with a label, or removes it.
    Write {
        name: u8,
        label: Option<u8>,
    },
    Compact {
        back: u8,
    },
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => (0..5u8, proptest::option::weighted(0.75, 0..3u8)).prop_map(|(name, label)| Step::Write { name, label }),
        1 => (0..6u8).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..50)
}

/// Names and labels.
type State = BTreeMap<String, u8>;

struct Model {
    /// The state at each revision, from the first on.
    states: Vec<(u64, State)>,
}

impl Model {
    fn newest(&self) -> (u64, State) {
        self.states.last().cloned().unwrap_or_default()
    }

    fn at(&self, revision: u64) -> State {
        let at = self.states.iter().rev().find(|(made, _)| *made <= revision);
        at.map(|(_, state)| state.clone()).unwrap_or_default()
    }
}

fn configmaps() -> &'static Kind {
    kind::find("", "v1", "configmaps").unwrap()
}

fn object(name: &str, label: u8) -> Value {
    let (namespace, name) = name.split_once('/').unwrap();
    json!({"metadata": {"name": name, "namespace": namespace, "labels": {"l": label.to_string()}}, "data": {"k": "v"}})
}

async fn open(path: &std::path::Path) -> Arc<Cache> {
    Cache::open(Store::open(path, &StoreOptions::default()).unwrap()).await.unwrap()
}

fn shown(snapshot: &super::Snapshot) -> State {
    let of = |object: &Value| object["metadata"]["labels"]["l"].as_str().unwrap().parse().unwrap();
    snapshot.objects.iter().map(|(key, object)| (key.to_string(), of(&object.value()))).collect()
}

/// Plays a watch's lines over the state at its start, and checks each against what is there.
async fn play(cache: &Arc<Cache>, uri: &str, mut state: State) -> (State, u64) {
    let shutdown = CancellationToken::new();
    shutdown.cancel();
    let info = RequestInfo::parse(&Method::GET, &uri.parse().unwrap());
    let mut watch = Watch::new(cache.clone(), configmaps(), &info, Form::Object, shutdown).unwrap();
    let mut last = 0;
    while let Some(line) = watch.next().await {
        let event: Value = serde_json::from_slice(&line).unwrap();
        let object = &event["object"];
        let metadata = &object["metadata"];
        let revision: u64 = metadata["resourceVersion"].as_str().unwrap().parse().unwrap();
        if event["type"] == "BOOKMARK" {
            assert!(revision >= last);
            last = revision;
            continue;
        }
        assert_eq!((&object["kind"], &object["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
        let key =
            format!("{}/{}", metadata["namespace"].as_str().unwrap(), metadata["name"].as_str().unwrap());
        let label = metadata["labels"]["l"].as_str().unwrap().parse().unwrap();
        let before = match event["type"].as_str().unwrap() {
            "DELETED" => state.remove(&key).is_some(),
            "MODIFIED" => state.insert(key, label).is_some(),
            "ADDED" => state.insert(key, label).is_none(),
            other => panic!("{other}: {event}"),
        };
        assert!(before, "{event} does not follow from what was there");
        last = revision;
    }
    (state, last)
}

fn filtered(state: &State, namespace: &str, label: Option<u8>) -> State {
    let is_meant =
        |key: &String, one: &u8| key.starts_with(namespace) && label.is_none_or(|label| label == *one);
    state.iter().filter(|(key, one)| is_meant(key, one)).map(|(key, one)| (key.clone(), *one)).collect()
}

async fn check(cache: &Arc<Cache>, model: &Model) {
    let table = cache.table(configmaps()).unwrap();
    let (newest, state) = model.newest();
    let snapshot = cache.snapshot(table);
    assert!(snapshot.revision >= newest);
    assert_eq!(shown(&snapshot), state);
    let floor = cache.store().floor();
    for revision in 0..=newest {
        match table.snapshot_at(revision) {
            Ok(snapshot) => assert_eq!(shown(&snapshot), model.at(revision), "at {revision}"),
            Err(expired) => {
                assert!(revision < expired.oldest && expired.oldest <= floor.max(1), "at {revision}");
            }
        }
    }
    for (namespace, label) in [("", None), ("even/", None), ("odd/", Some(1)), ("", Some(2))] {
        let path = match namespace {
            "" => "/api/v1/configmaps".to_owned(),
            some => format!("/api/v1/namespaces/{some}configmaps"),
        };
        let selector = label.map(|label| format!("&labelSelector=l%3D{label}")).unwrap_or_default();
        let goal = filtered(&state, namespace, label);
        for revision in floor..=newest {
            let uri = format!("{path}?watch=true&resourceVersion={revision}{selector}");
            let uri = if revision == 0 { uri.replace("resourceVersion=0", "resourceVersion=") } else { uri };
            let begin =
                if revision == 0 { State::new() } else { filtered(&model.at(revision), namespace, label) };
            assert_eq!(play(cache, &uri, begin).await.0, goal, "{uri}");
        }
        let list = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
        let (reached, bookmark) =
            play(cache, &format!("{path}?watch=true&{list}{selector}"), State::new()).await;
        assert_eq!(reached, goal);
        assert!(bookmark >= newest);
    }
}

async fn run(steps: Vec<Step>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut cache = open(&path).await;
    let mut model = Model { states: vec![(0, State::new())] };
    for step in steps {
        match step {
            Step::Write { name, label } => {
                let key = format!("{}/{name}", if name % 2 == 0 { "even" } else { "odd" });
                let table = cache.table(configmaps()).unwrap();
                let (before, mut state) = model.newest();
                let op = match label {
                    Some(label) => Op::Put(table.encoder().stored(&object(&key, label))),
                    None => Op::Delete,
                };
                let revision = cache.commit(table, &key, Expect::Any, op).await.unwrap();
                match label {
                    Some(label) => state.insert(key, label),
                    None => state.remove(&key),
                };
                if revision > before {
                    model.states.push((revision, state));
                }
            }
            Step::Compact { back } => {
                let to = model.newest().0.saturating_sub(u64::from(back));
                cache.store().compact(to).await.unwrap();
            }
            Step::Reopen => {
                drop(cache);
                cache = open(&path).await;
            }
        }
    }
    check(&cache, &model).await;
    drop(cache);
    check(&open(&path).await, &model).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_watch_and_every_snapshot_tells_what_the_store_did(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(steps));
    }
}

#[tokio::test]
async fn a_live_watch_is_woken_and_an_old_revision_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(&directory.path().join("store")).await;
    let table = cache.table(configmaps()).unwrap();
    let put = |name: &str| {
        let (cache, key) = (cache.clone(), format!("even/{name}"));
        async move {
            let table = cache.table(configmaps()).unwrap();
            let op = Op::Put(table.encoder().stored(&object(&key, 1)));
            cache.commit(table, &key, Expect::Any, op).await.unwrap()
        }
    };
    let info =
        RequestInfo::parse(&Method::GET, &"/api/v1/configmaps?watch=1&resourceVersion=0".parse().unwrap());
    let mut watch =
        Watch::new(cache.clone(), configmaps(), &info, Form::Object, CancellationToken::new()).unwrap();
    let (line, _) = tokio::join!(watch.next(), put("a"));
    assert!(line.unwrap().starts_with(b"{\"type\":\"ADDED\",\"object\":{\"kind\":\"ConfigMap\""));
    // A watch that reads nothing while more happens than is kept is told to begin again.
    for _ in 0..300 {
        put("b").await;
    }
    assert_eq!(table.changes_after(0, 1, || 0).unwrap().0.len(), 1);
    let old =
        RequestInfo::parse(&Method::GET, &"/api/v1/configmaps?watch=1&resourceVersion=1".parse().unwrap());
    table.forget_until(100);
    let refused =
        Watch::new(cache.clone(), configmaps(), &old, Form::Object, CancellationToken::new()).unwrap_err();
    assert_eq!((refused.code(), refused.message()), (410, "too old resource version: 1 (100)"));
    let last = loop {
        let line = watch.next().await.unwrap();
        if line.starts_with(b"{\"type\":\"ERROR\"") {
            break line;
        }
    };
    let status: Value = serde_json::from_slice(&last).unwrap();
    assert_eq!(status["object"]["code"], 410);
    assert_eq!(watch.next().await, None);
}
