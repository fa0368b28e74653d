//! What the controller of volumes knows: claims, volumes and classes whole, since they are written back, and of Pods and
//! nodes what decides.

use std::collections::BTreeMap;

use api::access::{Access as _, metadata, spec};
use informer::{Meta, Store};
use serde::Deserialize;
use serde_json::Value;

/// A claim, a volume or a class, as the API has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Whole {
    pub(crate) key: Meta,
    pub(crate) object: Value,
}

impl From<Value> for Whole {
    fn from(object: Value) -> Self {
        Self { key: Meta::of(&object), object }
    }
}

impl informer::Object for Whole {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

/// A Pod, as far as it uses claims.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Consumer {
    key: Meta,
    /// Its node; empty while it has none.
    pub(crate) node: String,
    /// Keys of the claims that it uses.
    pub(crate) claims: Vec<String>,
}

impl From<Value> for Consumer {
    fn from(pod: Value) -> Self {
        let key = Meta::of(&pod);
        let claim = |volume: &Value| {
            let named =
                volume.field("persistentVolumeClaim").map(|source| source.text("claimName").to_owned());
            let own = || volume.field("ephemeral").map(|_| format!("{}-{}", key.name, volume.text("name")));
            named.or_else(own).map(|name| format!("{}/{name}", key.namespace))
        };
        let claims = spec(&pod).list("volumes").iter().filter_map(claim).collect();
        Self { node: spec(&pod).text("nodeName").to_owned(), claims, key }
    }
}

impl informer::Object for Consumer {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

/// A node, as volumes choose it.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Value")]
pub(crate) struct Node {
    key: Meta,
    pub(crate) labels: BTreeMap<String, String>,
}

impl Node {
    pub(crate) fn name(&self) -> &str {
        &self.key.name
    }
}

impl From<Value> for Node {
    fn from(node: Value) -> Self {
        let labels = metadata(&node).entries("labels").into_iter();
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { key: Meta::of(&node), labels }
    }
}

impl informer::Object for Node {
    fn meta(&self) -> &Meta {
        &self.key
    }
}

/// All of it.
pub(crate) struct World<'a> {
    pub(crate) claims: &'a Store<Whole>,
    pub(crate) volumes: &'a Store<Whole>,
    pub(crate) classes: &'a Store<Whole>,
    pub(crate) pods: &'a Store<Consumer>,
    pub(crate) nodes: &'a Store<Node>,
}

impl World<'_> {
    /// The Pods that use a claim.
    pub(crate) fn users<'a>(&'a self, claim: &'a str) -> impl Iterator<Item = &'a Consumer> {
        self.pods.iter().filter(move |pod| pod.claims.iter().any(|one| one == claim))
    }
}
