//! Values near and past the end of their time to live: refresh, stale values, and failures that are
//! remembered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use larder::{
    Clock, Context, Error, ErrorKind, Group, GroupBuilder, PeerResponse, Registry, Result,
    getter_fn,
};

use crate::common::*;

/// An origin whose value is the number of its loads so far. It can fail, and be held.
#[derive(Clone, Default)]
pub struct Origin {
    loads: Arc<AtomicUsize>,
    pub fails: Arc<AtomicBool>,
    pub is_missing: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
    pub holds: Arc<AtomicBool>,
    pub gate: Gate,
}

impl Origin {
    pub fn loads(&self) -> usize {
        self.loads.load(SeqCst)
    }

    pub fn group(&self, builder: GroupBuilder) -> Group {
        let origin = self.clone();
        builder
            .build(getter_fn(move |_, _, dest| {
                let load = origin.loads.fetch_add(1, SeqCst);
                if origin.holds.load(SeqCst) {
                    origin.gate.pass();
                }
                if origin.panics.load(SeqCst) {
                    std::panic::resume_unwind(Box::new("quietly"));
                }
                if origin.is_missing.load(SeqCst) {
                    return Err(Error::not_found("gone").into());
                }
                if origin.fails.load(SeqCst) {
                    return Err("the origin is down".into());
                }
                Ok(dest.set_str(&load.to_string())?)
            }))
            .expect("a group")
    }
}

/// A group whose values are fresh for exactly 10 s.
pub fn fresh_for_ten(clock: &Clock) -> GroupBuilder {
    alone("fresh")
        .clock(clock.clone())
        .time_to_live(seconds(10))
        .time_to_live_jitter(0.0)
}

pub fn value(group: &Group) -> String {
    let value = group.get("key").expect("a value");
    value.to_str().expect("text").to_owned()
}

#[test]
fn jitter_only_shortens_the_time_to_live_of_the_group() {
    let clock = Clock::manual();
    let group = alone("jittered")
        .clock(clock.clone())
        .time_to_live(seconds(100))
        .build(getter_fn(|_, key, dest| {
            if key.starts_with("own") {
                dest.expire_in(seconds(50));
            }
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    let ttl = |key: String| {
        let answer = group.serve_peer(&Context::background(), &key);
        answer.expect("a value").ttl.expect("a time to live")
    };
    let ttls: Vec<Duration> = (0..1000).map(|n| ttl(n.to_string())).collect();
    let range = seconds(95)..=seconds(100);
    assert!(ttls.iter().all(|ttl| range.contains(ttl)), "{ttls:?}");
    let (shortest, longest) = (ttls.iter().min(), ttls.iter().max());
    assert!(shortest < Some(&seconds(96)) && longest > Some(&seconds(99)));
    assert_eq!(ttl("own".into()), seconds(50));
}

#[test]
fn suspended_time_counts() {
    let clock = Clock::manual();
    let group = fresh_for_ten(&clock).build(echo().0).expect("a group");
    group.get("key").expect("a value");
    clock.suspend(seconds(8 * 3600));
    clock.advance(seconds(1));
    assert!(!group.contains_key("key"));
    assert_eq!(group.purge_expired(), 1);
}

#[test]
fn nothing_is_served_past_its_time_without_an_allowance() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(
        fresh_for_ten(&clock)
            .refresh_at(0.9)
            .soft_timeout(millis(1)),
    );
    assert_eq!(value(&group), "0");
    clock.advance(seconds(10));
    origin.fails.store(true, SeqCst);
    assert_eq!(kind(group.get("key")), ErrorKind::Getter);
}

#[test]
fn stale_value_is_served_while_one_load_runs() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(fresh_for_ten(&clock).stale_while_revalidate(seconds(5)));
    assert_eq!(value(&group), "0");
    clock.advance(seconds(10));
    origin.holds.store(true, SeqCst);
    for _ in 0..100 {
        assert_eq!(value(&group), "0");
    }
    eventually("the refresh runs", || origin.loads() == 2);
    origin.gate.open();
    eventually("the new value is there", || value(&group) == "1");
    assert_eq!(origin.loads(), 2);
    assert_eq!(group.stats().refreshes, 1);
    clock.advance(seconds(9));
    assert_eq!(value(&group), "1", "fresh since the start of its load");
    assert_eq!(origin.loads(), 2);
}

#[test]
fn cancelled_caller_gets_its_error_and_no_stale_value() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(fresh_for_ten(&clock).stale_if_error(seconds(60)));
    assert_eq!(value(&group), "0");
    clock.advance(seconds(10));
    origin.holds.store(true, SeqCst);
    let (ctx, canceller) = Context::background().with_cancel();
    let call = start({
        let group = group.clone();
        move || group.get_with(&ctx, "key")
    });
    eventually("the load runs", || origin.loads() == 2);
    canceller.cancel();
    assert_eq!(kind(call.end()), ErrorKind::Cancelled);
    origin.gate.open();
}

