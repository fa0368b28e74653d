//! Watches: a stream of changes after a revision, with bookmarks, or first everything that is there (WatchList).
//! A watch keeps a revision and no queue of changes; a client that reads too slowly gets 410 and begins again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::kind::Kind;
use api::status::Status;
use api::table;
use api::validation::{FieldErrors, Path};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cache::{Cache, Event, Expired, Object, Table, frame};
use crate::list::{Filter, parse_version};
use crate::request::{Query, RequestInfo};
use crate::response::{Form, to_bytes};
use crate::view;

/// How often a bookmark tells how far the watch is.
const BOOKMARK_EVERY: Duration = Duration::from_mins(1);
/// How long a watch lasts that names no timeout: between this and twice this.
const LASTS_AT_LEAST: Duration = Duration::from_mins(30);
/// Changes taken from the cache at a time.
const CHUNK: usize = 64;

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// With everything that is there now, as `ADDED`.
    Everything,
    /// The same, and a bookmark that says where it ended.
    EverythingMarked,
    /// Strictly after a revision.
    After(u64),
    /// With what comes next.
    Now,
}

/// The parameters of a watch.
#[derive(Debug)]
pub(crate) struct Options {
    start: Start,
    bookmarks: bool,
    lasts: Duration,
}

impl Options {
    pub(crate) fn parse(query: &Query, newest: u64) -> Result<Self, Status> {
        check_options(query)?;
        let version = query.get("resourceVersion");
        let bookmarks = query.flag("allowWatchBookmarks");
        let initial = query.has("sendInitialEvents").then(|| query.flag("sendInitialEvents"));
        let start = match (initial, version) {
            (Some(true), version) => {
                let wanted = if version.is_empty() { 0 } else { parse_version(version)? };
                if wanted > newest {
                    return Err(Status::too_large_resource_version(wanted, newest));
                }
                if bookmarks { Start::EverythingMarked } else { Start::Everything }
            }
            (Some(false), "" | "0") => Start::Now,
            (None, "" | "0") => Start::Everything,
            (_, version) => Start::After(parse_version(version)?),
        };
        let lasts = match query.get("timeoutSeconds").parse::<u64>() {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => LASTS_AT_LEAST + LASTS_AT_LEAST.mul_f64(f64::from(rand::random::<u8>()) / 256.0),
        };
        Ok(Self { start, bookmarks, lasts })
    }
}

