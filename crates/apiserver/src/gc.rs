//! The garbage collector: objects whose owners are all gone go too; `orphan` and `foregroundDeletion` on a deleted owner
//! say otherwise. It follows the cache and parses only objects that own, are owned, or wait.

mod graph;

use std::sync::Arc;
use std::time::Duration;

use api::kind::{self, Kind};
use api::status::Status;
use serde_json::{Value, json};

use crate::cache::{Event, Object, Table};
use crate::delete::{self, FOREGROUND, ORPHAN, Options};
use crate::identity::Identity;
use crate::meta;
use crate::request::RequestInfo;
use crate::server::Server;
use crate::write::Write;

use graph::{Graph, Owner, Place};

/// Changes taken from one table at a time.
const CHUNK: usize = 256;
/// When what could not be done is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Collects until the shutdown.
pub(crate) async fn run(server: Arc<Server>) {
    let mut changed: Vec<_> = server.cache.tables().iter().map(Table::subscribe).collect();
    let mut collector = Collector::new(&server);
    loop {
        let is_done = collector.pass().await;
        let any = futures::future::select_all(changed.iter_mut().map(|one| Box::pin(one.changed())));
        tokio::select! {
            _ = any => {}
            () = tokio::time::sleep(AGAIN), if !is_done => {}
            () = server.shutdown.cancelled() => return,
        }
    }
}

/// How an owner of an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is there, or it can't be known.
    Solid,
    /// It is being deleted in the foreground: its dependents go first.
    Waiting,
    Absent,
}

struct Collector<'a> {
    server: &'a Server,
    user: Arc<Identity>,
    graph: Graph,
    /// The revision up to which each table has been seen; `None` before the first time.
    cursors: Vec<Option<u64>>,
}

impl<'a> Collector<'a> {
    fn new(server: &'a Server) -> Self {
        let name = "system:serviceaccount:kube-system:generic-garbage-collector";
        Self {
            server,
            user: Arc::new(Identity::new(name, &[crate::identity::MASTERS])),
            graph: Graph::default(),
            cursors: vec![None; server.cache.tables().len()],
        }
    }

    /// Takes every change and does what follows; false when something is to be tried again.
    async fn pass(&mut self) -> bool {
        for (index, table) in self.server.cache.tables().iter().enumerate() {
            self.catch_up(index, table);
        }
        let mut is_done = true;
        for place in self.graph.waiting() {
            is_done &= self.report(&place, self.release(&place).await);
            let blocked = self.object(&place).map(|object| meta::text(&object, "uid").to_owned());
            let dependents = blocked.map(|uid| self.graph.dependents_of(&uid)).unwrap_or_default();
            self.graph.mark(dependents);
        }
        let mut again = Vec::new();
        for place in self.graph.take_due() {
            if !self.report(&place, self.collect(&place).await) {
                again.push(place);
            }
        }
        is_done &= again.is_empty();
        self.graph.mark(again);
        is_done
    }

    fn report(&self, place: &Place, done: Result<(), Status>) -> bool {
        match done {
            Ok(()) => true,
            // Someone else was faster.
            Err(status) if status.code() == 404 => true,
            Err(error) => {
                let kind = self.kind(place).map_or("", |kind| kind.plural);
                tracing::warn!(%error, kind, key = &*place.1, "the garbage collector will try again");
                false
            }
        }
    }

    fn catch_up(&mut self, index: usize, table: &Table) {
        loop {
            let known = self.cursors.get(index).copied().flatten();
            let changes = known.map(|cursor| table.changes_after(cursor, CHUNK, || cursor));
            let Some(Ok((events, upto))) = changes else {
                // The first time, or more has changed than is kept.
                self.load(index, table);
                return;
            };
            for event in &events {
                self.take(index, event);
            }
            self.set_cursor(index, upto);
            if events.len() < CHUNK {
                return;
            }
        }
    }

    fn set_cursor(&mut self, index: usize, revision: u64) {
        if let Some(cursor) = self.cursors.get_mut(index) {
            *cursor = Some(revision);
        }
    }

    fn load(&mut self, index: usize, table: &Table) {
        self.graph.forget_table(index);
        let snapshot = self.server.cache.snapshot(table);
        for object in snapshot.objects.values().filter(|object| concerns(object)) {
            self.graph.learn((index, object.key().clone()), &object.value());
        }
        self.set_cursor(index, snapshot.revision);
    }

    fn take(&mut self, index: usize, event: &Event) {
        let place = (index, event.object.key().clone());
        if event.removed {
            self.graph.forget(&place, meta::text(&event.object.value(), "uid"));
        } else if concerns(&event.object) || event.previous.as_deref().is_some_and(concerns) {
            self.graph.learn(place, &event.object.value());
        }
    }

