//! Snapshots and what becomes of them: one revision exactly, whole or refused, and no revision twice after a restore.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use store::{
    Change, Durability, Entry, Expect, FollowError, Op, RestoreError, SnapshotError, SnapshotInfo, Storage,
    Store, StoreError, StoreOptions, Write, read_snapshot, restore, save_snapshot,
};
use tokio::runtime::Runtime;

const TAKEN: u64 = 1_800_000_000;

fn open(path: &Path) -> Arc<Store> {
    Store::open(path, &StoreOptions::default()).unwrap()
}

fn put(key: &str, value: impl Into<Bytes>) -> Write {
    Write {
        key: key.to_owned(),
        expect: Expect::Any,
        op: Op::Put(value.into()),
        durability: Durability::Synced,
    }
}

fn snapshot_of(store: &Store) -> Vec<u8> {
    let mut bytes = Vec::new();
    save_snapshot(store, TAKEN, &mut bytes).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<(SnapshotInfo, Vec<Entry>), SnapshotError> {
    let mut entries = Vec::new();
    let info = read_snapshot(bytes, |entry| {
        entries.push(entry);
        Ok::<_, SnapshotError>(())
    })?;
    Ok((info, entries))
}

#[test]
fn a_snapshot_under_writes_is_one_revision_exactly() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let store = open(&directory.path().join("store"));
    runtime.block_on(store.commit(put("b", "0"))).unwrap();
    let writer = runtime.spawn({
        let store = store.clone();
        async move {
            for round in 1..=60 {
                // `z` follows `a`, and `b` follows `z`: at one revision they differ by one at most.
                for key in ["a", "z", "b"] {
                    store.commit(put(key, format!("{round}"))).await.unwrap();
                }
            }
        }
    });
    let mut revisions = Vec::new();
    while !writer.is_finished() {
        let (info, entries) = read(&snapshot_of(&store)).unwrap();
        let number = |key: &str| {
            let entry = entries.iter().find(|entry| &*entry.key == key);
            entry.map_or(0, |entry| std::str::from_utf8(&entry.value).unwrap().parse::<i32>().unwrap())
        };
        let (a, z, b) = (number("a"), number("z"), number("b"));
        assert!(b <= z && z <= a && a <= b + 1, "{a} {z} {b}");
        assert_eq!(info.revision, entries.iter().map(|entry| entry.revision).max().unwrap());
        revisions.push(info.revision);
    }
    runtime.block_on(writer).unwrap();
    assert!(revisions.is_sorted() && revisions.len() > 1, "{revisions:?}");
}

#[test]
fn a_snapshot_that_lacks_a_byte_or_has_another_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = Runtime::new().unwrap();
    let store = open(&directory.path().join("store"));
    for key in ["one", "two", "three"] {
        runtime.block_on(store.commit(put(key, vec![7; 20]))).unwrap();
    }
    let whole = snapshot_of(&store);
    assert_eq!(read(&whole).unwrap().0, SnapshotInfo { revision: 3, taken: TAKEN, entries: 3 });
    for length in 0..whole.len() {
        let error = read(&whole[..length]).unwrap_err();
        let is_said = if length < 17 {
            matches!(error, SnapshotError::Foreign)
        } else {
            matches!(error, SnapshotError::Truncated { .. })
        };
        assert!(is_said, "{length}: {error}");
    }
    for at in 0..whole.len() {
        let mut other = whole.clone();
        other[at] ^= 0x10;
        read(&other).unwrap_err();
    }
    let longer = [whole.as_slice(), b"x"].concat();
    assert_eq!(
        read(&longer).unwrap_err().to_string(),
        "it is damaged: something follows its end; use another one"
    );
    let newer = [b"kakoi snapshot 2\n".as_slice(), &whole[17..]].concat();
    assert!(matches!(read(&newer), Err(SnapshotError::Version)));
}

