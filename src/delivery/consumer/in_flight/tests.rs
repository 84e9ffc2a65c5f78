use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

const ANN: Owner = Owner(1);
const BOB: Owner = Owner(2);
const LEASE: Duration = Duration::from_secs(60);

fn at(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

/// Lends `offsets` to Ann, up to the last of them.
fn lend(queue: &mut InFlight, offsets: Range<u64>, now: Instant) -> LeaseId {
    queue.lend(offsets.clone(), offsets.end, ANN, now + LEASE)
}

fn again(queue: &mut InFlight, now: Instant) -> Vec<u64> {
    let lent = queue.lend_again(32, now, BOB, now + LEASE);
    lent.map_or(Vec::new(), |(_, again)| again.iter().map(|again| again.offset).collect())
}

#[test]
fn the_floor_moves_over_a_contiguous_run_alone() {
    let (mut queue, now) = (InFlight::new(10, false), Instant::now());
    let lease = lend(&mut queue, 10..14, now);
    assert!(queue.settle(11, lease));
    assert!(queue.settle(13, lease));
    assert!(queue.settle(10, lease));
    assert_eq!(queue.floor(), 12);
    assert!(!queue.settle(10, lease));
    assert!(queue.settle(12, lease));
    assert_eq!(queue.floor(), 14);
    assert_eq!((queue.floor(), queue.next()), (14, 14));
}

#[test]
fn what_a_filter_passes_over_is_done_with() {
    let (mut queue, now) = (InFlight::new(0, false), Instant::now());
    queue.lend([], 3, ANN, now + LEASE);
    assert_eq!((queue.floor(), queue.next()), (3, 3));
    let lease = queue.lend([5, 8], 10, ANN, now + LEASE);
    assert_eq!((queue.floor(), queue.next()), (5, 10));
    assert!(queue.settle(5, lease));
    assert_eq!(queue.floor(), 8);
    assert!(queue.settle(8, lease));
    assert_eq!(queue.floor(), 10);
}

#[test]
fn a_lease_that_ran_out_counts_no_more_once_its_message_is_given_out_again() {
    let (mut queue, now) = (InFlight::new(0, false), Instant::now());
    let first = lend(&mut queue, 0..2, now);
    queue.expire(at(now, 59));
    assert!(again(&mut queue, at(now, 59)).is_empty());
    queue.expire(at(now, 60));
    assert!(!queue.settle(0, first));
    // Each alone: one of them may be what hangs.
    let (second, lent) = queue.lend_again(32, at(now, 60), BOB, at(now, 120)).unwrap();
    assert_eq!(lent, [Again { offset: 0, failures: 1 }]);
    assert_eq!(again(&mut queue, at(now, 60)), [1]);
    assert!(!queue.settle(0, first), "it is somebody else's");
    assert!(!queue.give_back(0, first, now, true));
    assert!(queue.is_lent(0, second));
    assert!(queue.settle(0, second));
    assert_eq!(queue.floor(), 1);
}

#[test]
fn what_is_released_comes_back_at_once_and_has_not_failed() {
    let (mut queue, now) = (InFlight::new(0, false), Instant::now());
    let lease = lend(&mut queue, 0..3, now);
    let bobs = queue.lend(3..5, 5, BOB, now + LEASE);
    assert!(queue.settle(1, lease));
    queue.release(ANN, now);
    let (_, lent) = queue.lend_again(32, now, BOB, now + LEASE).unwrap();
    let expected = [0, 2].map(|offset| Again { offset, failures: 0 });
    assert_eq!(lent, expected);
    assert!(queue.settle(3, bobs));
}

#[test]
fn what_goes_back_for_later_waits_until_then() {
    let (mut queue, now) = (InFlight::new(0, false), Instant::now());
    let lease = lend(&mut queue, 0..3, now);
    assert!(queue.give_back(1, lease, at(now, 5), true));
    assert!(!queue.give_back(1, lease, at(now, 5), true));
    assert_eq!(queue.due(), Some(at(now, 5)));
    assert!(again(&mut queue, at(now, 4)).is_empty());
    assert_eq!(again(&mut queue, at(now, 5)), [1]);
}

#[test]
fn in_order_nothing_passes_what_is_lent_or_goes_back() {
    let (mut queue, now) = (InFlight::new(0, true), Instant::now());
    let lease = lend(&mut queue, 0..4, now);
    assert_eq!(queue.room(100), 0);
    assert!(queue.settle(0, lease));
    assert_eq!(queue.floor(), 1);
    assert!(queue.give_back(1, lease, at(now, 5), true));
    assert!(!queue.settle(2, lease), "it comes behind 1");
    assert_eq!(queue.room(100), 0);
    assert!(again(&mut queue, at(now, 4)).is_empty());
    let (alone, lent) = queue.lend_again(32, at(now, 5), BOB, at(now, 65)).unwrap();
    assert_eq!(lent, [Again { offset: 1, failures: 1 }]);
    assert!(queue.settle(1, alone));
    assert_eq!(queue.floor(), 2);
    assert_eq!(again(&mut queue, at(now, 5)), [2, 3]);
}

#[test]
fn in_order_only_the_first_one_of_a_lease_that_ran_out_has_failed() {
    let (mut queue, now) = (InFlight::new(0, true), Instant::now());
    lend(&mut queue, 0..3, now);
    queue.expire(at(now, 60));
    assert_eq!([0, 1, 2].map(|offset| queue.failures(offset)), [1, 0, 0]);
}

#[test]
fn what_is_not_kept_any_more_is_nobodys() {
    let (mut queue, now) = (InFlight::new(0, false), Instant::now());
    let lease = lend(&mut queue, 0..4, now);
    assert!(queue.give_back(1, lease, now, true));
    queue.skip_to(3);
    assert_eq!((queue.floor(), queue.next()), (3, 4));
    assert!(again(&mut queue, now).is_empty());
    assert!(!queue.settle(2, lease));
    assert!(queue.settle(3, lease));
    assert_eq!(queue.floor(), 4);
    queue.skip_to(9);
    assert_eq!((queue.floor(), queue.next()), (9, 9));
    queue.skip_to(5);
    assert_eq!((queue.floor(), queue.next()), (9, 9));
}

#[test]
fn what_goes_back_right_behind_what_is_not_kept_comes_again() {
    for ordered in [false, true] {
        let (mut queue, now) = (InFlight::new(0, ordered), Instant::now());
        let lease = lend(&mut queue, 0..4, now);
        queue.release(ANN, now);
        queue.skip_to(2);
        assert!(!queue.settle(2, lease));
        assert_eq!(again(&mut queue, now), [2, 3]);
    }
}

#[test]
fn the_span_is_bounded() {
    let (mut queue, now) = (InFlight::new(0, false), Instant::now());
    let lease = lend(&mut queue, 0..10, now);
    assert_eq!(queue.room(12), 2);
    assert!(queue.settle(3, lease));
    assert_eq!(queue.room(12), 2);
    assert!(queue.settle(0, lease));
    assert_eq!(queue.floor(), 1);
    assert_eq!(queue.room(12), 3);
}

#[derive(Debug, Clone)]
enum Op {
    Lend { count: u64, owner: u64, keep: u64 },
    Again { max: usize, owner: u64 },
    Settle { which: usize },
    GiveBack { which: usize, seconds: u64 },
    Release { owner: u64 },
    Wait { seconds: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (1u64..6, 0u64..2, any::<u64>()).prop_map(|(count, owner, keep)| Op::Lend {
            count,
            owner,
            keep
        }),
        (1usize..6, 0u64..2).prop_map(|(max, owner)| Op::Again { max, owner }),
        any::<usize>().prop_map(|which| Op::Settle { which }),
        (any::<usize>(), 0u64..40).prop_map(|(which, seconds)| Op::GiveBack { which, seconds }),
        (0u64..2).prop_map(|owner| Op::Release { owner }),
        (1u64..50).prop_map(|seconds| Op::Wait { seconds }),
    ]
}

/// What a message's state is, said the simple way.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Told {
    Done,
    Lent { lease: LeaseId, owner: u64, until: u64 },
    Back { since: u64 },
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Every message is with one holder, or done with, or on its way back; it is given out as long as it is
    /// not done with, and whoever lost it cannot settle it.
    #[test]
    fn each_message_has_one_holder_until_it_is_done_with(
        ops in prop::collection::vec(op(), 1..80), ordered in any::<bool>()
    ) {
        let start = Instant::now();
        let mut queue = InFlight::new(0, ordered);
        let mut told: BTreeMap<u64, Told> = BTreeMap::new();
        // Everything that was ever handed out, as handles that users keep.
        let mut handles: Vec<(u64, LeaseId)> = Vec::new();
        let (mut now, mut next) = (0u64, 0u64);
        for op in ops {
            let time = at(start, now);
            queue.expire(time);
            for told in told.values_mut() {
                if let Told::Lent { until, .. } = *told && until <= now {
                    *told = Told::Back { since: now };
                }
            }
            match op {
                Op::Lend { count, owner, keep } => {
                    let busy = told.values().any(|told| *told != Told::Done);
                    prop_assert_eq!(queue.room(1000) > 0, !(ordered && busy));
                    if queue.room(1000) == 0 {
                        continue;
                    }
                    prop_assert_eq!(queue.next(), next);
                    let found: Vec<u64> =
                        (next..next + count).filter(|at| keep >> (at % 64) & 1 == 1).collect();
                    let lease =
                        queue.lend(found.clone(), next + count, Owner(owner), time + LEASE);
                    for at in next..next + count {
                        let lent = Told::Lent { lease, owner, until: now + 60 };
                        told.insert(at, if found.contains(&at) { lent } else { Told::Done });
                    }
                    handles.extend(found.iter().map(|at| (*at, lease)));
                    next += count;
                }
                Op::Again { max, owner } => {
                    let lent = queue.lend_again(max, time, Owner(owner), time + LEASE);
                    let due = |told: &Told| matches!(told, Told::Back { since } if *since <= now);
                    let first = told.iter().find(|(_, told)| **told != Told::Done);
                    let expected = match ordered {
                        true => first.is_some_and(|(_, told)| due(told))
                            && !told.values().any(|told| matches!(told, Told::Lent { .. })),
                        false => told.values().any(due),
                    };
                    prop_assert_eq!(lent.is_some(), expected);
                    let Some((lease, again)) = lent else { continue };
                    prop_assert!(!again.is_empty() && again.len() <= max);
                    if ordered {
                        prop_assert_eq!(Some(&again[0].offset), first.map(|(at, _)| at));
                    }
                    for one in again {
                        let was = told.insert(
                            one.offset,
                            Told::Lent { lease, owner, until: now + 60 },
                        );
                        let was_back = matches!(was, Some(Told::Back { .. }));
                        prop_assert!(was_back);
                        handles.push((one.offset, lease));
                    }
                }
                Op::Settle { which } if !handles.is_empty() => {
                    let (offset, lease) = handles[which % handles.len()];
                    let holds = matches!(told[&offset], Told::Lent { lease: its, .. } if its == lease);
                    prop_assert_eq!(queue.settle(offset, lease), holds);
                    if holds {
                        told.insert(offset, Told::Done);
                    }
                }
                Op::GiveBack { which, seconds } if !handles.is_empty() => {
                    let (offset, lease) = handles[which % handles.len()];
                    let holds = matches!(told[&offset], Told::Lent { lease: its, .. } if its == lease);
                    let when = at(start, now + seconds);
                    prop_assert_eq!(queue.give_back(offset, lease, when, true), holds);
                    for (at, told) in &mut told {
                        let with_it = *at == offset || (ordered && *at > offset);
                        if holds && with_it
                            && matches!(told, Told::Lent { lease: its, .. } if *its == lease)
                        {
                            *told = Told::Back { since: now + seconds };
                        }
                    }
                }
                Op::Release { owner } => {
                    queue.release(Owner(owner), time);
                    for told in told.values_mut() {
                        if matches!(told, Told::Lent { owner: its, .. } if *its == owner) {
                            *told = Told::Back { since: now };
                        }
                    }
                }
                Op::Wait { seconds } => now += seconds,
                Op::Settle { .. } | Op::GiveBack { .. } => {}
            }
            let floor = told.iter().find(|(_, told)| **told != Told::Done).map_or(next, |(at, _)| *at);
            prop_assert_eq!(queue.floor(), floor);
        }
        // Given time, everything that is not done with is given out again, and then the queue is empty.
        now += 1000;
        let mut rounds = 0;
        while queue.floor() < next {
            let time = at(start, now);
            queue.expire(time);
            let lent = queue.lend_again(8, time, ANN, time + LEASE);
            prop_assert!(lent.is_some(), "{:?}", queue);
            let (lease, again) = lent.unwrap();
            for one in again {
                prop_assert!(queue.settle(one.offset, lease));
            }
            rounds += 1;
            prop_assert!(rounds < 10_000);
        }
        prop_assert_eq!(queue.due(), None);
    }
}