    fn kind(&self, place: &Place) -> Option<&'static Kind> {
        self.server.cache.tables().get(place.0).map(Table::kind)
    }

    fn object(&self, place: &Place) -> Option<Value> {
        Some(self.server.cache.tables().get(place.0)?.get(&place.1)?.value())
    }

    /// Looks at an object that names owners.
    async fn collect(&self, place: &Place) -> Result<(), Status> {
        let Some(object) = self.object(place) else { return Ok(()) };
        let owners = graph::owners(&object);
        let namespace = meta::text(&object, "namespace");
        let states: Vec<(Owner, State)> =
            owners.into_iter().map(|owner| (owner.clone(), self.state(&owner, namespace))).collect();
        let is_any = |state| states.iter().any(|(_, one)| *one == state);
        if states.is_empty() || states.iter().all(|(_, state)| *state == State::Solid) {
            return Ok(());
        }
        if is_any(State::Solid) {
            let gone: Vec<String> = states
                .into_iter()
                .filter(|(_, state)| *state != State::Solid)
                .map(|(owner, _)| owner.uid)
                .collect();
            return self.disown(place, &gone).await;
        }
        if meta::get(&object, "deletionTimestamp").is_some() {
            return Ok(());
        }
        let owns = !self.graph.dependents_of(meta::text(&object, "uid")).is_empty();
        let policy = if is_any(State::Waiting) && owns { "Foreground" } else { "Background" };
        self.delete(place, &object, policy).await
    }

    fn state(&self, owner: &Owner, namespace: &str) -> State {
        let Some(kind) =
            kind::find_kind(&owner.group, &owner.version, &owner.kind).filter(|kind| kind.is_stored())
        else {
            return State::Solid;
        };
        if kind.namespaced && namespace.is_empty() {
            return State::Solid;
        }
        let found = self.server.cache.get(kind, &meta::key(kind.namespaced, namespace, &owner.name));
        match found.map(|found| found.value()) {
            Some(found) if meta::text(&found, "uid") != owner.uid => State::Absent,
            Some(found)
                if meta::get(&found, "deletionTimestamp").is_some()
                    && meta::texts(&found, "finalizers").contains(&FOREGROUND) =>
            {
                State::Waiting
            }
            Some(_) => State::Solid,
            None => State::Absent,
        }
    }

    /// Lets an owner go that waits for the collector.
    async fn release(&self, place: &Place) -> Result<(), Status> {
        let Some(object) = self.object(place).filter(graph::waits) else { return Ok(()) };
        let uid = meta::text(&object, "uid").to_owned();
        let finalizers = meta::texts(&object, "finalizers");
        if finalizers.contains(&ORPHAN) {
            for dependent in self.graph.dependents_of(&uid) {
                match self.disown(&dependent, std::slice::from_ref(&uid)).await {
                    Err(status) if status.code() != 404 => return Err(status),
                    _ => {}
                }
            }
            return self.finalize(place, ORPHAN).await;
        }
        if self.graph.blocking(&uid).is_empty() { self.finalize(place, FOREGROUND).await } else { Ok(()) }
    }

    /// Takes owners out of an object's references.
    async fn disown(&self, place: &Place, uids: &[String]) -> Result<(), Status> {
        self.change(place, |object| {
            let metadata = meta::of(object);
            if let Some(references) = metadata.get_mut("ownerReferences").and_then(Value::as_array_mut) {
                references.retain(|one| {
                    let uid = one.get("uid").and_then(Value::as_str).unwrap_or_default();
                    !uids.iter().any(|gone| gone == uid)
                });
                if references.is_empty() {
                    metadata.shift_remove("ownerReferences");
                }
            }
        })
        .await
    }

    async fn finalize(&self, place: &Place, finalizer: &str) -> Result<(), Status> {
        self.change(place, |object| {
            let kept: Vec<String> = meta::texts(object, "finalizers")
                .into_iter()
                .filter(|one| *one != finalizer)
                .map(str::to_owned)
                .collect();
            meta::set_texts(object, "finalizers", &kept.iter().map(String::as_str).collect::<Vec<_>>());
        })
        .await
    }

    async fn change(&self, place: &Place, change: impl Fn(&mut Value)) -> Result<(), Status> {
        let Some(kind) = self.kind(place) else { return Ok(()) };
        let info = info(kind, &place.1, "update");
        let write = Write::new(self.server, &self.user, kind, &info)?;
        let changed = |old: &Value| {
            let mut new = old.clone();
            change(&mut new);
            Ok(new)
        };
        write.change_freely(changed).await.map(|_| ())
    }

    async fn delete(&self, place: &Place, object: &Value, policy: &str) -> Result<(), Status> {
        let Some(kind) = self.kind(place) else { return Ok(()) };
        let info = info(kind, &place.1, "delete");
        let write = Write::new(self.server, &self.user, kind, &info)?;
        let options =
            json!({"propagationPolicy": policy, "preconditions": {"uid": meta::text(object, "uid")}});
        tracing::info!(kind = kind.plural, key = &*place.1, "an object whose owners are gone is deleted");
        delete::delete(&write, &Options::from_value(&options, false)?).await.map(|_| ())
    }
}

/// Whether an object can matter to the collector: only such are parsed.
fn concerns(object: &Object) -> bool {
    let json = std::str::from_utf8(object.json()).unwrap_or_default();
    json.contains("\"ownerReferences\":[") || json.contains("\"deletionTimestamp\":")
}

fn info(kind: &Kind, key: &str, verb: &'static str) -> RequestInfo {
    let (namespace, name) = key.split_once('/').unwrap_or(("", key));
    RequestInfo {
        verb,
        is_resource: true,
        group: kind.group.to_owned(),
        version: kind.version.to_owned(),
        namespace: namespace.to_owned(),
        resource: kind.plural.to_owned(),
        name: name.to_owned(),
        ..RequestInfo::default()
    }
}
