//! Follows the health of nodes. A kubelet shows that it lives by renewing its lease and reporting its node's status;
//! when it is silent for too long the node's conditions become `Unknown`, its Pods are not ready any more, and taints
//! keep new ones away until it is back.

mod apply;
pub(crate) mod model;
mod plan;
mod pulse;

use informer::Target;
use jiff::Timestamp;
use kube::Client;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ControllerConfig;
use crate::event::{Subject, Tone, post, seconds};
use crate::queue::{Queue, apply_all};
use crate::source::Source;

use apply::Work;
use model::{Lease, Node};
use pulse::{Patience, Pulses};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// Runs the controller until `shutdown`.
pub(crate) async fn run(client: Client, config: ControllerConfig, shutdown: CancellationToken) {
    let patience =
        Patience { running: config.node_monitor_grace_period, starting: config.node_startup_grace_period };
    let mut health = Health {
        nodes: Source::new(&client, Target::all("/api/v1/nodes")),
        leases: Source::new(&client, Target::all(LEASES)),
        pulses: Pulses::default(),
        queue: Queue::default(),
        patience,
    };
    shutdown.run_until_cancelled(health.work(&client)).await;
}

struct Health {
    nodes: Source<Node>,
    leases: Source<Lease>,
    pulses: Pulses,
    queue: Queue<String>,
    patience: Patience,
}

impl Health {
    async fn work(&mut self, client: &Client) {
        loop {
            let is_synced = self.nodes.is_synced() && self.leases.is_synced();
            tokio::select! {
                names = self.nodes.changed() => {
                    for name in names {
                        self.observe(client, &name).await;
                        self.queue.add(name, Instant::now());
                    }
                }
                keys = self.leases.changed() => {
                    // A renewal needs no work: the node's deadline is looked at when it comes.
                    for name in keys.iter().filter_map(|key| key.split('/').nth(1)) {
                        self.observe(client, name).await;
                    }
                }
                () = self.queue.ready(), if is_synced => self.work_off(client).await,
            }
        }
    }

    async fn observe(&mut self, client: &Client, name: &str) {
        let node = self.nodes.store().get(name);
        let lease = self.leases.store().get(&format!("kube-node-lease/{name}"));
        if self.pulses.observe(name, node, lease, Instant::now())
            && let Some(node) = node
        {
            let subject = subject(node);
            let message = format!("Node {name} event: Registered Node {name} in Controller");
            post(client, subject, Tone::Normal, "RegisteredNode", &message).await;
        }
    }

    async fn work_off(&mut self, client: &Client) {
        let now = Instant::now();
        let mut works = Vec::new();
        for name in self.queue.take(now) {
            let Some(node) = self.nodes.store().get(&name) else { continue };
            let deadline = self.pulses.deadline(node, self.patience);
            let is_silent = deadline.is_some_and(|deadline| deadline <= now);
            if let Some(deadline) = deadline.filter(|_| !is_silent) {
                self.queue.add(name.clone(), deadline);
            }
            let step = plan::plan(node, is_silent, &seconds(Timestamp::now()));
            works.push((name, Work { node: node.clone(), is_silent, step }));
        }
        apply_all(&mut self.queue, works, |work| apply::apply(client, work)).await;
    }
}

fn subject(node: &Node) -> Subject<'_> {
    Subject {
        component: "node-controller",
        kind: "Node",
        namespace: "",
        name: &node.metadata.name,
        uid: &node.metadata.uid,
    }
}
