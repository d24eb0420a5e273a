//! Expired entries make room first, whatever needs it.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// The number of entries that have expired and not left.
fn dead(store: &Store) -> u64 {
    let live: usize = store.iter().count();
    total_items(store) - live as u64
}

fn live_bytes(store: &Store) -> u64 {
    let weight = |entry: Entry| weight::of_entry(entry.key().len() + entry.value().len());
    let charge = weight::EXPIRY as u64;
    store.iter().map(|entry| weight(entry) + charge).sum()
}

fn causes(evicted: &EvictedEntries) -> Vec<RemovalCause> {
    evicted.iter().map(|one| one.cause).collect()
}

fn set_capacity(store: &Store, capacity: u64) -> EvictedEntries {
    store.set_capacity(capacity);
    let mut evicted = EvictedEntries::default();
    while let Some(more) = store.evict_to_capacity() {
        evicted.append(more);
    }
    evicted
}

/// Inserts entries that expire after a second.
fn put_mortals(store: &Store, count: usize) {
    for n in 0..count {
        let key = n.to_string();
        put(store, &key, &[0; 50], CacheType::Main, Some(SECOND));
    }
}

/// Fills a store of 1 MiB with entries that expire after a second.
fn full_of_mortals(eviction: Eviction, shards: usize, clock: &Clock) -> Store {
    let store = store(1 << 20, eviction, shards, clock);
    put_mortals(&store, 20_000);
    assert!(total_items(&store) > 5000);
    store
}

fn each_policy(test: impl Fn(Eviction, usize)) {
    for eviction in [Eviction::Tide, Eviction::Lru] {
        for shards in [1, 8] {
            test(eviction, shards);
        }
    }
}

proptest! {
    /// Whatever the operations: a live entry is evicted only if no expired one is left, and refused
    /// only if the live entries leave no room for it.
    #[test]
    fn no_live_entry_is_evicted_or_refused_for_expired_ones(
        ops in ops(),
        eviction in eviction(),
        shards in prop_oneof![Just(1), Just(4)],
        mut capacity in 2_000..30_000_u64,
    ) {
        let clock = Clock::manual();
        let store = store(capacity, eviction, shards, &clock);
        for (step, op) in ops.into_iter().enumerate() {
            let mut evicted = EvictedEntries::default();
            match op {
                Op::Put { key, len, hot, ttl } => {
                    let key = format!("k{key}");
                    store.remove(store.hash(&key), &key, || ());
                    let share = if hot { CacheType::Hot } else { CacheType::Main };
                    let room = capacity.saturating_sub(live_bytes(&store));
                    let ttl = ttl.map(|ttl| Duration::from_secs(ttl.into()));
                    evicted = put(&store, &key, &vec![step as u8; len], share, ttl);
                    let weight = weight::of_entry(key.len() + len) + weight::EXPIRY as u64;
                    prop_assert!(weight > room || get(&store, &key).is_some(), "refused");
                }
                Op::Get(key) => drop(get(&store, &format!("k{key}"))),
                Op::Remove(key) => {
                    let key = format!("k{key}");
                    store.remove(store.hash(&key), &key, || ());
                }
                Op::Advance(seconds) => clock.advance(Duration::from_secs(seconds.into())),
                Op::SetCapacity(bytes) => {
                    capacity = bytes;
                    evicted = set_capacity(&store, bytes);
                }
                Op::Clear => drop(store.clear()),
            }
            let any = causes(&evicted).contains(&RemovalCause::Size);
            prop_assert!(!any || dead(&store) == 0, "evicted beside {} expired", dead(&store));
            for (n, shard) in store.shards.iter().enumerate() {
                let is_due = shard.read().next_expiry() <= clock.now();
                prop_assert!(!is_due || store.next_expiries.due(clock.now()).any(|due| due == n));
            }
        }
    }
}

#[test]
fn insertion_takes_the_room_of_expired_entries_of_other_shards() {
    each_policy(|eviction, shards| {
        let clock = Clock::manual();
        let store = full_of_mortals(eviction, shards, &clock);
        clock.advance(SECOND);
        let full = total_items(&store);
        // These are more than a shard's part, so they need the room of the others.
        let mut live = Vec::new();
        for n in 0.. {
            let key = format!("live{n}");
            let hash = store.hash(&key);
            if hash.shard(shards) == 0 {
                let evicted = put(&store, &key, &[0; 50], CacheType::Main, None);
                assert!(
                    causes(&evicted)
                        .iter()
                        .all(|&cause| cause == RemovalCause::Expired)
                );
                live.push(key);
            }
            if live.len() as u64 == full / 2 {
                break;
            }
        }
        assert!(live.iter().all(|key| get(&store, key).is_some()));
        let expired = store.stats(CacheType::Main).expired;
        assert!(expired + 10 >= full / 2, "{expired} of {full}");
    });
}

#[test]
fn value_that_takes_the_whole_capacity_leaves_no_expired_entry() {
    each_policy(|eviction, shards| {
        let clock = Clock::manual();
        let len = 4096;
        let store = store(weight::of_entry(len), eviction, shards, &clock);
        put_mortals(&store, 8);
        put(&store, "live", &[0; 50], CacheType::Main, None);
        clock.advance(SECOND);
        // Some of these keys may be in a shard without entries that expire. There, the value weighs less by
        // its expiry, and takes the whole capacity.
        for key in ["large0", "large1", "large2", "large3"] {
            let value = vec![0; len - key.len()];
            put(&store, key, &value, CacheType::Main, None);
            assert_eq!(dead(&store), 0, "{eviction:?} {shards}");
        }
    });
}

