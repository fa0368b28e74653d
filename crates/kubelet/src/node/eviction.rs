//! What the node does when it runs short: which signal is below its threshold, and which Pod goes first. Pure.
//!
//! Source: "Node-pressure Eviction"; messages as upstream's eviction manager writes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::pod::resource::group_amount;
use crate::pod::status::Failure;
use crate::quantity::{self, Amounts};

/// Priority from which on a Pod is never evicted.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// A threshold: so much, or so many hundredths of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threshold {
    /// Bytes, inodes or processes.
    Amount(u64),
    /// Percent of the capacity.
    Percent(u8),
    /// Percent of the capacity, but never more than an amount.
    PercentUpTo(u8, u64),
}

/// The most that is kept free of a disk where nothing else is set: a tenth of a large one is no shortage. Upstream has no
/// such bound; a machine that also does other work would lose its Pods with 50 GB to spare.
const DISK_AT_MOST: u64 = 5 << 30;

impl Threshold {
    /// Reads `100Mi` or `10%`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(percent) = text.strip_suffix('%') {
            return percent.parse().ok().filter(|percent| *percent <= 100).map(Self::Percent);
        }
        let amount =
            quantity::value(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned()));
        u64::try_from(amount).ok().filter(|amount| *amount > 0).map(Self::Amount)
    }

    fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Percent(percent) => capacity / 100 * u64::from(percent),
            Self::PercentUpTo(percent, most) => Self::Percent(percent).of(capacity).min(most),
        }
    }
}

/// What may not run short at all (`evictionHard`), with upstream's defaults but for the disk's upper bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// `memory.available`
    pub memory: Threshold,
    /// `nodefs.available`
    pub disk: Threshold,
    /// `nodefs.inodesFree`
    pub inodes: Threshold,
    /// `pid.available`
    pub pids: Threshold,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            memory: Threshold::Amount(100 << 20),
            disk: Threshold::PercentUpTo(10, DISK_AT_MOST),
            inodes: Threshold::Percent(5),
            pids: Threshold::Percent(10),
        }
    }
}

impl Thresholds {
    const fn of(&self, signal: Signal) -> Threshold {
        match signal {
            Signal::Memory => self.memory,
            Signal::Disk => self.disk,
            Signal::Inodes => self.inodes,
            Signal::Pids => self.pids,
        }
    }

    /// Sets one of them.
    pub const fn set(&mut self, signal: Signal, threshold: Threshold) {
        match signal {
            Signal::Memory => self.memory = threshold,
            Signal::Disk => self.disk = threshold,
            Signal::Inodes => self.inodes = threshold,
            Signal::Pids => self.pids = threshold,
        }
    }
}

/// A threshold that must not be met for some time before it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftThreshold {
    /// What runs short (`evictionSoft`).
    pub threshold: Threshold,
    /// For how long (`evictionSoftGracePeriod`).
    pub grace: Duration,
}

/// When Pods are ended because the node runs short, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EvictionSettings {
    /// `evictionHard`: at once.
    pub hard: Thresholds,
    /// `evictionSoft`: after a while, with a grace for the Pod.
    pub soft: BTreeMap<Signal, SoftThreshold>,
    /// `evictionMaxPodGracePeriod`: the most that a Pod gets by a soft threshold.
    pub max_pod_grace: Duration,
    /// `evictionMinimumReclaim`: how much beyond a threshold there must be until it counts as met again.
    pub minimum_reclaim: BTreeMap<Signal, Threshold>,
    /// `evictionPressureTransitionPeriod`: how long a condition outlasts its cause.
    pub transition: Duration,
}

impl Default for EvictionSettings {
    fn default() -> Self {
        Self {
            hard: Thresholds::default(),
            soft: BTreeMap::new(),
            max_pod_grace: Duration::ZERO,
            minimum_reclaim: BTreeMap::new(),
            transition: Duration::from_mins(5),
        }
    }
}

/// One thing of which there may be too little, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// `memory.available`
    Memory,
    /// `nodefs.available`
    Disk,
    /// `nodefs.inodesFree`
    Inodes,
    /// `pid.available`
    Pids,
}

impl Signal {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 4] = [Self::Memory, Self::Disk, Self::Inodes, Self::Pids];

    /// The signal that a `KubeletConfiguration` names so.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "memory.available" => Some(Self::Memory),
            "nodefs.available" => Some(Self::Disk),
            "nodefs.inodesFree" => Some(Self::Inodes),
            "pid.available" => Some(Self::Pids),
            _ => None,
        }
    }

    /// The resource's name in messages.
    fn resource(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "ephemeral-storage",
            Self::Inodes => "inodes",
            Self::Pids => "pids",
        }
    }
}

