//! The service manager as a test plays it: transient units are directories below one that stands for the mounted
//! hierarchy, and every call is written down.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zbus::object_server::SignalEmitter;
use zbus::{Connection, ObjectPath, OwnedObjectPath, OwnedVariant, Variant};

use super::PrivateBus;
use crate::Slice;

const PATH: &str = "/org/freedesktop/systemd1";

/// A unit's properties, their values as text.
pub type Unit = BTreeMap<String, String>;

fn text(value: &Variant<'_>) -> String {
    match value {
        Variant::U64(number) => number.to_string(),
        Variant::U32(number) => number.to_string(),
        Variant::Bool(flag) => flag.to_string(),
        Variant::Str(text) => text.as_str().to_owned(),
        Variant::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(" "),
        other => format!("{other:?}"),
    }
}

fn texts(properties: Vec<(String, OwnedVariant)>) -> Unit {
    properties.into_iter().map(|(name, value)| (name, text(&value.into()))).collect()
}

/// The service manager.
#[derive(Debug)]
pub struct FakeUnits {
    _connection: Connection,
    books: Arc<Mutex<Books>>,
}

#[derive(Debug, Default)]
struct Books {
    mount: PathBuf,
    units: BTreeMap<String, (PathBuf, Unit)>,
    calls: Vec<String>,
    /// How the next start ends, if not well.
    next_result: Option<String>,
    jobs: u32,
    /// Whether anybody is to be told of jobs.
    is_subscribed: bool,
}

struct Manager(Arc<Mutex<Books>>);

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop.systemd1")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    UnitExists(String),
    NoSuchUnit(String),
    Failed(String),
}

fn lock(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn subscribe(&self) {
        lock(&self.0).is_subscribed = true;
    }

    fn reset_failed_unit(&self, name: &str) -> Result<(), Refusal> {
        let is_known = lock(&self.0).units.contains_key(name);
        if is_known { Ok(()) } else { Err(Refusal::NoSuchUnit(format!("Unit {name} not loaded."))) }
    }

    async fn start_transient_unit(
        &self,
        name: String,
        mode: String,
        properties: Vec<(String, OwnedVariant)>,
        auxiliary: Vec<(String, Vec<(String, OwnedVariant)>)>,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refusal> {
        let (job, result) = {
            let mut books = lock(&self.0);
            books.calls.push(format!("start {name} {mode} {}", auxiliary.len()));
            if books.units.contains_key(&name) {
                return Err(Refusal::UnitExists(format!("Unit {name} was already loaded")));
            }
            let result = books.next_result.take().unwrap_or_else(|| "done".to_owned());
            if result == "done" {
                books.make(&name, texts(properties)).map_err(Refusal::Failed)?;
            }
            (books.job(), result)
        };
        self.tell(&emitter, &job, &name, &result).await?;
        Ok(job)
    }

    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: Vec<(String, OwnedVariant)>,
    ) -> Result<(), Refusal> {
        let mut books = lock(&self.0);
        books.calls.push(format!("set {name} {runtime}"));
        let Some((_, unit)) = books.units.get_mut(name) else {
            return Err(Refusal::NoSuchUnit(format!("Unit {name} not loaded.")));
        };
        unit.extend(texts(properties));
        Ok(())
    }

    async fn stop_unit(
        &self,
        name: String,
        mode: String,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> Result<OwnedObjectPath, Refusal> {
        let job = {
            let mut books = lock(&self.0);
            books.calls.push(format!("stop {name} {mode}"));
            let Some((group, _)) = books.units.remove(&name) else {
                return Err(Refusal::NoSuchUnit(format!("Unit {name} not loaded.")));
            };
            books.units.retain(|_, (inside, _)| !inside.starts_with(&group));
            // It may have been removed by hand.
            let _ = fs::remove_dir_all(group);
            books.job()
        };
        self.tell(&emitter, &job, &name, "done").await?;
        Ok(job)
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

impl Manager {
    /// Another job ends first, as on a machine that is busy: it is nobody's who listens here.
    async fn tell(
        &self,
        emitter: &SignalEmitter<'_>,
        job: &OwnedObjectPath,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()> {
        if !lock(&self.0).is_subscribed {
            return Ok(());
        }
        let other = ObjectPath::from_static_str_unchecked("/org/freedesktop/systemd1/job/0");
        Self::job_removed(emitter, 0, other, "other.service", "failed").await?;
        Self::job_removed(emitter, 1, job.as_ref(), unit, result).await
    }
}

impl Books {
    fn make(&mut self, name: &str, unit: Unit) -> Result<(), String> {
        let slice = |name: &str| Slice::parse(name).map(|slice| slice.group());
        let parent = unit.get("Slice").cloned();
        let group = match (slice(name), parent) {
            (Some(group), _) => group,
            (None, Some(parent)) => {
                format!("{}/{name}", slice(&parent).ok_or_else(|| format!("{parent} is no slice"))?)
            }
            (None, None) => return Err(format!("{name} is in no slice")),
        };
        let group = self.mount.join(group.trim_start_matches('/'));
        fs::create_dir_all(&group).map_err(|error| error.to_string())?;
        let pids = unit.get("PIDs").cloned().unwrap_or_default();
        fs::write(group.join("cgroup.procs"), pids).map_err(|error| error.to_string())?;
        self.units.insert(name.to_owned(), (group, unit));
        Ok(())
    }

    fn job(&mut self) -> OwnedObjectPath {
        self.jobs += 1;
        let path = format!("/org/freedesktop/systemd1/job/{}", self.jobs);
        ObjectPath::try_from(path).map_or_else(|_| OwnedObjectPath::default(), Into::into)
    }
}

impl FakeUnits {
    /// A service manager whose groups are below `mount`.
    ///
    /// # Errors
    /// When the bus is gone or has a service manager.
    pub async fn start(bus: &PrivateBus, mount: &Path) -> zbus::Result<Self> {
        let books = Arc::new(Mutex::new(Books { mount: mount.to_owned(), ..Books::default() }));
        let connection = bus.connect_as("org.freedesktop.systemd1").await?;
        connection.object_server().at(PATH, Manager(Arc::clone(&books))).await?;
        Ok(Self { _connection: connection, books })
    }

    /// The calls so far, in order.
    pub fn calls(&self) -> Vec<String> {
        lock(&self.books).calls.clone()
    }

    /// The properties of a unit that is there.
    pub fn unit(&self, name: &str) -> Option<Unit> {
        lock(&self.books).units.get(name).map(|(_, unit)| unit.clone())
    }

    /// The next start ends with this result.
    pub fn fail_next(&self, result: &str) {
        lock(&self.books).next_result = Some(result.to_owned());
    }
}
