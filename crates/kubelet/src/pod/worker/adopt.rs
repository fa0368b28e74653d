//! Pods that a node agent finds running when it begins. They lack nothing: what their volumes, cgroup and record should be
//! is looked at one Pod after another, so that those which lack a container are not kept waiting by all others.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::Worker;
use crate::pod::observed::Observed;

/// Before the first turn: those that lack a container have the beginning for themselves.
const FIRST: Duration = Duration::from_secs(1);
/// From one Pod's turn to the next: 250 Pods take ten seconds.
const STEP: Duration = Duration::from_millis(40);

/// The turns of Pods that were found running.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<Option<Instant>>);

impl Turns {
    /// The next turn: after the beginning, and a step after the one given last.
    fn take(&self, now: Instant) -> Instant {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let first = now + FIRST;
        let turn = last.map_or(first, |last| first.max(last + STEP));
        *last = Some(turn);
        turn
    }
}

impl Worker {
    /// Takes over a Pod at the first look at it. What its cgroup's parent shares is known before its turn comes.
    pub(super) fn adopt(&mut self, pod: &Pod, observed: &Observed) {
        if observed.live().next().is_some() {
            self.shared.cgroups.note(&self.uid, &self.sizes.largest_pod(pod));
            self.turn_at = Some(self.shared.turns.take(Instant::now()));
        }
    }

    /// Its turn has come, or it waits for none.
    pub(super) fn is_turn_due(&self) -> bool {
        self.turn_at.is_none_or(|turn| turn <= Instant::now())
    }

    /// When its turn comes, by the node's clock; that may be set meanwhile, and is asked anew then.
    pub(super) fn next_turn(&self) -> Option<Timestamp> {
        let wait = self.turn_at.filter(|_| self.is_stale)?.saturating_duration_since(Instant::now());
        let wait = SignedDuration::try_from(wait).unwrap_or_default();
        self.shared.clock.now().saturating_add(wait).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_comes_after_the_beginning_and_a_step_after_the_one_before() {
        let (turns, begin) = (Turns::default(), Instant::now());
        assert_eq!([begin; 3].map(|now| turns.take(now) - begin), [FIRST, FIRST + STEP, FIRST + STEP * 2]);
        let later = begin + Duration::from_mins(1);
        assert_eq!(turns.take(later), later + FIRST);
    }
}
