//! The one way by which objects change: decode, default, admit, prepare, validate, store. Every kind and every verb
//! goes through it; what is a kind's own are the functions of its row in the table of kinds.

use std::sync::Arc;

use api::apply::{Managers, Operation};
use api::codec::MediaType;
use api::kind::{self, Ctx, Kind};
use api::status::Status;
use api::validation::{FieldErrors, Path};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::Value;
use store::{CommitError, Expect, Op};
use tracing::Instrument as _;

use crate::admission::{self, Act, Ask};
use crate::allocation::Held;
use crate::body::{self, Body, FieldValidation};
use crate::cache::{Object, Table};
use crate::identity::Identity;
use crate::request::{Query, RequestInfo};
use crate::server::Server;
use crate::{allocation, meta, ownership, view};

/// How often a write that names no resource version is tried again when the object changes under it.
const TRIES: usize = 16;
/// How often another name is generated when one is taken.
const NAME_TRIES: usize = 8;

/// One write request, after authorisation.
#[derive(Debug, Clone)]
pub(crate) struct Write<'a> {
    pub(crate) server: &'a Server,
    pub(crate) user: &'a Arc<Identity>,
    pub(crate) kind: &'static Kind,
    pub(crate) info: &'a RequestInfo,
    pub(crate) now: Timestamp,
    pub(crate) dry_run: bool,
    pub(crate) validation: FieldValidation,
    /// How it takes ownership of fields.
    pub(crate) operation: Operation,
}

/// What a write made.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) object: Value,
    pub(crate) is_new: bool,
    pub(crate) warnings: Vec<String>,
}

/// A changed object before it is stored, and the version that it changes, if it names one.
struct Changed {
    object: Value,
    version: String,
    warnings: Vec<String>,
    /// Whether it is as it was; the order of its fields doesn't count.
    is_same: bool,
}

/// Who writes which part of an object.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part {
    Main,
    Status,
    /// What a subresource of the object's own kind writes, such as `ephemeralcontainers`.
    Below(kind::Part),
}

impl Part {
    /// The part that a subresource of a kind writes, if it writes one.
    pub(crate) fn of(kind: &Kind, subresource: &str) -> Option<Self> {
        match subresource {
            "" => Some(Self::Main),
            "status" => Some(Self::Status),
            name => kind.subresource(name)?.part.map(Self::Below),
        }
    }
}

impl<'a> Write<'a> {
    pub(crate) fn new(
        server: &'a Server,
        user: &'a Arc<Identity>,
        kind: &'static Kind,
        info: &'a RequestInfo,
    ) -> Result<Self, Status> {
        let options = match info.verb {
            "create" => "CreateOptions",
            "patch" => "PatchOptions",
            "delete" | "deletecollection" => "DeleteOptions",
            _ => "UpdateOptions",
        };
        check_options(options, &info.query)?;
        Ok(Self {
            server,
            user,
            kind,
            info,
            now: Timestamp::now(),
            dry_run: info.query.has("dryRun"),
            validation: FieldValidation::of(&info.query),
            operation: Operation::Update,
        })
    }

    pub(crate) fn ctx(&self) -> Ctx {
        Ctx { now: self.now, gates: self.server.gates }
    }

