//! Probes: whether a container has started, is ready, still lives. Each probe of a running container is a task of its
//! own; a result that changes wakes the Pod's worker.
//!
//! Source: "Liveness, Readiness, and Startup Probes"; thresholds and messages as upstream's prober.

mod attempt;
mod grpc;
pub(crate) mod threshold;
mod tls;

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::event::{Kind as EventKind, Recorder};
use crate::runtime::Cri;
pub(crate) use attempt::{Attempt, Outcome, attempt_hook};
use threshold::Tracker;

/// All probes go on at common beats: the machine wakes up twice in a second for those of all Pods, and not for each.
/// A probe's first attempt waits for none, the second for at most that long; periods are whole seconds, so later ones wait
/// for nothing more.
const BEAT: Duration = Duration::from_millis(500);

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }

    /// The container's probe of this kind.
    pub(crate) fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// Results by container ID and kind. A probe without a result has not decided yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Results(BTreeMap<(String, Kind), bool>);

impl Results {
    /// The result of a probe, if there is one.
    pub(crate) fn get(&self, container_id: &str, kind: Kind) -> Option<bool> {
        self.0.get(&(container_id.to_owned(), kind)).copied()
    }

    /// Notes a result.
    pub(crate) fn set(&mut self, container_id: &str, kind: Kind, result: bool) {
        self.0.insert((container_id.to_owned(), kind), result);
    }

    /// A running container has started: it has no startup probe, or that has succeeded.
    pub(crate) fn has_started(&self, container: &Container, id: &str) -> bool {
        container.startup_probe.is_none() || self.get(id, Kind::Startup) == Some(true)
    }

    /// A running container is ready.
    pub(crate) fn is_ready(&self, container: &Container, id: &str) -> bool {
        let answers = container.readiness_probe.is_none() || self.get(id, Kind::Readiness) == Some(true);
        answers && self.has_started(container, id)
    }

    /// The probe for which a running container must be ended.
    pub(crate) fn verdict(&self, id: &str) -> Option<&'static str> {
        let failed = |kind| self.get(id, kind) == Some(false);
        if failed(Kind::Startup) {
            Some("startup")
        } else if failed(Kind::Liveness) {
            Some("liveness")
        } else {
            None
        }
    }
}

/// The probes of one Pod's running containers.
#[derive(Debug, Default)]
pub(crate) struct Prober {
    results: Arc<Mutex<Results>>,
    tasks: BTreeMap<(String, Kind), JoinHandle<()>>,
    has_looked: bool,
}

/// A running container that may have probes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running<'a> {
    pub(crate) container: &'a Container,
    pub(crate) id: &'a str,
    /// It was ready, and had started, when the node agent last looked; `None` for a new one.
    pub(crate) before: Option<(bool, bool)>,
}

/// What probes are made with.
#[derive(Clone)]
pub(crate) struct ProbeTools {
    pub(crate) cri: Cri,
    pub(crate) events: Recorder,
    pub(crate) pod: Arc<Pod>,
    pub(crate) pod_ip: String,
    pub(crate) wake: Arc<Notify>,
}

