//! The IDs are those of the behaviour's specification (allocation, D01-D13). Two of them do not apply: D11, since the
//! alpha's limit of 1024 live Pods went with the alpha (a full pool is D03's), and D12, since there is one order, next-fit.

use proptest::prelude::*;

use super::*;
use crate::pool::{IdsPerPod, Machine, PoolConfig};

fn range(first: u64, length: u64) -> IdRange {
    IdRange::new(first, length).unwrap()
}

fn pod(number: usize) -> PodUid {
    PodUid::parse(&format!("pod-{number}")).unwrap()
}

fn pool_of(blocks: u64, reserved: Vec<Reserved>) -> Pool {
    let whole = range(65_536, blocks * 65_536);
    let machine = Machine { kubelet: Some((vec![whole], vec![whole])), reserved };
    Pool::plan(PoolConfig { ids_per_pod: IdsPerPod::default(), max_pods: 0, machine }).unwrap()
}

fn default_pool(reserved: Vec<Reserved>) -> Pool {
    let machine = Machine { kubelet: None, reserved };
    Pool::plan(PoolConfig { ids_per_pod: IdsPerPod::default(), max_pods: 110, machine }).unwrap()
}

fn first_of(ledger: &mut Ledger, number: usize) -> u32 {
    ledger.allocate(&pod(number)).unwrap().first()
}

#[test]
fn d01_the_first_two_pods_of_a_fresh_node_get_131072_and_196608() {
    let mut ledger = Ledger::new(default_pool(Vec::new()), None);
    assert_eq!((first_of(&mut ledger, 1), first_of(&mut ledger, 2)), (131_072, 196_608));
}

#[test]
fn one_ordinary_debian_user_moves_the_first_pod_to_196608() {
    let ann = Reserved { range: range(100_000, 65_536), owner: "the user `ann` in /etc/subuid".into() };
    let mut ledger = Ledger::new(default_pool(vec![ann]), None);
    assert_eq!(first_of(&mut ledger, 1), 196_608);
}

#[test]
fn d02_a_thousand_pods_get_distinct_aligned_blocks() {
    let mut ledger = Ledger::new(default_pool(Vec::new()), None);
    let firsts: HashSet<u32> = (0..1000).map(|n| first_of(&mut ledger, n)).collect();
    assert_eq!(firsts.len(), 1000);
    assert!(firsts.iter().all(|first| first % 65_536 == 0 && *first >= 131_072 && *first < 4_294_901_760));
}

#[test]
fn d03_d04_a_full_pool_refuses_and_gives_the_freed_block() {
    let mut ledger = Ledger::new(pool_of(110, Vec::new()), None);
    for number in 0..110 {
        first_of(&mut ledger, number);
    }
    let text = ledger.allocate(&pod(110)).unwrap_err().to_string();
    assert!(text.contains("no empty slot") && text.contains("110 blocks"), "{text}");
    assert_eq!((ledger.reservations().count(), ledger.free_blocks()), (110, 0));
    let freed = ledger.release(&pod(7));
    assert_eq!(ledger.allocate(&pod(110)), Ok(freed[0]));
}

#[test]
fn a_range_just_freed_is_reused_last() {
    let mut ledger = Ledger::new(pool_of(3, Vec::new()), None);
    let first = first_of(&mut ledger, 0);
    ledger.release(&pod(0));
    assert_ne!(first_of(&mut ledger, 1), first);
    assert_ne!(first_of(&mut ledger, 2), first);
    assert_eq!(first_of(&mut ledger, 3), first);
}

#[test]
fn d07_d08_allocation_and_release_can_be_repeated() {
    let mut ledger = Ledger::new(pool_of(4, Vec::new()), None);
    let range = ledger.allocate(&pod(0)).unwrap();
    assert_eq!(ledger.allocate(&pod(0)), Ok(range));
    let other = ledger.allocate(&pod(1)).unwrap();
    assert_eq!((ledger.release(&pod(0)), ledger.release(&pod(0))), (vec![range], Vec::new()));
    assert_eq!(ledger.mapping_of(&pod(1)), Some(other));
}

#[test]
fn a_lost_cursor_goes_on_after_the_highest_record() {
    let mut ledger = Ledger::new(default_pool(Vec::new()), None);
    ledger.adopt(&pod(0), range(655_360, 65_536)).unwrap();
    assert_eq!(first_of(&mut ledger, 1), 720_896);
    let mut ledger = Ledger::new(default_pool(Vec::new()), Some(327_680));
    assert_eq!(first_of(&mut ledger, 1), 327_680);
}

#[test]
fn a_terminated_pod_gets_nothing_until_it_is_forgotten() {
    let mut ledger = Ledger::new(pool_of(2, Vec::new()), None);
    ledger.terminate(&pod(0));
    assert_eq!(ledger.allocate(&pod(0)), Err(AllocateError::Terminated(pod(0))));
    ledger.forget(&pod(0));
    ledger.allocate(&pod(0)).unwrap();
}

