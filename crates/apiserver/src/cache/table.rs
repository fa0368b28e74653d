//! The objects of one resource and their latest changes. Watchers keep only a revision: they read the changes after it
//! from the one ring here, so a slow watcher costs nothing and is told so when the ring has passed it.

use std::collections::{HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use api::kind::Kind;
use bytes::Bytes;
use imbl::OrdMap;
use store::{After, Change};
use tokio::sync::watch;

use super::object::{self, Encoder, Object};

/// Changes older than this are forgotten, beyond [`KEEP_AT_LEAST`].
const KEEP_FOR: Duration = Duration::from_mins(5);
/// Changes that are kept however old they are.
const KEEP_AT_LEAST: usize = 256;
/// The most changes that are kept.
const KEEP_AT_MOST: usize = 16 * 1024;
/// The most bytes of objects that are kept for the past.
const KEEP_BYTES: usize = 32 * 1024 * 1024;

/// One change.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) revision: u64,
    /// The object after the change; of a removal, the last object at the revision of its removal.
    pub(crate) object: Arc<Object>,
    /// The object before the change.
    pub(crate) previous: Option<Arc<Object>>,
    pub(crate) removed: bool,
    at: Instant,
}

impl Event {
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub(crate) fn name(&self) -> &'static str {
        name(self.previous.is_some(), self.removed)
    }

    /// The line of a watch, encoded once for all watchers.
    pub(crate) fn frame(&self) -> Bytes {
        self.object.line(self.name())
    }

    fn size(&self) -> usize {
        self.object.json().len()
    }
}

/// What a watch calls a change.
fn name(was_there: bool, removed: bool) -> &'static str {
    match (was_there, removed) {
        (_, true) => "DELETED",
        (false, false) => "ADDED",
        (true, false) => "MODIFIED",
    }
}

/// One line of a watch.
pub(crate) fn frame(name: &str, object: &[u8]) -> Bytes {
    object::line(name, &[object])
}

/// Whether a change was made before the objects were loaded, and so is in them already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    Past,
    Now,
}

/// That revision is older than what is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expired {
    /// The oldest revision that works.
    pub(crate) oldest: u64,
}

/// All objects at one revision. Copying one is O(1).
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) revision: u64,
    pub(crate) objects: OrdMap<Arc<str>, Arc<Object>>,
}

impl Snapshot {
    /// The objects whose keys begin with `prefix` and come at or after `start`.
    pub(crate) fn range<'a>(
        &'a self,
        prefix: &'a str,
        start: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        let from = start.filter(|start| *start > prefix).unwrap_or(prefix);
        self.objects
            .range::<_, str>((Bound::Included(from), Bound::Unbounded))
            .map(|(_, object)| object)
            .take_while(move |object| object.key().starts_with(prefix))
    }
}

#[derive(Debug, Default)]
struct State {
    objects: OrdMap<Arc<str>, Arc<Object>>,
    events: VecDeque<Arc<Event>>,
    /// While the past is told: the newest object of each key so far, which the next change's `previous` is.
    past: HashMap<Arc<str>, Arc<Object>>,
    bytes: usize,
    /// Changes after this revision are all here.
    floor: u64,
    last: u64,
}

/// One resource.
#[derive(Debug)]
pub(crate) struct Table {
    encoder: Encoder,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Table {
    pub(crate) fn new(kind: &'static Kind) -> Self {
        Self { encoder: Encoder::new(kind), state: Mutex::default(), changed: watch::Sender::new(0) }
    }

    pub(crate) fn kind(&self) -> &'static Kind {
        self.encoder.kind()
    }

    pub(crate) fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a stored object as it is; false when it is not in our form.
    pub(super) fn load(&self, key: &str, revision: u64, stored: &[u8]) -> bool {
        let Some(object) = self.encoder.object(Arc::from(key), revision, stored, "ADDED") else {
            return false;
        };
        let mut state = self.state();
        state.last = state.last.max(revision);
        state.objects.insert(object.key().clone(), Arc::new(object));
        true
    }

    pub(super) fn set_floor(&self, floor: u64) {
        self.state().floor = floor;
    }

    /// Takes a change; one whose bytes are not ours is skipped with an error in the log.
    pub(super) fn take(&self, key: &str, change: &Change, when: When) {
        let Some(event) = self.event(key, change, when) else {
            tracing::error!(
                key = &*change.key,
                revision = change.revision,
                "a stored object has an unknown form"
            );
            return;
        };
        let mut state = self.state();
        match (when, event.removed) {
            (When::Now, true) => drop(state.objects.remove(key)),
            (When::Now, false) => {
                state.objects.insert(event.object.key().clone(), event.object.clone());
            }
            (When::Past, true) => drop(state.past.remove(key)),
            (When::Past, false) => {
                state.past.insert(event.object.key().clone(), event.object.clone());
            }
        }
        state.last = state.last.max(change.revision);
        state.bytes += event.size();
        state.events.push_back(Arc::new(event));
        state.forget();
    }

