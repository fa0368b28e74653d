//! How many Pods there should be: each Pod's controller says it in its `scale`, and the controller of a controller (a
//! Deployment of its `ReplicaSet`) counts in its place.

use std::collections::BTreeMap;

use kube::Client;
use serde::Deserialize;

use super::model::Pod;
use crate::discovery::{self, Resource};
use crate::metadata::{Object, OwnerReference};
use crate::rest::{Collection, RestError};

/// Why it is not known how many Pods there should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScaleError {
    #[error("found no controller ref for pod {0:?}")]
    NoController(String),
    #[error("{kind} {name:?} has no scale: give the budget `minAvailable` as a number")]
    NoScale { kind: String, name: String },
    #[error(transparent)]
    Rest(#[from] RestError),
}

#[derive(Deserialize)]
struct Scale {
    #[serde(default)]
    spec: ScaleSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ScaleSpec {
    replicas: i64,
}

/// The sum over the controllers of these Pods.
///
/// # Errors
/// When a Pod has no controller, one can't be scaled, or the API does not answer.
pub(crate) async fn expected(client: &Client, namespace: &str, pods: &[Pod]) -> Result<i64, ScaleError> {
    let mut controllers = BTreeMap::new();
    for pod in pods {
        let controller = pod.controller.as_ref();
        let controller = controller.ok_or_else(|| ScaleError::NoController(pod.key.name.clone()))?;
        controllers.insert(controller.uid.clone(), controller.clone());
    }
    if controllers.is_empty() {
        return Ok(0);
    }
    let resources = discovery::discover(client).await?.resources;
    let mut tops = BTreeMap::new();
    for controller in controllers.into_values() {
        let top = top(client, &resources, namespace, controller).await?;
        tops.insert(top.uid.clone(), top);
    }
    let mut sum = 0_i64;
    for top in tops.values() {
        sum = sum.saturating_add(replicas(client, &resources, namespace, top).await?);
    }
    Ok(sum)
}

/// The controller's own controller, if it has one.
async fn top(
    client: &Client,
    resources: &[Resource],
    namespace: &str,
    controller: OwnerReference,
) -> Result<OwnerReference, ScaleError> {
    let collection = collection(client, resources, namespace, &controller)?;
    let Some(object): Option<Object> = collection.get_metadata(&controller.name).await? else {
        return Ok(controller);
    };
    let above = object.metadata.owner_references.iter().find(|owner| owner.controller == Some(true));
    Ok(above.cloned().unwrap_or(controller))
}

/// A controller that is gone wants no Pods.
async fn replicas(
    client: &Client,
    resources: &[Resource],
    namespace: &str,
    controller: &OwnerReference,
) -> Result<i64, ScaleError> {
    let collection = collection(client, resources, namespace, controller)?;
    if collection.get_metadata(&controller.name).await?.is_none() {
        return Ok(0);
    }
    match collection.get_part::<Scale>("scale", &controller.name).await? {
        Some(scale) => Ok(scale.spec.replicas),
        None => Err(no_scale(controller)),
    }
}

fn collection<'a>(
    client: &'a Client,
    resources: &[Resource],
    namespace: &str,
    controller: &OwnerReference,
) -> Result<Collection<'a>, ScaleError> {
    let is_meant = |resource: &&Resource| resource.is_named(&controller.api_version, &controller.kind);
    let resource = resources.iter().find(is_meant).ok_or_else(|| no_scale(controller))?;
    Ok(Collection::new(client, resource.path(namespace)))
}

fn no_scale(controller: &OwnerReference) -> ScaleError {
    ScaleError::NoScale { kind: controller.kind.clone(), name: controller.name.clone() }
}