/// How much is left of how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(crate) available: u64,
    pub(crate) capacity: u64,
}

/// What the machine has left. What cannot be read is never short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Readings {
    pub(crate) memory: Option<Reading>,
    pub(crate) disk: Option<Reading>,
    pub(crate) inodes: Option<Reading>,
    pub(crate) pids: Option<Reading>,
}

impl Readings {
    const fn of(&self, signal: Signal) -> Option<Reading> {
        match signal {
            Signal::Memory => self.memory,
            Signal::Disk => self.disk,
            Signal::Inodes => self.inodes,
            Signal::Pids => self.pids,
        }
    }
}

/// How long a Pod gets that goes for a shortage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A second.
    Hard,
    /// Its own grace, up to the most that the settings give.
    Soft,
}

/// A threshold that is not met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) signal: Signal,
    pub(crate) kind: Kind,
    threshold: u64,
    available: u64,
}

/// What one look at the machine means.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// What is below a threshold, hard or soft: the node's conditions tell of it.
    pub(crate) pressed: BTreeSet<Signal>,
    /// What Pods must go for now, the most urgent first.
    pub(crate) short: Vec<Shortage>,
}

/// What was below its threshold at the last look, and since when.
#[derive(Debug, Default)]
pub(crate) struct Below(BTreeMap<(Signal, Kind), Instant>);

impl Below {
    /// Takes a look. What was below a threshold stays so until it is above it by the minimum that is to be reclaimed; what
    /// is below a soft one counts once its grace is over.
    pub(crate) fn look(&mut self, readings: Readings, settings: &EvictionSettings, now: Instant) -> Look {
        let mut look = Look::default();
        let mut below = BTreeMap::new();
        for (signal, kind, threshold, grace) in settings.all() {
            let Some(Reading { available, capacity }) = readings.of(signal) else { continue };
            let threshold = threshold.of(capacity);
            let since = self.0.get(&(signal, kind)).copied();
            let reclaim = settings.minimum_reclaim.get(&signal).filter(|_| since.is_some());
            if available >= threshold.saturating_add(reclaim.map_or(0, |reclaim| reclaim.of(capacity))) {
                continue;
            }
            let since = since.unwrap_or(now);
            below.insert((signal, kind), since);
            look.pressed.insert(signal);
            if now.duration_since(since) >= grace {
                look.short.push(Shortage { signal, kind, threshold, available });
            }
        }
        self.0 = below;
        look
    }
}

impl EvictionSettings {
    /// Every threshold with the time for which it may be unmet; the most urgent signal first, and hard before soft.
    fn all(&self) -> impl Iterator<Item = (Signal, Kind, Threshold, Duration)> {
        Signal::ALL.into_iter().flat_map(|signal| {
            let hard = (signal, Kind::Hard, self.hard.of(signal), Duration::ZERO);
            let soft = self.soft.get(&signal).map(|soft| (signal, Kind::Soft, soft.threshold, soft.grace));
            std::iter::once(hard).chain(soft)
        })
    }

    /// How long a Pod gets that goes for such a shortage, if its own grace is not shorter.
    pub(crate) const fn grace(&self, kind: Kind) -> Duration {
        match kind {
            Kind::Hard => Duration::ZERO,
            Kind::Soft => self.max_pod_grace,
        }
    }
}

/// What a Pod uses of the node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PodUsage<'a> {
    pub(crate) pod: &'a Pod,
    /// Bytes that cannot be taken back.
    pub(crate) memory: u64,
    /// Bytes of emptyDirs, logs and writable layers.
    pub(crate) disk: u64,
    pub(crate) processes: u64,
}

impl PodUsage<'_> {
    fn used(&self, signal: Signal) -> u64 {
        match signal {
            Signal::Memory => self.memory,
            Signal::Disk | Signal::Inodes => self.disk,
            Signal::Pids => self.processes,
        }
    }

    fn requested(&self, signal: Signal) -> u64 {
        let amount = match signal {
            Signal::Memory => group_amount(self.pod).memory_request,
            Signal::Disk | Signal::Inodes => storage(self.pod, |resources| resources.requests.as_ref()),
            Signal::Pids => 0,
        };
        u64::try_from(amount).unwrap_or_default()
    }
}

fn storage(
    pod: &Pod,
    list: impl Fn(&k8s_openapi::api::core::v1::ResourceRequirements) -> Option<&Amounts>,
) -> i64 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let amounts =
        containers.filter_map(|container| list(container.resources.as_ref()?)?.get("ephemeral-storage"));
    amounts.map(quantity::value).fold(0, i64::saturating_add)
}

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

