//! SIGKILL at random moments: no synced write is lost, no revision is given out twice.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test ends at its first surprise"
)]

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

const FULL: &str = "STORE_FULL_DIRECTORY";

/// Not a test of its own: runs in a mount namespace where the directory is a small file system.
#[test]
#[ignore = "run by a_full_disk_is_said_and_nothing_is_lost in a mount namespace of its own"]
fn fill_until_full() {
    let Some(directory) = std::env::var_os(FULL) else { return };
    let directory = Path::new(&directory);
    let (path, filler) = (directory.join("store"), directory.join("filler"));
    std::fs::write(&filler, vec![1; 512 * 1024]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let put = |number: usize| Write {
            key: format!("key/{number:04}"),
            expect: Expect::Absent,
            op: Op::Put(Bytes::from(vec![7; 50_000])),
            durability: Durability::Synced,
        };
        let store = Store::open(&path, &StoreOptions::default()).unwrap();
        let mut written = 0;
        let error = loop {
            match store.commit(put(written)).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
        };
        assert!(error.to_string().contains("No space left on device"), "{error}");
        assert!(!store.is_writable());
        store.commit(put(written + 1)).await.unwrap_err();
        assert_eq!(store.range("key/", None, 0).unwrap().entries.len(), written);
        drop(store);

        std::fs::remove_file(&filler).unwrap();
        let store = Store::open(&path, &StoreOptions::default()).unwrap();
        assert!(store.is_writable());
        assert_eq!(store.range("key/", None, 0).unwrap().entries.len(), written);
        store.commit(put(written)).await.unwrap();
    });
    println!("full and freed");
}

#[test]
fn a_full_disk_is_said_and_nothing_is_lost() {
    let directory = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=4m none \"$STORE_FULL_DIRECTORY\" && exec \"$0\" --exact fill_until_full --ignored --nocapture";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env(FULL, directory.path())
        .output()
        .expect("this test needs `unshare`");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("full and freed"),
        "this test needs root for its mount: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
