//! Who answers for a Service: `EndpointSlice`s and `Endpoints` from the Pods that it selects, and slices that mirror the
//! `Endpoints` which somebody wrote for a Service without a selector. Each change of a Pod touches its Services alone.

mod desired;
mod model;
mod pack;
mod relation;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use informer::Target;
use kube::Client;
use kube::api::DeleteParams;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::queue::{Queue, apply_all};
use crate::rest::{Collection, Forgive, RestError};
use crate::source::Source;

use desired::Desired;
use model::{Endpoints, Pod, Service, Slice};
use pack::Plan;
use relation::Relation;

/// Runs the controller until `shutdown`.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let mut controller = Controller {
        services: Source::new(&client, Target::all("/api/v1/services")),
        pods: Source::new(&client, Target::all("/api/v1/pods")),
        slices: Source::new(&client, Target::all("/apis/discovery.k8s.io/v1/endpointslices")),
        endpoints: Source::new(&client, Target::all("/api/v1/endpoints")),
        members: Relation::default(),
        slices_of: Relation::default(),
        queue: Queue::default(),
    };
    shutdown.run_until_cancelled(controller.work(&client)).await;
}

struct Controller {
    services: Source<Service>,
    pods: Source<Pod>,
    slices: Source<Slice>,
    endpoints: Source<Endpoints>,
    members: Relation,
    slices_of: Relation,
    queue: Queue<String>,
}

/// What to do for one Service.
#[derive(Debug, Default, PartialEq)]
struct Work {
    namespace: String,
    name: String,
    slices: Plan,
    endpoints: Change,
}

/// What becomes of `Endpoints`.
#[derive(Debug, Default, PartialEq)]
enum Change {
    #[default]
    Nothing,
    Create(Value),
    Replace(Value),
    Delete,
}

impl Controller {
    async fn work(&mut self, client: &Client) {
        loop {
            let is_synced = self.services.is_synced()
                && self.pods.is_synced()
                && self.slices.is_synced()
                && self.endpoints.is_synced();
            tokio::select! {
                keys = self.services.changed() => self.look_at_services(keys),
                keys = self.pods.changed() => self.look_at_pods(&keys),
                keys = self.slices.changed() => self.look_at_slices(&keys),
                keys = self.endpoints.changed() => self.add(keys),
                () = self.queue.ready(), if is_synced => self.work_off(client).await,
            }
        }
    }

    fn add(&mut self, services: impl IntoIterator<Item = String>) {
        let now = Instant::now();
        services.into_iter().for_each(|service| self.queue.add(service, now));
    }

    fn look_at_services(&mut self, keys: Vec<String>) {
        for key in &keys {
            let service = self.services.store().get(key);
            let is_member =
                |pod: &&Pod| service.is_some_and(|service| service.matches(&pod.key.namespace, &pod.labels));
            let pods = self.pods.store().iter().filter(is_member).map(|pod| pod.key.key()).collect();
            self.members.set_members(key, pods);
        }
        self.add(keys);
    }

    fn look_at_pods(&mut self, keys: &[String]) {
        for key in keys {
            let services = match self.pods.store().get(key) {
                Some(pod) => self
                    .services
                    .store()
                    .iter()
                    .filter(|service| service.matches(&pod.key.namespace, &pod.labels))
                    .map(|service| service.key.key())
                    .collect(),
                None => BTreeSet::new(),
            };
            let touched = self.members.set_services(key, &services);
            self.add(touched);
        }
    }

    fn look_at_slices(&mut self, keys: &[String]) {
        for key in keys {
            let service = self.slices.store().get(key).and_then(Slice::service);
            let touched = self.slices_of.set_services(key, &service.into_iter().collect());
            self.add(touched);
        }
    }

    async fn work_off(&mut self, client: &Client) {
        let due = self.queue.take(Instant::now());
        let works: Vec<_> = due.into_iter().map(|key| (key.clone(), self.plan(&key))).collect();
        apply_all(&mut self.queue, works, |work| apply(client, work)).await;
    }