/// The Pod to end for a shortage: one that uses more than it requests before others, then by priority, then by how much
/// more it uses.
pub(crate) fn plan_eviction<'a>(shortage: Shortage, pods: &[PodUsage<'a>]) -> Option<(&'a Pod, Failure)> {
    let signal = shortage.signal;
    let candidates =
        pods.iter().filter(|usage| priority(usage.pod) < CRITICAL_PRIORITY && usage.used(signal) > 0);
    let first = candidates.min_by_key(|usage| {
        let (used, requested) = (usage.used(signal), usage.requested(signal));
        let beyond = i128::from(used) - i128::from(requested);
        (used <= requested, priority(usage.pod), std::cmp::Reverse(beyond))
    })?;
    Some((first.pod, failure(shortage, first)))
}

fn failure(shortage: Shortage, usage: &PodUsage<'_>) -> Failure {
    let resource = shortage.signal.resource();
    let Shortage { signal, threshold, available, .. } = shortage;
    let (used, requested) = (usage.used(signal), usage.requested(signal));
    let bytes = |amount: u64| match signal {
        Signal::Memory | Signal::Disk => format!("{}Ki", amount / 1024),
        Signal::Inodes | Signal::Pids => amount.to_string(),
    };
    let mut message = format!(
        "The node was low on resource: {resource}. Threshold quantity: {}, available: {}. ",
        bytes(threshold),
        bytes(available)
    );
    if signal != Signal::Inodes && used > requested {
        let (used, requested) = (bytes(used), bytes(requested));
        // Writing into a String cannot fail.
        let _ = write!(
            message,
            "The Pod was using {used}, request is {requested}, has larger consumption of {resource}. "
        );
    }
    Failure { reason: "Evicted".to_owned(), message }
}

/// Why a Pod goes because of its own limits: an emptyDir's `sizeLimit`, or its containers' `ephemeral-storage`.
/// `emptied` are the sizes of its emptyDirs by name.
pub(crate) fn plan_limit_eviction(usage: &PodUsage<'_>, emptied: &[(String, u64)]) -> Option<Failure> {
    let volumes = usage.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    for volume in volumes {
        let limit = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref());
        let Some(limit) = limit.filter(|limit| quantity::value(limit) > 0) else { continue };
        let used = emptied.iter().find(|(name, _)| *name == volume.name).map_or(0, |(_, used)| *used);
        if used > u64::try_from(quantity::value(limit)).unwrap_or(u64::MAX) {
            let (name, limit) = (&volume.name, &limit.0);
            let message = format!("Usage of EmptyDir volume {name:?} exceeds the limit {limit:?}. ");
            return Some(Failure { reason: "Evicted".to_owned(), message });
        }
    }
    let limit = storage(usage.pod, |resources| resources.limits.as_ref());
    let is_limited = usage.pod.spec.iter().flat_map(|spec| &spec.containers).all(|container| {
        let limits = container.resources.as_ref().and_then(|resources| resources.limits.as_ref());
        limits.is_some_and(|limits| limits.contains_key("ephemeral-storage"))
    });
    if is_limited && limit > 0 && usage.disk > u64::try_from(limit).unwrap_or(u64::MAX) {
        let message =
            format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. ");
        return Some(Failure { reason: "Evicted".to_owned(), message });
    }
    None
}

