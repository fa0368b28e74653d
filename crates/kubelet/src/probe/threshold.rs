//! When attempts become a result: enough of the same kind in a row. Pure.

use k8s_openapi::api::core::v1::Probe;

/// Counts attempts of one probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tracker {
    successes_wanted: u32,
    failures_wanted: u32,
    last: Option<bool>,
    in_a_row: u32,
}

impl Tracker {
    /// The API's defaults are one success and three failures.
    pub(crate) fn new(probe: &Probe) -> Self {
        let wanted = |value: Option<i32>, default| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        Self {
            successes_wanted: wanted(probe.success_threshold, 1),
            failures_wanted: wanted(probe.failure_threshold, 3),
            last: None,
            in_a_row: 0,
        }
    }

    /// Notes an attempt; the answer is the result, once there have been enough.
    pub(crate) fn note(&mut self, is_success: bool) -> Option<bool> {
        if self.last != Some(is_success) {
            self.last = Some(is_success);
            self.in_a_row = 0;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        let wanted = if is_success { self.successes_wanted } else { self.failures_wanted };
        (self.in_a_row >= wanted).then_some(is_success)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_need_their_number_in_a_row() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut tracker = Tracker::new(&probe);
        let results: Vec<_> = [true, true, false, false, true, false, false, false, true, true]
            .into_iter()
            .map(|attempt| tracker.note(attempt))
            .collect();
        let (none, yes, no) = (None, Some(true), Some(false));
        assert_eq!(results, [none, yes, none, none, none, none, none, no, none, yes]);
        assert_eq!(Tracker::new(&Probe::default()).note(true), Some(true));
    }
}
