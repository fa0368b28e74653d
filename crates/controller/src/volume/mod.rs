//! `PersistentVolume`s and claims: which volume a claim gets, what becomes of a volume whose claim is gone, and that
//! neither goes while it is in use. Volumes are those that there are: nothing is provisioned and no data is deleted here.
//!
//! Each object is settled one write at a time, from what the watches tell; the watch of that write brings the next one.

mod bind;
mod find;
mod model;
mod release;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use informer::Target;
use kube::Client;
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event::{Subject, Tone, post};
use crate::queue::Queue;
use crate::rest::{Collection, Forgive as _, RestError};
use crate::source::Source;

use model::{Consumer, Node, Whole, World};

/// One step towards what an object shall be.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    /// Writes the object, but for its status.
    Write(Value),
    /// Writes its status.
    Status(Value),
}

/// What is told about an object, once.
#[derive(Clone, Debug, PartialEq, Eq)]
struct News {
    tone: Tone,
    reason: &'static str,
    message: String,
}

impl News {
    fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { tone: Tone::Normal, reason, message: message.into() }
    }

    fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { tone: Tone::Warning, reason, message: message.into() }
    }
}

/// A step, and what is told of it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Plan {
    step: Option<Step>,
    news: Option<News>,
    /// A claim that must really be gone, and not only be unknown to our watch yet.
    gone: Option<Gone>,
}

/// A claim by its key and its UID.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Gone {
    claim: String,
    uid: String,
}

/// Runs the controller until `shutdown`.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let mut controller = Controller {
        claims: Source::new(&client, Target::all("/api/v1/persistentvolumeclaims")),
        volumes: Source::new(&client, Target::all("/api/v1/persistentvolumes")),
        classes: Source::new(&client, Target::all("/apis/storage.k8s.io/v1/storageclasses")),
        pods: Source::new(&client, Target::all("/api/v1/pods")),
        nodes: Source::new(&client, Target::all("/api/v1/nodes")),
        queue: Queue::default(),
        told: BTreeMap::new(),
        uses: BTreeMap::new(),
    };
    shutdown.run_until_cancelled(controller.work(&client)).await;
}

struct Controller {
    claims: Source<Whole>,
    volumes: Source<Whole>,
    classes: Source<Whole>,
    pods: Source<Consumer>,
    nodes: Source<Node>,
    /// Keys of claims (`namespace/name`) and of volumes (`name`).
    queue: Queue<String>,
    /// What was told last of each object, by UID.
    told: BTreeMap<String, News>,
    /// The claims that each Pod was seen to use.
    uses: BTreeMap<String, Vec<String>>,
}

impl Controller {
    async fn work(&mut self, client: &Client) {
        loop {
            let is_synced = self.claims.is_synced()
                && self.volumes.is_synced()
                && self.classes.is_synced()
                && self.pods.is_synced()
                && self.nodes.is_synced();
            tokio::select! {
                keys = self.claims.changed() => self.look_at_claims(keys),
                keys = self.volumes.changed() => self.look_at_volumes(keys),
                _ = self.classes.changed() => self.look_at_pending(),
                keys = self.pods.changed() => self.look_at_pods(keys),
                _ = self.nodes.changed() => self.look_at_pending(),
                () = self.queue.ready(), if is_synced => self.settle_due(client).await,
            }
        }
    }

    fn add(&mut self, keys: impl IntoIterator<Item = String>) {
        let now = Instant::now();
        for key in keys {
            self.queue.add(key, now);
        }
    }

    /// A claim, and the volumes that name it or that it names.
    fn look_at_claims(&mut self, keys: Vec<String>) {
        let of = |claim: &Whole| bind::volume_name(&claim.object).to_owned();
        let mut volumes: BTreeSet<String> =
            keys.iter().filter_map(|key| self.claims.store().get(key)).map(of).collect();
        let names =
            |volume: &&Whole| bind::claim_key(&volume.object).is_some_and(|claim| keys.contains(&claim));
        volumes.extend(self.volumes.store().iter().filter(names).map(|volume| volume.key.key()));
        volumes.remove("");
        self.add(keys.into_iter().chain(volumes));
    }

    /// A volume, the claim that it names, and all claims that have none: it may be theirs.
    fn look_at_volumes(&mut self, keys: Vec<String>) {
        let volumes = keys.iter().filter_map(|key| self.volumes.store().get(key));
        let claims: Vec<String> = volumes.filter_map(|volume| bind::claim_key(&volume.object)).collect();
        let named = self
            .claims
            .store()
            .iter()
            .filter(|claim| keys.iter().any(|key| bind::volume_name(&claim.object) == key));
        let named: Vec<String> = named.map(|claim| claim.key.key()).collect();
        self.add(keys.into_iter().chain(claims).chain(named));
        self.look_at_pending();
    }

