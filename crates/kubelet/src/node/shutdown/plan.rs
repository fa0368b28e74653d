//! Which Pods end when the node is about to be turned off, in which order, and how long each may take. Pure.
//!
//! Sources: KEP-2000 and KEP-2712. Pods of low priority go first; a group goes when the one before it has ended or its time
//! is over.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::pod::status::Failure;

/// The priority of Pods that name no class, where no class is the default.
const USUAL: i32 = 0;
/// From this priority on a Pod is critical (`system-cluster-critical`).
const CRITICAL: i32 = 2_000_000_000;

/// How long the Pods from a priority on, up to the next period's, get together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownPeriod {
    /// The lowest priority.
    pub priority: i32,
    /// The time.
    pub grace: Duration,
}

/// When Pods end before the machine is turned off. Without periods they end with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShutdownSettings(Vec<ShutdownPeriod>);

impl ShutdownSettings {
    /// `shutdownGracePeriodByPodPriority`, in any order.
    pub fn by_priority(mut periods: Vec<ShutdownPeriod>) -> Self {
        periods.sort_by_key(|period| period.priority);
        Self(periods)
    }

    /// `shutdownGracePeriod`, of which the last part, `shutdownGracePeriodCriticalPods`, is for critical Pods. Parts of a
    /// second do not count.
    pub fn of_two(total: Duration, critical: Duration) -> Self {
        let whole = |time: Duration| Duration::from_secs(time.as_secs());
        if total.is_zero() || critical > total {
            return Self::default();
        }
        Self(vec![
            ShutdownPeriod { priority: USUAL, grace: whole(total.saturating_sub(critical)) },
            ShutdownPeriod { priority: CRITICAL, grace: whole(critical) },
        ])
    }

    /// Nothing is done before a shutdown.
    pub fn is_off(&self) -> bool {
        self.0.is_empty()
    }

    /// How long all Pods get together.
    pub fn requested(&self) -> Duration {
        self.0.iter().map(|period| period.grace).sum()
    }

    /// The same parts of no more than `available`, so that the last group has its share too.
    pub(crate) fn within(&self, available: Duration) -> Self {
        let requested = self.requested();
        if available >= requested {
            return self.clone();
        }
        let share = |grace: Duration| grace.mul_f64(available.as_secs_f64() / requested.as_secs_f64());
        let shortened = |period: &ShutdownPeriod| ShutdownPeriod { grace: share(period.grace), ..*period };
        Self(self.0.iter().map(shortened).collect())
    }
}

/// Pods that end together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Group {
    /// The lowest priority in it.
    pub(crate) priority: i32,
    /// How long the next group waits for this one at most.
    pub(crate) grace: Duration,
    /// Each with how long its containers get.
    pub(crate) pods: Vec<(Arc<Pod>, Duration)>,
}

/// What a Pod's status says that is ended so.
pub(crate) fn failure() -> Failure {
    Failure {
        reason: "Terminated".to_owned(),
        message: "Pod was terminated in response to imminent node shutdown.".to_owned(),
    }
}

/// Why a Pod is not taken any more.
pub(crate) fn refusal() -> Failure {
    Failure {
        reason: "NodeShutdown".to_owned(),
        message: "Pod was rejected as the node is shutting down.".to_owned(),
    }
}

/// The groups in the order in which they end; a period without Pods takes no time.
pub(crate) fn plan_shutdown(settings: &ShutdownSettings, pods: &[Arc<Pod>]) -> Vec<Group> {
    let periods = &settings.0;
    let empty =
        |period: &ShutdownPeriod| Group { priority: period.priority, grace: period.grace, pods: Vec::new() };
    let mut groups: Vec<Group> = periods.iter().map(empty).collect();
    for pod in pods {
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(USUAL);
        // One below all periods goes with the first.
        let index = periods.iter().rposition(|period| period.priority <= priority).unwrap_or(0);
        if let Some(group) = groups.get_mut(index) {
            let grace = own_grace(pod).map_or(group.grace, |own| own.min(group.grace));
            group.pods.push((Arc::clone(pod), grace));
        }
    }
    groups.retain(|group| !group.pods.is_empty());
    groups
}

