//! SIGKILL under sixteen writers, again and again: every acknowledged write is there, no revision is given out twice,
//! and who followed the store before goes on exactly where they were.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test ends at its first surprise"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use store::{After, Change, Durability, Expect, Op, Storage, Store, StoreOptions, Write};

const FILE: &str = "STORE_WRITERS_FILE";
const WRITERS: u64 = 16;
/// How often the writers are killed; `KAKOI_SOAK_KILLS` asks for more.
const KILLS: usize = 50;

/// Not a test of its own: the process that `nothing_acknowledged_is_lost_under_sixteen_writers` kills.
#[test]
#[ignore = "run by nothing_acknowledged_is_lost_under_sixteen_writers in a process of its own"]
fn sixteen_writers_until_killed() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(Path::new(&path), &StoreOptions::default()).unwrap();
        let writers = (0..WRITERS).map(|writer| tokio::spawn(write(store.clone(), writer)));
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
    });
}

async fn write(store: Arc<Store>, writer: u64) {
    for round in 0u64.. {
        let key = format!("w{writer}/{}", round % 5);
        let is_removal = round % 6 == 5;
        let value = format!("{}-{round}", std::process::id());
        let op = if is_removal { Op::Delete } else { Op::Put(Bytes::from(value.clone())) };
        let write = Write { key: key.clone(), expect: Expect::Any, op, durability: Durability::Synced };
        let revision = store.commit(write).await.unwrap();
        let value = if is_removal { "-" } else { &value };
        let mut out = std::io::stdout().lock();
        writeln!(out, "done {revision} {key} {value}").unwrap();
        out.flush().unwrap();
    }
}

/// Starts the writers, kills them after some acknowledged writes, and takes what they said: revision, key, value.
fn killed_writers(path: &Path, acknowledged: usize) -> Vec<(u64, String, String)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sixteen_writers_until_killed", "--ignored", "--nocapture"])
        .env(FILE, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        let Some(done) = line.split_once("done ").map(|(_, done)| done) else { continue };
        let [revision, key, value] = done.split(' ').collect::<Vec<_>>()[..] else { continue };
        said.push((revision.parse().unwrap(), key.to_owned(), value.to_owned()));
        if said.len() == acknowledged {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    said
}

type State = BTreeMap<String, String>;

fn state(store: &Store) -> State {
    let entries = store.range("", None, 0).unwrap().entries;
    let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    entries.iter().map(|entry| (entry.key.to_string(), text(&entry.value))).collect()
}

/// The changes after a revision, in order.
fn changes(store: &Store, after: u64) -> Vec<Change> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let take = move |changes: &[Change]| sink.lock().unwrap().extend_from_slice(changes);
    runtime.block_on(store.follow(after, Box::new(take))).unwrap();
    let seen = seen.lock().unwrap();
    seen.clone()
}

/// What a change left under its key.
fn value(change: &Change) -> Option<String> {
    match &change.after {
        After::Value(value) => Some(String::from_utf8_lossy(value).into_owned()),
        After::Removed => None,
        After::Known => panic!("the follower said that it knows nothing"),
    }
}

#[test]
fn nothing_acknowledged_is_lost_under_sixteen_writers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let kills = std::env::var("KAKOI_SOAK_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    let mut given: BTreeSet<u64> = BTreeSet::new();
    let (mut followed, mut shown) = (0, State::new());
    for round in 0..kills {
        let said = killed_writers(&path, 1 + round * 7 % 60);
        for (revision, ..) in &said {
            assert!(given.insert(*revision), "round {round}: revision {revision} was given out twice");
            assert!(*revision > followed, "round {round}: revision {revision} is older than {followed}");
        }
        let store = Store::open(&path, &StoreOptions::default()).unwrap();
        // A follower goes on where it was: what it is told leads from what it knew to what is there.
        let told = changes(&store, followed);
        assert!(told.windows(2).all(|pair| pair[0].revision < pair[1].revision));
        for change in &told {
            match value(change) {
                Some(value) => shown.insert(change.key.to_string(), value),
                None => shown.remove(&*change.key),
            };
        }
        assert_eq!(shown, state(&store), "round {round}");
        // And each acknowledged write is one of those changes, with its revision and its value.
        let by_revision: BTreeMap<u64, &Change> =
            told.iter().map(|change| (change.revision, change)).collect();
        for (revision, key, value) in &said {
            let change = by_revision.get(revision);
            if value == "-" && change.is_none() {
                // Removing what wasn't there takes no revision of its own.
                continue;
            }
            let change = change.unwrap_or_else(|| panic!("round {round}: {revision} {key} {value} is lost"));
            assert_eq!(&*change.key, key);
            let found = self::value(change).unwrap_or_else(|| "-".to_owned());
            assert_eq!(&found, value, "round {round}: {key} at {revision}");
        }
        followed = store.revision();
    }
}