    fn look_at_pending(&mut self) {
        let pending = self.claims.store().iter().filter(|claim| !bind::is_bound(&claim.object));
        let keys: Vec<String> = pending.map(|claim| claim.key.key()).collect();
        self.add(keys);
    }

    /// The claims that a Pod uses now or has used.
    fn look_at_pods(&mut self, keys: Vec<String>) {
        for key in keys {
            let now = self.pods.store().get(&key).map(|pod| pod.claims.clone()).unwrap_or_default();
            let before =
                if now.is_empty() { self.uses.remove(&key) } else { self.uses.insert(key, now.clone()) };
            self.add(before.unwrap_or_default().into_iter().chain(now));
        }
    }

    async fn settle_due(&mut self, client: &Client) {
        for key in self.queue.take(Instant::now()) {
            let settled = self.settle(client, &key).await;
            self.queue.done(key, settled);
        }
    }

    async fn settle(&mut self, client: &Client, key: &str) -> Result<(), RestError> {
        let world = World {
            claims: self.claims.store(),
            volumes: self.volumes.store(),
            classes: self.classes.store(),
            pods: self.pods.store(),
            nodes: self.nodes.store(),
        };
        let (found, kind, plan) = if key.contains('/') {
            let Some(claim) = self.claims.store().get(key) else { return Ok(()) };
            (claim.clone(), "PersistentVolumeClaim", bind::plan_claim(&claim.object, &world))
        } else {
            let Some(volume) = self.volumes.store().get(key) else { return Ok(()) };
            (volume.clone(), "PersistentVolume", release::plan_volume(&volume.object, &world))
        };
        if let Some(claim) = plan.gone.filter(|_| plan.step.is_some())
            && is_there(client, &claim).await?
        {
            return Ok(());
        }
        if let Some(news) = plan.news {
            self.tell(client, &found, kind, news).await;
        }
        match plan.step {
            Some(step) => write(client, step).await,
            None => Ok(()),
        }
    }

    /// Writes an event, unless it is what was told of the object last.
    async fn tell(&mut self, client: &Client, object: &Whole, kind: &str, news: News) {
        let key = &object.key;
        if self.told.get(&key.uid) == Some(&news) {
            return;
        }
        let subject = Subject {
            component: "persistentvolume-controller",
            kind,
            namespace: &key.namespace,
            name: &key.name,
            uid: &key.uid,
        };
        post(client, subject, news.tone, news.reason, &news.message).await;
        self.told.insert(key.uid.clone(), news);
        self.forget_gone();
    }

    /// Forgets what was told of objects that are gone, now and then.
    fn forget_gone(&mut self) {
        let there = self.claims.store().len() + self.volumes.store().len();
        if self.told.len() > 2 * there {
            let all = self.claims.store().iter().chain(self.volumes.store().iter());
            let known: BTreeSet<&str> = all.map(|one| one.key.uid.as_str()).collect();
            self.told.retain(|uid, _| known.contains(uid.as_str()));
        }
    }
}

/// Asks the API whether a claim is there; the watch will tell of it.
async fn is_there(client: &Client, claim: &Gone) -> Result<bool, RestError> {
    let (namespace, name) = claim.claim.split_once('/').unwrap_or_default();
    let found = Collection::core(client, namespace, "persistentvolumeclaims").get_metadata(name).await?;
    Ok(found.is_some_and(|found| found.metadata.uid == claim.uid))
}

/// Carries a step out. An object that changed meanwhile is planned for again, as its change is told.
async fn write(client: &Client, step: Step) -> Result<(), RestError> {
    let (object, is_status) = match step {
        Step::Write(object) => (object, false),
        Step::Status(object) => (object, true),
    };
    let meta = informer::Meta::of(&object);
    // Volumes live outside namespaces, claims inside.
    let collection = if meta.namespace.is_empty() {
        Collection::new(client, "/api/v1/persistentvolumes")
    } else {
        Collection::core(client, &meta.namespace, "persistentvolumeclaims")
    };
    let written = if is_status {
        collection.replace_part("status", &meta.name, &object).await
    } else {
        collection.replace(&meta.name, &object).await
    };
    written.forgive(&[404, 409])
}