#[test]
fn hung_refresh_does_not_extend_the_life_of_a_value() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(fresh_for_ten(&clock).stale_while_revalidate(seconds(5)));
    assert_eq!(value(&group), "0");
    clock.advance(seconds(11));
    origin.holds.store(true, SeqCst);
    assert_eq!(value(&group), "0");
    eventually("the refresh runs", || origin.loads() == 2);
    clock.advance(seconds(4));
    let late = group.get_with(&within(millis(50)), "key");
    assert_eq!(kind(late), ErrorKind::DeadlineExceeded);
    assert_eq!(group.peek("key"), None);
    origin.gate.open();
    eventually("the refresh ends", || {
        group.get_with(&within(millis(50)), "key").is_ok()
    });
}

#[test]
fn refresh_does_not_bring_back_what_was_removed() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(fresh_for_ten(&clock).stale_while_revalidate(seconds(5)));
    assert_eq!(value(&group), "0");
    clock.advance(seconds(10));
    origin.holds.store(true, SeqCst);
    assert_eq!(value(&group), "0");
    eventually("the refresh runs", || origin.loads() == 2);
    group.invalidate("key");
    origin.holds.store(false, SeqCst);
    assert_eq!(value(&group), "2", "a load of its own");
    origin.gate.open();
    eventually("the refresh ends", || group.stats().local_loads == 3);
    assert_eq!(value(&group), "2");
}

#[test]
fn error_never_replaces_a_value_and_is_retried_after_30_s() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(fresh_for_ten(&clock).stale_if_error(seconds(600)));
    assert_eq!(value(&group), "0");
    origin.fails.store(true, SeqCst);
    clock.advance(seconds(10));
    // An hour with a get a second.
    for second in 10..3610 {
        let got = group.get("key");
        match second < 610 {
            true => assert_eq!(got.expect("the old value"), "0", "{second}"),
            false => assert_eq!(kind(got), ErrorKind::Getter, "{second}"),
        }
        let windows = (second - 10) / 30 + 1;
        assert!(
            origin.loads() - 1 <= windows,
            "{} in {second}",
            origin.loads()
        );
        clock.advance(seconds(1));
    }
    assert!(origin.loads() > 100, "each window has an attempt");
    assert_eq!(group.stats().stale_hits, 600);
    origin.fails.store(false, SeqCst);
    clock.advance(seconds(30));
    assert_ne!(value(&group), "0");
    clock.advance(seconds(9));
    assert_ne!(value(&group), "0");
}