/// Whether a Pod's own limits must be measured.
pub(crate) fn has_storage_limit(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let sized = volumes.filter_map(|volume| volume.empty_dir.as_ref()?.size_limit.as_ref());
    sized.count() > 0 || storage(pod, |resources| resources.limits.as_ref()) > 0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: i32, memory: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"memory": memory}}}]}}))
        .unwrap()
    }

    fn usage(pod: &Pod, memory: u64) -> PodUsage<'_> {
        PodUsage { pod, memory, disk: 0, processes: 1 }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn thresholds_are_amounts_or_parts() {
        assert_eq!(Threshold::parse("100Mi"), Some(Threshold::Amount(100 << 20)));
        assert_eq!(Threshold::parse("15%"), Some(Threshold::Percent(15)));
        assert_eq!((Threshold::parse("101%"), Threshold::parse("x")), (None, None));
        let readings = Readings {
            memory: Some(Reading { available: 200 * MIB, capacity: 1 << 30 }),
            disk: Some(Reading { available: 9, capacity: 100 }),
            ..Readings::default()
        };
        let look = Below::default().look(readings, &EvictionSettings::default(), Instant::now());
        assert_eq!(look.pressed, BTreeSet::from([Signal::Disk]));
        assert_eq!(look.short.len(), 1);
    }

    #[test]
    fn a_large_disk_is_short_of_space_when_five_gibibytes_are_left() {
        const GIB: u64 = 1 << 30;
        let pressed = |available: u64, capacity: u64| {
            let readings = Readings { disk: Some(Reading { available, capacity }), ..Readings::default() };
            let look = Below::default().look(readings, &EvictionSettings::default(), Instant::now());
            !look.pressed.is_empty()
        };
        assert!(!pressed(6 * GIB, 250 * GIB) && pressed(4 * GIB, 250 * GIB));
        assert!(!pressed(3 * GIB, 20 * GIB) && pressed(GIB, 20 * GIB));
    }

    fn memory(available: u64) -> Readings {
        Readings { memory: Some(Reading { available, capacity: 1000 * MIB }), ..Readings::default() }
    }

    #[test]
    fn a_soft_threshold_presses_at_once_and_counts_when_its_grace_is_over() {
        let soft = SoftThreshold { threshold: Threshold::Percent(50), grace: Duration::from_secs(30) };
        let settings =
            EvictionSettings { soft: [(Signal::Memory, soft)].into(), ..EvictionSettings::default() };
        let (mut below, start) = (Below::default(), Instant::now());
        let mut at = |seconds: u64, available: u64| {
            let look = below.look(memory(available * MIB), &settings, start + Duration::from_secs(seconds));
            (look.pressed.len(), look.short.iter().map(|short| short.kind).collect::<Vec<_>>())
        };
        assert_eq!(at(0, 400), (1, vec![]));
        assert_eq!(at(20, 400), (1, vec![]));
        assert_eq!(at(25, 600), (0, vec![]), "it was met meanwhile");
        assert_eq!(at(40, 400), (1, vec![]), "and begins anew");
        assert_eq!(at(70, 400), (1, vec![Kind::Soft]));
        assert_eq!(at(80, 50), (1, vec![Kind::Hard, Kind::Soft]), "the hard one comes first");
    }

    #[test]
    fn what_was_short_stays_so_until_the_minimum_is_reclaimed() {
        let settings = EvictionSettings {
            minimum_reclaim: [(Signal::Memory, Threshold::Amount(50 * MIB))].into(),
            ..EvictionSettings::default()
        };
        let (mut below, now) = (Below::default(), Instant::now());
        let mut is_short =
            |available: u64| !below.look(memory(available * MIB), &settings, now).short.is_empty();
        assert!(!is_short(120), "it was never below 100 MiB");
        assert!(is_short(90) && is_short(120) && is_short(149));
        assert!(!is_short(150) && !is_short(120));
    }

    #[test]
    fn the_pod_that_uses_more_than_it_requests_goes_first() {
        let short =
            Shortage { signal: Signal::Memory, kind: Kind::Hard, threshold: 100 * MIB, available: 50 * MIB };
        let (modest, greedy) = (pod("modest", 0, "512Mi"), pod("greedy", 10, "64Mi"));
        let (lowly, critical) = (pod("lowly", -5, "64Mi"), pod("critical", CRITICAL_PRIORITY, "0"));
        let name = |pods: &[PodUsage<'_>]| {
            plan_eviction(short, pods)
                .map(|(pod, failure)| (pod.metadata.name.clone().unwrap(), failure.message))
        };
        let used = [usage(&modest, 500 * MIB), usage(&greedy, 100 * MIB), usage(&critical, 900 * MIB)];
        let (first, message) = name(&used).unwrap();
        assert_eq!(first, "greedy");
        assert_eq!(
            message,
            "The node was low on resource: memory. Threshold quantity: 102400Ki, available: 51200Ki. The Pod was using 102400Ki, request is 65536Ki, has larger consumption of memory. "
        );
        let both = [usage(&greedy, 100 * MIB), usage(&lowly, 65 * MIB)];
        assert_eq!(name(&both).unwrap().0, "lowly", "priority decides among those beyond their requests");
        assert_eq!(name(&[usage(&critical, 900 * MIB)]), None);
    }

    #[test]
    fn a_pod_beyond_its_own_limit_goes_whatever_the_node_has() {
        let limited: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c"}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}]}}))
        .unwrap();
        assert!(has_storage_limit(&limited) && !has_storage_limit(&pod("p", 0, "0")));
        let check = |used: u64| plan_limit_eviction(&usage(&limited, 0), &[("v".into(), used)]);
        assert_eq!(check(MIB), None);
        assert_eq!(
            check(MIB + 1).unwrap().message,
            "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". "
        );
        let stored: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "c", "resources": {"limits": {"ephemeral-storage": "1Mi"}}}]}}))
        .unwrap();
        let full = PodUsage { disk: 2 * MIB, ..usage(&stored, 0) };
        assert!(
            plan_limit_eviction(&full, &[]).unwrap().message.contains("total limit of containers 1048576")
        );
    }
}
