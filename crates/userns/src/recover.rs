//! Recovery at start: records on disk, compared with the sandboxes that really run, become reservations.
//!
//! A running sandbox's own map is the truth; a record that can't be used costs its Pod a quarantine and nobody
//! anything else.

use std::collections::{BTreeMap, BTreeSet};

use crate::PodUid;
use crate::ledger::Holder;
use crate::pool::Reserved;
use crate::range::IdRange;
use crate::record::{Record, RecordError};

/// A Pod's record file as it was found.
#[derive(Clone, Debug)]
pub struct OnDisk {
    /// The Pod that the directory names.
    pub pod: PodUid,
    /// The record, or what is wrong with it.
    pub content: Result<Record, RecordError>,
}

/// A sandbox that the runtime lists, with the host side of its real `uid_map`.
#[derive(Clone, Debug)]
pub struct LiveSandbox {
    /// Its Pod.
    pub pod: PodUid,
    /// Its ID at the runtime.
    pub id: String,
    /// Host ranges that its user namespace maps; empty when it has none of its own.
    pub maps: Vec<IdRange>,
}

/// Something that the user should know; an event on the Pod and a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The Pod.
    pub pod: PodUid,
    /// What was found and what is done about it.
    pub message: String,
}

/// What recovery decided; see each field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Mappings that stand.
    pub adopt: Vec<(PodUid, IdRange)>,
    /// Further ranges kept out of the way.
    pub reserve: Vec<(IdRange, Holder)>,
    /// Pods that get no sandbox: the ranges kept, and why.
    pub quarantine: Vec<(PodUid, Vec<IdRange>, String)>,
    /// Records to be written anew, since the running sandbox says otherwise.
    pub rewrite: Vec<(PodUid, IdRange)>,
    /// Records to be removed: the range can't be used, and nothing runs on it.
    pub discard: Vec<PodUid>,
    /// What to tell.
    pub findings: Vec<Finding>,
}

impl Recovery {
    fn tell(&mut self, pod: &PodUid, message: String) {
        self.findings.push(Finding { pod: pod.clone(), message });
    }
}

/// Decides what each record is worth. `given` is what the machine or other instances have.
pub fn plan_recovery(records: &[OnDisk], live: &[LiveSandbox], given: &[Reserved]) -> Recovery {
    let mut plan = Recovery::default();
    let maps = maps_by_pod(live);
    let mut candidates = Vec::new();
    for record in records {
        let running = maps.get(&record.pod).map_or(&[][..], Vec::as_slice);
        candidates.extend(judge(&mut plan, record, running, given));
    }
    let recorded: BTreeSet<&PodUid> = records.iter().map(|r| &r.pod).collect();
    for (pod, running) in maps.iter().filter(|(pod, _)| !recorded.contains(pod)) {
        candidates.extend(without_record(&mut plan, pod, running));
    }
    settle(&mut plan, candidates);
    plan
}

struct Candidate {
    pod: PodUid,
    range: IdRange,
    runs: bool,
}

fn maps_by_pod(live: &[LiveSandbox]) -> BTreeMap<PodUid, Vec<IdRange>> {
    let mut maps: BTreeMap<PodUid, Vec<IdRange>> = BTreeMap::new();
    for sandbox in live {
        let ranges = maps.entry(sandbox.pod.clone()).or_default();
        ranges
            .extend(sandbox.maps.iter().filter(|range| !ranges.contains(range)).copied().collect::<Vec<_>>());
    }
    maps.retain(|_, ranges| !ranges.is_empty());
    maps
}

/// The mapping that the record and the running sandbox give the Pod, if any.
fn judge(plan: &mut Recovery, record: &OnDisk, running: &[IdRange], given: &[Reserved]) -> Option<Candidate> {
    let pod = &record.pod;
    match (&record.content, running) {
        (Ok(Record::Empty), []) => None,
        (Ok(Record::Empty), _) => without_record(plan, pod, running),
        (Ok(Record::Range(range)), []) => idle(plan, pod, *range, given),
        (Ok(Record::Range(range)), _) if running == [*range] => {
            Some(Candidate { pod: pod.clone(), range: *range, runs: true })
        }
        (Ok(Record::Range(range)), _) => {
            plan.reserve.push((*range, Holder::Pod(pod.clone())));
            let why = format!("the record says {range}, the running sandbox has {}", list(running));
            overruled(plan, pod, running, &why)
        }
        (Err(error), []) => {
            quarantine(plan, pod, error.touched.clone(), error.to_string());
            None
        }
        (Err(error), _) => {
            let keep = error.touched.iter().map(|range| (*range, Holder::Pod(pod.clone())));
            plan.reserve.extend(keep);
            overruled(plan, pod, running, &format!("the record is invalid ({error})"))
        }
    }
}