#[test]
fn large_value_is_admitted_in_the_room_of_expired_entries() {
    each_policy(|eviction, shards| {
        let clock = Clock::manual();
        let store = full_of_mortals(eviction, shards, &clock);
        let evicted = store.stats(CacheType::Main).evictions;
        put(&store, "live", &[0; 50], CacheType::Main, None);
        clock.advance(SECOND);
        let gone = put(&store, "large", &[0; 900_000], CacheType::Hot, None);
        assert!(
            causes(&gone)
                .iter()
                .all(|&cause| cause == RemovalCause::Expired)
        );
        assert!(
            get(&store, "large").is_some(),
            "{eviction:?} {shards}: refused"
        );
        assert!(get(&store, "live").is_some());
        assert!(store.stats(CacheType::Main).evictions <= evicted + 1);
    });
}

#[test]
fn expired_entries_leave_with_cause_expired_however_they_leave() {
    each_policy(|eviction, shards| {
        for leave in [
            (|store| set_capacity(store, 0)) as fn(&Store) -> EvictedEntries,
            |store| put(store, "0", b"new", CacheType::Main, None),
            |store| store.remove(store.hash("19999"), "19999", || ()),
            |store| {
                store
                    .purge_expired(store.clock().now(), usize::MAX)
                    .expect("some")
            },
            |store| {
                let mut evicted = EvictedEntries::default();
                let mut cleared = store.clear();
                while let Some(part) = store.take_cleared(&mut cleared) {
                    part.into_iter()
                        .for_each(|one| evicted.push(one.entry, one.cause));
                }
                evicted
            },
        ] {
            let clock = Clock::manual();
            let store = full_of_mortals(eviction, shards, &clock);
            let evicted = store.stats(CacheType::Main).evictions;
            clock.advance(SECOND);
            let gone = leave(&store);
            assert!(!gone.is_empty());
            assert!(
                causes(&gone)
                    .iter()
                    .all(|&cause| cause == RemovalCause::Expired)
            );
            let stats = store.stats(CacheType::Main);
            assert_eq!(
                (stats.evictions, stats.expired),
                (evicted, gone.len() as u64)
            );
            assert_eq!((stats.removed, stats.replaced), (0, 0));
        }
    });
}

#[test]
fn smaller_capacity_evicts_only_what_expired_entries_leave() {
    each_policy(|eviction, shards| {
        let clock = Clock::manual();
        let store = store(1 << 20, eviction, shards, &clock);
        for n in 0..4000 {
            let ttl = (n % 2 == 0).then_some(SECOND);
            put(&store, &n.to_string(), &[0; 50], CacheType::Main, ttl);
        }
        let bytes = total_bytes(&store);
        clock.advance(SECOND);
        let gone = set_capacity(&store, bytes * 3 / 4);
        assert!(
            causes(&gone)
                .iter()
                .all(|&cause| cause == RemovalCause::Expired)
        );
        let gone = set_capacity(&store, bytes / 4);
        let size = causes(&gone)
            .iter()
            .filter(|&&cause| cause == RemovalCause::Size)
            .count();
        assert!((900..1100).contains(&size), "{size}");
    });
}

#[test]
fn purge_removes_all_expired_entries_and_no_others() {
    each_policy(|eviction, shards| {
        let clock = Clock::manual();
        let store = full_of_mortals(eviction, shards, &clock);
        assert!(store.purge_expired(clock.now(), usize::MAX).is_none());
        clock.advance(SECOND);
        put(&store, "live", b"value", CacheType::Main, Some(SECOND));
        let slots = || -> usize { store.shards.iter().map(|shard| shard.read().slots()).sum() };
        let before = slots();
        while let Some(gone) = store.purge_expired(clock.now(), 100) {
            assert!(gone.len() <= 100);
        }
        assert_eq!(total_items(&store), 1);
        assert!(get(&store, "live").is_some());
        assert!(slots() < before / 8, "the tables shrink too");
    });
}

#[test]
fn removals_are_counted_by_share_and_cause() {
    let clock = Clock::manual();
    let store = store(1 << 20, Eviction::Tide, 2, &clock);
    for (key, ttl) in [
        ("a", Some(SECOND)),
        ("b", None),
        ("b", None),
        ("c", None),
        ("d", Some(SECOND)),
    ] {
        put(&store, key, b"value", CacheType::Hot, ttl);
    }
    store.remove(store.hash("c"), "c", || ());
    clock.advance(SECOND);
    store.remove(store.hash("a"), "a", || ());
    let mut cleared = store.clear();
    while store.take_cleared(&mut cleared).is_some() {}
    let stats = store.stats(CacheType::Hot);
    let counted = (
        stats.expired,
        stats.removed,
        stats.replaced,
        stats.evictions,
    );
    assert_eq!(counted, (2, 2, 1, 0));
    assert_eq!(store.stats(CacheType::Main), CacheStats::default());
}

/// A clear reads no entry, however many have expired. The parts that are taken later correct the counts.
#[test]
fn clear_counts_expired_entries_when_they_are_taken() {
    each_policy(|eviction, shards| {
        let clock = Clock::manual();
        let store = full_of_mortals(eviction, shards, &clock);
        let count = store.stats(CacheType::Main).items;
        clock.advance(SECOND);
        let mut cleared = store.clear();
        let counts = || {
            let stats = store.stats(CacheType::Main);
            (stats.items, stats.removed, stats.expired)
        };
        assert_eq!(counts(), (0, count, 0));
        let part = store.take_cleared(&mut cleared).expect("entries").len() as u64;
        assert!(part < count, "it is bounded");
        assert_eq!(counts(), (0, count - part, part));
        while store.take_cleared(&mut cleared).is_some() {}
        assert_eq!(counts(), (0, 0, count));
    });
}
