//! What a Pod refers to: the names of its `ConfigMap`s, `Secret`s and claims, and a snapshot of them to plan with.
//!
//! Planning is pure: it reads a [`Snapshot`] that was gathered before. Fetching and watching live in [`cache`].

pub(crate) mod bundle;
pub(crate) mod cache;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Volume,
};

use self::bundle::Bundles;
use crate::pod::ephemeral::{as_container, ephemeral_containers};
use crate::volume::claim::claim_name;

/// The names of the objects that a Pod's spec refers to, in the Pod's namespace where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct References {
    pub(crate) config_maps: BTreeSet<String>,
    pub(crate) secrets: BTreeSet<String>,
    pub(crate) claims: BTreeSet<String>,
    /// Cluster-wide: what the claims are bound to, once that is known.
    pub(crate) persistent_volumes: BTreeSet<String>,
    /// It projects certificates of the cluster's trust bundles.
    pub(crate) has_trust_bundles: bool,
}

/// Collects every `ConfigMap`, `Secret` and claim that volumes, variables and image pulls of `pod` name.
pub(crate) fn references(pod: &Pod) -> References {
    let mut found = References::default();
    let Some(spec) = &pod.spec else { return found };
    for volume in spec.volumes.iter().flatten() {
        found.add_volume(volume);
        found.claims.extend(claim_name(pod, volume));
    }
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        found.add_container(container);
    }
    for ephemeral in ephemeral_containers(spec) {
        found.add_container(&as_container(ephemeral));
    }
    found.secrets.extend(spec.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone()));
    found.config_maps.remove("");
    found.secrets.remove("");
    found
}

impl References {
    fn add_volume(&mut self, volume: &Volume) {
        self.config_maps.extend(volume.config_map.iter().map(|source| source.name.clone()));
        self.secrets.extend(volume.secret.iter().filter_map(|source| source.secret_name.clone()));
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        for source in sources {
            self.config_maps.extend(source.config_map.iter().map(|projection| projection.name.clone()));
            self.secrets.extend(source.secret.iter().map(|projection| projection.name.clone()));
            self.has_trust_bundles |= source.cluster_trust_bundle.is_some();
        }
    }

    fn add_container(&mut self, container: &Container) {
        for source in container.env_from.iter().flatten() {
            self.config_maps.extend(source.config_map_ref.iter().map(|reference| reference.name.clone()));
            self.secrets.extend(source.secret_ref.iter().map(|reference| reference.name.clone()));
        }
        for source in container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
            self.config_maps.extend(source.config_map_key_ref.iter().map(|key| key.name.clone()));
            self.secrets.extend(source.secret_key_ref.iter().map(|key| key.name.clone()));
        }
    }
}

/// The referenced objects as they were at one moment; a name without an object does not exist in the API.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) config_maps: BTreeMap<String, Arc<ConfigMap>>,
    pub(crate) secrets: BTreeMap<String, Arc<Secret>>,
    pub(crate) claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
    pub(crate) persistent_volumes: BTreeMap<String, Arc<PersistentVolume>>,
    /// `None` when the API does not have the kind, or no volume wants them.
    pub(crate) trust_bundles: Option<Arc<Bundles>>,
}

impl Snapshot {
    pub(crate) fn config_map(&self, name: &str) -> Result<&ConfigMap, MissingObject> {
        self.config_maps.get(name).map(AsRef::as_ref).ok_or_else(|| MissingObject::new("configmap", name))
    }

    pub(crate) fn secret(&self, name: &str) -> Result<&Secret, MissingObject> {
        self.secrets.get(name).map(AsRef::as_ref).ok_or_else(|| MissingObject::new("secret", name))
    }
}

/// A referenced object that the API does not have. The text is the one that users search for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{kind} \"{name}\" not found")]
pub(crate) struct MissingObject {
    kind: &'static str,
    name: String,
}

impl MissingObject {
    fn new(kind: &'static str, name: &str) -> Self {
        Self { kind, name: name.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_that_can_name_an_object_is_seen() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "configMap": {"name": "cm-volume"}},
                {"name": "b", "secret": {"secretName": "s-volume"}},
                {"name": "c", "projected": {"sources": [
                    {"configMap": {"name": "cm-projected"}}, {"secret": {"name": "s-projected"}}]}}],
            "initContainers": [{"name": "i", "envFrom": [{"configMapRef": {"name": "cm-from"}}, {"secretRef": {"name": "s-from"}}]}],
            "containers": [{"name": "c", "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm-key", "key": "k"}}},
                {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s-key", "key": "k"}}}]}]}}))
        .unwrap();
        let found = references(&pod);
        assert_eq!(
            found.config_maps.into_iter().collect::<Vec<_>>(),
            ["cm-from", "cm-key", "cm-projected", "cm-volume"]
        );
        assert_eq!(
            found.secrets.into_iter().collect::<Vec<_>>(),
            ["pull", "s-from", "s-key", "s-projected", "s-volume"]
        );
    }
}