#[test]
fn a_restored_store_has_what_was_there_and_takes_no_revision_twice() {
    let directory = tempfile::tempdir().unwrap();
    let (path, file) = (directory.path().join("store"), directory.path().join("snapshot"));
    let runtime = Runtime::new().unwrap();
    let store = open(&path);
    let kept = runtime.block_on(store.commit(put("kept", "early"))).unwrap();
    runtime.block_on(store.commit(put("lost", "early"))).unwrap();
    std::fs::write(&file, snapshot_of(&store)).unwrap();
    runtime.block_on(store.commit(put("kept", "late"))).unwrap();
    let last = runtime.block_on(store.commit(Write { op: Op::Delete, ..put("lost", "") })).unwrap();

    let refused = restore(&file, &path, TAKEN).unwrap_err();
    assert!(matches!(refused, RestoreError::Store(StoreError::InUse { .. })), "{refused}");
    assert_eq!(store.get("kept").unwrap().unwrap().value, "late");
    drop(store);

    let restored = restore(&file, &path, TAKEN + 5).unwrap();
    assert!(restored.revision > last);
    let store = open(&path);
    assert_eq!((store.revision(), store.floor()), (restored.revision, restored.revision));
    let entry = store.get("kept").unwrap().unwrap();
    assert_eq!((entry.revision, entry.value.as_ref()), (kept, b"early".as_slice()));
    assert_eq!(store.get("lost").unwrap().unwrap().value, "early");
    let nobody = || Box::new(|_: &[Change]| {});
    for before in [0, kept, last, restored.revision - 1] {
        let followed = runtime.block_on(store.follow(before, nobody()));
        assert!(matches!(followed, Err(FollowError::Compacted { floor, .. }) if floor == restored.revision));
    }
    runtime.block_on(store.follow(restored.revision, nobody())).unwrap();
    let next = runtime.block_on(store.commit(put("kept", "again"))).unwrap();
    assert_eq!(next, restored.revision + 1);
    drop(store);

    let replaced = open(restored.replaced.as_deref().unwrap());
    assert_eq!(replaced.get("kept").unwrap().unwrap().value, "late");
    drop(replaced);
    // A second time, from the same snapshot, in the same second.
    let again = restore(&file, &path, TAKEN + 5).unwrap();
    assert!(again.revision > next);
}

#[test]
fn what_cannot_be_restored_changes_nothing_and_what_cannot_be_read_can_be_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let (path, file) = (directory.path().join("store"), directory.path().join("snapshot"));
    let runtime = Runtime::new().unwrap();
    let store = open(&path);
    runtime.block_on(store.commit(put("key", "value"))).unwrap();
    let whole = snapshot_of(&store);
    runtime.block_on(store.close());
    drop(store);

    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    let before = std::fs::read(&path).unwrap();
    let said = restore(&file, &path, TAKEN).unwrap_err().to_string();
    assert!(
        said.ends_with(
            "it ends in the middle, after 1 entries: it was not written or copied to its end; use another one"
        ),
        "{said}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let missing = restore(&directory.path().join("none"), &path, TAKEN).unwrap_err().to_string();
    assert!(missing.contains("No such file"), "{missing}");

    std::fs::write(&file, &whole).unwrap();
    std::fs::write(&path, b"no store at all").unwrap();
    let restored = restore(&file, &path, TAKEN).unwrap();
    assert!(restored.unreadable.is_some_and(|why| why.contains("opening the store")));
    assert_eq!(std::fs::read(restored.replaced.unwrap()).unwrap(), b"no store at all");
    assert_eq!(open(&path).get("key").unwrap().unwrap().value, "value");

    let fresh = directory.path().join("fresh");
    let restored = restore(&file, &fresh, TAKEN).unwrap();
    assert_eq!((restored.replaced, restored.unreadable), (None, None));
    assert_eq!(open(&fresh).get("key").unwrap().unwrap().value, "value");
    let left: Vec<_> =
        std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with("restoring")), "{left:?}");
}
