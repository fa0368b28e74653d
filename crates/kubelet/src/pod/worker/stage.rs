//! The life of a Pod on this node as a state machine: one enum, one [`step`].
//!
//! A Pod runs, ends, is cleaned up, and waits settled until the API lets it go; then its last traces are removed.
//! Each stage may be entered anew after a restart of the node agent: every action can be repeated.

/// Where a Pod stands on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its containers are meant to run.
    Running,
    /// Its containers are being ended; none is started any more.
    Ending,
    /// Nothing of it runs: volumes, cgroup and host IDs are given back.
    Cleaning,
    /// It holds nothing but its containers' records and logs.
    Settled,
    /// The API has let it go: records, logs and directories are removed.
    Removing,
    /// Nothing of it is left.
    Gone,
}

/// What is known when a step is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent observation")]
pub(crate) struct Facts {
    /// Somebody asked for its deletion.
    pub(crate) is_deleting: bool,
    /// The API does not have it (any more).
    pub(crate) is_gone_from_api: bool,
    /// It has come to its end by itself, or the node has failed it.
    pub(crate) is_over: bool,
    /// A container or sandbox may still run.
    pub(crate) is_alive: bool,
    /// Volumes, cgroup and host IDs are given back.
    pub(crate) is_clean: bool,
    /// No record is left in the runtime, nothing on disk.
    pub(crate) is_removed: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make it what the spec says.
    Sync,
    /// End its containers and its sandbox.
    Kill,
    /// Give back what it holds.
    CleanUp,
    /// Delete it from the API: its end is complete.
    Delete,
    /// Remove its last traces.
    Remove,
    /// Nothing, until something happens.
    Wait,
    /// Nothing ever again.
    Finish,
}

/// The next stage, and what to do in it.
pub(crate) fn step(stage: Stage, facts: Facts) -> (Stage, Action) {
    let next = next_stage(stage, facts);
    (next, action(next, facts))
}

fn next_stage(stage: Stage, facts: Facts) -> Stage {
    let must_end = facts.is_deleting || facts.is_gone_from_api || facts.is_over;
    match stage {
        Stage::Running if must_end => next_stage(Stage::Ending, facts),
        Stage::Ending if !facts.is_alive => next_stage(Stage::Cleaning, facts),
        // What nobody should have started meanwhile is ended too.
        Stage::Cleaning | Stage::Settled if facts.is_alive => Stage::Ending,
        Stage::Cleaning if facts.is_clean => next_stage(Stage::Settled, facts),
        Stage::Settled if facts.is_gone_from_api => next_stage(Stage::Removing, facts),
        Stage::Removing if facts.is_removed => Stage::Gone,
        other => other,
    }
}

fn action(stage: Stage, facts: Facts) -> Action {
    match stage {
        Stage::Running => Action::Sync,
        Stage::Ending => Action::Kill,
        Stage::Cleaning => Action::CleanUp,
        Stage::Settled if facts.is_deleting => Action::Delete,
        Stage::Settled => Action::Wait,
        Stage::Removing => Action::Remove,
        Stage::Gone => Action::Finish,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Facts = Facts {
        is_deleting: false,
        is_gone_from_api: false,
        is_over: false,
        is_alive: false,
        is_clean: false,
        is_removed: false,
    };

    #[test]
    fn every_transition() {
        let alive = Facts { is_alive: true, ..NOTHING };
        let deleting = Facts { is_deleting: true, ..NOTHING };
        let gone = Facts { is_gone_from_api: true, ..NOTHING };
        let clean = Facts { is_clean: true, ..NOTHING };
        for (stage, facts, expected) in [
            (Stage::Running, NOTHING, (Stage::Running, Action::Sync)),
            (Stage::Running, alive, (Stage::Running, Action::Sync)),
            (Stage::Running, Facts { is_deleting: true, ..alive }, (Stage::Ending, Action::Kill)),
            (Stage::Running, Facts { is_gone_from_api: true, ..alive }, (Stage::Ending, Action::Kill)),
            (Stage::Running, Facts { is_over: true, ..alive }, (Stage::Ending, Action::Kill)),
            (Stage::Running, deleting, (Stage::Cleaning, Action::CleanUp)),
            (Stage::Ending, alive, (Stage::Ending, Action::Kill)),
            (Stage::Ending, NOTHING, (Stage::Cleaning, Action::CleanUp)),
            (Stage::Cleaning, NOTHING, (Stage::Cleaning, Action::CleanUp)),
            (Stage::Cleaning, alive, (Stage::Ending, Action::Kill)),
            (Stage::Cleaning, clean, (Stage::Settled, Action::Wait)),
            (Stage::Cleaning, Facts { is_deleting: true, ..clean }, (Stage::Settled, Action::Delete)),
            (Stage::Cleaning, Facts { is_gone_from_api: true, ..clean }, (Stage::Removing, Action::Remove)),
            (Stage::Settled, clean, (Stage::Settled, Action::Wait)),
            (Stage::Settled, Facts { is_alive: true, ..clean }, (Stage::Ending, Action::Kill)),
            (Stage::Settled, gone, (Stage::Removing, Action::Remove)),
            (Stage::Removing, gone, (Stage::Removing, Action::Remove)),
            (Stage::Removing, Facts { is_removed: true, ..gone }, (Stage::Gone, Action::Finish)),
            (Stage::Gone, gone, (Stage::Gone, Action::Finish)),
        ] {
            assert_eq!(step(stage, facts), expected, "{stage:?} {facts:?}");
        }
    }

    #[test]
    fn no_sequence_of_facts_starts_a_pod_again_that_has_begun_to_end() {
        for bits in 0..64_u8 {
            let bit = |n: u8| bits & (1 << n) != 0;
            let facts = Facts {
                is_deleting: bit(0),
                is_gone_from_api: bit(1),
                is_over: bit(2),
                is_alive: bit(3),
                is_clean: bit(4),
                is_removed: bit(5),
            };
            for stage in [Stage::Ending, Stage::Cleaning, Stage::Settled, Stage::Removing, Stage::Gone] {
                let (next, action) = step(stage, facts);
                assert_ne!(next, Stage::Running);
                assert_ne!(action, Action::Sync);
                if action == Action::CleanUp || action == Action::Delete {
                    assert!(
                        !facts.is_alive,
                        "{stage:?} {facts:?}: nothing is given back while something runs"
                    );
                }
            }
        }
    }
}
