//! The node's lease: its heartbeat, renewed each ten seconds. Source: "Leases" page and upstream's constants.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, OwnerReference};
use kube::api::PostParams;
use kube::{Api, Client, Error};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

const NAMESPACE: &str = "kube-node-lease";
/// Seconds after which the node counts as lost.
const DURATION: i32 = 40;
const RENEWAL: Duration = Duration::from_secs(10);
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// Renews the lease of `node` until `shutdown`.
pub(crate) async fn renew_leases(client: Client, node: Node, clock: Clock, shutdown: CancellationToken) {
    let api: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut held = None;
    let mut wait = FIRST_WAIT;
    loop {
        let pause = match shutdown.run_until_cancelled(renew(&api, &node, &clock, held.take())).await {
            None => return,
            Some(Ok(lease)) => {
                held = Some(lease);
                wait = FIRST_WAIT;
                RENEWAL
            }
            Some(Err(error)) => {
                tracing::warn!(%error, ?wait, "lease not renewed; it is tried again");
                wait = (wait * 2).min(RENEWAL);
                wait
            }
        };
        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// Renews the lease that was read last; after a failure it is read (or made) anew.
async fn renew(api: &Api<Lease>, node: &Node, clock: &Clock, held: Option<Lease>) -> Result<Lease, Error> {
    let name = node.metadata.name.clone().unwrap_or_default();
    let known = match held {
        Some(lease) => Some(lease),
        None => api.get_opt(&name).await?,
    };
    let fresh = new_lease(node, name.clone(), MicroTime(clock.now()));
    let Some(mut lease) = known else { return api.create(&PostParams::default(), &fresh).await };
    lease.spec = fresh.spec;
    api.replace(&name, &PostParams::default(), &lease).await
}

fn new_lease(node: &Node, name: String, time: MicroTime) -> Lease {
    let owner = node.metadata.uid.clone().map(|uid| OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.clone(),
        uid,
        ..OwnerReference::default()
    });
    Lease {
        metadata: kube::core::ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: owner.map(|owner| vec![owner]),
            ..kube::core::ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(name),
            lease_duration_seconds: Some(DURATION),
            renew_time: Some(time),
            ..LeaseSpec::default()
        }),
    }
}
