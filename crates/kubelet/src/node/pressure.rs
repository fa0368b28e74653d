//! Watches over what the node has left: tells of pressure, takes back disk, and ends Pods where nothing else helps.
//!
//! That tasks wait for memory the kernel tells, and the machine is looked at then. It tells nobody that a filesystem fills up, that
//! processes become many, or that less memory is left than a threshold above the kernel's own: for these the machine is
//! looked at now and then. What a look costs does not grow with the Pods while nothing is short.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::collect::ImageCollector;
use super::eviction::{
    Below, EvictionSettings, Kind, PodUsage, Shortage, Signal, has_storage_limit, plan_eviction,
    plan_limit_eviction,
};
use super::machine::{Pressure, read};
use super::stall::MemoryStalls;
use crate::pod::status::Failure;
use crate::pod::worker::Ending;
use crate::shared::Shared;
use crate::uid::PodUid;
use crate::usage::{DiskUsage, disk_usage};

/// The machine is looked at so long after the last look for what the kernel tells nobody; with [`BREATH`] each ten seconds, as
/// upstream's eviction manager does.
const EVERY: Duration = Duration::from_secs(9);
/// While tasks wait for memory, the time between two looks: an end that was decided takes a moment to free some.
const BREATH: Duration = Duration::from_secs(1);

/// When each pressure was seen last.
#[derive(Debug, Default)]
struct Seen {
    memory: Option<tokio::time::Instant>,
    disk: Option<tokio::time::Instant>,
    pids: Option<tokio::time::Instant>,
}

impl Seen {
    /// Takes what a look found, and says what pressure there still is: a condition outlasts its cause by `transition`,
    /// so that it does not flap.
    fn note(
        &mut self,
        pressed: &BTreeSet<Signal>,
        transition: Duration,
        now: tokio::time::Instant,
    ) -> Pressure {
        let has = |signals: &[Signal]| signals.iter().any(|signal| pressed.contains(signal));
        let mut lasting = |seen: fn(&mut Self) -> &mut Option<tokio::time::Instant>, is_short: bool| {
            let seen = seen(self);
            if is_short {
                *seen = Some(now);
            }
            seen.is_some_and(|at| now.duration_since(at) < transition)
        };
        Pressure {
            memory: lasting(|seen| &mut seen.memory, has(&[Signal::Memory])),
            disk: lasting(|seen| &mut seen.disk, has(&[Signal::Disk, Signal::Inodes])),
            pids: lasting(|seen| &mut seen.pids, has(&[Signal::Pids])),
        }
    }
}

/// Looks at the machine until `shutdown`.
pub(crate) async fn watch_pressure(
    shared: Arc<Shared>,
    settings: EvictionSettings,
    told: watch::Sender<Pressure>,
    shutdown: CancellationToken,
) {
    let (mut below, mut seen) = (Below::default(), Seen::default());
    let mut images = ImageCollector::default();
    let stalls = MemoryStalls::ask();
    let work = async {
        loop {
            let now = tokio::time::Instant::now();
            let look = below.look(read(&shared.places.pods()), &settings, now);
            let pressure = seen.note(&look.pressed, settings.transition, now);
            told.send_if_modified(|known| std::mem::replace(known, pressure) != pressure);
            images.look(&shared).await;
            let disk = look.short.iter().find(|short| matches!(short.signal, Signal::Disk | Signal::Inodes));
            if disk.is_some() {
                images.free_all(&shared).await;
            }
            Box::pin(evict(&shared, &settings, &look.short)).await;
            tokio::time::sleep(BREATH).await;
            // Nothing is wrong with running out of time here: that is the look now and then.
            let _ = tokio::time::timeout(EVERY, stalls.next()).await;
        }
    };
    shutdown.run_until_cancelled(work).await;
}

/// Ends Pods beyond their own limits, and one for the first shortage.
async fn evict(shared: &Arc<Shared>, settings: &EvictionSettings, short: &[Shortage]) {
    let mut pods = running(shared);
    if short.is_empty() {
        pods.retain(|pod| has_storage_limit(pod));
    }
    let measures_all = short.iter().any(|short| matches!(short.signal, Signal::Disk | Signal::Inodes));
    let mut measured: Vec<(Arc<Pod>, DiskUsage)> = Vec::new();
    for pod in pods {
        let is_measured = measures_all || has_storage_limit(&pod);
        let usage = if is_measured { disk_usage(shared, &pod).await } else { DiskUsage::default() };
        measured.push((pod, usage));
    }
    let usages: Vec<PodUsage<'_>> = measured.iter().map(|(pod, disk)| usage_of(shared, pod, disk)).collect();
    for (usage, (_, disk)) in usages.iter().zip(&measured) {
        if let Some(failure) = plan_limit_eviction(usage, &disk.empty_dirs) {
            end(shared, usage.pod, (failure, settings.grace(Kind::Hard)));
        }
    }
    for shortage in short {
        if let Some((pod, failure)) = plan_eviction(*shortage, &usages) {
            end(shared, pod, (failure, settings.grace(shortage.kind)));
            return;
        }
    }
}

fn end(shared: &Shared, pod: &Pod, (failure, grace): (Failure, Duration)) {
    let Some(uid) = pod.metadata.uid.as_deref().and_then(|uid| PodUid::parse(uid).ok()) else { return };
    tracing::warn!(pod = %uid, message = failure.message, "evicted");
    shared.registry.end(&uid, Ending { failure, grace });
}

/// Pods that are not ending already.
fn running(shared: &Shared) -> Vec<Arc<Pod>> {
    let is_running = |pod: &Arc<Pod>| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let is_over = crate::pod::status::phase::Phase::stored_terminal(phase).is_some();
        pod.metadata.deletion_timestamp.is_none() && !is_over
    };
    shared.registry.kept_pods().into_iter().filter(is_running).collect()
}

fn usage_of<'a>(shared: &Shared, pod: &'a Pod, disk: &DiskUsage) -> PodUsage<'a> {
    let stats = shared.cgroups.stats(pod);
    PodUsage {
        pod,
        memory: stats.memory_working_set.unwrap_or(0),
        disk: disk.total(),
        processes: stats.pids.unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_outlasts_its_cause() {
        let (mut seen, transition) = (Seen::default(), Duration::from_mins(5));
        let start = tokio::time::Instant::now();
        let memory = Pressure { memory: true, ..Pressure::default() };
        let mut note = |pressed: &[Signal], after: Duration| {
            seen.note(&pressed.iter().copied().collect(), transition, start + after)
        };
        assert_eq!(note(&[Signal::Memory], Duration::ZERO), memory);
        assert_eq!(note(&[], transition / 2), memory);
        assert_eq!(note(&[], transition), Pressure::default());
    }
}