/// A valid record of a Pod that has no sandbox: nothing runs on the range, so it can be given up where it must.
fn idle(plan: &mut Recovery, pod: &PodUid, range: IdRange, given: &[Reserved]) -> Option<Candidate> {
    let owner = given.iter().find(|r| r.range.overlaps(range));
    let why = match owner {
        Some(other) => format!("by now they belong to {} ({})", other.owner, other.range),
        None if !range.is_mappable() => "the kernel maps no range that includes 4294967295".to_owned(),
        None => return Some(Candidate { pod: pod.clone(), range, runs: false }),
    };
    plan.discard.push(pod.clone());
    plan.tell(
        pod,
        format!(
            "the recorded IDs {range} can't be used: {why}; the Pod gets new ones, since nothing of it runs"
        ),
    );
    None
}

fn without_record(plan: &mut Recovery, pod: &PodUid, running: &[IdRange]) -> Option<Candidate> {
    overruled(plan, pod, running, "the Pod has no record")
}

/// The running sandbox's map wins, if a record can express it.
fn overruled(plan: &mut Recovery, pod: &PodUid, running: &[IdRange], why: &str) -> Option<Candidate> {
    if let [range] = running {
        plan.tell(pod, format!("{why}; the IDs {range} of the running sandbox stand"));
        plan.rewrite.push((pod.clone(), *range));
        return Some(Candidate { pod: pod.clone(), range: *range, runs: true });
    }
    quarantine(plan, pod, running.to_vec(), format!("{why}, and no record can express {}", list(running)));
    None
}

fn quarantine(plan: &mut Recovery, pod: &PodUid, ranges: Vec<IdRange>, reason: String) {
    plan.tell(
        pod,
        format!(
            "the user namespace record is invalid: {reason}; the Pod gets no sandbox until it is deleted"
        ),
    );
    plan.quarantine.push((pod.clone(), ranges, reason));
}

/// Running Pods first, then by UID: who comes later and overlaps is quarantined.
fn settle(plan: &mut Recovery, mut candidates: Vec<Candidate>) {
    candidates.sort_by(|a, b| (!a.runs, &a.pod).cmp(&(!b.runs, &b.pod)));
    let mut taken: BTreeMap<u64, (IdRange, PodUid)> = BTreeMap::new();
    for Candidate { pod, range, .. } in candidates {
        let before = taken.range(..range.end()).next_back().map(|(_, taken)| taken.clone());
        match before.filter(|(other, _)| other.overlaps(range)) {
            None => {
                taken.insert(range.first().into(), (range, pod.clone()));
                plan.adopt.push((pod, range));
            }
            Some((other, holder)) => {
                plan.rewrite.retain(|(rewritten, _)| *rewritten != pod);
                quarantine(
                    plan,
                    &pod,
                    vec![range],
                    format!("its range {range} overlaps {other} of the Pod {holder}"),
                );
            }
        }
    }
}