fn own_grace(pod: &Pod) -> Option<Duration> {
    let seconds = pod.spec.as_ref()?.termination_grace_period_seconds?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn pod(name: &str, priority: Option<i32>, grace: Option<i64>) -> Arc<Pod> {
        let spec = json!({"priority": priority, "terminationGracePeriodSeconds": grace, "containers": []});
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap())
    }

    fn seconds(settings: &[(i32, u64)]) -> ShutdownSettings {
        let period = |(priority, grace): &(i32, u64)| ShutdownPeriod {
            priority: *priority,
            grace: Duration::from_secs(*grace),
        };
        ShutdownSettings::by_priority(settings.iter().map(period).collect())
    }

    /// Each group: its time, and its Pods with theirs.
    fn shown(groups: &[Group]) -> Vec<(u64, Vec<(String, u64)>)> {
        let name = |pod: &Arc<Pod>| pod.metadata.name.clone().unwrap();
        let pods =
            |group: &Group| group.pods.iter().map(|(pod, grace)| (name(pod), grace.as_secs())).collect();
        groups.iter().map(|group| (group.grace.as_secs(), pods(group))).collect()
    }

    #[test]
    fn critical_pods_end_last_and_have_their_part_of_the_time() {
        let settings = ShutdownSettings::of_two(Duration::from_secs(30), Duration::from_secs(10));
        assert_eq!(settings.requested(), Duration::from_secs(30));
        let pods = [
            pod("critical", Some(2_000_001_000), Some(60)),
            pod("usual", None, Some(5)),
            pod("high", Some(1_000_000), None),
            pod("low", Some(-10), Some(60)),
        ];
        let first = vec![("usual".to_owned(), 5), ("high".to_owned(), 20), ("low".to_owned(), 20)];
        let groups = plan_shutdown(&settings, &pods);
        assert_eq!(shown(&groups), [(20, first), (10, vec![("critical".to_owned(), 10)])]);
    }

    #[test]
    fn a_priority_between_two_periods_belongs_to_the_lower_one() {
        let settings = seconds(&[(100_000, 10), (0, 60), (10_000, 180), (1_000, 120)]);
        let names = ["a", "b", "c", "d", "e", "f"];
        let priorities = [-5, 0, 999, 1_000, 10_000, 99_999];
        let pods: Vec<Arc<Pod>> =
            names.iter().zip(priorities).map(|(name, priority)| pod(name, Some(priority), None)).collect();
        let groups: Vec<(u64, Vec<String>)> = shown(&plan_shutdown(&settings, &pods))
            .into_iter()
            .map(|(grace, pods)| (grace, pods.into_iter().map(|(name, _)| name).collect()))
            .collect();
        let expected = [(60, vec!["a", "b", "c"]), (120, vec!["d"]), (180, vec!["e", "f"])];
        let expected = expected.map(|(grace, names)| (grace, names.into_iter().map(str::to_owned).collect()));
        assert_eq!(groups, expected, "nobody has the highest priority: no time is lost for it");
    }

    #[test]
    fn no_setting_is_no_plan_and_what_does_not_fit_is_shared_out() {
        assert!(ShutdownSettings::of_two(Duration::ZERO, Duration::ZERO).is_off());
        assert!(plan_shutdown(&ShutdownSettings::default(), &[pod("a", None, None)]).is_empty());
        let settings = ShutdownSettings::of_two(Duration::from_secs(30), Duration::from_secs(10));
        assert_eq!(settings.within(Duration::from_mins(1)), settings);
        let short = settings.within(Duration::from_secs(6));
        assert_eq!(short, seconds(&[(0, 4), (CRITICAL, 2)]));
    }

    proptest! {
        #[test]
        fn every_pod_ends_once_and_none_before_one_of_a_lower_period(
            periods in proptest::collection::btree_map(-1000_i32..1000, 1_u64..100, 1..6),
            priorities in proptest::collection::vec(-1500_i32..1500, 0..30),
        ) {
            let settings = seconds(&periods.into_iter().collect::<Vec<_>>());
            let pods: Vec<Arc<Pod>> = priorities.iter().map(|priority| pod("p", Some(*priority), None)).collect();
            let groups = plan_shutdown(&settings, &pods);
            prop_assert_eq!(groups.iter().map(|group| group.pods.len()).sum::<usize>(), pods.len());
            prop_assert!(groups.is_sorted_by_key(|group| group.priority));
            for (earlier, later) in groups.iter().zip(groups.iter().skip(1)) {
                let priority = |(pod, _): &(Arc<Pod>, Duration)| pod.spec.as_ref().unwrap().priority;
                prop_assert!(earlier.pods.iter().map(priority).max() < later.pods.iter().map(priority).min());
            }
        }
    }
}
