//! Loads that find the cached value unchanged.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use larder::{
    BulkSink, Clock, Context, Entry, ErrorKind, GetOptions, Group, GroupBuilder, RemovalCause,
    Sink, Value, bulk_fn, getter_fn,
};

use crate::common::*;

/// An origin with a version, which is the etag of its value.
#[derive(Clone, Default)]
struct Origin {
    version: Arc<AtomicUsize>,
    /// Loads, and those that set a value.
    loads: Count,
    sent: Count,
    holds: Arc<AtomicBool>,
    gate: Gate,
}

impl Origin {
    fn value_of(version: usize, key: &str) -> String {
        format!("{key} {version} {}", "x".repeat(1000))
    }

    fn load(&self, ctx: &Context, key: &str, dest: &mut dyn Sink) -> larder::Result<()> {
        let version = self.version.load(SeqCst);
        self.loads.add(1);
        if self.holds.load(SeqCst) {
            self.gate.pass();
        }
        let etag = version.to_string();
        if ctx.etag() == Some(&etag) {
            assert_eq!(
                ctx.stale().expect("it has an etag"),
                &Self::value_of(version, key)
            );
            return dest.not_modified();
        }
        self.sent.add(1);
        dest.set_etag(&etag);
        dest.set_str(&Self::value_of(version, key))
    }

    fn group(&self, builder: GroupBuilder) -> Group {
        let origin = self.clone();
        let getter = getter_fn(move |ctx, key, dest| Ok(origin.load(ctx, key, dest)?));
        builder.build(getter).expect("a group")
    }

    fn counts(&self) -> (i64, i64) {
        (self.loads.get(), self.sent.get())
    }
}

/// A group whose values are fresh for exactly 10 s.
fn fresh_for_ten(clock: &Clock) -> GroupBuilder {
    alone("revalidated")
        .clock(clock.clone())
        .time_to_live(seconds(10))
        .time_to_live_jitter(0.0)
}

fn kept_for_a_minute(clock: &Clock) -> GroupBuilder {
    fresh_for_ten(clock).keep_for_revalidation(seconds(60))
}

/// The store keeps the start of a load in milliseconds, rounded down.
#[test]
fn renewals_do_not_lengthen_the_time_to_live() {
    let (clock, part) = (Clock::manual(), std::time::Duration::from_nanos(999_999));
    let group = alone("renewed")
        .clock(clock.clone())
        .keep_for_revalidation(seconds(60))
        .build_with(|ctx: &Context, _: &str| {
            Ok::<_, larder::Error>(match ctx.etag() {
                Some("1") => Value::not_modified(),
                _ => Value::new("value").etag("1").expire_in(seconds(1)),
            })
        })
        .expect("a group");
    let expires_in = || {
        let options = GetOptions::new().max_age(std::time::Duration::ZERO);
        let answer = group.get_opts(&Context::background(), "key", options);
        answer.expect("a value").expires_in.expect("it expires")
    };
    clock.advance(part);
    assert_eq!(expires_in(), seconds(1));
    for round in 1..1000 {
        clock.advance(seconds(1) + part);
        let time = expires_in();
        assert!(
            time <= seconds(1) && time + millis(1) >= seconds(1),
            "{time:?} in {round}"
        );
    }
    assert_eq!(group.stats().local_loads, 1000);
}

#[test]
fn unchanged_value_is_renewed_without_its_bytes() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let left = Count::default();
    let leaves = left.clone();
    let group =
        origin.group(kept_for_a_minute(&clock).eviction_listener(move |_, _, _| leaves.add(1)));
    let first = group.get("key").expect("a value");
    assert_eq!(first, Origin::value_of(0, "key"));
    let size = group.weighted_size();
    for round in 1..=3 {
        clock.advance(seconds(9));
        assert_eq!(group.get("key").expect("fresh").as_ptr(), first.as_ptr());
        assert_eq!(origin.counts(), (round, 1));
        clock.advance(seconds(1));
        let renewed = group.get("key").expect("renewed");
        assert_eq!(renewed, first);
        assert_eq!(renewed.as_ptr(), first.as_ptr(), "no byte is copied");
        assert_eq!(origin.counts(), (round + 1, 1));
    }
    assert_eq!((group.entry_count(), group.weighted_size()), (1, size));
    assert_eq!(left.get(), 0, "a renewed value does not leave");
    clock.advance(seconds(10));
    origin.version.store(1, SeqCst);
    assert_eq!(
        group.get("key").expect("the new value"),
        Origin::value_of(1, "key")
    );
    assert_eq!((origin.counts(), left.get()), ((5, 2), 1));
}

