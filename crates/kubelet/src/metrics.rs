//! The node agent's metrics, in Prometheus' text form at `/metrics`.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::idspace::Gauges;
use crate::node::shutdown::ShutdownState;

/// The labels of a decision about a user namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DecisionLabels {
    pub(crate) policy: &'static str,
    pub(crate) outcome: &'static str,
    pub(crate) reason: &'static str,
}

/// Counters that the node agent keeps; clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    registry: Arc<Registry>,
    /// Sandbox attempts with a user namespace (upstream's name).
    pub(crate) userns_pods: Counter,
    /// Syncs of such Pods that failed.
    pub(crate) userns_pods_errors: Counter,
    /// First decisions about Pods' user namespaces.
    pub(crate) userns_decisions: Family<DecisionLabels, Counter>,
    /// Pods that this node works on.
    pub(crate) pods: Gauge,
    /// Seconds from the first sight of a Pod to all its containers running.
    pub(crate) pod_start: Histogram,
    shutdown_start: Gauge<f64, AtomicU64>,
    shutdown_end: Gauge<f64, AtomicU64>,
    blocks: Gauge,
    free_blocks: Gauge,
    quarantined: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let (userns_pods, userns_pods_errors) = (Counter::default(), Counter::default());
        let (pods, blocks, free_blocks, quarantined) =
            (Gauge::default(), Gauge::default(), Gauge::default(), Gauge::default());
        let pod_start = Histogram::new(exponential_buckets(0.01, 2.0, 14));
        let (shutdown_start, shutdown_end) = (Gauge::default(), Gauge::default());
        let mut registry = Registry::default();
        registry.register(
            "kubelet_started_user_namespaced_pods",
            "Attempts to start Pods with user namespaces",
            userns_pods.clone(),
        );
        registry.register(
            "kubelet_started_user_namespaced_pods_errors",
            "Failed attempts to start Pods with user namespaces",
            userns_pods_errors.clone(),
        );
        let userns_decisions = Family::default();
        registry.register(
            "kakoi_userns_decisions",
            "Decisions about Pods that do not say `hostUsers: false`, made at their first sandbox",
            userns_decisions.clone(),
        );
        registry.register("kubelet_active_pods", "Pods that this node works on", pods.clone());
        registry.register(
            "kubelet_pod_start_duration_seconds",
            "Seconds from the first sight of a Pod to its containers running",
            pod_start.clone(),
        );
        registry.register(
            "kubelet_graceful_shutdown_start_time_seconds",
            "When the last graceful shutdown of the node began, in seconds since 1970",
            shutdown_start.clone(),
        );
        registry.register(
            "kubelet_graceful_shutdown_end_time_seconds",
            "When the last graceful shutdown of the node ended; 0 if it did not",
            shutdown_end.clone(),
        );
        registry.register("kakoi_userns_pool_blocks", "Blocks of host IDs in the pool", blocks.clone());
        registry.register("kakoi_userns_free_blocks", "Blocks that can still be given", free_blocks.clone());
        registry.register(
            "kakoi_userns_quarantined_records",
            "Pods whose record of host IDs cannot be used",
            quarantined.clone(),
        );
        Self {
            registry: Arc::new(registry),
            userns_pods,
            userns_pods_errors,
            userns_decisions,
            pods,
            pod_start,
            shutdown_start,
            shutdown_end,
            blocks,
            free_blocks,
            quarantined,
        }
    }

    /// Shows the times of a graceful shutdown.
    pub(crate) fn note_shutdown(&self, state: ShutdownState) {
        let seconds = |at: Option<Timestamp>| at.map_or(0.0, |at| at.as_duration().as_secs_f64());
        self.shutdown_start.set(seconds(state.start_time));
        self.shutdown_end.set(seconds(state.end_time));
    }

    /// All metrics as text; `ids` brings the ID space's gauges up to date.
    pub(crate) fn encode(&self, ids: Option<Gauges>) -> String {
        if let Some(ids) = ids {
            self.blocks.set(i64::try_from(ids.blocks).unwrap_or(i64::MAX));
            self.free_blocks.set(i64::try_from(ids.free).unwrap_or(i64::MAX));
            self.quarantined.set(i64::try_from(ids.quarantined).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "metrics not encoded");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_have_upstreams_names() {
        let metrics = Metrics::new();
        metrics.userns_pods.inc();
        let text = metrics.encode(Some(Gauges { blocks: 10, free: 9, quarantined: 1 }));
        assert!(text.contains("kubelet_started_user_namespaced_pods_total 1\n"), "{text}");
        assert!(text.contains("kubelet_started_user_namespaced_pods_errors_total 0\n"), "{text}");
        assert!(text.contains("kakoi_userns_free_blocks 9\n"), "{text}");
        let labels = DecisionLabels { policy: "default", outcome: "exempt", reason: "HostNetwork" };
        metrics.userns_decisions.get_or_create(&labels).inc();
        let line =
            "kakoi_userns_decisions_total{policy=\"default\",outcome=\"exempt\",reason=\"HostNetwork\"} 1\n";
        let text = metrics.encode(None);
        assert!(text.contains(line), "{text}");
    }
}
