//! Eviction listeners: the calls that they delay, and the notifications that they get.

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};

use larder::{Clock, Context, ErrorKind, Eviction, Group, RemovalCause, Sink};

use crate::common::*;

/// A capacity for two entries of a few bytes, not for three.
fn room_for_two() -> u64 {
    let group = alone("one-entry")
        .build(|_: &Context, key: &str, dest: &mut dyn Sink| Ok(dest.set_str(key)?));
    let group = group.expect("a new group");
    group.get("a").expect("a value");
    2 * group.weighted_size() + group.weighted_size() / 2
}

/// A getter whose value is the key. For "c" it first opens one gate and waits at the other.
fn paused_at_c() -> (impl larder::Getter, Gate, Gate) {
    let (in_getter, go_on) = (Gate::new(), Gate::new());
    let gates = (in_getter.clone(), go_on.clone());
    let getter = larder::getter_fn(move |_: &Context, key, dest| {
        if key == "c" {
            gates.0.open();
            gates.1.pass();
        }
        Ok(dest.set_str(key)?)
    });
    (getter, in_getter, go_on)
}

#[test]
fn slow_listener_delays_only_its_own_call() {
    let (getter, in_getter, go_on) = paused_at_c();
    let (in_listener, listener_ends) = (Gate::new(), Gate::new());
    let group = {
        let (in_listener, listener_ends) = (in_listener.clone(), listener_ends.clone());
        alone("slow-listener")
            .max_capacity(room_for_two())
            .shards(1)
            .eviction(Eviction::Lru)
            .eviction_listener(move |_, _, _| {
                in_listener.open();
                listener_ends.pass();
            })
            .build(getter)
            .expect("a new group")
    };
    for key in ["a", "b"] {
        group.get(key).expect("a value");
    }
    let leader = start({
        let group = group.clone();
        move || group.get("c")
    });
    in_getter.pass();
    let follower = start({
        let group = group.clone();
        move || group.get("c")
    });
    // The expectations hold whether or not the follower has joined the load by then.
    eventually("the follower misses", || group.stats().loads == 4);
    go_on.open();
    in_listener.pass();
    assert_eq!(follower.end().expect("a value"), "c");
    listener_ends.open();
    assert_eq!(leader.end().expect("a value"), "c");
}

#[test]
fn panicking_listener_does_not_affect_waiters() {
    for ctx in [Context::background(), within(PATIENCE)] {
        let (getter, in_getter, go_on) = paused_at_c();
        let group = alone("panicking-listener")
            .max_capacity(room_for_two())
            .shards(1)
            .eviction(Eviction::Lru)
            .eviction_listener(|_, _, _| std::panic::resume_unwind(Box::new("in the listener")))
            .build(getter)
            .expect("a new group");
        for key in ["a", "b"] {
            group.get(key).expect("a value");
        }
        let call = || {
            let (group, ctx) = (group.clone(), ctx.clone());
            start(move || group.get_with(&ctx, "c"))
        };
        let leader = call();
        in_getter.pass();
        let follower = call();
        eventually("the follower misses", || group.stats().loads == 4);
        go_on.open();
        assert_eq!(follower.end().expect("a value"), "c");
        match leader.outcome() {
            Err(panic) => assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the listener")),
            // A panic on a loader thread does not propagate to a caller.
            Ok(value) => assert_eq!(value.expect("a value"), "c"),
        }
    }
}

