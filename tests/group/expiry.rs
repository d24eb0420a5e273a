//! Expiry by the time to live of the group, of the value, and of a peer's response.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use larder::{CacheType, Clock, Eviction, Group, PeerResponse, RemovalCause, getter_fn};

use crate::common::*;

/// A group whose getter reads the time to live from the key: a number of seconds, or `-` for none.
fn group(clock: &Clock, group_ttl: Option<Duration>) -> (Group, Count) {
    let loads = Count::default();
    let counted = loads.clone();
    let mut builder = alone("expiring").clock(clock.clone());
    if let Some(ttl) = group_ttl {
        builder = builder.time_to_live(ttl);
    }
    let group = builder
        .build(getter_fn(move |_, key, dest| {
            counted.add(1);
            if key != "-" {
                dest.expire_in(seconds(key.parse()?));
            }
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    (group, loads)
}

/// The seconds until a value that is loaded now has expired.
fn lifetime(clock: &Clock, group: &Group, key: &str) -> u64 {
    group.clear_local();
    group.get(key).expect("a value");
    let start = clock.now();
    for _ in 0..1000 {
        if !group.contains_key(key) {
            return clock.now().since(start).as_secs();
        }
        clock.advance(seconds(1));
    }
    u64::MAX
}

#[test]
fn shorter_ttl_wins() {
    let clock = Clock::manual();
    for (group_ttl, key, lives) in [
        (None, "-", u64::MAX),
        (None, "7", 7),
        (Some(5), "-", 5),
        (Some(5), "7", 5),
        (Some(5), "3", 3),
        (Some(5), "0", 0),
    ] {
        let (group, _) = group(&clock, group_ttl.map(seconds));
        assert_eq!(
            lifetime(&clock, &group, key),
            lives,
            "{group_ttl:?} {key:?}"
        );
    }
}

#[test]
fn expired_value_is_loaded_again() {
    let clock = Clock::manual();
    let (group, loads) = group(&clock, None);
    for _ in 0..3 {
        group.get("10").expect("a value");
    }
    clock.advance(Duration::from_nanos(9_999_999_999));
    group.get("10").expect("a value");
    assert_eq!(loads.get(), 1);
    clock.advance(Duration::from_nanos(1));
    for _ in 0..3 {
        group.get("10").expect("a value");
    }
    assert_eq!(loads.get(), 2);
}

#[test]
fn hit_does_not_extend_ttl() {
    for eviction in [Eviction::Tide, Eviction::Lru] {
        let clock = Clock::manual();
        let group = alone("touched")
            .clock(clock.clone())
            .eviction(eviction)
            .time_to_live(seconds(10))
            .build(echo().0)
            .expect("a group");
        for _ in 0..10 {
            group.get("key").expect("a value");
            clock.advance(seconds(1));
        }
        assert!(!group.contains_key("key"));
    }
}

#[test]
fn wall_clock_jump_does_not_change_expiry() {
    for jump in [3_600_000_000_000, -3_600_000_000_000] {
        let clock = Clock::manual();
        let (group, _) = group(&clock, Some(seconds(10)));
        group.get("-").expect("a value");
        clock.shift_wall_clock(jump);
        clock.advance(seconds(9));
        assert!(group.contains_key("-"), "{jump}");
        clock.advance(seconds(1));
        assert!(!group.contains_key("-"), "{jump}");
    }
}

#[test]
fn peer_response_has_remaining_ttl() {
    let clock = Clock::manual();
    let (group, _) = group(&clock, None);
    let ttl = |key: &str| {
        let answer = group.serve_peer(&within(PATIENCE), key);
        answer.expect("an answer").ttl
    };
    assert_eq!(ttl("-"), None);
    assert_eq!(ttl("10"), Some(seconds(10)), "when it is loaded");
    clock.advance(seconds(4));
    assert_eq!(ttl("10"), Some(seconds(6)), "from the cache");
}

#[test]
fn ttl_of_peer_response_applies_to_the_copy() {
    let clock = Clock::manual();
    for (theirs, ours, lives) in [
        (None, None, u64::MAX),
        (Some(4), None, 4),
        (Some(4), Some(9), 4),
        (Some(9), Some(4), 4),
        (None, Some(4), 4),
        (Some(0), None, 0),
    ] {
        let peer = FakePeer::new(move |_, _| {
            let answer = PeerResponse::new("theirs");
            Ok(match theirs {
                Some(ttl) => answer.with_ttl(seconds(ttl)),
                None => answer,
            })
        });
        let mut builder = among("hot", all_keys_at(&[&peer])).clock(clock.clone());
        if let Some(ttl) = ours {
            builder = builder.time_to_live(seconds(ttl));
        }
        let group = builder.build(echo().0).expect("a group");
        assert_eq!(
            lifetime(&clock, &group, "key"),
            lives,
            "{theirs:?} {ours:?}"
        );
    }
}

#[test]
fn expired_entries_are_swept_without_being_read() {
    let clock = Clock::manual();
    let causes = Arc::new(std::sync::Mutex::new(Vec::new()));
    let noted = causes.clone();
    let group = alone("swept")
        .clock(clock.clone())
        .shards(1)
        .eviction_listener(move |key, _, cause| {
            noted
                .lock()
                .expect("no panic")
                .push((key.to_owned(), cause));
        })
        .build(getter_fn(|_, key, dest| {
            if key.starts_with("old") {
                dest.expire_in(seconds(1));
            }
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    for n in 0..100 {
        group.get(&format!("old{n}")).expect("a value");
    }
    clock.advance(seconds(1));
    for n in 0..100 {
        group.get(&format!("new{n}")).expect("a value");
    }
    assert_eq!(group.entry_count(), 100);
    let causes = causes.lock().expect("no panic");
    assert_eq!(causes.len(), 100);
    assert!(
        causes
            .iter()
            .all(|(key, cause)| key.starts_with("old") && *cause == RemovalCause::Expired)
    );
    assert_eq!(group.cache_stats(CacheType::Main).evictions, 0);
}

#[test]
fn remove_does_not_return_expired_value() {
    let clock = Clock::manual();
    let (group, _) = group(&clock, None);
    group.get("10").expect("a value");
    assert_eq!(group.remove_local("10").as_deref(), Some(&b"10"[..]));
    group.get("10").expect("a value");
    clock.advance(seconds(10));
    assert_eq!(group.remove_local("10"), None);
    assert_eq!(group.entry_count(), 0);
}

#[test]
fn reloaded_value_of_other_size_has_its_own_weight() {
    for eviction in [Eviction::Tide, Eviction::Lru] {
        let clock = Clock::manual();
        let sized = |sizes: &'static [usize]| {
            let turn = AtomicUsize::new(0);
            alone("replaced")
                .clock(clock.clone())
                .eviction(eviction)
                .time_to_live(seconds(1))
                .build(getter_fn(move |_, _, dest| {
                    let turn = turn.fetch_add(1, Ordering::SeqCst);
                    Ok(dest.set_bytes(&vec![1; sizes[turn]])?)
                }))
                .expect("a group")
        };
        const SIZES: [usize; 6] = [100, 10, 5_000, 5_000, 0, 300_000];
        let replaced = sized(&SIZES);
        for size in SIZES {
            assert_eq!(replaced.get("key").expect("a value").len(), size);
            let fresh = sized(match size {
                100 => &[100],
                10 => &[10],
                5_000 => &[5_000],
                0 => &[0],
                _ => &[300_000],
            });
            fresh.get("key").expect("a value");
            assert_eq!(replaced.entry_count(), 1);
            assert_eq!(replaced.weighted_size(), fresh.weighted_size(), "{size}");
            clock.advance(seconds(1));
        }
    }
}

/// A group whose entries expire after 10 s, except "-". It holds `entries` that have expired, and
/// reports those that leave.
fn group_with_expired(
    entries: usize,
    on_leave: impl Fn(&str, RemovalCause) + Send + Sync + 'static,
) -> Group {
    let clock = Clock::manual();
    let group = alone("expired")
        .clock(clock.clone())
        .shards(8)
        .max_capacity(16 << 20)
        .eviction_listener(move |key, _, cause| on_leave(key, cause))
        .build(getter_fn(|_, key, dest| {
            if key != "-" {
                dest.expire_in(seconds(10));
            }
            Ok(dest.set_str(key)?)
        }))
        .expect("a group");
    group.get("-").expect("a value");
    for n in 0..entries {
        group.get(&n.to_string()).expect("a value");
    }
    assert_eq!(group.entry_count(), 1 + entries as u64);
    clock.advance(seconds(10));
    group
}

#[test]
fn hits_alone_remove_expired_entries() {
    let notified = Arc::new(AtomicUsize::new(0));
    let counted = notified.clone();
    let group = group_with_expired(10_000, move |_, cause| {
        assert_eq!(cause, RemovalCause::Expired);
        counted.fetch_add(1, Ordering::Relaxed);
    });
    // As many hits as in ten seconds at 10,000 per second, of one key in one of eight shards.
    for _ in 0..100_000 {
        group.get("-").expect("a value");
    }
    assert_eq!(group.entry_count(), 1);
    assert_eq!(notified.load(Ordering::Relaxed), 10_000);
    assert_eq!(group.cache_stats(CacheType::Main).expired, 10_000);
    assert_eq!(group.cache_stats(CacheType::Main).evictions, 0);
}

#[test]
fn misses_that_load_nothing_remove_expired_entries() {
    let clock = Clock::manual();
    let group = alone("misses")
        .clock(clock.clone())
        .time_to_live(seconds(10))
        .build(getter_fn(|_, key, dest| match key {
            "missing" => Err(larder::Error::not_found("missing").into()),
            _ => Ok(dest.set_str(key)?),
        }))
        .expect("a group");
    for n in 0..1000 {
        group.get(&n.to_string()).expect("a value");
    }
    clock.advance(seconds(10));
    for _ in 0..10_000 {
        group.get("missing").expect_err("not found");
    }
    assert_eq!(group.entry_count(), 0);
}

#[test]
fn purge_calls_the_listener_and_holds_no_lock() {
    let group = Arc::new(std::sync::OnceLock::<Group>::new());
    let inner = group.clone();
    let expired = group_with_expired(1000, move |key, cause| {
        assert_eq!(cause, RemovalCause::Expired);
        let group = inner.get().expect("set before the purge");
        group.peek(key).ok_or(()).expect_err("it has left");
        assert!(group.contains_key("-"));
        assert_eq!(group.remove_local("none"), None, "no lock is held");
    });
    group.set(expired.clone()).expect("set once");
    assert_eq!(expired.purge_expired(), 1000);
    assert_eq!(expired.purge_expired(), 0);
    assert_eq!(expired.entry_count(), 1);
}

#[test]
fn clear_reports_expired_entries_as_expired() {
    let causes = Arc::new([const { AtomicUsize::new(0) }; 2]);
    let counted = causes.clone();
    let group = group_with_expired(100, move |_, cause| {
        let at = usize::from(cause == RemovalCause::Expired);
        counted[at].fetch_add(1, Ordering::Relaxed);
    });
    group.clear_local();
    let [explicit, expired] = [0, 1].map(|at| causes[at].load(Ordering::Relaxed));
    assert_eq!((explicit, expired), (1, 100));
}

/// A clock that has stopped at the end of its range is not at the time of entries that never expire.
#[test]
fn clock_at_the_end_of_its_range_expires_only_what_may_expire() {
    for clock in [Clock::manual(), Clock::adjustable()] {
        let (group, loads) = group(&clock, None);
        for key in ["-", "7", "-"] {
            group.get(key).expect("a value");
        }
        clock.advance(Duration::MAX);
        assert_eq!(group.purge_expired(), 1);
        assert!(group.contains_key("-") && !group.contains_key("7"));
        for key in ["-", "7", "7"] {
            group.get(key).expect("a value");
        }
        assert_eq!((loads.get(), group.purge_expired()), (3, 0));
        assert_eq!(group.entry_count(), 2);
    }
}
