//! Failures of loads that are remembered: the getter does not run again for some time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use larder::{Clock, Context, ErrorKind, GetOutcome, PeerResponse, getter_fn};

use crate::common::*;
use crate::freshness::{Origin, fresh_for_ten, owner_and_copy, value};

#[test]
fn negative_ttl_and_error_ttl_spare_loads_until_they_end_or_the_key_is_removed() {
    for is_missing in [true, false] {
        let (clock, origin) = (Clock::manual(), Origin::default());
        let group = origin.group(
            fresh_for_ten(&clock)
                .negative_ttl(seconds(20))
                .error_ttl(seconds(20)),
        );
        origin.fails.store(true, SeqCst);
        origin.is_missing.store(is_missing, SeqCst);
        let want = match is_missing {
            true => ErrorKind::NotFound,
            false => ErrorKind::Getter,
        };
        let failed = |loads| {
            for _ in 0..10 {
                assert_eq!(kind(group.get("key")), want);
                let served = group.serve_peer(&Context::background(), "key");
                assert_eq!(kind(served), want);
            }
            assert_eq!(origin.loads(), loads);
        };
        failed(1);
        clock.advance(seconds(19));
        failed(1);
        clock.advance(seconds(1));
        failed(2);
        group.invalidate("key");
        failed(3);
        group.clear_local();
        failed(4);
        origin.fails.store(false, SeqCst);
        origin.is_missing.store(false, SeqCst);
        clock.advance(seconds(20));
        assert_eq!(value(&group), "4");
    }
}

#[test]
fn failure_of_a_load_that_a_removal_overtook_is_not_remembered() {
    for is_missing in [true, false] {
        let (clock, origin) = (Clock::manual(), Origin::default());
        let builder = fresh_for_ten(&clock).negative_ttl(seconds(20));
        let group = origin.group(builder.error_ttl(seconds(20)));
        origin.holds.store(true, SeqCst);
        origin.fails.store(true, SeqCst);
        origin.is_missing.store(is_missing, SeqCst);
        let failing = start({
            let group = group.clone();
            move || group.get("key")
        });
        eventually("the getter runs", || origin.loads() == 1);
        group.invalidate("key");
        origin.gate.open();
        assert!(failing.end().is_err());
        origin.fails.store(false, SeqCst);
        origin.is_missing.store(false, SeqCst);
        assert_eq!(value(&group), "1");
    }
}

/// If the first failure were not forgotten, the second one would count as a failure to renew a cached value,
/// which is remembered for 30 s.
#[test]
fn failure_is_forgotten_once_a_load_succeeds() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let builder = fresh_for_ten(&clock).stale_if_error(seconds(5));
    let group = origin.group(builder.error_ttl(seconds(20)));
    let fails = |loads| {
        origin.fails.store(true, SeqCst);
        assert_eq!(kind(group.get("key")), ErrorKind::Getter);
        assert_eq!(kind(group.get("key")), ErrorKind::Getter);
        assert_eq!(origin.loads(), loads);
        origin.fails.store(false, SeqCst);
        clock.advance(seconds(20));
    };
    fails(1);
    assert_eq!(value(&group), "1");
    clock.advance(seconds(60));
    assert_eq!(group.purge_expired(), 1);
    fails(3);
    assert_eq!(value(&group), "3");
}

#[test]
fn error_ttl_holds_for_a_key_whose_value_is_gone() {
    for is_refreshed_early in [true, false] {
        let (clock, origin) = (Clock::manual(), Origin::default());
        let builder = fresh_for_ten(&clock).error_ttl(seconds(20));
        let group = origin.group(match is_refreshed_early {
            true => builder.refresh_at(0.5),
            false => builder.stale_while_revalidate(seconds(10)),
        });
        assert_eq!(value(&group), "0");
        origin.fails.store(true, SeqCst);
        clock.advance(seconds(if is_refreshed_early { 5 } else { 10 }));
        assert_eq!(value(&group), "0");
        eventually("the refresh fails", || {
            matches!(group.explain("key").outcome, GetOutcome::Cached)
        });
        clock.advance(seconds(40));
        for loads in 3..5 {
            // A get may join the flight of the refresh, which ends after the failure is recorded.
            eventually("it is loaded", || {
                assert_eq!(kind(group.get("key")), ErrorKind::Getter);
                origin.loads() == loads
            });
            for _ in 0..10 {
                assert_eq!(kind(group.get("key")), ErrorKind::Getter);
            }
            assert_eq!(origin.loads(), loads);
            clock.advance(seconds(20));
        }
    }
}

