//! Gets that wait for a load no longer than a soft time-out, and then return the old value.

use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use larder::{ByteView, Clock, Context, ErrorKind, Group, Result, getter_fn};

use crate::common::*;
use crate::freshness::{Origin, fresh_for_ten, value};

#[test]
fn soft_timeout_returns_the_old_value_and_the_load_goes_on() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(
        fresh_for_ten(&clock)
            .stale_if_error(seconds(100))
            .soft_timeout(millis(20)),
    );
    assert_eq!(value(&group), "0");
    clock.advance(seconds(10));
    origin.holds.store(true, SeqCst);
    for _ in 0..3 {
        let begun = Instant::now();
        assert_eq!(value(&group), "0");
        let took = begun.elapsed();
        assert!(took >= millis(20), "{took:?}");
    }
    assert_eq!(origin.loads(), 2, "one load");
    assert_eq!(group.stats().stale_hits, 3);
    origin.gate.open();
    eventually("the new value", || value(&group) == "1");
    assert_eq!(origin.loads(), 2);

    // A quick load is waited for.
    clock.advance(seconds(10));
    origin.holds.store(false, SeqCst);
    eventually("the next value", || value(&group) == "2");
}

#[test]
fn value_past_its_allowance_is_waited_for_in_spite_of_the_soft_timeout() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(
        fresh_for_ten(&clock)
            .stale_if_error(seconds(5))
            .soft_timeout(millis(1)),
    );
    assert_eq!(value(&group), "0");
    clock.advance(seconds(15));
    origin.holds.store(true, SeqCst);
    let late = group.get_with(&within(millis(50)), "key");
    assert_eq!(kind(late), ErrorKind::DeadlineExceeded);
    origin.gate.open();
    eventually("the new value", || value(&group) == "1");
}

/// The old value is over at the end of the soft time-out. The getter fails, or is slow.
#[test]
fn get_whose_old_value_ends_in_the_soft_timeout_waits_for_the_load() {
    const SOFT: Duration = Duration::from_millis(20);
    type Get = fn(&Group) -> Result<ByteView>;
    let gets: [Get; 3] = [
        |group| group.get("key"),
        |group| group.get_many(&Context::background(), &["key"]).remove(0),
        |group| {
            let answer = group.serve_peer(&Context::background(), "key");
            answer.map(|answer| answer.value)
        },
    ];
    for (get, fails) in gets.into_iter().flat_map(|get| [(get, true), (get, false)]) {
        let (clock, loads) = (Clock::manual(), Count::default());
        let (ends, counted) = (clock.clone(), loads.clone());
        let builder = fresh_for_ten(&clock).stale_if_error(seconds(5));
        let group = builder
            .soft_timeout(SOFT)
            .build(getter_fn(move |_, _, dest| {
                counted.add(1);
                if counted.get() > 1 {
                    ends.advance(seconds(5));
                    thread::sleep(5 * SOFT);
                    if fails {
                        return Err("the origin is down".into());
                    }
                }
                Ok(dest.set_str(&counted.to_string())?)
            }))
            .expect("a group");
        assert_eq!(value(&group), "1");
        clock.advance(seconds(10));
        match get(&group) {
            Ok(value) => assert_eq!((&value[..], fails), (&b"2"[..], false)),
            Err(error) => assert_eq!((error.kind(), fails), (ErrorKind::Getter, true)),
        }
        assert_eq!(loads.get(), 2, "one load");
    }
}