#[test]
fn failed_refresh_leaves_a_fresh_value_and_its_expiry() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(fresh_for_ten(&clock).refresh_at(0.5));
    assert_eq!(value(&group), "0");
    clock.advance(seconds(5));
    origin.fails.store(true, SeqCst);
    for _ in 0..100 {
        assert_eq!(value(&group), "0");
    }
    eventually("the refresh fails", || group.stats().local_load_errs == 1);
    assert_eq!(value(&group), "0");
    clock.advance(seconds(4));
    assert_eq!(value(&group), "0");
    assert_eq!(origin.loads(), 2, "one attempt in the window");
    origin.fails.store(false, SeqCst);
    clock.advance(seconds(1));
    // The failure is counted before its flight ends. A get that still joins the flight gets its error.
    eventually("without an allowance it is loaded again", || {
        group.get("key").is_ok()
    });
    assert_eq!(value(&group), "2");
    assert_eq!(origin.loads(), 3);
}

#[test]
fn refresh_that_does_not_begin_is_not_counted() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let builder = fresh_for_ten(&clock).refresh_at(0.5);
    let group = origin.group(builder.max_concurrent_loads(1));
    assert_eq!(value(&group), "0");
    clock.advance(seconds(5));
    origin.holds.store(true, SeqCst);
    let other = start({
        let group = group.clone();
        move || group.get("other")
    });
    eventually("the only permit is taken", || origin.loads() == 2);
    for _ in 0..100 {
        assert_eq!(value(&group), "0");
    }
    assert_eq!(group.stats().refreshes, 0);
    origin.gate.open();
    other.end().expect("a value");
    assert_eq!(value(&group), "0");
    assert_eq!(group.stats().refreshes, 1);
}

#[test]
fn panicking_refresh_is_a_failure() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(fresh_for_ten(&clock).stale_while_revalidate(seconds(100)));
    assert_eq!(value(&group), "0");
    clock.advance(seconds(10));
    origin.panics.store(true, SeqCst);
    assert_eq!(value(&group), "0");
    eventually("the refresh panics", || group.stats().local_load_errs == 1);
    for _ in 0..100 {
        assert_eq!(value(&group), "0");
    }
    assert_eq!(origin.loads(), 2);
}

#[test]
fn key_that_vanished_is_removed() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(
        fresh_for_ten(&clock)
            .stale_if_error(seconds(100))
            .negative_ttl(seconds(7)),
    );
    assert_eq!(value(&group), "0");
    clock.advance(seconds(10));
    origin.is_missing.store(true, SeqCst);
    assert_eq!(kind(group.get("key")), ErrorKind::NotFound);
    assert_eq!(group.peek("key"), None);
    assert_eq!(kind(group.get("key")), ErrorKind::NotFound);
    assert_eq!(origin.loads(), 2);
    clock.advance(seconds(7));
    assert_eq!(kind(group.get("key")), ErrorKind::NotFound);
    assert_eq!(origin.loads(), 3);
}

#[test]
fn refresh_before_the_expiry_of_used_values_only() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(fresh_for_ten(&clock).refresh_at(0.8));
    for key in ["key", "idle"] {
        group.get(key).expect("a value");
    }
    clock.advance(Duration::from_nanos(7_999_999_999));
    assert_eq!(value(&group), "0");
    assert_eq!(origin.loads(), 2);
    clock.advance(millis(1));
    assert_eq!(value(&group), "0");
    eventually("it is refreshed", || value(&group) == "2");
    clock.advance(seconds(3));
    assert!(!group.contains_key("idle"));
    assert_eq!(origin.loads(), 3, "the idle key is not refreshed");
}

#[test]
fn hot_key_is_never_loaded_in_a_get() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(fresh_for_ten(&clock).refresh_at(0.8));
    assert_eq!(value(&group), "0");
    for _ in 0..1000 {
        clock.advance(seconds(8));
        let next = origin.loads().to_string();
        eventually("it is refreshed", || value(&group) == next);
    }
    let stats = group.stats();
    assert_eq!(
        stats.gets,
        stats.cache_hits + 1,
        "only the first get missed"
    );
    assert_eq!(stats.refreshes, 1000);
}

