//! What a kubelet may do: read what the Pods on its own node use, and nothing else of that kind. Which Pod uses what is
//! an index over the stored Pods that follows the watch cache when it is asked.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use api::access::Access as _;
use api::kind;
use api::rbac::{Action, Rule, bootstrap};
use serde::Deserialize;
use serde_json::Value;

use super::Target;
use crate::cache::{Cache, Object};

/// The rules of the role `system:node`, which say what kubelets do beside their own objects; and kakoi's own: the label
/// of a namespace decides about the user namespaces of its Pods.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let made = bootstrap();
    let mut roles = made.cluster_roles.iter();
    let role = roles.find(|role| api::access::metadata(role).text("name") == "system:node");
    let mut rules = role.map(Rule::of_role).unwrap_or_default();
    rules.push(Rule {
        verbs: ["get", "list", "watch"].map(str::to_owned).to_vec(),
        groups: vec![String::new()],
        resources: vec!["namespaces".to_owned()],
        ..Rule::default()
    });
    rules
});

/// What a Pod uses: a resource and `namespace/name`.
type Use = (&'static str, String);

/// Which node uses what, because of which Pods.
#[derive(Debug, Default)]
pub(crate) struct Graph(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    cursor: Option<u64>,
    pods: HashMap<Arc<str>, Bound>,
    uses: HashMap<String, HashMap<Use, usize>>,
}

/// A Pod on a node.
#[derive(Debug)]
struct Bound {
    node: String,
    uses: HashSet<Use>,
}

impl Graph {
    /// Whether a kubelet may do something.
    pub(crate) fn allows(&self, cache: &Cache, node: &str, verb: &str, target: Target<'_>) -> bool {
        let Target::Resource { group, resource, subresource, namespace, name, fields } = target else {
            return false;
        };
        let reads = matches!(verb, "get" | "list" | "watch");
        let key = format!("{namespace}/{name}");
        let has_name = !name.is_empty() && !namespace.is_empty();
        let changes = matches!(verb, "get" | "update" | "patch" | "delete");
        match (group, resource, subresource) {
            ("", "secrets" | "configmaps", _) => {
                subresource.is_empty() && reads && has_name && self.uses(cache, node, resource, &key)
            }
            // Upstream's kubelet only gets these; a watch of one object by its name shows no more.
            ("", "persistentvolumeclaims", "") => reads && has_name && self.uses(cache, node, resource, &key),
            ("", "persistentvolumeclaims", "status") => {
                matches!(verb, "get" | "update" | "patch") && self.uses(cache, node, resource, &key)
            }
            ("", "persistentvolumes", _) => {
                reads && subresource.is_empty() && self.uses_volume(cache, node, name)
            }
            ("", "serviceaccounts", "token") => {
                verb == "create" && self.uses(cache, node, "serviceaccounts", &key)
            }
            ("", "nodes", "") if reads => name == node,
            ("", "nodes", "" | "status") if matches!(verb, "update" | "patch" | "delete") => name == node,
            ("", "pods", "") if matches!(verb, "list" | "watch") => {
                selects_node(fields, node) || (has_name && self.has_pod(cache, node, &key))
            }
            ("", "pods", "") if verb == "get" => self.has_pod(cache, node, &key),
            ("coordination.k8s.io", "leases", "") => {
                namespace == "kube-node-lease" && (verb == "create" || (changes && name == node))
            }
            ("storage.k8s.io", "csinodes", "") => verb == "create" || (changes && name == node),
            ("storage.k8s.io", "volumeattachments", _) => verb == "get" && is_attached(cache, node, name),
            ("resource.k8s.io", "resourceclaims", "") => {
                verb == "get" && self.uses(cache, node, resource, &key)
            }
            ("resource.k8s.io", "resourceslices", "") => {
                verb == "create" || (changes && slice_is_of(cache, node, name)) || selects_node(fields, node)
            }
            _ => {
                let action = Action::Resource { verb, group, resource, subresource, name };
                RULES.iter().any(|rule| rule.allows(action))
            }
        }
    }

    fn uses(&self, cache: &Cache, node: &str, resource: &str, key: &str) -> bool {
        let Some(of) = USED.iter().copied().find(|known| *known == resource) else { return false };
        self.caught_up(cache, |state| {
            state.uses.get(node).is_some_and(|uses| uses.contains_key(&(of, key.to_owned())))
                || (of == "secrets" && state.volume_secrets(cache, node).contains(key))
        })
    }

    fn has_pod(&self, cache: &Cache, node: &str, key: &str) -> bool {
        self.caught_up(cache, |state| state.pods.get(key).is_some_and(|bound| bound.node == node))
    }

    /// Whether a claim of the node's Pods is bound to a volume.
    fn uses_volume(&self, cache: &Cache, node: &str, name: &str) -> bool {
        self.caught_up(cache, |state| state.volumes(cache, node).iter().any(|volume| volume == name))
    }

    fn caught_up<T>(&self, cache: &Cache, read: impl FnOnce(&State) -> T) -> T {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.catch_up(cache);
        read(&state)
    }
}

/// The resources that Pods refer to.
const USED: &[&str] =
    &["secrets", "configmaps", "persistentvolumeclaims", "serviceaccounts", "resourceclaims"];

/// Whether a field selector asks for one node's objects alone.
fn selects_node(fields: &str, node: &str) -> bool {
    fields.split(',').any(|term| {
        let value = term.strip_prefix("spec.nodeName=");
        value.map(|value| value.strip_prefix('=').unwrap_or(value)) == Some(node)
    })
}

fn get(cache: &Cache, group: &str, plural: &str, key: &str) -> Option<Value> {
    Some(cache.get(kind::find(group, "v1", plural)?, key)?.value())
}

fn is_attached(cache: &Cache, node: &str, name: &str) -> bool {
    get(cache, "storage.k8s.io", "volumeattachments", name)
        .is_some_and(|attachment| api::access::spec(&attachment).text("nodeName") == node)
}

fn slice_is_of(cache: &Cache, node: &str, name: &str) -> bool {
    get(cache, "resource.k8s.io", "resourceslices", name)
        .is_some_and(|slice| api::access::spec(&slice).text("nodeName") == node)
}

impl State {
    fn catch_up(&mut self, cache: &Cache) {
        let Some(table) = kind::find("", "v1", "pods").and_then(|pods| cache.table(pods)) else { return };
        if let Some(cursor) = self.cursor
            && let Ok((events, upto)) = table.changes_after(cursor, usize::MAX, || cache.revision())
        {
            for event in events {
                self.take(&event.object, event.removed);
            }
            self.cursor = Some(upto);
            return;
        }
        *self = Self::default();
        let snapshot = cache.snapshot(table);
        for object in snapshot.objects.values() {
            self.take(object, false);
        }
        self.cursor = Some(snapshot.revision);
    }

    fn take(&mut self, pod: &Object, removed: bool) {
        // What a Pod on a node uses does not change, but for its ephemeral containers.
        let is_known = self.pods.contains_key(pod.key());
        if is_known && !removed && !contains(pod.json(), b"\"ephemeralContainers\"") {
            return;
        }
        self.forget(pod.key());
        if removed {
            return;
        }
        let Some(bound) = read_pod(pod) else { return };
        let uses = self.uses.entry(bound.node.clone()).or_default();
        for one in &bound.uses {
            *uses.entry(one.clone()).or_default() += 1;
        }
        self.pods.insert(pod.key().clone(), bound);
    }

    fn forget(&mut self, key: &str) {
        let Some(bound) = self.pods.remove(key) else { return };
        let Some(uses) = self.uses.get_mut(&bound.node) else { return };
        for one in bound.uses {
            if let Some(count) = uses.get_mut(&one) {
                *count -= 1;
                if *count == 0 {
                    uses.remove(&one);
                }
            }
        }
        if uses.is_empty() {
            self.uses.remove(&bound.node);
        }
    }

    /// The volumes behind the claims of a node's Pods.
    fn volumes(&self, cache: &Cache, node: &str) -> Vec<String> {
        let uses = self.uses.get(node).into_iter().flatten();
        let claims = uses.filter(|((resource, _), _)| *resource == "persistentvolumeclaims");
        let volume = |key: &str| {
            let claim = get(cache, "", "persistentvolumeclaims", key)?;
            Some(api::access::spec(&claim).text("volumeName").to_owned())
        };
        claims.filter_map(|((_, key), _)| volume(key)).filter(|name| !name.is_empty()).collect()
    }

    /// The secrets with which those volumes are mounted.
    fn volume_secrets(&self, cache: &Cache, node: &str) -> HashSet<String> {
        let volumes = self.volumes(cache, node);
        let secrets = volumes.iter().filter_map(|name| get(cache, "", "persistentvolumes", name));
        secrets.flat_map(|volume| secrets_of_volume(api::access::spec(&volume))).collect()
    }
}

/// `namespace/name` of every secret that a volume's source names.
fn secrets_of_volume(spec: &Value) -> Vec<String> {
    let sources = spec.as_object().into_iter().flatten().filter_map(|(_, source)| source.as_object());
    let references = sources.flatten().filter(|(name, _)| name.ends_with("ecretRef"));
    let claim = spec.field("claimRef").map(|claim| claim.text("namespace")).unwrap_or_default();
    references
        .map(|(_, reference)| {
            let said = reference.text("namespace");
            format!("{}/{}", if said.is_empty() { claim } else { said }, reference.text("name"))
        })
        .collect()
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// The part of a Pod that says where it is and what it uses; the rest of its bytes is skipped.
#[derive(Deserialize)]
struct PodUses {
    spec: Spec,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: String,
    service_account_name: String,
    image_pull_secrets: Vec<Named>,
    volumes: Vec<Value>,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
    ephemeral_containers: Vec<Container>,
    resource_claims: Vec<Claim>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Claim {
    resource_claim_name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    env: Vec<Value>,
    env_from: Vec<Value>,
}

fn read_pod(object: &Object) -> Option<Bound> {
    let PodUses { spec } = serde_json::from_slice(object.json()).ok()?;
    if spec.node_name.is_empty() {
        return None;
    }
    let (namespace, pod) = object.key().split_once('/')?;
    let mut uses = HashSet::new();
    let mut add = |resource: &'static str, name: &str| {
        if !name.is_empty() {
            uses.insert((resource, format!("{namespace}/{name}")));
        }
    };
    add("serviceaccounts", &spec.service_account_name);
    for secret in &spec.image_pull_secrets {
        add("secrets", &secret.name);
    }
    for claim in &spec.resource_claims {
        add("resourceclaims", &claim.resource_claim_name);
    }
    let containers = spec.containers.iter().chain(&spec.init_containers).chain(&spec.ephemeral_containers);
    for container in containers {
        for variable in &container.env {
            let from = variable.field("valueFrom").unwrap_or(&Value::Null);
            add("secrets", named(from, "secretKeyRef", "name"));
            add("configmaps", named(from, "configMapKeyRef", "name"));
        }
        for source in &container.env_from {
            add("secrets", named(source, "secretRef", "name"));
            add("configmaps", named(source, "configMapRef", "name"));
        }
    }
    for volume in &spec.volumes {
        add_volume(volume, pod, &mut add);
    }
    Some(Bound { node: spec.node_name, uses })
}

fn named<'a>(object: &'a Value, field: &str, name: &str) -> &'a str {
    object.field(field).map(|inner| inner.text(name)).unwrap_or_default()
}

fn add_volume(volume: &Value, pod: &str, add: &mut impl FnMut(&'static str, &str)) {
    add("secrets", named(volume, "secret", "secretName"));
    add("configmaps", named(volume, "configMap", "name"));
    add("persistentvolumeclaims", named(volume, "persistentVolumeClaim", "claimName"));
    if volume.field("ephemeral").is_some() {
        add("persistentvolumeclaims", &format!("{pod}-{}", volume.text("name")));
    }
    let projected = volume.field("projected").map(|projected| projected.list("sources")).unwrap_or_default();
    for source in projected {
        add("secrets", named(source, "secret", "name"));
        add("configmaps", named(source, "configMap", "name"));
    }
    // What other sources need to be mounted: `csi`, `cephfs`, `iscsi` … name a secret each.
    for (_, source) in volume.as_object().into_iter().flatten() {
        for (field, reference) in source.as_object().into_iter().flatten() {
            if field.ends_with("ecretRef") {
                add("secrets", reference.text("name"));
            }
        }
        add("secrets", source.text("secretName"));
    }
}
