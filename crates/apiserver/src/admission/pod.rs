//! What a new Pod gets: its service account's token, tolerations, its priority, and what its `RuntimeClass` says.

use std::time::Duration;

use api::access::{Access as _, spec};
use api::admission as rules;
use api::kind;
use api::status::Status;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use serde_json::{Map, Value};

use crate::meta;
use crate::write::Write;

/// How long a Pod's creation waits for the account `default` of a new namespace.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(1);

fn forbidden<'a>(write: &'a Write<'_>, pod: &Value) -> impl Fn(String) -> Status + use<'a> {
    let (kind, name) = (write.kind, meta::text(pod, "name").to_owned());
    move |why| Status::forbidden(kind, &name, &why)
}

/// The Pod's account is there, and its token is mounted.
pub(super) fn service_account<'a>(
    write: &'a Write<'a>,
    pod: &'a mut Value,
) -> BoxFuture<'a, Result<(), Status>> {
    async move {
        if !spec(pod).is_object() {
            meta::as_map(pod).insert("spec".to_owned(), Value::Object(Map::new()));
        }
        let name = rules::service_account_name(pod);
        if name.is_empty() {
            return Ok(());
        }
        let account = account(write, &name).await.ok_or_else(|| {
            forbidden(write, pod)(rules::missing_service_account(&write.info.namespace, &name))
        })?;
        rules::service_account(pod, &account, rand::random());
        Ok(())
    }
    .boxed()
}

/// The Pod's service account. One that a controller is just about to make for a new namespace is waited for.
async fn account(write: &Write<'_>, name: &str) -> Option<Value> {
    let table = write.server.cache.table(kind::find("", "v1", "serviceaccounts")?)?;
    let mut changed = table.subscribe();
    let key = format!("{}/{name}", write.info.namespace);
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
    tokio::time::timeout(patience, wait).await.ok()
}

/// A Pod stays for some minutes on a node that has a fault.
pub(super) fn tolerations(_write: &Write<'_>, pod: &mut Value) {
    rules::default_tolerations(pod);
}

/// The priority of the Pod's class.
pub(super) fn priority(write: &Write<'_>, pod: &mut Value) -> Result<(), Status> {
    let named = spec(pod).text("priorityClassName").to_owned();
    let classes = kind::find("scheduling.k8s.io", "v1", "priorityclasses");
    let table = classes.and_then(|kind| write.server.cache.table(kind));
    let class = table.and_then(|table| {
        if !named.is_empty() {
            return table.get(&named).map(|found| found.value());
        }
        let snapshot = write.server.cache.snapshot(table);
        let all = snapshot.objects.values().map(|object| object.value());
        // Of several that are for all, the lowest counts.
        all.filter(|class| class.is_true("globalDefault")).min_by_key(|class| class.int("value"))
    });
    rules::priority(pod, class.as_ref()).map_err(forbidden(write, pod))
}

/// The overhead and the nodes of the Pod's `RuntimeClass`.
pub(super) fn runtime_class(write: &Write<'_>, pod: &mut Value) -> Result<(), Status> {
    let named = spec(pod).text("runtimeClassName").to_owned();
    if named.is_empty() {
        return Ok(());
    }
    let kind = kind::find("node.k8s.io", "v1", "runtimeclasses");
    let class = kind.and_then(|kind| write.server.cache.get(kind, &named));
    let class = class
        .ok_or_else(|| forbidden(write, pod)(format!("pod rejected: RuntimeClass \"{named}\" not found")))?;
    rules::runtime_class(pod, &class.value()).map_err(forbidden(write, pod))
}
