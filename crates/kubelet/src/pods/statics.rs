//! Which static Pods are wanted and which have workers. A manifest that changes is another Pod of the same name: it
//! starts when the one before it is gone.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use crate::manifest::mirror::{Name, name_of};
use crate::uid::PodUid;

/// Static Pods of this node.
#[derive(Debug, Default)]
pub(super) struct Statics {
    wanted: BTreeMap<PodUid, Arc<Pod>>,
    running: BTreeMap<PodUid, Arc<Pod>>,
}

impl Statics {
    /// Takes what the manifests say now.
    pub(super) fn want(&mut self, pods: Vec<Arc<Pod>>) {
        let with_uid = pods.into_iter().filter_map(|pod| {
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let parsed = PodUid::parse(uid);
            if let Err(error) = &parsed {
                tracing::warn!(name = pod.metadata.name, %error, "static Pod not run: its UID cannot be used");
            }
            Some((parsed.ok()?, pod))
        });
        self.wanted = with_uid.collect();
    }

    /// Pods that have a worker and no manifest.
    pub(super) fn unwanted(&self) -> Vec<PodUid> {
        self.running.keys().filter(|uid| !self.wanted.contains_key(*uid)).cloned().collect()
    }

    /// Pods that have a manifest and no worker, and of whose name none has one.
    pub(super) fn startable(&self) -> Vec<(PodUid, Arc<Pod>)> {
        let taken: Vec<Name> = self.running.values().map(|pod| name_of(pod)).collect();
        let is_free = |(_, pod): &(&PodUid, &Arc<Pod>)| !taken.contains(&name_of(pod));
        self.wanted.iter().filter(is_free).map(|(uid, pod)| (uid.clone(), Arc::clone(pod))).collect()
    }

    pub(super) fn note_start(&mut self, uid: PodUid, pod: Arc<Pod>) {
        self.running.insert(uid, pod);
    }

    /// A worker has ended; says whether it was a static Pod's.
    pub(super) fn note_end(&mut self, uid: &PodUid) -> bool {
        self.running.remove(uid).is_some()
    }

    pub(super) fn is_running(&self, uid: &PodUid) -> bool {
        self.running.contains_key(uid)
    }

    /// The Pods that the API shows: those with workers.
    pub(super) fn shown(&self) -> BTreeMap<Name, Arc<Pod>> {
        self.running.values().map(|pod| (name_of(pod), Arc::clone(pod))).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str) -> Arc<Pod> {
        let pod = json!({"metadata": {"name": name, "namespace": "default", "uid": uid}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn start(statics: &mut Statics) -> Vec<String> {
        let startable = statics.startable();
        let names = startable.iter().map(|(uid, _)| uid.to_string()).collect();
        for (uid, pod) in startable {
            statics.note_start(uid, pod);
        }
        names
    }

    #[test]
    fn a_changed_manifest_waits_for_the_pod_that_it_was() {
        let mut statics = Statics::default();
        statics.want(vec![pod("a", "1"), pod("b", "2")]);
        assert_eq!(start(&mut statics), ["1", "2"]);
        statics.want(vec![pod("a", "3"), pod("b", "2")]);
        let old = PodUid::parse("1").unwrap();
        assert_eq!(statics.unwanted(), std::slice::from_ref(&old));
        assert_eq!(start(&mut statics), Vec::<String>::new());
        assert!(statics.note_end(&old));
        assert_eq!(start(&mut statics), ["3"]);
        assert_eq!(statics.shown().len(), 2);
        assert!(!statics.note_end(&old));
    }
}
