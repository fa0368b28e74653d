//! A namespace must be there for what is made in it, takes nothing new while it goes, and some never go.

use api::status::Status;
use serde_json::Value;

use super::Ask;
use crate::meta;
use crate::write::Write;

/// The namespaces that nobody may delete.
const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// The namespace of a new object exists and is not being deleted.
pub(super) fn must_live(write: &Write<'_>, object: &mut Value) -> Result<(), Status> {
    let namespace = &write.info.namespace;
    let Some(kind) = api::kind::find("", "v1", "namespaces").filter(|_| write.kind.namespaced) else {
        return Ok(());
    };
    let Some(found) = write.server.cache.get(kind, namespace) else {
        return Err(Status::not_found(kind, namespace));
    };
    if !found.is_going() {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let cause = format!("namespace {namespace} is being terminated");
    let refused = Status::forbidden(write.kind, meta::text(object, "name"), &why);
    Err(refused.with_cause("NamespaceTerminating", cause, "metadata.namespace"))
}

/// Forbids the deletion of a namespace that every cluster needs.
pub(super) fn may_go(ask: Ask<'_>) -> Result<Vec<String>, Status> {
    if IMMORTAL.contains(&meta::text(ask.object, "name")) {
        return Err(ask.forbidden("this namespace may not be deleted"));
    }
    Ok(Vec::new())
}
