//! The store against a model, through random writes, compactions and reopenings.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test ends at its first surprise")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;
use store::{
    After, Change, CommitError, Durability, Expect, FollowError, Op, Sink, Storage, Store, StoreError,
    StoreOptions, Write,
};

#[derive(Debug, Clone)]
enum Step {
    Write { key: u8, expect: Guess, value: Option<u8>, relaxed: bool },
    Together(Vec<(u8, Option<u8>)>),
    Compact(u8),
    Reopen,
}

#[derive(Debug, Clone, Copy)]
enum Guess {
    Absent,
    Right,
    Wrong,
    Any,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guess = prop_oneof![Just(Guess::Absent), Just(Guess::Right), Just(Guess::Wrong), Just(Guess::Any)];
    let value = proptest::option::weighted(0.7, any::<u8>());
    let step = prop_oneof![
        8 => (0..6u8, guess, value.clone(), any::<bool>())
            .prop_map(|(key, expect, value, relaxed)| Step::Write { key, expect, value, relaxed }),
        2 => proptest::collection::vec((0..6u8, value), 1..8).prop_map(Step::Together),
        1 => any::<u8>().prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

#[derive(Default)]
struct Model {
    revision: u64,
    current: BTreeMap<String, (u64, Bytes)>,
    log: Vec<Change>,
    floor: u64,
}

impl Model {
    fn apply(&mut self, write: &Write) -> Result<u64, ()> {
        let before = self.current.get(&write.key).cloned();
        let expected = match write.expect {
            Expect::Absent => before.is_none(),
            Expect::Revision(revision) => before.as_ref().is_some_and(|(now, _)| *now == revision),
            Expect::Any => true,
        };
        if !expected {
            return Err(());
        }
        let value = match &write.op {
            Op::Put(value) => Some(value.clone()),
            Op::Delete if before.is_none() => return Ok(self.revision),
            Op::Delete => None,
        };
        self.revision += 1;
        match &value {
            Some(value) => self.current.insert(write.key.clone(), (self.revision, value.clone())),
            None => self.current.remove(&write.key),
        };
        self.log.push(Change {
            revision: self.revision,
            key: Arc::from(write.key.as_str()),
            after: value.map_or(After::Removed, After::Value),
            previous: before,
        });
        Ok(self.revision)
    }
}

fn name(key: u8) -> String {
    format!("{}/{key}", if key.is_multiple_of(2) { "even" } else { "odd" })
}

fn write(key: u8, value: Option<u8>, expect: Expect, relaxed: bool) -> Write {
    let op = value.map_or(Op::Delete, |value| Op::Put(Bytes::from(vec![value; usize::from(value)])));
    Write {
        key: name(key),
        expect,
        op,
        durability: if relaxed { Durability::Relaxed } else { Durability::Synced },
    }
}

/// What a start would be given, each key once.
fn loaded(store: &Store) -> BTreeMap<String, (u64, Bytes)> {
    let loaded = Mutex::new(BTreeMap::new());
    store
        .load(&|row| {
            let value = (row.revision, Bytes::copy_from_slice(row.value));
            let before = loaded.lock().unwrap().insert(row.key.to_owned(), value);
            assert_eq!(before, None, "{} is given twice", row.key);
            true
        })
        .unwrap();
    loaded.into_inner().unwrap()
}

async fn compare(store: &Store, model: &Model) {
    assert_eq!(store.revision(), model.revision);
    for prefix in ["", "even/", "odd/", "none/"] {
        let listing = store.range(prefix, None, 0).unwrap();
        let expected: Vec<_> = model.current.iter().filter(|(key, _)| key.starts_with(prefix)).collect();
        assert_eq!(listing.revision, model.revision);
        assert_eq!(listing.entries.len(), expected.len());
        for (entry, (key, (revision, value))) in listing.entries.iter().zip(expected) {
            assert_eq!((entry.key.as_ref(), entry.revision, &entry.value), (key.as_str(), *revision, value));
            assert_eq!(store.get(key).unwrap().as_ref(), Some(entry));
        }
    }
    assert_eq!(loaded(store), model.current);
    for after in [0, model.floor, model.floor + 1, model.revision] {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let into = seen.clone();
        let sink = move |changes: &[Change]| into.lock().unwrap().extend_from_slice(changes);
        match store.follow(after, Box::new(sink)).await {
            Ok(()) => {
                let expected: Vec<_> =
                    model.log.iter().filter(|change| change.revision > after).cloned().collect();
                assert_eq!(*seen.lock().unwrap(), expected);
            }
            Err(FollowError::Compacted { floor, .. }) => {
                assert_eq!(floor, model.floor);
                assert!(after < floor);
            }
            Err(FollowError::Future { .. }) => assert!(after > model.revision),
            Err(FollowError::Store(error)) => panic!("{error}"),
        }
    }
}

async fn run(steps: Vec<Step>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut store = Store::open(&path, &StoreOptions::default()).unwrap();
    let mut model = Model::default();
    for step in steps {
        match step {
            Step::Write { key, expect, value, relaxed } => {
                let now = model.current.get(&name(key)).map(|(revision, _)| *revision);
                let expect = match (expect, now) {
                    (Guess::Absent, _) | (Guess::Right, None) => Expect::Absent,
                    (Guess::Right, Some(revision)) => Expect::Revision(revision),
                    (Guess::Wrong, revision) => Expect::Revision(revision.unwrap_or(0) + 1000),
                    (Guess::Any, _) => Expect::Any,
                };
                let write = write(key, value, expect, relaxed);
                let before = model.current.get(&write.key).cloned();
                match (store.commit(write.clone()).await, model.apply(&write)) {
                    (Ok(revision), Ok(expected)) => assert_eq!(revision, expected),
                    (Err(CommitError::Conflict { current }), Err(())) => {
                        assert_eq!(current.map(|entry| (entry.revision, entry.value)), before);
                    }
                    (result, expected) => panic!("{result:?}, expected {expected:?}"),
                }
            }
            Step::Together(writes) => {
                let writes: Vec<_> =
                    writes.into_iter().map(|(key, value)| write(key, value, Expect::Any, false)).collect();
                let results =
                    futures_in_order(writes.iter().map(|write| store.commit(write.clone())).collect()).await;
                let expected: Vec<_> = writes.iter().map(|write| model.apply(write).unwrap()).collect();
                assert_eq!(results, expected);
            }
            Step::Compact(back) => {
                let to = model.revision.saturating_sub(u64::from(back));
                store.compact(to).await.unwrap();
                model.floor = model.floor.max(to);
                model.log.retain(|change| change.revision > to);
            }
            Step::Reopen => {
                drop(store);
                store = Store::open(&path, &StoreOptions::default()).unwrap();
            }
        }
        assert_eq!(store.floor(), model.floor);
    }
    compare(&store, &model).await;
    drop(store);
    compare(&Store::open(&path, &StoreOptions::default()).unwrap(), &model).await;
}

/// Starts all commits in order, then waits for all: they reach the writer as one group.
async fn futures_in_order(commits: Vec<store::BoxFuture<'_, Result<u64, CommitError>>>) -> Vec<u64> {
    let mut commits: Vec<_> = commits.into_iter().map(Some).collect();
    let mut results = vec![0; commits.len()];
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (commit, result) in commits.iter_mut().zip(&mut results) {
            if let Some(future) = commit {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(done) => {
                        *result = done.unwrap();
                        *commit = None;
                    }
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        if pending { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    results
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_behaves_as_its_model_also_when_it_is_reopened(steps in steps()) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(steps));
    }
}

#[tokio::test]
async fn a_second_process_is_told_that_the_file_is_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let _store = Store::open(&path, &StoreOptions::default()).unwrap();
    let error = Store::open(&path, &StoreOptions::default()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another process has it open"), "{error}");
}

#[tokio::test]
async fn a_sink_has_seen_a_change_before_its_writer_knows() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store"), &StoreOptions::default()).unwrap();
    let newest = Arc::new(Mutex::new(0));
    let into = newest.clone();
    let sink = move |changes: &[Change]| *into.lock().unwrap() = changes.last().unwrap().revision;
    store.follow(0, Box::new(sink)).await.unwrap();
    for value in 0..50 {
        let revision = store.commit(write(1, Some(value), Expect::Any, value % 3 == 0)).await.unwrap();
        assert_eq!(*newest.lock().unwrap(), revision);
    }
}

/// A history comes in pieces: what followers of the past and of the present are told must be the same.
#[tokio::test]
async fn a_long_history_is_told_as_it_happened() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store"), &StoreOptions::default()).unwrap();
    let follow = async || {
        let told: Arc<Mutex<Vec<Change>>> = Arc::default();
        let into = told.clone();
        let sink = move |changes: &[Change]| into.lock().unwrap().extend_from_slice(changes);
        store.follow(0, Box::new(sink)).await.unwrap();
        told
    };
    let present = follow().await;
    for number in 0..700_u16 {
        let [number, _] = number.to_le_bytes();
        let value = (number % 11 != 0).then_some(number);
        store.commit(write(number % 7, value, Expect::Any, true)).await.unwrap();
    }
    let (past, present) = (follow().await, present.lock().unwrap().clone());
    assert!(present.len() > 512, "{}", present.len());
    assert!(*past.lock().unwrap() == present);
}

/// A follower of one process that has loaded what is there.
struct Loaded {
    known: BTreeMap<String, (u64, Bytes)>,
    told: Arc<Mutex<Vec<Change>>>,
}

impl Sink for Loaded {
    fn take(&mut self, changes: &[Change]) {
        self.told.lock().unwrap().extend_from_slice(changes);
    }