/// Refuses parameters that contradict each other, as `ListOptions` validation does for watches.
fn check_options(query: &Query) -> Result<(), Status> {
    let wanted = query.get("resourceVersionMatch");
    let initial = query.has("sendInitialEvents");
    let path = Path::new("resourceVersionMatch");
    let mut errors = FieldErrors::new();
    if initial && wanted != "NotOlderThan" {
        errors.forbidden(&path, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if !wanted.is_empty() {
        if !initial {
            errors.forbidden(
                &path,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if wanted != "NotOlderThan" {
            errors.not_supported(&path, wanted, &["NotOlderThan"]);
        }
        if !query.get("continue").is_empty() {
            errors.forbidden(&path, "resourceVersionMatch is forbidden when continue is provided");
        }
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Status::invalid_kind("meta.k8s.io", "ListOptions", "", &errors))
    }
}

/// One watch.
pub(crate) struct Watch {
    cache: Arc<Cache>,
    kind: &'static Kind,
    filter: Filter,
    form: Form,
    /// What was there at the start and has not been sent.
    initial: std::vec::IntoIter<Arc<Object>>,
    /// Whether the end of `initial` must be marked.
    mark_initial: bool,
    cursor: u64,
    changed: watch::Receiver<u64>,
    ready: VecDeque<Bytes>,
    has_sent_columns: bool,
    /// When the next bookmark is due, for clients that want them.
    bookmark_at: Option<Instant>,
    end_at: Instant,
    shutdown: CancellationToken,
    is_over: bool,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Watch")
            .field("kind", &self.kind.kind)
            .field("cursor", &self.cursor)
            .finish_non_exhaustive()
    }
}

impl Watch {
    /// Begins a watch on a kind that is stored.
    pub(crate) fn new(
        cache: Arc<Cache>,
        kind: &'static Kind,
        info: &RequestInfo,
        form: Form,
        shutdown: CancellationToken,
    ) -> Result<Self, Status> {
        let filter = Filter::parse(kind, info)?;
        let options = Options::parse(&info.query, cache.revision())?;
        let table = cache.table(kind).ok_or_else(|| Status::method_not_supported(kind, "watch"))?;
        let changed = table.subscribe();
        let mut initial = Vec::new();
        let cursor = match options.start {
            Start::After(revision) => {
                table
                    .changes_after(revision, 0, || revision)
                    .map_err(|expired| too_old(revision, expired))?;
                revision
            }
            Start::Now => cache.snapshot(table).revision,
            Start::Everything | Start::EverythingMarked => {
                let snapshot = cache.snapshot(table);
                let matching = snapshot.range(filter.prefix(), None).filter(|object| filter.matches(object));
                initial = matching.cloned().collect();
                snapshot.revision
            }
        };
        let now = Instant::now();
        Ok(Self {
            kind,
            filter,
            form,
            initial: initial.into_iter(),
            mark_initial: options.start == Start::EverythingMarked,
            cursor,
            changed,
            ready: VecDeque::new(),
            has_sent_columns: false,
            bookmark_at: options.bookmarks.then(|| now + BOOKMARK_EVERY),
            end_at: now + options.lasts,
            shutdown,
            is_over: false,
            cache,
        })
    }

    /// The next line; `None` when the watch has ended.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.is_over {
                return None;
            }
            self.fill();
            if self.ready.is_empty() && !self.is_over {
                self.wait().await;
            }
        }
    }

    /// Makes lines of what is there.
    fn fill(&mut self) {
        if let Some(object) = self.initial.next() {
            let line = self.line("ADDED", &object);
            self.ready.push_back(line);
            return;
        }
        if std::mem::take(&mut self.mark_initial) {
            let line = self.bookmark(true);
            self.ready.push_back(line);
            return;
        }
        let cache = self.cache.clone();
        let Some(table) = cache.table(self.kind) else { return };
        match table.changes_after(self.cursor, CHUNK, || cache.revision()) {
            Ok((events, upto)) => {
                for event in &events {
                    let line = self.event_line(table, event);
                    self.ready.extend(line);
                }
                self.cursor = upto;
            }
            Err(expired) => {
                let status = too_old(self.cursor, expired);
                self.ready.push_back(frame("ERROR", &to_bytes(&status.to_value())));
                self.is_over = true;
            }
        }
    }

    async fn wait(&mut self) {
        let bookmark_at = self.bookmark_at;
        tokio::select! {
            changed = self.changed.changed() => self.is_over = changed.is_err(),
            () = tokio::time::sleep_until(bookmark_at.unwrap_or(self.end_at)), if bookmark_at.is_some() => {
                self.bookmark_at = Some(Instant::now() + BOOKMARK_EVERY);
                self.fill();
                if self.ready.is_empty() {
                    let line = self.bookmark(false);
                    self.ready.push_back(line);
                }
            }
            () = tokio::time::sleep_until(self.end_at) => {
                self.is_over = true;
                if bookmark_at.is_some() {
                    let line = self.bookmark(false);
                    self.ready.push_back(line);
                }
            }
            () = self.shutdown.cancelled() => self.is_over = true,
        }
    }

    /// What a change is to this watch: an object that begins to match is added, one that ceases to is deleted.
    fn event_line(&mut self, table: &Table, event: &Arc<Event>) -> Option<Bytes> {
        let is = !event.removed && self.filter.matches(&event.object);
        let was = event.previous.as_ref().is_some_and(|previous| self.filter.matches(previous));
        let name = match (was, is) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        let is_shared = self.form == Form::Object && name == event.name() && view::is_stored_form(self.kind);
        if is_shared {
            return Some(event.frame());
        }
        match (&event.previous, is || event.removed) {
            (Some(previous), false) => {
                let last = previous.removed_at(table.encoder(), event.revision)?;
                Some(self.line(name, &last))
            }
            _ => Some(self.line(name, &event.object)),
        }
    }

    fn line(&mut self, name: &str, object: &Object) -> Bytes {
        let bytes = match self.form {
            Form::Object if view::is_stored_form(self.kind) => return object.line(name),
            Form::Object => view::bytes(self.kind, object),
            Form::Metadata => to_bytes(&table::partial_object_metadata(&object.value())),
            Form::Table(include) => {
                let value = view::value(self.kind, object);
                let row = table::row(self.kind, &value, include, jiff::Timestamp::now());
                let version = json!({"resourceVersion": object.revision().to_string()});
                let has_columns = !std::mem::replace(&mut self.has_sent_columns, true);
                to_bytes(&table::table(self.kind, version, vec![row], has_columns))
            }
        };
        frame(name, &bytes)
    }

    fn bookmark(&self, ends_initial: bool) -> Bytes {
        let mut metadata = Map::new();
        metadata.insert("resourceVersion".to_owned(), self.cursor.to_string().into());
        if ends_initial {
            metadata.insert("annotations".to_owned(), json!({"k8s.io/initial-events-end": "true"}));
        }
        let metadata = Value::Object(metadata);
        let object = match self.form {
            Form::Object => {
                json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata})
            }
            Form::Metadata => table::partial_object_metadata(&json!({"metadata": metadata})),
            Form::Table(_) => table::table(self.kind, metadata, Vec::new(), false),
        };
        frame("BOOKMARK", &to_bytes(&object))
    }
}

fn too_old(revision: u64, expired: Expired) -> Status {
    Status::expired(format!("too old resource version: {revision} ({})", expired.oldest))
}
