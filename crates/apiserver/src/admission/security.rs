//! What a namespace's labels ask of the Pods in it: the Pod security standards, and a user namespace of their own.

use api::kind;
use api::status::Status;
use serde_json::Value;

use super::Ask;
use crate::write::Part;
use crate::{fence, meta, pod_security as standards};

/// The namespace of an object that is a Pod or has a template of one.
fn namespace_of_pods(ask: Ask<'_>) -> Option<Value> {
    api::template::pod_of(ask.write.kind.kind, ask.object)?;
    let namespaces = kind::find("", "v1", "namespaces").filter(|_| ask.write.kind.namespaced)?;
    Some(ask.write.server.cache.get(namespaces, &ask.write.info.namespace)?.value())
}

/// Whether the write is one to look at: not of a status, and below an object only of a Pod (its ephemeral containers).
/// What is wrong already with a namespace's labels must not stand in the way of another change.
fn is_examined(ask: Ask<'_>) -> bool {
    let kind = ask.write.kind.kind;
    let is_part = match ask.part {
        Part::Main => true,
        Part::Status => false,
        Part::Below(_) => kind == "Pod",
    };
    let labels = |object| meta::get(object, "labels");
    is_part && !(kind == "Namespace" && ask.old.is_some_and(|old| labels(old) == labels(ask.object)))
}

/// The Pod security standards of the namespace.
pub(super) fn pod_security(ask: Ask<'_>) -> Result<Vec<String>, Status> {
    let Ask { write, object, old, .. } = ask;
    if !is_examined(ask) {
        return Ok(Vec::new());
    }
    if write.kind.kind == "Namespace" {
        return standards::check_namespace(write, object, old);
    }
    match namespace_of_pods(ask) {
        Some(namespace) => standards::check(write, &namespace, object, old),
        None => Ok(Vec::new()),
    }
}

/// Whether new Pods of the namespace must be fenced.
pub(super) fn user_namespaces(ask: Ask<'_>) -> Result<Vec<String>, Status> {
    let Ask { write, object, .. } = ask;
    if !is_examined(ask) {
        return Ok(Vec::new());
    }
    if write.kind.kind == "Namespace" {
        fence::check_namespace(write, object)?;
        return Ok(Vec::new());
    }
    match namespace_of_pods(ask).filter(|_| ask.old.is_none()) {
        Some(namespace) => fence::check(write, &namespace, object),
        None => Ok(Vec::new()),
    }
}
