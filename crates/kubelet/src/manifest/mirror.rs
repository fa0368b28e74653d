//! Mirror Pods: the API's objects that show static Pods. Whatever happens to one, it is made again as long as its
//! static Pod is there, and deleted when it is not.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, Error};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::HASH;

/// The annotation of a mirror Pod: the hash of the static Pod that it shows.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";

const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// A namespace and a name.
pub(crate) type Name = (String, String);

/// What the API has of a mirror Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) uid: String,
    hash: String,
    is_deleting: bool,
}

/// Static Pods and their mirrors as they are now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mirrors {
    /// The API's mirrors were seen once: what is absent is not there.
    pub(crate) is_synced: bool,
    /// The node, which owns them; without it none is made.
    pub(crate) node: Option<Arc<Node>>,
    pub(crate) statics: BTreeMap<Name, Arc<Pod>>,
    pub(crate) in_api: BTreeMap<Name, Mirror>,
}

impl Mirrors {
    /// Whether nothing that decides differs: a static Pod is known by its name and its hash.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let hashes = |state: &Self| -> Vec<(Name, Option<String>)> {
            let named = state.statics.iter();
            named.map(|(name, pod)| (name.clone(), hash_of(pod).map(str::to_owned))).collect()
        };
        let node = |state: &Self| state.node.as_ref().and_then(|node| node.metadata.uid.clone());
        self.is_synced == other.is_synced
            && self.in_api == other.in_api
            && node(self) == node(other)
            && hashes(self) == hashes(other)
    }
}

/// One thing to do in the API.
#[derive(Clone, Debug, PartialEq)]
enum Act {
    Create(Box<Pod>),
    Delete { name: Name, uid: String },
}

/// The namespace and name of a Pod.
pub(crate) fn name_of(pod: &Pod) -> Name {
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    (part(&pod.metadata.namespace), part(&pod.metadata.name))
}

/// The mirror that an object of the API is, if it is one.
pub(crate) fn mirror_of(pod: &Pod) -> Option<Mirror> {
    let hash = pod.metadata.annotations.as_ref()?.get(MIRROR)?.clone();
    Some(Mirror {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        hash,
        is_deleting: pod.metadata.deletion_timestamp.is_some(),
    })
}

/// Works out what the API lacks and what it has too much.
fn plan_acts(state: &Mirrors) -> Vec<Act> {
    if !state.is_synced {
        return Vec::new();
    }
    let is_fine = |name: &Name, mirror: &Mirror| {
        let wanted = state.statics.get(name).and_then(|pod| hash_of(pod));
        !mirror.is_deleting && wanted == Some(mirror.hash.as_str())
    };
    let unfit = state.in_api.iter().filter(|(name, mirror)| !is_fine(name, mirror));
    let deletions = unfit.map(|(name, mirror)| Act::Delete { name: name.clone(), uid: mirror.uid.clone() });
    let missing = state.statics.iter().filter(|(name, _)| !state.in_api.contains_key(*name));
    let creations = state
        .node
        .iter()
        .flat_map(|node| missing.clone().map(|(_, pod)| Act::Create(Box::new(plan_mirror(pod, node)))));
    deletions.chain(creations).collect()
}

fn hash_of(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(HASH).map(String::as_str)
}