fn list(ranges: &[IdRange]) -> String {
    ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::RecordDefect;

    fn range(first: u64, length: u64) -> IdRange {
        IdRange::new(first, length).unwrap()
    }

    fn block(number: u64) -> IdRange {
        range(number * 65_536, 65_536)
    }

    fn pod(name: &str) -> PodUid {
        PodUid::parse(name).unwrap()
    }

    fn record(name: &str, range: IdRange) -> OnDisk {
        OnDisk { pod: pod(name), content: Ok(Record::Range(range)) }
    }

    fn bad(name: &str, touched: &[IdRange]) -> OnDisk {
        let defect = RecordDefect::NotARecord("x".into());
        OnDisk { pod: pod(name), content: Err(RecordError { defect, touched: touched.to_vec() }) }
    }

    fn runs(name: &str, maps: &[IdRange]) -> LiveSandbox {
        LiveSandbox { pod: pod(name), id: format!("sandbox-{name}"), maps: maps.to_vec() }
    }

    #[test]
    fn e02_a_good_record_is_adopted_with_or_without_a_sandbox() {
        for live in [vec![], vec![runs("a", &[block(2)])]] {
            let plan = plan_recovery(&[record("a", block(2))], &live, &[]);
            assert_eq!(plan, Recovery { adopt: vec![(pod("a"), block(2))], ..Recovery::default() });
        }
    }

    #[test]
    fn e07_a_bad_record_quarantines_its_pod_and_no_other() {
        let plan = plan_recovery(&[bad("a", &[block(5)]), record("b", block(2))], &[], &[]);
        assert_eq!(plan.adopt, [(pod("b"), block(2))]);
        assert_eq!(plan.quarantine[0].1, [block(5)]);
        assert!(plan.findings[0].message.contains("until it is deleted"), "{:?}", plan.findings);
    }

    #[test]
    fn e07_a_bad_record_of_a_running_pod_is_healed_from_its_sandbox() {
        let plan = plan_recovery(&[bad("a", &[block(5)])], &[runs("a", &[block(2)])], &[]);
        assert_eq!((&plan.adopt, &plan.rewrite), (&vec![(pod("a"), block(2))], &vec![(pod("a"), block(2))]));
        assert_eq!(plan.reserve, [(block(5), Holder::Pod(pod("a")))]);
    }

    #[test]
    fn e15_of_two_equal_records_the_running_one_wins() {
        let records = [record("a", block(2)), record("b", block(2))];
        let plan = plan_recovery(&records, &[runs("b", &[block(2)])], &[]);
        assert_eq!(plan.adopt, [(pod("b"), block(2))]);
        assert_eq!(plan.quarantine[0].0, pod("a"));
    }

    #[test]
    fn a_record_that_overlaps_another_in_part_is_quarantined() {
        let plan = plan_recovery(&[record("a", range(131_072, 131_072)), record("b", block(3))], &[], &[]);
        assert_eq!((plan.adopt.len(), &plan.quarantine[0].0), (1, &pod("b")));
    }

    #[test]
    fn e18_a_sandbox_whose_record_is_gone_keeps_its_range() {
        let plan = plan_recovery(&[], &[runs("a", &[block(2)])], &[]);
        assert_eq!((&plan.adopt, &plan.rewrite), (&vec![(pod("a"), block(2))], &vec![(pod("a"), block(2))]));
    }

    #[test]
    fn e19_the_sandboxes_map_wins_and_both_ranges_stay_reserved() {
        let plan = plan_recovery(&[record("a", block(2))], &[runs("a", &[block(3)])], &[]);
        assert_eq!(plan.adopt, [(pod("a"), block(3))]);
        assert_eq!(plan.reserve, [(block(2), Holder::Pod(pod("a")))]);
        assert!(
            plan.findings[0].message.contains("131072-196607") && plan.findings[0].message.contains("196608")
        );
    }

    #[test]
    fn e23_a_terminal_record_is_given_up_when_nothing_runs() {
        let plan = plan_recovery(&[record("a", range(4_294_901_760, 65_536))], &[], &[]);
        assert_eq!((plan.adopt.len(), &plan.discard), (0, &vec![pod("a")]));
    }

    #[test]
    fn a_range_that_went_to_somebody_else_is_kept_only_while_it_runs() {
        let ann = [Reserved { range: range(131_072, 10), owner: "the user `ann`".into() }];
        assert_eq!(plan_recovery(&[record("a", block(2))], &[], &ann).discard, [pod("a")]);
        let plan = plan_recovery(&[record("a", block(2))], &[runs("a", &[block(2)])], &ann);
        assert_eq!(plan.adopt, [(pod("a"), block(2))]);
    }

    #[test]
    fn a_sandbox_with_two_ranges_is_quarantined_with_both() {
        let plan = plan_recovery(&[], &[runs("a", &[block(2)]), runs("a", &[block(4)])], &[]);
        assert_eq!(plan.quarantine[0].1, [block(2), block(4)]);
    }

    #[test]
    fn e21_ten_thousand_records_are_settled_in_order_n_log_n() {
        let records: Vec<_> = (2..10_002).map(|n| record(&format!("p{n}"), block(n))).collect();
        assert_eq!(plan_recovery(&records, &[], &[]).adopt.len(), 10_000);
    }

    proptest::proptest! {
        #[test]
        fn adopted_ranges_never_overlap(
            records in proptest::collection::vec((0usize..8, 1u64..12, 1u64..3), 0..12),
            live in proptest::collection::vec((0usize..8, 1u64..12), 0..8),
        ) {
            let records: Vec<_> =
                records.iter().map(|(p, b, n)| record(&format!("p{p}"), range(b * 65_536, n * 65_536))).collect();
            let live: Vec<_> = live.iter().map(|(p, b)| runs(&format!("p{p}"), &[block(*b)])).collect();
            let mut seen = BTreeSet::new();
            let records: Vec<_> = records.into_iter().filter(|r| seen.insert(r.pod.clone())).collect();
            let plan = plan_recovery(&records, &live, &[]);
            for (i, (_, a)) in plan.adopt.iter().enumerate() {
                proptest::prop_assert!(plan.adopt.iter().skip(i + 1).all(|(_, b)| !a.overlaps(*b)));
            }
            for sandbox in &live {
                let kept = plan.adopt.iter().any(|(_, r)| r.overlaps(sandbox.maps[0]));
                let held = plan.quarantine.iter().any(|(_, rs, _)| rs.contains(&sandbox.maps[0]));
                proptest::prop_assert!(kept || held, "{sandbox:?} has lost its range: {plan:?}");
            }
        }
    }
}