#[test]
fn kept_value_is_never_served() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(kept_for_a_minute(&clock));
    group.get("key").expect("a value");
    clock.advance(seconds(10));
    assert_eq!(group.entry_count(), 1);
    assert!(group.peek("key").is_none() && !group.contains_key("key"));
    assert!(group.serve_peer_cached("key").is_none());
    assert_eq!(group.iter().count(), 0);
    let cached = GetOptions::new().only_if_cached().max_stale(seconds(60));
    let found = group.get_opts(&Context::background(), "key", cached);
    assert_eq!(kind(found), ErrorKind::NotCached);
    assert_eq!(group.purge_expired(), 1, "an explicit call drops it");
}

#[test]
fn kept_values_leave_after_their_time_and_before_all_others() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let causes: Arc<Mutex<Vec<(String, RemovalCause)>>> = Arc::default();
    let noted = causes.clone();
    let group = origin.group(
        kept_for_a_minute(&clock)
            .max_capacity(16 << 10)
            .shards(1)
            .eviction_listener(move |key, _, cause| {
                noted.lock().expect("a lock").push((key.to_owned(), cause));
            }),
    );
    for key in ["a", "b", "c", "d"] {
        group.get(key).expect("a value");
    }
    clock.advance(seconds(10));
    for key in 0..30 {
        group.get(&format!("other {key}")).expect("a value");
    }
    let causes = std::mem::take(&mut *causes.lock().expect("a lock"));
    let first: Vec<_> = causes[..4]
        .iter()
        .map(|(key, cause)| (key.len(), *cause))
        .collect();
    assert_eq!(first, [(1, RemovalCause::Expired); 4]);
    assert!(
        causes[4..]
            .iter()
            .all(|(_, cause)| *cause == RemovalCause::Size)
    );

    // Look-ups alone remove them, but not before their time.
    clock.advance(seconds(69));
    let misses = |group: &Group| (0..300).for_each(|_| drop(group.serve_peer_cached("none")));
    let hits = |group: &Group| (0..600).for_each(|_| drop(group.get("hit")));
    misses(&group);
    group.get("hit").expect("a value");
    let kept = group.entry_count();
    hits(&group);
    assert_eq!(group.entry_count(), kept);
    clock.advance(seconds(1));
    group.get("hit").expect("a value");
    hits(&group);
    assert_eq!(group.entry_count(), 1);
}

#[test]
fn refresh_and_stale_values_are_renewed_without_being_kept_longer() {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(
        fresh_for_ten(&clock)
            .refresh_at(0.5)
            .stale_while_revalidate(seconds(5)),
    );
    let first = group.get("key").expect("a value");
    for (loads, step) in [(2, 6), (3, 12)] {
        clock.advance(seconds(step));
        assert_eq!(
            group.get("key").expect("the old value").as_ptr(),
            first.as_ptr()
        );
        eventually("the refresh ran", || origin.loads.get() == loads);
        let ctx = Context::background();
        let is_renewed = || {
            let answer = group.get_opts(&ctx, "key", GetOptions::new().only_if_cached());
            answer.is_ok_and(|answer| answer.expires_in == Some(seconds(10)))
        };
        eventually("the value is renewed", is_renewed);
    }
    assert_eq!(origin.sent.get(), 1);
}

#[test]
fn renewal_without_an_old_value_is_an_error() {
    let clock = Clock::manual();
    let group = fresh_for_ten(&clock)
        .build_with(|ctx, key| {
            assert!(ctx.stale().is_none() && ctx.etag().is_none());
            match key {
                "forgets" => Ok::<_, larder::Error>(Value::new("value").etag("1")),
                _ => Ok(Value::not_modified()),
            }
        })
        .expect("a group");
    assert_eq!(kind(group.get("key")), ErrorKind::NothingSet);
    group.get("forgets").expect("a value");
    clock.advance(seconds(10));
    group.purge_expired();
    group
        .get("forgets")
        .expect("loaded, because it was not kept");
    assert!(Context::background().stale().is_none());
    assert_eq!(kind(String::new().not_modified()), ErrorKind::Sink);
}

