//! What asks the server: writers, informers, and controllers that copy objects into another namespace.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, ResourceExt as _};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher::{Config, Event, watcher};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::model::{Change, END, Told};
use crate::server::Server;

const WRITERS: u64 = 4;
/// Objects that the writers share.
const OBJECTS: u64 = 9;

/// Who writes until it is stopped.
pub(crate) struct Writers {
    tasks: Vec<JoinHandle<()>>,
    stop: CancellationToken,
    count: watch::Receiver<usize>,
    acknowledged: Arc<Mutex<Vec<(String, u64)>>>,
}

/// What one writer has.
struct Writer {
    maps: Api<ConfigMap>,
    random: u64,
    acknowledged: Arc<Mutex<Vec<(String, u64)>>>,
    count: Arc<watch::Sender<usize>>,
    target: watch::Receiver<Option<SocketAddr>>,
}

impl Writers {
    pub(crate) fn start(client: &kube::Client, server: &Server) -> Self {
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let (count, counted) = watch::channel(0);
        let (stop, count) = (CancellationToken::new(), Arc::new(count));
        let tasks = (1..=WRITERS).map(|number| {
            let writer = Writer {
                maps: Api::default_namespaced(client.clone()),
                random: number,
                acknowledged: acknowledged.clone(),
                count: count.clone(),
                target: server.target(),
            };
            tokio::spawn(writer.run(stop.clone()))
        });
        let tasks = tasks.collect();
        Self { tasks, stop, count: counted, acknowledged }
    }

    /// Waits until so many writes are acknowledged.
    pub(crate) async fn until(&mut self, writes: usize) {
        self.count.wait_for(|count| *count >= writes).await.unwrap();
    }

    /// Ends the writing with the last object, and gives name and revision of each write that was acknowledged.
    pub(crate) async fn stop(self, client: &kube::Client) -> Vec<(String, u64)> {
        self.stop.cancel();
        for task in self.tasks {
            task.await.unwrap();
        }
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        maps.create(&PostParams::default(), &map(END, "end", "the end")).await.unwrap();
        std::mem::take(&mut *self.acknowledged.lock().unwrap())
    }
}

impl Writer {
    async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            match self.write().await {
                Ok(Some(made)) => {
                    let revision = made.resource_version().unwrap().parse().unwrap();
                    self.acknowledged.lock().unwrap().push((made.name_any(), revision));
                    self.count.send_modify(|count| *count += 1);
                }
                // Others write the same objects: what is taken or gone is refused.
                Ok(None) | Err(kube::Error::Api(_)) => {}
                Err(_) => drop(self.target.wait_for(Option::is_some).await.unwrap()),
            }
        }
    }

    /// Makes, changes or removes an object; what it then is.
    async fn write(&mut self) -> kube::Result<Option<ConfigMap>> {
        let (name, label) = (format!("m{}", self.below(OBJECTS)), self.below(3).to_string());
        let object = map(&name, &label, &self.random.to_string());
        let merge = PatchParams::default();
        match self.below(6) {
            0 => self.maps.delete(&name, &DeleteParams::default()).await.map(|_| None),
            1 => self.maps.patch(&name, &merge, &Patch::Merge(&object)).await.map(Some),
            2 => self.maps.replace(&name, &PostParams::default(), &object).await.map(Some),
            3 => self
                .maps
                .patch(&name, &PatchParams::apply("writer").force(), &Patch::Apply(&object))
                .await
                .map(Some),
            _ => self.maps.create(&PostParams::default(), &object).await.map(Some),
        }
    }

    /// The next number (xorshift64), below a bound.
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % bound
    }
}

fn map(name: &str, label: &str, by: &str) -> ConfigMap {
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"l": label}},
        "data": {"by": by}});
    serde_json::from_value(object).unwrap()
}

