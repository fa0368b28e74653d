//! What the server itself adds to or forbids in a write, beside the kind's own rules: namespaces must be there and stay,
//! and a Pod gets its service account's token.

use std::time::Duration;

use api::admission as rules;
use api::status::Status;
use serde_json::Value;

use crate::write::Write;
use crate::{fence, meta, pod_security};

/// The namespaces that nobody may delete.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// Where kubelets show that they live.
const NODE_LEASES: &str = "kube-node-lease";
/// How long a Pod's creation waits for the account `default` of a new namespace.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(1);

/// Completes a new object, or forbids it.
pub(crate) async fn create(write: &Write<'_>, object: &mut Value) -> Result<(), Status> {
    if write.kind.namespaced {
        check_namespace(write, meta::text(object, "name"))?;
    }
    match write.kind.kind {
        "Pod" => admit_pod(write, object).await,
        "CertificateSigningRequest" => {
            name_requester(write, object);
            Ok(())
        }
        "Node" | "Lease" => check_own_name(write, meta::text(object, "name")),
        _ => Ok(()),
    }
}

/// A certificate request says who makes it, whatever the client wrote.
fn name_requester(write: &Write<'_>, request: &mut Value) {
    let user = write.user;
    let spec = meta::map_at(request, "spec");
    for name in ["uid", "extra"] {
        spec.shift_remove(name);
    }
    spec.insert("username".to_owned(), user.user.as_str().into());
    spec.insert("groups".to_owned(), user.groups.clone().into());
    if !user.uid.is_empty() {
        spec.insert("uid".to_owned(), user.uid.as_str().into());
    }
    if !user.extra.is_empty() {
        let extra = user.extra.iter().map(|(name, values)| (name.clone(), values.clone().into()));
        spec.insert("extra".to_owned(), Value::Object(extra.collect()));
    }
}

/// A kubelet makes only its own Node and its own Lease.
fn check_own_name(write: &Write<'_>, name: &str) -> Result<(), Status> {
    let Some(node) = write.user.node_name() else { return Ok(()) };
    if write.kind.kind == "Node" && name != node {
        let why = format!("node \"{node}\" is not allowed to modify node \"{name}\"");
        return Err(Status::forbidden(write.kind, name, &why));
    }
    if write.kind.kind == "Lease" && (name != node || write.info.namespace != NODE_LEASES) {
        let why = format!(
            "can only access lease with the same name as the requesting node, in the namespace {NODE_LEASES}"
        );
        return Err(Status::forbidden(write.kind, name, &why));
    }
    Ok(())
}

/// Service account, its token, tolerations, priority; for kubelets only the images of their own static Pods.
async fn admit_pod(write: &Write<'_>, pod: &mut Value) -> Result<(), Status> {
    let name = meta::text(pod, "name").to_owned();
    let forbidden = |why: &str| Status::forbidden(write.kind, &name, why);
    if let Some(node) = write.user.node_name() {
        let own = pod.pointer("/spec/nodeName").and_then(Value::as_str) == Some(node);
        if !rules::is_mirror(pod) {
            return Err(forbidden(&format!(
                "pod does not have \"{}\" annotation, node \"{node}\" can only create mirror pods",
                rules::MIRROR_ANNOTATION
            )));
        }
        if !own {
            return Err(forbidden(&format!(
                "node \"{node}\" can only create pods with spec.nodeName set to itself"
            )));
        }
    }
    let account = rules::service_account_name(pod);
    let account =
        if account.is_empty() { Value::Null } else { service_account(write, &account, &forbidden).await? };
    rules::admit_pod(pod, &account, rand::random()).map_err(|why| forbidden(&why))
}