    fn event(&self, key: &str, change: &Change, when: When) -> Option<Event> {
        let key: Arc<str> = Arc::from(key);
        let known = match when {
            When::Now => self.get(&key),
            When::Past => self.state().past.get(&key).cloned(),
        };
        let previous = match (&change.previous, known) {
            (None, _) => None,
            (Some((revision, _)), Some(known)) if known.revision() == *revision => Some(known),
            (Some((revision, stored)), _) => {
                Some(Arc::new(self.encoder.object(key.clone(), *revision, stored, "MODIFIED")?))
            }
        };
        let object = match &change.after {
            // Of the past, what is still there has been loaded already.
            After::Known => self.get(&key)?,
            After::Value(stored) => {
                let told = name(previous.is_some(), false);
                Arc::new(self.encoder.object(key, change.revision, stored, told)?)
            }
            After::Removed => Arc::new(previous.as_ref()?.removed_at(&self.encoder, change.revision)?),
        };
        let (revision, removed, at) = (change.revision, change.after == After::Removed, Instant::now());
        Some(Event { revision, object, previous, removed, at })
    }

    /// Lets go of what only the telling of the past needs.
    pub(super) fn past_is_told(&self) {
        self.state().past = HashMap::new();
    }

    pub(super) fn wake(&self) {
        let last = self.state().last;
        self.changed.send_if_modified(|seen| std::mem::replace(seen, last) != last);
    }

    /// The revision of the newest change since the start; 0 when there was none.
    pub(crate) fn newest(&self) -> u64 {
        *self.changed.borrow()
    }

    /// Tells when there are new changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.state().objects.get(key).cloned()
    }

    /// Forgets changes as if much time had passed.
    #[cfg(test)]
    pub(super) fn forget_until(&self, revision: u64) {
        let mut state = self.state();
        while state.events.front().is_some_and(|event| event.revision <= revision) {
            state.events.pop_front();
        }
        state.floor = revision;
    }

    pub(crate) fn len(&self) -> usize {
        self.state().objects.len()
    }

    /// The newest state. `newest` is asked under the lock: every change up to its answer is in.
    pub(super) fn snapshot(&self, newest: impl FnOnce() -> u64) -> Snapshot {
        let state = self.state();
        Snapshot { revision: newest().max(state.last), objects: state.objects.clone() }
    }

    /// The state at a revision that is not newer than the newest, by undoing the changes since then.
    pub(crate) fn snapshot_at(&self, revision: u64) -> Result<Snapshot, Expired> {
        let state = self.state();
        if revision < state.floor {
            return Err(Expired { oldest: state.floor });
        }
        let mut objects = state.objects.clone();
        for event in state.events.iter().rev().take_while(|event| event.revision > revision) {
            match &event.previous {
                Some(previous) => objects.insert(previous.key().clone(), previous.clone()),
                None => objects.remove(event.object.key()),
            };
        }
        Ok(Snapshot { revision, objects })
    }

    /// The changes after a revision, at most `limit`, and the revision up to which they are all.
    /// `newest` is asked under the lock.
    pub(crate) fn changes_after(
        &self,
        revision: u64,
        limit: usize,
        newest: impl FnOnce() -> u64,
    ) -> Result<(Vec<Arc<Event>>, u64), Expired> {
        let state = self.state();
        if revision < state.floor {
            return Err(Expired { oldest: state.floor });
        }
        let from = state.events.partition_point(|event| event.revision <= revision);
        let events: Vec<_> = state.events.range(from..).take(limit).cloned().collect();
        let upto = match events.last() {
            Some(last) if from + events.len() < state.events.len() => last.revision,
            _ => newest().max(state.last).max(revision),
        };
        Ok((events, upto))
    }
}

impl State {
    fn forget(&mut self) {
        while self.events.len() > KEEP_AT_LEAST
            && let Some(oldest) = self.events.front()
            && (self.events.len() > KEEP_AT_MOST || self.bytes > KEEP_BYTES || oldest.at.elapsed() > KEEP_FOR)
        {
            self.floor = oldest.revision;
            self.bytes -= oldest.size();
            self.events.pop_front();
        }
    }
}
