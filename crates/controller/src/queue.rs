//! Keys that something must be done about: each waits once, however often it is added, and one that failed comes back
//! later, each time a little later.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::Instant;

/// The wait after the first failure.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest wait after a failure.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// How many keys are worked on at a time.
const BATCH: usize = 16;
/// What waits, and until when.
#[derive(Clone, Debug)]
pub(crate) struct Queue<K> {
    order: BTreeSet<(Instant, K)>,
    due: BTreeMap<K, Instant>,
    failures: BTreeMap<K, u32>,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        Self { order: BTreeSet::new(), due: BTreeMap::new(), failures: BTreeMap::new() }
    }
}

impl<K: Ord + Clone + Display> Queue<K> {
    /// Adds a key that is due at `at`, unless it is due sooner already.
    pub(crate) fn add(&mut self, key: K, at: Instant) {
        match self.due.get(&key) {
            Some(sooner) if *sooner <= at => return,
            Some(later) => {
                self.order.remove(&(*later, key.clone()));
            }
            None => {}
        }
        self.order.insert((at, key.clone()));
        self.due.insert(key, at);
    }

    /// The keys that are due, the oldest first, at most a batch of them.
    pub(crate) fn take(&mut self, now: Instant) -> Vec<K> {
        let mut taken = Vec::new();
        while taken.len() < BATCH && self.order.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.order.pop_first() else { break };
            self.due.remove(&key);
            taken.push(key);
        }
        taken
    }

    /// Waits until a key is due; for ever when there is none.
    pub(crate) async fn ready(&self) {
        match self.order.first() {
            Some((at, _)) => tokio::time::sleep_until(*at).await,
            None => std::future::pending().await,
        }
    }

    /// Notes how it went with a key; after a failure it is added again.
    pub(crate) fn done<E: Display>(&mut self, key: K, result: Result<(), E>) {
        let Err(error) = result else {
            self.failures.remove(&key);
            return;
        };
        let shown = key.to_string();
        let wait = self.failed(key, Instant::now());
        tracing::warn!(key = shown, %error, ?wait, "failed; it is tried again");
    }

    /// Adds a key again after a failure, and says how long it waits.
    fn failed(&mut self, key: K, now: Instant) -> Duration {
        let count = self.failures.entry(key.clone()).or_default();
        let wait = FIRST_WAIT.saturating_mul(1 << (*count).min(16)).min(LONGEST_WAIT);
        *count += 1;
        self.add(key, now + wait);
        wait
    }
}

/// Applies plans side by side; the keys of those that fail are due again later.
pub(crate) async fn apply_all<K, P, E, F>(queue: &mut Queue<K>, plans: Vec<(K, P)>, apply: impl Fn(P) -> F)
where
    K: Ord + Clone + Display,
    E: Display,
    F: Future<Output = Result<(), E>>,
{
    let applied = plans.into_iter().map(|(key, plan)| {
        let applied = apply(plan);
        async move { (key, applied.await) }
    });
    for (key, result) in join_all(applied).await {
        queue.done(key, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_waits_once_and_until_its_soonest_time() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add("a", now + Duration::from_secs(5));
        queue.add("b", now);
        queue.add("a", now);
        queue.add("a", now + Duration::from_secs(9));
        assert_eq!(queue.take(now), ["a", "b"]);
        assert!(queue.take(now + Duration::from_mins(1)).is_empty());
    }

    #[test]
    fn what_fails_comes_back_later_each_time() {
        let now = Instant::now();
        let mut queue = Queue::default();
        let waits: Vec<_> = (0..3).map(|_| queue.failed("a", now).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200]);
        assert!((0..40).map(|_| queue.failed("a", now)).all(|wait| wait <= LONGEST_WAIT));
        queue.done("a", Ok::<(), &str>(()));
        assert_eq!(queue.failed("a", now), FIRST_WAIT);
    }

    #[tokio::test]
    async fn a_failed_plan_is_due_again_and_a_good_one_is_not() {
        let mut queue: Queue<&str> = Queue::default();
        let plans = vec![("good", true), ("bad", false)];
        let apply = |is_good: bool| async move { if is_good { Ok(()) } else { Err("no") } };
        apply_all(&mut queue, plans, apply).await;
        assert_eq!(queue.take(Instant::now() + LONGEST_WAIT), ["bad"]);
    }
}