#[test]
fn value_of_a_short_time_to_live_has_its_own_window() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let counted = origin.clone();
    let group = alone("short")
        .clock(clock.clone())
        .refresh_at(0.5)
        .build(getter_fn(move |_, key, dest| {
            counted.loads.fetch_add(1, SeqCst);
            dest.expire_in(seconds(key.parse()?));
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    group.get("1000").expect("a value");
    group.get("10").expect("a value");
    clock.advance(seconds(4));
    group.get("10").expect("a value");
    assert_eq!(group.stats().refreshes, 0);
    clock.advance(seconds(1));
    group.get("10").expect("a value");
    group.get("1000").expect("a value");
    assert_eq!(group.stats().refreshes, 1);
}

#[test]
fn longest_times_do_not_overflow() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(
        fresh_for_ten(&clock)
            .stale_while_revalidate(Duration::MAX)
            .stale_if_error(Duration::MAX)
            .soft_timeout(Duration::MAX)
            .negative_ttl(Duration::MAX)
            .error_ttl(Duration::MAX)
            .refresh_at(0.5),
    );
    assert_eq!(value(&group), "0");
    clock.advance(seconds(100));
    assert_eq!(value(&group), "0");
    eventually("it is refreshed", || value(&group) == "1");
    origin.is_missing.store(true, SeqCst);
    for _ in 0..3 {
        assert_eq!(kind(group.get("missing")), ErrorKind::NotFound);
    }
    assert_eq!(origin.loads(), 3);
    clock.advance(seconds(30 * 365 * 86_400));
    assert_eq!(
        kind(group.get("key")),
        ErrorKind::NotFound,
        "ten years at most"
    );
}

#[test]
fn invalid_fractions_are_refused() {
    let refused = [
        alone("invalid").refresh_at(0.0),
        alone("invalid").refresh_at(1.0),
        alone("invalid").refresh_at(f64::NAN),
        alone("invalid").time_to_live_jitter(1.1),
        alone("invalid").time_to_live_jitter(-0.1),
        alone("invalid").time_to_live_jitter(f64::NAN),
    ];
    for builder in refused {
        assert_eq!(kind(builder.build(echo().0)), ErrorKind::InvalidOption);
    }
}

/// A node that owns a key, and one that has a copy. Both use one clock.
pub fn owner_and_copy(
    origin: &Origin,
    clock: &Clock,
    options: fn(GroupBuilder) -> GroupBuilder,
) -> (Group, Group) {
    let registry = Registry::new();
    let fresh = |builder: GroupBuilder| {
        let builder = builder.clock(clock.clone()).time_to_live(seconds(10));
        options(builder.time_to_live_jitter(0.0))
    };
    let owner = origin.group(fresh(Group::builder("shared").registry(&registry)));
    let node = Arc::new(Node(registry));
    let copy = fresh(among("shared", all_keys_at(&[&node])))
        .build(getter_fn(|_, _, _| {
            Err("the copy's node loads nothing".into())
        }))
        .expect("a group");
    (owner, copy)
}

#[test]
fn copy_is_refreshed_by_the_owner_alone() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let (owner, copy) = owner_and_copy(&origin, &clock, |builder| builder.refresh_at(0.8));
    assert_eq!(value(&copy), "0");
    clock.advance(seconds(8));
    origin.holds.store(true, SeqCst);
    for _ in 0..100 {
        assert_eq!(value(&copy), "0");
    }
    eventually("the owner refreshes", || origin.loads() == 2);
    let asked = owner.stats().server_requests;
    assert!(asked <= 3, "{asked} requests while the owner is loading");
    origin.gate.open();
    eventually("the owner has it", || value(&owner) == "1");
    // The copy's node waits before it asks the owner again. On a busy machine it waits so long that the
    // owner has refreshed its value once more by then.
    eventually("the copy has a newer value", || {
        clock.advance(millis(10));
        value(&copy) != "0"
    });
    assert_eq!(copy.stats().local_loads, 0);
    assert_eq!(copy.stats().local_load_errs, 0);
}