    pub(crate) fn table(&self) -> Result<&'a Table, Status> {
        self.server
            .cache
            .table(self.kind)
            .ok_or_else(|| Status::method_not_supported(self.kind, self.info.verb))
    }

    pub(crate) fn key(&self, name: &str) -> String {
        meta::key(self.kind.namespaced, &self.info.namespace, name)
    }

    /// The object that the request names.
    pub(crate) fn current(&self) -> Result<Arc<Object>, Status> {
        let found = self.table()?.get(&self.key(&self.info.name));
        found.ok_or_else(|| Status::not_found(self.kind, &self.info.name))
    }

    /// Decodes a body that holds a whole object, and completes it by the path.
    pub(crate) fn decode(&self, media: MediaType, bytes: &[u8]) -> Result<Body, Status> {
        let _step = tracing::debug_span!(target: "path", "api: decode, default").entered();
        let root = body::type_named(self.kind.type_name)?;
        let mut decoded = body::decode(media, bytes, root, body::expected(self.kind), self.validation)?;
        self.complete(&mut decoded.object)?;
        Ok(decoded)
    }

    /// Defaults, and the namespace of the path.
    pub(crate) fn complete(&self, object: &mut Value) -> Result<(), Status> {
        if self.kind.namespaced {
            let said = meta::text(object, "namespace");
            if said.is_empty() {
                meta::set(object, "namespace", Some(self.info.namespace.as_str().into()));
            } else if said != self.info.namespace {
                return Err(Status::bad_request(
                    "the namespace of the provided object does not match the namespace sent on the request",
                ));
            }
        } else {
            meta::set(object, "namespace", None);
        }
        let root = body::type_named(self.kind.type_name)?;
        api::default::apply(root, object);
        (self.kind.default)(object);
        Ok(())
    }

    /// Makes a new object.
    pub(crate) async fn create(&self, media: MediaType, bytes: &Bytes) -> Result<Written, Status> {
        let Body { object, warnings } = self.decode(media, bytes)?;
        self.create_object(object, warnings).await
    }

    /// Makes a new object of a decoded and defaulted one.
    pub(crate) async fn create_object(
        &self,
        mut object: Value,
        warnings: Vec<String>,
    ) -> Result<Written, Status> {
        ownership::of_new(self, &mut object)?;
        let prefix = meta::text(&object, "generateName").to_owned();
        if !meta::text(&object, "name").is_empty() || prefix.is_empty() {
            return self.create_named(object, warnings).await;
        }
        let mut last = Status::internal("no name was generated");
        for _ in 0..NAME_TRIES {
            let mut named = object.clone();
            let name = api::name::generate(&prefix, rand::random());
            meta::set(&mut named, "name", Some(name.as_str().into()));
            match self.create_named(named, warnings.clone()).await {
                Err(status) if status.reason() == "AlreadyExists" => {
                    last = Status::generate_name_conflict(self.kind, &name);
                }
                done => return done,
            }
        }
        Err(last)
    }

    pub(crate) async fn create_named(
        &self,
        mut object: Value,
        mut warnings: Vec<String>,
    ) -> Result<Written, Status> {
        if !meta::text(&object, "resourceVersion").is_empty() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let step = tracing::debug_span!(target: "path", "api: admit, validate");
        warnings.extend(self.admit(&mut object).instrument(step).await?);
        let name = meta::text(&object, "name").to_owned();
        // An object that is there already uses nothing more.
        if let Some(current) = self.table()?.get(&self.key(&name)) {
            return Err(self.exists(&name, Some(&current)));
        }
        let _place = admission::quota::take(self, &object, None).await?;
        let held = self.allocate(&mut object, None).await?;
        match self.put(&name, object, Expect::Absent).await {
            Ok(object) => Ok(Written { object, is_new: true, warnings }),
            Err(error) => {
                self.release(held).await;
                Err(match error {
                    Put::Conflict(current) => self.exists(&name, current.as_deref()),
                    Put::Failed(status) => status,
                })
            }
        }
    }

    /// Makes a new object what it must be, or refuses it.
    async fn admit(&self, object: &mut Value) -> Result<Vec<String>, Status> {
        self.fill_system_fields(object);
        admission::change(self, object).await?;
        let mut warnings = (self.kind.dropped)(object, &self.ctx());
        (self.kind.prepare_create)(object, &self.ctx());
        let errors = (self.kind.validate)(object, &self.ctx());
        if !errors.is_empty() {
            return Err(Status::invalid(self.kind, meta::text(object, "name"), &errors));
        }
        warnings.extend((self.kind.warnings)(object, None));
        let (write, part) = (self, Part::Main);
        warnings.extend(admission::check(Ask { write, act: Act::Create, part, object, old: None })?);
        Ok(warnings)
    }

    /// Takes the addresses and ports that the object wants, for kinds that are given some.
    async fn allocate(&self, object: &mut Value, old: Option<&Object>) -> Result<Option<Held<'a>>, Status> {
        if !self.kind.allocates {
            return Ok(None);
        }
        let old = old.map(|old| view::value(self.kind, old));
        Box::pin(allocation::allocate(self, object, old.as_ref())).await.map(Some)
    }

    /// Gives back what a write took that did not come to its end.
    async fn release(&self, held: Option<Held<'a>>) {
        if let Some(held) = held {
            held.release(self.server).await;
        }
    }

    /// Gives back what the object had before and has no more.
    async fn give_back(&self, old: &Object, new: Option<&Value>) {
        if self.kind.allocates && !self.dry_run {
            allocation::give_back(self.server, &old.value(), new).await;
        }
    }

    fn exists(&self, name: &str, current: Option<&Object>) -> Status {
        if current.is_some_and(Object::is_going) {
            Status::already_exists_deleting(self.kind, name)
        } else {
            Status::already_exists(self.kind, name)
        }
    }

    fn fill_system_fields(&self, object: &mut Value) {
        for name in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
            meta::set(object, name, None);
        }
        meta::set(object, "uid", Some(uuid::Uuid::new_v4().to_string().into()));
        meta::set(object, "creationTimestamp", Some(api::time::format_seconds(self.now).into()));
    }

    /// Replaces an object by a decoded one, or makes it where the kind allows that.
    pub(crate) async fn replace(
        &self,
        media: MediaType,
        bytes: &Bytes,
        part: Part,
    ) -> Result<Written, Status> {
        let Body { object, warnings } = self.decode(media, bytes)?;
        let name = meta::text(&object, "name");
        if name != self.info.name {
            return Err(if name.is_empty() {
                Status::bad_request("name must be provided")
            } else {
                Status::bad_request(format!(
                    "the name of the object ({name}) does not match the name on the URL ({})",
                    self.info.name
                ))
            });
        }
        let is_missing = self.table()?.get(&self.key(&self.info.name)).is_none();
        if is_missing && matches!(part, Part::Main) && self.kind.creates_on_update {
            let mut object = object;
            meta::set(&mut object, "resourceVersion", None);
            return self.create_object(object, warnings).await;
        }
        self.change(part, |_| Ok((object.clone(), warnings.clone()))).await
    }

    /// Changes an object: `make` gives the new object from the old one. When the object changes in between and the new
    /// one names no resource version, it is made again.
    pub(crate) async fn change(
        &self,
        part: Part,
        make: impl Fn(&Value) -> Result<(Value, Vec<String>), Status>,
    ) -> Result<Written, Status> {
        for _ in 0..TRIES {
            let current = self.current()?;
            let Changed { mut object, version, warnings, is_same } = self.changed(part, &current, &make)?;
            if is_same {
                return Ok(Written { object, is_new: false, warnings });
            }
            let _place = admission::quota::take(self, &object, Some(&current)).await?;
            let held = self.allocate(&mut object, Some(&current)).await?;
            let stored = self.store_change(&current, object).await;
            match &stored {
                Ok(object) => self.give_back(&current, Some(object)).await,
                Err(_) => self.release(held).await,
            }
            match stored {
                Ok(object) => return Ok(Written { object, is_new: false, warnings }),
                Err(Put::Failed(status)) => return Err(status),
                Err(Put::Conflict(_)) if version.is_empty() => {}
                Err(Put::Conflict(_)) => return Err(Status::modified(self.kind, &self.info.name)),
            }
        }
        Err(Status::server_timeout(self.kind, self.info.verb, 1))
    }

    fn changed(
        &self,
        part: Part,
        current: &Object,
        make: impl Fn(&Value) -> Result<(Value, Vec<String>), Status>,
    ) -> Result<Changed, Status> {
        let _step = tracing::debug_span!(target: "path", "api: decode to validate a change").entered();
        let old = view::value(self.kind, current);
        let (new, mut warnings) = make(&old)?;
        let version = meta::text(&new, "resourceVersion").to_owned();
        self.check_version(&version, current)?;
        let managers = match self.operation {
            Operation::Apply => Managers::of(&new),
            Operation::Update => ownership::of_change(self, &old, &new, part)?,
        };
        let mut object = self.prepared(new, &old, part)?;
        ownership::set(&mut object, &managers);
        ownership::keep_times(&mut object, &old);
        warnings.extend((self.kind.warnings)(&object, Some(&old)));
        let (write, act) = (self, Act::Update);
        warnings.extend(admission::check(Ask { write, act, part, object: &object, old: Some(&old) })?);
        let is_same = object == old;
        Ok(Changed { object, version, warnings, is_same })
    }

    /// Changes an object by the server's own hand: no rule of the kind is asked.
    pub(crate) async fn change_freely(
        &self,
        make: impl Fn(&Value) -> Result<Value, Status>,
    ) -> Result<Value, Status> {
        for _ in 0..TRIES {
            let current = self.current()?;
            let object = make(&view::value(self.kind, &current))?;
            match self.store_change(&current, object).await {
                Ok(object) => return Ok(object),
                Err(Put::Failed(status)) => return Err(status),
                Err(Put::Conflict(_)) => {}
            }
        }
        Err(Status::server_timeout(self.kind, self.info.verb, 1))
    }

    fn check_version(&self, version: &str, current: &Object) -> Result<(), Status> {
        match version.parse::<u64>() {
            Ok(version) if version == current.revision() => Ok(()),
            Ok(version) if version > 0 => Err(Status::modified(self.kind, &self.info.name)),
            _ if !version.is_empty() && version != "0" => Err(self.invalid_version(version)),
            // A patch is made of the newest version.
            _ if self.kind.needs_version && self.info.verb == "update" => {
                let mut errors = FieldErrors::new();
                let path = Path::new("metadata").child("resourceVersion");
                errors.invalid(&path, 0, "must be specified for an update");
                Err(Status::invalid_kind(self.kind.group, self.kind.plural, &self.info.name, &errors))
            }
            _ => Ok(()),
        }
    }

    fn invalid_version(&self, version: &str) -> Status {
        let mut errors = FieldErrors::new();
        let quoted = api::validation::quote(version);
        errors.invalid(
            &Path::new("metadata").child("resourceVersion"),
            version,
            format!("strconv.ParseUint: parsing {quoted}: invalid syntax"),
        );
        Status::invalid(self.kind, &self.info.name, &errors)
    }

    /// The new object as it will be stored: what only the server writes comes from the old one.
    fn prepared(&self, mut new: Value, old: &Value, part: Part) -> Result<Value, Status> {
        let (name, kind) = (&self.info.name, self.kind);
        let uid = meta::text(&new, "uid");
        if !uid.is_empty() && uid != meta::text(old, "uid") {
            return Err(Status::conflict(
                kind,
                name,
                &format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    meta::text(old, "uid")
                ),
            ));
        }
        for field in ["uid", "creationTimestamp", "generation", "deletionTimestamp", "selfLink"] {
            meta::copy(&mut new, old, field);
        }
        if meta::get(&new, "deletionGracePeriodSeconds").is_none() {
            meta::copy(&mut new, old, "deletionGracePeriodSeconds");
        }
        // The version has been compared; rules only ask whether there is one.
        meta::copy(&mut new, old, "resourceVersion");
        let ctx = self.ctx();
        let errors = match part {
            Part::Main => {
                (kind.prepare_update)(&mut new, old, &ctx);
                (kind.validate_update)(&new, old, &ctx)
            }
            Part::Status => {
                (kind.prepare_status)(&mut new, old, &ctx);
                (kind.validate_status)(&new, old, &ctx)
            }
            Part::Below(part) => {
                (part.prepare)(&mut new, old, &ctx);
                (part.validate)(&new, old, &ctx)
            }
        };
        if errors.is_empty() { Ok(new) } else { Err(Status::invalid(kind, name, &errors)) }
    }

    /// Stores a changed object; one that only waited for its last finalizer is removed instead.
    async fn store_change(&self, current: &Object, object: Value) -> Result<Value, Put> {
        if is_finished(self.kind, &object) {
            self.remove(current).await?;
            return Ok(object);
        }
        self.put(&self.info.name, object, Expect::Revision(current.revision())).await
    }

    /// Stores an object and gives it back as it is read: with its resource version.
    pub(crate) async fn put(&self, name: &str, object: Value, expect: Expect) -> Result<Value, Put> {
        let table = self.table().map_err(Put::Failed)?;
        let (bytes, shown) = if view::is_stored_form(self.kind) {
            (table.encoder().stored(&object), view::with_type(self.kind, object))
        } else {
            let mut stored = object;
            (self.kind.to_stored)(&mut stored);
            // What a view has no field for comes back as the view shows it.
            (table.encoder().stored(&stored), view::served(self.kind, stored))
        };
        let key = self.key(name);
        if self.dry_run {
            let current = table.get(&key);
            return match (expect, &current) {
                (Expect::Absent, Some(_)) => Err(Put::Conflict(current)),
                _ => Ok(shown),
            };
        }
        if let Expect::Revision(revision) = expect
            && let Some(current) = table.get(&key)
            && current.revision() == revision
            && is_same(table, &current, &bytes)
        {
            return Ok(view::value(self.kind, &current));
        }
        let revision = self.commit(table, &key, expect, Op::Put(bytes)).await?;
        let mut object = shown;
        meta::set(&mut object, "resourceVersion", Some(revision.to_string().into()));
        Ok(object)
    }

    /// Removes an object that has not changed.
    pub(crate) async fn remove(&self, current: &Object) -> Result<u64, Put> {
        if self.dry_run {
            return Ok(current.revision());
        }
        let table = self.table().map_err(Put::Failed)?;
        let expect = Expect::Revision(current.revision());
        let revision = self.commit(table, current.key(), expect, Op::Delete).await?;
        self.give_back(current, None).await;
        Ok(revision)
    }

    async fn commit(&self, table: &Table, key: &str, expect: Expect, op: Op) -> Result<u64, Put> {
        let step = tracing::debug_span!(target: "path", "api: store commit", of = self.kind.plural);
        let commit = self.server.cache.commit(table, key, expect, op).instrument(step);
        commit.await.map_err(|error| match error {
            CommitError::Conflict { .. } => Put::Conflict(table.get(key)),
            CommitError::Store(error) => {
                tracing::error!(%error, key, "a write failed");
                Put::Failed(Status::internal(error.to_string()))
            }
        })
    }
}

