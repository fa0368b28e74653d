//! `ClusterRole` objects that aggregate others (`admin`, `edit`, `view`) get the rules of those that their selectors match, at
//! once when one of them changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::kind;
use api::rbac::GROUP;
use serde_json::Value;

use crate::identity::Identity;
use crate::meta;
use crate::request::RequestInfo;
use crate::server::Server;
use crate::write::Write;

/// Who writes them, as upstream's controller is called.
const AGENT: &str = "clusterrole-aggregation-controller";

/// The roles whose rules are not what they aggregate, with what those are.
fn plan(roles: &[Value]) -> BTreeMap<String, Vec<Value>> {
    let stale = roles.iter().filter_map(|role| {
        let wanted = api::rbac::aggregate(role, roles.iter())?;
        let current = role.get("rules").and_then(Value::as_array).cloned().unwrap_or_default();
        (wanted != current).then(|| (meta::text(role, "name").to_owned(), wanted))
    });
    stale.collect()
}

/// Gives roles that aggregate others their rules, before they are stored. What aggregates an aggregate comes last.
pub(crate) fn fill(roles: &mut [Value]) {
    // Each round settles at least one more level; there are no more levels than roles.
    for _ in 0..roles.len() {
        let stale = plan(roles);
        if stale.is_empty() {
            return;
        }
        for role in roles.iter_mut() {
            if let Some(rules) = stale.get(meta::text(role, "name")) {
                meta::as_map(role).insert("rules".to_owned(), rules.clone().into());
            }
        }
    }
}

/// Follows them until the shutdown.
pub(crate) async fn run(server: Arc<Server>) {
    let Some(kind) = kind::find(GROUP, "v1", "clusterroles") else { return };
    let Some(table) = server.cache.table(kind) else { return };
    let mut changed = table.subscribe();
    let user = Arc::new(Identity::admin());
    loop {
        let roles: Vec<Value> =
            server.cache.snapshot(table).objects.values().map(|object| object.value()).collect();
        for (name, rules) in plan(&roles) {
            let info = RequestInfo {
                name: name.clone(),
                verb: "update",
                user_agent: AGENT.to_owned(),
                ..RequestInfo::default()
            };
            let made = Write::new(&server, &user, kind, &info);
            let Ok(write) = made else { continue };
            let written = write.change_freely(|role| {
                let mut role = role.clone();
                meta::as_map(&mut role).insert("rules".to_owned(), rules.clone().into());
                Ok(role)
            });
            if let Err(error) = written.await {
                tracing::warn!(role = name, %error, "a ClusterRole's rules could not be aggregated");
            }
        }
        tokio::select! {
            more = changed.changed() => if more.is_err() { return },
            () = server.shutdown.cancelled() => return,
        }
    }
}
