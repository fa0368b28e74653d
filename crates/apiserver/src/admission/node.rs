//! A kubelet writes only what is its own: its Node, its Lease, its `CSINode`, and the Pods that are bound to it. It can't
//! give itself labels or taints by which others are kept apart.

use api::access::{Access as _, metadata, spec};
use api::admission as rules;
use api::status::Status;
use serde_json::Value;

use super::{Act, Ask};
use crate::meta;

/// Where kubelets show that they live.
const NODE_LEASES: &str = "kube-node-lease";
/// Labels below these domains are Kubernetes' own.
const RESERVED: &[&str] = &["kubernetes.io", "k8s.io"];
/// Reserved labels that a kubelet may set on its own Node.
const OWN_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/instance-type",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Domains of labels that a kubelet may set. A node's role is in its own configuration here, not in kubeadm's hands.
const OWN_DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io", "node-role.kubernetes.io"];

pub(super) fn check(ask: Ask<'_>) -> Result<Vec<String>, Status> {
    let Some(node) = ask.write.user.node_name() else { return Ok(Vec::new()) };
    match ask.write.kind.kind {
        "Pod" => pod(ask, node),
        "Node" => own_node(ask, node),
        "Lease" => lease(ask, node),
        "CSINode" => named(ask, node, "can only access CSINode with the same name as the requesting node"),
        _ => slice(ask, node),
    }?;
    Ok(Vec::new())
}

fn pod(ask: Ask<'_>, node: &str) -> Result<(), Status> {
    let bound = |pod: &Value| spec(pod).text("nodeName") == node;
    let (before, action) = match ask.act {
        Act::Create => return new_pod(ask, node),
        Act::Update => (ask.old.unwrap_or(ask.object), "update pod status for"),
        Act::Delete => (ask.object, "delete"),
    };
    if bound(before) {
        return Ok(());
    }
    Err(ask.forbidden(&format!("node \"{node}\" can only {action} pods with spec.nodeName set to itself")))
}

/// A kubelet makes the images of its static Pods, which can't read anything through the API.
fn new_pod(ask: Ask<'_>, node: &str) -> Result<(), Status> {
    let (pod, spec) = (ask.object, spec(ask.object));
    if !rules::is_mirror(pod) {
        return Err(ask.forbidden(&format!(
            "pod does not have \"{}\" annotation, node \"{node}\" can only create mirror pods",
            rules::MIRROR_ANNOTATION
        )));
    }
    if spec.text("nodeName") != node {
        return Err(
            ask.forbidden(&format!("node \"{node}\" can only create pods with spec.nodeName set to itself"))
        );
    }
    let refers = |what: &str| {
        Err(ask.forbidden(&format!("node \"{node}\" can not create pods that reference {what}")))
    };
    if !spec.text("serviceAccountName").is_empty() {
        return refers("a service account");
    }
    let uses = |volume: &Value, source: &str| volume.field(source).is_some();
    for (source, what) in [
        ("secret", "secrets"),
        ("configMap", "configmaps"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
    ] {
        if spec.list("volumes").iter().any(|volume| uses(volume, source)) {
            return refers(what);
        }
    }
    Ok(())
}

fn own_node(ask: Ask<'_>, node: &str) -> Result<(), Status> {
    let name = meta::text(ask.object, "name");
    if name != node {
        return Err(ask.forbidden(&format!("node \"{node}\" is not allowed to modify node \"{name}\"")));
    }
    if ask.act == Act::Delete {
        return Ok(());
    }
    let old = ask.old.unwrap_or(&Value::Null);
    let labels = changed_labels(ask.object, old);
    if !labels.is_empty() {
        let verb = if ask.old.is_some() { "modify labels" } else { "set the following labels" };
        return Err(ask.forbidden(&format!("is not allowed to {verb}: {}", labels.join(", "))));
    }
    let taints = |object: &Value| spec(object).list("taints").to_vec();
    if ask.old.is_some() && taints(ask.object) != taints(old) {
        return Err(ask.forbidden(&format!("node \"{node}\" is not allowed to modify taints")));
    }
    if ask.old.is_some()
        && metadata(ask.object).list("ownerReferences") != metadata(old).list("ownerReferences")
    {
        return Err(ask.forbidden(&format!("node \"{node}\" is not allowed to modify ownerReferences")));
    }
    Ok(())
}

/// The labels that differ and that are not a kubelet's to set.
fn changed_labels(new: &Value, old: &Value) -> Vec<String> {
    let of = |object: &Value| {
        let labels = metadata(object).entries("labels").into_iter();
        labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let (new, old) = (of(new), of(old));
    let keys: std::collections::BTreeSet<&String> = new.keys().chain(old.keys()).collect();
    keys.into_iter().filter(|key| new.get(*key) != old.get(*key) && !is_own_label(key)).cloned().collect()
}

fn is_own_label(key: &str) -> bool {
    let domain = key.split_once('/').map_or("", |(domain, _)| domain);
    let is_below =
        |of: &&str| domain == *of || domain.strip_suffix(*of).is_some_and(|head| head.ends_with('.'));
    let is_restricted = is_below(&"node-restriction.kubernetes.io");
    !is_restricted
        && (!RESERVED.iter().any(&is_below) || OWN_LABELS.contains(&key) || OWN_DOMAINS.iter().any(is_below))
}

fn lease(ask: Ask<'_>, node: &str) -> Result<(), Status> {
    if ask.write.info.namespace != NODE_LEASES {
        return Err(
            ask.forbidden(&format!("can only access leases in the \"{NODE_LEASES}\" system namespace"))
        );
    }
    named(ask, node, "can only access node lease with the same name as the requesting node")
}

fn named(ask: Ask<'_>, node: &str, why: &str) -> Result<(), Status> {
    if meta::text(ask.object, "name") == node { Ok(()) } else { Err(ask.forbidden(why)) }
}

fn slice(ask: Ask<'_>, node: &str) -> Result<(), Status> {
    if spec(ask.object).text("nodeName") == node {
        Ok(())
    } else {
        Err(ask.forbidden("can only create, update or delete ResourceSlices of the requesting node"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubelet_sets_labels_of_its_own_alone() {
        for own in [
            "zone",
            "example.com/x",
            "kubernetes.io/hostname",
            "node.kubernetes.io/y",
            "a.node.kubernetes.io/z",
        ] {
            assert!(is_own_label(own), "{own}");
        }
        for other in [
            "node-restriction.kubernetes.io/team",
            "x.node-restriction.kubernetes.io/y",
            "kubernetes.io/other",
            "foo.k8s.io/x",
        ] {
            assert!(!is_own_label(other), "{other}");
        }
        assert!(is_own_label("notkubernetes.io/x"), "another domain");
    }
}
