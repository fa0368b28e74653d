//! Waiting times between attempts: 10 s doubling to 300 s, forgotten after twice the longest wait.
//!
//! One [`Backoff`] serves `CrashLoopBackOff` (by container), another `ImagePullBackOff` (by image).
//! Source: upstream's kubelet constants (`backOffPeriod` 10 s, `MaxContainerBackOff` 300 s) and client-go's rule
//! that an entry expires when nothing happened for twice the maximum.

use std::collections::HashMap;
use std::hash::Hash;

use jiff::{SignedDuration, Timestamp};

/// First wait after a failure.
pub(crate) const INITIAL: SignedDuration = SignedDuration::from_secs(10);
/// Longest wait between two attempts.
pub(crate) const LONGEST: SignedDuration = SignedDuration::from_secs(300);

#[derive(Clone, Copy, Debug)]
struct Entry {
    wait: SignedDuration,
    touched: Timestamp,
}

/// Waits by key.
#[derive(Debug)]
pub(crate) struct Backoff<K> {
    entries: HashMap<K, Entry>,
    initial: SignedDuration,
    longest: SignedDuration,
}

/// What the rule says about an attempt now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The attempt may be made.
    Go,
    /// Not before `until`; `wait` is the whole wait, as messages show it.
    Wait { until: Timestamp, wait: SignedDuration },
}

impl<K> Default for Backoff<K> {
    fn default() -> Self {
        Self::with_limits(INITIAL, LONGEST)
    }
}

impl<K> Backoff<K> {
    /// A rule with other limits than the usual ones.
    pub(crate) fn with_limits(initial: SignedDuration, longest: SignedDuration) -> Self {
        Self { entries: HashMap::new(), initial, longest }
    }
}

impl<K: Eq + Hash + Clone> Backoff<K> {
    /// May `key`, whose last failure was at `failed_at`, be tried at `now`?
    pub(crate) fn check(&self, key: &K, failed_at: Timestamp, now: Timestamp) -> Verdict {
        let Some(entry) = self.entries.get(key).filter(|entry| !self.has_expired(entry, failed_at)) else {
            return Verdict::Go;
        };
        // The clock was set back: how long ago it failed is not known, and the new clock may be far from `until`.
        if failed_at > now {
            return Verdict::Go;
        }
        let until = failed_at.saturating_add(entry.wait).unwrap_or(Timestamp::MAX);
        if now < until { Verdict::Wait { until, wait: entry.wait } } else { Verdict::Go }
    }

    /// Notes that an attempt of `key`, which failed at `failed_at`, is made again at `now`: the next wait is longer.
    pub(crate) fn lengthen(&mut self, key: &K, failed_at: Timestamp, now: Timestamp) {
        let wait = match self.entries.get(key) {
            Some(entry) if !self.has_expired(entry, failed_at) => (entry.wait + entry.wait).min(self.longest),
            _ => self.initial,
        };
        self.entries.insert(key.clone(), Entry { wait, touched: now });
    }

    /// After a restart of the node agent: the wait that `failures` failures in a row, the last attempt at
    /// `tried_at`, had led to. What is known already stays.
    pub(crate) fn resume(&mut self, key: &K, failures: u32, tried_at: Timestamp) {
        if failures == 0 {
            return;
        }
        let doublings = (1..failures.min(32)).fold(self.initial, |wait, _| (wait + wait).min(self.longest));
        let entry = Entry { wait: doublings, touched: tried_at };
        self.entries.entry(key.clone()).or_insert(entry);
    }

    /// Forgets `key`: its next failure waits the shortest time again.
    pub(crate) fn forget(&mut self, key: &K) {
        self.entries.remove(key);
    }

    fn has_expired(&self, entry: &Entry, failed_at: Timestamp) -> bool {
        failed_at.duration_since(entry.touched) > self.longest + self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    #[test]
    fn a_clock_that_is_set_back_keeps_nobody_waiting() {
        let mut backoff = Backoff::default();
        backoff.lengthen(&"c", at(0), at(0));
        let day = 24 * 3600;
        assert_eq!(backoff.check(&"c", at(1), at(1 - day)), Verdict::Go);
        backoff.lengthen(&"c", at(1), at(1 - day));
        let wait = Verdict::Wait { until: at(21 - day), wait: INITIAL + INITIAL };
        assert_eq!(backoff.check(&"c", at(1 - day), at(2 - day)), wait, "by the new clock");
    }

    #[test]
    fn a_crashing_container_waits_10_20_40_80_160_300_300_seconds() {
        let mut backoff = Backoff::default();
        let mut now = 0;
        assert_eq!(backoff.check(&"c", at(now), at(now)), Verdict::Go, "the first restart is at once");
        backoff.lengthen(&"c", at(now), at(now));
        for expected in [10, 20, 40, 80, 160, 300, 300] {
            now += 1;
            let failed = at(now);
            let until = at(now + expected);
            let wait = SignedDuration::from_secs(expected);
            assert_eq!(backoff.check(&"c", failed, failed), Verdict::Wait { until, wait });
            assert_eq!(backoff.check(&"c", failed, until), Verdict::Go);
            now += expected;
            backoff.lengthen(&"c", failed, at(now));
        }
    }

    #[test]
    fn a_container_that_ran_for_ten_minutes_starts_afresh() {
        let mut backoff = Backoff::default();
        backoff.lengthen(&"c", at(0), at(0));
        backoff.lengthen(&"c", at(1), at(11));
        assert!(matches!(backoff.check(&"c", at(611), at(611)), Verdict::Wait { .. }));
        assert_eq!(backoff.check(&"c", at(612), at(612)), Verdict::Go);
        backoff.lengthen(&"c", at(612), at(612));
        let wait = SignedDuration::from_secs(10);
        assert_eq!(backoff.check(&"c", at(613), at(613)), Verdict::Wait { until: at(623), wait });
    }

    #[test]
    fn a_restart_of_the_node_agent_does_not_shorten_the_wait() {
        let mut backoff = Backoff::default();
        backoff.resume(&"c", 4, at(0));
        let wait = SignedDuration::from_secs(80);
        assert_eq!(backoff.check(&"c", at(1), at(1)), Verdict::Wait { until: at(81), wait });
        backoff.resume(&"c", 1, at(0));
        assert!(matches!(backoff.check(&"c", at(1), at(80)), Verdict::Wait { .. }), "what is known stays");
        backoff.resume(&"new", 0, at(0));
        assert_eq!(backoff.check(&"new", at(1), at(1)), Verdict::Go);
    }

    #[test]
    fn keys_do_not_share_their_waits() {
        let mut backoff = Backoff::default();
        backoff.lengthen(&"a", at(0), at(0));
        assert_eq!(backoff.check(&"b", at(1), at(1)), Verdict::Go);
        backoff.forget(&"a");
        assert_eq!(backoff.check(&"a", at(1), at(1)), Verdict::Go);
    }
}