#[test]
fn a_quarantined_pod_keeps_every_block_that_its_record_touches() {
    let mut ledger = Ledger::new(pool_of(3, Vec::new()), None);
    ledger.quarantine(&pod(0), &[range(70_000, 65_536)], "bad".into());
    assert_eq!(first_of(&mut ledger, 1), 196_608);
    assert!(matches!(ledger.allocate(&pod(2)), Err(AllocateError::Exhausted { .. })));
    assert!(matches!(ledger.allocate(&pod(0)), Err(AllocateError::Quarantined { .. })));
    ledger.release(&pod(0));
    ledger.allocate(&pod(0)).unwrap();
}

#[test]
fn adoption_refuses_what_another_holds_and_what_differs() {
    let mut ledger = Ledger::new(pool_of(9, Vec::new()), None);
    ledger.adopt(&pod(0), range(131_072, 131_072)).unwrap();
    ledger.adopt(&pod(0), range(131_072, 131_072)).unwrap();
    assert!(matches!(ledger.adopt(&pod(1), range(196_608, 65_536)), Err(AdoptError::Taken { .. })));
    assert!(matches!(ledger.adopt(&pod(0), range(327_680, 65_536)), Err(AdoptError::Different { .. })));
}

#[test]
fn what_another_instance_holds_is_skipped() {
    let mut ledger = Ledger::new(pool_of(3, Vec::new()), None);
    ledger.set_foreign(vec![Reserved { range: range(65_536, 131_072), owner: "kakoi-2".into() }]);
    assert_eq!(ledger.free_blocks(), 1);
    assert_eq!(first_of(&mut ledger, 0), 196_608);
}

#[test]
fn undo_leaves_no_trace_and_the_same_block_comes_next() {
    let mut ledger = Ledger::new(pool_of(3, Vec::new()), None);
    let range = ledger.allocate(&pod(0)).unwrap();
    ledger.undo(&pod(0), range);
    assert_eq!(ledger.reservations().count(), 0);
    assert_eq!(ledger.allocate(&pod(1)), Ok(range));
}

#[derive(Clone, Debug)]
enum Step {
    Allocate(usize),
    Release(usize),
    Quarantine(usize, u64, u64),
    Restart { keep_cursor: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..12).prop_map(Step::Allocate),
        3 => (0usize..12).prop_map(Step::Release),
        1 => (12usize..16, 0u64..900_000, 1u64..200_000).prop_map(|(p, f, l)| Step::Quarantine(p, f, l)),
        1 => any::<bool>().prop_map(|keep_cursor| Step::Restart { keep_cursor }),
    ]
}

/// A new ledger with what the old one's records on disk would say.
fn restarted(old: &Ledger, keep_cursor: bool) -> Ledger {
    let mut new = Ledger::new(old.pool().clone(), keep_cursor.then(|| old.cursor()));
    for (pod, range) in &old.mappings {
        new.adopt(pod, *range).unwrap();
    }
    for (pod, reason) in old.quarantined() {
        let ranges: Vec<_> = old.reservations().filter(|r| r.holder.pod() == pod).map(|r| r.range).collect();
        new.quarantine(pod, &ranges, reason.to_owned());
    }
    new
}

proptest! {
    /// D13: after any sequence, live intervals are disjoint and the ledger equals a plain model.
    #[test]
    fn d13_live_intervals_are_always_disjoint(steps in proptest::collection::vec(step(), 1..80)) {
        let reserved = vec![Reserved { range: range(200_000, 10), owner: "an account".into() }];
        let mut ledger = Ledger::new(pool_of(10, reserved), None);
        let mut model: HashMap<PodUid, IdRange> = HashMap::new();
        for step in steps {
            match step {
                Step::Allocate(n) => {
                    let free = ledger.free_blocks();
                    let given = ledger.allocate(&pod(n)).ok();
                    prop_assert!(given.is_some() || free == 0);
                    let had = given.and_then(|range| model.insert(pod(n), range));
                    prop_assert!(had.is_none() || had == given);
                }
                Step::Release(n) => { ledger.release(&pod(n)); model.remove(&pod(n)); }
                Step::Quarantine(n, first, length) => ledger.quarantine(&pod(n), &[range(first, length)], "x".into()),
                Step::Restart { keep_cursor } => ledger = restarted(&ledger, keep_cursor),
            }
            let mut live: Vec<_> = model.values().copied().collect();
            live.sort_unstable();
            prop_assert!(live.windows(2).all(|pair| !pair[0].overlaps(pair[1])));
            prop_assert!(live.iter().all(|r| !r.contains(200_005) && r.first() >= 65_536));
            prop_assert_eq!(&ledger.mappings, &model);
        }
    }
}
