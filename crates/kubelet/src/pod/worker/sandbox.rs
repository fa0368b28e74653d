//! Making a Pod's sandbox, the first one or the next.

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;

use super::prepare::make_directory;
use super::{Desired, Next, Worker};
use crate::event::Kind;
use crate::fault::CrashPoint;
use crate::pod::dns::{MISSING_CLUSTER_DNS, plan_dns};
use crate::pod::hosts::plan_host_name;
use crate::pod::observed::Observed;
use crate::pod::sandbox::{SandboxInput, plan_sandbox};
use crate::pod::security::describe_pod;
use crate::runtime::CriError;
use crate::userns::PodUserns;

impl Worker {
    /// Stops the unusable sandbox, if there is one, and makes a new one with the same mapping.
    pub(super) async fn replace_sandbox(
        &mut self,
        desired: &Desired,
        observed: &Observed,
        attempt: u32,
        replaces: Option<&str>,
    ) -> Next {
        let pod = &*desired.pod;
        if replaces.is_some() {
            let text = "Pod sandbox changed, it will be killed and re-created.";
            self.shared.events.pod(pod, Kind::Normal, "SandboxChanged", text);
            if let Err(error) = self.stop_sandboxes(desired, observed).await {
                let text = format!("error killing pod: {error}");
                self.shared.events.pod(pod, Kind::Warning, "FailedKillPod", text);
                return self.retry();
            }
        }
        if self.is_fenced(pod) {
            self.shared.metrics.userns_pods.inc();
        }
        match self.make_sandbox(pod, attempt).await {
            Ok(()) => {
                self.failures_in_a_row = 0;
                Next::Again
            }
            Err(error) => {
                if self.is_fenced(pod) {
                    self.shared.metrics.userns_pods_errors.inc();
                }
                let text = format!("Failed to create pod sandbox: {error}");
                self.shared.events.pod(pod, Kind::Warning, "FailedCreatePodSandBox", text);
                self.retry()
            }
        }
    }

    /// Ends every container and stops every sandbox that may still run.
    pub(super) async fn stop_sandboxes(
        &self,
        desired: &Desired,
        observed: &Observed,
    ) -> Result<(), CriError> {
        let grace = desired.grace();
        let stops = observed.live().map(|record| self.shared.cri.stop_container(&record.id, grace));
        for result in join_all(stops).await {
            result?;
        }
        for sandbox in
            observed.sandboxes.iter().filter(|sandbox| sandbox.is_ready || observed.sandboxes.len() == 1)
        {
            self.shared.cri.stop_pod_sandbox(&sandbox.id).await?;
        }
        Ok(())
    }

    async fn make_sandbox(&mut self, pod: &Pod, attempt: u32) -> Result<(), CriError> {
        let config = self.plan_sandbox(pod, attempt).await;
        let handler =
            self.prepared.as_ref().map(|prepared| prepared.runtime_handler.clone()).unwrap_or_default();
        let id = self.shared.cri.run_pod_sandbox(config, &handler).await?;
        self.shared.reached(CrashPoint::SandboxMade);
        tracing::debug!(pod = %self.uid, sandbox = id, attempt, "sandbox made");
        Ok(())
    }

    /// The request to the runtime; also tells of a missing cluster DNS.
    pub(super) async fn plan_sandbox(&mut self, pod: &Pod, attempt: u32) -> cri::v1::PodSandboxConfig {
        let dns = plan_dns(pod, &self.shared.node_resolver(), &self.shared.cluster_dns);
        if dns.is_cluster_dns_missing && self.told.insert("dns".to_owned()) {
            let text = format!("pod: {:?}. {MISSING_CLUSTER_DNS}", describe_pod(pod));
            self.shared.events.pod(pod, Kind::Warning, "MissingClusterDNS", text);
        }
        let logs = self.shared.places.pod_logs(pod);
        let made = logs.clone();
        if let Ok(Err(error)) = super::blocking(move || make_directory(&made, 0o755)).await {
            tracing::warn!(directory = %logs.display(), %error, "log directory not made");
        }
        let host = plan_host_name(pod, &self.shared.cluster_dns.domain);
        let unspoken = PodUserns::Unspoken;
        plan_sandbox(SandboxInput {
            pod,
            attempt,
            userns: self.prepared.as_ref().map_or(&unspoken, |prepared| &prepared.userns),
            resolver: &dns.resolver,
            host: &host,
            log_directory: &logs,
            cgroups: self.shared.cgroups.tree(),
            node: &self.shared.security,
        })
    }
}