/// The object that shows a static Pod.
fn plan_mirror(pod: &Pod, node: &Node) -> Pod {
    let mut mirror = pod.clone();
    let hash = hash_of(pod).unwrap_or_default().to_owned();
    let meta = &mut mirror.metadata;
    meta.uid = None;
    meta.annotations.get_or_insert_default().insert(MIRROR.to_owned(), hash);
    meta.owner_references = Some(vec![OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror.status = None;
    mirror
}

/// Keeps the API's mirrors as the static Pods are, until `shutdown`. What fails is tried again.
pub(crate) async fn keep_mirrors(
    client: Client,
    mut state: watch::Receiver<Mirrors>,
    shutdown: CancellationToken,
) {
    let mut wait = FIRST_WAIT;
    let work = async {
        loop {
            let acts = plan_acts(&state.borrow_and_update());
            let mut has_failed = false;
            for act in acts {
                if let Err(error) = apply(&client, act).await {
                    tracing::warn!(%error, ?wait, "a mirror Pod is not as it should be; it is tried again");
                    has_failed = true;
                }
            }
            if has_failed {
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    changed = state.changed() => if changed.is_err() { return },
                }
                wait = (wait * 2).min(LONGEST_WAIT);
            } else {
                wait = FIRST_WAIT;
                if state.changed().await.is_err() {
                    return;
                }
            }
        }
    };
    shutdown.run_until_cancelled(work).await;
}

/// What is so already is fine.
async fn apply(client: &Client, act: Act) -> Result<(), Error> {
    let done = match act {
        Act::Create(pod) => {
            let (namespace, _) = name_of(&pod);
            let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            api.create(&PostParams::default(), &pod).await.map(drop)
        }
        Act::Delete { name: (namespace, name), uid } => {
            let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            let only_this = Preconditions { uid: Some(uid), resource_version: None };
            let params = DeleteParams::default().grace_period(0).preconditions(only_this);
            api.delete(&name, &params).await.map(drop)
        }
    };
    match done {
        Err(Error::Api(status)) if matches!(status.code, 404 | 409) && !is_missing_namespace(&status) => {
            Ok(())
        }
        other => other,
    }
}

/// The namespace of a static Pod may come later than the Pod.
fn is_missing_namespace(status: &kube::core::Status) -> bool {
    status.details.as_ref().is_some_and(|details| details.kind == "namespaces")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(annotations: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-n", "namespace": "default", "uid": "hash",
            "annotations": annotations}, "spec": {"containers": [], "nodeName": "n"}}))
        .unwrap()
    }

    fn state(statics: &[Pod], mirrors: &[Pod]) -> Mirrors {
        let node = json!({"metadata": {"name": "n", "uid": "node-uid"}});
        Mirrors {
            is_synced: true,
            node: Some(Arc::new(serde_json::from_value(node).unwrap())),
            statics: statics.iter().map(|pod| (name_of(pod), Arc::new(pod.clone()))).collect(),
            in_api: mirrors.iter().map(|pod| (name_of(pod), mirror_of(pod).unwrap())).collect(),
        }
    }

    #[test]
    fn a16_a_static_pod_gets_a_mirror_that_shows_its_spec() {
        let fixed = pod(&json!({HASH: "hash"}));
        let acts = plan_acts(&state(std::slice::from_ref(&fixed), &[]));
        let [Act::Create(mirror)] = acts.as_slice() else { panic!("{acts:?}") };
        assert_eq!(mirror.metadata.annotations.as_ref().unwrap()[MIRROR], "hash");
        assert_eq!(mirror.metadata.uid, None);
        assert_eq!(mirror.metadata.owner_references.as_ref().unwrap()[0].uid, "node-uid");
        assert_eq!(mirror.spec, fixed.spec);
        let before = Mirrors { is_synced: false, ..state(&[fixed], &[]) };
        assert_eq!(plan_acts(&before), [], "nothing is made before the API was looked at");
    }

    #[test]
    fn a_mirror_that_does_not_fit_goes_and_one_that_fits_stays() {
        let fixed = pod(&json!({HASH: "hash"}));
        let fitting = pod(&json!({MIRROR: "hash"}));
        let stale = pod(&json!({MIRROR: "older"}));
        let gone = [Act::Delete { name: name_of(&fixed), uid: "hash".into() }];
        assert_eq!(plan_acts(&state(std::slice::from_ref(&fixed), std::slice::from_ref(&fitting))), []);
        assert_eq!(plan_acts(&state(std::slice::from_ref(&fixed), &[stale])), gone);
        assert_eq!(plan_acts(&state(&[], std::slice::from_ref(&fitting))), gone);
        let mut deleting = state(&[fixed], &[fitting]);
        deleting.in_api.values_mut().for_each(|mirror| mirror.is_deleting = true);
        assert_eq!(plan_acts(&deleting), gone, "a user's deletion ends at once, and it is made again");
    }
}
