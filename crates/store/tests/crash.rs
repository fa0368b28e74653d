//! SIGKILL at random moments: no synced write is lost, no revision is given out twice.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use store::{Durability, Expect, FollowError, Op, Storage, Store, StoreOptions, Write};

const FILE: &str = "STORE_CRASH_FILE";

/// Not a test of its own: the process that `killed_writers_lose_nothing_that_was_synced` kills.
#[test]
#[ignore = "run by killed_writers_lose_nothing_that_was_synced in a process of its own"]
fn write_until_killed() {
    let Some(path) = std::env::var_os(FILE) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(Path::new(&path), &StoreOptions::default()).unwrap();
        for round in 0u64.. {
            let relaxed = round % 4 == 1;
            let write = Write {
                key: format!("{}/{}", if relaxed { "relaxed" } else { "synced" }, round % 50),
                expect: Expect::Any,
                op: if round % 7 == 6 { Op::Delete } else { Op::Put(Bytes::from(format!("{round:>2000}"))) },
                durability: if relaxed { Durability::Relaxed } else { Durability::Synced },
            };
            let (key, deleted) = (write.key.clone(), write.op == Op::Delete);
            let revision = store.commit(write).await.unwrap();
            let mut out = std::io::stdout().lock();
            writeln!(
                out,
                "done {revision} {key} {}",
                if deleted { "-".to_owned() } else { round.to_string() }
            )
            .unwrap();
            out.flush().unwrap();
        }
    });
}

/// Starts a writer, kills it after `acknowledged` writes, and takes what it said.
fn killed_writer(path: &Path, acknowledged: usize) -> Vec<(u64, String, String)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "write_until_killed", "--ignored", "--nocapture"])
        .env(FILE, path)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut said = Vec::new();
    for line in lines {
        let line = line.unwrap();
        let Some(done) = line.split_once("done ").map(|(_, done)| done.to_owned()) else { continue };
        let [revision, key, value] = done.split(' ').collect::<Vec<_>>()[..] else { continue };
        said.push((revision.parse().unwrap(), key.to_owned(), value.to_owned()));
        if said.len() == acknowledged {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(said.len() >= acknowledged, "the writer ended by itself after {} writes", said.len());
    said
}

#[test]
fn killed_writers_lose_nothing_that_was_synced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut newest = 0;
    let mut expected: BTreeMap<String, String> = BTreeMap::new();
    for (round, acknowledged) in [1, 40, 3, 77, 120, 9].into_iter().enumerate() {
        let said = killed_writer(&path, acknowledged);
        let first = said.first().unwrap().0;
        assert!(first > newest, "round {round}: revision {first} was given out before ({newest})");
        assert!(said.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        newest = said.last().unwrap().0;
        for (_, key, value) in said.into_iter().filter(|(_, key, _)| key.starts_with("synced/")) {
            expected.insert(key, value);
        }

        let store = Store::open(&path, &StoreOptions::default()).unwrap();
        assert!(store.revision() >= newest);
        // One write may have reached the disk without being acknowledged.
        let found = |key: &String| {
            store.get(key).unwrap().map_or_else(
                || "-".to_owned(),
                |entry| String::from_utf8_lossy(&entry.value).trim().to_owned(),
            )
        };
        let wrong: Vec<_> = expected.iter().filter(|(key, value)| found(key) != **value).collect();
        assert!(wrong.len() <= 1, "round {round}: {wrong:?}");
        for (key, value) in &mut expected {
            *value = found(key);
        }
        let history = runtime.block_on(store.follow(newest, Box::new(|_: &[store::Change]| {})));
        assert!(matches!(history, Ok(()) | Err(FollowError::Compacted { .. })), "{history:?}");
        newest = store.revision();
    }
}
