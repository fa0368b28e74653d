//! The log of the server's store, and what informers must be told of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::Value;
use store::{After, Storage as _, Store, StoreOptions};

/// The object whose appearance ends the test; it matches every selector here.
pub(crate) const END: &str = "zz-end";
/// Where the store keeps the objects that churn.
const PREFIX: &str = "configmaps/default/";

/// One change of an object, as the store or as an informer has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) name: String,
    pub(crate) revision: u64,
    pub(crate) is_deletion: bool,
}

/// A change with the label that the object then has.
#[derive(Debug)]
struct Logged {
    change: Change,
    label: String,
}

/// All changes that were ever made.
#[derive(Debug, Default)]
pub(crate) struct Log {
    revision: u64,
    changes: Vec<Logged>,
}

impl Log {
    /// Goes on with what the store of a dead server has.
    pub(crate) async fn read(&mut self, path: &Path) {
        let store = Store::open(path, &StoreOptions::default()).unwrap();
        let found = Arc::new(Mutex::new(Vec::new()));
        let sink = found.clone();
        let take = move |changes: &[store::Change]| sink.lock().unwrap().extend_from_slice(changes);
        store.follow(self.revision, Box::new(take)).await.unwrap();
        self.revision = store.revision();
        for change in std::mem::take(&mut *found.lock().unwrap()) {
            if let Some(name) = change.key.strip_prefix(PREFIX) {
                let object: Value = match &change.after {
                    After::Value(value) => serde_json::from_slice(value).unwrap(),
                    After::Removed => Value::Null,
                    After::Known => panic!("the log said that it knows nothing"),
                };
                let label = object["metadata"]["labels"]["l"].as_str().unwrap_or_default().to_owned();
                let is_deletion = change.after == After::Removed;
                let change = Change { name: name.to_owned(), revision: change.revision, is_deletion };
                self.changes.push(Logged { change, label });
            }
        }
    }

    /// The changes as a selector shows them; an empty label selects all objects.
    fn seen_by(&self, label: &str) -> Vec<Change> {
        let mut selected: BTreeMap<&str, bool> = BTreeMap::new();
        let mut seen = Vec::new();
        for Logged { change, label: now } in &self.changes {
            let is = !change.is_deletion && (label.is_empty() || now == label || now == "end");
            let was = selected.insert(&change.name, is).unwrap_or(false);
            if is || was {
                seen.push(Change { is_deletion: !is, ..change.clone() });
            }
        }
        seen
    }
}

/// Whether the log has a write.
pub(crate) fn has_write(log: &Log, name: &str, revision: u64) -> bool {
    let at = log.changes.partition_point(|logged| logged.change.revision < revision);
    log.changes.get(at).is_some_and(|Logged { change, .. }| {
        change.revision == revision && change.name == name && !change.is_deletion
    })
}

/// What an informer was told after one list.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Whether the list came to its end.
    pub(crate) is_listed: bool,
    pub(crate) listed: BTreeMap<String, u64>,
    pub(crate) changes: Vec<Change>,
}

/// Checks that an informer listed once, and was then told the rest of the log, change by change.
pub(crate) fn check(who: &str, told: &[Told], log: &Log, label: &str) {
    let rising = log.changes.windows(2).all(|pair| pair[0].change.revision < pair[1].change.revision);
    assert!(rising, "revisions rise");
    let log = log.seen_by(label);
    let lists: Vec<&Told> = told.iter().filter(|one| one.is_listed).collect();
    assert_eq!(lists.len(), 1, "{who} lists once, whatever breaks off");
    let Told { listed, changes, .. } = lists[0];
    assert!(
        changes.len() > log.len() / 2,
        "{who} lists at the beginning: {} of {}",
        changes.len(),
        log.len()
    );
    let begin = log.len().checked_sub(changes.len());
    let begin = begin.unwrap_or_else(|| panic!("{who} is told {} changes of {}", changes.len(), log.len()));
    assert_eq!(&state(&log[..begin]), listed, "{who}: the list is what was there before the changes");
    for (place, (told, logged)) in changes.iter().zip(&log[begin..]).enumerate() {
        assert_eq!(told, logged, "{who}: change {place} after its list");
    }
}

/// What is there after some changes.
fn state(log: &[Change]) -> BTreeMap<String, u64> {
    let mut state = BTreeMap::new();
    for Change { name, revision, is_deletion } in log {
        if *is_deletion {
            state.remove(name);
        } else {
            state.insert(name.clone(), *revision);
        }
    }
    state
}
