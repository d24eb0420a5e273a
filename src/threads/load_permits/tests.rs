//! Tests of the permits: their number, their order, and loads that leave.

use std::thread;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::sync::eventually;

const MAX_WAIT: Duration = Duration::from_secs(3600);

/// A deadline that no test reaches, the earlier the smaller `n` is.
fn by(n: u64) -> Urgency {
    let now = Instant::now();
    Urgency::By(now + Duration::from_secs(3600 * (n + 1)))
}

fn is_granted(queued: &QueuedLoad) -> bool {
    let state = queued.permits.state.lock();
    state.waiting[queued.class as usize]
        .find(queued.place)
        .is_err()
}

/// The permit of a load that waited, if it has one.
fn take(mut queued: QueuedLoad) -> Option<LoadPermit> {
    queued.wait(Instant::now(), &Context::background())
}

#[test]
fn load_with_the_earliest_deadline_gets_the_next_permit() {
    let permits = LoadPermits::new(1, MAX_WAIT);
    let running = permits.try_acquire(LoadClass::Own);
    assert!(permits.try_acquire(LoadClass::Own).is_none());
    let urgencies = [
        Urgency::Background,
        by(3),
        by(1),
        by(2),
        Urgency::Resumed,
        Urgency::Background,
    ];
    let mut queued = urgencies.map(|urgency| Some(permits.queue(LoadClass::Own, urgency)));
    drop(running);
    for next in [4, 2, 3, 1, 0, 5] {
        let granted = |load: &Option<QueuedLoad>| load.as_ref().is_some_and(is_granted);
        assert_eq!(queued.iter().position(granted), Some(next));
        let permit = queued[next].take().and_then(take);
        drop(permit.expect("it is granted"));
    }
    assert_eq!(permits.usage(), (0, 0));
}

#[test]
fn loads_in_place_of_an_owner_have_half_of_the_permits() {
    for (max, half) in [(1, 1), (2, 1), (3, 2), (8, 4)] {
        let permits = &LoadPermits::new(max, MAX_WAIT);
        let acquire = |class| std::iter::from_fn(move || permits.try_acquire(class));
        let fallback: Vec<_> = acquire(LoadClass::Fallback).collect();
        assert_eq!(fallback.len(), half, "of {max}");
        let waiting = permits.queue(LoadClass::Fallback, by(0));
        assert_eq!(
            acquire(LoadClass::Own).collect::<Vec<_>>().len(),
            max - half
        );
        assert!(!is_granted(&waiting));
        drop(fallback);
        assert!(is_granted(&waiting));
    }
}

#[test]
fn load_that_leaves_hands_its_permit_to_the_next() {
    let permits = LoadPermits::new(1, MAX_WAIT);
    let running = permits.try_acquire(LoadClass::Own);
    let [first, second] = [by(1), by(2)].map(|by| permits.queue(LoadClass::Own, by));
    drop(running);
    assert!(is_granted(&first) && !is_granted(&second));
    drop(first);
    assert!(take(second).is_some());
    assert_eq!(permits.usage(), (0, 0));
}

#[test]
fn load_whose_time_is_over_keeps_its_place_until_it_leaves() {
    let permits = LoadPermits::new(1, MAX_WAIT);
    let _running = permits.try_acquire(LoadClass::Own);
    let mut queued = permits.queue(LoadClass::Own, by(1));
    for _ in 0..2 {
        let soon = Instant::now() + Duration::from_millis(1);
        assert!(queued.wait(soon, &Context::background()).is_none());
        assert_eq!(permits.usage(), (1, 1));
    }
    drop(queued);
    assert_eq!(permits.usage(), (1, 0));
}

#[test]
fn cancelled_load_stops_waiting() {
    let permits = LoadPermits::new(1, MAX_WAIT);
    let _running = permits.try_acquire(LoadClass::Own);
    let (ctx, canceller) = Context::background().with_cancel();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let Urgency::By(until) = by(1) else {
                unreachable!("`by` makes deadlines");
            };
            let mut queued = permits.queue(LoadClass::Own, by(1));
            queued.wait(until, &ctx).is_some()
        });
        eventually(|| permits.usage().1 > 0);
        canceller.cancel();
        assert!(!waiting.join().expect("no panic"));
    });
    assert_eq!(ctx.err().map(|e| e.kind()), Some(ErrorKind::Cancelled));
}

#[derive(Clone, Debug)]
enum Step {
    Arrive(bool, u64),
    /// A load that waits, or has been given a permit, leaves.
    Leave(prop::sample::Index),
    /// A load that has a permit runs and ends.
    End(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (any::<bool>(), 0_u64..8).prop_map(|(own, by)| Step::Arrive(own, by)),
        1 => any::<prop::sample::Index>().prop_map(Step::Leave),
        2 => any::<prop::sample::Index>().prop_map(Step::End),
    ]
}

/// Which loads have a permit by the rules: those that had one, and then, by deadline, as many as there is
/// room for. A load is (class, deadline, number).
fn granted(max: usize, had: &[bool], loads: &[(LoadClass, u64, u64)]) -> Vec<bool> {
    let mut has = had.to_vec();
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by_key(|&at| (loads[at].1, loads[at].2));
    for at in order {
        let taken = has.iter().filter(|has| **has).count();
        let in_class = |at: usize| loads[at].0 == LoadClass::Fallback;
        let fallback = (0..loads.len()).filter(|&at| has[at] && in_class(at));
        let has_room = !in_class(at) || fallback.count() < max.div_ceil(2);
        has[at] |= taken < max && has_room;
    }
    has
}

proptest! {
    #[test]
    fn permits_go_by_deadline_whatever_comes_and_leaves(
        max in 1_usize..5,
        steps in vec(step(), 1..60),
    ) {
        let permits = LoadPermits::new(max, MAX_WAIT);
        let base = Instant::now() + Duration::from_secs(3600);
        let mut queued: Vec<QueuedLoad> = Vec::new();
        let (mut loads, mut has): (Vec<(LoadClass, u64, u64)>, Vec<bool>) = Default::default();
        for (number, step) in (0..).zip(steps) {
            match step {
                Step::Arrive(own, by) => {
                    let class = if own { LoadClass::Own } else { LoadClass::Fallback };
                    let urgency = Urgency::By(base + Duration::from_secs(by));
                    queued.push(permits.queue(class, urgency));
                    loads.push((class, by, number));
                    has.push(false);
                }
                Step::Leave(at) if !queued.is_empty() => {
                    let at = at.index(queued.len());
                    loads.remove(at);
                    has.remove(at);
                    drop(queued.remove(at));
                }
                Step::End(at) if has.contains(&true) => {
                    let with: Vec<usize> = (0..has.len()).filter(|at| has[*at]).collect();
                    let at = with[at.index(with.len())];
                    loads.remove(at);
                    has.remove(at);
                    prop_assert!(take(queued.remove(at)).is_some());
                }
                Step::Leave(_) | Step::End(_) => {}
            }
            has = granted(max, &has, &loads);
            let real: Vec<bool> = queued.iter().map(is_granted).collect();
            prop_assert_eq!(&real, &has);
        }
        drop(queued);
        prop_assert_eq!(permits.usage(), (0, 0));
    }
}
