//! Whole objects of a known type, for consumers that need more of them than a projection.

use std::fmt::Debug;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Meta, Object, Update};

/// An object as its own type has it, without `managedFields`.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "K", bound(deserialize = "K: kube::Resource + DeserializeOwned"))]
pub struct Typed<K> {
    meta: Meta,
    object: K,
}

impl<K: kube::Resource> From<K> for Typed<K> {
    fn from(mut object: K) -> Self {
        // Often the largest part of an object, and of no use to who reads it.
        object.meta_mut().managed_fields = None;
        let meta = object.meta();
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let meta = Meta {
            namespace: text(&meta.namespace),
            name: text(&meta.name),
            uid: text(&meta.uid),
            revision: text(&meta.resource_version),
        };
        Self { meta, object }
    }
}

impl<K> Object for Typed<K>
where
    K: kube::Resource + DeserializeOwned + Clone + Debug + Send + 'static,
{
    fn meta(&self) -> &Meta {
        &self.meta
    }
}

impl<K> Update<Typed<K>> {
    /// The same update with the objects themselves.
    pub fn into_objects(self) -> Update<K> {
        match self {
            Self::Snapshot(all) => Update::Snapshot(all.into_iter().map(|typed| typed.object).collect()),
            Self::Applied(typed) => Update::Applied(typed.object),
            Self::Deleted(typed) => Update::Deleted(typed.object),
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_whole_object_is_known_by_its_metadata() {
        let map = json!({"metadata": {"namespace": "n", "name": "c", "uid": "u", "resourceVersion": "7",
            "managedFields": [{"manager": "kubectl"}]},
            "data": {"k": "v"}});
        let typed: Typed<ConfigMap> = serde_json::from_value(map).unwrap();
        assert_eq!((typed.meta().key().as_str(), typed.meta().revision.as_str()), ("n/c", "7"));
        let Update::Applied(map) = Update::Applied(typed).into_objects() else { panic!("another update") };
        assert_eq!(map.data.unwrap()["k"], "v");
        assert_eq!(map.metadata.managed_fields, None);
    }
}
