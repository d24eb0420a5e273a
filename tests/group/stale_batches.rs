//! Stale values among the keys of a get of several keys.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use larder::{BoxError, Clock, Context, ErrorKind, Result, Sink};

use crate::common::*;
use crate::freshness::{Origin, fresh_for_ten};

#[test]
fn stale_values_of_several_keys_are_loaded_by_one_call_or_served() {
    let (clock, calls, fails) = (
        Clock::manual(),
        Count::default(),
        Arc::new(AtomicBool::new(false)),
    );
    let (counted, failing) = (calls.clone(), fails.clone());
    let group = fresh_for_ten(&clock)
        .stale_if_error(seconds(100))
        .build_bulk(larder::bulk_fn(move |_, keys, sinks| {
            counted.add(1);
            if failing.load(SeqCst) {
                return Err("the origin is down".into());
            }
            for (key, sink) in keys.iter().zip(sinks) {
                sink.set_str(&format!("{key} {}", counted.get()))?;
            }
            Ok(())
        }))
        .expect("a group");
    let get = |keys: &[&str]| -> Vec<String> {
        let values = group.get_many(&Context::background(), keys);
        let text = |value: Result<larder::ByteView>| {
            value.expect("a value").to_str().expect("text").to_owned()
        };
        values.into_iter().map(text).collect()
    };
    assert_eq!(get(&["a", "b"]), ["a 1", "b 1"]);
    clock.advance(seconds(10));
    assert_eq!(
        get(&["a", "new", "b"]),
        ["a 2", "new 2", "b 2"],
        "one call for all"
    );
    clock.advance(seconds(10));
    fails.store(true, SeqCst);
    assert_eq!(get(&["a", "b"]), ["a 2", "b 2"]);
    assert_eq!((calls.get(), group.stats().stale_hits), (3, 2));
    assert_eq!(get(&["a", "b"]), ["a 2", "b 2"], "no attempt within 30 s");
    assert_eq!((calls.get(), group.stats().stale_hits), (3, 4));
    clock.advance(seconds(100));
    let over = group.get_many(&Context::background(), &["a", "b"]);
    over.into_iter()
        .for_each(|result| assert_eq!(kind(result), ErrorKind::Getter));
}

#[test]
fn soft_timeout_holds_for_several_keys_together() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(
        fresh_for_ten(&clock)
            .stale_if_error(seconds(100))
            .soft_timeout(millis(50)),
    );
    let keys = ["a", "b", "c", "d"];
    let get = || group.get_many(&Context::background(), &keys);
    let first = get();
    clock.advance(seconds(10));
    origin.holds.store(true, SeqCst);
    let (time, second) = timed(get);
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(
            first.as_ref().expect("loaded"),
            second.as_ref().expect("stale")
        );
    }
    assert!(time >= millis(50));
    assert_eq!(group.stats().stale_hits, 4);
    eventually("a load of each key", || origin.loads() == 8);
    // The loads go on, and each get joins them.
    let third = start({
        let group = group.clone();
        move || group.get_many(&Context::background(), &keys)
    });
    third
        .end()
        .iter()
        .for_each(|result| assert!(result.is_ok()));
    assert_eq!(origin.loads(), 8);
    origin.gate.open();
    eventually("newer values", || {
        let values = group.get_many(&Context::background(), &keys);
        values
            .iter()
            .zip(&first)
            .all(|(new, old)| new.as_ref().ok() != old.as_ref().ok())
    });
}

#[test]
fn value_whose_allowance_ends_during_a_failed_load_is_not_served() {
    let clock = Clock::manual();
    let (slow, counted) = (clock.clone(), Count::default());
    let getter = move |_: &Context, key: &str, dest: &mut dyn Sink| -> Result<(), BoxError> {
        counted.add(1);
        if counted.get() == 1 {
            return Ok(dest.set_str(key)?);
        }
        slow.advance(seconds(5));
        Err("the origin is down".into())
    };
    let builder = fresh_for_ten(&clock).stale_if_error(seconds(5));
    let group = builder.build(getter).expect("a group");
    group.get("key").expect("a value");
    clock.advance(seconds(10));
    assert_eq!(kind(group.get("key")), ErrorKind::Getter);

    let (slow, counted) = (clock.clone(), Count::default());
    let load = larder::bulk_fn(move |_, keys, sinks| {
        counted.add(1);
        if counted.get() > 1 {
            slow.advance(seconds(5));
            return Err("the origin is down".into());
        }
        keys.iter()
            .zip(sinks)
            .try_for_each(|(key, sink)| sink.set_str(key))?;
        Ok(())
    });
    let builder = fresh_for_ten(&clock).stale_if_error(seconds(5));
    let group = builder.build_bulk(load).expect("a group");
    let get = || group.get_many(&Context::background(), &["a", "b"]);
    assert!(get().iter().all(Result::is_ok));
    clock.advance(seconds(10));
    get()
        .into_iter()
        .for_each(|result| assert_eq!(kind(result), ErrorKind::Getter));
}

#[test]
fn stale_values_of_several_keys_do_not_wait_for_a_permit() {
    for is_bulk in [false, true] {
        let (clock, gate, loads) = (Clock::manual(), Gate::new(), Count::default());
        let (held, counted) = (gate.clone(), loads.clone());
        let load = move |key: &str| {
            counted.add(1);
            if key == "held" {
                held.pass();
            }
            key.to_owned()
        };
        let builder = fresh_for_ten(&clock).stale_if_error(seconds(100));
        let builder = builder.max_concurrent_loads(1);
        let group = match is_bulk {
            true => builder.build_bulk(larder::bulk_fn(move |_, keys, sinks| {
                for (key, sink) in keys.iter().zip(sinks) {
                    sink.set_str(&load(key))?;
                }
                Ok(())
            })),
            false => builder.build_with(move |_, key| Ok::<_, larder::Error>(load(key))),
        };
        let group = group.expect("a group");
        let keys = ["a", "b", "c"];
        let get = move |group: &larder::Group| group.get_many(&Context::background(), &keys);
        get(&group)
            .into_iter()
            .for_each(|value| drop(value.expect("loaded")));
        clock.advance(seconds(10));
        let other = start({
            let group = group.clone();
            move || group.get("held")
        });
        eventually("the only permit is taken", || loads.get() == 4);
        let stale = start({
            let group = group.clone();
            move || get(&group)
        });
        for (key, value) in keys.iter().zip(stale.end()) {
            assert_eq!(value.expect("the old value"), *key);
        }
        assert_eq!((loads.get(), group.stats().stale_hits), (4, 3));
        gate.open();
        other.end().expect("a value");
    }
}