impl Prober {
    /// The results as they are now.
    pub(crate) fn results(&self) -> Results {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Probes just these containers; probes of others end.
    pub(crate) fn follow(&mut self, running: &[Running<'_>], tools: &ProbeTools) {
        let is_first = !std::mem::replace(&mut self.has_looked, true);
        self.tasks.retain(|(id, _), task| {
            let stays = running.iter().any(|running| running.id == id);
            if !stays {
                task.abort();
            }
            stays
        });
        for running in running {
            self.seed(*running);
            let has_started = self.results().has_started(running.container, running.id);
            for kind in [Kind::Startup, Kind::Readiness, Kind::Liveness] {
                let is_due = (kind == Kind::Startup) != has_started;
                let key = (running.id.to_owned(), kind);
                if is_due && kind.of(running.container).is_some() && !self.tasks.contains_key(&key) {
                    let run = Run {
                        tools: tools.clone(),
                        results: Arc::clone(&self.results),
                        container: running.container.name.clone(),
                        id: running.id.to_owned(),
                        kind,
                        is_adopted: is_first && running.before.is_some(),
                    };
                    self.tasks.insert(key, tokio::spawn(run.run()));
                }
            }
        }
    }

    /// After a restart of the node agent a container is what it was until its probes say otherwise.
    fn seed(&self, running: Running<'_>) {
        let Some((was_ready, had_started)) = running.before else { return };
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        for (kind, held) in [(Kind::Startup, had_started), (Kind::Readiness, was_ready)] {
            if held && results.get(running.id, kind).is_none() {
                results.set(running.id, kind, true);
            }
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.tasks.values().for_each(JoinHandle::abort);
    }
}

/// One probe of one container, again and again.
struct Run {
    tools: ProbeTools,
    results: Arc<Mutex<Results>>,
    /// The container's name in the Pod.
    container: String,
    id: String,
    kind: Kind,
    /// The container ran before this node agent began.
    is_adopted: bool,
}

/// A node agent that begins finds many containers at once: their probes are spread over the period, as upstream's, so that
/// its own hurry makes none of them late.
fn first_wait(probe: &Probe, period: Duration, is_adopted: bool) -> Duration {
    let asked = seconds(probe.initial_delay_seconds, 0);
    if is_adopted { asked.max(period.mul_f64(rand::random())) } else { asked }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
}

/// The first beat at `time` or after it.
fn next_beat(time: Instant) -> Instant {
    static FIRST: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    let since = time.into_std().saturating_duration_since(*FIRST);
    let over = Duration::from_nanos(u64::try_from(since.as_nanos() % BEAT.as_nanos()).unwrap_or_default());
    if over.is_zero() { time } else { time + BEAT.saturating_sub(over) }
}

impl Run {
    async fn run(self) {
        let Some(container) = self.container() else { return };
        let Some(probe) = self.kind.of(container) else { return };
        let mut tracker = Tracker::new(probe);
        let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
        let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
        tokio::time::sleep(first_wait(probe, period, self.is_adopted)).await;
        let mut due = Instant::now();
        loop {
            let attempt = Attempt {
                cri: &self.tools.cri,
                container,
                container_id: &self.id,
                pod_ip: &self.tools.pod_ip,
                timeout,
            };
            // Apart: it is much larger than a probe that waits for its time.
            let outcome = Box::pin(attempt.probe(probe)).await;
            self.tell(&outcome);
            if let Some(result) = tracker.note(outcome.is_success()) {
                self.publish(result);
                if self.kind == Kind::Startup && result {
                    return;
                }
            }
            // From when it was due, not from when its turn came: it would fall behind by a beat each time.
            due = next_beat((due + period).max(Instant::now()));
            tokio::time::sleep_until(due).await;
        }
    }

    fn container(&self) -> Option<&Container> {
        let spec = self.tools.pod.spec.iter();
        let mut all =
            spec.flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        all.find(|container| container.name == self.container)
    }

    fn publish(&self, result: bool) {
        {
            let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
            if results.get(&self.id, self.kind) == Some(result) {
                return;
            }
            results.set(&self.id, self.kind, result);
        }
        self.tools.wake.notify_one();
    }

    fn tell(&self, outcome: &Outcome) {
        if let Outcome::Failure(text) = outcome {
            let field = format!("spec.containers{{{}}}", self.container);
            let text = format!("{} probe failed: {text}", self.kind.name());
            self.tools.events.container(&self.tools.pod, field, EventKind::Warning, "Unhealthy", text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beats_are_common_and_at_most_a_beat_away() {
        let start = Instant::now() + Duration::from_secs(1);
        let first = next_beat(start);
        assert!(first >= start && first - start < BEAT);
        for milliseconds in [1, 100, 499, 500, 501, 10_000] {
            let time = start + Duration::from_millis(milliseconds);
            let beat = next_beat(time);
            assert!(beat >= time && beat - time < BEAT);
            assert_eq!((beat - first).as_nanos() % BEAT.as_nanos(), 0);
            assert_eq!(next_beat(beat), beat);
        }
    }
}