/// The Pod's service account. One that a controller is just about to make for a new namespace is waited for.
async fn service_account(
    write: &Write<'_>,
    name: &str,
    forbidden: &impl Fn(&str) -> Status,
) -> Result<Value, Status> {
    let namespace = &write.info.namespace;
    let Some(kind) = api::kind::find("", "v1", "serviceaccounts") else { return Ok(Value::Null) };
    let Some(table) = write.server.cache.table(kind) else { return Ok(Value::Null) };
    let mut changed = table.subscribe();
    let key = format!("{namespace}/{name}");
    let wait = async {
        loop {
            if let Some(found) = table.get(&key) {
                return found.value();
            }
            if changed.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let patience = if name == rules::DEFAULT_SERVICE_ACCOUNT { ACCOUNT_PATIENCE } else { Duration::ZERO };
    tokio::time::timeout(patience, wait)
        .await
        .map_err(|_| forbidden(&rules::missing_service_account(namespace, name)))
}

/// Forbids a change: a kubelet reports the status of its own Pods alone.
pub(crate) fn update(write: &Write<'_>, old: &Value) -> Result<(), Status> {
    match write.user.node_name() {
        Some(node) if write.kind.kind == "Pod" => check_own_pod(write, node, old, "update pod status for"),
        _ => Ok(()),
    }
}

fn check_own_pod(write: &Write<'_>, node: &str, pod: &Value, action: &str) -> Result<(), Status> {
    if pod.pointer("/spec/nodeName").and_then(Value::as_str) == Some(node) {
        return Ok(());
    }
    let why = format!("node \"{node}\" can only {action} pods with spec.nodeName set to itself");
    Err(Status::forbidden(write.kind, meta::text(pod, "name"), &why))
}

/// What may only refuse or warn, asked of an object that is otherwise good: `old` is there when it is a change. The
/// warnings are for whoever sent it.
pub(crate) fn examine(write: &Write<'_>, object: &Value, old: Option<&Value>) -> Result<Vec<String>, Status> {
    if write.kind.kind == "Namespace" {
        // What is wrong already must not stand in the way of another change.
        if old.is_some_and(|old| meta::get(old, "labels") == meta::get(object, "labels")) {
            return Ok(Vec::new());
        }
        fence::check_namespace(write, object)?;
        return pod_security::check_namespace(write, object, old);
    }
    if api::template::pod_of(write.kind.kind, object).is_none() {
        return Ok(Vec::new());
    }
    let namespaces = api::kind::find("", "v1", "namespaces");
    let namespace = namespaces.and_then(|kind| write.server.cache.get(kind, &write.info.namespace));
    let Some(namespace) = namespace.filter(|_| write.kind.namespaced).map(|found| found.value()) else {
        return Ok(Vec::new());
    };
    let mut warnings = pod_security::check(write, &namespace, object, old)?;
    if old.is_none() {
        warnings.extend(fence::check(write, &namespace, object)?);
    }
    Ok(warnings)
}

/// Forbids a deletion.
pub(crate) fn delete(write: &Write<'_>, object: &Value) -> Result<(), Status> {
    let name = meta::text(object, "name");
    if write.kind.kind == "Namespace" && IMMORTAL.contains(&name) {
        return Err(Status::forbidden(write.kind, name, "this namespace may not be deleted"));
    }
    match write.user.node_name() {
        Some(node) if write.kind.kind == "Pod" => check_own_pod(write, node, object, "delete"),
        _ => Ok(()),
    }
}

/// A namespace must exist, and one that is being deleted takes nothing new.
fn check_namespace(write: &Write<'_>, name: &str) -> Result<(), Status> {
    let namespace = &write.info.namespace;
    let Some(kind) = api::kind::find("", "v1", "namespaces") else { return Ok(()) };
    let Some(found) = write.server.cache.get(kind, namespace) else {
        return Err(Status::not_found(kind, namespace));
    };
    if meta::get(&found.value(), "deletionTimestamp").is_none() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let cause = format!("namespace {namespace} is being terminated");
    Err(Status::forbidden(write.kind, name, &why).with_cause(
        "NamespaceTerminating",
        cause,
        "metadata.namespace",
    ))
}
