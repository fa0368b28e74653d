//! The `LimitRange` objects of a namespace, asked about its new Pods and claims.

use api::kind;
use api::status::Status;
use serde_json::Value;

use super::{Act, Ask};
use crate::cache::Cache;
use crate::write::{Part, Write};

fn ranges(cache: &Cache, namespace: &str) -> Vec<Value> {
    let Some(table) = kind::find("", "v1", "limitranges").and_then(|kind| cache.table(kind)) else {
        return Vec::new();
    };
    let prefix = format!("{namespace}/");
    cache.snapshot(table).range(&prefix, None).map(|object| object.value()).collect()
}

/// Gives a new Pod's containers the requests and limits that they lack.
pub(super) fn default_pod(write: &Write<'_>, pod: &mut Value) {
    if !api::admission::is_mirror(pod) {
        api::limit::default_pod(pod, &ranges(&write.server.cache, &write.info.namespace));
    }
}

/// Forbids a Pod that takes too little or too much. A change of a Pod changes no resources but through `resize`.
pub(super) fn check_pod(ask: Ask<'_>) -> Result<Vec<String>, Status> {
    if api::admission::is_mirror(ask.object)
        || (ask.act == Act::Update && ask.write.info.subresource != "resize")
    {
        return Ok(Vec::new());
    }
    refuse(ask, api::limit::check_pod)
}

/// The same for a claim.
pub(super) fn check_claim(ask: Ask<'_>) -> Result<Vec<String>, Status> {
    if matches!(ask.part, Part::Main) { refuse(ask, api::limit::check_claim) } else { Ok(Vec::new()) }
}

fn refuse(ask: Ask<'_>, check: fn(&Value, &[Value]) -> Vec<String>) -> Result<Vec<String>, Status> {
    let faults = check(ask.object, &ranges(&ask.write.server.cache, &ask.write.info.namespace));
    match faults.as_slice() {
        [] => Ok(Vec::new()),
        [only] => Err(ask.forbidden(only)),
        all => Err(ask.forbidden(&format!("[{}]", all.join(", ")))),
    }
}