/// Informs until the last object appears, through whatever breaks off.
pub(crate) async fn inform(
    client: kube::Client,
    config: Config,
    mut target: watch::Receiver<Option<SocketAddr>>,
) -> Vec<Told> {
    let mut events = Box::pin(watcher(Api::default_namespaced(client), config));
    let mut told = vec![Told::default()];
    loop {
        match events.next().await.unwrap() {
            Ok(event) => {
                if take(&mut told, event) {
                    return told;
                }
            }
            Err(_) => drop(target.wait_for(Option::is_some).await.unwrap()),
        }
    }
}

/// Notes an event; whether it is that of the last object.
fn take(told: &mut Vec<Told>, event: Event<ConfigMap>) -> bool {
    let (map, is_deletion) = match event {
        Event::Init => {
            told.push(Told::default());
            return false;
        }
        Event::InitApply(map) => {
            let (name, revision) = named(&map);
            told.last_mut().unwrap().listed.insert(name, revision);
            return false;
        }
        Event::InitDone => {
            let last = told.last_mut().unwrap();
            last.is_listed = true;
            return last.listed.contains_key(END);
        }
        Event::Apply(map) => (map, false),
        Event::Delete(map) => (map, true),
    };
    let (name, revision) = named(&map);
    let is_end = name == END;
    told.last_mut().unwrap().changes.push(Change { name, revision, is_deletion });
    is_end
}

fn named(map: &ConfigMap) -> (String, u64) {
    (map.name_any(), map.resource_version().unwrap().parse().unwrap())
}

/// A controller that copies one field of every object.
pub(crate) async fn control(client: kube::Client, manager: &'static str) {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let again = |_: Arc<ConfigMap>, _: &kube::Error, _| Action::requeue(Duration::from_millis(100));
    let controller = Controller::new(maps, Config::default().streaming_lists());
    controller.run(reconcile, again, Arc::new((client, manager))).for_each(async |_| {}).await;
}

async fn reconcile(
    source: Arc<ConfigMap>,
    context: Arc<(kube::Client, &'static str)>,
) -> kube::Result<Action> {
    let (client, manager) = &*context;
    let copy = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": source.name_any()},
        "data": {*manager: by(&source)}});
    copies(client).patch(&source.name_any(), &PatchParams::apply(manager), &Patch::Apply(copy)).await?;
    Ok(Action::await_change())
}

fn copies(client: &kube::Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), "kube-system")
}

fn by(map: &ConfigMap) -> String {
    map.data.as_ref().and_then(|data| data.get("by")).cloned().unwrap_or_default()
}

/// Waits until every object has its copy, whose fields belong to the controllers that applied them.
pub(crate) async fn has_come_to_rest(client: &kube::Client, managers: &[&str]) {
    let mut changes = Box::pin(watcher(copies(client), Config::default()));
    while !is_copied(client, managers).await {
        changes.next().await.unwrap().unwrap();
    }
}

async fn is_copied(client: &kube::Client, managers: &[&str]) -> bool {
    let sources: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let sources = sources.list(&ListParams::default()).await.unwrap();
    let copies = copies(client).list(&ListParams::default()).await.unwrap();
    sources.iter().all(|source| {
        let copy = copies.iter().find(|copy| copy.name_any() == source.name_any());
        copy.is_some_and(|copy| managers.iter().all(|manager| has_field(copy, manager, &by(source))))
    })
}

/// Whether a copy has a controller's field, and the controller has applied that field and nothing else.
fn has_field(copy: &ConfigMap, manager: &str, value: &str) -> bool {
    let owned = json!({"f:data": {format!("f:{manager}"): {}}});
    let mut entries = copy.managed_fields().iter().filter(|entry| entry.manager.as_deref() == Some(manager));
    let is_owned = entries.next().is_some_and(|entry| {
        entry.operation.as_deref() == Some("Apply")
            && entry.fields_v1.as_ref().is_some_and(|fields| fields.0 == owned)
    });
    is_owned
        && entries.next().is_none()
        && copy.data.as_ref().and_then(|data| data.get(manager)).is_some_and(|found| found == value)
}