/// Changes the key while a load is under way that finds its value unchanged.
fn changed_meanwhile(change: impl Fn(&Group)) -> (Group, Origin) {
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = origin.group(kept_for_a_minute(&clock));
    group.get("key").expect("a value");
    clock.advance(seconds(10));
    origin.holds.store(true, SeqCst);
    let loading = {
        let group = group.clone();
        start(move || group.get("key"))
    };
    eventually("the load runs", || origin.loads.get() == 2);
    change(&group);
    origin.gate.open();
    loading.end().expect("the old value");
    (group, origin)
}

#[test]
fn renewal_does_not_bring_back_what_was_removed() {
    let removals: [fn(&Group); 4] = [
        |group| group.invalidate("key"),
        |group| drop(group.remove_local("key")),
        |group| group.clear_local(),
        |group| {
            group
                .remove(&Context::background(), "key")
                .expect("no peer")
        },
    ];
    for remove in removals {
        let (group, origin) = changed_meanwhile(remove);
        assert!(!group.contains_key("key"));
        origin.version.store(1, SeqCst);
        assert_eq!(
            group.get("key").expect("a value"),
            Origin::value_of(1, "key")
        );
        assert_eq!(
            origin.counts(),
            (3, 2),
            "the removed value is not offered either"
        );
    }
}

#[test]
fn renewal_does_not_replace_what_was_set_meanwhile() {
    let (group, origin) = changed_meanwhile(|group| {
        group
            .set(
                &Context::background(),
                "key",
                "set",
                larder::SetOptions::new(),
            )
            .expect("no peer");
    });
    assert_eq!(group.get("key").expect("a value"), "set");
    assert_eq!(origin.loads.get(), 2);
}

#[test]
fn value_that_was_evicted_meanwhile_is_cached_again() {
    let (group, origin) = changed_meanwhile(|group| {
        group.trim(u64::MAX);
        assert_eq!(group.entry_count(), 0);
    });
    assert_eq!(
        group.get("key").expect("a value"),
        Origin::value_of(0, "key")
    );
    assert_eq!((origin.counts(), group.entry_count()), ((2, 1), 1));
}

#[test]
fn nested_loads_have_their_own_old_values() {
    let clock = Clock::manual();
    let inner = kept_for_a_minute(&clock)
        .build_with(|ctx, key| {
            assert_eq!((ctx.stale().is_some(), ctx.etag()), (false, None), "{key}");
            Ok::<_, larder::Error>(key.to_owned())
        })
        .expect("a group");
    let nested = inner.clone();
    let outer = kept_for_a_minute(&clock)
        .build_with(move |ctx, key| {
            let before = ctx.etag().map(str::to_owned);
            let inner = nested.get_with(ctx, &format!("{key} {before:?}"))?;
            assert_eq!(ctx.etag(), before.as_deref());
            Ok::<_, larder::Error>(Value::new(inner).etag("outer"))
        })
        .expect("a group");
    assert_eq!(outer.get("key").expect("a value"), "key None");
    clock.advance(seconds(10));
    assert_eq!(outer.get("key").expect("a value"), "key Some(\"outer\")");
}

#[test]
fn time_to_live_of_the_value_stays_unless_it_is_set_again() {
    let (clock, renews_for) = (Clock::manual(), Arc::new(Mutex::new(None)));
    let again = renews_for.clone();
    let group = alone("own times")
        .clock(clock.clone())
        .keep_for_revalidation(seconds(60))
        .build(getter_fn(move |ctx, _, dest| {
            if ctx.stale().is_none() {
                dest.expire_in(seconds(7));
                return Ok(dest.set_str("value")?);
            }
            if let Some(ttl) = *again.lock().expect("a lock") {
                dest.expire_in(ttl);
            }
            Ok(dest.not_modified()?)
        }))
        .expect("a group");
    let life = |ttl| {
        let answer = group.get_opts(&Context::background(), "key", GetOptions::new());
        assert_eq!(answer.expect("a value").expires_in, Some(seconds(ttl)));
        clock.advance(seconds(ttl));
    };
    life(7);
    life(7);
    *renews_for.lock().expect("a lock") = Some(seconds(3));
    life(3);
    *renews_for.lock().expect("a lock") = None;
    life(3);
}