#[test]
fn copy_that_expired_during_a_suspend_is_not_served() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let (_owner, copy) = owner_and_copy(&origin, &clock, |builder| builder);
    assert_eq!(value(&copy), "0");
    clock.suspend(seconds(8 * 3600));
    assert_eq!(copy.peek("key"), None);
    assert!(copy.serve_peer_cached("key").is_none());
    assert_eq!(value(&copy), "1");
}

#[test]
fn copy_obeys_the_staleness_of_the_owner() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let (owner, copy) = owner_and_copy(&origin, &clock, |builder| {
        builder.stale_if_error(seconds(20))
    });
    assert_eq!(value(&owner), "0");
    origin.fails.store(true, SeqCst);
    clock.advance(seconds(15));
    // The owner's value is stale by 5 s when the copy is made.
    assert_eq!(value(&copy), "0");
    let before = copy.stats();
    let served = copy.serve_peer_cached("key");
    assert!(served.is_none(), "a stale value is not sent at once");
    assert_eq!(copy.stats(), before, "the peer's next request counts");
    for second in 15..40 {
        match second < 30 {
            true => assert_eq!(value(&copy), "0", "{second}"),
            false => assert_eq!(kind(copy.get("key")), ErrorKind::Getter, "{second}"),
        }
        clock.advance(seconds(1));
    }
    assert!(origin.loads() <= 3);
}

#[test]
fn copy_of_a_stale_value_has_only_the_rest_of_its_allowance() {
    let (clock, registry) = (Clock::manual(), Registry::new());
    let fails = Arc::new(AtomicBool::new(false));
    let failing = fails.clone();
    let builder = Group::builder("shared").registry(&registry);
    let builder = builder.clock(clock.clone()).stale_if_error(seconds(20));
    let owner = builder.build(getter_fn(move |_, key, dest| {
        if failing.load(SeqCst) {
            return Err("the origin is down".into());
        }
        dest.expire_in(seconds(10));
        Ok(dest.set_str(key)?)
    }));
    value(&owner.expect("a group"));
    let copy = among("shared", all_keys_at(&[&Arc::new(Node(registry))]))
        .clock(clock.clone())
        .stale_if_error(seconds(20))
        .build(getter_fn(|_, _, _| Err("nothing is loaded here".into())))
        .expect("a group");
    fails.store(true, SeqCst);
    clock.advance(seconds(25));
    assert_eq!(value(&copy), "key");
    clock.advance(seconds(5));
    assert_eq!(copy.peek("key"), None);
}

#[test]
fn stale_copy_outlives_a_dead_owner_by_its_allowance_only() {
    let clock = Clock::manual();
    let is_dead = Arc::new(AtomicBool::new(false));
    let dead = is_dead.clone();
    let peer = FakePeer::new(move |_, _| match dead.load(SeqCst) {
        true => Err(ErrorKind::Peer.into()),
        false => Ok(PeerResponse::new("theirs")
            .with_ttl(seconds(10))
            .with_age(seconds(0))),
    });
    let group = among("dead", all_keys_at(&[&peer]))
        .clock(clock.clone())
        .stale_if_error(seconds(5))
        .build(getter_fn(|_, _, _| Err("down, too".into())))
        .expect("a group");
    assert_eq!(value(&group), "theirs");
    is_dead.store(true, SeqCst);
    clock.advance(seconds(14));
    assert_eq!(value(&group), "theirs");
    clock.advance(seconds(1));
    assert_eq!(kind(group.get("key")), ErrorKind::Getter);
}

#[test]
fn several_keys_are_served_stale_and_refreshed() -> Result<()> {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(fresh_for_ten(&clock).stale_while_revalidate(seconds(5)));
    assert_eq!(value(&group), "0");
    clock.advance(seconds(10));
    let many = group.get_many(&Context::background(), &["key", "other"]);
    assert_eq!(many[0].as_ref().expect("stale"), &"0");
    many[1].as_ref().expect("loaded");
    eventually("it is refreshed", || value(&group) != "0");
    assert_eq!(origin.loads(), 3);
    Ok(())
}