    fn has(&self, key: &str, revision: u64) -> bool {
        self.known.get(key).is_some_and(|(known, _)| *known == revision)
    }
}

/// More than is given at a time, from both ends.
#[tokio::test]
async fn what_a_follower_has_loaded_is_not_told_to_it_again() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store"), &StoreOptions::default()).unwrap();
    let put = |number: u32, size: usize| Write {
        key: format!("key/{number}"),
        expect: Expect::Any,
        op: Op::Put(Bytes::from(vec![7; size])),
        durability: Durability::Relaxed,
    };
    for number in 0..401 {
        store.commit(put(number, 4096)).await.unwrap();
    }
    store.commit(put(5, 10)).await.unwrap();
    store.commit(Write { op: Op::Delete, ..put(6, 0) }).await.unwrap();
    let known = loaded(&store);
    assert_eq!(known.len(), 400);
    assert!(known.iter().all(|(key, (_, value))| value.len() == if key == "key/5" { 10 } else { 4096 }));
    let told = Arc::new(Mutex::new(Vec::new()));
    store.follow(0, Box::new(Loaded { known: known.clone(), told: told.clone() })).await.unwrap();
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 403);
    for change in told.iter() {
        let is_newest = known.get(&*change.key).is_some_and(|(newest, _)| *newest == change.revision);
        match &change.after {
            After::Known => assert!(is_newest, "{change:?}"),
            After::Removed => assert_eq!(&*change.key, "key/6"),
            After::Value(value) => assert!(!is_newest && value.len() == 4096, "{change:?}"),
        }
    }
}

#[tokio::test]
async fn a_closed_store_takes_nothing_more_and_has_lost_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = Store::open(&path, &StoreOptions::default()).unwrap();
    let revision = store.commit(write(1, Some(7), Expect::Any, true)).await.unwrap();
    store.close().await;
    let refused = store.commit(write(1, Some(8), Expect::Any, true)).await.unwrap_err();
    assert!(matches!(refused, CommitError::Store(StoreError::Closed)), "{refused}");
    drop(store);
    let store = Store::open(&path, &StoreOptions::default()).unwrap();
    assert_eq!(store.revision(), revision);
    assert_eq!(store.get(&name(1)).unwrap().unwrap().revision, revision);
}
