//! What a watch has told so far, by key.

use std::collections::BTreeMap;

use crate::{Object, Update};

/// The objects of one watch as they are now.
#[derive(Clone, Debug)]
pub struct Store<K> {
    objects: BTreeMap<String, K>,
    is_synced: bool,
}

impl<K> Default for Store<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), is_synced: false }
    }
}

impl<K: Object> Store<K> {
    /// Takes over an update and says which keys it touched.
    pub fn apply(&mut self, update: Update<K>) -> Vec<String> {
        match update {
            Update::Snapshot(objects) => {
                self.is_synced = true;
                let fresh: BTreeMap<String, K> = objects.into_iter().map(|o| (o.meta().key(), o)).collect();
                let old = std::mem::replace(&mut self.objects, fresh);
                let gone = old.into_keys().filter(|key| !self.objects.contains_key(key));
                let gone: Vec<String> = gone.collect();
                self.objects.keys().cloned().chain(gone).collect()
            }
            Update::Applied(object) => {
                let key = object.meta().key();
                self.objects.insert(key.clone(), object);
                vec![key]
            }
            Update::Deleted(object) => {
                let key = object.meta().key();
                self.objects.remove(&key);
                vec![key]
            }
        }
    }

    /// Whether all objects were told once.
    pub const fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// The object of a key.
    pub fn get(&self, key: &str) -> Option<&K> {
        self.objects.get(key)
    }

    /// All objects, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = &K> {
        self.objects.values()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Meta;
    use serde::Deserialize;
    use serde_json::{Value, json};

    #[derive(Clone, Debug, Deserialize)]
    #[serde(from = "Value")]
    struct Thing(Meta);

    impl From<Value> for Thing {
        fn from(value: Value) -> Self {
            Self(Meta::of(&value))
        }
    }

    impl Object for Thing {
        fn meta(&self) -> &Meta {
            &self.0
        }
    }

    fn thing(name: &str) -> Thing {
        json!({"metadata": {"name": name}}).into()
    }

    #[test]
    fn a_snapshot_touches_what_is_new_and_what_is_gone() {
        let mut store = Store::default();
        assert!(!store.is_synced());
        store.apply(Update::Snapshot(vec![thing("a"), thing("b")]));
        assert!(store.is_synced());
        assert_eq!(store.apply(Update::Snapshot(vec![thing("b"), thing("c")])), ["b", "c", "a"]);
        assert_eq!(store.apply(Update::Applied(thing("d"))), ["d"]);
        assert_eq!(store.apply(Update::Deleted(thing("b"))), ["b"]);
        assert_eq!(store.iter().map(|t| t.0.name.as_str()).collect::<Vec<_>>(), ["c", "d"]);
    }
}