/// The getter stops at the end of its caller's context, while other callers have time left.
#[test]
fn error_of_a_load_whose_caller_left_is_not_remembered() {
    for has_value in [true, false] {
        let (clock, loads) = (Clock::manual(), Count::default());
        let counted = loads.clone();
        let builder = fresh_for_ten(&clock)
            .stale_if_error(seconds(5))
            .error_ttl(seconds(60))
            .max_loader_threads(1);
        let group = builder
            .build(getter_fn(move |ctx, key, dest| {
                counted.add(1);
                while key == "key" && ctx.deadline().is_some() {
                    if let Some(ended) = ctx.err() {
                        return Err(ended.into());
                    }
                    std::thread::yield_now();
                }
                Ok(dest.set_str(key)?)
            }))
            .expect("a group");
        let left = if has_value {
            assert_eq!(value(&group), "key");
            clock.advance(seconds(10));
            assert_eq!(
                group.get_with(&within(millis(5)), "key").expect("stale"),
                "key"
            );
            6
        } else {
            let late = group.get_with(&within(millis(5)), "key");
            assert_eq!(kind(late), ErrorKind::DeadlineExceeded);
            0
        };
        eventually("the only loader thread is idle again", || {
            group.get_with(&within(PATIENCE), "other").is_ok()
        });
        clock.advance(seconds(left));
        let before = loads.get();
        assert_eq!(value(&group), "key");
        assert_eq!(loads.get(), before + 1);
    }
}

/// The owner had no thread or no run left, which is no failure of the key.
#[test]
fn overload_of_the_owner_is_not_remembered() {
    let (clock, is_busy) = (Clock::manual(), Arc::new(AtomicBool::new(false)));
    let busy = is_busy.clone();
    let owner = FakePeer::new(move |_, _| match busy.load(SeqCst) {
        true => Err(ErrorKind::Overloaded.into()),
        false => Ok(PeerResponse::new("value")),
    });
    let (getter, loads) = echo();
    let group = among("busy owner", all_keys_at(&[&owner]))
        .clock(clock.clone())
        .time_to_live(seconds(10))
        .stale_if_error(seconds(5))
        .build(getter)
        .expect("a group");
    assert_eq!(group.get("key").expect("a value"), "value");
    is_busy.store(true, SeqCst);
    clock.advance(seconds(11));
    assert_eq!(group.get("key").expect("the old value"), "value");
    clock.advance(seconds(5));
    for calls in 3..5 {
        assert_eq!(kind(group.get("key")), ErrorKind::Overloaded);
        assert_eq!((owner.calls(), loads.get()), (calls, 0));
    }
}

#[test]
fn errors_are_not_remembered_by_default() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(fresh_for_ten(&clock));
    origin.fails.store(true, SeqCst);
    for loads in 1..4 {
        assert_eq!(kind(group.get("key")), ErrorKind::Getter);
        assert_eq!(origin.loads(), loads);
    }
}

#[test]
fn absence_is_remembered_by_the_owner_alone() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let (owner, copy) =
        owner_and_copy(&origin, &clock, |builder| builder.negative_ttl(seconds(20)));
    origin.is_missing.store(true, SeqCst);
    assert_eq!(kind(owner.get("key")), ErrorKind::NotFound);
    origin.is_missing.store(false, SeqCst);
    clock.advance(seconds(19));
    assert_eq!(kind(copy.get("key")), ErrorKind::NotFound);
    clock.advance(seconds(1));
    assert_eq!(value(&copy), "1");
}