    fn plan(&self, key: &str) -> Work {
        let Some((namespace, name)) = key.split_once('/') else { return Work::default() };
        let service = self.services.store().get(key);
        let endpoints = self.endpoints.store().get(key);
        Work {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            slices: self.plan_slices(key, service, endpoints),
            endpoints: self.plan_endpoints(service, endpoints),
        }
    }

    /// A Service's slices come from its Pods, or mirror `Endpoints`; those of a Service that is gone go with it.
    fn plan_slices(&self, key: &str, service: Option<&Service>, endpoints: Option<&Endpoints>) -> Plan {
        let Some(service) = service else { return Plan::default() };
        let made = service.selects().then(|| desired::from_pods(service, self.pods_of(key)));
        let mirrored = endpoints.and_then(|endpoints| desired::from_endpoints(service, endpoints));
        let mut plan = self.plan_for(key, desired::SLICES, made.as_ref());
        let mirror = self.plan_for(key, desired::MIRROR, mirrored.as_ref());
        plan.create.extend(mirror.create);
        plan.replace.extend(mirror.replace);
        plan.delete.extend(mirror.delete);
        plan
    }

    /// The plan for the slices of one controller: without a wish for any they all go.
    fn plan_for(&self, key: &str, controller: &str, desired: Option<&Desired>) -> Plan {
        let store = self.slices.store();
        let slices: Vec<&Slice> = self
            .slices_of
            .members(key)
            .filter_map(|slice| store.get(slice))
            .filter(|slice| slice.is_managed_by(controller))
            .collect();
        let Some(desired) = desired else {
            let delete = slices.iter().map(|slice| slice.key.name.clone()).collect();
            return Plan { delete, ..Plan::default() };
        };
        let is_taken = |name: &str| store.get(&format!("{}/{name}", desired.namespace)).is_some();
        pack::plan(desired, &slices, is_taken)
    }

    fn pods_of(&self, service: &str) -> impl Iterator<Item = &Pod> {
        self.members.members(service).filter_map(|pod| self.pods.store().get(pod))
    }

    fn plan_endpoints(&self, service: Option<&Service>, present: Option<&Endpoints>) -> Change {
        let Some(service) = service else {
            let is_ours = present.is_some_and(desired::is_made);
            return if is_ours { Change::Delete } else { Change::Nothing };
        };
        if !service.selects() {
            return Change::Nothing;
        }
        let (labels, subsets) = desired::subsets(service, self.pods_of(&service.key.key()));
        if present.is_some_and(|present| present.labels == labels && present.subsets == subsets) {
            return Change::Nothing;
        }
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"name": service.key.name, "namespace": service.key.namespace, "labels": labels},
            "subsets": subsets,
        });
        match present {
            None => Change::Create(object),
            Some(present) => {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.insert("resourceVersion".to_owned(), present.key.revision.clone().into());
                }
                Change::Replace(object)
            }
        }
    }
}

/// Carries a plan out. What changed since it was made fails, and is planned anew.
async fn apply(client: &Client, work: Work) -> Result<(), RestError> {
    let namespace = &work.namespace;
    let slices =
        Collection::new(client, format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"));
    for slice in &work.slices.create {
        unless_terminating(slices.create(slice).await)?;
    }
    for slice in &work.slices.replace {
        let name = slice.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        slices.replace(name, slice).await.forgive(&[404])?;
    }
    for name in &work.slices.delete {
        slices.delete(name, &DeleteParams::background()).await.forgive(&[404])?;
    }
    let endpoints = Collection::core(client, namespace, "endpoints");
    match &work.endpoints {
        Change::Nothing => Ok(()),
        Change::Create(object) => unless_terminating(endpoints.create(object).await),
        Change::Replace(object) => endpoints.replace(&work.name, object).await.forgive(&[404]),
        Change::Delete => endpoints.delete(&work.name, &DeleteParams::background()).await.forgive(&[404]),
    }
}

fn unless_terminating(created: Result<Value, RestError>) -> Result<(), RestError> {
    match created {
        Err(error) if error.is_namespace_terminating() => Ok(()),
        created => created.forgive(&[404]),
    }
}
