//! The objects of one kind, as far as quotas count them. Tells of a change only when something uses more or less.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::kind::Kind;
use api::quota::{self, Usage};
use informer::Target;
use jiff::Timestamp;
use kube::Client;

use super::model::{Charge, Claims, Counted, Pods, Quota, Services, Using};
use crate::metadata::Object;
use crate::source::Source;

/// The objects of a kind.
pub(crate) struct Watched {
    kind: &'static Kind,
    objects: Objects,
}

enum Objects {
    Pods(Charged<Pods>),
    Services(Charged<Services>),
    Claims(Charged<Claims>),
    /// Each uses its own number.
    Plain(Plain),
}

impl Watched {
    pub(crate) fn new(client: &Client, kind: &'static Kind) -> Self {
        let root = if kind.group.is_empty() { "/api" } else { "/apis" };
        let target = Target::all(format!("{root}/{}/{}", kind.api_version(), kind.plural));
        let objects = match (kind.group, kind.plural) {
            ("", Pods::PLURAL) => Objects::Pods(Charged::new(client, target)),
            ("", Services::PLURAL) => Objects::Services(Charged::new(client, target)),
            ("", Claims::PLURAL) => Objects::Claims(Charged::new(client, target)),
            _ => Objects::Plain(Plain { source: Source::new(client, target), known: BTreeSet::new() }),
        };
        Self { kind, objects }
    }

    pub(crate) const fn kind(&self) -> &'static Kind {
        self.kind
    }

    pub(crate) fn counts(&self, kind: &Kind) -> bool {
        (self.kind.group, self.kind.plural) == (kind.group, kind.plural)
    }

    pub(crate) fn is_synced(&self) -> bool {
        match &self.objects {
            Objects::Pods(pods) => pods.source.is_synced(),
            Objects::Services(services) => services.source.is_synced(),
            Objects::Claims(claims) => claims.source.is_synced(),
            Objects::Plain(plain) => plain.source.is_synced(),
        }
    }

    /// Waits for a change; gives the namespaces in which something else is used now.
    pub(crate) async fn changed(&mut self) -> BTreeSet<String> {
        match &mut self.objects {
            Objects::Pods(pods) => pods.changed().await,
            Objects::Services(services) => services.changed().await,
            Objects::Claims(claims) => claims.changed().await,
            Objects::Plain(plain) => plain.changed().await,
        }
    }

    /// Adds what a quota's namespace uses; says how long until that changes by itself.
    pub(crate) fn tally(&self, quota: &Quota, now: Timestamp, used: &mut Usage) -> Option<Duration> {
        match &self.objects {
            Objects::Pods(pods) => pods.tally(quota, now, used),
            Objects::Services(services) => services.tally(quota, now, used),
            Objects::Claims(claims) => claims.tally(quota, now, used),
            Objects::Plain(plain) => {
                plain.tally(self.kind, quota, now, used);
                None
            }
        }
    }
}

/// The namespace of a key such as `default/web`.
fn namespace(key: &str) -> &str {
    key.split_once('/').map_or("", |(namespace, _)| namespace)
}

fn add(used: &mut Usage, more: &Usage) {
    for (name, amount) in more {
        let sum = used.get(name).map_or(*amount, |one| one.plus(*amount));
        used.insert(name.clone(), sum);
    }
}

/// Objects of a kind that use more than their number.
struct Charged<W> {
    source: Source<Counted<W>>,
    /// What each was seen to use.
    known: BTreeMap<String, Arc<Charge>>,
}

impl<W: Using> Charged<W> {
    fn new(client: &Client, target: Target) -> Self {
        Self { source: Source::new(client, target), known: BTreeMap::new() }
    }

    async fn changed(&mut self) -> BTreeSet<String> {
        let keys = self.source.changed().await;
        let mut namespaces = BTreeSet::new();
        for key in keys {
            let now = self.source.store().get(&key).map(|object| &object.charge);
            if now == self.known.get(&key) {
                continue;
            }
            namespaces.insert(namespace(&key).to_owned());
            match now.cloned() {
                Some(charge) => self.known.insert(key, charge),
                None => self.known.remove(&key),
            };
        }
        namespaces
    }

    fn tally(&self, quota: &Quota, now: Timestamp, used: &mut Usage) -> Option<Duration> {
        let mut again: Option<Duration> = None;
        let objects = self.source.store().iter().filter(|one| one.key.namespace == quota.key.namespace);
        for object in objects.filter(|one| quota::covers(&quota.object, one.charge.facts.as_ref())) {
            let (usage, wait) = object.charge.at(now);
            add(used, usage);
            again = [again, wait].into_iter().flatten().min();
        }
        again
    }
}

/// Objects of another kind.
struct Plain {
    source: Source<Object>,
    known: BTreeSet<String>,
}

impl Plain {
    async fn changed(&mut self) -> BTreeSet<String> {
        let keys = self.source.changed().await;
        let mut namespaces = BTreeSet::new();
        for key in keys {
            let is_there = self.source.store().get(&key).is_some();
            if is_there != self.known.contains(&key) {
                namespaces.insert(namespace(&key).to_owned());
                if is_there {
                    self.known.insert(key);
                } else {
                    self.known.remove(&key);
                }
            }
        }
        namespaces
    }

    fn tally(&self, kind: &Kind, quota: &Quota, now: Timestamp, used: &mut Usage) {
        if !quota::covers(&quota.object, None) {
            return;
        }
        // Nothing of the object is asked: it uses its number.
        let one = quota::usage_of(kind, &serde_json::Value::Null, now);
        let prefix = format!("{}/", quota.key.namespace);
        let count = self.known.range(prefix.clone()..).take_while(|key| key.starts_with(&prefix)).count();
        (0..count).for_each(|_| add(used, &one));
    }
}
