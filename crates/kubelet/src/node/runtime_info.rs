//! Keeps what the runtime says of itself up to date for the node's status and for the check of its handlers.

use std::collections::BTreeMap;
use std::time::Duration;

use cri::v1;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::runtime::{Cri, CriError};
use crate::shared::RuntimeInfo;

/// How often a healthy runtime is asked. CRI has no notification of its state.
const HEALTHY: Duration = Duration::from_secs(10);
/// How soon one that is not ready is asked again.
const UNREADY: Duration = Duration::from_millis(100);
const LONGEST_UNREADY: Duration = Duration::from_secs(5);

/// Asks until `shutdown`.
pub(crate) async fn follow_runtime(cri: Cri, info: watch::Sender<RuntimeInfo>, shutdown: CancellationToken) {
    let mut unready = UNREADY;
    shutdown
        .run_until_cancelled(async {
            loop {
                let next = match ask(&cri).await {
                    Ok(next) => next,
                    Err(error) => RuntimeInfo {
                        is_ready: false,
                        problem: format!("container runtime is down: {error}"),
                        ..info.borrow().clone()
                    },
                };
                let is_ready = next.is_ready;
                info.send_if_modified(|known| {
                    let changed = *known != next;
                    *known = next;
                    changed
                });
                unready = if is_ready { UNREADY } else { (unready * 2).min(LONGEST_UNREADY) };
                tokio::time::sleep(if is_ready { HEALTHY } else { unready }).await;
            }
        })
        .await;
}

/// What the runtime says now.
pub(crate) async fn ask(cri: &Cri) -> Result<RuntimeInfo, CriError> {
    let version = cri.version(v1::VersionRequest::default()).await?;
    let answer = cri.status(v1::StatusRequest { verbose: true }).await?;
    let conditions = answer.status.unwrap_or_default().conditions;
    let unmet = |type_: &str| {
        let found = conditions.iter().find(|condition| condition.r#type == type_);
        match found {
            Some(condition) if condition.status => None,
            Some(condition) => {
                Some(format!("{type_}=false reason:{} message:{}", condition.reason, condition.message))
            }
            None => Some(format!("{type_} is not reported")),
        }
    };
    let problem = unmet("RuntimeReady")
        .map(|text| format!("container runtime not ready: {text}"))
        .or_else(|| unmet("NetworkReady").map(|text| format!("container runtime network not ready: {text}")));
    Ok(RuntimeInfo {
        name: version.runtime_name,
        version: version.runtime_version,
        is_ready: problem.is_none(),
        problem: problem.unwrap_or_default(),
        handlers: answer.runtime_handlers,
        features: answer.features.unwrap_or_default(),
        userns_problem: userns_problem(&answer.info),
    })
}

/// What our runtime's verbose status says of user namespaces; others say nothing.
fn userns_problem(info: &BTreeMap<String, String>) -> String {
    let config = info.get("config").and_then(|text| serde_json::from_str::<Value>(text).ok());
    let reason = config.as_ref().and_then(|config| config.pointer("/userNamespaces/reason")?.as_str());
    reason.unwrap_or_default().to_owned()
}
