//! The behaviours that golang/groupcache's own suite tests: fills, shared loads and eviction.

use larder::{
    ByteView, CacheType, Context, Error, Eviction, Getter, Group, ProtoSink, StringSink, getter_fn,
};

use crate::common::*;
use crate::testpb::Town;

/// A group whose getter waits at a gate before it answers.
fn gated(gate: &Gate, begun: &Gate) -> (Group, Count) {
    let (echo, loads) = echo();
    let (gate, begun) = (gate.clone(), begun.clone());
    let group = alone("gated")
        .build(getter_fn(move |ctx, key, dest| {
            begun.open();
            gate.pass();
            echo.get(ctx, key, dest)
        }))
        .expect("a group");
    (group, loads)
}

fn town(name: &str) -> Town {
    Town {
        name: name.into(),
        country: Some("Nowhere".into()),
        people: Some(u64::MAX),
        twins: vec!["one".into(), String::new()],
    }
}

fn towns() -> (Group, Count) {
    let loads = Count::default();
    let counted = loads.clone();
    let group = alone("towns")
        .build(getter_fn(move |_, key, dest| {
            counted.add(1);
            Ok(dest.set_proto(&town(key))?)
        }))
        .expect("a group");
    (group, loads)
}

fn town_of(group: &Group, key: &str) -> Town {
    let mut town = Town::default();
    group
        .get_into(&Context::background(), key, ProtoSink::new(&mut town))
        .expect("a town");
    town
}

#[test]
fn two_callers_of_one_key_share_one_load() {
    let (gate, begun) = (Gate::new(), Gate::new());
    let (group, loads) = gated(&gate, &begun);
    let get = |group: &Group| {
        let group = group.clone();
        start(move || {
            let mut text = String::new();
            let dest = StringSink::new(&mut text);
            group.get_into(&Context::background(), "key", dest)?;
            Ok::<_, Error>(text)
        })
    };
    let leader = get(&group);
    begun.pass();
    let follower = get(&group);
    eventually("the second caller misses", || group.stats().loads == 2);
    gate.open();
    assert_eq!(leader.end().expect("a value"), "ECHO:key");
    assert_eq!(follower.end().expect("a value"), "ECHO:key");
    assert_eq!(loads.get(), 1);
}

#[test]
fn two_callers_of_one_message_share_one_load() {
    let (gate, begun) = (Gate::new(), Gate::new());
    let loads = Count::default();
    let group = {
        let (gate, begun, loads) = (gate.clone(), begun.clone(), loads.clone());
        alone("messages")
            .build(getter_fn(move |_, key, dest| {
                begun.open();
                gate.pass();
                loads.add(1);
                Ok(dest.set_proto(&town(key))?)
            }))
            .expect("a group")
    };
    let get = |group: &Group| {
        let group = group.clone();
        start(move || town_of(&group, "Omphalos"))
    };
    let leader = get(&group);
    begun.pass();
    let follower = get(&group);
    eventually("the second caller misses", || group.stats().loads == 2);
    gate.open();
    assert_eq!(leader.end(), town("Omphalos"));
    assert_eq!(follower.end(), town("Omphalos"));
    assert_eq!(loads.get(), 1);
}

#[test]
fn ten_gets_of_one_key_fill_once() {
    let (getter, loads) = echo();
    let group = alone("fills").build(getter).expect("a group");
    for _ in 0..10 {
        assert_eq!(group.get("key").expect("a value"), "ECHO:key");
    }
    assert_eq!(loads.get(), 1);
}

#[test]
fn ten_gets_of_one_message_fill_once() {
    let (group, loads) = towns();
    for _ in 0..10 {
        assert_eq!(town_of(&group, "Ys"), town("Ys"));
    }
    assert_eq!(loads.get(), 1);
}

const CAPACITY: u64 = 1 << 20;

/// Gets other keys until the bytes of their keys and values exceed the capacity by 1 KiB.
fn flood(group: &Group) {
    let mut flooded = 0;
    while flooded < CAPACITY + 1024 {
        let key = format!("dummy-key-{flooded}");
        let value = group.get(&key).expect("a value");
        flooded += (key.len() + value.len()) as u64;
    }
}

#[test]
fn evicted_key_is_filled_again() {
    for (eviction, asked) in [(Eviction::Lru, 10), (Eviction::Lru, 1), (Eviction::Tide, 1)] {
        let (getter, loads) = echo();
        let group = alone("flooded")
            .eviction(eviction)
            .max_capacity(CAPACITY)
            .build(getter)
            .expect("a group");
        let fills = |times: usize| {
            let before = loads.get();
            for _ in 0..times {
                assert_eq!(group.get("the key").expect("a value"), "ECHO:the key");
            }
            loads.get() - before
        };
        assert_eq!(fills(asked), 1, "{eviction:?}");
        let evicted = group.cache_stats(CacheType::Main).evictions;
        flood(&group);
        assert!(group.cache_stats(CacheType::Main).evictions > evicted);
        assert!(group.weighted_size() <= CAPACITY);
        assert!(!group.contains_key("the key"), "{eviction:?}");
        assert_eq!(fills(10), 1, "{eviction:?}: filled once more, then cached");
    }
}

#[test]
fn hot_key_survives_scan() {
    let (getter, loads) = echo();
    let group = alone("scanned")
        .max_capacity(CAPACITY)
        .build(getter)
        .expect("a group");
    for _ in 0..10 {
        group.get("the key").expect("a value");
    }
    flood(&group);
    let before = loads.get();
    group.get("the key").expect("a value");
    assert_eq!(loads.get(), before, "Tide keeps a hot key during a scan");
}

#[test]
fn value_larger_than_cache_is_served_and_evicts_nothing() {
    let loads = Count::default();
    let counted = loads.clone();
    let group = alone("large")
        .max_capacity(16 << 10)
        .build(getter_fn(move |_, key, dest| {
            counted.add(1);
            let len: usize = key.parse()?;
            Ok(dest.set_bytes(&vec![7; len])?)
        }))
        .expect("a group");
    group.get("10").expect("a value");
    for _ in 0..2 {
        assert_eq!(group.get("20000").expect("a value").len(), 20_000);
    }
    assert_eq!(loads.get(), 3, "served each time, never cached");
    assert!(group.contains_key("10"));
    assert_eq!(group.entry_count(), 1);
}

#[test]
fn peek_does_not_load_count_or_promote() {
    let (getter, loads) = echo();
    let group = alone("peeked")
        .eviction(Eviction::Lru)
        .max_capacity(CAPACITY)
        .build(getter)
        .expect("a group");
    assert_eq!(group.peek("key"), None);
    assert_eq!((loads.get(), group.stats().gets), (0, 0));
    group.get("key").expect("a value");
    assert_eq!(group.peek("key"), Some(ByteView::from("ECHO:key")));
    assert!(group.contains_key("key"));
    assert_eq!((group.stats().gets, group.stats().cache_hits), (1, 0));
    // The peek does not promote the key, so it is still the oldest.
    let mut others = (0..1_000_000).map(|n| format!("other{n}"));
    while group.cache_stats(CacheType::Main).evictions == 0 {
        assert!(group.contains_key("key"), "it is evicted first");
        let other = others.next().expect("a million entries do not fit");
        group.get(&other).expect("a value");
    }
    assert!(!group.contains_key("key"));
}