/// Why an object was not stored.
#[derive(Debug)]
pub(crate) enum Put {
    /// It is not as expected; this is what is there.
    Conflict(Option<Arc<Object>>),
    Failed(Status),
}

/// Whether stored bytes are those of an object: a write that changes nothing takes no revision.
fn is_same(table: &Table, current: &Object, bytes: &[u8]) -> bool {
    let new = table.encoder().object(current.key().clone(), current.revision(), bytes, "MODIFIED");
    new.is_some_and(|new| new.json() == current.json())
}

/// Whether an object was only waiting for what its last change did: it is being deleted, has no finalizers left and no
/// time to wait.
fn is_finished(kind: &Kind, object: &Value) -> bool {
    let has_spec_finalizers = kind.kind == "Namespace"
        && object.pointer("/spec/finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    meta::get(object, "deletionTimestamp").is_some()
        && meta::texts(object, "finalizers").is_empty()
        && matches!(meta::number(object, "deletionGracePeriodSeconds"), None | Some(0))
        && !has_spec_finalizers
}

/// Refuses unknown values of `dryRun` and `fieldValidation`.
fn check_options(options: &str, query: &Query) -> Result<(), Status> {
    let mut errors = FieldErrors::new();
    for value in query.all("dryRun").filter(|value| *value != "All") {
        errors.not_supported(&Path::new("dryRun"), value, &["All"]);
    }
    let validation = query.get("fieldValidation");
    if !matches!(validation, "" | "Ignore" | "Warn" | "Strict") {
        errors.not_supported(&Path::new("fieldValidation"), validation, &["", "Ignore", "Strict", "Warn"]);
    }
    if options != "DeleteOptions" {
        ownership::check_manager(query, &mut errors);
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid_kind("meta.k8s.io", options, "", &errors)) }
}
