//! The pass of a Pod that is meant to run: plan, then sandbox, stops and starts.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Desired, Next, Worker};
use crate::event::Kind;
use crate::pod::observed::Observed;
use crate::pod::plan::{Delayed, Plan, PlanInput, SandboxPlan, plan_pod};
use crate::pod::restart_all::RestartAll;
use crate::pod::security::{describe_pod, forbidden_sysctl};
use crate::pod::status::{Failure, Waiting};

/// When a resize that failed is tried again: the container may use less memory then.
const RESIZE_RETRY: SignedDuration = SignedDuration::from_secs(10);

impl Worker {
    pub(super) async fn sync(
        &mut self,
        desired: &Desired,
        observed: &Observed,
        abort: &CancellationToken,
    ) -> Next {
        let pod = &*desired.pod;
        let now = self.shared.clock.now();
        if self.is_refused(pod, observed) || self.is_past_deadline(pod, now) {
            self.is_over = true;
            return Next::Again;
        }
        let probes = self.prober.results();
        let input = PlanInput {
            pod,
            status: &self.status,
            observed,
            crashes: &self.crashes,
            held: &self.held,
            probes: &probes,
            now,
        };
        let plan = tracing::debug_span!(target: "path", "kubelet: plan").in_scope(|| plan_pod(input));
        self.note_delays(pod, &plan);
        if plan.is_over {
            self.is_over = true;
            self.publish(pod, observed);
            return Next::Again;
        }
        self.publish(pod, observed);
        if let Some(restart) = &plan.restart_all {
            return self.restart_all(pod, observed, restart).await;
        }
        let acts = plan.sandbox != SandboxPlan::Keep || !plan.start.is_empty();
        if (acts && !self.is_fresh) || self.must_refresh(now) {
            let step = tracing::debug_span!(target: "path", "kubelet: prepare", pod = %self.uid);
            match self.prepare(pod, observed, abort).instrument(step).await {
                // What was decided meanwhile, about its user namespace above all, is shown at once.
                Ok(()) => self.publish(pod, observed),
                Err(problem) => {
                    let next = self.report_problem(pod, &problem);
                    // What was decided, and which image is not there, is shown although nothing runs.
                    self.publish(pod, observed);
                    return next;
                }
            }
        }
        if abort.is_cancelled() {
            return Next::Again;
        }
        Box::pin(self.apply(desired, observed, plan, abort)).await
    }

    async fn apply(
        &mut self,
        desired: &Desired,
        observed: &Observed,
        plan: Plan,
        abort: &CancellationToken,
    ) -> Next {
        let pod = &*desired.pod;
        if let SandboxPlan::Create { attempt, replaces } = plan.sandbox {
            return self.replace_sandbox(desired, observed, attempt, replaces.as_deref()).await;
        }
        let mut has_acted = !plan.kill.is_empty();
        for kill in &plan.kill {
            self.stop_one(desired, observed, kill).await;
        }
        for start in &plan.start {
            if abort.is_cancelled() {
                return Next::Again;
            }
            has_acted |= Box::pin(self.start(pod, observed, start, abort)).await;
        }
        has_acted |= self.apply_sizes(desired, observed).await;
        if has_acted || abort.is_cancelled() {
            return Next::Again;
        }
        if !plan.start.is_empty() {
            // Why they did not start is shown at once, not only when something else happens.
            self.publish(pod, observed);
        }
        self.collect(pod, observed).await;
        Next::Wait(self.next_wake(pod, &plan.delayed))
    }

    /// The earliest of all waits: delayed and held containers, a token to renew, a volume to publish again, the turn of a
    /// Pod that was found running, the Pod's deadline.
    pub(super) fn next_wake(&self, pod: &Pod, delayed: &[Delayed]) -> Option<Timestamp> {
        let delayed = delayed.iter().map(|delayed| delayed.until);
        let times = delayed.chain(self.held.values().copied()).chain(self.tokens.next_renewal());
        let resize =
            self.sizes.error.as_ref().and_then(|_| self.shared.clock.now().saturating_add(RESIZE_RETRY).ok());
        let times = times.chain(self.republish_at).chain(self.next_turn());
        times.chain(resize).chain(deadline(pod, self.status.start_time.as_ref().map(|time| time.0))).min()
    }

    /// A Pod that this node must not run fails at once, before anything is made for it.
    fn is_refused(&mut self, pod: &Pod, observed: &Observed) -> bool {
        if !observed.sandboxes.is_empty() {
            return false;
        }
        let forbidden = forbidden_sysctl(pod, &self.shared.security)
            .map(|message| Failure { reason: "SysctlForbidden".to_owned(), message });
        let Some(Failure { reason, message }) = self.refusal.take().or(forbidden) else { return false };
        self.shared.events.pod(pod, Kind::Warning, reason.clone(), message.clone());
        self.failure = Some(Failure { reason, message: format!("Pod was rejected: {message}") });
        true
    }

    fn is_past_deadline(&mut self, pod: &Pod, now: Timestamp) -> bool {
        let begun = self.status.start_time.as_ref().map(|time| time.0);
        if deadline(pod, begun).is_none_or(|deadline| now < deadline) {
            return false;
        }
        let message = "Pod was active on the node longer than the specified deadline".to_owned();
        self.shared.events.pod(pod, Kind::Normal, "DeadlineExceeded", message.clone());
        self.failure = Some(Failure { reason: "DeadlineExceeded".to_owned(), message });
        true
    }

    /// Shows each `CrashLoopBackOff` and tells of it once for each wait.
    fn note_delays(&mut self, pod: &Pod, plan: &Plan) {
        let restart = plan.restart_all.as_ref().and_then(RestartAll::delayed);
        for delayed in
            plan.delayed.iter().chain(&restart).filter(|delayed| !self.held.contains_key(&delayed.name))
        {
            let name = &delayed.name;
            let described = describe_pod(pod);
            let wait = go_duration(delayed.wait);
            let waiting = Waiting {
                reason: "CrashLoopBackOff".to_owned(),
                message: format!("back-off {wait} restarting failed container={name} pod={described}"),
            };
            self.waiting.insert(name.clone(), waiting);
            if self.told.insert(format!("backoff/{name}/{}", delayed.until)) {
                let text = format!("Back-off restarting failed container {name} in pod {described}");
                self.tell_container(pod, name, Kind::Warning, "BackOff", text);
            }
        }
        let now = self.shared.clock.now();
        self.held.retain(|_, until| *until > now);
    }

    /// Volumes must be looked at again: an object, the spec or a token has changed, or it is time.
    fn must_refresh(&self, now: Timestamp) -> bool {
        let republish = self.republish_at.is_some_and(|due| due <= now);
        (self.is_stale && self.is_turn_due()) || self.tokens.is_due(now) || republish
    }
}

fn deadline(pod: &Pod, begun: Option<Timestamp>) -> Option<Timestamp> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    begun?.saturating_add(SignedDuration::from_secs(seconds)).ok()
}

/// A duration of whole seconds as Go prints it: `10s`, `1m20s`, `5m0s`.
fn go_duration(duration: SignedDuration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_read_as_upstreams() {
        for (seconds, text) in [(10, "10s"), (40, "40s"), (80, "1m20s"), (300, "5m0s")] {
            assert_eq!(go_duration(SignedDuration::from_secs(seconds)), text);
        }
    }
}