#[test]
fn etag_counts_against_the_capacity_and_is_no_part_of_the_value() {
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let noted = seen.clone();
    let group = alone("tagged")
        .time_to_live(seconds(1000))
        .refresh_at(0.5)
        .eviction_listener(move |_, value, _| {
            let text = value.to_str().expect("text").to_owned();
            noted.lock().expect("a lock").push(text);
        })
        .build(getter_fn(|_, key, dest| {
            let etag = "e".repeat(key.len() - 1);
            // The first letter decides whether the etag is set before the value, after it, or not at all.
            match &key[..1] {
                "b" => dest.set_etag(&etag),
                "v" => {
                    dest.set_view(&"value".into())?;
                    dest.set_etag(&etag);
                    return Ok(());
                }
                _ => {}
            }
            dest.set_str("value")?;
            if &key[..1] == "a" {
                dest.set_etag(&etag);
            }
            Ok(())
        }))
        .expect("a group");
    let weight = |key: String| {
        assert_eq!(group.get(&key).expect("a value"), "value");
        assert_eq!(group.get(&key).expect("a hit"), "value");
        assert_eq!(group.peek(&key).expect("cached"), "value");
        let entry: Vec<Entry> = group.iter().collect();
        assert_eq!((entry[0].key(), entry[0].value()), (&*key, "value".into()));
        let weight = group.weighted_size();
        group.clear_local();
        assert_eq!(group.weighted_size(), 0);
        weight
    };
    let key = |kind: &str, etag| kind.to_owned() + &"k".repeat(etag);
    for etag in [0, 1, 13, 100, 1024] {
        let plain = weight(key("p", etag));
        for kind in ["a", "b", "v"] {
            let more = weight(key(kind, etag)) - plain;
            let range = etag.saturating_sub(200) as u64..=etag as u64 + 200;
            assert!(range.contains(&more), "{etag} {kind}: {more}");
        }
    }
    assert_eq!(weight(key("b", 1025)), weight(key("p", 1025)), "too long");
    assert!(
        seen.lock()
            .expect("a lock")
            .iter()
            .all(|value| value == "value")
    );
}

#[test]
fn bulk_getter_has_an_old_value_for_each_key() {
    let (clock, calls) = (Clock::manual(), Count::default());
    let counted = calls.clone();
    let load = move |ctx: &Context, keys: &[&str], sinks: &mut [BulkSink<'_>]| {
        counted.add(1);
        assert!(keys.len() == 1 || ctx.stale().is_none());
        for (key, sink) in keys.iter().zip(sinks) {
            if let Some(old) = sink.stale() {
                assert_eq!(old, key);
                assert_eq!(sink.etag(), Some(&*format!("etag of {key}")));
                sink.not_modified()?;
            } else {
                sink.set_etag(&format!("etag of {key}"));
                sink.set_str(key)?;
            }
        }
        Ok(())
    };
    let group = kept_for_a_minute(&clock)
        .build_bulk(bulk_fn(load))
        .expect("a group");
    let get = |keys: &[&str]| -> Vec<usize> {
        let values = group.get_many(&Context::background(), keys);
        let same = |(key, value): (&&str, larder::Result<larder::ByteView>)| {
            let value = value.expect("a value");
            assert_eq!(value, *key);
            value.as_ptr().addr()
        };
        keys.iter().zip(values).map(same).collect()
    };
    let first = get(&["a", "b"]);
    clock.advance(seconds(10));
    assert_eq!(get(&["a", "b"]), first);
    clock.advance(seconds(10));
    let mixed = get(&["a", "c", "b"]);
    assert_eq!([mixed[0], mixed[2]], [first[0], first[1]]);
    clock.advance(seconds(10));
    assert_eq!(get(&["a"]), first[..1], "a single load, too");
    assert_eq!(calls.get(), 4);
}

#[test]
fn getter_for_single_keys_is_a_bulk_getter_with_old_values() {
    struct Single(Origin);
    impl larder::Getter for Single {
        fn get(
            &self,
            ctx: &Context,
            key: &str,
            dest: &mut dyn Sink,
        ) -> Result<(), larder::BoxError> {
            Ok(self.0.load(ctx, key, dest)?)
        }
    }
    impl larder::BulkGetter for Single {}
    let (clock, origin) = (Clock::manual(), Origin::default());
    let group = kept_for_a_minute(&clock)
        .build_bulk(Single(origin.clone()))
        .expect("a group");
    for loads in [2, 4] {
        let values = group.get_many(&Context::background(), &["a", "b"]);
        assert!(values.iter().all(Result::is_ok));
        assert_eq!(origin.counts(), (loads, 2));
        clock.advance(seconds(10));
    }
}