#[test]
fn large_value_is_cached_before_listener_is_called_for_its_victims() {
    let (send, left) = channel();
    let send = Mutex::new(send);
    // Set once the group is built, so that the listener can look into it.
    let group = Arc::new(OnceLock::<Group>::new());
    let listener = {
        let group = group.clone();
        move |key: &str, _, cause| {
            let is_there = group.get().is_some_and(|group| group.contains_key("large"));
            let sent = (key.to_owned(), cause, is_there);
            send.lock()
                .expect("no panic")
                .send(sent)
                .expect("the test listens");
        }
    };
    let built = alone("thousands")
        .max_capacity(1 << 20)
        .eviction(Eviction::Lru)
        .eviction_listener(listener)
        .build(larder::getter_fn(|_: &Context, key, dest| {
            let len = if key == "large" { 900_000 } else { 50 };
            Ok(dest.set_bytes(&vec![7; len])?)
        }))
        .expect("a new group");
    let group = group.get_or_init(|| built);
    for n in 0..20_000 {
        group.get(&n.to_string()).expect("a value");
    }
    left.try_iter().for_each(drop);
    let before = group.entry_count();
    group.get("large").expect("a value");
    assert!(
        group.weighted_size() <= 1 << 20,
        "all victims are evicted when the call returns"
    );
    let notices: Vec<_> = left.try_iter().collect();
    assert!(notices.len() > 5000, "{}", notices.len());
    assert_eq!(group.entry_count(), before + 1 - notices.len() as u64);
    let mut keys: Vec<_> = notices.iter().map(|(key, ..)| key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(
        keys.len(),
        notices.len(),
        "one notification for each victim"
    );
    let as_it_must = |(_, cause, is_there): &_| *cause == RemovalCause::Size && *is_there;
    assert!(notices.iter().all(as_it_must));
}

#[test]
fn expired_entry_always_leaves_with_cause_expired() {
    let clock = Clock::manual();
    let (send, causes) = channel();
    let send = Mutex::new(send);
    let group = alone("causes")
        .clock(clock.clone())
        .shards(1)
        .eviction_listener(move |_, _, cause| {
            let sent = send.lock().expect("no panic").send(cause);
            sent.expect("the test listens");
        })
        .time_to_live(seconds(1))
        .build(echo().0)
        .expect("a new group");
    // There are more entries than the sweep of one insertion visits.
    for n in 0..20 {
        group.get(&format!("key{n}")).expect("a value");
    }
    clock.advance(seconds(1));
    group.get("key19").expect("a value");
    let causes: Vec<RemovalCause> = causes.try_iter().collect();
    assert!(!causes.is_empty());
    assert!(
        causes.iter().all(|&cause| cause == RemovalCause::Expired),
        "{causes:?}"
    );
}

#[test]
fn listener_sees_victims_of_smaller_capacity_and_may_reload_them() {
    let notices = Arc::new(Mutex::new(Vec::new()));
    let again = Arc::new(OnceLock::<Group>::new());
    let group = {
        let (notices, again) = (notices.clone(), again.clone());
        alone("smaller")
            .max_capacity(1 << 20)
            .eviction_listener(move |key, value, cause| {
                assert_eq!(value, key);
                notices.lock().unwrap().push((key.to_owned(), cause));
                // The listener runs without locks, so it may load.
                if let Some(group) = again.get() {
                    assert_eq!(group.get(key).expect("a value"), key);
                }
            })
            .build(larder::getter_fn(|_: &Context, key, dest| {
                Ok(dest.set_str(key)?)
            }))
            .expect("a new group")
    };
    let keys: Vec<String> = (0..100).map(|n| format!("key{n:02}")).collect();
    for key in &keys {
        group.get(key).expect("a value");
    }
    assert_eq!(group.iter().count(), 100);
    assert!(again.set(group.clone()).is_ok());
    let refused = group.set_capacity(1).expect_err("no entry fits in a byte");
    assert_eq!(refused.kind(), ErrorKind::CapacityTooSmall);
    assert_eq!((group.entry_count(), group.max_capacity()), (100, 1 << 20));
    group.set_capacity(0).expect("caching can be switched off");
    assert_eq!((group.entry_count(), group.weighted_size()), (0, 0));
    let mut notices = std::mem::take(&mut *notices.lock().unwrap());
    notices.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    let all = keys.into_iter().map(|key| (key, RemovalCause::Size));
    assert_eq!(notices, all.collect::<Vec<_>>());
}
